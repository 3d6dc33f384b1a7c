"""Folders of DICOM files: which series are in one.

A path that names an image is that of a folder with one series in it or, where there are several, of any one file of the
series that is meant; :mod:`~med3d_nets.dicom_series` makes a volume of its slices. pydicom, an extra, reads headers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from med3d_nets.errors import Med3dError

__all__ = [
    "DicomFile",
    "chosen_files",
    "dicom_files",
    "images_of_folder",
    "is_dicom",
    "is_dicom_file",
    "is_series",
    "name_series",
    "scan",
    "segment_names",
    "series_files",
    "series_in",
    "series_path",
]

OTHER_MODALITIES = ("KO", "PR", "REG", "RTDOSE", "RTPLAN", "RTSTRUCT", "SEG", "SR")
"""Of objects that are about images, and lie in the same folders."""
DIRECTORY = "1.2.840.10008.1.3.10"
"""SOP class of a DICOMDIR."""

_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "PatientID", "StudyInstanceUID"),
    *("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "ImageType", "NumberOfFrames"),
    *("Rows", "Columns", "PixelSpacing", "SpacingBetweenSlices", "SliceThickness"),
    *("ReferencedSeriesSequence", "SegmentSequence", "SharedFunctionalGroupsSequence"),
)
PLACE = ("ImagePositionPatient", "ImageOrientationPatient")


@dataclass(frozen=True)
class DicomFile:
    """A file and what of its header tells what it is."""

    path: str
    header: Mapping[str, Any] = field(repr=False)

    @property
    def is_image(self) -> bool:
        """Whether it holds pixels that were taken, and is not about others."""
        return bool(self.header["Rows"]) and self.header["Modality"] not in OTHER_MODALITIES

    @property
    def frames(self) -> int:
        """Number of frames."""
        return int(self.header["NumberOfFrames"] or 1)


def is_dicom_file(path: str) -> bool:
    """Whether a path is that of a file that begins as DICOM files do."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def dicom_files(folder: str) -> Iterator[str]:
    """Paths of the files directly in a folder that begin as DICOM files do, sorted."""
    for name in sorted(os.listdir(folder)):
        if not name.startswith(".") and is_dicom_file(path := os.path.join(folder, name)):
            yield path


def is_series(folder: str) -> bool:
    """Whether there is a DICOM file directly in a folder."""
    return next(dicom_files(folder), None) is not None


def is_dicom(path: str) -> bool:
    """Whether a path is that of a DICOM file, or of a folder with such files in it."""
    return is_series(path) if os.path.isdir(path) else is_dicom_file(path)


def scan(folder: str) -> dict[str, list[DicomFile]]:
    """The DICOM files directly in a folder by the UID of their series, without a DICOMDIR.

    Raises:
        Med3dError: if a header cannot be read, or names no series.
        ImportError: without pydicom.
    """
    states = ((path, os.stat(path)) for path in dicom_files(folder))
    return _scan(tuple((path, state.st_size, state.st_mtime_ns) for path, state in states))


def images_of_folder(folder: str) -> dict[str, Mapping[str, Any]]:
    """The image series whose files lie directly in a folder: path, and the header of a slice.

    The path is the folder's own, or that of the first file of each of several. Objects without pixels, segmentations
    and doses are left out, and so are scouts beside other series.

    Raises:
        Med3dError: if a header cannot be read.
        ImportError: without pydicom.
    """
    series = _candidates(folder)
    return {folder if len(series) == 1 else slices[0].path: slices[0].header for slices in series.values()}


def series_in(folder: str) -> list[str]:
    """Paths of :func:`images_of_folder`; a folder that cannot be read is its own, to be told of when it is read."""
    try:
        return list(images_of_folder(folder))
    except (ImportError, Med3dError):
        return [folder]


def series_path(path: str) -> str:
    """The one path that stands for the series of a DICOM file: its folder, or its first file beside other series.

    What is no DICOM file, or cannot be read, stands for itself.
    """
    try:
        if os.path.isdir(path) or not is_dicom_file(path):
            return path
        folder = os.path.dirname(path)
        uid, slices = _series_of(path)
        return folder if list(_candidates(folder)) == [uid] else slices[0].path
    except (ImportError, Med3dError):  # told when it is read
        return path


def name_series(path: str) -> str:
    """What a series among several is called, ``series_3``: by its number, or by its UID where they share a number.

    Args:
        path: of one of its files.
    """
    found = _candidates(os.path.dirname(path))
    uid, slices = _series_of(path)
    number = slices[0].header["SeriesNumber"]
    numbers = [others[0].header["SeriesNumber"] for others in found.values()]
    return f"series_{number}" if number is not None and numbers.count(number) < 2 else f"series_{uid}"


def series_files(path: str) -> list[str]:
    """Paths of the files of an image, sorted: of a file's series, or of a folder's images."""
    if not os.path.isdir(path):
        return [one.path for one in _series_of(path)[1]]
    return sorted(one.path for slices in _candidates(path).values() for one in slices)


def segment_names(path: str) -> dict[int, str]:
    """Labels of the segments of a DICOM segmentation by number, from its header; none of anything else.

    Args:
        path: of the file, or of the folder that it is alone in.
    """
    files = list(dicom_files(path))[:1] if os.path.isdir(path) else [path]
    try:
        _, found = _series_of(files[0]) if files else ("", [])
    except (ImportError, Med3dError):  # told when it is read
        return {}
    (header,) = [one.header for one in found if one.path == files[0]] or [{}]
    return {int(each.SegmentNumber): str(each.SegmentLabel) for each in header.get("SegmentSequence") or ()}


def chosen_files(path: str) -> list[DicomFile]:
    """The files of the one series that a path stands for.

    Args:
        path: of a folder, or of a file of one of several series in it.

    Raises:
        Med3dError: if there are several or none.
        ImportError: without pydicom.
    """
    if not os.path.isdir(path):
        _, slices = _series_of(path)
        if others := sorted({str(one.header["Modality"]) for one in slices if not one.is_image}):
            raise Med3dError(f"{path}: found no image, but {', '.join(others)}; expected a file of a series of images")
        return slices
    series = _candidates(path)
    if len(series) == 1:
        return next(iter(series.values()))
    named = "; ".join(_describe(uid, slices) for uid, slices in (series or scan(path)).items())
    if not series:
        raise Med3dError(f"{path}: found no DICOM series of images{f', but {named}' * bool(named)}; expected one")
    example = next(iter(series.values()))[0].path
    expected = f"expected one a folder, or the path of a file of the one that is meant, such as {example}"
    raise Med3dError(f"{path}: found {len(series)} DICOM series: {named}; {expected}")


@lru_cache(maxsize=8)
def _scan(states: tuple[tuple[str, int, int], ...]) -> dict[str, list[DicomFile]]:
    """The headers of files, which a run asks for several times; sizes and times tell of changes."""
    import pydicom  # an extra

    found: dict[str, list[DicomFile]] = {}
    for path, *_ in states:
        try:
            whole = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*_TAGS, *PLACE])
            header = {name: whole.get(name) for name in (*_TAGS, *PLACE)}
        except Exception as error:  # whatever a damaged file makes pydicom raise
            found_out = f"an unreadable header ({type(error).__name__}: {error})"
            raise Med3dError(f"{path}: found {found_out}; expected a whole DICOM file") from error
        if header["SOPClassUID"] == DIRECTORY or whole.file_meta.get("MediaStorageSOPClassUID") == DIRECTORY:
            continue
        if not header["SeriesInstanceUID"]:
            raise Med3dError(f"{path}: found no SeriesInstanceUID in its header; expected a whole DICOM file")
        found.setdefault(str(header["SeriesInstanceUID"]), []).append(DicomFile(path, header))
    return found


def _candidates(folder: str) -> dict[str, list[DicomFile]]:
    """The series of a folder that may be the volume: of images, and no scouts if there are others."""
    series = {uid: slices for uid, slices in scan(folder).items() if all(one.is_image for one in slices)}
    return {uid: slices for uid, slices in series.items() if not _is_scout(slices)} or series


def _is_scout(slices: Sequence[DicomFile]) -> bool:
    """Whether images are localizers, or of no place in the patient, as pictures of screens are."""
    header = slices[0].header
    placed = header["ImagePositionPatient"] or header["SharedFunctionalGroupsSequence"]
    return not placed or "LOCALIZER" in (header["ImageType"] or ())


def _series_of(path: str) -> tuple[str, list[DicomFile]]:
    """UID and files of the series that a file is of."""
    folder, name = os.path.split(path)
    for uid, slices in scan(folder or os.curdir).items():
        if any(os.path.basename(one.path) == name for one in slices):
            return uid, slices
    raise Med3dError(f"{path}: found a DICOM file of no series; expected one of an image")


def _describe(uid: str, slices: Sequence[DicomFile]) -> str:
    header = slices[0].header
    words = [str(header[name] or "") for name in ("Modality", "SeriesNumber", "SeriesDescription")]
    return f"{uid} ({', '.join([*filter(None, words), f'{len(slices)} files'])})"
