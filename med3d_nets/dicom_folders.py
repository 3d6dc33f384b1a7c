"""Folders of DICOM files as archives give them: series anywhere below, and the label maps that belong to them.

A label map is a DICOM segmentation that refers to the series, wherever below the folder it lies, or a file of another
format: the only one among the slices, or one beside their folder with its name, such as ``scan_1.nii.gz`` or
``scan_1_seg.nii.gz`` beside ``scan_1``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence

from med3d_nets.dicom import MANUFACTURER, DicomImage, images_of_folder, is_series, scan
from med3d_nets.errors import Med3dError
from med3d_nets.folds import name_some
from med3d_nets.formats import SUFFIXES
from med3d_nets.list_files import volumes_in
from med3d_nets.nnunet import Row
from med3d_nets.volume_files import Problem

__all__ = ["images_in", "is_dicom_tree", "read_tree"]

ENDINGS = ("_seg", "_label", "_labels", "_mask")
"""What may stand between the name of a series' folder and the suffix of its label map."""
PREDICTIONS = "predictions.json"
"""File in a folder of label maps that :mod:`~med3d_nets.prediction_store` wrote."""

_log = logging.getLogger(__name__)


def is_dicom_tree(folder: str) -> bool:
    """Whether there is a DICOM file in a folder or below."""
    return os.path.isdir(folder) and next(_folders(folder, []), None) is not None


def read_tree(folder: str, problems: list[str]) -> list[Row]:
    """The series in a folder and below it that have a label map, with it.

    Args:
        folder: absolute path.
        problems: added to where no series has a label map, for several of one series, for segmentations of series that
            are not there, and for series in two folders.
    """
    images: list[DicomImage] = []
    segmentations: dict[str, list[str]] = {}
    for place in _folders(folder, problems):
        try:
            images += images_of_folder(place)
            for path, uid in _segmentations(place):
                segmentations.setdefault(uid, []).append(path)
        except ImportError as error:
            packages = "pydicom, by pip install 'med3d-nets[formats]'"
            problems.append(f"{place}: found DICOM files, which need another package; expected {packages} ({error})")
            return []
        except (OSError, Med3dError) as error:
            problems.append(str(error))
    problems += _divided(images)
    return _pair(folder, images, segmentations, problems)


def images_in(folder: str, problems: list[str]) -> list[str]:
    """Paths of the images in a folder: volumes directly in it, and DICOM series there and anywhere below.

    Scouts and pictures of screens are left out where there are other series, and so are label maps of series.

    Args:
        folder: absolute path.
        problems: one is added if there is none.
    """
    unread: list[str] = []
    images: list[DicomImage] = []
    bad: list[str] = []
    for place in _folders(folder, unread):
        try:
            images += images_of_folder(place)
        except (ImportError, OSError, Med3dError):
            bad.append(place)  # told when it is read
    placed = [image for image in images if not image.is_scout]
    if scouts := [image.path for image in images if image.is_scout and placed]:
        _log.info("left out %d scouts, or pictures of screens: %s", len(scouts), name_some(scouts))
    for problem in unread + _divided(images):
        _log.warning("%s", problem)
    series = [image.path for image in placed or images]
    labels = {label for path in series for label in _label_beside(path) if _named_as_label(label)}
    files = [path for path in volumes_in(folder) if path.lower().endswith(SUFFIXES) and not os.path.isdir(path)]
    if left := sorted(labels.intersection(files)):
        _log.info("left out %d label maps of DICOM series: %s", len(left), name_some(left))
    if not series and not bad and not files:
        wanted = f"at least one {', '.join(SUFFIXES)} file or DICOM series in it"
        problems.append(f"{folder}: found no images; expected {wanted}")
    return sorted({*series, *bad, *files} - labels)


def _label_beside(series: str) -> list[str]:
    """Files that are label maps of a series by their place or name; predictions are none.

    Args:
        series: path of its folder; a series that shares its folder with others has none.
    """
    if not os.path.isdir(series):
        return []
    inside = [os.path.join(series, name) for name in sorted(os.listdir(series)) if _is_volume(name)]
    beside = [f"{series}{ending}{suffix}" for ending in ("", *ENDINGS) for suffix in SUFFIXES]
    found = [*inside, *filter(os.path.isfile, beside)]
    return [path for path in found if not os.path.exists(os.path.join(os.path.dirname(path), PREDICTIONS))]


def _named_as_label(path: str) -> bool:
    stem = next(path[: -len(end)] for end in sorted(SUFFIXES, key=len, reverse=True) if path.lower().endswith(end))
    return stem.lower().endswith(ENDINGS)


def _folders(folder: str, problems: list[str]) -> Iterator[str]:
    """The folder and those below it that have DICOM files directly in them, sorted; hidden ones are left alone.

    Links are followed, each folder is looked at once, and those that cannot be are added to the problems.
    """

    def tell(error: OSError) -> None:
        problems.append(
            f"{error.filename}: found a folder that cannot be read ({error.strerror}); expected one that can"
        )

    seen: set[str] = set()
    for place, below, _ in os.walk(folder, onerror=tell, followlinks=True):
        real = os.path.realpath(place)
        below[:] = [] if real in seen else sorted(name for name in below if not name.startswith("."))
        if real not in seen and _has_dicom(place):
            yield place
        seen.add(real)


def _has_dicom(folder: str) -> bool:
    try:
        return is_series(folder)
    except OSError:  # of a file: told when it is read
        return True


def _segmentations(folder: str) -> Iterator[tuple[str, str]]:
    """DICOM segmentations directly in a folder that people drew, and the UID of the series that each refers to."""
    for one in (one for files in scan(folder).values() for one in files):
        if one.header["Modality"] != "SEG":
            continue
        if one.header["Manufacturer"] == MANUFACTURER:
            _log.warning("%s: a prediction, which is left out: learning from it needs a list that names it", one.path)
            continue
        reference = (one.header["ReferencedSeriesSequence"] or [{}])[0]
        yield one.path, str(reference.get("SeriesInstanceUID", ""))


def _divided(images: Sequence[DicomImage]) -> list[str]:
    """A line for each series that lies in two folders, as parts of it or twice."""
    first: dict[str, str] = {}
    problems = []
    for image in images:
        known = first.setdefault(image.uid, image.path)
        if known != image.path:
            problems.append(f"{image.path}: found the series {image.uid} of {known} too; expected it in one folder")
    return problems


def _pair(
    folder: str, images: Sequence[DicomImage], segmentations: Mapping[str, Sequence[str]], problems: list[str]
) -> list[Row]:
    """Rows of the series with a label map."""
    rows: list[Row] = []
    for image in images:
        labels = [*segmentations.get(image.uid, ()), *_label_beside(image.path)]
        if len(labels) > 1:
            expected = "expected one, of all segments: name the one that is meant in a CSV"
            problems.append(f"{image.path}: found {len(labels)} label maps, {name_some(labels)}; {expected}")
        elif labels:
            rows.append((f"{folder}, series {image.path}", {"image": image.path, "label": labels[0]}))
    known = {image.uid for image in images}
    lost = [path for uid, paths in segmentations.items() if uid not in known for path in paths]
    if lost:
        found = f"a segmentation of no series that is in {folder}{_more(lost)}"
        problems.append(f"{lost[0]}: found {found}; expected it to refer to one that is there")
    if not rows and not problems:
        alone = next((image.path for image in images if os.path.isdir(image.path)), "")
        example = f"{alone}_seg.nii.gz" if alone else "a CSV that names both"
        wanted = f"DICOM segmentations that refer to them, or {'files such as ' * bool(alone)}{example}"
        text = f"{folder}: found {len(images)} DICOM series without a label map; expected {wanted}"
        problems.append(Problem(text, "unlabelled"))
    if rows and len(rows) < len(images):
        _log.info("left out %d of %d DICOM series, which have no label map", len(images) - len(rows), len(images))
    return rows


def _more(paths: Sequence[str]) -> str:
    return f", and {len(paths) - 1} more" * (len(paths) > 1)


def _is_volume(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")
