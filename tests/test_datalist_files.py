"""Data lists: the message for each kind of file that cannot be a case's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_datalist import SHAPE, case_message, classes, make_cases, message, only_line, ramp, save, write_list

from med3d_nets.datalist import load_cases, load_images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_cases(tmp_path, "ab")
    return tmp_path


def test_missing_file(root: Path) -> None:
    (root / "labels/a.nii.gz").unlink()
    only_line(case_message(root), str(root / "labels/a.nii.gz"), "no such file", "NIfTI")


def test_folder_in_place_of_a_file(root: Path) -> None:
    (root / "images/a.nii.gz").unlink()
    (root / "images/a.nii.gz").mkdir()
    only_line(case_message(root), str(root / "images/a.nii.gz"), "a folder")


@pytest.mark.parametrize("kind", ["truncated", "damaged", "empty", "text", "not gzip"])
def test_unreadable_file(root: Path, kind: str) -> None:
    path = save(root / "images/a.nii.gz", ramp())
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "damaged": content[:40] + b"\xff" * 100 + content[140:],
            "empty": b"",
            "text": b"not an image",
            "not gzip": bytes(1000),
        }[kind]
    )
    only_line(case_message(root), str(path), "unreadable", "whole NIfTI file")


def test_truncated_file_without_compression(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", ramp())
    path.write_bytes(path.read_bytes()[:-100])
    only_line(message(load_images, path), str(path), "unreadable")


@pytest.mark.parametrize(
    ("shape", "channels", "expected"),
    [
        ((6, 7), 1, "(x, y, z) or (x, y, z, 1)"),
        ((*SHAPE, 2), 1, "in_channels=1"),
        (SHAPE, 2, "(x, y, z, 2)"),
        ((*SHAPE, 3), 2, "in_channels=2"),
        ((*SHAPE, 1, 2), 2, "(x, y, z, 2)"),
    ],
)
def test_image_dimensions(root: Path, shape: tuple[int, ...], channels: int, expected: str) -> None:
    path = save(root / "images/a.nii.gz", ramp(shape))
    only_line(case_message(root, in_channels=channels), str(path), f"found shape {shape}", expected)


def test_label_dimensions(root: Path) -> None:
    path = save(root / "labels/a.nii.gz", classes((*SHAPE, 2)))
    only_line(case_message(root), str(path), "found shape (6, 7, 8, 2)", "(x, y, z, 1) for a label")


def test_different_shapes(root: Path) -> None:
    path = save(root / "labels/a.nii.gz", classes((6, 7, 9)))
    only_line(case_message(root), str(path), "found spatial shape (6, 7, 9)", "expected (6, 7, 8)", "images/a.nii.gz")


def test_different_affines(root: Path) -> None:
    affine = np.diag([1, 1, 1.5, 1])
    path = save(root / "labels/a.nii.gz", classes(), affine)
    only_line(case_message(root), str(path), "1.5", "largest difference 0.5", "tolerance 0.001 mm")
    save(path, classes(), np.eye(4) + 5e-4 * np.eye(4, k=3))
    assert load_cases(root, "train.txt", n_seg_classes=3)


@pytest.mark.parametrize(
    ("value", "dtype", "found"),
    [
        (1.5, "float32", "label values 1.5 (1 voxels)"),
        (3, "uint8", "label values 3 "),
        (-1, "int16", "label values -1 "),
        (np.nan, "float32", "1 NaN and 0 infinite"),
    ],
)
def test_label_values(root: Path, value: float, dtype: str, found: str) -> None:
    voxels = classes(dtype=dtype)
    voxels[1, 2, 3] = value
    path = save(root / "labels/a.nii.gz", voxels)
    expected = "finite values" if np.isnan(value) else "from 0 to 2 (n_seg_classes=3)"
    only_line(case_message(root), str(path), found, expected)


def test_few_of_many_label_values_are_named(root: Path) -> None:
    save(root / "labels/a.nii.gz", ramp())
    only_line(case_message(root), "label values 3, 4, 5, 6, 7, ... (333 voxels)")


def test_image_with_nan_and_infinity(root: Path) -> None:
    voxels = ramp()
    voxels[0, 0, :3] = np.nan
    voxels[1, 0, :2] = np.inf
    path = save(root / "images/a.nii.gz", voxels)
    only_line(case_message(root), str(path), "3 NaN and 2 infinite", "finite")


def test_values_that_overflow_single_precision(root: Path) -> None:
    save(root / "images/a.nii.gz", ramp().astype("float64") * 1e38)
    only_line(case_message(root), "infinite")


def test_constant_image(root: Path) -> None:
    path = save(root / "images/a.nii.gz", np.full(SHAPE, 7, np.int16))
    only_line(case_message(root), str(path), "found 7 in every voxel", "vary")


def test_empty_axis(root: Path) -> None:
    path = save(root / "images/a.nii.gz", ramp((6, 0, 8)))
    only_line(case_message(root), str(path), "(6, 0, 8)", "no axis of size 0")


@pytest.mark.parametrize("dtype", [np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), np.dtype("complex64")])
def test_voxels_that_are_not_real_numbers(root: Path, dtype: np.dtype[Any]) -> None:
    path = save(root / "images/a.nii.gz", np.zeros(SHAPE, dtype))
    only_line(case_message(root), str(path), "found voxels of type", "real numbers")


def test_label_without_foreground_is_only_a_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(root / "labels/a.nii.gz", np.zeros(SHAPE, np.uint8))
    assert load_cases(root, write_list(root, "ab"), n_seg_classes=3)
    assert "1 of 2 labels have no foreground" in caplog.text


@pytest.mark.parametrize(
    ("n_seg_classes", "said"),
    [(3, ""), (5, "no label has class 3, 4: is n_seg_classes=5"), (99, "3, 4, 5, 6, 7, ...: is n_seg_classes=99")],
)
def test_classes_that_no_label_has_are_only_a_warning(
    root: Path, caplog: pytest.LogCaptureFixture, n_seg_classes: int, said: str
) -> None:
    assert load_cases(root, write_list(root, "ab"), n_seg_classes=n_seg_classes)
    assert said in caplog.text
    assert ("no label has class" in caplog.text) == bool(said)


def test_labels_tell_the_classes_where_nobody_does(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_cases(root, write_list(root, "ab"), n_seg_classes=None)
    assert "no label has class" not in caplog.text
