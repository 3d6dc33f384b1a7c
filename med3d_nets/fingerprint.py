"""What a list of labelled cases looks like: shapes, spacings, classes, intensities, and which way things lie.

Everything is measured with the axes in RAS order (first to the patient's right, then anterior, then superior), as
MONAI's ``Orientationd`` turns them, so that the axes in which a file happens to be stored make no difference.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from med3d_nets.checks import read_volume
from med3d_nets.distributed import gather, shard
from med3d_nets.errors import Med3dError
from med3d_nets.formats import images_of

__all__ = ["CaseFingerprint", "Fingerprint", "count_classes", "measure_case", "measure_cases", "measure_image"]

Triple = tuple[int, int, int]
Millimetres = tuple[float, float, float]
Array = NDArray[Any]

MAX_VALUES = 2_000_000
"""Foreground intensities that are kept of all cases together."""
MAX_VALUES_CASE = 10_000
BINS = 8
"""Parts that an axis is divided into to tell which way things lie along it."""
MAX_SHOWN = 10
_SAMPLED_EDGE = 100
"""Voxels along an axis that a volume's own percentiles are taken from, about."""


@dataclass(frozen=True)
class CaseFingerprint:
    """What was measured in one case; axes in RAS order.

    Attributes:
        shape: voxels.
        spacing: mm.
        content: voxels of the box outside of which all voxels are background, that is, have the first voxel's value.
        counts: voxels of each class, background included.
        percentiles: 0.5, 50 and 99.5 % of all intensities, in the image's own unit.
        intensities: those of some foreground voxels, evenly drawn.
        slopes: ``(1 + foreground classes, 3, BINS // 2)``: how the image's intensity, then each class, differs between
            positions and their mirror images along each axis; 0 where it is the same on both sides.
    """

    shape: Triple
    spacing: Millimetres
    content: Triple
    counts: tuple[int, ...]
    percentiles: tuple[float, float, float]
    intensities: NDArray[np.float32]
    slopes: NDArray[np.float32]


@dataclass(frozen=True)
class Fingerprint:
    """What was measured in a list of cases.

    Attributes:
        cases: in the order of the list, at least one of them with foreground.
        in_channels: channels of the images.
    """

    cases: tuple[CaseFingerprint, ...]
    in_channels: int = 1

    @property
    def n_seg_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.cases[0].counts)

    @property
    def spacings(self) -> NDArray[np.float64]:
        """``(cases, 3)``, mm."""
        return np.array([case.spacing for case in self.cases])

    @property
    def shapes(self) -> NDArray[np.int64]:
        """``(cases, 3)``, voxels."""
        return np.array([case.shape for case in self.cases])

    @property
    def counts(self) -> NDArray[np.int64]:
        """``(cases, classes)``, voxels."""
        return np.array([case.counts for case in self.cases])

    @property
    def volumes(self) -> NDArray[np.float64]:
        """``(cases, classes)``, mL."""
        return self.counts * self.spacings.prod(axis=1, keepdims=True) / 1000

    @property
    def intensities(self) -> NDArray[np.float32]:
        """Those that were kept of all cases' foreground."""
        return np.concatenate([case.intensities for case in self.cases])

    def shapes_at(self, spacing: Sequence[float], content: bool = False) -> NDArray[np.int64]:
        """Shapes at another spacing, as ``Spacingd`` makes them: the first and last voxels' centres stay.

        Args:
            spacing: mm along each RAS axis.
            content: of the boxes that hold all but background, instead of whole volumes.

        Returns:
            ``(cases, 3)``, voxels.
        """
        shapes = np.array([case.content for case in self.cases]) if content else self.shapes
        return np.round((shapes - 1) * self.spacings / np.asarray(spacing) + 1).astype(np.int64)

    def direction(self, axis: int) -> tuple[float, int]:
        """How much all cases agree which way things lie along a RAS axis.

        The differences between positions and their mirror images are averaged over cases. Where they have a common
        direction, the average is as large as they are; where every case has its own, it vanishes.

        Returns:
            The share of their square that is left in the average, from about 0 to 1, and where it is largest: 0 for the
            image's intensity, otherwise the class.
        """
        shares = [0.0]
        for index in range(self.n_seg_classes):
            # A class tells only where it is.
            present = [case.slopes[index, axis] for case in self.cases if index == 0 or case.counts[index]]
            if len(present) < 2:
                shares.append(0.0)
                continue
            slopes = np.array(present, np.float64)
            size = float((slopes**2).sum(axis=1).mean())
            mean = float((slopes.mean(axis=0) ** 2).sum())
            chance = 1 / len(present)  # what the average of directions drawn at random keeps
            shares.append((mean / size - chance) / (1 - chance) if size else 0.0)
        best = int(np.argmax(shares))
        return shares[best], max(0, best - 1)


def measure_cases(
    cases: Sequence[Mapping[str, Any]],
    n_seg_classes: int,
    in_channels: int = 1,
    num_workers: int = 0,
    progress: bool | None = None,
) -> Fingerprint:
    """Read every case and measure it, with one volume and its label in memory for each thread.

    Several processes share the work, and each returns all of it.

    Args:
        cases: items ``{"image": path, "label": path}`` that :func:`~med3d_nets.datalist.load_datalist` has checked.
        n_seg_classes: number of classes, background included.
        in_channels: channels of the images.
        num_workers: threads (0: up to four).
        progress: whether to show a bar; None: where standard error is a terminal.

    Raises:
        Med3dError: if a file cannot be read or holds other labels, or if no case has foreground.
    """
    if not cases:
        raise Med3dError("found no training cases; expected at least one")
    kept = max(1, min(MAX_VALUES_CASE, MAX_VALUES // len(cases)))
    mine = shard(list(cases))
    hidden = None if progress is None else not progress
    with ThreadPoolExecutor(_threads(num_workers)) as pool:
        found = pool.map(lambda case: measure_case(case, n_seg_classes, in_channels, kept), mine)
        measured = list(tqdm(found, "measuring cases", len(mine), unit="case", disable=hidden))
    fingerprint = Fingerprint(tuple(gather(measured)), in_channels)
    if not fingerprint.counts[:, 1:].any():
        raise Med3dError(f"found no foreground in the labels of {len(cases)} training cases; expected values above 0")
    return fingerprint


def count_classes(cases: Sequence[Mapping[str, Any]], num_workers: int = 0) -> int:
    """Number of classes, background included, that the labels' values tell.

    Args:
        cases, num_workers: as for :func:`measure_cases`.

    Raises:
        Med3dError: if a file cannot be read, or most numbers up to the largest are in no label, as in one of 0 and 255.
    """
    with ThreadPoolExecutor(_threads(num_workers)) as pool:
        values = set[int]().union(*pool.map(lambda case: np.unique(_read_label(case)).astype(int).tolist(), cases))
    classes = max(values, default=0) + 1
    if classes < 2:
        raise Med3dError(f"found no foreground in the labels of {len(cases)} training cases; expected values above 0")
    if classes > 2 * len(values):
        found = ", ".join(map(str, sorted(values)[:MAX_SHOWN])) + ", ..." * (len(values) > MAX_SHOWN)
        raise Med3dError(
            f"found label values {found}; expected whole numbers from 0 on without such gaps: number the classes anew, "
            f"or name --n_seg_classes ({classes} for these)"
        )
    return classes


def measure_case(
    case: Mapping[str, Any], n_seg_classes: int, in_channels: int = 1, max_values: int = MAX_VALUES_CASE
) -> CaseFingerprint:
    """Measure one case.

    Args:
        case: paths of its "image" and "label".
        n_seg_classes, in_channels: as for :func:`measure_cases`.
        max_values: foreground intensities to keep.

    Raises:
        Med3dError: if a file cannot be read, or the label is not of the image's shape or has other values.
    """
    image, spacing = _read_image(images_of(case))
    label = _read_label(case)
    label = label.reshape(*label.shape[:3])
    if label.shape != image.shape[:3]:
        raise Med3dError(f"{case['label']}: found shape {label.shape}; expected {image.shape[:3]}, that of its image")
    if label.min() < 0 or label.max() >= n_seg_classes:
        wrong = f"{label.min():g} to {label.max():g}"
        raise Med3dError(f"{case['label']}: found label values {wrong}; expected 0 to {n_seg_classes - 1}")
    if image.size != label.size * in_channels:
        where = images_of(case)[0]
        raise Med3dError(f"{where}: found shape {image.shape}; expected in_channels={in_channels} channels")
    image = image.reshape((*label.shape, in_channels))
    label = label.astype(np.uint8 if n_seg_classes <= 256 else np.int32, copy=False)
    counts, class_slopes = _classes(label, n_seg_classes)
    measured = measure_image(image, spacing, image[label > 0], max_values)
    return replace(
        measured, counts=counts, slopes=np.concatenate([measured.slopes, np.array(class_slopes, np.float32)])
    )


def measure_image(
    image: Array, spacing: Millimetres, values: Array, max_values: int = MAX_VALUES_CASE
) -> CaseFingerprint:
    """Measure an image without a label; all of its voxels count as background.

    Args:
        image: ``(x, y, z, channel)``, axes in RAS order.
        spacing: mm.
        values: intensities to keep some of, evenly drawn.
        max_values: how many.
    """
    width, height, depth = (int(length) for length in image.shape[:3])
    step = [max(1, length // _SAMPLED_EDGE) for length in image.shape]
    coarse = image[:: step[0], :: step[1], :: step[2]]
    low, middle, high = (float(value) for value in np.percentile(coarse, (0.5, 50, 99.5)))
    scale = float(coarse.std(dtype=np.float64)) or 1.0
    channel = image[..., 0]
    profiles = [channel.mean(axis=_others(axis), dtype=np.float64) / scale for axis in range(3)]
    values = values.ravel()
    drawn = np.linspace(0, max(0, values.size - 1), min(values.size, max_values)).astype(np.int64)
    return CaseFingerprint(
        (width, height, depth),
        spacing,
        _content(image),
        (width * height * depth,),
        (low, middle, high),
        values[drawn].astype(np.float32),
        np.stack([_slope(profile) for profile in profiles])[None].astype(np.float32),
    )


def _read_image(paths: Sequence[str]) -> tuple[Array, Millimetres]:
    """As :func:`_read`; several files are channels."""
    if len(paths) == 1:
        return _read(paths[0])
    volumes = [_read(path) for path in paths]
    shapes = [volume.shape[:3] for volume, _ in volumes]
    if wrong := next((index for index, shape in enumerate(shapes) if shape != shapes[0]), 0):
        expected = f"{shapes[0]}, that of {paths[0]}"
        raise Med3dError(f"{paths[wrong]}: found shape {shapes[wrong]}; expected {expected}")
    return np.concatenate([volume.reshape(*shapes[0], -1) for volume, _ in volumes], axis=-1), volumes[0][1]


def _read_label(case: Mapping[str, Any]) -> Array:
    return _read(case["label"], images_of(case)[0])[0]


def _read(path: str, image: str = "") -> tuple[Array, Millimetres]:
    """A volume with its first three axes in RAS order, and its spacing in mm; a label map with its image."""
    problems: list[str] = []
    read = read_volume(path, problems, image)
    if read is None:
        raise Med3dError("\n".join(problems))
    voxels, affine = read
    orientation = nib.io_orientation(affine)
    if np.isnan(orientation).any():
        raise Med3dError(f"{path}: found an affine that drops an axis; expected one of three directions")
    sizes = nib.affines.voxel_sizes(affine)
    # NIfTI headers have single precision: 0.7 mm is read as 0.69999999.
    spacing = [round(float(sizes[list(orientation[:, 0]).index(axis)]), 6) for axis in range(3)]
    return nib.apply_orientation(voxels, orientation), (spacing[0], spacing[1], spacing[2])


def _threads(num_workers: int) -> int:
    return num_workers if num_workers > 0 else min(4, os.cpu_count() or 1)


def _others(axis: int) -> tuple[int, int]:
    return ((1, 2), (0, 2), (0, 1))[axis]


def _classes(label: Array, n_seg_classes: int) -> tuple[tuple[int, ...], list[NDArray[np.float64]]]:
    """Voxels of each class, and each foreground class's slopes; only the box of each class is looked at."""
    counts, slopes = [0] * n_seg_classes, [np.zeros((3, BINS // 2)) for _ in range(1, n_seg_classes)]
    for value, box in enumerate(ndimage.find_objects(label, n_seg_classes - 1), 1):
        if box is None:
            continue
        mask = label[box] == value
        counts[value] = int(np.count_nonzero(mask))
        for axis in range(3):
            profile = np.zeros(label.shape[axis])
            profile[box[axis]] = mask.sum(axis=_others(axis)) / counts[value]
            slopes[value - 1][axis] = _slope(profile * len(profile))
    counts[0] = label.size - sum(counts)
    return tuple(counts), slopes


def _slope(profile: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half of the difference between each position along an axis and its mirror image, in ``BINS // 2`` parts."""
    # Sums up to each edge, so that parts of any width have the mean of what lies in them.
    total = np.concatenate([[0.0], np.cumsum(profile)])
    edges = np.interp(np.linspace(0, len(profile), BINS + 1), np.arange(len(profile) + 1), total)
    means = np.diff(edges) * BINS / len(profile)
    return ((means - means[::-1]) / 2)[: BINS // 2]


def _content(image: Array) -> Triple:
    """Size of the box that holds whatever differs from the first voxel, as ``not_background`` tells it."""
    mask = (image != image[0, 0, 0]).any(axis=-1)
    sizes = []
    for axis in range(3):
        inside = np.flatnonzero(mask.any(axis=_others(axis)))
        sizes.append(int(inside[-1] - inside[0] + 1) if inside.size else mask.shape[axis])
    return sizes[0], sizes[1], sizes[2]
