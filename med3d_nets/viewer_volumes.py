"""What of a case goes into the viewer's page: volumes that are small enough, and close to what the files hold.

Voxels stay on the image's own grid: nothing is turned or interpolated. A volume that is too large is cut to a box, or
averaged over blocks of voxels, and says so.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional as F

from med3d_nets.checks import check_finite, check_grid, check_shape, read_volume
from med3d_nets.report_slices import array_axis, cut_class

__all__ = [
    "CT_WINDOWS",
    "KINDS",
    "MOST_CLASSES",
    "Shown",
    "Window",
    "count_classes",
    "crop_to_labels",
    "dice",
    "encode",
    "find_window",
    "middle",
    "read_shown",
    "reduce_to",
    "store",
]

Affine: TypeAlias = NDArray[np.float64]
Labels: TypeAlias = Mapping[str, NDArray[np.uint8]]

KINDS = ("truth", "prediction")
MOST_CLASSES = 256
CT_WINDOWS = {"soft tissue": (-160, 240), "lung": (-1350, 150), "bone": (-450, 1350), "brain": (0, 80)}
"""HU shown as black and as white, as radiologists set them: width 400 about 40, 1500 about -600, and so on."""

LUNG, BONE = -300, 250
"""Median HU around the labels below which the lung's window is the first one, and above which the bone's."""
STEPS = 1024
"""Parts of the window's width that intensities are rounded to where they are no whole numbers: four to a grey level."""
COMPRESSION = 6
"""The most that is worth its time."""
SAMPLE = 2**20
"""Voxels that percentiles are taken of, at most."""


@dataclass(frozen=True)
class Shown:
    """A case as the page has it.

    Attributes:
        image: ``(x, y, z)``.
        affine: from these voxels to RAS+ in mm, ``(4, 4)``.
        labels: ``truth`` and ``prediction``, those that there are, of the image's shape.
        file_affine: of the image's file.
        notes: what was left out, as sentences.
    """

    image: NDArray[Any]
    affine: Affine
    labels: Labels
    file_affine: Affine
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Window:
    """Values shown as black and as white.

    Attributes:
        lower, upper: in the image's unit.
        name: key of :data:`CT_WINDOWS`, or empty.
        modality: ``"ct"`` or ``"mr"``.
    """

    lower: float
    upper: float
    name: str
    modality: str


def read_shown(images: Sequence[str], labels: Mapping[str, str], channel: int, problems: list[str]) -> Shown | None:
    """Read the files of a case.

    Args:
        images: a volume, ``(x, y, z)`` or ``(x, y, z, channels)``, or one for each channel.
        labels: files of ``truth`` and ``prediction``, those that there are.
        channel: of the image, from 0.
        problems: what is wrong with a file is added, a line each.

    Returns:
        The case, or None where there are problems.
    """
    before = len(problems)
    image = images[0]
    if len(images) > 1:
        if channel >= len(images):
            problems.append(f"{image}: found {len(images)} channels; expected a channel {channel}")
            return None
        image, channel = images[channel], 0
    read = read_volume(image, problems)
    if read is None:
        return None
    voxels, affine = read
    if voxels.ndim == 3:
        voxels = voxels[..., None]
    if voxels.ndim != 4 or channel >= voxels.shape[3]:
        expected = f"(x, y, z) or (x, y, z, channels) with a channel {channel}"
        problems.append(f"{image}: found shape {read[0].shape}; expected {expected}")
        return None
    found = {name: _read_labels(path, image, (voxels.shape[:3], affine), problems) for name, path in labels.items()}
    check_finite(image, voxels[..., channel], problems)
    if len(problems) > before:
        return None
    maps = {name: volume for name, volume in found.items() if volume is not None}
    return Shown(voxels[..., channel], affine, maps, affine)


def crop_to_labels(shown: Shown, margin: float) -> Shown:
    """The box around the foreground of truth and prediction, and ``margin`` mm more; all where there is none."""
    foreground = _foreground(shown.labels)
    if foreground is None:
        return replace(shown, notes=(*shown.notes, "No label here to cut the volume to."))
    border = np.ceil(margin / nib.affines.voxel_sizes(shown.affine)).astype(int)
    box, start = [], []
    for axis, wide in enumerate(border):
        places = np.flatnonzero(foreground.any(tuple({0, 1, 2} - {axis})))
        first, last = max(places[0] - wide, 0), places[-1] + wide + 1
        box.append(slice(first, last))
        start.append(first)
    cut = tuple(box)
    affine = shown.affine @ nib.affines.from_matvec(np.eye(3), start)
    image = shown.image[cut]
    note = f"The box within {margin:g} mm of truth and prediction: {_size(image)} of {_size(shown.image)} voxels."
    notes = shown.notes if image.shape == shown.image.shape else (*shown.notes, note)
    labels = {name: volume[cut] for name, volume in shown.labels.items()}
    return replace(shown, image=image, affine=affine, labels=labels, notes=notes)


def reduce_to(shown: Shown, voxels: int) -> Shown:
    """A case of no more than so many voxels, averaged over blocks, which grow along the axis of the finest spacing.

    Whole numbers stay whole. The class of a block is the one that most of its voxels have; of several, the highest.
    """
    factors = [1, 1, 1]
    spacing = nib.affines.voxel_sizes(shown.affine)
    shape = shown.image.shape
    while math.prod(math.ceil(length / factor) for length, factor in zip(shape, factors, strict=True)) > voxels:
        able = [axis for axis in range(3) if factors[axis] < shape[axis]]
        factors[min(able, key=lambda axis: spacing[axis] * factors[axis])] += 1
    if factors == [1, 1, 1]:
        return shown
    image: NDArray[Any] = _average(shown.image, factors)
    if shown.image.dtype.kind in "iu":
        image = np.rint(image).astype(shown.image.dtype)
    labels = {name: _majority(volume, factors) for name, volume in shown.labels.items()}
    centre = [(factor - 1) / 2 for factor in factors]
    affine = shown.affine @ nib.affines.from_matvec(np.diag(np.asarray(factors, float)), centre)
    blocks = " x ".join(map(str, factors))
    note = (
        f"Averaged over blocks of {blocks} voxels, classes by majority: {_size(image)} of {_size(shown.image)} voxels."
    )
    return replace(shown, image=image, affine=affine, labels=labels, notes=(*shown.notes, note))


def find_window(shown: Shown, modality: str = "auto") -> Window:
    """The window to start with.

    Of CT, one of :data:`CT_WINDOWS`, by the median HU around the labels, or where there are none, of what is not air.
    Of other images, from the 0.5th to the 99.5th percentile of what is above the lowest value.

    Args:
        shown: the case.
        modality: ``"ct"``, ``"mr"`` or ``"auto"``: CT where values reach down to those of fat or air, and the median is
            neither below all HU nor above those of soft tissue.
    """
    values = _sample(shown.image)
    low, median = np.percentile(values, [0.5, 50])
    if modality == "auto":
        # Padding outside of the scanner's field of view goes down to about -3024.
        modality = "ct" if -3100 <= low <= -50 and -1100 <= median < 300 else "mr"
    if modality == "ct":
        foreground = _foreground(shown.labels)
        around = _sample(crop_to_labels(shown, 10.0).image) if foreground is not None else values[values > -950]
        middle = float(np.median(around)) if around.size else 0.0
        name = "lung" if middle < LUNG else "bone" if middle > BONE else "soft tissue"
        return Window(*CT_WINDOWS[name], name, modality)
    inside = values[values > values.min()]
    if not inside.size:
        return Window(float(low), float(low) + 1, "", modality)
    lower, upper = (float(value) for value in np.percentile(inside, [0.5, 99.5]))
    return Window(lower, upper if upper > lower else lower + 1, "", modality)


def store(image: NDArray[Any], window: tuple[float, float]) -> tuple[NDArray[Any], float, float]:
    """Intensities as integers of one or two bytes, and the slope and intercept that give them back.

    Whole numbers that fit are kept as they are. Others are rounded to a 1024th of the window's width, and cut 32 widths
    away from its middle.
    """
    lowest, highest = image.min(), image.max()
    if image.dtype.kind in "iu" or np.array_equal(image, np.rint(image)):
        for kind in (np.uint8, np.int16):
            if np.iinfo(kind).min <= lowest and highest <= np.iinfo(kind).max:
                return image.astype(kind), 1.0, 0.0
    slope, middle = (window[1] - window[0]) / STEPS, (window[1] + window[0]) / 2
    steps = np.rint((image.astype(np.float32) - np.float32(middle)) / np.float32(slope))
    return np.clip(steps, -(2**15), 2**15 - 1).astype(np.int16), slope, middle


def encode(voxels: NDArray[Any], affine: Affine, slope: float = 1.0, middle: float = 0.0, label: bool = False) -> bytes:
    """A gzipped NIfTI file, the same bytes whenever the input is the same.

    Args:
        voxels: ``(x, y, z)``, integers.
        affine: from voxels to RAS+ in mm.
        slope, middle: of the intensities.
        label: whether the values are classes.
    """
    volume = nib.Nifti1Image(voxels, affine)
    volume.header.set_xyzt_units("mm")
    volume.header.set_slope_inter(slope, middle)
    if label:
        volume.header.set_intent("label")
    return gzip.compress(volume.to_bytes(), COMPRESSION, mtime=0)


def middle(shown: Shown) -> list[float]:
    """A point in mm whose axial, coronal and sagittal slice meet the truth, else the prediction; else the centre."""
    index = [(length - 1) // 2 for length in shown.image.shape]
    masks = [shown.labels[name] > 0 for name in KINDS if name in shown.labels]
    mask = torch.from_numpy(next((mask for mask in masks if mask.any()), np.zeros((1, 1, 1), bool)))
    for cut in cut_class(mask, mask, shown.affine):
        index[array_axis(shown.affine, cut.plane)] = cut.index
    return [float(value) for value in nib.affines.apply_affine(shown.affine, index)]


def count_classes(labels: Labels, n_seg_classes: int) -> NDArray[np.int64]:
    """Voxels by class of the truth and of the prediction, ``(class, class)``; one that is not there is background."""
    counts = np.zeros(n_seg_classes**2, np.int64)
    some = next(iter(labels.values()), np.zeros((0, 0, 0), np.uint8))
    truth, prediction = (labels.get(name, np.broadcast_to(np.uint8(0), some.shape)) for name in KINDS)
    for one, other in zip(truth.T, prediction.T, strict=True):  # all at once would take 8 bytes a voxel
        pairs = one.ravel().astype(np.intp) * n_seg_classes + other.ravel()
        counts += np.bincount(pairs, minlength=counts.size)
    return counts.reshape(n_seg_classes, n_seg_classes)


def dice(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Dice of each foreground class, nan where the truth lacks it, as in an evaluation.

    Args:
        counts: see :func:`count_classes`.
    """
    true, predicted, both = counts.sum(1)[1:], counts.sum(0)[1:], counts.diagonal()[1:]
    return np.where(true > 0, 2 * both / np.maximum(true + predicted, 1), np.nan)


def _read_labels(
    path: str, image: str, grid: tuple[tuple[int, ...], Affine], problems: list[str]
) -> NDArray[np.uint8] | None:
    read = read_volume(path, problems, image)
    if read is None or not check_shape(path, read[0].shape, 1, "a label map", problems):
        return None
    voxels, affine = read
    voxels = voxels.reshape(voxels.shape[:3])
    check_grid(path, (voxels.shape, affine), image, grid, problems)
    if not check_finite(path, voxels, problems):
        return None
    wrong = voxels[(voxels < 0) | (voxels >= MOST_CLASSES) | (voxels % 1 != 0)]
    if wrong.size:
        expected = f"whole numbers from 0 to {MOST_CLASSES - 1}, the classes"
        problems.append(f"{path}: found the value {wrong[0]:.6g} in a label map; expected {expected}")
    return voxels.astype(np.uint8)


def _foreground(labels: Labels) -> NDArray[np.bool_] | None:
    """Where truth or prediction has a class; None for nowhere."""
    masks = [volume > 0 for volume in labels.values()]
    both = np.logical_or.reduce(masks) if masks else np.zeros(1, bool)
    return both if both.any() else None


def _average(image: NDArray[Any], factors: Sequence[int]) -> NDArray[np.float32]:
    volume = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None]
    blocks = F.avg_pool3d(volume, tuple(factors), ceil_mode=True, count_include_pad=False)
    return np.asarray(blocks[0, 0])


def _majority(volume: NDArray[np.uint8], factors: Sequence[int]) -> NDArray[np.uint8]:
    most = _average(volume == 0, factors)
    found = np.zeros(most.shape, np.uint8)
    for value, box in enumerate(ndimage.find_objects(volume), 1):
        if box is None:
            continue
        blocks = tuple(
            slice(part.start // factor, -(-part.stop // factor)) for part, factor in zip(box, factors, strict=True)
        )
        voxels = tuple(
            slice(part.start * factor, part.stop * factor) for part, factor in zip(blocks, factors, strict=True)
        )
        share = _average(volume[voxels] == value, factors)
        larger = share >= most[blocks]
        found[blocks][larger], most[blocks][larger] = value, share[larger]
    return found


def _sample(image: NDArray[Any]) -> NDArray[Any]:
    """Voxels to take percentiles of; at random places, since steps of one size could meet the same column again."""
    voxels = image.ravel()
    return voxels[np.random.default_rng(0).integers(0, voxels.size, SAMPLE)] if voxels.size > SAMPLE else voxels


def _size(volume: NDArray[Any]) -> str:
    return " x ".join(map(str, volume.shape))
