"""The threshold baseline's command line."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel
import numpy as np
import pytest
from conftest import OBLIQUE, load_tool

from med3d_nets.errors import Med3dError


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("threshold_baseline")


@pytest.fixture(scope="module")
def nodules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two cases: a bright cube of 64 voxels in the dark, and apart from it a bar of 3 or 7."""
    folder = tmp_path_factory.mktemp("nodules")
    lines = []
    for name, n in (("a", 3), ("b", 7)):
        label = np.zeros((10, 12, 14), np.uint8)
        label[1:5, 1:5, 1:5] = 1
        image = np.where(label, 40.0, -800.0).astype(np.float32)
        image[8, 3 : 3 + n, 10] = 2000
        for kind, volume in (("image", image), ("label", label)):
            nibabel.save(nibabel.Nifti1Image(volume, OBLIQUE), folder / f"{name}_{kind}.nii.gz")
        lines.append(f"{name}_image.nii.gz {name}_label.nii.gz\n")
    (folder / "val.txt").write_text("".join(lines))
    return folder


def scores(folder: Path) -> list[list[float]]:
    """Dice, Hausdorff distance and surface Dice of each case, from the written file."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [[float(value) for value in row[1:]] for row in list(csv.reader(file))[1:]]


def test_the_command_prints_and_writes_scores(
    nodules: Path,
    tool: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--data_root", str(nodules), "--lower", "-400", "--largest_component", "False"]
    monkeypatch.setattr(sys, "argv", ["threshold_baseline.py", *options, "--output_dir", str(tmp_path)])
    tool.main()
    lines = capsys.readouterr().out.splitlines()
    dice = [2 * 64 / (64 + 67), 2 * 64 / (64 + 71)]
    assert lines[0] == "2 cases, foreground: above -400"
    assert lines[2].startswith(f"Dice                 {sum(dice) / 2:.4f} ({dice[1]:.4f} to {dice[0]:.4f})")
    assert lines[2].split()[-3:] == [f"{dice[1]:.4f}", f"{dice[0]:.4f}", "2"]
    assert lines[3].startswith("HD95 [mm]")
    assert lines[4].startswith("Surface Dice (1 mm)")
    assert lines[5] == f"written: {tmp_path / 'metrics.csv'}, {tmp_path / 'metrics_summary.csv'}"
    assert [row[0] for row in scores(tmp_path)] == pytest.approx(dice, abs=1e-4)
    assert all(row[2] < 1 for row in scores(tmp_path))


def test_largest_component_and_bounds(nodules: Path, tool: ModuleType, tmp_path: Path, capsys: Any) -> None:
    tool.baseline(str(nodules), lower=-400, output_dir=str(tmp_path / "cleaned"))
    tool.baseline(str(nodules), lower=-800, upper=1000, largest_component=False, output_dir=str(tmp_path / "between"))
    for name in ("cleaned", "between"):  # -800 itself is not above -800
        assert scores(tmp_path / name) == [[1, 0, 1]] * 2
    tool.baseline(str(nodules), upper=2000.0, lower=40, tolerance=2.5)
    shown = capsys.readouterr().out
    assert "2 cases, foreground: above -400, largest component\n" in shown
    assert "2 cases, foreground: above -800 and below 1000\n" in shown
    empty = shown[shown.index("above 40 and below 2000, largest component") :]
    words = " ".join(empty.split())
    assert "Dice 0.0000 (0.0000 to 0.0000)" in words
    assert "HD95 [mm] inf (inf to inf) inf (inf to inf) inf inf 2, 2 infinite" in words
    assert "Surface Dice (2.5 mm) 0.0000" in words
    assert "written" not in empty


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "no threshold: give --lower"),
    ({"lower": "high"}, "--lower is 'high', expected a number"),
    ({"upper": True}, "--upper is True, expected a number"),
    ({"lower": 5, "upper": 5}, "--lower is 5, expected less than --upper, which is 5"),
    ({"lower": 5, "n_seg_classes": 3}, "--n_seg_classes is 3, expected 2: a threshold tells one foreground class"),
    ({"lower": 5, "largest_component": "no"}, "--largest_component is 'no', expected True or False"),
    ({"lower": 5, "tolerance": [1]}, r"--tolerance is \[1\], expected a number"),
    ({"lower": 5, "tolerance": -1}, "tolerance is -1, expected a number of mm, 0 or more"),
]


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_wrong_options_are_told_before_files_are_read(options: dict[str, Any], said: str, tool: ModuleType) -> None:
    with pytest.raises(Med3dError, match=said):
        tool.baseline("no such folder", **options)


def test_labels_of_more_classes_are_refused(dataset: Path, tool: ModuleType) -> None:
    with pytest.raises(Med3dError, match=r"found label values 2 .*; expected whole numbers from 0 to 1"):
        tool.baseline(str(dataset), lower=100)


def test_results_are_not_overwritten(nodules: Path, tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("kept")
    with pytest.raises(Med3dError, match="exists already"):
        tool.baseline(str(nodules), lower=-400, output_dir=str(tmp_path))
    assert (tmp_path / "metrics.csv").read_text() == "kept"
    tool.baseline(str(nodules), lower=-400, output_dir=str(tmp_path), overwrite=True)
    assert len(scores(tmp_path)) == 2


def test_a_misspelt_option_is_told(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["threshold_baseline.py", "--lower", "-400", "--largest", "True"])
    with pytest.raises(SystemExit) as ended:
        tool.main()
    assert ended.value.code == 2
    assert "largest" in capsys.readouterr().err
