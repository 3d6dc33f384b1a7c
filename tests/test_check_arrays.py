"""``med3d check`` of MedMNIST's ``.npz`` files: what is wrong with their volumes and labels, and what is odd."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Page
from test_check_command import Array, Command, command

__all__ = ["command"]

SHAPE = (9, 10, 8)
COUNTS = {"train": 12, "val": 4, "test": 4}


@pytest.fixture
def arrays() -> dict[str, Array]:
    random = np.random.RandomState(0)
    made: dict[str, Array] = {}
    for section, count in COUNTS.items():
        made[f"{section}_images"] = random.randint(0, 200, (count, *SHAPE)).astype(np.uint8)
        made[f"{section}_labels"] = np.arange(count)[:, None] % 2
    return made


@pytest.fixture
def check(command: Command, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Write arrays and check them; exit status and what is printed."""

    def call(arrays: dict[str, Array], *words: object) -> tuple[int, str]:
        np.savez_compressed(tmp_path / "x.npz", **arrays)
        return command(tmp_path / "x.npz", "--task", "classification", *words)

    return call


Check = Callable[..., tuple[int, str]]


def test_good_arrays(check: Check, arrays: dict[str, Array], tmp_path: Path) -> None:
    status, printed = check(arrays)
    assert status == 0, printed
    assert printed.startswith("20 cases (12 training, 4 validation, 4 test; patients not known)")
    for part in ("nothing found", "20 volumes of arrays have no spacing", "classes for test: 2 of 0, 2 of 1"):
        assert part in printed
    assert "--patient_pattern" not in printed
    content = json.loads((tmp_path / "check/check.json").read_text())
    assert content["classes"]["training"] == {"0": 6, "1": 6}
    case = content["cases"][13]
    assert (case["list"], case["case"]) == ("validation", "x.npz::val_images::1")
    image = case["images"][0]
    assert (image["file"], image["shape"]) == (f"{tmp_path}/x.npz::val_images::1", list(SHAPE))
    assert (image["max"], image["dtype"]) == (arrays["val_images"][1].max(), "uint8")
    page = Page((tmp_path / "check/check.html").read_text())
    assert sum("Axial" in picture["alt"] for picture in page.images) == 12


def change(name: str, place: Any, value: Any, dtype: str = "float32") -> Callable[[dict[str, Array]], None]:
    def changed(arrays: dict[str, Array]) -> None:
        arrays[name] = arrays[name].astype(dtype)
        arrays[name][place] = value

    return changed


FINDINGS: dict[str, tuple[int, Callable[[dict[str, Array]], None], str, str]] = {
    "NaN": (1, change("train_images", (3, 4, 5, 6), np.nan), "NaN or infinite", "train_images::3: found 1 NaN and 0 "),
    "infinite as it is loaded": (
        1,
        change("test_images", (0, 0, 0, 0), 1e300, "float64"),
        "NaN or infinite values (1)",
        "test_images::0: found 0 NaN and 1 infinite voxels",
    ),
    "constant": (1, change("val_images", 2, 7, "uint8"), "images of one value (1)", "val_images::2: found 7 in every"),
    "true everywhere": (1, change("train_images", 2, True, "bool"), "of one value (1)", "train_images::2: found 1 in"),
    "outlier": (
        0,
        change("train_images", 5, np.arange(720).reshape(SHAPE)),
        "outliers in intensity (1)",
        "train_images::5: found 99.5th percentile: 7",
    ),
    "class that the training has not": (
        1,
        change("val_labels", 1, 3, "int64"),
        "lines of the list (1)",
        "x.npz, val_labels[1]: found class '3'; expected one of 0, 1",
    ),
    "one class": (
        1,
        change("train_labels", ..., 1, "int64"),
        "lines of the list",
        "x.npz: found class 1 alone; expected at least two",
    ),
}


@pytest.mark.parametrize("kind", FINDINGS)
def test_findings(check: Check, arrays: dict[str, Array], kind: str) -> None:
    wanted, spoil, title, line = FINDINGS[kind]
    spoil(arrays)
    status, printed = check(arrays)
    assert status == wanted, printed
    assert "20 cases" in printed
    for part in (title, line, "->"):
        assert part in printed, printed


def test_the_same_volume_in_two_parts(check: Check, arrays: dict[str, Array]) -> None:
    arrays["val_images"][1] = arrays["train_images"][7]
    arrays["test_images"][2] = arrays["train_images"][7]
    status, printed = check(arrays)
    assert status == 0
    assert "the same image under two names (2)" in printed
    for name in ("val_images::1", "test_images::2"):
        assert f"x.npz::{name}: found the voxels of " in printed
    assert printed.count("x.npz::train_images::7, which is for training; expected voxels of its own") == 2


def test_parts_without_volumes(check: Check, arrays: dict[str, Array]) -> None:
    for name in ("val_images", "val_labels"):
        arrays[name] = arrays[name][:0]
    status, printed = check(arrays)
    assert status == 1
    assert "x.npz: found no cases; expected at least one" in printed
    assert "16 cases (12 training, 4 test" in printed


def test_arrays_of_something_else_are_one_problem(check: Check, arrays: dict[str, Array]) -> None:
    arrays["val_images"] = arrays["val_images"][..., 0]
    status, printed = check(arrays)
    assert status == 1
    assert "wrong dimensions (1)" in printed
    assert "x.npz, val_images: found shape (9, 10); expected (x, y, z) or (x, y, z, 1) for each image" in printed
    arrays["test_images"] = np.full((4, *SHAPE), "a")
    assert "x.npz, test_images: found values of type <U1; expected real" in check(arrays, "--overwrite", True)[1]
    arrays["test_images"] = np.zeros((4, 0, *SHAPE[1:]))
    assert "test_images: found shape (4, 0, 10, 8); expected no axis" in check(arrays, "--overwrite", True)[1]


def test_channels(check: Check, arrays: dict[str, Array]) -> None:
    for section in COUNTS:
        arrays[f"{section}_images"] = np.stack([arrays[f"{section}_images"]] * 2, axis=-1)
    status, printed = check(arrays)
    assert status == 2  # no case is left
    assert printed.count("expected (x, y, z) or (x, y, z, 1)") == 3
    assert check(arrays, "--in_channels", 2)[0] == 0


def test_files_that_are_none(check: Check, command: Command, arrays: dict[str, Array], tmp_path: Path) -> None:
    arrays["train_labels"] = arrays["train_labels"][:5]
    status, printed = check(arrays)
    assert "found train_labels of shape (5, 1); expected (12,) or (12, 1)" in printed
    assert status == 1
    status, printed = check({"images": arrays["val_images"]}, "--out", "other")
    assert "found arrays images; expected train_images and train_labels" in printed
    assert status == 2
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:300])
    status, printed = command(tmp_path / "x.npz", "--task", "classification", "--out", "other")
    assert "x.npz: found an unreadable file" in printed
    assert status == 2


def test_volumes_that_a_table_names(command: Command, arrays: dict[str, Array], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    lines = ["image,label", *(f"x.npz::train_images::{n},{n % 2}" for n in (0, 1, 2, 99)), "no.npz::a::0,1"]
    (tmp_path / "cls_train.csv").write_text("\n".join(lines))
    status, printed = command(tmp_path, "--task", "classification")
    assert status == 1
    assert "4 cases" in printed
    assert "x.npz::train_images::99: found 12 volumes; expected an index below that" in printed
    assert "no.npz: found no such file" in printed
