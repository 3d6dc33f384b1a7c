"""Settings of the ``patch`` recipe, derived from the training cases and from the memory found, each with its reason.

The rules are fixed: the same cases on the same machine give the same plan, whatever is running beside it. What a user
gives is taken instead of what a rule says.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from med3d_nets.errors import Med3dError
from med3d_nets.fingerprint import Fingerprint, Triple, measure_cases
from med3d_nets.footprint import Cost, find_memory_gb, training_cost
from med3d_nets.planning_options import STRIDE, check_given

__all__ = [
    "Limit",
    "Plan",
    "by_axis",
    "check_given",
    "find_limit",
    "make_plan",
    "plan_anisotropic",
    "plan_flips",
    "plan_intensity",
    "plan_spacing",
    "plan_training",
    "shrink",
    "three",
]

ANISOTROPIC = 3
"""Ratio above which an axis counts as coarse, or a patch as flat, as in nnU-Net (Isensee et al., arXiv:1904.08128)."""
BATCH_SIZE = 2
"""The smallest that batch norms learn from. Twice the steps teach more than twice the patches in each."""
MIN_SHARE = 0.8
"""Share of the median shape, along an axis, that a patch has at least where it fits."""
CPU_FLOP = 400e9
"""Floating-point operations of an iteration on a CPU: one to five seconds on two cores."""
GPU_VOXELS = 5_000_000
"""Voxels of a batch on a GPU: two patches of 96 x 160 x 160."""
SHARES = {"cpu": 0.5, "cuda": 0.8}
"""Share of the memory that is planned for; the rest is for the cases, the libraries and other programs."""
MIN_CASES_TO_FLIP = 10
MAX_DIRECTION = 0.1
"""Agreement between the cases above which an axis has a direction, see :meth:`Fingerprint.direction`."""

_AXES = ("left-right", "posterior-anterior", "inferior-superior")
_SIDES = (
    "left right lt rt l r sinister dexter",
    "anterior posterior ventral dorsal front back",
    "superior inferior upper lower cranial caudal top bottom",
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """Settings of the ``patch`` recipe; axes in the order of :attr:`orientation`.

    Attributes:
        orientation: what the axes are turned to.
        spacing: mm.
        patch_size: voxels that training takes from a case at a time.
        window_size: voxels that the network sees at a time in validation and inference.
        batch_size: patches in an iteration.
        intensity: None to normalise each volume over its own non-zero voxels to mean 0 and standard deviation 1;
            otherwise "lower" and "upper", to clip to, then "mean" and "std", to subtract and to divide by, in HU.
        flip_axes: axes that may be flipped at random.
        anisotropic: whether to rotate and blur within the plane of the two finer axes alone.
        reasons: a sentence for each attribute above.
    """

    orientation: str
    spacing: tuple[float, float, float]
    patch_size: tuple[int, int, int]
    window_size: tuple[int, int, int]
    batch_size: int
    intensity: Mapping[str, float] | None
    flip_axes: tuple[int, ...]
    anisotropic: bool
    reasons: Mapping[str, str]


def plan_training(
    cases: Sequence[Mapping[str, str]],
    n_seg_classes: int = 2,
    in_channels: int = 1,
    variant: str = "resnet_10",
    head: str = "unet",
    device: torch.device | str = "cpu",
    spacing: Sequence[float] = (),
    patch_size: Sequence[int] = (),
    batch_size: int = 0,
    intensity: str | Sequence[float] = "auto",
    memory_gb: float = 0,
    flip_axes: str | Sequence[int] = "auto",
    class_names: Sequence[str] = (),
    activation_checkpointing: bool = False,
    num_workers: int = 0,
    window_size: Sequence[int] = (),
) -> Plan:
    """Measure the training cases and plan how to train on them.

    Args:
        cases, n_seg_classes, in_channels, num_workers: as for :func:`~med3d_nets.fingerprint.measure_cases`.
        variant, head: of the network, as for :func:`~med3d_nets.networks.create_model`.
        device: that of the training.
        spacing: mm along the RAS axes; empty: see :func:`make_plan`, like the following.
        patch_size: voxels along the RAS axes, or empty.
        batch_size: patches in an iteration, or 0.
        intensity: "ct", "mr", the two HU to clip to, or "auto".
        memory_gb: memory of the device, in GB of 10^9 bytes; 0: as :func:`find_memory_gb` finds it.
        flip_axes: RAS axes that may be flipped (0: left-right, 1: posterior-anterior, 2: inferior-superior), or "auto".
        class_names: names of all classes, which may tell sides.
        activation_checkpointing: whether training saves memory in that way.
        window_size: voxels along the RAS axes that the network sees at a time in validation and inference, or empty.

    Raises:
        Med3dError: see :func:`make_plan` and :func:`~med3d_nets.fingerprint.measure_cases`.
    """
    given = (spacing, patch_size, batch_size, intensity, memory_gb, flip_axes)
    check_given(*given, in_channels, window_size=window_size)
    training_cost(variant, n_seg_classes, in_channels, head)  # an unknown variant is told before files are read
    fingerprint = measure_cases(cases, n_seg_classes, in_channels, num_workers)
    plan = make_plan(fingerprint, variant, head, device, *given, class_names, activation_checkpointing, window_size)
    for text in plan.reasons.values():
        _log.info("plan: %s", text)
    return plan


def make_plan(
    fingerprint: Fingerprint,
    variant: str = "resnet_10",
    head: str = "unet",
    device: torch.device | str = "cpu",
    spacing: Sequence[float] = (),
    patch_size: Sequence[int] = (),
    batch_size: int = 0,
    intensity: str | Sequence[float] = "auto",
    memory_gb: float = 0,
    flip_axes: str | Sequence[int] = "auto",
    class_names: Sequence[str] = (),
    activation_checkpointing: bool = False,
    window_size: Sequence[int] = (),
) -> Plan:
    """Plan by these rules, for what is not given.

    - Spacing: the median along each axis. As in nnU-Net, the 10th percentile along an axis whose median is more than
      three times that of both others, where volumes also have less than a third of their voxels along it; but never
      finer than the others' coarsest.
    - Patch: the median shape at that spacing, from which nnU-Net starts too, rounded down to multiples of 8, or up
      along an axis that would lose more than a fifth. A part that is a little less than the crop is another one each
      time, and in the time that whole crops need there are more iterations. If it does not fit, the axis that is
      longest in mm is shortened until the batch fits into a share of the memory, and into the operations that a CPU,
      or the voxels that a GPU, is given.
    - Window: that median shape, rounded up, or the patch where that is given or was shortened.
    - Batch: 2.
    - Intensity: CT where most volumes have air, or nearly all have fat, of the HU expected.
    - Flips: axes along which neither images nor classes have a direction that the cases agree on, and whose sides no
      class is named after; none with fewer than ten cases.

    Args:
        fingerprint: of the training cases.
        variant, head, device, spacing, patch_size, batch_size, intensity, memory_gb, flip_axes, class_names,
            activation_checkpointing, window_size: as for :func:`plan_training`.

    Raises:
        Med3dError: if a value given makes no sense, or the memory is too small.
    """
    given = (spacing, patch_size, batch_size, intensity, memory_gb, flip_axes)
    check_given(*given, fingerprint.in_channels, window_size=window_size)
    reasons = {"orientation": "orientation RAS: axes are turned alike, whatever order files store them in"}
    millimetres, reasons["spacing"] = plan_spacing(fingerprint, spacing)
    channels = fingerprint.in_channels
    cost = training_cost(variant, fingerprint.n_seg_classes, channels, head, activation_checkpointing)
    limit = find_limit(cost, torch.device(device), memory_gb)
    median = np.median(fingerprint.shapes_at(millimetres, content=True), axis=0)
    size, batch, texts = _plan_batch(median, millimetres, patch_size, batch_size, cost, limit)
    reasons |= texts
    window, reasons["window_size"] = _plan_window(median, size, bool(patch_size), window_size)
    clip, reasons["intensity"] = plan_intensity(fingerprint, intensity)
    flips, reasons["flip_axes"] = plan_flips(fingerprint, flip_axes, class_names)
    anisotropic, reasons["anisotropic"] = plan_anisotropic(millimetres, size)
    return Plan("RAS", millimetres, size, window, batch, clip, flips, anisotropic, reasons)


@dataclass(frozen=True)
class Limit:
    """Voxels that a batch may have, what they are limited by, and the memory."""

    n_voxels: int
    by: str
    in_memory: int
    memory_gb: float


def find_limit(cost: Cost, device: torch.device, memory_gb: float) -> Limit:
    """What a batch is limited by, on the device and in GB that are given, or found if that is 0.

    Args:
        cost: of an iteration.
        device: that of the training.
        memory_gb: GB of 10^9 bytes, or 0.
    """
    found = memory_gb or find_memory_gb(device)
    kind = "cuda" if device.type == "cuda" else "cpu"
    share = SHARES[kind]
    in_memory = cost.n_voxels(share * found * 1e9)
    if device.type == "cuda":
        others, by = GPU_VOXELS, "a GPU's time"
    else:
        others, by = int(CPU_FLOP / cost.voxel_flop), "a CPU's time"
    if in_memory <= others:
        by = f"{share:.0%} of {found:.3g} GB of memory"
    return Limit(min(in_memory, others), by, in_memory, found)


def plan_spacing(fingerprint: Fingerprint, given: Sequence[float]) -> tuple[tuple[float, float, float], str]:
    """Spacing in mm by :func:`make_plan`'s rule, or as given, and the reason."""
    if given:
        return three(float(value) for value in given), f"spacing {by_axis(given)} mm: as given"
    spacings = fingerprint.spacings
    target = np.median(spacings, axis=0)
    how = f"median of {len(spacings)} cases" if len(spacings) > 1 else "that of the only case"
    coarse = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != coarse]
    shape = np.median(fingerprint.shapes, axis=0)
    few = shape[coarse] * ANISOTROPIC < min(shape[others])
    if few and target[coarse] > ANISOTROPIC * max(target[others]):
        finest = max(float(np.percentile(spacings[:, coarse], 10)), float(max(target[others])))
        target[coarse] = min(target[coarse], finest)
        how += f", but the 10th percentile along the coarse {_AXES[coarse]} axis, so that thin slices keep their detail"
    result = three(round(float(value), 6) for value in target)
    return result, f"spacing {by_axis(result)} mm: {how}"


def _plan_batch(
    median: NDArray[np.float64],
    spacing: Sequence[float],
    patch_size: Sequence[int],
    batch_size: int,
    cost: Cost,
    limit: Limit,
) -> tuple[Triple, int, dict[str, str]]:
    """Patch size, batch size, and their reasons, for cases of a median shape in voxels."""
    compared = f"compare the cases' median of {by_axis(median)} voxels at that spacing"
    batch, wanted = batch_size or BATCH_SIZE, _patch(median)
    size, why = shrink(wanted, spacing, limit.n_voxels // batch), "whole crops, or a little less, fit"
    if patch_size:
        size, why = three(int(value) for value in patch_size), "as given"
    elif size != wanted:
        why = f"limited by {limit.by}, the longest axis in mm shortened first"
    n_voxels = batch * math.prod(size)
    needed = f"{cost.n_bytes(n_voxels) / 1e9:.2g} GB of {limit.memory_gb:.3g} GB"
    if n_voxels > limit.in_memory:
        text = f"patches of {by_axis(size)} voxels in batches of {batch} need {needed}, of which a part must stay "
        text += "free; choose a smaller variant or --batch_size, or --activation_checkpointing True, or give the "
        text += "memory with --memory_gb"
        if not patch_size:
            raise Med3dError(text)
        _log.warning("%s", text)  # the count knows nothing of what may save memory
    why_batch = "as given" if batch_size else "the smallest that batch norms learn from"
    reasons = {
        "patch_size": f"patch_size {by_axis(size)} voxels: {why}; {compared}",
        "batch_size": f"batch_size {batch}: {why_batch}; training takes about {needed}",
    }
    return size, batch, reasons


def _plan_window(
    median: NDArray[np.float64], patch: Triple, is_given: bool, window_size: Sequence[int]
) -> tuple[Triple, str]:
    """Window size as the user gave it, or for the patch, which is given or planned; and the reason."""
    window, why = patch, "as the patch"
    if window_size:
        window, why = three(int(value) for value in window_size), "as given"
    elif not is_given and patch == _patch(median):
        window, why = _whole(median), "the median crop as a whole"
    return window, f"window_size {by_axis(window)} voxels: {why}"


def _patch(median: NDArray[np.float64]) -> Triple:
    """The patch that is a volume of the median shape, or the most of one."""
    downs = (STRIDE * math.floor(value / STRIDE) for value in median)
    sizes = zip(downs, median, _whole(median), strict=True)
    return three(down if down >= MIN_SHARE * value else up for down, value, up in sizes)


def _whole(median: NDArray[np.float64]) -> Triple:
    """The window that holds a volume of the median shape."""
    return three(STRIDE * math.ceil(value / STRIDE) for value in median)


def shrink(wanted: Triple, spacing: Sequence[float], n_voxels: int) -> Triple:
    """A patch of at most so many voxels, or the smallest sensible one."""
    size = list(wanted)
    while math.prod(size) > n_voxels:
        long = [axis for axis in range(3) if size[axis] > 2 * STRIDE]
        if not long:
            break
        size[max(long, key=lambda axis: size[axis] * spacing[axis])] -= STRIDE
    return three(size)


def plan_intensity(fingerprint: Fingerprint, given: str | Sequence[float]) -> tuple[Mapping[str, float] | None, str]:
    """What :attr:`Plan.intensity` is by :func:`make_plan`'s rule, or as given, and the reason."""
    kind, why = (given, "as given") if isinstance(given, str) else ("ct", "")
    if kind == "auto":
        kind, why = _modality(fingerprint)
    if kind == "mr":
        return None, f"intensity as in MR, each volume normalised over its non-zero voxels: {why}"
    values = fingerprint.intensities.astype(np.float64)
    lower, upper = (float(x) for x in (np.percentile(values, (0.5, 99.5)) if isinstance(given, str) else given))
    clipped = np.clip(values, lower, upper)
    # A foreground of one value, such as metal, would divide by 0.
    result = {"lower": lower, "upper": upper, "mean": float(clipped.mean()), "std": float(clipped.std()) or 1.0}
    result = {name: float(f"{value:.6g}") for name, value in result.items()}
    how = f"{why}; 0.5 and 99.5 percentiles" if isinstance(given, str) else "as given"
    scale = f"mean {result['mean']:g} and std {result['std']:g} of the cases' foreground"
    return result, f"intensity as in CT, clipped to {lower:g} to {upper:g} HU ({how}), then {scale}"


def plan_anisotropic(spacing: Sequence[float], size: Triple) -> tuple[bool, str]:
    """Whether voxels or patch are much longer along one axis than along another, and the reason."""
    if max(spacing) > ANISOTROPIC * min(spacing):
        return True, f"anisotropic: voxels are more than {ANISOTROPIC} times as long along one axis as along another"
    if max(size) > ANISOTROPIC * min(size):
        return True, f"anisotropic: the patch has more than {ANISOTROPIC} times the voxels along one axis"
    return False, f"not anisotropic: neither voxels nor patch differ by more than {ANISOTROPIC} times between axes"


def _modality(fingerprint: Fingerprint) -> tuple[str, str]:
    """ "ct" or "mr", and why."""
    if fingerprint.in_channels > 1:
        return "mr", f"images have {fingerprint.in_channels} channels, which may be of any kind"
    lows, middles, _ = np.array([case.percentiles for case in fingerprint.cases]).T
    n = len(lows)
    # Padding outside of the scanner's field of view goes down to about -3024.
    in_range = (lows >= -3100) & (middles >= -1100)
    air, fat = (int(np.count_nonzero(in_range & (lows <= value))) for value in (-800, -50))
    if 2 * air > n:
        return "ct", f"{air} of {n} volumes have air, at -800 HU or less"
    if 10 * fat >= 9 * n and np.median(middles) < 300:
        return "ct", f"{fat} of {n} volumes have fat or air, at -50 HU or less"
    return "mr", f"{air} of {n} volumes have air, as CT would, at -800 HU or less"


def plan_flips(
    fingerprint: Fingerprint, given: str | Sequence[int], class_names: Sequence[str]
) -> tuple[tuple[int, ...], str]:
    """Axes to flip by :func:`make_plan`'s rule, or as given, and the reason."""
    if not isinstance(given, str):
        return tuple(sorted(set(given))), f"flip_axes {', '.join(map(str, given)) or 'none'}: as given"
    n = len(fingerprint.cases)
    if n < MIN_CASES_TO_FLIP:
        return (), f"flip_axes none: {n} cases do not tell which axes have no direction; {MIN_CASES_TO_FLIP} would"
    allowed, texts = [], []
    for axis, name in enumerate(_AXES):
        words = {word for text in class_names for word in re.split(r"[^a-z0-9]+", str(text).lower())}
        side = sorted(words & set(_SIDES[axis].split()))
        share, where = fingerprint.direction(axis)
        what = f"class {where}" if where else "the image"
        if side:
            texts.append(f"not {name} (a class is named '{side[0]}')")
        elif fingerprint.shapes[:, axis].max() < 2:
            texts.append(f"not {name} (one slice)")
        elif share > MAX_DIRECTION:
            texts.append(f"not {name} ({what} lies the same way in most cases, agreement {share:.2f})")
        else:
            allowed.append(axis)
            texts.append(f"{name} (no direction that cases agree on, {max(0.0, share):.2f})")
    return tuple(allowed), f"flip_axes {', '.join(map(str, allowed)) or 'none'}: {', '.join(texts)}"


def three(values: Any) -> tuple[Any, Any, Any]:
    """A tuple of three values, for a type checker."""
    first, second, third = values
    return first, second, third


def by_axis(values: Any) -> str:
    """Three numbers as a reason gives them: 1 x 2 x 3."""
    return " x ".join(f"{value:.4g}" for value in values)
