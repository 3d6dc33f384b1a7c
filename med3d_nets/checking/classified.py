"""Cases with a class or a number each: the parts of their lists, what is wrong with the labels, volumes of arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from med3d_nets import checks
from med3d_nets.classification.arrays import read_array, split_reference
from med3d_nets.classification.classes import class_problems, encode, find_names, number_problems
from med3d_nets.classification.tables import Item, Table, has_section, read_table
from med3d_nets.errors import Med3dError
from med3d_nets.volume_files import Problem

__all__ = ["read_classified", "read_volume"]

Counts: TypeAlias = dict[str, dict[str, int]]


def read_classified(
    options: Mapping[str, Any], task: str, in_channels: int, problems: list[str]
) -> tuple[dict[str, list[Item]], Counts]:
    """Cases by "training", "validation" and "test", and of a classification the number of each class in each.

    Parts are those that training and evaluation take: of a ``.npz`` file all that it has, of other lists one each.

    Args:
        options: ``data_root``, ``img_list`` and ``val_list``.
        task: one of :data:`~med3d_nets.classification.settings.TASKS`.
        in_channels: channels of the images.
        problems: added to.
    """
    root, img_list, val_list = (options.get(name, "") for name in ("data_root", "img_list", "val_list"))
    tables = {"training": read_table("img_list", img_list, root, problems, ["train"])}
    if val_list:
        tables["validation"] = read_table("val_list", val_list, root, problems, ["val", "train"])
    elif has_section(img_list, root, "val"):
        tables["validation"] = read_table("img_list", img_list, root, problems, ["val"])
    if has_section(img_list, root, "test"):
        tables["test"] = read_table("img_list", img_list, root, problems, ["test"])
    counts = _check_labels(tables, task, img_list, problems)
    items = {part: [row.item for row in table.rows] for part, table in tables.items()}
    wrong = _wrong_arrays([item for each in items.values() for item in each], in_channels, problems)
    return {part: [item for item in each if _array_of(item) not in wrong] for part, each in items.items()}, counts


def _check_labels(tables: Mapping[str, Table], task: str, img_list: str, problems: list[str]) -> Counts:
    """Check labels as training does; the number of cases of each class in each part."""
    names = find_names(tables["training"], task)
    told = number_problems(task, names, img_list) if tables["training"].rows else []
    items = {part: encode(table.rows, task, names, told) for part, table in tables.items()}
    problems += told or class_problems(items["training"], task, names, img_list)
    if task == "regression":
        return {}
    times = {part: Counter(item["label"] for item in each) for part, each in items.items()}
    return {part: {name: each[index] for index, name in enumerate(names)} for part, each in times.items()}


def _array_of(item: Item) -> tuple[str, str] | None:
    reference = split_reference(item["image"])
    return reference[:2] if reference else None


def _wrong_arrays(items: Sequence[Item], in_channels: int, problems: list[str]) -> set[tuple[str, str]]:
    """Arrays that hold no such volumes: one problem each, and not one for every volume."""
    wrong = set[tuple[str, str]]()
    for path, key in dict.fromkeys(filter(None, map(_array_of, items))):
        before, name = len(problems), f"{path}, {key}"
        try:
            array = read_array(path, key)
        except Med3dError as error:
            problems.append(Problem(str(error), "unreadable"))
        else:
            if array.dtype.kind not in "biuf":
                found = f"{name}: found values of type {array.dtype}; expected real numbers"
                problems.append(Problem(found, "type"))
            elif checks.check_shape(
                name, array.shape[1:], in_channels, f"each image of in_channels={in_channels}", problems
            ) and not all(array.shape):
                found = f"{name}: found shape {array.shape}; expected no axis of size 0"
                problems.append(Problem(found, "dimensions"))
        if len(problems) > before:
            wrong.add((path, key))
    return wrong


def read_volume(path: str, problems: list[str], image: str = "") -> tuple[NDArray[Any], NDArray[np.float64]] | None:
    """Voxels, of single precision at most, and affine of a file or of a volume of an array, which lies at 1 mm.

    Args:
        path: or a reference (:mod:`~med3d_nets.classification.arrays`), into an array of real numbers.
        problems, image: as for :func:`med3d_nets.checks.read_volume`.
    """
    reference = split_reference(path)
    if reference is None:
        return checks.read_volume(path, problems, image)
    file, key, index = reference
    array = read_array(file, key)
    if index >= len(array):
        found = f"{path}: found {len(array)} volumes; expected an index below that"
        problems.append(Problem(found, "missing"))
        return None
    voxels = array[index]
    with np.errstate(over="ignore", invalid="ignore"):  # as training has them
        single = voxels.astype({"f": np.float32, "b": np.uint8}.get(voxels.dtype.kind, voxels.dtype), copy=False)
    return single, np.eye(4)
