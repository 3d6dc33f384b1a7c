"""Tables of segmentation cases in CSV, with named columns."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from med3d_nets.list_files import no_folder, read_csv
from med3d_nets.nnunet import Row

__all__ = ["read_table"]

PARTS = {"train": "training", "training": "training", "val": "validation", "valid": "validation"}
PARTS |= {"validation": "validation", "test": "test", "testing": "test"}
"""Words of the column ``split``."""
COLUMNS = ("image", "label", "patient", "split", "fold")

_NUMBERED = re.compile(r"image_(\d+)")


def read_table(path: str, root: str, labelled: bool, problems: list[str]) -> dict[str, list[Row]]:
    """Cases of a table by "training", "validation" and "test".

    Columns, in any order and among others: ``image``, or ``image_0``, ``image_1`` and so on for its channels, which may
    also stand in ``image`` with ``;`` between them; ``label``; ``patient``; ``split``, one of :data:`PARTS` (without
    it, all are for training); ``fold``, the number of the part that holds a case out in cross-validation, from 0.

    Args:
        path: CSV in UTF-8 with a header, values separated by commas.
        root: absolute path of the folder that paths are relative to.
        labelled: whether cases for training and validation need a label, and those for a test get the one that they
            may have; otherwise, labels are left alone.
        problems: added to.
    """
    columns, lines = read_csv(path, problems)
    images = _image_columns(path, columns, labelled, problems) if columns else []
    if not images:
        return {}
    parts: dict[str, list[Row]] = {}
    for number, values in lines:
        _read_line(f"{path}, line {number}", values, images, labelled, parts, problems)
    rows = [row for part in parts.values() for row in part]
    if no_folder(root, [file for _, case in rows for file in _files(case)], problems):
        return {}
    for _, case in rows:
        case["image"] = [_join(root, image) for image in case["image"]]
        if len(case["image"]) == 1:
            (case["image"],) = case["image"]
        if "label" in case:
            case["label"] = _join(root, case["label"])
    return parts


def _image_columns(path: str, columns: Sequence[str], labelled: bool, problems: list[str]) -> list[str]:
    """The columns of images; [] and problems where the header is wrong."""
    found, before = f"{path}: found columns {', '.join(columns)}", len(problems)
    numbered = sorted((name for name in columns if _NUMBERED.fullmatch(name)), key=lambda name: int(name[6:]))
    images = ["image"] if "image" in columns else numbered
    if not images or ("image" in columns and numbered):
        problems.append(f"{found}; expected 'image', or image_0 and on, among them, and commas between them")
    elif numbered and numbered != [f"image_{number}" for number in range(len(numbered))]:
        problems.append(f"{found}; expected all from image_0 to {numbered[-1]}")
    if labelled and "label" not in columns:
        problems.append(f"{found}; expected 'label' among them")
    if twice := sorted({name for name in columns if name in (*COLUMNS, *numbered) and columns.count(name) > 1}):
        problems.append(f"{found}; expected {', '.join(twice)} once")
    return images if len(problems) == before else []


def _read_line(
    where: str,
    values: Mapping[str, str],
    columns: Sequence[str],
    labelled: bool,
    parts: dict[str, list[Row]],
    problems: list[str],
) -> None:
    """Add the case of a line to its part, or what is wrong with it to the problems."""
    before = len(problems)
    images = [
        image.strip() for name in columns for image in (values[name].split(";") if name == "image" else [values[name]])
    ]
    if not all(images):
        problems.append(f"{where}: found no path in {', '.join(columns)}; expected one for each image")
    case: dict[str, Any] = {"image": images}
    split = values.get("split", "train")
    part = PARTS.get(split.lower(), "")
    if not part:
        problems.append(f"{where}: found split {split!r}; expected {', '.join(PARTS)}")
    if labelled and values["label"]:
        case["label"] = values["label"]
    elif labelled and part != "test":
        problems.append(f"{where}: found no label; expected a path")
    if values.get("patient"):
        case["patient"] = values["patient"]
    if part == "training" and (fold := values.get("fold")):
        if fold.isdecimal():
            case["fold"] = int(fold)
        else:
            problems.append(f"{where}: found fold {fold!r}; expected a whole number from 0")
    if len(problems) == before:
        parts.setdefault(part, []).append((where, case))


def _files(case: Mapping[str, Any]) -> list[str]:
    return [*case["image"], *([case["label"]] if "label" in case else [])]


def _join(root: str, path: str) -> str:
    return os.path.abspath(os.path.join(root, path))
