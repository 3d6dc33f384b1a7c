"""Settings for classifying volumes or regions of them, derived from the training cases, each with its reason.

The rules of :mod:`med3d_nets.planning` where they apply; what differs is that a volume is one sample, whose size may
tell as much as its content.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, Orientationd
from nibabel.affines import voxel_sizes
from tqdm import tqdm

from med3d_nets.checks import reason
from med3d_nets.classification.volumes import CropRegiond, LoadVolumed
from med3d_nets.distributed import gather, shard
from med3d_nets.errors import Med3dError, explain
from med3d_nets.fingerprint import MAX_VALUES, MAX_VALUES_CASE, CaseFingerprint, Fingerprint, Millimetres, measure_image
from med3d_nets.footprint import Cost, training_cost
from med3d_nets.planning import (
    STRIDE,
    Limit,
    by_axis,
    check_given,
    find_limit,
    plan_anisotropic,
    plan_flips,
    plan_intensity,
    plan_spacing,
    shrink,
    three,
)

__all__ = ["RegionPlan", "measure_regions", "plan_classification", "plan_regions"]

Triple = tuple[int, int, int]

COVERED = 90
"""Percentile of the regions' extent along each axis that fits into the network's input."""
FINE = 32
"""Voxels along each axis, of most regions, below which they are refined: the encoder divides sizes by 8."""
SMALLEST = 2 * STRIDE
"""Voxels along each axis of the smallest input."""
BATCH_SIZES = {"cpu": (8, 4, 2), "cuda": (16, 8, 4, 2)}
BYTE = 255

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RegionPlan:
    """Settings of the ``region`` recipe; axes in RAS order.

    Attributes:
        spacing: mm.
        input_size: voxels of what the network sees.
        batch_size: volumes in an iteration.
        intensity: as in :class:`~med3d_nets.planning.Plan`.
        flip_axes: axes that may be flipped at random.
        anisotropic: whether to turn and blur within the plane of the two finer axes alone.
        reasons: a sentence for each attribute above.
    """

    spacing: Millimetres
    input_size: Triple
    batch_size: int
    intensity: Mapping[str, float] | None
    flip_axes: tuple[int, ...]
    anisotropic: bool
    reasons: Mapping[str, str]


def plan_classification(
    cases: Sequence[Mapping[str, Any]],
    class_names: Sequence[str] = (),
    in_channels: int = 1,
    variant: str = "resnet_10",
    device: torch.device | str = "cpu",
    keep_size: bool = True,
    margin_mm: float = 0.0,
    spacing: Sequence[float] = (),
    input_size: Sequence[int] = (),
    batch_size: int = 0,
    intensity: str | Sequence[float] = "auto",
    flip_axes: str | Sequence[int] = "auto",
    memory_gb: float = 0,
    activation_checkpointing: bool = False,
    num_workers: int = 0,
) -> RegionPlan:
    """Measure the training cases and plan how to train on them.

    Args:
        cases: items of :func:`~med3d_nets.classification.cases.load_lists`.
        class_names: names of the classes, which may tell sides.
        in_channels: channels of the images.
        variant: of the network.
        device: that of the training.
        keep_size: whether volumes keep their size in mm, see
            :class:`~med3d_nets.classification.settings.ClassifierSettings`.
        margin_mm: what is kept around regions of interest.
        spacing: mm along the RAS axes; empty: see :func:`plan_regions`, like the following.
        input_size: voxels along the RAS axes, or empty.
        batch_size: volumes in an iteration, or 0.
        intensity: "ct", "mr", the two HU to clip to, or "auto".
        flip_axes: RAS axes that may be flipped (0: left-right, 1: posterior-anterior, 2: inferior-superior), or "auto".
        memory_gb: memory of the device, in GB of 10^9 bytes; 0: as found.
        activation_checkpointing: whether training saves memory in that way.
        num_workers: threads that read files (0: up to four).

    Raises:
        Med3dError: see :func:`plan_regions` and :func:`measure_regions`.
    """
    given = (spacing, input_size, batch_size, intensity, memory_gb, flip_axes)
    check_given(*given, in_channels, "input_size")
    training_cost(variant, 2, in_channels, "classification")  # an unknown variant is told before files are read
    fingerprint = measure_regions(cases, in_channels, margin_mm, num_workers)
    plan = plan_regions(fingerprint, class_names, variant, device, keep_size, *given, activation_checkpointing)
    for text in plan.reasons.values():
        _log.info("plan: %s", text)
    return plan


def measure_regions(
    cases: Sequence[Mapping[str, Any]], in_channels: int = 1, margin_mm: float = 0.0, num_workers: int = 0
) -> Fingerprint:
    """Measure every case's volume, or the region of it that the network will see.

    Several processes share the work, and each returns all of it.

    Args:
        cases, in_channels, margin_mm, num_workers: as for :func:`plan_classification`.

    Raises:
        Med3dError: if there are none, or a file cannot be read.
    """
    if not cases:
        raise Med3dError("found no training cases; expected at least one")
    kept = max(1, min(MAX_VALUES_CASE, MAX_VALUES // len(cases)))
    steps = [LoadVolumed("image"), CropRegiond("image", margin_mm), Orientationd("image", axcodes="RAS", labels=None)]
    read = Compose(steps)
    mine = shard(list(cases))
    with ThreadPoolExecutor(num_workers if num_workers > 0 else min(4, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda case: _measure(case, read, kept), mine)
        measured = list(tqdm(found, "measuring cases", len(mine), unit="case", disable=None))
    return Fingerprint(tuple(gather(measured)), in_channels)


def _measure(case: Mapping[str, Any], read: Compose, kept: int) -> CaseFingerprint:
    try:
        image = read(dict(case))["image"]
    except Exception as error:  # MONAI wraps whatever a step raises
        problem = f"{case['image']}: found an unreadable file ({reason(error.__cause__ or error)})"
        raise explain(error, {}) or Med3dError(f"{problem}; expected a whole one") from error
    # NIfTI headers have single precision: 0.7 mm is read as 0.69999999.
    spacing = three(round(float(value), 6) for value in voxel_sizes(np.asarray(image.affine)))
    voxels = np.moveaxis(image.numpy(), 0, -1)
    return measure_image(voxels, spacing, voxels, kept)


def plan_regions(
    fingerprint: Fingerprint,
    class_names: Sequence[str] = (),
    variant: str = "resnet_10",
    device: torch.device | str = "cpu",
    keep_size: bool = True,
    spacing: Sequence[float] = (),
    input_size: Sequence[int] = (),
    batch_size: int = 0,
    intensity: str | Sequence[float] = "auto",
    memory_gb: float = 0,
    flip_axes: str | Sequence[int] = "auto",
    activation_checkpointing: bool = False,
) -> RegionPlan:
    """Plan by these rules, for what is not given.

    - Spacing: the median along each axis, as for segmentation; then the same part of it along all axes, where most
      regions have less than 32 voxels along their longest axis, since the encoder divides sizes by 8; or the same
      multiple along all axes, at which whole volumes fit into what the input is limited by.
    - Input: what 90 % of the regions fit into at that spacing, rounded up to multiples of 8; the others are cropped to
      their middle. Where size is not kept, all are resized to the median shape. The longest axis in mm is shortened
      until a batch of 2 fits into the memory, and into the operations that a CPU, or the voxels that a GPU, is given.
    - Batch: 8, or 16 on a GPU, and less where more do not fit.
    - Intensity: as for segmentation, with the statistics of whole regions; and where all volumes have values from 0 to
      255, as pictures of 8 bits have, these are normalised by the training set's too.
    - Flips: axes along which images have no direction that the cases agree on, and whose sides no class is named after;
      none with fewer than ten cases.

    Args:
        fingerprint: of the training cases.
        class_names, variant, device, keep_size, spacing, input_size, batch_size, intensity, memory_gb, flip_axes,
            activation_checkpointing: as for :func:`plan_classification`.

    Raises:
        Med3dError: if a value given makes no sense, or the memory is too small.
    """
    check_given(spacing, input_size, batch_size, intensity, memory_gb, flip_axes, fingerprint.in_channels, "input_size")
    reasons: dict[str, str] = {}
    millimetres, reasons["spacing"] = _plan_spacing(fingerprint, spacing, input_size)
    cost = training_cost(variant, 2, fingerprint.in_channels, "classification", activation_checkpointing)
    limit = find_limit(cost, torch.device(device), memory_gb)
    batch_sizes = BATCH_SIZES["cuda" if torch.device(device).type == "cuda" else "cpu"]
    n_voxels = limit.n_voxels // batch_sizes[-1]
    if not spacing and not input_size:
        coarser = _coarsen(fingerprint, millimetres, keep_size, n_voxels)
        if coarser != millimetres:
            why = reasons["spacing"].split(": ", 1)[1]
            text = f"{why}; then coarser, so that whole volumes fit, limited by {limit.by}"
            millimetres, reasons["spacing"] = coarser, f"spacing {by_axis(coarser)} mm: {text}"
    size, reasons["input_size"] = _plan_size(fingerprint, millimetres, input_size, keep_size, n_voxels, limit.by)
    batch, reasons["batch_size"] = _plan_batch(size, batch_size, batch_sizes, cost, limit)
    clip, reasons["intensity"] = _plan_intensity(fingerprint, intensity)
    flips, reasons["flip_axes"] = plan_flips(fingerprint, flip_axes, class_names)
    anisotropic, reasons["anisotropic"] = plan_anisotropic(millimetres, size)
    return RegionPlan(millimetres, size, batch, clip, flips, anisotropic, reasons)


def _plan_spacing(
    fingerprint: Fingerprint, given: Sequence[float], input_size: Sequence[int]
) -> tuple[Millimetres, str]:
    millimetres, why = plan_spacing(fingerprint, given)
    longest = int(np.median(fingerprint.shapes_at(millimetres).max(axis=1)))
    fine = min(FINE, *input_size) if input_size else FINE  # a given input would cut off what is finer
    if given or longest >= fine:
        return millimetres, why
    finer = three(round(value * longest / fine, 6) for value in millimetres)
    _, how = why.split(": ", 1)
    return finer, f"spacing {by_axis(finer)} mm: {how}; then finer, for {fine} voxels where most have {longest}"


def _coarsen(fingerprint: Fingerprint, spacing: Millimetres, keep_size: bool, n_voxels: int) -> Millimetres:
    """The same multiple of the spacing along all axes, at which an input for the cases has at most so many voxels."""
    found = spacing
    while (excess := math.prod(_wanted(fingerprint, found, keep_size)) / max(1, n_voxels)) > 1:
        if max(_wanted(fingerprint, found, keep_size)) <= SMALLEST:
            break
        found = three(round(value * max(1.02, excess ** (1 / 3)), 6) for value in found)
    return found


def _wanted(fingerprint: Fingerprint, spacing: Millimetres, keep_size: bool) -> Triple:
    shapes = fingerprint.shapes_at(spacing)
    extent = np.percentile(shapes, COVERED, axis=0) if keep_size else np.median(shapes, axis=0)
    return three(max(SMALLEST, STRIDE * math.ceil(value / STRIDE)) for value in extent)


def _plan_size(
    fingerprint: Fingerprint,
    spacing: Millimetres,
    given: Sequence[int],
    keep_size: bool,
    n_voxels: int,
    limited_by: str,
) -> tuple[Triple, str]:
    shapes = fingerprint.shapes_at(spacing)
    compared = f"compare the cases' median of {by_axis(np.median(shapes, axis=0))} voxels at that spacing"
    wanted = _wanted(fingerprint, spacing, keep_size)
    size = shrink(wanted, spacing, n_voxels)
    why = f"{COVERED} % of the cases' extents fit in" if keep_size else "all volumes are resized to it"
    if given:
        size, why = three(int(value) for value in given), "as given"
    elif size != wanted:
        why = f"limited by {limited_by}, the longest axis in mm shortened first"
    cut = int(np.count_nonzero((shapes > np.array(size)).any(axis=1))) if keep_size else 0
    if cut:
        compared += f"; of {cut} of {len(shapes)} cases the outer parts are cropped"
    if 2 * cut > len(shapes):
        _log.warning("input_size %s at %s mm crops most of the cases", by_axis(size), by_axis(spacing))
    return size, f"input_size {by_axis(size)} voxels: {why}; {compared}"


def _plan_batch(size: Triple, given: int, batch_sizes: Sequence[int], cost: Cost, limit: Limit) -> tuple[int, str]:
    n_voxels = math.prod(size)
    batch = given or next((n for n in batch_sizes if n * n_voxels <= limit.n_voxels), batch_sizes[-1])
    needed = f"training takes about {cost.n_bytes(batch * n_voxels) / 1e9:.2g} GB of {limit.memory_gb:.3g} GB"
    if batch * n_voxels > limit.in_memory:
        text = (
            f"a batch of {batch} volumes of {by_axis(size)} voxels: {needed}, of which a part must stay free; choose a "
        )
        text += "smaller variant, --input_size or --batch_size, or --activation_checkpointing True"
        if not given:
            raise Med3dError(text)
        _log.warning("%s", text)
    why = "as given" if given else "as many as fit" if batch < batch_sizes[0] else f"at most {batch}"
    return batch, f"batch_size {batch}: {why}; {needed}"


def _plan_intensity(fingerprint: Fingerprint, given: str | Sequence[float]) -> tuple[Mapping[str, float] | None, str]:
    values = fingerprint.intensities.astype(np.float64)
    if given != "auto" or fingerprint.in_channels > 1 or values.min() < 0 or values.max() > BYTE:
        return plan_intensity(fingerprint, given)
    found = {"lower": 0.0, "upper": float(BYTE), "mean": float(values.mean()), "std": float(values.std()) or 1.0}
    found = {name: float(f"{value:.6g}") for name, value in found.items()}
    scale = f"mean {found['mean']:g} and std {found['std']:g} of all volumes"
    return found, f"intensity as in pictures of 8 bits: values lie from 0 to {BYTE}; normalised by {scale}"
