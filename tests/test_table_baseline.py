"""The command line of the baseline that classifies by known numbers."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import pytest
from classified import LIDC
from conftest import OBLIQUE, load_tool

HEADER = "image,mask,patient,label,size"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("table_baseline")


@pytest.fixture(scope="module")
def nodules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve cases: the class is told by the intensity in the mask (class b is brighter), the size column tells naught.

    Outside of the mask lies what would make the mean of the whole image tell the opposite.
    """
    folder = tmp_path_factory.mktemp("nodules")
    random = np.random.default_rng(0)
    rows, lists = [HEADER], {"train.txt": "", "val.txt": ""}
    for index in range(12):
        bright = index % 2
        mask = np.zeros((6, 7, 8), np.uint8)
        mask[2:4, 2:4, 2:4] = 1
        image = np.where(mask, 40.0 + 100 * bright, -100.0 - 50 * bright) + random.normal(0, 1, mask.shape)
        for name, volume in ((f"{index}.nii.gz", image.astype(np.float32)), (f"{index}_mask.nii.gz", mask)):
            nibabel.save(nibabel.Nifti1Image(volume, OBLIQUE), folder / name)
        name = "ab"[bright]
        rows.append(f"{index}.nii.gz,{index}_mask.nii.gz,p{index},{name},{index // 2 % 2}")
        lists["train.txt" if index < 8 else "val.txt"] += f"{index}.nii.gz {name}\n"
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    for file, text in lists.items():
        (folder / file).write_text(text)
    return folder


def run(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, root: Path, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["table_baseline.py", "--data_root", str(root), *options])
    tool.main()


def value(shown: str, score: str) -> float:
    found = re.search(rf"^\s*{score}\s+(\S+)", shown, re.MULTILINE)
    assert found is not None, shown
    return float(found[1])


def test_the_intensity_within_the_mask_tells_the_classes_apart(
    nodules: Path, tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tool, monkeypatch, nodules, "--table", "table.csv", "--mean_intensity", "True")
    shown = capsys.readouterr().out
    assert "mean intensity: fitted to 8 cases, scored on 4" in shown
    assert value(shown, "AUC") == 1
    assert value(shown, "accuracy") == 1


def test_a_column_that_tells_nothing_scores_like_chance(
    nodules: Path, tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tool, monkeypatch, nodules, "--table", "table.csv", "--columns", "['size']")
    assert value(capsys.readouterr().out, "AUC") == 0.5


def test_predictions_are_compared_with_each_number(
    nodules: Path, tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = ["case,patient,class,predicted,probability a,probability b"]
    # Cases 8 to 11 have the sizes 0, 0, 1, 1: the order of these probabilities is the opposite.
    for case, probability in ((8, 0.9), (9, 0.9), (11, 0.2), (10, 0.2)):
        rows.append(f"{nodules / f'{case}.nii.gz'} [{case}_mask.nii.gz],p,a,a,{1 - probability},{probability}")
    (tmp_path / "predictions.csv").write_text("\n".join(rows) + "\n")
    options = ["--table", "table.csv", "--columns", "['size']", "--predictions", str(tmp_path / "predictions.csv")]
    run(tool, monkeypatch, nodules, *options)
    assert "rank correlation of size with the probability of b: -1.000" in capsys.readouterr().out
    (tmp_path / "predictions.csv").write_text("\n".join(rows[:-1]) + "\n")
    for path, problem in ((tmp_path / "predictions.csv", "found no row for"), (tmp_path / "no.csv", "found no file")):
        with pytest.raises(SystemExit):
            run(tool, monkeypatch, nodules, *options[:-1], str(path))
        assert problem in capsys.readouterr().err


def test_patients_are_resampled_whole(
    nodules: Path, tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = ["--table", "table.csv", "--columns", "size", "--patient_pattern", r"(\d+)\.nii"]
    run(tool, monkeypatch, nodules, *lists)
    assert "of 4 patients" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--table", "table.csv"], "no numbers"),
        (["--columns", "['size']"], "no numbers"),
        (["--table", "none.csv", "--columns", "['size']"], "none.csv"),
        (["--table", "table.csv", "--columns", "['diameter']"], "expected diameter too"),
        (["--table", "table.csv", "--columns", "['patient']"], "found 'p0' in the column patient; expected a number"),
    ],
)
def test_what_does_not_fit_is_one_line(
    nodules: Path,
    tool: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    problem: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(tool, monkeypatch, nodules, *options)
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert problem in error
    assert "Traceback" not in error


def test_a_table_that_does_not_fit_is_told(
    nodules: Path, tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = (nodules / "table.csv").read_text().splitlines()
    contents = {
        "found no row of the table": rows[:-1],
        "line 14: found": [*rows, rows[1]],
        "line 2: found unexpected end of data; expected values": [rows[0], '"a.nii.gz,m.nii.gz,p,a,1'],
        "line 3: found 2 values; expected 5": [*rows[:2], "a.nii.gz,m.nii.gz"],
    }
    for problem, content in contents.items():
        (tmp_path / "other.csv").write_text("\n".join(content) + "\n")
        with pytest.raises(SystemExit):
            run(tool, monkeypatch, nodules, "--table", str(tmp_path / "other.csv"), "--columns", "['size']")
        assert problem in capsys.readouterr().err


def test_the_diameter_of_real_nodules_tells_much(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not LIDC.is_dir():
        pytest.skip(f"{LIDC} is not there")
    lists = ["--img_list", "cls_train.txt", "--val_list", "cls_val.txt"]
    run(tool, monkeypatch, LIDC, *lists, "--table", "nodules.csv", "--columns", "['diameter_mm']")
    assert value(capsys.readouterr().out, "AUC") == pytest.approx(0.8628, abs=1e-4)
