"""Volumes of DICOM slices: where each slice lies, and whether all of a series are evenly stacked.

Readers take the slices that are there for evenly stacked ones, so that a missing slice shifts all that lie behind it
without a word. Here the position of every slice is looked at first.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from med3d_nets.dicom import PLACE, DicomFile, chosen_files
from med3d_nets.dicom_planes import TOLERANCE_MM, TOLERANCE_TURN, place_tolerance
from med3d_nets.errors import Med3dError

__all__ = ["Series", "read_series"]

Array = NDArray[np.float64]

SHOWN = 3
_LPS = np.diag([-1.0, -1.0, 1.0])
_NEEDED = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
"""Attributes of a slice, and how many values they have."""
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_GROUPED = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
}
"""Where the attributes of a frame are (DICOM PS3.3, C.7.6.16)."""


@dataclass(frozen=True)
class Series:
    """The slices of a volume.

    Attributes:
        files: paths, in the order of their positions along the slices' normal; one where it holds all frames.
        frames: numbers of that file's frames in the order of their positions, from 0; () where each slice has a file.
        shape: columns, rows, slices: the axes ``(x, y, z)`` of its voxels.
        affine: from voxels to RAS+ in mm, ``(4, 4)``.
    """

    files: Sequence[str]
    frames: Sequence[int]
    shape: tuple[int, int, int]
    affine: Array


@dataclass(frozen=True)
class _Slice:
    """A file or a frame, with the attributes that place it."""

    name: str
    path: str
    frame: int
    values: dict[str, Any]

    @property
    def place(self) -> Array:
        return np.array(self.values["ImagePositionPatient"], np.float64)

    @property
    def turn(self) -> Array:
        return np.array(self.values["ImageOrientationPatient"], np.float64)

    @property
    def size(self) -> tuple[float, ...]:
        """Columns, rows, and their distances in mm."""
        down, along = map(float, self.values["PixelSpacing"])
        return int(self.values["Columns"]), int(self.values["Rows"]), along, down


def read_series(path: str) -> Series:
    """A series, from the headers of its files.

    Args:
        path: of the folder that its files lie directly in, if it is the only series of images there but for scouts; or
            of one of its files. Other files are left alone.

    Raises:
        Med3dError: if there are several series or none, slices without a position, of several sizes or directions, or
            not evenly stacked along their normal.
        ImportError: without pydicom.
    """
    files = chosen_files(path)
    slices = [one for file in files for one in _slices(file)]
    if len(files) > 1 and len(slices) > len(files):
        found = f"{len(slices)} frames in {len(files)} files"
        raise Med3dError(f"{path}: found {found}; expected a file for each slice, or one with all frames")
    for one in slices:
        if one.size[:2] != slices[0].size[:2] or not np.allclose(one.size, slices[0].size, rtol=TOLERANCE_TURN):
            found, expected = ("{} x {} pixels of {:.6g} x {:.6g} mm".format(*each.size) for each in (one, slices[0]))
            raise Med3dError(f"{one.name}: found {found}; expected {expected}, as in {slices[0].name}")
        if not np.allclose(one.turn, slices[0].turn, rtol=0, atol=TOLERANCE_TURN):
            found = f"slices of another direction, {one.turn.tolist()}; expected {slices[0].turn.tolist()}"
            raise Med3dError(f"{one.name}: found {found}, that of {slices[0].name}")
    normal = np.cross(slices[0].turn[:3], slices[0].turn[3:])
    slices = sorted(slices, key=lambda one: float(one.place @ normal))
    if len(slices) > 1:
        _check_places(path, slices, normal)
    columns, rows, *_ = slices[0].size
    single = len(files) == 1 and files[0].frames > 1
    return Series(
        files=[files[0].path] if single else [one.path for one in slices],
        frames=[one.frame for one in slices] if single else (),
        shape=(int(columns), int(rows), len(slices)),
        affine=_affine(slices, normal),
    )


def _slices(file: DicomFile) -> list[_Slice]:
    """The slices in a file."""
    size = {"Rows": file.header["Rows"], "Columns": file.header["Columns"]}
    own = {name: file.header[name] for name in _GROUPED}
    frames = [own] if file.frames == 1 and all(own[name] for name in PLACE) else _frames(file, own)
    slices = []
    for number, values in enumerate(frames):
        name = f"{file.path}, frame {number + 1}" if file.frames > 1 else file.path
        if missing := [key for key, length in _NEEDED.items() if _length(values.get(key)) != length]:
            raise Med3dError(f"{name}: found no {' and no '.join(missing)}; expected them of each slice")
        slices.append(_Slice(name, file.path, number, {**size, **values}))
    return slices


def _length(value: Any) -> int:
    return 0 if value is None else np.size(value)


def _frames(file: DicomFile, whole: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a file of the enhanced kind says of each of its frames, or of all together; else what its header says."""
    import pydicom

    header = pydicom.dcmread(file.path, stop_before_pixels=True, specific_tags=list(_GROUPS))
    shared, own = (header.get(name) or [] for name in _GROUPS)
    groups = [[*own[number : number + 1], *shared[:1]] for number in range(file.frames)]
    return [
        {
            name: _grouped(each, place, name) or (whole[name] if file.frames == 1 else None)
            for name, place in _GROUPED.items()
        }
        for each in groups
    ]


def _grouped(groups: Sequence[Any], place: str, name: str) -> Any:
    items = (item for group in groups for item in group.get(place) or ())
    return next((value for item in items if (value := item.get(name)) is not None), None)


def _affine(slices: Sequence[_Slice], normal: Array) -> Array:
    """The affine of slices that are in order, to RAS+ mm."""
    first, last = slices[0], slices[-1]
    *_, along, down = first.size
    if len(slices) > 1:
        step = (last.place - first.place) / (len(slices) - 1)
    else:
        step = normal * abs(float(first.values["SpacingBetweenSlices"] or first.values["SliceThickness"] or 1))
    affine = np.eye(4)
    columns = [first.turn[:3] * along, first.turn[3:] * down, step, first.place]
    affine[:3] = _LPS @ np.column_stack(columns)
    return affine


def _check_places(path: str, slices: Sequence[_Slice], normal: Array) -> None:
    """Check that slices, in order, lie on a line along their normal, at even distances."""
    places = np.array([one.place for one in slices])
    way = places[-1] - places[0]
    length = float(way @ normal)
    shift = float(np.linalg.norm(way - length * normal))
    even = np.linspace(places[0], places[-1], len(places))
    distances = np.diff(places @ normal)
    apart = distances[distances > TOLERANCE_TURN]
    usual = float(np.median(apart)) if apart.size else 0.0
    tolerance = place_tolerance(usual)
    if distances.min() <= tolerance or (np.linalg.norm(places - even, axis=1) > tolerance).any():
        wrong = [index for index, distance in enumerate(distances) if abs(distance - usual) > tolerance]
        wrong = wrong or [int(np.argmax(np.abs(distances - usual)))]
        named = "; ".join(_gap(slices[index], slices[index + 1], distances[index]) for index in wrong[:SHOWN])
        more = f"; and {len(wrong) - SHOWN} more" * (len(wrong) > SHOWN)
        expected = f"expected {usual:.4g} mm between all {len(slices)}: a slice is missing, or there twice"
        raise Med3dError(f"{path}: found slices at uneven positions, {named}{more}; {expected}")
    if shift > TOLERANCE_MM + TOLERANCE_TURN * length:
        found = f"slices shifted against each other by {shift:.4g} mm over {length:.4g} mm, as by a tilted gantry"
        raise Med3dError(f"{path}: found {found}; expected them stacked along their normal")


def _gap(one: _Slice, other: _Slice, distance: float) -> str:
    ends = (f"{os.path.basename(end.name)} at ({', '.join(f'{mm:.6g}' for mm in end.place)})" for end in (one, other))
    return f"{distance:.4g} mm from {' to '.join(ends)}"
