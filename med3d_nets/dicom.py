"""Folders of DICOM files: which series is in one, and whether its slices make a volume.

Readers take the slices that are there for evenly stacked ones, so that a missing slice shifts all that lie behind it
without a word. Here the position of every file is looked at first. pydicom, an extra, reads the headers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from med3d_nets.errors import Med3dError

__all__ = ["Series", "dicom_files", "is_series", "read_series"]

Array = NDArray[np.float64]

TOLERANCE_MM = 0.1
"""Distance of a slice from its even place that may be rounding to tenths of mm, where slices are further apart."""
TOLERANCE = 0.1
"""The same as a share of the distance between slices."""
TOLERANCE_TURN = 1e-3
"""Largest difference between direction cosines, and shift of slices against each other by distance."""
SHOWN = 3

_TAGS = ("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "NumberOfFrames")
_PLACE = ("ImagePositionPatient", "ImageOrientationPatient")


@dataclass(frozen=True)
class Series:
    """The slices of a volume.

    Attributes:
        files: paths, in the order of their positions along the slices' normal.
        first, last: positions of their first voxels, ``(3,)``, RAS+ mm.
    """

    files: Sequence[str]
    first: Array
    last: Array


@dataclass(frozen=True)
class _Slice:
    path: str
    header: Any

    @property
    def place(self) -> Array:
        return np.array(self.header.ImagePositionPatient, np.float64)

    @property
    def turn(self) -> Array:
        return np.array(self.header.ImageOrientationPatient, np.float64)


def dicom_files(folder: str) -> Iterator[str]:
    """Paths of the files directly in a folder that begin as DICOM files do, sorted."""
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if not name.startswith(".") and os.path.isfile(path):
            with open(path, "rb") as file:
                if file.read(132)[128:] == b"DICM":
                    yield path


def is_series(folder: str) -> bool:
    """Whether there is a DICOM file directly in a folder."""
    return next(dicom_files(folder), None) is not None


def read_series(folder: str) -> Series:
    """The one series whose files lie directly in a folder, from their headers.

    Args:
        folder: other files in it are left alone.

    Raises:
        Med3dError: if there are several series, files without a position, or slices that are not evenly stacked along
            their normal.
        ImportError: without pydicom.
    """
    series = _find_series(folder)
    if len(series) != 1:
        named = "; ".join(_describe(uid, slices) for uid, slices in series.items())
        raise Med3dError(
            f"{folder}: found {len(series)} DICOM series{': ' * bool(named)}{named}; expected one a folder"
        )
    (slices,) = series.values()
    for one in slices:
        if (frames := int(one.header.get("NumberOfFrames") or 1)) > 1:
            raise Med3dError(f"{one.path}: found {frames} frames; expected a file for each slice")
        if missing := [name for name in _PLACE if not one.header.get(name)]:
            raise Med3dError(f"{one.path}: found no {' and no '.join(missing)}; expected them in each file of a series")
        if not np.allclose(one.turn, slices[0].turn, rtol=0, atol=TOLERANCE_TURN):
            found = f"slices of another direction, {one.turn.tolist()}; expected {slices[0].turn.tolist()}"
            raise Med3dError(f"{one.path}: found {found}, that of {slices[0].path}")
    normal = np.cross(slices[0].turn[:3], slices[0].turn[3:])
    slices = sorted(slices, key=lambda one: float(one.place @ normal))
    if len(slices) > 1:
        _check_places(folder, slices, normal)
    first, last = (one.place * [-1, -1, 1] for one in (slices[0], slices[-1]))
    return Series([one.path for one in slices], first, last)


def _find_series(folder: str) -> dict[str, list[_Slice]]:
    """Files by the UID of their series; those of none, such as a DICOMDIR, are left out."""
    import pydicom  # an extra

    found: dict[str, list[_Slice]] = {}
    for path in dicom_files(folder):
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*_TAGS, *_PLACE])
        if uid := header.get("SeriesInstanceUID"):
            found.setdefault(str(uid), []).append(_Slice(path, header))
    return found


def _describe(uid: str, slices: Sequence[_Slice]) -> str:
    header = slices[0].header
    words = [str(header.get(name) or "") for name in ("Modality", "SeriesNumber", "SeriesDescription")]
    return f"{uid} ({', '.join([*filter(None, words), f'{len(slices)} files'])})"


def _check_places(folder: str, slices: Sequence[_Slice], normal: Array) -> None:
    """Check that slices, in order, lie on a line along their normal, at even distances."""
    places = np.array([one.place for one in slices])
    way = places[-1] - places[0]
    length = float(way @ normal)
    shift = float(np.linalg.norm(way - length * normal))
    even = np.linspace(places[0], places[-1], len(places))
    distances = np.diff(places @ normal)
    usual = float(np.median(distances))
    tolerance = max(TOLERANCE * usual, min(TOLERANCE_MM, 0.4 * usual))
    if distances.min() <= tolerance or (np.linalg.norm(places - even, axis=1) > tolerance).any():
        wrong = [index for index, distance in enumerate(distances) if abs(distance - usual) > tolerance]
        wrong = wrong or [int(np.argmax(np.abs(distances - usual)))]
        named = "; ".join(_gap(slices[index], slices[index + 1], distances[index]) for index in wrong[:SHOWN])
        more = f"; and {len(wrong) - SHOWN} more" * (len(wrong) > SHOWN)
        expected = f"expected {usual:.4g} mm between all {len(slices)}: a slice is missing, or there twice"
        raise Med3dError(f"{folder}: found slices at uneven positions, {named}{more}; {expected}")
    if shift > TOLERANCE_MM + TOLERANCE_TURN * length:
        found = f"slices shifted against each other by {shift:.4g} mm over {length:.4g} mm, as by a tilted gantry"
        raise Med3dError(f"{folder}: found {found}; expected them stacked along their normal")


def _gap(one: _Slice, other: _Slice, distance: float) -> str:
    ends = (f"{os.path.basename(end.path)} at ({', '.join(f'{mm:.6g}' for mm in end.place)})" for end in (one, other))
    return f"{distance:.4g} mm from {' to '.join(ends)}"
