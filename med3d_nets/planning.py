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

__all__ = ["Plan", "check_given", "make_plan", "plan_training"]

STRIDE = 8
"""Patch sizes are multiples of the encoder's stride."""
ANISOTROPIC = 3
"""Ratio above which an axis counts as coarse, or a patch as flat, as in nnU-Net (Isensee et al., arXiv:1904.08128)."""
BATCH_SIZES = {"cpu": (2,), "cuda": (4, 2)}
"""Tried in this order. In the same time on a CPU, twice the steps teach more than twice the patches do."""
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
        patch_size: voxels.
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

    Raises:
        Med3dError: see :func:`make_plan` and :func:`~med3d_nets.fingerprint.measure_cases`.
    """
    given = (spacing, patch_size, batch_size, intensity, memory_gb, flip_axes)
    check_given(*given, in_channels)
    training_cost(variant, n_seg_classes, in_channels, head)  # an unknown variant is told before files are read
    fingerprint = measure_cases(cases, n_seg_classes, in_channels, num_workers)
    plan = make_plan(fingerprint, variant, head, device, *given, class_names, activation_checkpointing)
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
) -> Plan:
    """Plan by these rules, for what is not given.

    - Spacing: the median along each axis. As in nnU-Net, the 10th percentile along an axis whose median is more than
      three times that of both others, where volumes also have less than a third of their voxels along it; but never
      finer than the others' coarsest.
    - Patch: whole crops where they fit, that is, the median shape at that spacing, from which nnU-Net starts too,
      rounded up to multiples of 8. Otherwise the axis that is longest in mm is shortened until the batch fits into a
      share of the memory, and into the operations that a CPU, or the voxels that a GPU, is given.
    - Batch: 2; on a GPU, which small batches leave idle, 4 where whole crops fit.
    - Intensity: CT where most volumes have air, or nearly all have fat, of the HU expected.
    - Flips: axes along which neither images nor classes have a direction that the cases agree on, and whose sides no
      class is named after; none with fewer than ten cases.

    Args:
        fingerprint: of the training cases.
        variant, head, device, spacing, patch_size, batch_size, intensity, memory_gb, flip_axes, class_names,
            activation_checkpointing: as for :func:`plan_training`.

    Raises:
        Med3dError: if a value given makes no sense, or the memory is too small.
    """
    check_given(spacing, patch_size, batch_size, intensity, memory_gb, flip_axes, fingerprint.in_channels)
    reasons = {"orientation": "orientation RAS: axes are turned alike, whatever order files store them in"}
    millimetres, reasons["spacing"] = _plan_spacing(fingerprint, spacing)
    channels = fingerprint.in_channels
    cost = training_cost(variant, fingerprint.n_seg_classes, channels, head, activation_checkpointing)
    limit = _find_limit(cost, torch.device(device), memory_gb)
    size, batch, texts = _plan_batch(fingerprint, millimetres, patch_size, batch_size, cost, limit)
    reasons |= texts
    clip, reasons["intensity"] = _plan_intensity(fingerprint, intensity)
    flips, reasons["flip_axes"] = _plan_flips(fingerprint, flip_axes, class_names)
    anisotropic, reasons["anisotropic"] = _plan_anisotropic(millimetres, size)
    return Plan("RAS", millimetres, size, batch, clip, flips, anisotropic, reasons)


@dataclass(frozen=True)
class _Limit:
    """Voxels that a batch may have, what they are limited by, and the memory."""

    n_voxels: int
    by: str
    in_memory: int
    memory_gb: float
    batch_sizes: tuple[int, ...]


def _find_limit(cost: Cost, device: torch.device, memory_gb: float) -> _Limit:
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
    return _Limit(min(in_memory, others), by, in_memory, found, BATCH_SIZES[kind])


def _plan_spacing(fingerprint: Fingerprint, given: Sequence[float]) -> tuple[tuple[float, float, float], str]:
    if given:
        return _three(float(value) for value in given), f"spacing {_by(given)} mm: as given"
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
    result = _three(round(float(value), 6) for value in target)
    return result, f"spacing {_by(result)} mm: {how}"


def _plan_batch(
    fingerprint: Fingerprint,
    spacing: Sequence[float],
    patch_size: Sequence[int],
    batch_size: int,
    cost: Cost,
    limit: _Limit,
) -> tuple[Triple, int, dict[str, str]]:
    """Patch size, batch size, and their reasons."""
    shapes = fingerprint.shapes_at(spacing, content=True)
    median = np.median(shapes, axis=0)
    whole = _whole(shapes)
    wanted = _three(int(value) for value in patch_size) if patch_size else whole
    candidates = (batch_size,) if batch_size else limit.batch_sizes
    batch = next((number for number in candidates if number * math.prod(wanted) <= limit.n_voxels), candidates[-1])
    size = wanted if patch_size else _shrink(wanted, spacing, limit.n_voxels // batch)
    n_voxels = batch * math.prod(size)
    needed = f"{cost.n_bytes(n_voxels) / 1e9:.2g} GB of {limit.memory_gb:.3g} GB"
    if n_voxels > limit.in_memory:
        text = f"patches of {_by(size)} voxels in batches of {batch} need {needed}, of which a part must stay free; "
        text += "choose a smaller variant or --batch_size, or --activation_checkpointing True, or give the memory with "
        text += "--memory_gb"
        if not patch_size:
            raise Med3dError(text)
        _log.warning("%s", text)  # the count knows nothing of what may save memory
    shape = f"the cases' median of {_by(median)} voxels at that spacing"
    if patch_size:
        text = f"as given; compare {shape}"
    elif size == whole:
        text = f"whole crops fit; compare {shape}"
    else:
        text = f"limited by {limit.by}, the longest axis in mm shortened first; compare {shape}"
    reasons = {"patch_size": f"patch_size {_by(size)} voxels: {text}"}
    why = "whole crops are small" if batch > 2 else "the smallest that batch norms learn from"
    why = "as given" if batch_size else why
    reasons["batch_size"] = f"batch_size {batch}: {why}; training takes about {needed}"
    return size, batch, reasons


def _whole(shapes: NDArray[np.int64]) -> Triple:
    """The patch that holds a volume of the median shape."""
    return _three(STRIDE * math.ceil(value / STRIDE) for value in np.median(shapes, axis=0))


def _shrink(wanted: Triple, spacing: Sequence[float], n_voxels: int) -> Triple:
    """A patch of at most so many voxels, or the smallest sensible one."""
    size = list(wanted)
    while math.prod(size) > n_voxels:
        long = [axis for axis in range(3) if size[axis] > 2 * STRIDE]
        if not long:
            break
        size[max(long, key=lambda axis: size[axis] * spacing[axis])] -= STRIDE
    return _three(size)


def _plan_intensity(fingerprint: Fingerprint, given: str | Sequence[float]) -> tuple[Mapping[str, float] | None, str]:
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


def _plan_anisotropic(spacing: Sequence[float], size: Triple) -> tuple[bool, str]:
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


def _plan_flips(
    fingerprint: Fingerprint, given: str | Sequence[int], class_names: Sequence[str]
) -> tuple[tuple[int, ...], str]:
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


def check_given(
    spacing: Sequence[float],
    patch_size: Sequence[int],
    batch_size: int,
    intensity: str | Sequence[float],
    memory_gb: float,
    flip_axes: str | Sequence[int] = "auto",
    in_channels: int = 1,
) -> None:
    """Check what a user gave instead of the planner's choice, before files are read.

    Raises:
        Med3dError: naming every value that is none of those that :func:`plan_training` takes.
    """
    problems = []
    if not _numbers(spacing, (0, 3)) or any(value <= 0 for value in spacing):
        problems.append(f"spacing is {spacing!r}, expected three lengths in mm (right, anterior, superior), or []")
    if not _numbers(patch_size, (0, 3), int) or any(value < STRIDE for value in patch_size):
        problems.append(f"patch_size is {patch_size!r}, expected three whole numbers from {STRIDE}, or []")
    if not _numbers([batch_size], (1,), int) or batch_size < 0:
        problems.append(f"batch_size is {batch_size!r}, expected a whole number from 1, or 0 for the planner's choice")
    if not _numbers([memory_gb], (1,)) or memory_gb < 0:
        problems.append(f"memory_gb is {memory_gb!r}, expected a number of GB, or 0 to find out")
    if flip_axes != "auto" and (not _numbers(flip_axes, range(4), int) or not set(flip_axes) <= {0, 1, 2}):
        problems.append(f"flip_axes is {flip_axes!r}, expected some of 0, 1 and 2 in a list, or auto")
    window = not isinstance(intensity, str) and _numbers(intensity, (2,)) and intensity[0] < intensity[1]
    if not window and not (isinstance(intensity, str) and intensity in ("auto", "ct", "mr")):
        problems.append(f"intensity is {intensity!r}, expected auto, ct, mr or [lower, upper] in HU")
    elif in_channels > 1 and intensity not in ("auto", "mr"):
        problems.append(f"intensity is {intensity!r}, but images have {in_channels} channels; expected auto or mr")
    if problems:
        raise Med3dError("; ".join(problems))


def _numbers(values: Any, lengths: Sequence[int], kind: Any = (int, float)) -> bool:
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) not in lengths:
        return False
    return all(isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value) for value in values)


def _three(values: Any) -> tuple[Any, Any, Any]:
    first, second, third = values
    return first, second, third


def _by(values: Any) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
