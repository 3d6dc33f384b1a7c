"""Classes in lists become indices, and numbers stay numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from med3d_nets.classification.classes import (
    MANY_CLASSES,
    class_problems,
    encode,
    find_names,
    name_problems,
    number_problems,
    warn_of_absent,
    warn_of_single,
)
from med3d_nets.classification.tables import Row, Table


def rows(labels: Iterable[str]) -> list[Row]:
    return [Row(f"list, line {number}", label, {"image": f"{number}"}) for number, label in enumerate(labels, 1)]


def labels_of(labels: Iterable[str], task: str, names: Sequence[str]) -> list[Any]:
    problems: list[str] = []
    items = encode(rows(labels), task, names, problems)
    assert problems == []
    return [item["label"] for item in items]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "9", "9", "-1"], ["-1", "9", "10"]),
        (["b", "10", "9", "a"], ["10", "9", "a", "b"]),
        (["1.0", "0.0", "10.0", "2"], ["0", "1", "2", "10"]),
        (["1.5", "1.0"], ["1", "1.5"]),
        (["1", "nan", "0", ""], ["0", "1"]),
    ],
)
def test_order_of_classes(labels: list[str], names: list[str]) -> None:
    assert find_names(Table(rows(labels)), "classification") == names
    assert find_names(Table(rows(labels), "age"), "regression") == ["age"]


def test_labels_become_indices() -> None:
    assert labels_of(["c", "a", "c"], "classification", ["c", "b", "a"]) == [0, 2, 0]
    assert labels_of(["3", "7"], "classification", ["7", "3"]) == [1, 0]


def test_whole_numbers_may_have_a_point() -> None:
    assert labels_of(["1", "1.0", "0.", "-1.00"], "classification", ["-1", "0.0", "1"]) == [2, 2, 1, 0]
    assert labels_of(["1.0", "0.0"], "classification", ["good", "bad"]) == [1, 0]
    problems: list[str] = []
    encode(rows(["1.5", "0", "v1.0"]), "classification", ["0", "1"], problems)
    assert ["'1.5'" in problems[0], "'v1.0'" in problems[1]] == [True, True]


def test_indices_stand_for_names_that_are_no_numbers() -> None:
    assert labels_of(["1", "0", "bad"], "classification", ["good", "bad"]) == [1, 0, 1]
    problems: list[str] = []
    encode(rows(["0", "2"]), "classification", ["1", "2"], problems)
    assert len(problems) == 1
    assert "'0'" in problems[0]


def test_unknown_classes_are_named_once_each() -> None:
    problems: list[str] = []
    items = encode(rows(["a", "x", "b", "x", "nan", "2"]), "classification", ["a", "b"], problems)
    assert [item["label"] for item in items] == [0, 1]
    assert len(problems) == 3
    assert all(part in problems[0] for part in ("line 2 and 1 more", "'x'", "expected one of a, b"))
    assert "line 5:" in problems[1]


def test_numbers() -> None:
    assert labels_of(["1", "-2.5e1"], "regression", ["age"]) == [1.0, -25.0]
    problems: list[str] = []
    encode(rows(["1", "nan", "inf", "old"]), "regression", ["age"], problems)
    assert len(problems) == 3
    assert all(part in problems[2] for part in ("line 4", "'old'", "finite number"))


def test_problems_of_the_training_classes() -> None:
    items = [{"label": 0}, {"label": 0}, {"label": 2}]
    assert class_problems(items, "classification", ["a", "b", "c"], "list") == [
        "list: found no case of b; expected some of each of class_names"
    ]
    assert class_problems(items[:2], "classification", ["a", "b"], "list")
    assert class_problems(items, "regression", ["age"], "list") == []
    assert "single case" in class_problems(items[:1], "regression", ["age"], "list")[0]


def test_number_of_classes() -> None:
    assert number_problems("classification", ["a"], "list") == ["list: found class a alone; expected at least two"]
    assert number_problems("classification", [], "list") == ["list: found no class; expected at least two"]
    assert number_problems("classification", ["a", "b"], "list") == number_problems("regression", ["age"], "list") == []


def test_classes_of_one_case_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    items = [{"label": label} for label in (0, 0, 1, 2)]
    warn_of_single(items[:3], "classification", ["a", "b"])
    warn_of_single([{"label": 1.0}], "regression", ["age"])
    assert not caplog.records
    warn_of_single(items, "classification", ["a", "b", "c"])
    numbers = [f"{index}.5" for index in range(MANY_CLASSES)]
    warn_of_single([{"label": label} for label in range(MANY_CLASSES)], "classification", numbers)
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "2 of 3 classes have a single case to train on: b, c"
    assert second.endswith("; numbers to predict need --task regression")


def test_class_that_is_not_validated_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_absent([{"label": 1}, {"label": 0}], "classification", ["a", "b"])
    warn_of_absent([{"label": 1.0}], "regression", ["age"])
    assert not caplog.records
    warn_of_absent([{"label": 1}], "classification", ["a", "b"])
    assert "none of the 1 cases to validate with is of a" in caplog.text


@pytest.mark.parametrize(
    ("task", "names", "part"),
    [
        ("segmentation", [], "task: found 'segmentation'"),
        ("classification", "ab", "'ab'; expected a list"),
        ("classification", 3, "3; expected a list"),
        ("classification", ["a"], "a alone"),
        ("classification", ["1", 1], "1 more than once"),
        ("classification", [0, "1.0", 1], "1 more than once"),
        ("regression", ["a", "b"], "2 names"),
    ],
)
def test_bad_options(task: Any, names: Any, part: str) -> None:
    problems = name_problems(task, names)
    assert len(problems) == 1
    assert part in problems[0]


def test_good_options() -> None:
    for task, names in (("classification", ()), ("classification", [0, 1]), ("regression", ["age"])):
        assert name_problems(task, names) == []
