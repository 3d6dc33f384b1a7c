"""Lists of classified volumes as people have them: MedicalNet's text lists, CSV tables, MedMNIST's ``.npz`` files."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from med3d_nets.classification.arrays import array_names, read_array, refer, split_reference
from med3d_nets.dicom import series_path
from med3d_nets.errors import Med3dError
from med3d_nets.folds import name_some
from med3d_nets.formats import WANTED
from med3d_nets.list_files import find_path, no_folder, read_csv_lines, read_rows

__all__ = ["SECTIONS", "Item", "Labels", "Row", "Table", "has_section", "read_table", "without_point"]

Path: TypeAlias = str | os.PathLike[str]
Item: TypeAlias = dict[str, Any]
Labels: TypeAlias = Literal["needed", "kept", "ignored"]
"""What is made of the labels of a list: it must have them, they are kept if it has any, or they are left alone."""

SECTIONS = ("train", "val", "test")
"""Parts of a ``.npz`` file: ``train_images`` with ``train_labels``, and so on."""
LABEL_COLUMNS = ("label", "class", "target")
CENTER_COLUMNS = ("x", "y", "z", "size_mm")
NUMBER = "value"
"""Name of a number that no column names."""

_WITH_POINT = re.compile(r"([+-]?\d+)\.0*")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """A case as a list has it.

    Attributes:
        where: file and line, for messages.
        label: as it is written, "" where there is none.
        item: ``image``, ``patient`` and, where they are given, ``mask``, or ``center`` and ``size_mm``.
    """

    where: str
    label: str
    item: Item


@dataclass(frozen=True)
class Table:
    """The cases of a list, in its order, and the name of what their labels tell."""

    rows: Sequence[Row] = ()
    target: str = NUMBER


def read_table(
    option: str,
    path: Path,
    data_root: Path,
    problems: list[str],
    sections: Sequence[str],
    *,
    section: str = "",
    labels: Labels = "needed",
) -> Table:
    """Read a list of any kind; its images are not read, but for those of a ``.npz`` file.

    Args:
        option: name of the option that gave the path, for messages.
        path: text list (``image class`` a line), ``.csv`` with a header, or ``.npz``; absolute, or relative to
            ``data_root``, else to the working directory.
        data_root: folder that the paths in a list are relative to.
        problems: added to.
        sections: parts of a ``.npz`` file, of which the first that it has is read.
        section: the part to read instead; "": none is chosen.
        labels: whether they are needed, kept or ignored.
    """
    found = find_path(option, path, data_root, problems)
    if found is None:
        return Table()
    before = len(problems)
    suffix = os.path.splitext(found)[1].lower()
    root = os.path.abspath(data_root)
    table = Table()
    if suffix == ".npz":
        try:
            table = _read_npz(found, sections, section, labels, problems)
        except Med3dError as error:
            problems.append(str(error))
    elif section:
        problems.append(f"section: found {section!r} with {found}; expected it with a .npz file alone")
    elif suffix == ".json":
        problems.append(f"{found}: found a .json; expected a text list, {_others(labels)}")
    elif suffix == ".csv":
        table = _read_csv(found, root, labels, problems)
    else:
        table = _read_text(found, root, labels, problems)
    if not table.rows and len(problems) == before:
        problems.append(f"{found}: found no cases; expected at least one")
    return table


def has_section(path: Path, data_root: Path, section: str) -> bool:
    """Whether a list is a ``.npz`` file with a labelled section of that name; False where it cannot be read."""
    found = find_path("", path, data_root, [])
    if found is None or not found.lower().endswith(".npz"):
        return False
    try:
        return {f"{section}_images", f"{section}_labels"} <= set(array_names(found))
    except Med3dError:  # reading it tells
        return False


def _others(labels: Labels) -> str:
    return "a .csv or .npz file" if labels == "needed" else "a .csv or .npz file, a folder or an image"


def _read_text(path: str, root: str, labels: Labels, problems: list[str]) -> Table:
    forms = [["image"], ["image", "class"]]
    rows = read_rows(path, forms[1:] if labels == "needed" else forms, problems, _others(labels))
    if no_folder(root, [row[0] for _, row in rows], problems):
        return Table()
    found = []
    for number, row in rows:
        where = f"{path}, line {number}"
        item = {"image": _join_image(where, root, row[0], problems), "patient": ""}
        found.append(Row(where, row[1] if len(row) > 1 and labels != "ignored" else "", item))
    return Table(found)


def _read_npz(path: str, sections: Sequence[str], section: str, labels: Labels, problems: list[str]) -> Table:
    names = array_names(path)
    kinds = ("images", "labels") if labels == "needed" else ("images",)
    has = [name for name in SECTIONS if all(f"{name}_{kind}" in names for kind in kinds)]
    wanted = [section] if section else list(sections)
    chosen = next((name for name in wanted if name in has), None)
    if chosen is None and labels != "needed" and not section and len(has) == 1:
        chosen = has[0]
    if chosen is None:
        expected = " or ".join(" and ".join(f"{name}_{kind}" for kind in kinds) for name in wanted)
        problems.append(f"{path}: found arrays {', '.join(names) or 'none'}; expected {expected}, or another section")
        return Table()
    key = f"{chosen}_images"
    count = len(_whole(path, key))
    name = f"{chosen}_labels"
    written = [""] * count
    if labels == "needed" or (labels == "kept" and name in names):
        array = _whole(path, name)
        expected = f"({count},) or ({count}, 1): one for each volume of {key}"
        if array.shape in ((count,), (count, 1)):
            written = [without_point(value) for value in array.ravel().tolist()]
        elif labels == "needed":
            problems.append(f"{path}: found {name} of shape {array.shape}; expected {expected}")
            return Table()
        else:
            _log.warning("%s: left out %s, of shape %s; expected %s", path, name, array.shape, expected)
    return Table(
        [
            Row(f"{path}, {name}[{index}]", label, {"image": refer(path, key, index), "patient": ""})
            for index, label in enumerate(written)
        ]
    )


def _whole(path: str, key: str) -> Any:
    array = read_array(path, key)
    if array.ndim:
        return array
    raise Med3dError(f"{path}: found a single value in {key}; expected an array")


def without_point(value: Any) -> str:
    """A label as text: a whole number that is written as ``1.0`` is ``1``, whether in a table or in an array."""
    text = str(value)
    match = _WITH_POINT.fullmatch(text)
    return str(int(match[1])) if match else text


def _read_csv(path: str, root: str, labels: Labels, problems: list[str]) -> Table:
    lines = read_csv_lines(path, problems)
    if not lines:
        return Table()
    header = lines[0][1]
    names = [name.lower() for name in header]
    before = len(problems)
    column = _check_header(path, names, labels, problems)
    if len(problems) > before:
        return Table()
    rows, paths, unlabelled = [], [], list[str]()
    for number, line in lines[1:]:
        where = f"{path}, line {number}"
        if len(line) != len(names):
            problems.append(f"{where}: found {len(line)} values; expected {len(names)}, as in the header")
            continue
        fields = dict(zip(names, line, strict=True))
        for name in {"patient", *LABEL_COLUMNS} & fields.keys():
            if fields[name].lower() == "nan":  # what pandas writes for an empty cell, if it is told to
                fields[name] = ""
        paths += [fields[name] for name in ("image", "mask") if fields.get(name)]
        if labels == "needed" and not fields[column]:
            unlabelled.append(f"line {number}")
        elif item := _csv_item(where, fields, root, problems):
            rows.append(Row(where, fields[column] if column else "", item))
    if unlabelled:
        found = (len(unlabelled), len(lines) - 1, column, name_some(unlabelled))
        _log.warning("%s: left out %d of %d rows, which have no %s: %s", path, *found)
    if no_folder(root, paths, problems):
        return Table()
    return Table(rows, header[names.index(column)] if column else NUMBER)


def _check_header(path: str, names: Sequence[str], labels: Labels, problems: list[str]) -> str:
    """The column of the labels, "" where there is none or they are ignored."""
    found = f"{path}: found columns {', '.join(names)}"
    columns = [name for name in LABEL_COLUMNS if name in names and labels != "ignored"]
    if "image" not in names:
        problems.append(f"{found}; expected 'image' among them, and commas between them")
    if len(columns) > 1 or (labels == "needed" and not columns):
        problems.append(f"{found}; expected one of {', '.join(LABEL_COLUMNS)}")
    known = ("image", "patient", "mask", *LABEL_COLUMNS, *CENTER_COLUMNS)
    if twice := sorted({name for name in names if name in known and names.count(name) > 1}):
        problems.append(f"{found}; expected {', '.join(twice)} once")
    if missing := [name for name in CENTER_COLUMNS if name not in names]:
        given = [name for name in CENTER_COLUMNS if name in names]
        if given:
            problems.append(f"{found}; expected {', '.join(missing)} beside {', '.join(given)}, or none of them")
    return columns[0] if columns else ""


def _csv_item(where: str, fields: Mapping[str, str], root: str, problems: list[str]) -> Item | None:
    """The item of one row, or None where it is wrong."""
    before = len(problems)
    if not fields["image"]:
        problems.append(f"{where}: found no image; expected a path")
    image = _join_image(where, root, fields["image"], problems)
    item: Item = {"image": image, "patient": without_point(fields.get("patient", ""))}
    mask = fields.get("mask", "")
    given = {name: fields[name] for name in CENTER_COLUMNS if fields.get(name)}
    if mask:
        item["mask"] = _join(root, mask)
    if given and mask:
        problems.append(f"{where}: found a mask and {', '.join(given)}; expected one of them")
    elif given:
        if missing := [name for name in CENTER_COLUMNS if name not in given]:
            problems.append(
                f"{where}: found {', '.join(given)} without {', '.join(missing)}; expected all or none (mm)"
            )
        numbers = [_number(where, name, value, problems) for name, value in given.items()]
        item.update(center=numbers[:3], size_mm=numbers[-1])
    return item if len(problems) == before else None


def _number(where: str, name: str, text: str, problems: list[str]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (name == "size_mm" and value <= 0):
        problems.append(f"{where}: found {name} {text!r}; expected a number of mm{' above 0' * (name == 'size_mm')}")
    return value


def _join_image(where: str, root: str, path: str, problems: list[str]) -> str:
    """Absolute path of an image, the same for all files of a series; one of an array as a whole is a problem."""
    if ".npz" in path.lower() and not split_reference(path):
        expected = f"{WANTED}, or one volume of an array, such as data.npz::train_images::0"
        problems.append(f"{where}: found {path}; expected {expected}")
    return series_path(_join(root, path))


def _join(root: str, path: str) -> str:
    return os.path.abspath(os.path.join(root, path))
