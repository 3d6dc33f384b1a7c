"""``med3d check``: each kind of bad input, made as a file, with the message and the exit status."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from med3d_nets import cli
from med3d_nets.checking import page

Array = np.ndarray[Any, Any]
Command = Callable[..., tuple[int, str]]
Change = Callable[[Array, Array], tuple[Array, Array]]

SHAPE = (16, 18, 14)
CASES = 12
HIPPOCAMPUS = Path(__file__).parents[1] / ".." / "shared" / "data" / "Task04_Hippocampus"


def write(path: Path, voxels: Array, affine: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


def write_lists(root: Path, validation: int = 3) -> None:
    lines = [f"images/p{n:02d}.nii.gz labels/p{n:02d}.nii.gz\n" for n in range(CASES)]
    (root / "train.txt").write_text("".join(lines[validation:]))
    (root / "val.txt").write_text("".join(lines[:validation]))


@pytest.fixture(scope="session")
def good_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases of one kind, with two organs: a large one at the patient's right and a small one at the left."""
    root = tmp_path_factory.mktemp("good")
    for number in range(CASES):
        random = np.random.RandomState(number)
        start = random.randint(1, 3, 3)
        label = np.zeros(SHAPE, np.uint8)
        label[start[0] + 8 : start[0] + 13, start[1] : start[1] + 9, start[2] : start[2] + 8] = 1
        label[start[0] : start[0] + 3, start[1] + 5 : start[1] + 9, start[2] + 2 : start[2] + 6] = 2
        image = random.normal(-50, 20, SHAPE) + 100 * (label == 1) + 60 * (label == 2)
        affine = np.diag([1.0, 1.0, 2.0, 1.0])
        write(root / f"images/p{number:02d}.nii.gz", image.astype(np.int16), affine)
        write(root / f"labels/p{number:02d}.nii.gz", label, affine)
    write_lists(root)
    return root


@pytest.fixture
def data(good_data: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(good_data, tmp_path / "data"))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run ``med3d check`` with some words in this process; exit status and what is printed.

    Plots, which take most of the time for so few cases, are drawn in the tests of the page alone.
    """
    monkeypatch.setattr(page, "draw_scores", lambda panels: "data:image/svg+xml;base64,")

    def call(*words: object) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        status: Any = 0
        try:
            cli.run(["check", *map(str, words)])
        except SystemExit as end:
            status = end.code or 0
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return status, printed.out + printed.err

    return call


def spoil(path: Path, change: Change) -> None:
    volume = nib.load(path)
    write(path, *change(np.asanyarray(volume.dataobj).copy(), volume.affine.copy()))


def voxels(value: float, dtype: str = "float32", place: Any = (3, 4, 5)) -> Change:
    def change(array: Array, affine: Array) -> tuple[Array, Array]:
        array = array.astype(dtype)
        array[place] = value
        return array, affine

    return change


def moved(matrix: Array) -> Change:
    return lambda array, affine: (array, matrix @ affine)


def header(path: Path, start: int, values: Any, dtype: str) -> None:
    """Write into a header, past nibabel's checks."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    new = np.asarray(values, dtype).tobytes()
    content[start : start + len(new)] = new
    path.write_bytes(gzip.compress(bytes(content)))


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def flip_checksum(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-6] ^= 255
    path.write_bytes(bytes(content))


def unpacked(path: Path) -> None:
    path.write_bytes(gzip.decompress(path.read_bytes()))


BOTH = ("images", "labels")
TURN = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
REVERSED = np.diag([-1.0, 1, 1, 1]) + (SHAPE[0] - 1) * np.outer([1, 0, 0, 0], [0, 0, 0, 1])
"""Leaves each voxel in its place where the first axis is stored the other way round."""
DIM, PIXDIM = 42, 80
"""Where a NIfTI header has the lengths and the spacing of its axes."""

ERRORS: dict[str, tuple[tuple[str, ...], Callable[[Path], Any], tuple[str, ...]]] = {
    "no file": (("images",), Path.unlink, ("missing files", "no such file")),
    "truncated image": (("images",), cut, ("unreadable or truncated files", "EOFError", "a whole NIfTI file")),
    "truncated label": (("labels",), cut, ("unreadable or truncated files", "labels/p05.nii.gz")),
    "damaged gzip": (("images",), flip_checksum, ("unreadable or truncated files", "CRC check failed")),
    "no gzip": (("images",), unpacked, ("unreadable or truncated files", "is not a gzip file")),
    "empty file": (("images",), lambda path: path.write_bytes(b""), ("unreadable or truncated files",)),
    "too few voxels": (("images",), lambda path: header(path, DIM, [16, 18, 15], "<i2"), ("unreadable", "Expected")),
    "a lie of a size": (("images",), lambda path: header(path, DIM, [900, 900, 900], "<i2"), ("a file of this size",)),
    "too many voxels": (("images",), lambda path: header(path, DIM, [30000] * 3, "<i2"), ("at most 2147483648",)),
    "negative length": (("images",), lambda path: header(path, DIM, [16, -18, 14], "<i2"), ("found",)),
    "two axes": (("images",), lambda path: spoil(path, lambda a, f: (a[0], f)), ("wrong dimensions", "(18, 14)")),
    "channels": (
        ("images",),
        lambda path: spoil(path, lambda a, f: (np.stack([a, a], -1), f)),
        ("wrong dimensions", "(16, 18, 14, 2)", "--in_channels"),
    ),
    "NaN": (("images",), lambda path: spoil(path, voxels(np.nan)), ("NaN or infinite values", "1 NaN and 0 infinite")),
    "infinity": (("images",), lambda path: spoil(path, voxels(np.inf)), ("0 NaN and 1 infinite",)),
    "constant": (("images",), lambda path: spoil(path, voxels(7, place=...)), ("images of one value", "found 7 in")),
    "other shape": (
        ("labels",),
        lambda path: spoil(path, lambda a, f: (a[:-1], f)),
        ("image and label on different grids", "spatial shape (15, 18, 14)", "(16, 18, 14)"),
    ),
    "other spacing": (
        ("labels",),
        lambda path: spoil(path, lambda a, f: (a, f @ np.diag([1, 1, 1.5, 1]))),
        ("image and label on different grids", "another spacing", "tolerance 0.001 mm"),
    ),
    "other direction": (("labels",), lambda path: spoil(path, moved(TURN)), ("another direction: affine",)),
    "other origin": (
        ("labels",),
        lambda path: spoil(path, moved(np.eye(4) + 0.01 * np.eye(4, k=3))),
        ("another origin: affine", "largest difference 0.01"),
    ),
    "label value": (
        ("labels",),
        lambda path: spoil(path, voxels(7, "uint8")),
        ("label values outside", "values 7 (1 "),
    ),
    "half a class": (("labels",), lambda path: spoil(path, voxels(1.5)), ("label values outside", "values 1.5 (1 ")),
    "negative class": (("labels",), lambda path: spoil(path, voxels(-1, "int16")), ("values -1 (1 voxels)",)),
    "NaN in a label": (("labels",), lambda path: spoil(path, voxels(np.nan)), ("1 NaN", "labels/p05.nii.gz")),
    "no spacing": (("images",), lambda path: header(path, PIXDIM, [0], "<f4"), ("impossible spacing", "(0, 1, 2) mm")),
    "negative spacing": (("images",), lambda path: header(path, PIXDIM, [-1], "<f4"), ("(-1, 1, 2) mm in its header",)),
    "wide spacing": (
        BOTH,
        lambda path: spoil(path, moved(np.diag([20.5, 1, 1, 1]))),
        ("impossible spacing", "(20.5, 1, 2) mm in its affine", "at most 20 mm"),
    ),
    "spacing that is no number": (BOTH, lambda path: header(path, 280, [np.nan], "<f4"), ("not finite",)),
    "flat affine": (BOTH, lambda path: header(path, 280, [1, 1, 0, 0, 0, 0, 0, 0], "<f4"), ("axes lie in one plane",)),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_errors(data: Path, command: Command, kind: str) -> None:
    folders, change, parts = ERRORS[kind]
    for folder in folders:
        change(data / folder / "p05.nii.gz")
    status, printed = command(data, "--n_seg_classes", 3)
    assert status == 1
    assert "errors: training stops at them" in printed
    for part in (*parts, "p05.nii.gz", "found", "expected", "->"):
        assert part in printed, printed
    cases = json.loads((data.parent / "check/check.json").read_text())["cases"]
    assert sum("shape" in case["images"][0] for case in cases) >= CASES - 1  # the others are read


def test_spacing_of_20_mm_is_no_error(data: Path, command: Command) -> None:
    for folder in BOTH:
        spoil(data / folder / "p05.nii.gz", moved(np.diag([20, 1, 1, 1])))
    assert command(data)[0] == 0


def test_good_data(data: Path, command: Command) -> None:
    status, printed = command(data, "--n_seg_classes", 3, "--patient_pattern", r"p\d+")
    assert status == 0
    assert printed.splitlines()[0].startswith("12 cases (9 training, 3 validation; of 12 patients), read in ")
    assert printed.splitlines()[-2] == "nothing found"


def only_warning(printed: str, *parts: str) -> None:
    assert "errors" not in printed.replace("and no errors", "")
    for part in ("warnings: training goes on", "training will start", *parts):
        assert part in printed, printed


def test_empty_label(data: Path, command: Command) -> None:
    spoil(data / "labels/p05.nii.gz", voxels(0, "uint8", ...))
    status, printed = command(data)
    assert status == 0
    only_warning(printed, "labels without foreground (1)", "labels/p05.nii.gz: found 0 in every voxel")


def test_class_that_no_label_has(data: Path, command: Command) -> None:
    status, printed = command(data, "--n_seg_classes", 5)
    assert status == 0
    only_warning(printed, "found no label with class 3, 4; expected n_seg_classes=5")


def test_classes_of_the_labels_are_told(data: Path, command: Command) -> None:
    assert "n_seg_classes is not given, so that any label value passes; the labels have 0, 1, 2" in command(data)[1]


def test_same_image_under_two_names(data: Path, command: Command) -> None:
    volume = nib.load(data / "images/p04.nii.gz")
    write(data / "images/p05.nii.gz", np.asanyarray(volume.dataobj).astype(np.float64), volume.affine)
    shutil.copy(data / "images/p06.nii.gz", data / "images/p02.nii.gz")
    status, printed = command(data)
    assert status == 0
    only_warning(printed, "the same image under two names (2)", "images/p05.nii.gz: found the voxels of ")
    assert "p06.nii.gz, which is for training" in printed


def test_mixed_orientations(data: Path, command: Command) -> None:
    for folder in BOTH:  # the same content, stored from left to right
        spoil(data / folder / "p05.nii.gz", lambda a, f: (a[::-1], f @ REVERSED))
        spoil(data / folder / "p06.nii.gz", lambda a, f: (a.swapaxes(0, 1), f[:, [1, 0, 2, 3]]))
    status, printed = command(data)
    assert status == 0
    only_warning(printed, "mixed orientations (2)", "axes LAS; expected RAS, as of 10 of 12 images", "axes ARS")
    assert "possibly swapped" not in printed  # content tells that the affines are right


def test_flipped_affine(data: Path, command: Command) -> None:
    for folder in BOTH:
        spoil(data / folder / "p05.nii.gz", moved(np.diag([-1, 1, 1, 1])))
    status, printed = command(data)
    assert status == 0
    only_warning(printed, "left and right possibly swapped (1)", "p05.nii.gz: found image (correlation -0.")
    assert "lie mirrored against the other cases; its affine has a negative determinant" in printed


def test_mirrored_voxels(data: Path, command: Command) -> None:
    for folder in BOTH:
        spoil(data / folder / "p05.nii.gz", lambda a, f: (a[::-1], f))
    status, printed = command(data)
    assert status == 0
    only_warning(printed, "left and right possibly swapped (1)", "lie mirrored against the other cases")
    assert "determinant" not in printed


def test_outliers(data: Path, command: Command) -> None:
    for folder in BOTH:
        spoil(data / folder / "p05.nii.gz", moved(np.diag([1, 1, 4, 1])))
    spoil(data / "images/p06.nii.gz", lambda a, f: (a * 10 + 1000, f))
    spoil(data / "labels/p07.nii.gz", voxels(2, "uint8", slice(0, 7)))
    status, printed = command(data)
    assert status == 0
    only_warning(printed, "outliers in size (1)", "size in mm from foot to head: 112; expected 18.67 to 42")
    for part in ("outliers in spacing (1)", "outliers in intensity (1)", "outliers in the volume of a class"):
        assert part in printed
    assert "images/p06.nii.gz: found" in printed
    assert "labels/p07.nii.gz: found mL of class 2: " in printed


def test_patients_in_both_lists(data: Path, command: Command) -> None:
    status, printed = command(data, "--patient_pattern", r"p\d")
    assert status == 1
    for part in ("patients in training and in validation (1)", "patient 'p0': found ", " for training and "):
        assert part in printed
    assert "patients are not known" in command(data, "--overwrite", True)[1]


def test_images_in_both_lists_and_twice_in_one(data: Path, command: Command) -> None:
    line = "images/p00.nii.gz labels/p00.nii.gz\n"
    (data / "train.txt").write_text((data / "train.txt").read_text() + line)
    (data / "val.txt").write_text((data / "val.txt").read_text() + line)
    status, printed = command(data)
    assert status == 1
    for part in ("cases that are listed twice (1)", "images in training and in validation (1)"):
        assert part in printed
    assert "12 cases" in printed


def test_lines_of_the_list(data: Path, command: Command) -> None:
    (data / "train.txt").write_text((data / "train.txt").read_text() + "lonely.nii\n")
    status, printed = command(data)
    assert status == 1
    for part in ("lines of the list (1)", "line 10: found 1 field (lonely.nii)", "12 cases"):
        assert part in printed


# The command itself


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["no"], "no: no such file or folder"),
        (["."], "found none of seg_train.txt"),
        (["data", "--img_list", "no.txt"], "no.txt"),
        (["data", "--val_list", "no.txt"], "val_list"),
        (["data", "--n_seg_classes", "1"], "n_seg_classes: found 1"),
        (["data", "--in_channels", "0"], "in_channels: found 0"),
        (["data", "--num_workers", "-1"], "num_workers: found -1"),
        (["data", "--task", "sleep"], "task: found 'sleep'"),
        (["data", "--patient_pattern", "("], "regular expression"),
        (["data", "--out", "data/train.txt"], "data/train.txt"),
    ],
)
def test_command_that_cannot_run(data: Path, command: Command, words: list[str], part: str) -> None:
    status, printed = command(*words)
    assert status == 2
    assert part in printed
    assert not (data.parent / "check").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["data", "--oops", "1"], "med3d check has no option --oops"),
        (["data", "--in_channels", "two"], "--in_channels is 'two', expected a whole number"),
        ([], "med3d check needs DATA"),
    ],
)
def test_words_that_cannot_be(data: Path, command: Command, words: list[str], part: str) -> None:
    status, printed = command(*words)
    assert status == 1
    assert printed.startswith("error: ")
    assert part in printed
    assert not (data.parent / "check").exists()


def test_reports_are_not_overwritten(data: Path, command: Command) -> None:
    assert command(data, "--out", "found")[0] == 0
    before = (data.parent / "found/check.json").read_text()
    cut(data / "images/p05.nii.gz")
    status, printed = command(data, "--out", "found")
    assert (status, (data.parent / "found/check.json").read_text()) == (2, before)
    assert "overwrite" in printed
    assert command(data, "--out", "found", "--overwrite", True)[0] == 1
    assert (data.parent / "found/check.json").read_text() != before


def test_as_a_program(data: Path) -> None:
    cut(data / "images/p05.nii.gz")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONWARNINGS": "ignore"}
    words = [sys.executable, "-m", "med3d_nets", "check", str(data), "--out", str(data / "out")]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1, ended.stderr
    assert "unreadable or truncated files (1)" in ended.stdout
    assert "Traceback" not in ended.stderr


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="no Task04_Hippocampus in ../shared/data")
def test_hippocampus(command: Command) -> None:
    status, printed = command(HIPPOCAMPUS / "val.txt")
    assert status == 0
    assert "42 cases" in printed
    assert "possibly swapped" not in printed
