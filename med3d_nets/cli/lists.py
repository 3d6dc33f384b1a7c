"""Which lists of cases a folder has, for the configs' options ``data_root``, ``img_list`` and ``val_list``."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from med3d_nets.errors import Med3dError

if TYPE_CHECKING:
    from med3d_nets.sources import Source

__all__ = ["data_folder", "evaluation_options", "existing", "find_list", "has_list", "training_options"]

DESCRIPTION = "dataset.json"

LISTS = {
    "segmentation": ("seg_train.txt", "seg_train.csv", "train.txt", "train.csv", DESCRIPTION),
    "classification": ("cls_train.txt", "cls_train.csv", "train.txt", "train.csv"),
}
"""Names that are looked for in a folder of training data, in this order; regression has those of classification."""

_log = logging.getLogger(__name__)

Options = dict[str, str]


def training_options(data: str, task: str, given: Mapping[str, str]) -> Options:
    """Options for the training cases and those to validate on; the choice is logged.

    Validation cases are those of a list beside the first one, with ``val`` in its name for ``train``. Without one they
    are left to the training, as with ``folds``: it takes those that its list names, or holds some out. For a
    segmentation, the list or a ``dataset.json`` in the folder tells the number of classes.

    Args:
        data: a folder, or a list in the folder that its paths are relative to.
        task: ``segmentation``, ``classification`` or ``regression``.
        given: values of the options that are given, which are left as they are.

    Raises:
        Med3dError: if there is no such file, or no list in the folder.
    """
    path = _named(data, "img_list", given) or find_list(data, task)
    folder = data_folder(data)
    options = {"data_root": str(folder), "img_list": _place(path, folder, given)}
    _log.info("training cases: %s", path)
    if "folds" not in given and "val_list" not in given:
        validation = _beside(path, "train", "val")
        options["val_list"] = _place(validation, folder, given) if validation else ""
        left = "those that this list has, else held out by the training, as no list for them is beside"
        _log.info("validation cases: %s", validation or left)
    if task == "segmentation" and not {"n_seg_classes", "class_names"} & set(given):
        options |= _classes(path, folder)
    return {name: value for name, value in options.items() if name not in given}


def evaluation_options(data: str, task: str, given: Mapping[str, str]) -> Options:
    """Options for the cases to evaluate; the choice is logged.

    They are those of a list that is named, else of the folder's list for a test, else of that for validation, with
    ``test`` or ``val`` in its name for ``train``, else of a training list that has labelled cases for either, else
    those that the training held out. Of a classification, these are taken with a ``fold`` alone.

    Args and errors are those of :func:`training_options`.
    """
    folder = data_folder(data)
    options = {"data_root": str(folder)}
    path = None
    if "fold" not in given and given.get("val_list") != "":
        path = _named(data, "val_list", given) or _find_evaluation(data, task)
    if path is None:
        path = _named(data, "img_list", given) or find_list(data, task)
        options |= {"img_list": _place(path, folder, given), **({} if "fold" in given else {"val_list": ""})}
        _log.info("cases to evaluate: those of %s that the training was validated with", path)
    else:
        options["val_list"] = _place(path, folder, given)
        _log.info("cases to evaluate: %s", path)
        if "folds" in given and "img_list" not in given and os.path.isdir(data):
            options["img_list"] = _place(find_list(data, task), folder, given)  # its patients must be others
    return {name: value for name, value in options.items() if name not in given}


def has_list(data: str, task: str = "segmentation") -> bool:
    """Whether :func:`find_list` finds one."""
    return next(_lists(existing(data), task), None) is not None


def find_list(data: str, task: str = "segmentation") -> Path:
    """Absolute path of the list of training cases: ``data`` itself, one in that folder, or a folder that is a list.

    Args and errors are those of :func:`training_options`.
    """
    path = existing(data)
    found = next(_lists(path, task), None)
    if found is None:
        looked_for = ", ".join([*_names(task), *_layouts(task)])
        raise Med3dError(f"{data}: found none of {looked_for}; expected one of them, or name the list itself")
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


def data_folder(data: str) -> Path:
    """Absolute path of the folder that a list's paths are relative to: ``data`` itself, or that of the list.

    Raises:
        Med3dError: as of :func:`existing`.
    """
    path = existing(data)
    return path if path.is_dir() else path.parent


def _lists(path: Path, task: str) -> Iterator[Path]:
    """A list itself, or the lists of training cases in a folder, the one to take first."""
    if path.is_file():
        yield path
        return
    yield from (path / name for name in _names(task) if (path / name).is_file())
    if any(is_layout(str(path)) for is_layout in _layouts(task).values()):
        yield path


def _names(task: str) -> Sequence[str]:
    return LISTS["segmentation" if task == "segmentation" else "classification"]


def _layouts(task: str) -> Mapping[str, Callable[[str], bool]]:
    """Whether a folder is itself a list, by what tells, in words."""
    if task != "segmentation":
        return {}
    from med3d_nets import dicom_folders, nnunet  # readers of volumes take seconds to import

    return {nnunet.TRAINING: nnunet.is_layout, "DICOM series": dicom_folders.is_dicom_tree}


def _read(path: Path, folder: Path) -> Source:
    """What a list of segmentations has; what is wrong with it, the command that it is for tells."""
    from med3d_nets.sources import read_source  # takes seconds to import

    return read_source(path, folder, [])


def _named(data: str, option: str, given: Mapping[str, str]) -> Path | None:
    """The list that an option names, below the data's folder if it is there; None without the option."""
    if option not in given:
        return None
    if os.path.isfile(data):
        raise Med3dError(f"{data} and --{option} {given[option]} both name a list; expected one of them")
    below = data_folder(data) / given[option]
    return below if below.exists() else Path(os.path.abspath(given[option]))


def _place(path: Path, folder: Path, given: Mapping[str, str]) -> str:
    """A list as an option, which MONAI's command looks for below ``data_root`` first."""
    below = folder in path.parents and "data_root" not in given
    return str(path.relative_to(folder) if below else path)


def _beside(path: Path, old: str, new: str) -> Path | None:
    """The list with one word in its name for another, if it is there."""
    other = path.with_name(new.join(path.name.rsplit(old, 1)))
    return other if other != path and other.is_file() else None


def _find_evaluation(data: str, task: str) -> Path | None:
    """A list of cases for a test or for validation; None if a segmentation's are a part of its training cases."""
    path = existing(data)
    if path.is_file():
        return path
    names = [name.replace("train", kind) for kind in ("test", "val") for name in _names(task) if "train" in name]
    if found := next((path / name for name in names if (path / name).is_file()), None):
        return found
    looked_for = names
    if task == "segmentation":
        lists = False
        for place in _lists(path, task):
            if place.suffix != ".txt" and _read(place, path).evaluation:  # texts are for one purpose
                return place
            lists = True
        if lists:
            return None
        looked_for += [*_names(task), *_layouts(task)]
    raise Med3dError(f"{data}: found none of {', '.join(looked_for)}; expected one of them, or name the list itself")


def _classes(path: Path, folder: Path) -> Options:
    """The number of classes that a list names, or a ``dataset.json`` in the data's folder."""
    for place in (path, folder / DESCRIPTION):
        if len(names := _read(place, folder).class_names) > 1:
            _log.info("classes: %d, of %s", len(names), place)
            return {"n_seg_classes": str(len(names))}
    return {}
