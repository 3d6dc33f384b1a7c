"""Folders of DICOM files as archives give them: series anywhere below, and the label maps that belong to them.

A label map is a DICOM segmentation that refers to the series, wherever below the folder it lies, or a file of another
format: the only one among the slices, or one beside their folder with its name, such as ``scan_1.nii.gz`` or
``scan_1_seg.nii.gz`` beside ``scan_1``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from med3d_nets.dicom import images_of_folder, is_series, scan, series_in
from med3d_nets.errors import Med3dError
from med3d_nets.folds import name_some
from med3d_nets.formats import SUFFIXES
from med3d_nets.list_files import volumes_in
from med3d_nets.nnunet import Row
from med3d_nets.volume_files import Problem

__all__ = ["images_in", "is_dicom_tree", "read_tree"]

ENDINGS = ("_seg", "_label", "_labels", "_mask")
"""What may stand between the name of a series' folder and the suffix of its label map."""

_log = logging.getLogger(__name__)


def is_dicom_tree(folder: str) -> bool:
    """Whether there is a DICOM file in a folder or below."""
    return os.path.isdir(folder) and next(_folders(folder), None) is not None


def read_tree(folder: str, problems: list[str]) -> list[Row]:
    """The series in a folder and below it that have a label map, with it and their ``PatientID``.

    Args:
        folder: absolute path.
        problems: added to where no series has a label map, for several of one series, and for segmentations of series
            that are not there.
    """
    images: dict[str, Mapping[str, Any]] = {}
    segmentations: dict[str, list[str]] = {}
    for place in _folders(folder):
        try:
            images |= images_of_folder(place)
            for path, uid in _segmentations(place):
                segmentations.setdefault(uid, []).append(path)
        except ImportError as error:
            packages = "pydicom, by pip install 'med3d-nets[formats]'"
            problems.append(f"{place}: found DICOM files, which need another package; expected {packages} ({error})")
            return []
        except Med3dError as error:
            problems.append(str(error))
    return _pair(folder, images, segmentations, problems)


def images_in(folder: str, problems: list[str]) -> list[str]:
    """Paths of the images in a folder: volumes directly in it, and DICOM series there and anywhere below.

    Args:
        folder: absolute path.
        problems: one is added if there is none.
    """
    series = [path for place in _folders(folder) for path in series_in(place)]
    labels = {label for path in series for label in _label_beside(path, ENDINGS)}
    files = [path for path in volumes_in(folder) if path.lower().endswith(SUFFIXES) and not os.path.isdir(path)]
    if not series and not files:
        wanted = f"at least one {', '.join(SUFFIXES)} file or DICOM series in it"
        problems.append(f"{folder}: found no images; expected {wanted}")
    return sorted({*series, *files} - labels)


def _label_beside(series: str, endings: Sequence[str] = ("", *ENDINGS)) -> list[str]:
    """Files that are label maps of a series by their place or name.

    Args:
        series: path of its folder; a series that shares its folder with others has none.
        endings: see :data:`ENDINGS`; "" for a file that may also be an image.
    """
    if not os.path.isdir(series):
        return []
    inside = [os.path.join(series, name) for name in sorted(os.listdir(series)) if _is_volume(name)]
    return inside + [
        path for ending in endings for suffix in SUFFIXES if os.path.isfile(path := f"{series}{ending}{suffix}")
    ]


def _folders(folder: str) -> Iterator[str]:
    """The folder and those below it that have DICOM files directly in them, sorted; hidden ones are left alone."""
    for place, below, _ in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if is_series(place):
            yield place


def _segmentations(folder: str) -> Iterator[tuple[str, str]]:
    """DICOM segmentations directly in a folder, and the UID of the series that each refers to."""
    for one in (one for files in scan(folder).values() for one in files):
        if one.header["Modality"] == "SEG":
            reference = (one.header["ReferencedSeriesSequence"] or [{}])[0]
            yield one.path, str(reference.get("SeriesInstanceUID", ""))


def _pair(
    folder: str,
    images: Mapping[str, Mapping[str, Any]],
    segmentations: Mapping[str, Sequence[str]],
    problems: list[str],
) -> list[Row]:
    """Rows of the series with a label map."""
    rows: list[Row] = []
    for path, header in images.items():
        labels = [*segmentations.get(str(header["SeriesInstanceUID"]), ()), *_label_beside(path)]
        if len(labels) > 1:
            expected = "expected one: name the one that is meant in a CSV"
            problems.append(f"{path}: found {len(labels)} label maps, {name_some(labels)}; {expected}")
        elif labels:
            patient = str(header["PatientID"] or "")
            rows.append((f"{folder}, series {path}", {"image": path, "label": labels[0], "patient": patient}))
    known = {str(header["SeriesInstanceUID"]) for header in images.values()}
    lost = [path for uid, paths in segmentations.items() if uid not in known for path in paths]
    if lost:
        found = f"a segmentation of a series that is not in {folder}{_more(lost)}"
        problems.append(f"{lost[0]}: found {found}; expected its series there")
    if not rows and not problems:
        example = f"{next(iter(images), 'scan')}_seg.nii.gz"
        wanted = f"DICOM segmentations that refer to them, or files such as {example}"
        text = f"{folder}: found {len(images)} DICOM series without a label map; expected {wanted}"
        problems.append(Problem(text, "unlabelled"))
    if rows and len(rows) < len(images):
        _log.info("left out %d of %d DICOM series, which have no label map", len(images) - len(rows), len(images))
    return _with_patients(rows)


def _with_patients(rows: list[Row]) -> list[Row]:
    """Rows without the names of their patients, where these have been made the same or taken out."""
    names = [case["patient"] for _, case in rows]
    if all(names) and (len(rows) == 1 or len(set(names)) > 1):
        return rows
    if any(names):
        found = f"{len(set(names))} in {len(rows)} series"
        _log.warning("patients are taken for unknown, as their PatientID tells too little: found %s", found)
    return [(where, {key: value for key, value in case.items() if key != "patient"}) for where, case in rows]


def _more(paths: Sequence[str]) -> str:
    return f", and {len(paths) - 1} more" * (len(paths) > 1)


def _is_volume(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")
