"""Sources of segmentation cases: text lists, ``dataset.json`` files, CSV tables, folders of nnU-Net or of DICOM.

Each becomes the same items, dictionaries for MONAI's data sets:

=============  =====================================================================================================
``image``      absolute path of a volume (:data:`med3d_nets.formats.WANTED`), or a list with that of each channel
``label``      absolute path of its label map, on the image's grid; missing where labels are not asked for
``patient``    name, where the source knows it; ``dicom_patient`` that of a DICOM header
``fold``       number of the part that holds the case out in cross-validation, where the source knows it
=============  =====================================================================================================

Nothing but the list itself is read here; :mod:`~med3d_nets.datalist` checks the volumes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from med3d_nets.checks import reason
from med3d_nets.dicom import is_dicom_file, patient_of, segment_names, series_path
from med3d_nets.dicom_folders import images_in, is_dicom_tree, read_tree
from med3d_nets.formats import SUFFIXES, images_of
from med3d_nets.list_files import find_path, no_folder, read_rows, volumes_in
from med3d_nets.nnunet import Row, channels_of, group_channels, is_layout, read_layout
from med3d_nets.tables import read_table

__all__ = ["FORMS", "OTHERS", "Source", "default_val_list", "known_classes", "read_source"]

Path: TypeAlias = str | os.PathLike[str]
Cases: TypeAlias = list[dict[str, Any]]
Parts: TypeAlias = dict[str, list[Row]]

FORMS = (["image"], ["image", "label"])
"""Fields of a text list's lines."""
OTHERS = "a .json or .csv file, a folder or an image"
"""What a list may be instead, for messages."""
DESCRIPTION = "dataset.json"
IGNORED = "ignore"
"""Label of nnU-Net's for voxels that are left out of the loss."""


@dataclass(frozen=True)
class Source:
    """What a source has.

    Attributes:
        training, validation: items with labels, if these were asked for.
        test: items, with a label where there is one and if these were asked for.
        class_names: background first; [] where the source does not know them.
        channel_names: of the images; [] where the source does not know them.
    """

    training: Cases = field(default_factory=list)
    validation: Cases = field(default_factory=list)
    test: Cases = field(default_factory=list)
    class_names: Sequence[str] = ()
    channel_names: Sequence[str] = ()

    @property
    def evaluation(self) -> Cases:
        """The cases for a test that have labels, else those for validation."""
        return [case for case in self.test if "label" in case] or self.validation


def read_source(
    path: Path,
    data_root: Path,
    problems: list[str],
    labelled: bool = True,
    *,
    in_channels: int | None = None,
    option: str = "img_list",
) -> Source:
    """Read a source of any kind.

    Args:
        path: text list (``image label`` a line), ``dataset.json`` of the Medical Segmentation Decathlon, of MONAI or of
            nnU-Net, a folder with one or with ``imagesTr`` and ``labelsTr``, a folder of DICOM series
            (:mod:`~med3d_nets.dicom_folders`), or a CSV table (:func:`~med3d_nets.tables.read_table`); without labels,
            also a volume or a folder of volumes.
            Absolute, or relative to ``data_root``, else to the working directory.
        data_root: folder that the paths in a text list or a table are relative to; those in a ``dataset.json`` are
            relative to its own, else to this ("": the working directory).
        problems: added to, a line for each.
        labelled: whether training and validation cases need labels; otherwise, they are left alone.
        in_channels: channels that an image of several files should have; None: any number.
        option: name of the option that gave the path, for messages.
    """
    found = find_path(option, path, data_root, problems)
    if found is None:
        return Source()
    root = os.path.abspath(data_root) if os.fspath(data_root) else ""
    content: dict[str, Any] = {}
    parts: Parts = {}
    if not os.path.isdir(found):
        kind = os.path.splitext(found)[1].lower()
        if kind == ".json":
            content, parts = _read_description(found, root, labelled, problems)
        elif kind == ".csv":
            parts = read_table(found, os.path.abspath(data_root), labelled, problems)
        elif not labelled and (found.lower().endswith(SUFFIXES) or is_dicom_file(found)):
            parts = {"test": [(found, {"image": found})]}
        else:
            parts = {"training": _read_text(found, os.path.abspath(data_root), labelled, problems)}
    elif not labelled and volumes_in(found):
        parts = {"test": _read_folder(found, in_channels, problems)}
    elif os.path.isfile(described := os.path.join(found, DESCRIPTION)):
        content, parts = _read_description(described, root, labelled, problems)
    elif is_layout(found):
        parts = read_layout(found, "", labelled, problems)
    elif labelled and is_dicom_tree(found):
        parts = {"training": read_tree(found, problems)}
    elif labelled:
        wanted = "one of them, DICOM series, or a list"
        problems.append(f"{found}: found a folder without {DESCRIPTION} and imagesTr; expected {wanted}")
    else:
        parts = {"test": _read_folder(found, in_channels, problems)}
    cases = _check_channels(parts, in_channels, problems)
    for case in (case for items in cases.values() for case in items):
        images = [series_path(image) for image in images_of(case)]
        case["image"] = images if len(images) > 1 else images[0]
        if labelled and (patient := patient_of(images[0])):
            case["dicom_patient"] = patient
    segments = _segment_names([case for items in cases.values() for case in items], problems)
    return Source(**cases, class_names=_class_names(content) or segments, channel_names=_channel_names(content))


def known_classes(path: Path, data_root: Path, n_seg_classes: int) -> list[str]:
    """Names of the classes, background first, of a source or of a ``dataset.json`` in the data's folder.

    Args:
        path, data_root: as for :func:`read_source`.
        n_seg_classes: number of names; [] is returned where the source knows another, since names are a courtesy.
    """
    for place in (path, os.path.join(data_root, DESCRIPTION)):
        names = list(read_source(place, data_root, []).class_names)
        if len(names) == n_seg_classes:
            return names
    return []


def default_val_list(img_list: Path, data_root: Path) -> str:
    """The list of validation cases where none is given: ``val.txt`` as upstream, none with a folder or a table.

    With a ``dataset.json``, it is ``val.txt`` if that is there.

    Args:
        img_list: source of the training cases.
        data_root: as for :func:`read_source`.
    """
    name = "val.txt"
    found = find_path("", img_list, data_root, []) or ""
    if os.path.isdir(found) or found.lower().endswith(".csv"):
        return ""
    return "" if found.lower().endswith(".json") and find_path("", name, data_root, []) is None else name


def _read_text(path: str, root: str, labelled: bool, problems: list[str]) -> list[Row]:
    rows = read_rows(path, FORMS[1:] if labelled else FORMS, problems, OTHERS)
    if no_folder(root, [field for _, row in rows for field in row], problems):
        return []
    keys = FORMS[labelled]
    return [
        (f"{path}, line {number}", {key: _join(root, value) for key, value in zip(keys, row, strict=False)})
        for number, row in rows
    ]


def _read_folder(folder: str, in_channels: int | None, problems: list[str]) -> list[Row]:
    """Images without labels in a folder; files are channels where more than one is expected."""
    paths = images_in(folder, problems)
    images = group_channels(paths, problems) if in_channels and in_channels > 1 else paths
    return [(folder, {"image": image}) for image in images]


def _read_description(path: str, root: str, labelled: bool, problems: list[str]) -> tuple[dict[str, Any], Parts]:
    """Content and cases of a ``dataset.json``; nnU-Net's second version leaves the cases to its folder's files."""
    content = _read_json(path, problems)
    if content is None:
        return {}, {}
    folder = os.path.dirname(path)
    if labelled and (value := _labels(content).get(IGNORED)) is not None:
        problems.append(f"{path}: found the label '{IGNORED}' ({value}); expected none: it would be learnt as a class")
    lists = _lists(content, labelled)
    if not lists["training"] and is_layout(folder):
        return content, read_layout(folder, str(content.get("file_ending", "")), labelled, problems)
    wanted = ("training", "validation") if labelled else tuple(lists)
    if not any(isinstance(lists[name], list) for name in wanted):
        has = ", ".join(key for key, value in content.items() if isinstance(value, list)) or "no list"
        problems.append(f"{path}: found {has}; expected a list 'training'")
    folders = [folder, *([root] if root else [])]
    parts: Parts = {}
    for name, items in lists.items():
        told = problems if name != "test" or not labelled else []
        rows = (
            _read_item(f"{path}, {name}[{number}]", item, folders, labelled and _needs_label(name, item), told)
            for number, item in enumerate(items if isinstance(items, list) else [])
        )
        parts[name] = [row for row in rows if row]
    return content, parts


def _needs_label(part: str, item: Any) -> bool:
    """Whether a case must have a label, or has one though it is for a test."""
    return part != "test" or (isinstance(item, dict) and bool(item.get("label")))


def _lists(content: Mapping[str, Any], labelled: bool) -> dict[str, Any]:
    """What a ``dataset.json`` has for each part, under the names of its kinds."""
    training, validation = content.get("training"), content.get("validation")
    if isinstance(listed := content.get("dataset"), dict):  # nnU-Net's, for files that lie elsewhere
        keys = {"image": "images", "label": "label"}
        training = [{key: dict(case).get(name) for key, name in keys.items()} for case in listed.values()]
    if isinstance(validation, list) and labelled:
        has_labels = any(isinstance(item, dict) and item.get("label") for item in validation)
        validation = validation if has_labels else None
    test = content.get("test") or content.get("testing")  # the latter is MONAI's Auto3DSeg's
    return {"training": training, "validation": validation, "test": test}


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


def _read_item(where: str, item: Any, folders: Sequence[str], labelled: bool, problems: list[str]) -> Row | None:
    given = item if isinstance(item, dict) else {"image": item}
    images = given.get("image")
    paths: list[Any] = images if isinstance(images, list) else [images]
    keys = ["image", "label"] if labelled else ["image"]
    if not paths or not all(isinstance(one, str) and one for one in [*paths, *(given.get(key) for key in keys[1:])]):
        wanted = ", ".join(f'"{key}": "path"' for key in keys)
        problems.append(f"{where}: found {json.dumps(item)[:200]}; expected {{{wanted}}}")
        return None
    files = [file for one in paths for file in _find_image(one, folders)]
    case: dict[str, Any] = {"image": files if len(files) > 1 else files[0]}
    if labelled:
        case["label"] = _find(given["label"], folders)
    fold = given.get("fold")
    return where, case if not isinstance(fold, int) else {**case, "fold": fold}


def _find_image(path: str, folders: Sequence[str]) -> list[str]:
    """A file, or those of the channels of an image that is named without them."""
    place = _find(path, folders)
    if os.path.exists(place):
        return [place]
    beside = (channels_of(_join(folder, path)) for folder in folders)
    return next((found for found in beside if found), [place])


def _find(path: str, folders: Sequence[str]) -> str:
    places = [_join(folder, path) for folder in folders]
    return next((place for place in places if os.path.exists(place)), places[-1])


def _check_channels(
    parts: Mapping[str, Iterable[Row]], in_channels: int | None, problems: list[str]
) -> dict[str, Cases]:
    """Cases of each part, without those that have another number of files; one problem for all of these."""
    wrong, cases = list[Row](), dict[str, Cases]()
    kinds: dict[bool, str] = {}
    for name, rows in parts.items():
        cases[name] = []
        for where, case in rows:
            count = len(images_of(case))
            if in_channels and count not in (1, in_channels):
                wrong.append((where, case))
            else:
                kinds.setdefault(count > 1, where)
                cases[name].append(case)
    if wrong:
        where, case = wrong[0]
        count = len(images_of(case))
        more = f", as {len(wrong) - 1} more cases have another number too" * (len(wrong) > 1)
        found = f"{json.dumps([os.path.basename(image) for image in images_of(case)])[:200]}, {count} files{more}"
        problems.append(
            f"{where}: found {found}; expected one file, or in_channels={in_channels}: --in_channels {count}?"
        )
    if len(kinds) > 1 and in_channels != 1:
        found = f"one file for all channels, but one for each in {kinds[True]}"
        problems.append(f"{kinds[False]}: found {found}; expected the same of all cases")
    return cases


def _labels(content: Mapping[str, Any]) -> dict[str, Any]:
    labels = content.get("labels")
    return labels if isinstance(labels, dict) else {}


def _class_names(content: Mapping[str, Any]) -> list[str]:
    """Names by value, whichever way the labels are written; [] where values are not 0, 1, 2, ..."""
    labels = _labels(content)
    if all(str(key).isdecimal() for key in labels):
        names = {int(key): str(name) for key, name in labels.items()}
    else:
        names = {value: str(name) for name, value in labels.items() if isinstance(value, int) and name != IGNORED}
        if len(names) < len(labels) - (IGNORED in labels):  # regions of several values, or values that are there twice
            return []
    return [names[value] for value in range(len(names))] if set(names) == set(range(len(names))) else []


def _segment_names(cases: Cases, problems: list[str]) -> list[str]:
    """Names of the classes of labels that are DICOM segmentations, of which each must number them alike."""
    names: dict[int, tuple[str, str]] = {}
    for label in (case["label"] for case in cases if "label" in case):
        for number, name in segment_names(label).items():
            known, first = names.setdefault(number, (name, label))
            if known.casefold() != name.casefold():
                expected = f"{known!r}, as in {first}: labels must number their classes alike"
                problems.append(f"{label}: found segment {number} named {name!r}; expected {expected}")
    found = {0: "background", **{number: name for number, (name, _) in names.items()}}
    return [found[value] for value in range(len(found))] if names and set(found) == set(range(len(found))) else []


def _channel_names(content: Mapping[str, Any]) -> list[str]:
    channels = content.get("channel_names", content.get("modality"))
    return [str(name) for name in channels.values()] if isinstance(channels, dict) else []


def _join(root: str, path: str) -> str:
    return os.path.abspath(os.path.join(root, path))
