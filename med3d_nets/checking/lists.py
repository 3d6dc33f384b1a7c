"""The cases to check: those that ``med3d train`` finds for the same words."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from med3d_nets.checking.cases import Case
from med3d_nets.checks import identity
from med3d_nets.classification.arrays import image_identity
from med3d_nets.classification.case_checks import repeated
from med3d_nets.classification.settings import TASKS
from med3d_nets.classification.tables import read_table
from med3d_nets.cli.lists import training_options
from med3d_nets.errors import Med3dError
from med3d_nets.folds import fold_problems, name_patients, shared_patients
from med3d_nets.formats import images_of
from med3d_nets.list_files import find_path, raise_for
from med3d_nets.sources import Source, read_source
from med3d_nets.volume_files import Problem

__all__ = ["Lists", "find_cases"]

Items = list[dict[str, Any]]

SEGMENTATION = "segmentation"


@dataclass(frozen=True)
class Lists:
    """Cases to check, and what is wrong with their lists.

    Attributes:
        cases: each file once.
        problems: of the lists themselves.
        options: ``data_root``, ``img_list``, ``val_list`` and ``n_seg_classes``, as they were found.
    """

    cases: list[Case]
    problems: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


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
    options: dict[str, Any] = {**given, **training_options(data, task, given)}
    root = options["data_root"]
    problems: list[str] = []
    for option in ("img_list", "val_list"):
        if options.get(option):
            find_path(option, options[option], root, problems)
    raise_for(problems)
    source = _read_list("img_list", options["img_list"], root, task, in_channels, problems)
    parts = {"training": source.training, "validation": source.validation}
    if options.get("val_list"):
        others = _read_list("val_list", options["val_list"], root, task, in_channels, problems)
        parts["validation"] = others.validation or others.training
    if not any(parts.values()):
        raise_for(problems or [f"{options['img_list']}: found no cases; expected at least one"])
    for items in parts.values():
        for item, name in zip(items, name_patients(items, root, patient_pattern, problems), strict=True):
            item["patient"] = name
    problems = [Problem(problem, "list") for problem in problems]
    problems += _repeated(parts, task)
    shared = shared_patients(parts["training"], parts["validation"], root, "", [])
    problems += [Problem(problem, "patients") for problem in shared]
    options.setdefault("n_seg_classes", len(source.class_names))
    return Lists(_cases(parts, task), problems, options)


def _read_list(option: str, path: str, root: str, task: str, in_channels: int, problems: list[str]) -> Source:
    """The cases of one list."""
    if task == SEGMENTATION:
        return read_source(path, root, problems, in_channels=in_channels, option=option)
    if path.lower().endswith(".npz"):
        raise Med3dError(f"{option} {path}: found arrays; expected a list of files: training checks arrays itself")
    return Source([row.item for row in read_table(option, path, root, problems, ["train"]).rows])


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
    known = {image_identity(images_of(item)[0]) for item in parts["training"]}
    both = dict.fromkeys(images_of(item)[0] for item in parts["validation"])
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
