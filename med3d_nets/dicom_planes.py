"""Where the frames of DICOM files are in space, the grid that they make, and whether two grids coincide.

Unlike the slices of an image, the frames of a segmentation may be a part of those of a grid, several of one slice, in
any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from med3d_nets.errors import Med3dError

__all__ = ["Planes", "find_planes", "frame_groups", "place_on_grid", "place_tolerance", "stack_planes"]

Array = NDArray[np.float64]

TOLERANCE = 0.1
"""Share of the distance between voxels that they may be off: it comes of positions and spacings that were rounded on
their way, and is too little to change which voxel is nearest."""
TOLERANCE_MM = 0.1
"""The same for positions rounded to tenths of mm, where that is not more than the share ``TOLERANCE_MOST``."""
TOLERANCE_MOST = 0.4
TOLERANCE_TURN = 1e-3
"""Largest difference between direction cosines of frames, and between their spacings in mm."""
SAME_PLACE = 1e-3
"""Distance in mm below which frames are of one slice."""
SHOWN = 5
"""Things of a kind that a message names."""
GROUPS = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
"""Of frames, in the order that :func:`find_planes` takes them."""
PACKAGES = "pydicom and highdicom, by pip install 'med3d-nets[formats]'"

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Planes:
    """Frames or slices of one direction, in LPS+ mm as DICOM has it.

    Attributes:
        places: of the first pixel of each, ``(frame, 3)``.
        along, down: from a pixel to the next of its row, and to the next of its column, ``(3,)``.
        spacing, thickness: distance between slices and their thickness in mm as the header tells, or 0.
    """

    places: Array
    along: Array
    down: Array
    spacing: float
    thickness: float


def frame_groups(path: str, dataset: Any, name: str) -> list[Any]:
    """The item of a functional group of each frame, its own or that of all (DICOM PS3.3, C.7.6.16).

    Args:
        path: for messages.
        dataset: of a file with frames.
        name: of the group's sequence.

    Raises:
        Med3dError: if a frame has none.
    """
    shared = dataset.get("SharedFunctionalGroupsSequence") or [{}]
    found = [each.get(name) or shared[0].get(name) for each in dataset.get("PerFrameFunctionalGroupsSequence") or ()]
    if not found or not all(found):
        raise Med3dError(f"{path}: found no {name}; expected one for each frame")
    return [each[0] for each in found]


def find_planes(path: str, positions: Sequence[Any], orientations: Sequence[Any], measures: Sequence[Any]) -> Planes:
    """Planes of the attributes of frames or slices.

    Args:
        path: for messages.
        positions, orientations, measures: what has ``ImagePositionPatient``, ``ImageOrientationPatient`` and
            ``PixelSpacing`` of each.

    Raises:
        Med3dError: if directions or spacings differ.
        AttributeError: if an attribute is missing.
    """
    turns = np.array([each.ImageOrientationPatient for each in orientations], np.float64)
    sizes = np.array([each.PixelSpacing for each in measures], np.float64)
    for name, values in {"ImageOrientationPatient": turns, "PixelSpacing": sizes}.items():
        if np.ptp(values, axis=0).max() > TOLERANCE_TURN:
            other = values[np.abs(values - values[0]).max(axis=1).argmax()]
            found = f"frames of {name} {values[0].tolist()} and {other.tolist()}"
            raise Med3dError(f"{path}: found {found}; expected one in all")
    return Planes(
        places=np.array([each.ImagePositionPatient for each in positions], np.float64),
        along=turns[0, :3] * sizes[0, 1],
        down=turns[0, 3:] * sizes[0, 0],
        spacing=abs(float(measures[0].get("SpacingBetweenSlices") or 0)),
        thickness=abs(float(measures[0].get("SliceThickness") or 0)),
    )


def stack_planes(path: str, planes: Planes, whole: bool) -> tuple[NDArray[np.intp], Array]:
    """The grid of planes in any order.

    Args:
        path: for messages.
        planes: at even distances, or at multiples of one.
        whole: whether there should be one plane at each place. Otherwise there may be none or several, and the distance
            between places is taken to be the header's, or where that does not fit the usual one; without a header's,
            the usual or the smallest one.

    Returns:
        The place of each along the normal, ``(frame,)``, from 0; and the affine of voxels ``(x, y, z)``, columns, rows
        and places, to RAS+ mm, ``(4, 4)``.

    Raises:
        Med3dError: if planes are uneven.
    """
    normal = np.cross(planes.along, planes.down)
    normal /= np.linalg.norm(normal)
    order = np.argsort(planes.places @ normal, kind="stable")
    ordered = planes.places[order]
    gaps = np.diff(ordered @ normal)
    apart = gaps > SAME_PLACE
    for distance in _distances(planes, gaps[apart], whole):
        steps = np.where(apart, np.rint(gaps / distance), 0)
        places = np.concatenate([[0], steps.cumsum()])
        step = (ordered[-1] - ordered[0]) / places[-1] if places[-1] else distance * normal
        off = np.linalg.norm(ordered - ordered[0] - places[:, None] * step, axis=1).max()
        off = max(off, abs(np.linalg.norm(step) - distance))
        if off <= place_tolerance(distance) and ((steps == 1).all() if whole else (steps[apart] >= 1).all()):
            index = np.empty(len(order), np.intp)
            index[order] = places
            lps = np.eye(4)
            lps[:3] = np.stack([planes.along, planes.down, step, ordered[0]], axis=1)
            return index, _LPS @ lps
    distances = np.unique(gaps.round(3))
    named = ", ".join(f"{gap:.4g}" for gap in distances[:SHOWN]) + ", ..." * (len(distances) > SHOWN)
    expected = "one distance between all" if whole else "multiples of one distance"
    found = f"frames at uneven positions, {named} mm from one to the next along their normal"
    raise Med3dError(f"{path}: found {found}; expected {expected}, and nothing across")


def place_on_grid(
    path: str, labels: NDArray[Any], affine: Array, shape: tuple[int, int, int], image_affine: Array
) -> NDArray[Any]:
    """The same labels on the grid of an image, of which theirs is a part with axes in any order and direction.

    Grids coincide if no voxel is off by more than ``TOLERANCE`` of the distance between the image's, or by
    ``TOLERANCE_MM``: so much :func:`~med3d_nets.dicom_series.read_series` allows slices, whose places frames have.

    Args:
        path: of the labels, for messages.
        labels: ``(x, y, z)``.
        affine: from voxels to RAS+ in mm, ``(4, 4)``.
        shape, image_affine: of the image.

    Returns:
        Labels of the image's shape, 0 where there were none.

    Raises:
        Med3dError: if the grids do not coincide, or labels above 0 are outside of the image.
    """
    orientation, start = _match(path, np.array(labels.shape) - 1, affine, image_affine)
    turned = nib.apply_orientation(labels, orientation)
    low, high = np.maximum(start, 0), np.minimum(start + turned.shape, shape)
    placed = np.zeros(shape, labels.dtype, order="F")  # as they are read: another order takes long
    if (low < high).all():
        placed[_box(low, high)] = turned[_box(low - start, high - start)]
    if lost := np.count_nonzero(labels) - np.count_nonzero(placed):
        found = f"{lost} of {np.count_nonzero(labels)} labelled voxels outside of the image"
        raise Med3dError(f"{path}: found {found}; expected all within its {tuple(shape)} voxels")
    return placed


def _distances(planes: Planes, gaps: Array, whole: bool) -> list[float]:
    """Distances in mm that there may be between places, the most likely first."""
    if not gaps.size:
        return [planes.spacing or planes.thickness or 1.0]
    median = float(np.median(gaps))
    if whole:
        return [median]
    return [planes.spacing, median] if planes.spacing else [median, float(gaps.min())]


def _match(path: str, last: NDArray[np.intp], affine: Array, image_affine: Array) -> tuple[Array, NDArray[np.intp]]:
    """nibabel's orientation of labels on an image's axes, and where the first voxel then is; or an error."""
    steps = np.linalg.inv(image_affine) @ affine  # of labels in voxels of the image
    orientation = nib.io_orientation(steps)
    whole = np.zeros((3, 3))
    whole[orientation[:, 0].astype(int), range(3)] = orientation[:, 1]
    # Voxels of the image that those at the ends of an axis, and that in the middle, are away from where they should be.
    slopes = np.abs(steps[:3, :3] - whole) * last / 2
    middle = steps[:3, 3] + (steps[:3, :3] - whole) @ last / 2
    off = np.abs(middle - np.rint(middle))
    spacing = nib.affines.voxel_sizes(image_affine)
    limit = np.array([place_tolerance(each) for each in spacing]) / spacing
    if (slopes.sum(axis=1) + off > limit).any():
        parts = {"spacing": 2 * slopes * (whole != 0), "direction": 2 * slopes * (whole == 0)}
        names = [name for name, part in parts.items() if (part.sum(axis=1) > limit).any()] or ["origin"]
        has, wanted = (np.round(each[:3], 4).tolist() for each in (affine, image_affine))
        found = f"labels on a grid of another {' and '.join(names)}, affine {has}"
        margin = f"off by {(slopes.sum(axis=1) + off).max():.3g} voxels, tolerance {limit.min():.3g}"
        raise Med3dError(f"{path}: found {found}; expected voxels that coincide with the image's, {wanted} ({margin})")
    return orientation, (np.rint(middle) + np.minimum(whole @ last, 0)).astype(np.intp)


def place_tolerance(distance: float) -> float:
    """Distance in mm that slices of this distance may be off."""
    return float(max(TOLERANCE * distance, min(TOLERANCE_MM, TOLERANCE_MOST * distance)))


def _box(low: NDArray[np.intp], high: NDArray[np.intp]) -> tuple[slice, ...]:
    return tuple(slice(first, end) for first, end in zip(low, high, strict=True))
