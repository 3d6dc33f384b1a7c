"""Cross-validation: cases divided into folds by patient, and the folder that each fold's network is kept in.

MONAI's ``CrossValidation`` builds a data set for each fold from a list that is divided already, and its
``partition_dataset`` divides cases one by one, so that one patient's could lie on both sides. Here its shuffle is used
on groups of cases that must stay together.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from monai.data.utils import partition_dataset
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from med3d_nets.errors import Med3dError
from med3d_nets.formats import images_of

__all__ = [
    "check_groups",
    "connect",
    "divide",
    "fold_folder",
    "fold_folders",
    "fold_numbers",
    "fold_problems",
    "group_cases",
    "hold_out",
    "known_patient",
    "name_patients",
    "name_some",
    "relative_name",
    "shared_patients",
    "sort_cases",
]

Cases: TypeAlias = list[dict[str, Any]]

RECORD = "fold.json"
"""File in a fold's folder, see :mod:`med3d_nets.fold_records`."""
SHOWN = 3
FILES = ("model.json", "model.pt")

_log = logging.getLogger(__name__)


def fold_problems(folds: Any, fold: Any, patient_pattern: Any = "", *, choose: bool = False) -> list[str]:
    """What is wrong with the options themselves, a problem a line.

    Args:
        folds: number of parts; 0: no cross-validation.
        fold: the part that is held out, from 0; -1: none is chosen.
        patient_pattern: see :func:`name_patients`.
        choose: whether one fold must be chosen, as in training.
    """
    problems = []
    if not _is_whole(folds) or folds < 0 or folds == 1:
        problems.append(f"folds: found {folds!r}; expected a whole number of at least 2, or 0 for none")
    elif not _is_whole(fold):
        problems.append(f"fold: found {fold!r}; expected a whole number")
    elif folds and choose and fold == -1:
        problems.append(f"--folds {folds} needs --fold, 0 to {folds - 1}: one training each")
    elif folds and not -1 <= fold < folds:
        problems.append(f"fold: found {fold}; expected 0 to {folds - 1}, with --folds {folds}")
    elif not folds and fold != -1:
        problems.append(f"fold: found {fold} without folds; expected their number too, such as --folds 5")
    if not isinstance(patient_pattern, str):
        hint = "a regular expression in double quotes within single ones"
        return [*problems, f"patient_pattern: found {patient_pattern!r}; expected {hint}"]
    try:
        re.compile(patient_pattern)
    except re.error as error:
        problems.append(f"patient_pattern: found {patient_pattern!r} ({error}); expected a regular expression")
    return problems


def name_patients(cases: Cases, data_root: str | os.PathLike[str], pattern: str, problems: list[str]) -> list[str]:
    """The patient of each case: as its source names it, else found in the path of its image, else that of its header.

    Args:
        cases: items with the path of an "image", or with those of its channels, of which the first counts.
        data_root: folder that the search leaves out of the paths below it, so that it may have any name.
        pattern: regular expression that is searched for; its first group is the name, or all that it matches where it
            has no group. Paths have slashes on every system. "": patients that neither a source nor a header names are
            "".
        problems: one is added if there are paths in which nothing is found.
    """
    search = re.compile(pattern)
    names, unknown = [], []
    for case in cases:
        if case.get("patient") or not pattern:
            names.append(known_patient(case))
            continue
        path = relative_name(case, data_root)
        match = search.search(path)
        name = match[1 if search.groups else 0] if match else None
        names.append(name or "")
        unknown += [] if name else [path]
    if unknown:
        where = f"{len(unknown)} of {len(cases)} paths, {name_some(unknown)}"
        problems.append(
            f"patient_pattern {pattern!r}: found nothing in {where}; expected a name in the path of each image"
        )
    return names


def known_patient(case: Mapping[str, Any]) -> str:
    """The patient of a case as its source names it, or its DICOM header, which anonymising may have emptied; or ""."""
    return str(case.get("patient") or case.get("dicom_patient") or "")


def group_cases(cases: Cases, data_root: str | os.PathLike[str], pattern: str, problems: list[str]) -> list[Cases]:
    """Cases that must stay together: those that share an image, a label or a patient.

    Args:
        cases: items with paths.
        data_root, pattern, problems: as for :func:`name_patients`.

    Returns:
        Groups whose order, and that of the cases in them, does not depend on the order given.
    """
    cases = sort_cases(cases)
    if not cases:
        return []
    patients = name_patients(cases, data_root, pattern, problems)
    keys = []
    for case, patient in zip(cases, patients, strict=True):
        paths = [*images_of(case), *([case["label"]] if "label" in case else [])]
        files = [("file", os.path.normcase(os.path.realpath(path))) for path in paths]
        keys.append([*files, *([("patient", patient)] if patient else [])])
    groups: dict[int, Cases] = {}
    for case, group in zip(cases, connect(keys), strict=True):
        groups.setdefault(group, []).append(case)
    if known := dict.fromkeys(filter(None, patients)):
        _log.info("%d cases of %d patients: %s", len(cases), len(known), name_some(known))
    return list(groups.values())


def connect(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """Number of the group of each item: those that share a key, directly or through others, are in one.

    Args:
        keys: those of each item, at least one item.
    """
    numbers: dict[Hashable, int] = {}
    edges = [(i, len(keys) + numbers.setdefault(key, len(numbers))) for i, own in enumerate(keys) for key in own]
    size = len(keys) + len(numbers)
    graph = coo_array((np.ones(len(edges)), np.reshape(edges, (-1, 2)).T), shape=(size, size))
    return connected_components(graph, directed=False)[1][: len(keys)].tolist()


def check_groups(
    training: Cases,
    validation: Cases,
    img_list: str | os.PathLike[str],
    data_root: str | os.PathLike[str],
    folds: int,
    pattern: str,
    problems: list[str],
) -> list[Cases]:
    """Groups to divide cases by, or [] where there are cases for validation already; their patients must be others.

    Args:
        training: the cases of ``img_list``.
        validation: those of another list, if any.
        img_list: for messages.
        data_root, pattern, problems: as for :func:`group_cases`.
        folds: number of parts that will be made; 0: a part is held out.
    """
    before = len(problems)
    if not training or validation:
        problems += shared_patients(training, validation, data_root, pattern, problems) if training else []
        return []
    groups = group_cases(training, data_root, pattern, problems)
    least = folds or 2
    if len(groups) < least and len(problems) == before:
        number = f"{len(training)} case{'s' * (len(training) > 1)}"
        together = f", {len(groups)} apart: the others are of the same patients or have the same files"
        wanted = f"one for each of {folds} folds" if folds else "one of them to hold out, or a val_list"
        found = number + together * (len(training) > len(groups))
        problems.append(f"{img_list}: found {found}; expected at least {least}, {wanted}")
    if folds:
        problems += [f"{img_list}: {problem}" for problem in _given_fold_problems(training, groups, folds)]
    elif any("fold" in case for case in training):
        _log.info("%s: the folds that it gives its cases count with --folds alone", img_list)
    return groups


def _given_fold_problems(cases: Cases, groups: Sequence[Cases], folds: int) -> list[str]:
    """What is wrong with the numbers of folds that a source gives its cases, if it does."""
    numbers = {case["fold"] for case in cases if "fold" in case}
    if not numbers:
        return []
    problems = []
    if missing := [images_of(case)[0] for case in cases if "fold" not in case]:
        problems.append(f"found no fold of {name_some(missing)}; expected one of each training case, or of none")
    if numbers != set(range(folds)):
        found = ", ".join(map(str, sorted(numbers)))
        problems.append(f"found cases of fold {found}; expected all from 0 to {folds - 1}, with --folds {folds}")
    for group in groups:
        if len(held := {case.get("fold") for case in group}) > 1:
            where = name_some(images_of(case)[0] for case in group)
            problems.append(f"found {len(held)} folds of {where}, of one patient or with files in common; expected one")
    return problems


def divide(groups: Sequence[Cases], folds: int, seed: int) -> list[Cases]:
    """As many parts as there are folds, disjoint and complete, each sorted; no group is in two.

    Cases with the number of a "fold" are in the part that it says, and :func:`check_groups` has seen that all have one.
    Otherwise, groups are shuffled, then dealt from the largest down, each to the part that has the fewest cases. Parts
    differ by no more cases than the largest group has; with single cases they are those of MONAI's
    ``partition_dataset``.

    Args:
        groups: from :func:`group_cases`, at least as many as folds.
        folds: number of parts.
        seed: of the shuffle.
    """
    if any("fold" in case for group in groups for case in group):
        return [sort_cases(case for group in groups for case in group if case["fold"] == fold) for fold in range(folds)]
    shuffled = partition_dataset(groups, num_partitions=1, shuffle=True, seed=seed)[0]
    parts: list[Cases] = [[] for _ in range(folds)]
    for group in sorted(shuffled, key=len, reverse=True):  # stable
        min(parts, key=len).extend(group)
    return [sort_cases(part) for part in parts]


def hold_out(groups: Sequence[Cases], fraction: float, seed: int) -> tuple[Cases, Cases]:
    """Training and validation cases: a share of the groups is held out, at least one and not all of them.

    Args:
        groups: from :func:`group_cases`, at least two.
        fraction: share to hold out.
        seed: of the draw.
    """
    held = min(max(1, round(fraction * len(groups))), len(groups) - 1)
    parts = partition_dataset(groups, ratios=[len(groups) - held, held], shuffle=True, seed=seed)
    training, validation = ([case for group in part for case in group] for part in parts)
    found = (len(validation), len(training) + len(validation), fraction, seed)
    _log.info("holding out %d of %d cases for validation (fraction %g, seed %d)", *found)
    return training, validation


def shared_patients(
    training: Cases, validation: Cases, data_root: str | os.PathLike[str], pattern: str, problems: list[str]
) -> list[str]:
    """A line for each patient of both lists, naming a file of each; arguments as for :func:`name_patients`."""
    known = dict(zip(name_patients(training, data_root, pattern, problems), training, strict=True))
    both: dict[str, str] = {}
    for name, case in zip(name_patients(validation, data_root, pattern, problems), validation, strict=True):
        if name and name in known:
            one, other = images_of(known[name])[0], images_of(case)[0]
            both.setdefault(name, f"{one} for training and {other} for validation")
    return [f"patient {name!r}: found {where}; expected on one side only" for name, where in both.items()]


def fold_folder(folder: str, folds: int = 0, fold: int = -1) -> str:
    """The folder of a fold's files below ``folder``, or ``folder`` itself without a chosen fold.

    Raises:
        Med3dError: if the options contradict each other.
    """
    if problems := fold_problems(folds, fold):
        raise Med3dError("; ".join(problems))
    return os.path.join(folder, f"fold_{fold}") if folds and fold >= 0 else folder


def fold_folders(ckpt_dir: str, folds: int = 0, fold: int = -1, exported_path: str = "") -> list[str]:
    """The folders of the networks to load: ``ckpt_dir`` itself, that of one fold, or those of all.

    Without folds nothing is looked for in it: who loads the files says what is missing.

    Args:
        ckpt_dir: folder that training was given.
        folds: number of folds that were trained; 0: none.
        fold: one of them; -1: all.
        exported_path: network that is used in place of the trained ones, or empty.

    Raises:
        Med3dError: naming the folders without a network and the commands that make them; if they were trained with
            another number of folds; or if one exported network is given for several.
    """
    if not folds:
        folder = fold_folder(ckpt_dir, folds, fold)
        trained = fold_numbers(ckpt_dir)
        if trained and not any(os.path.isfile(os.path.join(folder, name)) for name in FILES):
            found = f"found no model.pt in it but fold {', '.join(map(str, trained))}"
            raise Med3dError(
                f"{ckpt_dir}: {found}; expected --folds with the number of folds, and --fold for one alone"
            )
        return [folder]
    folders = [fold_folder(ckpt_dir, folds, number) for number in (range(folds) if fold == -1 else [fold])]
    if exported_path and len(folders) > 1:
        raise Med3dError(f"{exported_path}: found one network; expected none with --folds {folds}, or a --fold too")
    if above := [number for number in fold_numbers(ckpt_dir) if number >= folds]:
        found = f"found fold {', '.join(map(str, above))} too; expected none above {folds - 1}"
        raise Med3dError(f"{ckpt_dir}: {found}. --folds must be that of the trainings, not {folds}")
    problems = []
    for folder in folders:
        if missing := [name for name in FILES if not os.path.isfile(os.path.join(folder, name))]:
            number = folder.rsplit("_", 1)[1]
            command = "python -m monai.bundle run training --config_file configs/train.json"
            options = f"--folds {folds} --fold {number}, and the options of the other folds"
            problems.append(f"{folder}: found no {' and no '.join(missing)}; made by {command} {options}")
    if problems:
        raise Med3dError("\n".join(problems))
    return folders


def sort_cases(cases: Iterable[dict[str, Any]]) -> Cases:
    """The cases by the paths of image and label."""
    return sorted(cases, key=lambda case: (images_of(case), case.get("label", "")))


def fold_numbers(ckpt_dir: str) -> list[int]:
    """Numbers of the folds that have a network or a record, in order."""
    files = [path for name in (*FILES, RECORD) for path in Path(ckpt_dir).glob(f"fold_*/{name}")]
    matches = (re.fullmatch(r"fold_(\d+)", path.parent.name) for path in files)
    return sorted({int(match[1]) for match in matches if match})


def relative_name(case: Mapping[str, Any], data_root: str | os.PathLike[str]) -> str:
    """Path of a case's image, or of its first channel, relative to the data's folder if it lies in it, with slashes."""
    path, root = Path(images_of(case)[0]), Path(os.path.abspath(data_root))
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def name_some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
