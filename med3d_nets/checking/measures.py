"""What is kept of a volume once it has been read: some numbers, about 2 kB, whatever its size.

Axes are in RAS order (first to the patient's right, then anterior, then superior) unless it is said otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool3d

__all__ = [
    "SIDES",
    "Geometry",
    "ImageFacts",
    "LabelFacts",
    "foreground_box",
    "measure_image",
    "measure_label",
    "to_ras",
]

Array = NDArray[Any]
Sides = NDArray[np.float16]
Box = tuple[slice, slice, slice]

SIDES = (4, 8, 8)
"""Parts of a half volume in which right and left are compared."""
PERCENTILES = (0.5, 50.0, 99.5)
_SAMPLES = 64
"""Voxels along an axis that percentiles and right and left are measured in, at least, and less than twice as many."""
_PART = 2**18


@dataclass(frozen=True)
class Geometry:
    """How a file's array lies in space.

    Attributes:
        shape: voxels along the array's axes.
        spacing: mm along the RAS axes.
        codes: where each of the array's axes points to, such as ``"RAS"``.
        right_handed: whether the affine's determinant is positive.
        size: extent along the RAS axes, in mm.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    codes: str
    right_handed: bool
    size: tuple[float, ...]

    @classmethod
    def of(cls, shape: tuple[int, ...], affine: NDArray[np.float64]) -> Geometry:
        """That of a spatial shape and an affine with three directions."""
        spacing = [round(float(value), 6) for value in nib.affines.voxel_sizes(affine)]
        order = np.argsort(nib.io_orientation(affine)[:, 0])
        size = tuple(round(shape[axis] * spacing[axis], 3) for axis in order)
        codes, right_handed = "".join(nib.aff2axcodes(affine)), bool(np.linalg.det(affine[:3, :3]) > 0)
        return cls(shape, tuple(spacing[axis] for axis in order), codes, right_handed, size)


@dataclass(frozen=True)
class ImageFacts:
    """What was measured in an image.

    Attributes:
        geometry: how it lies.
        dtype: type that the voxels are loaded in.
        low, high, mean: of all voxels, in the image's own unit.
        percentiles: :data:`PERCENTILES` of an even sample of them.
        content: hash of the voxels, in single precision as they are loaded.
        sides: half of the right's difference from the left, ``SIDES``, in standard deviations of the image.
    """

    geometry: Geometry
    dtype: str
    low: float
    high: float
    mean: float
    percentiles: tuple[float, ...]
    content: str
    sides: Sides


@dataclass(frozen=True)
class LabelFacts:
    """What was measured in a label map.

    Attributes:
        geometry: how it lies.
        voxels: number of each value that is there.
        volumes: mL of each of them but 0.
        sides: as for images, of the values, up to a factor.
    """

    geometry: Geometry
    voxels: Mapping[int, int]
    volumes: Mapping[int, float]
    sides: Sides


def to_ras(voxels: Array, affine: NDArray[np.float64]) -> Array:
    """A view of an array, ``(x, y, z, ...)``, with its axes in RAS order."""
    return np.asarray(nib.apply_orientation(voxels, nib.io_orientation(affine)))


def measure_image(voxels: Array, affine: NDArray[np.float64]) -> ImageFacts:
    """Measure an image.

    Args:
        voxels: finite, ``(x, y, z)`` or ``(x, y, z, channel)`` in the file's order.
        affine: to RAS+ in mm.
    """
    coarse = to_ras(voxels, affine)
    coarse = np.asarray(coarse[tuple(slice(None, None, max(1, n // _SAMPLES)) for n in coarse.shape[:3])], np.float32)
    percentiles = tuple(float(value) for value in np.percentile(coarse, PERCENTILES))
    first = coarse.reshape(*coarse.shape[:3], -1)[..., 0].clip(percentiles[0], percentiles[-1])
    return ImageFacts(
        Geometry.of(voxels.shape[:3], affine),
        str(voxels.dtype),
        float(voxels.min()),
        float(voxels.max()),
        float(voxels.mean(dtype=np.float64)),
        percentiles,
        _hash(voxels),
        _sides(first / (first.std(dtype=np.float64) or 1)),
    )


def measure_label(voxels: Array, counts: NDArray[np.int64], affine: NDArray[np.float64]) -> LabelFacts:
    """Measure a label map.

    Args:
        voxels: values that count classes, ``(x, y, z)`` in the file's order.
        counts: number of voxels of each class.
        affine: to RAS+ in mm.
    """
    geometry = Geometry.of(voxels.shape, affine)
    present = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    millilitres = float(np.prod(geometry.spacing)) / 1000
    volumes = {value: number * millilitres for value, number in present.items() if value}
    return LabelFacts(geometry, present, volumes, _label_sides(to_ras(voxels, affine)))


def foreground_box(mask: NDArray[np.bool_]) -> Box | None:
    """The box around what is true in a volume, or None where nothing is."""
    plane = np.asarray(mask.any(axis=2))
    places = [np.flatnonzero(line) for line in (plane.any(axis=1), plane.any(axis=0), mask.any(axis=(0, 1)))]
    if not places[0].size:
        return None
    x, y, z = (slice(int(found[0]), int(found[-1]) + 1) for found in places)
    return x, y, z


def _hash(voxels: Array) -> str:
    """Hash of shape and values, of which a part at a time is converted."""
    # Not for security: processors have instructions for it.
    digest = hashlib.sha1(repr(voxels.shape).encode(), usedforsecurity=False)
    flat = voxels.ravel(order="F")  # the order of the file, so that nothing is copied
    for start in range(0, flat.size, _PART):
        digest.update(_common(flat[start : start + _PART]).data)
    return digest.hexdigest()


def _common(values: Array) -> Array:
    """The same for the same values of any type: in 16 bits, if all are such whole numbers, else in single precision."""
    if values.dtype.kind in "iu" and np.can_cast(values.dtype, np.int16):
        return values.astype("<i2", copy=False)
    single = values.astype("<f4")
    with np.errstate(invalid="ignore"):
        whole = single.astype("<i2")
    return whole if np.array_equal(whole, single) else single


def _sides(volume: NDArray[np.floating[Any]]) -> Sides:
    """Half of the right's difference from the left in parts of a volume in RAS order."""
    grid = (2 * SIDES[0], *SIDES[1:])
    parts = adaptive_avg_pool3d(torch.from_numpy(np.ascontiguousarray(volume, np.float32))[None], grid)[0].numpy()
    return ((parts - parts[::-1]) / 2)[: SIDES[0]].astype(np.float16)


def _label_sides(label: Array) -> Sides:
    """The same of the mean value of a label map, of which only the foreground's box is looked at."""
    grid = (2 * SIDES[0], *SIDES[1:])
    sums = np.zeros(grid)
    box = foreground_box(label > 0)
    if box is not None:
        inner = label[box]
        steps = [max(1, n // _SAMPLES) for n in inner.shape]
        inner = inner[tuple(slice(None, None, step) for step in steps)]
        places = np.nonzero(inner)
        bins = tuple(
            (box[axis].start + steps[axis] * places[axis]) * grid[axis] // label.shape[axis] for axis in range(3)
        )
        np.add.at(sums, bins, inner[places].astype(np.float64))
        sums /= np.abs(sums).max()
    return ((sums - sums[::-1]) / 2)[: SIDES[0]].astype(np.float16)
