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

from med3d_nets import volume_files
from med3d_nets.errors import Med3dError

__all__ = [
    "DicomFile",
    "DicomImage",
    "chosen_files",
    "dicom_files",
    "images_of_folder",
    "is_dicom",
    "is_dicom_file",
    "is_series",
    "name_series",
    "patient_of",
    "scan",
    "segment_names",
    "series_files",
    "series_in",
    "series_path",
]

OTHER_MODALITIES = ("KO", "PR", "REG", "RTDOSE", "RTPLAN", "RTSTRUCT", "SEG", "SR")
"""Of objects that are about images, and lie in the same folders."""
SUFFIXES = (".dcm", ".dicom", ".ima")
"""What files that begin as no DICOM do must not end with: they are damaged."""
MANUFACTURER = "med3d_nets"
"""Of the segmentations that are written here, in their headers."""
DIRECTORY = "1.2.840.10008.1.3.10"
"""SOP class of a DICOMDIR."""
PLACE = ("ImagePositionPatient", "ImageOrientationPatient")

_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "PatientID", "StudyInstanceUID", "Manufacturer"),
    *("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "ImageType", "NumberOfFrames"),
    *("Rows", "Columns", "SamplesPerPixel", "PixelSpacing", "SpacingBetweenSlices", "SliceThickness", *PLACE),
    *("ReferencedSeriesSequence", "SegmentSequence", "SharedFunctionalGroupsSequence"),
)
_FIRST_ELEMENTS = (0x00, 0x01, 0x05, 0x08, 0x12, 0x16)
"""Those of group 0008 that a data set without the preamble of a file begins with."""


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
    def is_scout(self) -> bool:
        """Whether it is a localizer, or of no place in the patient or in colours, as pictures of screens are."""
        placed = self.header["ImagePositionPatient"] or self.header["SharedFunctionalGroupsSequence"]
        return not placed or self.header["SamplesPerPixel"] == 3 or "LOCALIZER" in (self.header["ImageType"] or ())

    @property
    def frames(self) -> int:
        """Number of frames."""
        return int(self.header["NumberOfFrames"] or 1)


@dataclass(frozen=True)
class DicomImage:
    """A series of images.

    Attributes:
        path: what stands for it: its folder, or its first file beside other series.
        uid: of the series.
        name: for outputs, where a file stands for it: by its number, or by its UID where others share the number.
        files: sorted by name.
    """

    path: str
    uid: str
    name: str
    files: Sequence[DicomFile]

    @property
    def header(self) -> Mapping[str, Any]:
        """That of the first file."""
        return self.files[0].header

    @property
    def is_scout(self) -> bool:
        """Whether all of it is."""
        return all(one.is_scout for one in self.files)


@dataclass(frozen=True)
class _Folder:
    """What is directly in a folder: series by UID, and those that may be volumes."""

    series: Mapping[str, Sequence[DicomFile]]
    images: Sequence[DicomImage]


def is_dicom_file(path: str) -> bool:
    """Whether a path is that of a file that begins as DICOM files do, with or without their preamble."""
    if path.lower().endswith(volume_files.SUFFIXES) or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        head = file.read(132)
    if head[128:] == b"DICM":
        return True
    if head[:2] != b"\x08\x00" or head[2:4] not in [bytes([element, 0]) for element in _FIRST_ELEMENTS]:
        return False
    length = int.from_bytes(head[4:8], "little")
    return head[4:6].isalpha() or (length % 2 == 0 and 0 < length <= 1024)


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


def scan(folder: str) -> Mapping[str, Sequence[DicomFile]]:
    """The DICOM files directly in a folder by the UID of their series, without a DICOMDIR.

    Raises:
        Med3dError: if a header cannot be read or names no series, or files are damaged so that they are no DICOM.
        ImportError: without pydicom.
    """
    return _look(folder).series


def images_of_folder(folder: str) -> Sequence[DicomImage]:
    """The series of images whose files lie directly in a folder.

    Objects without pixels, segmentations and doses are left out, and so are scouts beside other series.

    Raises:
        Med3dError, ImportError: as of :func:`scan`.
    """
    return _look(folder).images


def series_in(folder: str) -> list[str]:
    """Paths of :func:`images_of_folder`; a folder that cannot be read is its own, to be told of when it is read."""
    try:
        return [image.path for image in images_of_folder(folder)]
    except (ImportError, OSError, Med3dError):
        return [folder]


def series_path(path: str) -> str:
    """The one path that stands for the series of a DICOM file: its folder, or its first file beside other series.

    What is no DICOM file, or cannot be read, stands for itself.
    """
    image = _image_of(path) if not os.path.isdir(path) else None
    return image.path if image else path


def name_series(path: str) -> str:
    """What the series of a file is called in outputs, ``series_3``, see :class:`DicomImage`."""
    image = _image_of(path)
    return image.name if image else os.path.splitext(os.path.basename(path))[0]


def patient_of(path: str) -> str:
    """What tells the patient of a series: its PatientID, or the UID of its study; "" where nothing does.

    Args:
        path: of its folder or of one of its files.
    """
    try:
        image = images_of_folder(path)[0] if os.path.isdir(path) and is_series(path) else _image_of(path)
    except (ImportError, IndexError, OSError, Med3dError):  # told when it is read
        return ""
    header: Mapping[str, Any] = image.header if image else {}
    study = header.get("StudyInstanceUID")
    return str(header.get("PatientID") or "").strip() or (f"study {study}" if study else "")


def series_files(path: str) -> list[str]:
    """Paths of the files of an image, sorted: of a file's series, or of a folder's images."""
    if not os.path.isdir(path):
        return [one.path for one in _series_of(path)[1]]
    return sorted(one.path for image in images_of_folder(path) for one in image.files)


def segment_names(path: str) -> dict[int, str]:
    """Labels of the segments of a DICOM segmentation by number, from its header; none of anything else.

    Args:
        path: of the file, or of the folder that it is alone in.
    """
    files = list(dicom_files(path))[:1] if os.path.isdir(path) else [path] * is_dicom_file(path)
    try:
        _, found = _series_of(files[0]) if files else ("", [])
    except (ImportError, OSError, Med3dError):  # told when it is read
        return {}
    header: Mapping[str, Any] = next((one.header for one in found if one.path == files[0]), {})
    return {
        int(each.SegmentNumber): str(each.get("SegmentLabel") or f"class {each.SegmentNumber}")
        for each in header.get("SegmentSequence") or ()
    }


def chosen_files(path: str) -> Sequence[DicomFile]:
    """The files of the one series that a path stands for.

    Args:
        path: of a folder, or of a file of one of several series in it.

    Raises:
        Med3dError: if there are several or none.
        ImportError: without pydicom.
    """
    if not os.path.isdir(path):
        _, files = _series_of(path)
        if not any(one.is_image for one in files):
            others = sorted({str(one.header["Modality"]) for one in files})
            raise Med3dError(f"{path}: found no image, but {', '.join(others)}; expected a file of a series of images")
        return [one for one in files if one.is_image]
    images = images_of_folder(path)
    if len(images) == 1:
        return images[0].files
    named = "; ".join(_describe(uid, files) for uid, files in scan(path).items())
    if not images:
        raise Med3dError(f"{path}: found no DICOM series of images{f', but {named}' * bool(named)}; expected one")
    named = "; ".join(_describe(image.uid, image.files) for image in images)
    expected = f"expected one a folder, or the path of a file of the one that is meant, such as {images[0].path}"
    raise Med3dError(f"{path}: found {len(images)} DICOM series: {named}; {expected}")


def _look(folder: str) -> _Folder:
    """What is in a folder, which a run asks for many times; names, sizes and times tell of changes."""
    states = []
    for entry in sorted(os.scandir(folder or os.curdir), key=lambda entry: entry.name):
        if not entry.name.startswith(".") and not entry.is_dir():
            lost = entry.is_symlink() and not os.path.exists(entry.path)
            state = None if lost else entry.stat()
            states.append((entry.path, state.st_size if state else -1, state.st_mtime_ns if state else 0))
    return _read(folder, tuple(states))


@lru_cache(maxsize=64)
def _read(folder: str, states: tuple[tuple[str, int, int], ...]) -> _Folder:
    import pydicom  # an extra

    series: dict[str, list[DicomFile]] = {}
    lost: list[str] = []
    for path, size, _ in states:
        if size <= 0 or not is_dicom_file(path):
            suffix = os.path.splitext(path)[1].lower()
            nothing = size <= 0 and (suffix == "" or suffix[1:].isdigit())  # as of a name that is a UID
            lost += [path] if suffix in SUFFIXES or nothing else []
            continue
        try:
            whole = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS), force=True)
            header = {name: whole.get(name) for name in _TAGS}
        except Exception as error:  # whatever a damaged file makes pydicom raise
            found = f"an unreadable header ({type(error).__name__}: {error})"
            raise Med3dError(f"{path}: found {found}; expected a whole DICOM file") from error
        if DIRECTORY in (header["SOPClassUID"], whole.file_meta.get("MediaStorageSOPClassUID")):
            continue
        if not header["SeriesInstanceUID"]:
            raise Med3dError(f"{path}: found no SeriesInstanceUID in its header; expected a whole DICOM file")
        series.setdefault(str(header["SeriesInstanceUID"]), []).append(DicomFile(path, header))
    if series and lost:  # a slice less at an end is nothing that positions tell
        found = "an empty file, a broken link, or no DICOM in it"
        raise Med3dError(f"{lost[0]}: found {found}; expected a whole DICOM file, or none of that name")
    return _Folder(series, _images(folder, series))


def _images(folder: str, series: Mapping[str, Sequence[DicomFile]]) -> list[DicomImage]:
    """The series of a folder that may be volumes: of images, and no scouts if there are others."""
    kept = {uid: images for uid, files in series.items() if (images := [one for one in files if one.is_image])}
    kept = {uid: files for uid, files in kept.items() if not all(one.is_scout for one in files)} or kept
    numbers = [files[0].header["SeriesNumber"] for files in kept.values()]
    found = []
    for uid, files in kept.items():
        number = files[0].header["SeriesNumber"]
        name = f"series_{number if number is not None and numbers.count(number) == 1 else uid}"
        found.append(DicomImage(folder if len(kept) == 1 else files[0].path, uid, name, files))
    return found


def _image_of(path: str) -> DicomImage | None:
    """The series of images that a file is of; None where there is none, or it cannot be read."""
    try:
        if not is_dicom_file(path):
            return None
        uid, _ = _series_of(path)
        return next((image for image in images_of_folder(os.path.dirname(path)) if image.uid == uid), None)
    except (ImportError, OSError, Med3dError):  # told when it is read
        return None


def _series_of(path: str) -> tuple[str, Sequence[DicomFile]]:
    """UID and files of the series that a file is of."""
    folder, name = os.path.split(path)
    for uid, files in scan(folder).items():
        if any(os.path.basename(one.path) == name for one in files):
            return uid, files
    raise Med3dError(f"{path}: found a DICOM file of no series; expected one of an image")


def _describe(uid: str, files: Sequence[DicomFile]) -> str:
    header = files[0].header
    words = [str(header[name] or "") for name in ("Modality", "SeriesNumber", "SeriesDescription")]
    return f"{uid} ({', '.join([*filter(None, words), f'{len(files)} files'])})"
