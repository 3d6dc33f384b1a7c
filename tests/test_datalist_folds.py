"""Data lists: cross-validation, patients, and the cases of an evaluation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from test_datalist import decathlon, items, make_cases, message, only_line, write_list

from med3d_nets import datalist
from med3d_nets.datalist import load_cases, load_datalist, load_evaluation_cases

NAMES = ["p1_a", "p1_b", "p2_a", "p3_a", "p3_b", "p4_a", "p5_a"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_cases(folder, NAMES)
    write(folder, "all.txt", NAMES)
    write(folder, "reversed.txt", NAMES[::-1])
    write(folder, "val.txt", NAMES[-1:])
    return folder


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where volumes are read: what is wrong with options or patients comes before."""

    def fail(*_: Any) -> list[str]:
        raise AssertionError("files were read")

    monkeypatch.setattr(datalist, "check_cases", fail)


def write(root: Path, to: str, names: list[str]) -> str:
    return write_list(root, names, to)


def load(root: Path, img_list: str = "all.txt", val_list: str = "", **options: Any) -> dict[str, list[str]]:
    lists = load_datalist(root, img_list, val_list, n_seg_classes=3, **options)
    return {key: names_of(cases) for key, cases in lists.items()}


def names_of(cases: list[dict[str, str]]) -> list[str]:
    return [Path(case["image"]).name.split(".")[0] for case in cases]


def evaluated(root: Path, val_list: str = "val.txt", **options: Any) -> list[str]:
    return names_of(load_evaluation_cases(root, "all.txt", val_list, n_seg_classes=3, **options))


def test_each_case_is_held_out_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    lists = [load(root, val_list="val.txt", folds=3, fold=fold) for fold in range(3)]
    assert sorted(name for fold in lists for name in fold["validation"]) == NAMES
    assert sorted(len(fold["validation"]) for fold in lists) == [2, 2, 3]
    for number, fold in enumerate(lists):
        assert sorted(fold["training"] + fold["validation"]) == NAMES
        assert fold["planning"] == NAMES
        assert f"fold {number} of 3 of all.txt; val_list is left out" in caplog.text
        assert load(root, "reversed.txt", "no such list", folds=3, fold=number) == fold
    assert any(load(root, folds=3, fold=0, seed=seed) != lists[0] for seed in (2, 3))


def test_patients_are_in_one_fold(root: Path) -> None:
    for fold in range(3):
        lists = load(root, folds=3, fold=fold, patient_pattern=r"p\d")
        assert not {name[:2] for name in lists["training"]} & {name[:2] for name in lists["validation"]}


def test_hold_out_keeps_patients_together(root: Path) -> None:
    for seed in range(6):
        lists = load(root, patient_pattern=r"p\d", val_fraction=0.4, seed=seed)
        assert len({name[:2] for name in lists["validation"]}) == 2
        assert not {name[:2] for name in lists["training"]} & {name[:2] for name in lists["validation"]}
        assert lists["planning"] == lists["training"]


def test_decathlon_training_section_is_divided(root: Path) -> None:
    path = decathlon(root, training=items(NAMES[:4]), validation=items(NAMES[4:]))
    assert load(root, path, folds=2, fold=0)["planning"] == NAMES[:4]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"folds": 1}, ["folds: found 1; expected"]),
        ({"folds": 5}, ["--folds 5 needs --fold, 0 to 4: one training each"]),
        ({"folds": 5, "fold": 5}, ["fold: found 5; expected 0 to 4"]),
        ({"fold": 0}, ["fold: found 0 without folds"]),
        ({"patient_pattern": "("}, ["patient_pattern: found '('", "regular expression"]),
        ({"folds": 8, "fold": 0}, ["all.txt: found 7 cases; expected at least 8, one for each of 8 folds"]),
        ({"folds": 6, "fold": 0, "patient_pattern": r"p\d"}, ["7 cases, 5 apart: the others", "at least 6"]),
        ({"folds": 2, "fold": 0, "patient_pattern": "image"}, ["7 cases, 1 apart", "at least 2"]),
        ({"patient_pattern": "image"}, ["7 cases, 1 apart", "at least 2, one of them to hold out"]),
        ({"folds": 2, "fold": 0, "patient_pattern": "_b"}, ["nothing in 5 of 7 paths, images/p1_a.nii.gz"]),
        ({"patient_pattern": "_b"}, ["nothing in 5 of 7 paths"]),
    ],
)
def test_problems_come_before_files_are_read(root: Path, options: Any, parts: list[str], unread: None) -> None:
    lines = message(load_datalist, root, "all.txt", n_seg_classes=3, **options).splitlines()
    assert lines[0] == "the data list has 1 problem:"
    assert all(part in lines[1] for part in parts)


def test_patient_on_both_sides(root: Path, unread: None) -> None:
    write(root, "train.txt", ["p1_a", "p2_a"])
    write(root, "test.txt", ["p1_b", "p3_a"])
    given = (root, "train.txt", "test.txt")
    paths = [str(root / f"images/{name}.nii.gz") for name in ("p1_a", "p1_b")]
    only_line(message(load_datalist, *given, n_seg_classes=3, patient_pattern=r"p\d"), "'p1'", *paths)
    text = message(load_evaluation_cases, *given, n_seg_classes=3, patient_pattern=r"p\d", folds=2)
    only_line(text, "'p1'", *paths)


def test_other_patients_on_both_sides_load(root: Path) -> None:
    write(root, "train.txt", ["p1_a", "p2_a"])
    lists = load(root, "train.txt", "val.txt", patient_pattern=r"p\d")
    assert lists == {"training": ["p1_a", "p2_a"], "validation": ["p5_a"], "planning": ["p1_a", "p2_a"]}


# Evaluation


def test_cases_of_an_evaluation(root: Path) -> None:
    assert evaluated(root) == ["p5_a"]
    assert evaluated(root, folds=3) == ["p5_a"]
    for fold in range(3):
        options = {"folds": 3, "fold": fold, "seed": 4, "patient_pattern": r"p\d"}
        assert evaluated(root, "no such list", **options) == load(root, **options)["validation"]


def test_patients_that_a_pattern_finds_are_noted(root: Path) -> None:
    """For the record of a training, and for intervals by patient."""
    lists = load_datalist(root, "all.txt", "", n_seg_classes=3, patient_pattern=r"p\d")
    for case in (*lists["training"], *lists["validation"]):
        assert case["patient"] == Path(case["image"]).name[:2]
    (case,) = load_evaluation_cases(root, "train.txt", "val.txt", n_seg_classes=3, patient_pattern=r"p(\d)")
    assert case["patient"] == "5"
    text = message(load_evaluation_cases, root, "train.txt", "val.txt", n_seg_classes=3, patient_pattern="nobody")
    assert "nothing in 1 of 1 paths" in text


def test_evaluation_keeps_the_order_of_its_list(root: Path) -> None:
    cases = load_evaluation_cases(root, "no such list", "reversed.txt", n_seg_classes=3)
    assert cases == load_cases(root, "reversed.txt", n_seg_classes=3)
    assert names_of(cases) == NAMES[::-1]


def test_evaluation_of_a_decathlon_file_is_of_its_validation_section(root: Path) -> None:
    path = decathlon(root, training=items(NAMES[:4]), validation=items(NAMES[4:]))
    assert evaluated(root, path) == NAMES[4:]


def test_only_the_held_out_files_are_read(root: Path, tmp_path: Path) -> None:
    write(tmp_path, "all.txt", NAMES)
    held = evaluated(root, folds=3, fold=1)
    make_cases(tmp_path, held)
    assert evaluated(tmp_path, folds=3, fold=1) == held


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"folds": 1}, "folds: found 1"),
        ({"folds": 3, "fold": 3}, "fold: found 3; expected 0 to 2"),
        ({"fold": 1}, "fold: found 1 without folds"),
        ({"folds": 9, "fold": 1}, "all.txt: found 7 cases; expected at least 9"),
        ({"folds": 3, "patient_pattern": "_b"}, "found nothing in 5 of 7 paths"),
        ({"val_list": "typo.txt"}, "val_list typo.txt: found no such file"),
        ({"val_list": "typo.txt", "folds": 3, "patient_pattern": r"p\d"}, "val_list typo.txt: found no such file"),
        ({"val_list": "", "folds": 3}, "val_list: found an empty path"),
    ],
)
def test_problems_of_an_evaluation(root: Path, options: Any, part: str) -> None:
    assert part in message(evaluated, root, **options)
