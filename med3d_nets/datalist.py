"""Checked MONAI data lists from every kind of source that :mod:`~med3d_nets.sources` reads.

Every volume is read once before the work begins, so that a bad file stops a run at its start and not hours into it. All
problems that are found come in one :class:`~med3d_nets.errors.Med3dError`, one a line.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from monai.data.utils import create_file_basename

from med3d_nets.checks import check_cases, identity
from med3d_nets.dicom import is_dicom_file, name_series, series_path
from med3d_nets.dicom_folders import images_in
from med3d_nets.errors import Med3dError
from med3d_nets.folds import check_groups, divide, fold_problems, hold_out, known_patient, name_patients, sort_cases
from med3d_nets.formats import images_of, parts_of
from med3d_nets.list_files import find_path, raise_for, read_rows
from med3d_nets.sources import FORMS, OTHERS, Source, read_source

__all__ = [
    "check_cases",
    "common_folder",
    "first_files",
    "load_cases",
    "load_datalist",
    "load_evaluation_cases",
    "load_images",
    "output_names",
    "read_img_list",
]

Path: TypeAlias = str | os.PathLike[str]
Cases: TypeAlias = list[dict[str, Any]]

_log = logging.getLogger(__name__)


def load_datalist(
    data_root: Path,
    img_list: Path,
    val_list: Path | None = "",
    *,
    n_seg_classes: int,
    in_channels: int = 1,
    val_fraction: float = 0.2,
    seed: int = 1,
    folds: int = 0,
    fold: int = -1,
    patient_pattern: str = "",
    num_workers: int = 0,
) -> dict[str, Cases]:
    """Lists of training and validation cases whose files have been read and checked.

    Without a ``val_list``, the validation cases are those that ``img_list`` has for it, else a share of its cases, at
    least one, drawn from the sorted cases by ``seed``. With ``folds``, they are one part of ``img_list``, as it says or
    else drawn, and ``val_list`` is left for a test. Cases that share a label, or a patient, stay together.

    Args:
        data_root: folder that the paths in a text list are relative to ("": the working directory).
        img_list: source of cases as for :func:`~med3d_nets.sources.read_source`; absolute, or relative to
            ``data_root``, else to the working directory.
        val_list: such a source of the validation cases; "" or None where there is none.
        n_seg_classes: number of classes with the background; labels are whole numbers below it.
        in_channels: 1 for images of ``(x, y, z)`` or ``(x, y, z, 1)``, else images are ``(x, y, z, in_channels)``, or
            as many files of one channel.
        val_fraction: share of the cases, or of the patients, to hold out.
        seed: of the draw.
        folds: number of parts that ``img_list`` is divided into; 0: none.
        fold: the part for validation, from 0.
        patient_pattern: see :func:`~med3d_nets.folds.name_patients`; "": patients are not known, but for those that a
            source names.
        num_workers: threads that read files, each with one volume in memory (0: up to four).

    Returns:
        The keys "training", "validation" and "planning", each with items of :mod:`~med3d_nets.sources`. Plans may
        look at the cases of the last: all of ``img_list`` with ``folds``, so that the folds share one plan, else the
        training cases.

    Raises:
        Med3dError: with every problem found.
    """
    _check_options(n_seg_classes, in_channels, val_fraction, fold_problems(folds, fold, patient_pattern, choose=True))
    problems: list[str] = []
    source, training = _read_list("img_list", img_list, data_root, ["training"], problems, in_channels)
    validation = [] if folds else source.validation
    if val_list and not folds:
        _, validation = _read_list("val_list", val_list, data_root, ["validation", "training"], problems, in_channels)
    if source.channel_names:
        _log.info("channels of the images: %s", ", ".join(source.channel_names))
    before = len(problems)
    groups = check_groups(training, validation, img_list, data_root, folds, patient_pattern, problems)
    if len(problems) > before:  # at once: the files take longer to check than this to mend
        raise_for(problems)
    for cases in (training, validation):
        problems += check_cases(cases, n_seg_classes, in_channels, num_workers)
    known = {identity(case) for case in training}
    both = dict.fromkeys(images_of(case)[0] for case in validation if identity(case) in known)
    problems += [f"{path}: found in training and in validation; expected in one of them" for path in both]
    raise_for(problems)
    _note_patients([*training, *validation], data_root, patient_pattern, problems)
    if folds:
        _log.info("fold %d of %d of %s; val_list is left out, for a test", fold, folds, img_list)
        parts = divide(groups, folds, seed)
        others = [case for number, part in enumerate(parts) if number != fold for case in part]
        return {"training": sort_cases(others), "validation": parts[fold], "planning": sort_cases(training)}
    if not validation:
        training, validation = hold_out(groups, val_fraction, seed)
    return {"training": training, "validation": validation, "planning": training}


def load_evaluation_cases(
    data_root: Path,
    img_list: Path,
    val_list: Path,
    *,
    n_seg_classes: int,
    in_channels: int = 1,
    val_fraction: float = 0.2,
    folds: int = 0,
    fold: int = -1,
    seed: int = 1,
    patient_pattern: str = "",
    num_workers: int = 0,
) -> Cases:
    """Labelled cases to evaluate, whose files have been read and checked: ``val_list``, or what a fold has not seen.

    The arguments, items and errors are those of :func:`load_datalist`. Of a source with several parts, the cases are
    those for a test that have labels, else those for validation. Without a ``val_list``, they are such cases of
    ``img_list``, else those that a training on it holds out. With a ``fold``, they are those that its training held
    out of ``img_list``. With ``folds`` alone, for all networks together, they are those of ``val_list``; where
    patients are known, by a ``patient_pattern`` or by the list, none of them may be in ``img_list``.
    """
    fold_errors = fold_problems(folds, fold, patient_pattern)
    _check_options(n_seg_classes, in_channels, val_fraction, fold_errors)
    problems: list[str] = []
    listed = val_list or read_source(img_list, data_root, []).evaluation
    held_out = fold >= 0 if folds else not listed
    cases: Cases = []
    divided: Cases = []
    if not held_out:
        given = ("val_list", val_list) if val_list or not listed else ("img_list", img_list)
        parts = ["test", "validation", "training"]
        _, cases = _read_list(*given, data_root, parts, problems, in_channels)
    if held_out or (folds and (patient_pattern or any(map(known_patient, cases)))):
        _, divided = _read_list("img_list", img_list, data_root, ["training"], problems, in_channels)
    before = len(problems)
    groups = check_groups(divided, cases, img_list, data_root, folds, patient_pattern, problems)
    if held_out or len(problems) > before:
        raise_for(problems)
    if held_out:
        cases = divide(groups, folds, seed)[fold] if folds else hold_out(groups, val_fraction, seed)[1]
    _note_patients(cases, data_root, patient_pattern, problems)
    problems += check_cases(cases, n_seg_classes, in_channels, num_workers)
    raise_for(problems)
    return cases


def _note_patients(cases: Cases, data_root: Path, pattern: str, problems: list[str]) -> None:
    """Add the "patient" that a pattern finds, for records and for intervals by patient."""
    if pattern:
        for case, name in zip(cases, name_patients(cases, data_root, pattern, problems), strict=True):
            case["patient"] = name


def load_cases(
    data_root: Path,
    img_list: Path,
    *,
    n_seg_classes: int | None,
    in_channels: int = 1,
    section: str = "training",
    num_workers: int = 0,
) -> Cases:
    """One list of labelled cases, in its order, whose files have been read and checked.

    The arguments, items and errors are those of :func:`load_datalist`; without ``n_seg_classes``, the labels tell;
    ``section`` is the part of the source, "training" or "validation".
    """
    _check_options(2 if n_seg_classes is None else n_seg_classes, in_channels)
    problems: list[str] = []
    _, cases = _read_list("img_list", img_list, data_root, [section], problems, in_channels)
    problems += check_cases(cases, n_seg_classes, in_channels, num_workers)
    raise_for(problems)
    return cases


def load_images(
    source: Path | Sequence[Path],
    data_root: Path = "",
    in_channels: int = 1,
    *,
    num_workers: int = 0,
    check: bool = True,
) -> Cases:
    """Images for inference, read and checked; labels that a list may name are left alone.

    Args:
        source: a volume (a file, or the folder of a DICOM series), a folder with volumes directly in it, of which files
            are channels if ``in_channels`` is above 1 and they are named as nnU-Net's, a sequence of volumes and
            folders, or a source as for :func:`~med3d_nets.sources.read_source`: its part for a test, else that for
            training, or for validation. Relative paths are looked for in ``data_root``, then in the working directory.
        data_root, in_channels, num_workers: as for :func:`load_datalist`.
        check: whether to read the images; otherwise, they are listed alone.

    Returns:
        Items ``{"image": path, or paths of the channels}`` of absolute paths.

    Raises:
        Med3dError: with every problem found.
    """
    _check_options(2, in_channels)
    problems: list[str] = []
    if isinstance(source, (str, os.PathLike)):
        parts = ["test", "training", "validation"]
        _, listed = _read_list("source", source, data_root, parts, problems, in_channels, labelled=False)
        cases = [{"image": case["image"]} for case in listed]
    else:
        paths = [path for item in source if (path := find_path("source", item, data_root, problems))]
        images = [images_in(path, problems) if os.path.isdir(path) else [series_path(path)] for path in paths]
        cases = [{"image": image} for each in images for image in each]
        if not source:
            problems.append("source: found an empty list; expected at least one image")
    if check:
        problems += check_cases(cases, in_channels=in_channels, num_workers=num_workers)
    raise_for(problems)
    return cases


def common_folder(cases: Iterable[Mapping[str, Any]], key: str = "image") -> str:
    """The deepest folder that holds every case's volume, as an absolute path.

    Below it, outputs of files of the same name in different folders do not collide.

    Raises:
        Med3dError: there are no cases, or no one folder holds them (two drives of Windows).
    """
    folders = {os.path.dirname(os.path.abspath(images_of({"image": case[key]})[0])) for case in cases}
    try:
        return os.path.commonpath(folders)
    except ValueError as error:
        raise Med3dError(f"found {len(folders)} folders ({error}); expected at least one, all on one drive") from error


def first_files(cases: Iterable[Mapping[str, Any]]) -> Cases:
    """The cases, each with one file that it is known by.

    That is the file of its first channel, of a series the first slice by name, of MetaImage the one with the voxels,
    since headers may be the same.
    """
    found = []
    for case in cases:
        image = images_of(case)[0]
        parts = parts_of(image) if os.path.exists(image) else []  # a volume in an array is no file
        found.append({**case, "image": next((part for part in parts if not part.lower().endswith(".mhd")), image)})
    return found


def output_names(cases: Iterable[Mapping[str, Any]], root: str) -> Cases:
    """Items with the path that the label map of each case is named after; of a DICOM series it is that of its folder,
    or beside other series its number (:func:`~med3d_nets.dicom.name_series`).

    Args:
        cases: items with an "image".
        root: folder below which the images' relative paths are kept.

    Raises:
        Med3dError: if two cases would get one label map.
    """
    named: dict[str, str] = {}
    problems = []
    for case in cases:
        image = images_of(case)[0]
        stem = create_file_basename("", _subject(image), "", root, separate_folder=False, makedirs=False)
        if stem in named:
            problems.append(f"{image}: found {named[stem]} too, whose output would have the same name; expected one")
        named[stem] = image
    raise_for(problems)
    return [{"image": _subject(image)} for image in named.values()]


def read_img_list(path: Path, fields: Sequence[int] = (2,)) -> list[list[str]]:
    """The paths on each line of a text list, as they are written there; see :func:`~med3d_nets.list_files.read_rows`.

    Args:
        path: of the list.
        fields: numbers of paths that a line may have: 1, 2 or both.

    Raises:
        Med3dError: the file cannot be read, or lines have another number of fields or an open quote.
    """
    problems: list[str] = []
    rows = read_rows(os.fspath(path), [FORMS[count - 1] for count in fields], problems, OTHERS)
    raise_for(problems)
    return [row for _, row in rows]


def _read_list(
    option: str,
    path: Path,
    data_root: Path,
    parts: Sequence[str],
    problems: list[str],
    in_channels: int,
    labelled: bool = True,
) -> tuple[Source, Cases]:
    """A source, and the cases of the first of these parts that it has, with labels if these are asked for.

    Having none of them is a problem.
    """
    before = len(problems)
    source = read_source(path, data_root, problems, labelled, in_channels=in_channels, option=option)
    several = (_labelled(source, part) if labelled else getattr(source, part) for part in parts)
    cases: Cases = next((found for found in several if found), [])
    if not cases and len(problems) == before:
        problems.append(f"{find_path(option, path, data_root, [])}: found no cases; expected at least one")
    return source, cases


def _labelled(source: Source, part: str) -> Cases:
    """The cases of a part that have a label, as some for a test may."""
    return [case for case in getattr(source, part) if "label" in case]


def _subject(image: str) -> str:
    # MONAI takes what follows the last point of a name for a suffix, as in a folder named after a UID.
    if os.path.isdir(image):
        return f"{image}.dcm"
    return os.path.join(os.path.dirname(image), f"{name_series(image)}.dcm") if is_dicom_file(image) else image


def _check_options(
    n_seg_classes: int, in_channels: int, val_fraction: float = 0.5, problems: Sequence[str] = ()
) -> None:
    problems = list(problems)
    for name, value, least in (("n_seg_classes", n_seg_classes, 2), ("in_channels", in_channels, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            problems.append(f"{name}: found {value!r}; expected a whole number of at least {least}")
    if not isinstance(val_fraction, (int, float)) or not 0 < val_fraction < 1:
        problems.append(f"val_fraction: found {val_fraction!r}; expected a number between 0 and 1")
    raise_for(problems)
