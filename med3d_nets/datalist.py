"""Checked MONAI data lists from MedicalNet's text lists, Decathlon ``dataset.json`` files, folders and single images.

Every volume is read once before the work begins, so that a bad file stops a run at its start and not hours into it. All
problems that are found come in one :class:`~med3d_nets.errors.Med3dError`, one a line.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from med3d_nets.checks import check_cases, identity, reason
from med3d_nets.errors import Med3dError
from med3d_nets.folds import check_groups, divide, fold_problems, hold_out, sort_cases
from med3d_nets.list_files import IMAGE_SUFFIXES, find_path, images_in, no_folder, raise_for, read_rows

__all__ = [
    "check_cases",
    "common_folder",
    "load_cases",
    "load_datalist",
    "load_evaluation_cases",
    "load_images",
    "read_img_list",
]

Path: TypeAlias = str | os.PathLike[str]
Cases: TypeAlias = list[dict[str, str]]

_FORMS = {1: ["image"], 2: ["image", "label"]}
_OTHERS = "a .json or a NIfTI file"
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

    Without a ``val_list``, the validation cases are the labelled "validation" section of a Decathlon json where it has
    one, else a share of the cases, at least one, drawn from the sorted cases by ``seed``. With ``folds``, they are one
    part of ``img_list``, and ``val_list`` is left for a test. Cases that share a label, or a patient, stay together.

    Args:
        data_root: folder that the paths in a text list are relative to ("": the working directory).
        img_list: text list (``image label`` a line) or Decathlon ``dataset.json``; absolute, or relative to
            ``data_root``, else to the working directory.
        val_list: such a list of the validation cases; "" or None where there is none.
        n_seg_classes: number of classes with the background; labels are whole numbers below it.
        in_channels: 1 for images of ``(x, y, z)`` or ``(x, y, z, 1)``, else images are ``(x, y, z, in_channels)``.
        val_fraction: share of the cases, or of the patients, to hold out.
        seed: of the draw.
        folds: number of parts that ``img_list`` is divided into; 0: none.
        fold: the part for validation, from 0.
        patient_pattern: see :func:`~med3d_nets.folds.name_patients`; "": patients are not known.
        num_workers: threads that read files, each with one volume in memory (0: up to four).

    Returns:
        The keys "training", "validation" and "planning", each with items ``{"image": path, "label": path}`` of absolute
        paths. Plans may look at the cases of the last: all of ``img_list`` with ``folds``, so that the folds share one
        plan, else the training cases.

    Raises:
        Med3dError: with every problem found.
    """
    _check_options(n_seg_classes, in_channels, val_fraction, fold_problems(folds, fold, patient_pattern, choose=True))
    problems: list[str] = []
    training = _read_list("img_list", img_list, data_root, ["training"], problems)
    validation: Cases = []
    if val_list and not folds:
        validation = _read_list("val_list", val_list, data_root, ["validation", "training"], problems)
    elif not folds and _has_validation(img_list, data_root):
        validation = _read_list("img_list", img_list, data_root, ["validation"], problems)
    before = len(problems)
    groups = check_groups(training, validation, img_list, data_root, folds, patient_pattern, problems)
    if len(problems) > before:  # at once: the files take longer to check than this to mend
        raise_for(problems)
    for cases in (training, validation):
        problems += check_cases(cases, n_seg_classes, in_channels, num_workers)
    known = {identity(case) for case in training}
    both = dict.fromkeys(case["image"] for case in validation if identity(case) in known)
    problems += [f"{path}: found in training and in validation; expected in one of them" for path in both]
    raise_for(problems)
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
    folds: int = 0,
    fold: int = -1,
    seed: int = 1,
    patient_pattern: str = "",
    num_workers: int = 0,
) -> Cases:
    """Labelled cases to evaluate, whose files have been read and checked: ``val_list``, or what a fold has not seen.

    The arguments, items and errors are those of :func:`load_datalist`. With a ``fold``, the cases are those that its
    training held out of ``img_list``. With ``folds`` alone, for all networks together, they are those of ``val_list``;
    with a ``patient_pattern`` too, none of its patients may be in ``img_list``.
    """
    _check_options(n_seg_classes, in_channels, problems=fold_problems(folds, fold, patient_pattern))
    problems: list[str] = []
    divided: Cases = []
    if folds and (fold >= 0 or patient_pattern):
        divided = _read_list("img_list", img_list, data_root, ["training"], problems)
    held_out = folds and fold >= 0
    cases = [] if held_out else _read_list("val_list", val_list, data_root, ["validation", "training"], problems)
    before = len(problems)
    groups = check_groups(divided, cases, img_list, data_root, folds, patient_pattern, problems)
    if held_out or len(problems) > before:
        raise_for(problems)
    if held_out:
        cases = divide(groups, folds, seed)[fold]
    problems += check_cases(cases, n_seg_classes, in_channels, num_workers)
    raise_for(problems)
    return cases


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
    ``section`` is that of a Decathlon json.
    """
    _check_options(2 if n_seg_classes is None else n_seg_classes, in_channels)
    problems: list[str] = []
    cases = _read_list("img_list", img_list, data_root, [section], problems)
    problems += check_cases(cases, n_seg_classes, in_channels, num_workers)
    raise_for(problems)
    return cases


def load_images(
    source: Path | Sequence[Path], data_root: Path = "", in_channels: int = 1, *, num_workers: int = 0
) -> Cases:
    """Images for inference, read and checked; labels that a list may name are left alone.

    Args:
        source: a NIfTI file, a folder with such files directly in it, a text list (``image`` or ``image label`` a
            line), a Decathlon ``dataset.json`` (its "test" section, else "training") or a sequence of NIfTI files.
            Relative paths are looked for in ``data_root``, then in the working directory.
        data_root, in_channels, num_workers: as for :func:`load_datalist`.

    Returns:
        Items ``{"image": path}`` of absolute paths.

    Raises:
        Med3dError: with every problem found.
    """
    _check_options(2, in_channels)
    problems: list[str] = []
    if not isinstance(source, (str, os.PathLike)):
        images = [path for item in source if (path := find_path("source", item, data_root, problems))]
        if not source:
            problems.append("source: found an empty list; expected at least one image")
    elif (found := find_path("source", source, data_root, problems)) is None:
        images = []
    elif os.path.isdir(found):
        images = images_in(found, problems)
    elif found.lower().endswith(IMAGE_SUFFIXES):
        images = [found]
    else:
        listed = _read_list("source", found, data_root, ["test", "training"], problems, labelled=False)
        images = [case["image"] for case in listed]
    cases = [{"image": path} for path in images]
    problems += check_cases(cases, in_channels=in_channels, num_workers=num_workers)
    raise_for(problems)
    return cases


def common_folder(cases: Iterable[Mapping[str, str]], key: str = "image") -> str:
    """The deepest folder that holds every case's file, as an absolute path.

    Below it, outputs of files of the same name in different folders do not collide.

    Raises:
        Med3dError: there are no cases, or no one folder holds them (two drives of Windows).
    """
    folders = {os.path.dirname(os.path.abspath(case[key])) for case in cases}
    try:
        return os.path.commonpath(folders)
    except ValueError as error:
        raise Med3dError(f"found {len(folders)} folders ({error}); expected at least one, all on one drive") from error


def read_img_list(path: Path, fields: Sequence[int] = (2,)) -> list[list[str]]:
    """The paths on each line of a text list, as they are written there; see :func:`~med3d_nets.list_files.read_rows`.

    Args:
        path: of the list.
        fields: numbers of paths that a line may have: 1, 2 or both.

    Raises:
        Med3dError: the file cannot be read, or lines have another number of fields or an open quote.
    """
    problems: list[str] = []
    rows = read_rows(os.fspath(path), [_FORMS[count] for count in fields], problems, _OTHERS)
    raise_for(problems)
    return [row for _, row in rows]


def _read_list(
    option: str, path: Path, data_root: Path, sections: Sequence[str], problems: list[str], labelled: bool = True
) -> Cases:
    """Cases of a text list, or of the first section that a Decathlon json has, with absolute paths."""
    found = find_path(option, path, data_root, problems)
    if found is None:
        return []
    before = len(problems)
    keys = ["image", "label"] if labelled else ["image"]
    root = os.path.abspath(data_root)
    if found.lower().endswith(".json"):
        cases = _decathlon_cases(found, sections, root if os.fspath(data_root) else "", keys, problems)
    else:
        forms = [_FORMS[count] for count in range(len(keys), 3)]
        rows = [row for _, row in read_rows(found, forms, problems, _OTHERS)]
        if no_folder(root, [field for row in rows for field in row], problems):
            rows = []
        cases = [{k: os.path.abspath(os.path.join(root, v)) for k, v in zip(keys, row, strict=False)} for row in rows]
    if not cases and len(problems) == before:
        problems.append(f"{found}: found no cases; expected at least one")
    return cases


def _read_json(path: str, problems: list[str]) -> dict[str, Any] | None:
    # MONAI's own reader names neither the file nor the item that is wrong.
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path}: found no json ({reason(error)}); expected a Decathlon dataset.json")
        return None
    if isinstance(content, dict):
        return content
    problems.append(f"{path}: found a {type(content).__name__} at its top; expected an object with 'training'")
    return None


def _decathlon_cases(path: str, sections: Sequence[str], root: str, keys: Sequence[str], problems: list[str]) -> Cases:
    content = _read_json(path, problems)
    if content is None:
        return []
    section = next((name for name in sections if content.get(name)), sections[-1])
    items = content.get(section)
    if not isinstance(items, list):
        has = ", ".join(key for key, value in content.items() if isinstance(value, list)) or "no list"
        problems.append(f"{path}: found {has}; expected a list '{section}'")
        return []
    cases = []
    for number, item in enumerate(items):
        case = {"image": item} if isinstance(item, str) else item
        if isinstance(case, dict) and all(isinstance(case.get(key), str) and case[key] for key in keys):
            places = {key: os.path.join(os.path.dirname(path), case[key]) for key in keys}
            moved = {key for key in keys if root and not os.path.exists(places[key])}
            cases.append({k: os.path.abspath(os.path.join(root, case[k]) if k in moved else places[k]) for k in keys})
        else:
            wanted = ", ".join(f'"{key}": "path"' for key in keys)
            problems.append(f"{path}, {section}[{number}]: found {json.dumps(item)[:200]}; expected {{{wanted}}}")
    return cases


def _has_validation(path: Path, data_root: Path) -> bool:
    found = find_path("", path, data_root, [])
    content = _read_json(found, []) if found and found.lower().endswith(".json") else None
    items = (content or {}).get("validation")
    return isinstance(items, list) and any(isinstance(item, dict) and item.get("label") for item in items)


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
