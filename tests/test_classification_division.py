"""Cases are divided by patient, and every part has its share of the classes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from med3d_nets.classification.division import divide, division_problems, group_numbers, hold_out, sort_items

Items = list[dict[str, Any]]


def item(name: str, label: Any, patient: str = "", **region: Any) -> dict[str, Any]:
    return {"image": f"/data/{name}.nii", "label": label, "patient": patient, **region}


def many(count: int = 100, rare: int = 20, patients: int = 40) -> Items:
    """Cases of 40 patients, of whom some have both classes."""
    order = random.Random(0)
    labels = [1] * rare + [0] * (count - rare)
    return [item(f"{index:03}", label, f"p{order.randrange(patients)}") for index, label in enumerate(labels)]


def patients_of(items: Items) -> set[str]:
    return {one["patient"] for one in items}


def names_of(items: Iterable[dict[str, Any]]) -> list[str]:
    return [one["image"] for one in items]


def shuffled(items: Items) -> Items:
    return random.Random(1).sample(items, len(items))


def test_what_stays_together() -> None:
    items = [
        item("a", 0, "p"),
        item("b", 0, "p"),
        item("b", 1, "", center=[0.0, 0.0, 0.0], size_mm=1.0),
        item("c", 0),
        item("d", 0, "", mask="/data/m.nii"),
        item("e", 0, "", mask="/data/m.nii"),
    ]
    a, b, again, c, d, e = group_numbers(items)
    assert a == b == again != c
    assert c != d == e != a
    assert group_numbers([]) == []


def test_folds_have_the_shares_of_the_classes_and_no_patient_twice() -> None:
    items = many()
    parts = divide(items, 5, 1, "classification")
    assert sorted(names_of(one for part in parts for one in part)) == names_of(items)
    for number, part in enumerate(parts):
        assert part == sort_items(part)
        assert all(not patients_of(part) & patients_of(other) for other in parts[number + 1 :])
        counts = Counter(one["label"] for one in part)
        assert abs(counts[1] - 4) <= 1
        assert abs(counts[0] - 16) <= 2


def test_division_depends_on_the_seed_and_not_on_the_order() -> None:
    items = many()
    assert divide(shuffled(items), 5, 1, "classification") == divide(items, 5, 1, "classification")
    assert divide(items, 5, 2, "classification") != divide(items, 5, 1, "classification")
    assert hold_out(shuffled(items), 0.2, 1, "classification") == hold_out(items, 0.2, 1, "classification")
    assert hold_out(items, 0.2, 2, "classification") != hold_out(items, 0.2, 1, "classification")


def test_folds_of_numbers_have_small_and_large_ones() -> None:
    items = [item(f"{index:02}", float(index**2)) for index in range(50)]
    for part in divide(items, 5, 1, "regression"):
        assert Counter(int(np.sqrt(one["label"])) // 10 for one in part) == dict.fromkeys(range(5), 2)
    assert [len(part) for part in divide(items[:5], 5, 1, "regression")] == [1] * 5


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.35, 0.8])
def test_held_out_share(fraction: float, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    items = [item(f"{index:03}", int(index < 40)) for index in range(200)]
    training, validation = hold_out(items, fraction, 1, "classification")
    assert Counter(one["label"] for one in validation) == {0: round(160 * fraction), 1: round(40 * fraction)}
    assert sorted(names_of([*training, *validation])) == names_of(items)
    assert training == sort_items(training)
    assert f"holding out {round(200 * fraction)} of 200 cases" in caplog.text


def test_hold_out_by_patient() -> None:
    items = many()
    training, validation = hold_out(items, 0.25, 1, "classification")
    assert not patients_of(training) & patients_of(validation)
    counts = Counter(one["label"] for one in validation)
    assert abs(counts[1] - 5) <= 2
    assert abs(counts[0] - 20) <= 6


def test_each_class_is_held_out_and_left_however_few_it_has() -> None:
    items = [*(item(f"a{index}", 0) for index in range(50)), item("b", 1), item("c", 1), item("d", 2), item("e", 2)]
    for fraction in (0.01, 0.99):
        for part in hold_out(items, fraction, 1, "classification"):
            assert {one["label"] for one in part} == {0, 1, 2}


def test_hold_out_of_numbers() -> None:
    items = [item(f"{index:02}", float(index)) for index in range(50)]
    validation = hold_out(items, 0.2, 1, "regression")[1]
    assert Counter(int(one["label"]) // 10 for one in validation) == dict.fromkeys(range(5), 2)
    two = [item(f"{index:02}", float(index), f"p{index // 10}") for index in range(20)]
    assert [len(part) for part in hold_out(two, 0.2, 1, "regression")] == [10, 10]


def problems(items: Items, folds: int = 0, task: str = "classification") -> list[str]:
    return division_problems(items, folds, task, ["a", "b"], "list")


def test_what_cannot_be_divided() -> None:
    pairs = [item("a", 0), item("b", 1), item("c", 0), item("d", 1)]
    assert problems(pairs) == problems(pairs, 2) == problems(pairs[:2], 2, "regression") == []
    assert "1 case; expected at least 2, one of them to hold out" in problems(pairs[:1])[0]
    assert "4 cases; expected at least 5, one for each of 5 folds" in problems(pairs, 5)[0]
    assert "at most 2 cases of a class; expected 3 at least" in problems(pairs, 3)[0]
    assert "single case or patient of class b" in problems(pairs[:3])[0]
    same = [item("a", 0, "p"), item("b", 0, "p"), item("c", 1, "q"), item("d", 1, "r")]
    assert "single case or patient of class a" in problems(same)[0]
    assert "2 cases, 1 apart" in problems(same[:2])[0]
