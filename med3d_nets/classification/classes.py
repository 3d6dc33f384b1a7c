"""Labels as they are written, and the class indices or numbers that networks learn."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from med3d_nets.classification.settings import TASKS
from med3d_nets.classification.tables import Item, Row, Table, without_point
from med3d_nets.folds import name_some

__all__ = [
    "absent_classes",
    "class_problems",
    "encode",
    "find_names",
    "name_problems",
    "number_problems",
    "warn_of_absent",
    "warn_of_single",
]

_WHOLE = re.compile(r"[+-]?\d+")

MANY_CLASSES = 10
"""From so many on, names that are numbers may be meant as numbers to predict."""
_log = logging.getLogger(__name__)


def name_problems(task: Any, class_names: Any) -> list[str]:
    """What is wrong with these options themselves, a problem a line."""
    if task not in TASKS:
        return [f"task: found {task!r}; expected {' or '.join(TASKS)}"]
    if isinstance(class_names, str) or not isinstance(class_names, Sequence):
        return [f"class_names: found {class_names!r}; expected a list of names"]
    problems = []
    names = [without_point(name) for name in class_names]
    if twice := sorted(name for name, times in Counter(names).items() if times > 1):
        problems.append(f"class_names: found {', '.join(twice)} more than once; expected different names")
    if task == "classification" and len(names) == 1:
        problems.append(f"class_names: found {names[0]} alone; expected at least two names")
    if task == "regression" and len(names) > 1:
        problems.append(f"class_names: found {len(names)} names; expected that of one number, for a regression")
    return problems


def find_names(table: Table, task: str) -> list[str]:
    """The classes of a list: whole numbers in their order, anything else sorted; or the name of the number.

    Whole numbers are named without a point: programs write ``1.0`` for ``1`` where a column has an empty cell.
    """
    if task == "regression":
        return [table.target]
    values = {without_point(row.label) for row in table.rows if row.label.lower() not in ("", "nan")}
    if all(_WHOLE.fullmatch(value) for value in values):
        return sorted(values, key=lambda value: (int(value), value))
    return sorted(values)


def encode(rows: Iterable[Row], task: str, class_names: Sequence[str], problems: list[str]) -> list[Item]:
    """Items with their "label": the index of a class, or a number.

    Where no class is named by a whole number, a list may have the classes' indices in place of their names. A whole
    number is the same with a point, ``1.0`` for ``1``, in a list and in ``class_names``.

    Args:
        rows: of a list.
        task: one of :data:`~med3d_nets.classification.settings.TASKS`.
        class_names: of classes, in the order of their indices.
        problems: one is added for each unknown class and for each label that is no number.
    """
    if task == "regression":
        return [{**row.item, "label": _number(row, problems)} for row in rows]
    known = {without_point(name): index for index, name in enumerate(class_names)}
    if not any(_WHOLE.fullmatch(name) for name in known):
        known |= {str(index): index for index in range(len(class_names))}
    items, unknown = [], dict[str, list[str]]()
    for row in rows:
        if (name := without_point(row.label)) in known:
            items.append({**row.item, "label": known[name]})
        else:
            unknown.setdefault(row.label, []).append(row.where)
    for label, places in unknown.items():
        more = f" and {len(places) - 1} more" * (len(places) > 1)
        problems.append(f"{places[0]}{more}: found class {label!r}; expected one of {', '.join(class_names)}")
    return items


def _number(row: Row, problems: list[str]) -> float:
    try:
        value = float(row.label)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        problems.append(f"{row.where}: found {row.label!r}; expected a finite number")
    return value


def number_problems(task: str, class_names: Sequence[str], source: object) -> list[str]:
    """What is wrong with the number of the classes that a list has.

    Args:
        task, class_names: as for :func:`encode`.
        source: the list, for messages.
    """
    if task == "regression" or len(class_names) > 1:
        return []
    found = f"class {class_names[0]} alone" if class_names else "no class"
    return [f"{source}: found {found}; expected at least two"]


def class_problems(items: Sequence[Item], task: str, class_names: Sequence[str], source: object) -> list[str]:
    """What training cannot do with the classes of its cases, a problem a line.

    Args:
        items: the training cases.
        task, class_names: as for :func:`encode`.
        source: the list that they are of, for messages.
    """
    if task == "regression":
        return [f"{source}: found a single case; expected at least two"] if len(items) < 2 else []
    absent = absent_classes(items, class_names)
    return [f"{source}: found no case of {', '.join(absent)}; expected some of each of class_names"] if absent else []


def absent_classes(items: Iterable[Item], class_names: Sequence[str]) -> list[str]:
    """Names of the classes without a case."""
    present = {item["label"] for item in items}
    return [name for index, name in enumerate(class_names) if index not in present]


def warn_of_absent(items: Sequence[Item], task: str, class_names: Sequence[str]) -> None:
    """Warn of classes that cannot be validated."""
    if task == "classification" and (absent := absent_classes(items, class_names)):
        _log.warning("none of the %d cases to validate with is of %s", len(items), name_some(absent))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def warn_of_single(items: Sequence[Item], task: str, class_names: Sequence[str]) -> None:
    """Warn where most classes have a single training case, as identifiers and numbers in place of classes have."""
    if task == "regression":
        return
    times = Counter(item["label"] for item in items)
    single = [name for label, name in enumerate(class_names) if times[label] == 1]
    if 2 * len(single) > len(class_names):
        numbers = len(class_names) >= MANY_CLASSES and all(map(_is_number, class_names))
        hint = "; numbers to predict need --task regression" if numbers else ""
        found = (len(single), len(class_names), name_some(single), hint)
        _log.warning("%d of %d classes have a single case to train on: %s%s", *found)
