"""Cases divided for validation: the classes' shares are kept, and the cases of one patient stay together.

MONAI's ``partition_dataset_classes`` keeps shares but not patients; scikit-learn's ``StratifiedGroupKFold`` does both.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from med3d_nets.classification.arrays import image_identity
from med3d_nets.classification.tables import Item
from med3d_nets.folds import connect, name_some

__all__ = ["divide", "division_problems", "group_numbers", "hold_out", "sort_items", "tell_of_unknown"]

BINS = 5
"""Bins of about as many cases that the numbers of a regression are sorted into."""

_log = logging.getLogger(__name__)


def group_numbers(items: Sequence[Item]) -> list[int]:
    """Number of the group of each item; those that share an image, a mask or a patient are in one."""
    return connect([_keys(item) for item in items]) if items else []


def _keys(item: Item) -> Iterable[tuple[str, str]]:
    yield "file", image_identity(item["image"])
    if "mask" in item:
        yield "file", image_identity(item["mask"])
    if item["patient"]:
        yield "patient", item["patient"]


def division_problems(
    items: Sequence[Item], folds: int, task: str, class_names: Sequence[str], source: object
) -> list[str]:
    """Why the cases of a list cannot be divided, a problem a line.

    Args:
        items: all of the list.
        folds: number of parts; 0: a share is held out.
        task, class_names: as for :func:`~med3d_nets.classification.classes.encode`.
        source: the list, for messages.
    """
    groups = group_numbers(items)
    apart, least = len(set(groups)), folds or 2
    together = f", {apart} apart: the others are of the same patients or have the same files"
    if apart < least:
        number = f"{len(items)} case{'s' * (len(items) > 1)}{together * (apart < len(items))}"
        wanted = f"one for each of {folds} folds" if folds else "one of them to hold out, or a val_list"
        return [f"{source}: found {number}; expected at least {least}, {wanted}"]
    if task == "regression":
        return []
    pairs = {(item["label"], group) for item, group in zip(items, groups, strict=True)}
    times = Counter(label for label, _ in pairs)
    problems = []
    if single := [name for label, name in enumerate(class_names) if times[label] == 1]:
        expected = "expected at least two, to train and to validate"
        problems.append(f"{source}: found a single case or patient of class {name_some(single)}; {expected}")
    most = max(Counter(item["label"] for item in items).values())
    if most < folds:
        problems.append(
            f"{source}: found at most {most} cases of a class; expected {folds} at least, for {folds} folds"
        )
    return problems


def divide(items: Sequence[Item], folds: int, seed: int, task: str) -> list[list[Item]]:
    """As many parts as there are folds, disjoint and complete, each sorted; no group of cases is in two.

    scikit-learn's ``StratifiedGroupKFold`` deals the groups so that the parts have similar shares of the classes, or,
    in a regression, of small and large numbers. The order of the items makes no difference.

    Args:
        items: without :func:`division_problems`.
        folds: number of parts.
        seed: of the order in which groups are dealt.
        task: one of :data:`~med3d_nets.classification.settings.TASKS`.
    """
    items = sort_items(items)
    labels = [item["label"] for item in items]
    strata = _bins(labels, folds) if task == "regression" else np.array(labels)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # of classes with fewer cases than folds: the list's own warning names them
        warnings.simplefilter("ignore", UserWarning)
        parts = [part for _, part in splitter.split(strata, strata, group_numbers(items))]
    return [[items[index] for index in part] for part in parts]


def hold_out(items: Sequence[Item], fraction: float, seed: int, task: str) -> tuple[list[Item], list[Item]]:
    """Training and validation cases, each sorted.

    Of the groups of each class, this share is held out, at least one and not all of them; a group with several classes
    counts for the rarest of them. In a regression, groups are sorted by their mean into up to five bins instead.

    Args:
        items: without :func:`division_problems`.
        fraction: share to hold out.
        seed: of the draw.
        task: one of :data:`~med3d_nets.classification.settings.TASKS`.
    """
    items = sort_items(items)
    groups: dict[int, list[int]] = {}
    for index, number in enumerate(group_numbers(items)):
        groups.setdefault(number, []).append(index)
    labels = [[items[index]["label"] for index in group] for group in groups.values()]
    if task == "regression":
        strata = _bins([float(np.mean(own)) for own in labels], math.ceil(1 / fraction))
    else:
        counts = Counter(label for own in labels for label in own)
        strata = np.array([min(own, key=lambda label: (counts[label], label)) for own in labels])
    outside: set[int] = set()
    for stratum in np.unique(strata):
        same = [group for group, other in zip(groups.values(), strata, strict=True) if other == stratum]
        if len(same) > 1:
            held = min(max(1, round(fraction * len(same))), len(same) - 1)
            outside.update(*train_test_split(same, test_size=held, random_state=seed)[1])
    training, validation = (
        [item for index, item in enumerate(items) if (index in outside) == held] for held in (False, True)
    )
    found = (len(validation), len(items), fraction, seed)
    _log.info("holding out %d of %d cases for validation (fraction %g, seed %d)", *found)
    return training, validation


def tell_of_unknown(items: Sequence[Item], effect: str, level: int = logging.WARNING) -> None:
    """Say in the log of how many cases no patient is known, and what comes of it.

    Args:
        items: with patients, or "".
        effect: what comes of it.
        level: of the line.
    """
    if unknown := sum(not item["patient"] for item in items):
        hint = "give --patient_pattern, or a CSV with a column patient"
        _log.log(level, "no patient is known of %d of %d cases: %s; %s", unknown, len(items), effect, hint)


def sort_items(items: Iterable[Item]) -> list[Item]:
    """The items by image and region."""
    return sorted(items, key=lambda item: (item["image"], item.get("mask", ""), item.get("center", [])))


def _bins(numbers: Sequence[float], least: int) -> NDArray[np.int64]:
    """Bin of each number; at least ``least`` of them are in each of up to five, unless there are fewer."""
    bins = max(1, min(BINS, len(numbers) // least))
    ranks = np.argsort(np.argsort(numbers, kind="stable"), kind="stable")
    return ranks * bins // len(numbers)
