"""The cases to check: those that ``med3d train`` finds for the same words."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from med3d_nets.checking.cases import Case
from med3d_nets.checking.classified import read_classified
from med3d_nets.checks import identity
from med3d_nets.classification.arrays import image_identity
from med3d_nets.classification.case_checks import repeated
from med3d_nets.classification.settings import TASKS
from med3d_nets.cli.lists import existing, has_list, training_options
from med3d_nets.dicom import is_dicom_file
from med3d_nets.errors import Med3dError
from med3d_nets.folds import fold_problems, name_patients, shared_patients
from med3d_nets.formats import SUFFIXES, images_of
from med3d_nets.list_files import find_path, raise_for
from med3d_nets.sources import read_source
from med3d_nets.volume_files import Problem

__all__ = ["Lists", "find_cases"]

Items = list[dict[str, Any]]

SEGMENTATION = "segmentation"
UNLABELLED = "unlabelled"
"""The part of images that nobody has drawn, and the kind of finding that tells so."""


@dataclass(frozen=True)
class Lists:
    """Cases to check, and what is wrong with their lists.

    Attributes:
        cases: each file once.
        problems: of the lists themselves.
        options: ``data_root``, ``img_list``, ``val_list`` and ``n_seg_classes``, as they were found.
        classes: number of cases of each class by part, of a classification.
    """

    cases: list[Case]
    problems: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    classes: dict[str, dict[str, int]] = field(default_factory=dict)


def find_cases(data: str, task: str, given: Mapping[str, str], in_channels: int, patient_pattern: str) -> Lists:
    """The training cases, and those for validation where there is a list of them.

    Args:
        data: a folder, or a list in the folder that its paths are relative to.
        task: "segmentation", or one of :data:`~med3d_nets.classification.settings.TASKS`.
        given: values of ``data_root``, ``img_list``, ``val_list`` and ``n_seg_classes`` that are not looked for.
        in_channels: channels of the images.
        patient_pattern: see :func:`~med3d_nets.folds.name_patients`.

    Raises:
        Med3dError: if there is no such list, or no case in it, or an option is wrong.
    """
    tasks = (SEGMENTATION, *TASKS)
    if task not in tasks:
        raise Med3dError(f"task: found {task!r}; expected {', '.join(tasks)}")
    raise_for(fold_problems(0, -1, patient_pattern))
    if task == SEGMENTATION and (alone := _images_without_a_list(data, given, in_channels)):
        return alone
    options: dict[str, Any] = {**given, **training_options(data, task, given)}
    root = options["data_root"]
    problems: list[str] = []
    for option in ("img_list", "val_list"):
        if options.get(option):
            find_path(option, options[option], root, problems)
    raise_for(problems)
    options.setdefault("n_seg_classes", 0)
    classes: dict[str, dict[str, int]] = {}
    if task == SEGMENTATION:
        parts = _read_segmented(options, in_channels, problems)
        if problems and all(getattr(problem, "kind", "") == UNLABELLED for problem in problems):
            parts = {UNLABELLED: read_source(options["img_list"], root, [], False, in_channels=in_channels).test}
    else:
        parts, classes = read_classified(options, task, in_channels, problems)
    if not any(parts.values()):
        raise_for(problems or [f"{options['img_list']}: found no cases; expected at least one"])
    for items in parts.values():
        for item, name in zip(items, name_patients(items, root, patient_pattern, problems), strict=True):
            item["patient"] = name
    problems = [problem if isinstance(problem, Problem) else Problem(problem, "list") for problem in problems]
    problems += _repeated(parts, task)
    shared = shared_patients(parts.get("training", []), parts.get("validation", []), root, "", [])
    problems += [Problem(problem, "patients") for problem in shared]
    return Lists(_cases(parts, task), problems, options, classes)


def _images_without_a_list(data: str, given: Mapping[str, str], in_channels: int) -> Lists | None:
    """Images alone, to be predicted: a volume, or a folder of some that has no list."""
    path = str(existing(data))
    is_volume = path.lower().endswith(SUFFIXES) or is_dicom_file(path)
    if given.get("img_list") or not (is_volume or (os.path.isdir(path) and not has_list(path))):
        return None
    items = read_source(path, "", [], False, in_channels=in_channels).test
    text = f"{path}: found images without a list of their label maps; expected one for a training"
    cases = [Case(UNLABELLED, tuple(images_of(item))) for item in items]
    return Lists(cases, [Problem(text, UNLABELLED)], {"img_list": path, "n_seg_classes": 0}) if cases else None


def _read_segmented(options: Mapping[str, Any], in_channels: int, problems: list[str]) -> dict[str, Items]:
    """The cases of both lists, by part."""
    root = options["data_root"]
    source = read_source(options["img_list"], root, problems, in_channels=in_channels, option="img_list")
    validation = source.validation
    if options.get("val_list"):
        others = read_source(options["val_list"], root, problems, in_channels=in_channels, option="val_list")
        validation = others.validation or others.training
    return {"training": source.training, "validation": validation}


def _repeated(parts: Mapping[str, Items], task: str) -> list[str]:
    """Images that are in one list twice, or in both."""
    problems: list[str] = []
    for items in parts.values():
        if task == SEGMENTATION:
            times = Counter(identity(item) for item in items)
            twice = [f"{path}: found {n} times in one list; expected once" for path, n in times.items() if n > 1]
        else:
            twice = repeated(items)
        problems += [Problem(problem, "repeated") for problem in twice]
    known = {image_identity(images_of(item)[0]) for item in parts.get("training", [])}
    both = dict.fromkeys(images_of(item)[0] for item in parts.get("validation", []))
    found = [path for path in both if image_identity(path) in known]
    wanted = "found in training and in validation; expected in one of them"
    return problems + [Problem(f"{path}: {wanted}", "shared") for path in found]


def _cases(parts: Mapping[str, Items], task: str) -> list[Case]:
    """A case for each image with its label or mask, in the lists' order."""
    cases: dict[tuple[str, ...], Case] = {}
    for part, items in parts.items():
        for item in items:
            images = tuple(images_of(item))
            label = os.fspath(item.get("label" if task == SEGMENTATION else "mask", ""))
            case = Case(part, images, label, item["patient"], task != SEGMENTATION)
            cases.setdefault((*images, label), case)
    return list(cases.values())
