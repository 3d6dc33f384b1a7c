"""Which lists of cases a folder has, for the configs' options ``data_root``, ``img_list`` and ``val_list``."""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from med3d_nets.errors import Med3dError

__all__ = ["evaluation_options", "existing", "find_list", "training_options"]

LISTS = {
    "segmentation": ("seg_train.txt", "train.txt", "dataset.json"),
    "classification": ("cls_train.txt", "cls_train.csv", "train.txt", "train.csv"),
}
"""Names that are looked for in a folder of training data, in this order; regression has those of classification."""

DECATHLON = "dataset.json"

_log = logging.getLogger(__name__)

Options = dict[str, str]


def training_options(data: str, task: str, given: Mapping[str, str]) -> Options:
    """Options for the training cases and those to validate on; the choice is logged.

    Validation cases are those of a list beside the first one, with ``val`` in its name for ``train``. Without one the
    training holds cases out, as it does with ``folds``. For a segmentation, ``dataset.json`` tells the number of
    classes.

    Args:
        data: a folder, or a list in the folder that its paths are relative to.
        task: ``segmentation``, ``classification`` or ``regression``.
        given: values of the options that are given, which are left as they are.

    Raises:
        Med3dError: if there is no such file, or no list in the folder.
    """
    path = _named(data, "img_list", given) or find_list(data, task)
    folder = _folder(data)
    options = {"data_root": str(folder), "img_list": _place(path, folder, given)}
    _log.info("training cases: %s", path)
    if "folds" not in given and "val_list" not in given:
        validation = _beside(path, "train", "val")
        options["val_list"] = _place(validation, folder, given) if validation else ""
        _log.info("validation cases: %s", validation or "held out by the training, as no list for them is beside")
    if task == "segmentation" and not {"n_seg_classes", "class_names"} & set(given):
        options |= _classes(folder / DECATHLON)
    return {name: value for name, value in options.items() if name not in given}


def evaluation_options(data: str, task: str, given: Mapping[str, str]) -> Options:
    """Options for the cases to evaluate; the choice is logged.

    They are those of a list that is named, else of the folder's list for a test, else of that for validation, with
    ``test`` or ``val`` in its name for ``train``. With a ``fold`` they are a part of the training cases.

    Args and errors are those of :func:`training_options`.
    """
    folder = _folder(data)
    options = {"data_root": str(folder)}
    if "fold" in given:
        path = _named(data, "img_list", given) or find_list(data, task)
        options["img_list"] = _place(path, folder, given)
        _log.info("cases, of which the fold's part is evaluated: %s", path)
    else:
        path = _named(data, "val_list", given) or _find_evaluation(data, task)
        options["val_list"] = _place(path, folder, given)
        _log.info("cases to evaluate: %s", path)
        if "folds" in given and "img_list" not in given and os.path.isdir(data):
            options["img_list"] = _place(find_list(data, task), folder, given)  # its patients must be others
    return {name: value for name, value in options.items() if name not in given}


def find_list(data: str, task: str = "segmentation") -> Path:
    """Absolute path of the list of training cases: ``data`` itself, or one in that folder.

    Args and errors are those of :func:`training_options`.
    """
    path = existing(data)
    if path.is_file():
        return path
    names = _names(task)
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        raise Med3dError(f"{data}: found none of {', '.join(names)}; expected one of them, or name the list itself")
    return found


def existing(path: str) -> Path:
    """Absolute path of a file or folder.

    Raises:
        Med3dError: if it is not there; the message suggests the nearest name beside it.
    """
    place = Path(os.path.abspath(path))
    if not place.exists():
        beside = os.listdir(place.parent) if place.parent.is_dir() else []
        near = difflib.get_close_matches(place.name, beside, n=1)
        raise Med3dError(f"{path}: no such file or folder" + (f"; did you mean '{near[0]}'?" if near else ""))
    return place


def _folder(data: str) -> Path:
    path = existing(data)
    return path if path.is_dir() else path.parent


def _named(data: str, option: str, given: Mapping[str, str]) -> Path | None:
    """The list that an option names, below the data's folder if it is there; None without the option."""
    if option not in given:
        return None
    if os.path.isfile(data):
        raise Med3dError(f"{data} and --{option} {given[option]} both name a list; expected one of them")
    below = _folder(data) / given[option]
    return below if below.is_file() else Path(os.path.abspath(given[option]))


def _place(path: Path, folder: Path, given: Mapping[str, str]) -> str:
    """A list as an option, which MONAI's command looks for below ``data_root`` first."""
    return str(path if "data_root" in given or not path.is_relative_to(folder) else path.relative_to(folder))


def _names(task: str) -> tuple[str, ...]:
    return LISTS["segmentation" if task == "segmentation" else "classification"]


def _beside(path: Path, old: str, new: str) -> Path | None:
    """The list with one word in its name for another, if it is there."""
    other = path.with_name(new.join(path.name.rsplit(old, 1)))
    return other if other != path and other.is_file() else None


def _find_evaluation(data: str, task: str) -> Path:
    path = existing(data)
    if path.is_file():
        return path
    names = [name.replace("train", kind) for kind in ("test", "val") for name in _names(task) if "train" in name]
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None and task == "segmentation" and _has_validation(path / DECATHLON):
        return path / DECATHLON
    if found is None:
        raise Med3dError(f"{data}: found none of {', '.join(names)}; expected one of them, or name the list itself")
    return found


def _describe(path: Path) -> dict[str, Any]:
    """Content of a Decathlon ``dataset.json``; nothing where there is none: the command that reads it complains."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _has_validation(path: Path) -> bool:
    items = _describe(path).get("validation")
    return isinstance(items, list) and any(isinstance(item, dict) and item.get("label") for item in items)


def _classes(path: Path) -> Options:
    """The number of classes that a Decathlon ``dataset.json`` names by their values, 0 and on."""
    labels = _describe(path).get("labels")
    if not isinstance(labels, dict) or set(labels) != {str(value) for value in range(len(labels))} or len(labels) < 2:
        return {}
    _log.info("classes: %d, of %s", len(labels), path)
    return {"n_seg_classes": str(len(labels))}
