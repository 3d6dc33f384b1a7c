"""Folders in nnU-Net's layout: ``imagesTr``, ``labelsTr``, ``imagesTs``, with a file for each channel of a case.

``case_0000.nii.gz`` and ``case_0001.nii.gz`` are the channels of ``case``, whose label is ``case.nii.gz``
(nnU-Net's ``documentation/dataset_format.md``). Images that have their label's name are of one channel, as in the
Medical Segmentation Decathlon. Any format that is read may be there; an image may be the folder of a DICOM series, a
label a DICOM segmentation.
``labelsTs``, which nnU-Net leaves alone and people keep beside the others, has labels of a test.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Iterable
from typing import Any, TypeAlias

from med3d_nets.dicom_seg import is_segmentation
from med3d_nets.folds import name_some
from med3d_nets.formats import SUFFIXES
from med3d_nets.list_files import volumes_in

__all__ = ["TRAINING", "Row", "channels_of", "group_channels", "is_layout", "read_layout"]

Row: TypeAlias = tuple[str, dict[str, Any]]
"""Where a case is listed, for messages, and its item."""

TRAINING, LABELS, TEST, TEST_LABELS = "imagesTr", "labelsTr", "imagesTs", "labelsTs"
DICOM = ".dcm"
"""What files of segmentations may end with."""
_CHANNEL = re.compile(r"(.+)_(\d{4})")


def is_layout(folder: str) -> bool:
    """Whether a folder has images for training or for a test in nnU-Net's layout."""
    return any(os.path.isdir(os.path.join(folder, name)) for name in (TRAINING, TEST))


def read_layout(folder: str, ending: str, labelled: bool, problems: list[str]) -> dict[str, list[Row]]:
    """Cases of a folder in nnU-Net's layout, by "training" and "test".

    Args:
        folder: absolute path.
        ending: of the files, as a ``dataset.json`` names it; "": any that is read.
        labelled: whether training cases need a label; those of a test get theirs where there is one.
        problems: added to for a training case without a label or without an image, and for missing channels.
    """
    images, tests = (_volumes(os.path.join(folder, name), ending, problems) for name in (TRAINING, TEST))
    labels = _labels(os.path.join(folder, LABELS), ending, problems)
    test_labels = _labels(os.path.join(folder, TEST_LABELS), ending, problems) if labelled else {}
    cases = _cases(os.path.join(folder, TRAINING), images, set(labels) if labels else None, problems)
    if labelled:
        problems += _unpaired(folder, cases, labels)
    training = [
        (f"{folder}, case {name}", {"image": paths, **({"label": labels[name]} if labelled else {})})
        for name, paths in cases.items()
        if name in labels or not labelled
    ]
    # Labels tell how training images are named, and these how the others are.
    single = None if not cases or set(cases) != set(images) else set(tests)
    found = _cases(os.path.join(folder, TEST), tests, single, [] if labelled else problems)
    test = [
        (f"{folder}, case {name}", {"image": paths, **({"label": test_labels[name]} if name in test_labels else {})})
        for name, paths in found.items()
    ]
    return {"training": training, "test": test}


def group_channels(paths: Iterable[str], problems: list[str]) -> list[str | list[str]]:
    """Images of one folder, each a path or, where all are named as channels are, the paths of its channels."""
    volumes = _by_stem(paths, problems)
    folder = os.path.dirname(next(iter(volumes.values()), ""))
    return list(_cases(folder, volumes, None, problems).values())


def channels_of(path: str) -> list[str]:
    """Paths of the channels of an image that a list names without them, as those of nnU-Net's first version do."""
    stem, suffix = _split(path)
    found = sorted(glob.glob(f"{glob.escape(stem)}_[0-9][0-9][0-9][0-9]{suffix}"))
    return found if [_split(name)[0] for name in found] == [f"{stem}_{n:04}" for n in range(len(found))] else []


def _volumes(folder: str, ending: str, problems: list[str]) -> dict[str, str]:
    if not os.path.isdir(folder):
        return {}
    paths = [path for path in volumes_in(folder) if os.path.isdir(path) or path.lower().endswith(ending.lower())]
    return _by_stem(paths, problems)


def _labels(folder: str, ending: str, problems: list[str]) -> dict[str, str]:
    """As :func:`_volumes`, and DICOM segmentations: files, or folders of one each."""
    found = _volumes(folder, ending, problems)
    if not os.path.isdir(folder):
        return found
    others = (os.path.join(folder, name) for name in sorted(os.listdir(folder)) if not name.startswith("."))
    segmentations = [path for path in others if not path.lower().endswith(SUFFIXES) and is_segmentation(path)]
    return _by_stem([*found.values(), *segmentations], problems)


def _by_stem(paths: Iterable[str], problems: list[str]) -> dict[str, str]:
    volumes: dict[str, str] = {}
    for path in paths:
        stem = os.path.basename(_split(path)[0])
        if stem in volumes:
            problems.append(f"{path}: found beside {volumes[stem]}; expected one file of that name")
        volumes[stem] = path
    return volumes


def _cases(
    folder: str, volumes: dict[str, str], single: Collection[str] | None, problems: list[str]
) -> dict[str, str | list[str]]:
    """Images by the name of their case: paths, or lists of their channels' paths.

    Args:
        folder: for messages.
        volumes: paths by stem.
        single: stems that are a case's name; None: none, if all stems are those of channels, otherwise all.
        problems: one is added for each case with channels missing.
    """
    matches = {stem: _CHANNEL.fullmatch(stem) for stem in volumes}
    if single is None:
        named = {match[1] for match in matches.values() if match and match[2] == "0000"}
        single = () if all(match and match[1] in named for match in matches.values()) else volumes
    cases: dict[str, dict[int, str]] = {}
    for stem, path in volumes.items():
        match = None if stem in single else matches[stem]
        name, channel = (match[1], int(match[2])) if match else (stem, 0)
        cases.setdefault(name, {})[channel] = path
    complete = {}
    for name, channels in cases.items():
        if (numbers := sorted(channels)) == list(range(len(channels))):
            paths = [channels[number] for number in numbers]
            complete[name] = paths if len(paths) > 1 else paths[0]
        else:
            found = ", ".join(f"_{number:04}" for number in numbers)
            problems.append(f"{folder}, case {name}: found channels {found}; expected all from _0000 to the last")
    return complete


def _unpaired(folder: str, images: Collection[str], labels: Collection[str]) -> list[str]:
    """A line for images without labels, and one for labels without images."""
    problems = []
    for place, one, other, expected in (
        (LABELS, images, labels, f"a label for each image in {TRAINING}"),
        (TRAINING, labels, images, f"an image for each label in {LABELS}"),
    ):
        if missing := [name for name in one if name not in other]:
            found = f"nothing for case {name_some(missing)}"
            problems.append(f"{os.path.join(folder, place)}: found {found}; expected {expected}")
    return problems


def _split(path: str) -> tuple[str, str]:
    """A path without its suffix, and that; a folder has none."""
    suffix = next(
        (end for end in (*SUFFIXES[::-1], DICOM) if path.lower().endswith(end) and not os.path.isdir(path)), ""
    )
    return path[: len(path) - len(suffix)], path[len(path) - len(suffix) :]
