"""The record of a fold: what it holds out, and that folds which answer together have the same settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from med3d_nets.errors import Med3dError
from med3d_nets.fold_records import check_fold, record_fold
from med3d_nets.settings import Settings

SETTINGS = Settings("resnet_10", "unet", "patch", 1, ["a", "b"], [8, 8, 8], spacing=[1.0, 1.0, 2.5])


def message(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(Med3dError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def case(name: str, root: str = "/data") -> dict[str, str]:
    """A case that need not exist."""
    return {"image": f"{root}/images/{name}.nii", "label": f"{root}/labels/{name}.nii"}


PARTS = [[case("a"), case("b")], [case("c"), case("d")]]


def test_record_says_what_a_fold_has_not_seen(tmp_path: Path) -> None:
    record_fold(str(tmp_path), PARTS[1], "/data", 2, 1)
    record = json.loads((tmp_path / "fold_1/fold.json").read_text())
    assert record == {"folds": 2, "fold": 1, "validation": ["images/c.nii", "images/d.nii"], "settings": {}}
    record_fold(str(tmp_path), PARTS[0], "/data", 2, 0)
    moved = [case(name, root="/elsewhere") for name in "dc"]
    check_fold(str(tmp_path), moved, "/elsewhere", 2, 1)
    record_fold(str(tmp_path / "none"), PARTS[0], "/data")
    check_fold(str(tmp_path / "none"), PARTS[0], "/data")
    assert not (tmp_path / "none").exists()


def test_cases_that_a_fold_has_seen_are_refused(tmp_path: Path) -> None:
    record_fold(str(tmp_path), PARTS[1], "/data", 2, 1)
    text = message(check_fold, str(tmp_path), [case("b"), case("c"), case("d")], "/data", 2, 1)
    assert all(
        part in text
        for part in (
            str(tmp_path / "fold_1/fold.json"),
            "fold 1 of 2 with 2",
            "with 3: the two differ in images/b.nii. Give",
        )
    )
    assert "manual_seed and patient_pattern" in text
    assert "no fold" in message(check_fold, str(tmp_path), PARTS[0], "/data", 2, 0)


def test_folds_of_two_divisions_are_refused(tmp_path: Path) -> None:
    record_fold(str(tmp_path), PARTS[0], "/data", 2, 0)
    text = message(record_fold, str(tmp_path), [case("b"), case("c")], "/data", 2, 1)
    assert all(
        part in text for part in ("fold 0 of 2, with 1 of the cases that fold 1 of 2", "manual_seed", "--ckpt_dir")
    )
    assert "fold 0 of 2, with 0 of" in message(record_fold, str(tmp_path), [case("z")], "/data", 3, 1)
    assert not (tmp_path / "fold_1").exists()
    record_fold(str(tmp_path), [case("z")], "/data", 3, 0)  # again: this fold's own record is in nobody's way
    (tmp_path / "fold_0/fold.json").write_text("{}")
    assert "expected folds, fold and validation" in message(record_fold, str(tmp_path), PARTS[1], "/data", 2, 1)


def test_resuming_keeps_the_fold(tmp_path: Path) -> None:
    folder = str(tmp_path)
    record_fold(folder, PARTS[0], "/data", 2, 0)
    resume = str(tmp_path / "fold_0/checkpoint_epoch=3.pt")
    record_fold(folder, PARTS[0], "/data", 2, 0, resume)
    text = message(record_fold, folder, PARTS[1], "/data", 2, 1, resume)
    assert "trained as fold 0 of 2" in text
    assert "options give fold 1 of 2" in text
    assert "fold 0 of 2; expected none" in message(record_fold, folder, PARTS[0], "/data", 0, -1, resume)
    assert "no fold; expected one" in message(record_fold, folder, PARTS[0], "/data", 2, 0, str(tmp_path / "x.pt"))
    record_fold(folder, PARTS[0], "/data", 0, -1, str(tmp_path / "x.pt"))


def test_test_cases_that_the_folds_have_seen_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, part in enumerate(PARTS):
        record_fold(str(tmp_path), part, "/data", 2, number)
    check_fold(str(tmp_path), [case("y"), case("z")], "/data", 2)
    assert not caplog.records
    check_fold(str(tmp_path), [case("y"), case("c")], "/data", 2)
    assert "1 of 2 cases have the names of cases that the folds were trained on: images/c.nii" in caplog.text


def test_folds_of_other_settings_are_refused_before_they_train(tmp_path: Path) -> None:
    record_fold(str(tmp_path), PARTS[0], "/data", 2, 0, settings=replace(SETTINGS, pretrained={"file": "a.pt"}))
    other = replace(SETTINGS, input_size=[16, 8, 8])
    text = message(record_fold, str(tmp_path), PARTS[1], "/data", 2, 1, settings=other)
    found = tmp_path / "fold_0/fold.json"
    assert f"input_size is [16, 8, 8], but [8, 8, 8] in {found}. Give these" in text
    assert "spacing is" not in text
    assert not (tmp_path / "fold_1").exists()
    record_fold(str(tmp_path), PARTS[1], "/data", 2, 1, settings=SETTINGS)


def test_records_without_settings_are_taken(tmp_path: Path) -> None:
    record_fold(str(tmp_path), PARTS[0], "/data", 2, 0)
    record_fold(str(tmp_path), PARTS[1], "/data", 2, 1, settings=SETTINGS)
