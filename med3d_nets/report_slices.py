"""Slices of a case through its classes, kept small until it is known which cases a report shows.

Planes are those that the array's axes are nearest to, drawn as radiologists look at them: the patient's right, or front
in a sagittal plane, is at the left of the picture. Nothing is resampled.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
import torch
from monai.transforms import LoadImage
from numpy.typing import NDArray
from torch import Tensor

from med3d_nets.volume_reader import VolumeReader

__all__ = ["PLANES", "Cut", "array_axis", "cut_class", "cut_slice", "read_pictures"]

Mask = NDArray[np.bool_]

PLANES = {2: ("axial", "RLAP"), 1: ("coronal", "RLSI"), 0: ("sagittal", "APSI")}
"""By the world axis across it (0: to the right, 1: to the front, 2: to the head): name; left, right, top and bottom."""


@dataclass(frozen=True)
class Cut:
    """A slice of prediction and reference of one class, as it is drawn.

    Attributes:
        plane: key of :data:`PLANES`.
        index: where the slice lies along the array's axis across it.
        shape: ``(row, column)`` of the picture.
        spacing: of rows and columns, in mm.
        bits: both masks, packed and compressed.
    """

    plane: int
    index: int
    shape: tuple[int, int]
    spacing: tuple[float, float]
    bits: bytes

    def masks(self) -> tuple[Mask, Mask]:
        """Prediction and reference, ``(row, column)``."""
        packed = np.frombuffer(zlib.decompress(self.bits), np.uint8)
        size = self.shape[0] * self.shape[1]
        prediction, reference = np.unpackbits(packed, count=2 * size).astype(bool).reshape(2, *self.shape)
        return prediction, reference


def cut_class(prediction: Tensor, reference: Tensor, affine: NDArray[np.float64]) -> tuple[Cut, ...]:
    """Axial, coronal and sagittal slice through the middle of a class.

    The middle is the median of the reference's voxels along each axis, or of the prediction's where the reference has
    none, so that every slice meets the class, in however many parts it is.

    Args:
        prediction, reference: what is true belongs to the class, ``(depth, height, width)``.
        affine: from voxels to RAS+ in mm, ``(4, 4)``.

    Returns:
        Three slices, or none if the class is in neither.
    """
    found = reference if bool(reference.any()) else prediction
    if not bool(found.any()):
        return ()
    middle = _median_indices(found)
    spacing = nibabel.affines.voxel_sizes(affine)
    cuts = []
    for plane in PLANES:
        axis = array_axis(affine, plane)
        pair = np.stack([cut_slice(mask, affine, plane, middle[axis]) for mask in (prediction, reference)])
        columns, rows = (array_axis(affine, world) for world in range(3) if world != plane)
        bits = zlib.compress(np.packbits(pair).tobytes())
        step = float(spacing[rows]), float(spacing[columns])
        cuts.append(Cut(plane, middle[axis], (pair.shape[1], pair.shape[2]), step, bits))
    return tuple(cuts)


def read_pictures(
    file: str, shape: Sequence[int], affine: NDArray[np.float64], cuts: Sequence[Cut]
) -> list[NDArray[np.float32]]:
    """The image of each slice, its first channel.

    Args:
        file: the image.
        shape: ``(depth, height, width)`` that it must have.
        affine: that of the label map.
        cuts: the slices.

    Raises:
        ValueError: if the image is of another shape.
        Exception: whatever the reader raises for a file that is gone or damaged.
    """
    image: Any = LoadImage(VolumeReader, image_only=True, ensure_channel_first=True)(file)
    if tuple(image.shape[1:]) != tuple(shape):
        raise ValueError(f"{file} has the shape {tuple(image.shape[1:])}, its label map {tuple(shape)}")
    return [cut_slice(image[0], affine, cut.plane, cut.index).astype(np.float32) for cut in cuts]


def _orientation(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """World axis and direction of each array axis, ``(3, 2)``; an affine without volume is taken for the identity."""
    found = np.asarray(nibabel.io_orientation(affine))
    return found if np.isfinite(found).all() else np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])


def array_axis(affine: NDArray[np.float64], world: int) -> int:
    """The axis of an array that runs along an axis of the world."""
    return int(np.flatnonzero(_orientation(affine)[:, 0] == world)[0])


def cut_slice(volume: Tensor, affine: NDArray[np.float64], plane: int, index: int) -> NDArray[Any]:
    """A slice as it is drawn: rows from the head (or front) down, columns from the patient's right (or front)."""
    orientation = _orientation(affine)
    across = array_axis(affine, plane)
    rest = [axis for axis in range(3) if axis != across]
    picture = np.asarray(torch.as_tensor(volume).select(across, index).cpu())
    picture = np.flip(picture, tuple(place for place, axis in enumerate(rest) if orientation[axis, 1] < 0))
    if orientation[rest[0], 0] < orientation[rest[1], 0]:
        picture = picture.T  # rows are along the later of the two world axes
    return np.ascontiguousarray(picture[::-1, ::-1])


def _median_indices(mask: Tensor) -> list[int]:
    """The lower median of the true voxels' indices along each axis, so that the slice there has some."""
    rows, columns = [], []
    for part in mask:  # a sum over the whole volume would first make 64-bit integers of it
        rows.append(part.sum(1))
        columns.append(part.sum(0))
    table = torch.stack(rows)
    sums = (counts.cumsum(0) for counts in (table.sum(1), table.sum(0), torch.stack(columns).sum(0)))
    return [int(torch.searchsorted(counts, (counts[-1] + 1) // 2)) for counts in sums]
