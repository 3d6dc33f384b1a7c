"""``med3d check`` of lists that are broken, of other formats than NIfTI, and of data with warnings alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from other_formats import write_metaimage, write_nrrd, write_series
from test_check_command import Array, Command, command, cut, data, good_data, moved, spoil, voxels

from med3d_nets.datalist import load_datalist

__all__ = ["command", "data", "good_data"]

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


# Warnings


def test_warnings_do_not_stop_training(data: Path, command: Command) -> None:
    spoil(data / "labels/p04.nii.gz", voxels(0, "uint8", ...))
    volume = nib.load(data / "images/p05.nii.gz")
    nib.save(nib.Nifti1Image(np.asanyarray(volume.dataobj), volume.affine), data / "images/p06.nii.gz")
    for folder in ("images", "labels"):
        spoil(data / folder / "p07.nii.gz", moved(np.diag([-1, 1, 4, 1])))
    spoil(data / "images/p08.nii.gz", lambda a, f: (a * 10 + 1000, f))
    status, printed = command(data, "--n_seg_classes", 4)
    assert status == 0
    assert "errors: training stops" not in printed
    kinds = json.loads((data.parent / "check/check.json").read_text())["summary"]["kinds"]
    expected = {
        "empty_label",
        "absent_class",
        "duplicate",
        "mirrored",
        "orientation",
        "outlier_size",
        "outlier_spacing",
    }
    assert set(kinds) >= {*expected, "outlier_intensity", "outlier_label"}
    assert len(load_datalist(data, "train.txt", "val.txt", n_seg_classes=4)["training"]) == 9


# Lists


TEXT, TABLE, JSON = "seg_train.txt", "seg_train.csv", "dataset.json"
ALONE = '{"training": ["a.nii"]}'
BROKEN = {
    "empty text": (TEXT, "# nothing\n", "found no cases; expected at least one"),
    "one path a line": (TEXT, "images/p00.nii.gz\n", "line 1: found 1 field (images/p00.nii.gz)"),
    "open quote": (TEXT, "'images/p00.nii.gz labels/p00.nii.gz", "line 1: found"),
    "no column of images": (TABLE, "picture,label\na,b", "found columns picture, label; expected 'image'"),
    "no column of labels": (TABLE, "image\na", "found columns image; expected 'label' among them"),
    "unknown part": (TABLE, "image,label,split\na,b,dev", "line 2: found split 'dev'; expected train,"),
    "no JSON": (JSON, "{", "found no json (JSONDecodeError"),
    "JSON without cases": (JSON, "{}", "found no list; expected a list 'training'"),
    "a case without a label": (JSON, ALONE, 'training[0]: found "a.nii"; expected {"image"'),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_lists(data: Path, command: Command, kind: str) -> None:
    name, content, said = BROKEN[kind]
    (data / "train.txt").unlink()
    (data / name).write_text(content)
    status, printed = command(data)
    assert status == 2
    assert name in printed
    assert said in printed
    assert not (data.parent / "check").exists()


# Other formats


def organ(number: int) -> tuple[Array, Array]:
    random = np.random.RandomState(number)
    label = np.zeros((12, 11, 9), np.uint8)
    label[3:8, 4:9, 2:6] = 1
    return (random.normal(-50, 20, label.shape) + 100 * label).astype(np.int16), label


def write_other(root: Path, write: Callable[[Path, Array, Array], Any], suffix: str) -> None:
    """Twelve cases in another format, with labels in NIfTI."""
    lines = []
    for number in range(12):
        image, label = organ(number)
        write(root / f"i{number}{suffix}", image, AFFINE)
        nib.save(nib.Nifti1Image(label, AFFINE), root / f"l{number}.nii.gz")
        lines.append(f"i{number}{suffix} l{number}.nii.gz\n")
    (root / "train.txt").write_text("".join(lines))


FORMATS: dict[str, Callable[[Path, Array, Array], Any]] = {".mha": write_metaimage, ".nrrd": write_nrrd}


@pytest.mark.parametrize("suffix", FORMATS)
def test_damaged_files_of_other_formats(tmp_path: Path, command: Command, suffix: str) -> None:
    pytest.importorskip("itk")
    root = tmp_path / "data"
    root.mkdir()
    write = FORMATS[suffix]
    write_other(root, write, suffix)
    assert command(root, "--out", "good")[0] == 0
    cut(root / f"i3{suffix}")
    image, label = organ(4)
    write(root / f"i4{suffix}", image[:-1], AFFINE)
    write(root / f"i5{suffix}", image, AFFINE @ np.diag([1, 1, 15, 1]))
    write(root / f"l6{suffix}", 2 * label, AFFINE)
    (root / "train.txt").write_text((root / "train.txt").read_text().replace("l6.nii.gz", f"l6{suffix}"))
    status, printed = command(root, "--n_seg_classes", 2)
    assert status == 1
    for part in (
        f"i3{suffix}: found an unreadable file",
        "l4.nii.gz: found spatial shape (12, 11, 9); expected (11, 11, 9)",
        f"i5{suffix}: found spacing (1, 1, 30) mm in its affine",
        f"l6{suffix}: found label values 2 (100 voxels)",
    ):
        assert part in printed, printed


def test_damaged_series(tmp_path: Path, command: Command) -> None:
    pytest.importorskip("pydicom")
    pytest.importorskip("itk")
    root = tmp_path / "data"
    root.mkdir()
    write_other(root, write_series, "")
    assert command(root, "--out", "good")[0] == 0
    (root / "i3/IM004").unlink()
    cut(root / "i4/IM004")
    spoil(root / "l5.nii.gz", lambda a, f: (a[..., :-1], f))
    status, printed = command(root)
    assert status == 1
    for part in ("i3: found slices at uneven positions", "i4", "l5.nii.gz: found spatial shape (12, 11, 8)"):
        assert part in printed, printed
    assert "unreadable or truncated files (2)" in printed


# Images alone


@pytest.mark.parametrize("kind", ["folder", "file", "series"])
def test_images_without_labels_are_checked_for_a_prediction(data: Path, command: Command, kind: str) -> None:
    """They are the same findings as with labels; that there are none is a warning."""
    images = data / "images"
    if kind == "series":
        pytest.importorskip("itk")
        images = data / "archive"
        for number in (1, 2):
            hounsfield = np.random.RandomState(number).randint(-1000, 1000, (8, 9, 6)).astype(np.int16)
            write_series(images / f"{number}", hounsfield, AFFINE, f"1.2.{number}")
    place = images / "p01.nii.gz" if kind == "file" else images
    status, printed = command(place)
    assert status == 0
    assert "no label maps (1)" in printed
    assert printed.count("unlabelled") == 1
    assert "1 warning: the images can be predicted" in printed
    cases = json.loads((data.parent / "check/check.json").read_text())["cases"]
    assert len(cases) == {"folder": len(list(images.glob("*.nii.gz"))), "file": 1, "series": 2}[kind]
    assert all("label" not in case and case["images"][0]["spacing_ras_mm"] for case in cases)


def test_damaged_images_without_labels_are_errors(data: Path, command: Command) -> None:
    cut(data / "images/p01.nii.gz")
    status, printed = command(data / "images")
    assert status == 1
    assert f"{data}/images/p01.nii.gz: found an unreadable file" in printed
