"""The planner's command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import load_tool

from med3d_nets.errors import Med3dError


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("plan")


def test_the_command_prints_and_writes_the_plan(
    dataset: Path,
    tool: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "plan.json"
    options = ["--data_root", str(dataset), "--no_cuda", "--iterations", "1", "--memory_gb", "8", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["plan.py", *options])
    tool.main()
    shown = capsys.readouterr().out
    assert "no label has class" not in capsys.readouterr().err, "nobody said how many classes there are"
    assert "6 cases, axes in RAS order" in shown
    words = " ".join(shown.split())
    assert "shape, voxels 18 x 16 x 14 18 x 16 x 14" in words
    assert "2 class 2 6 of 6 0.1584" in words
    assert "- patch_size 16 x 16 x 16 voxels: whole crops, or a little less, fit" in shown
    assert "- window_size 24 x 16 x 16 voxels: the median crop as a whole" in shown
    assert "s per epoch" in shown
    content = json.loads(out.read_text())
    assert content["plan"]["patch_size"] == [16, 16, 16]
    assert content["plan"]["window_size"] == [24, 16, 16]
    assert content["class_names"] == ["background", "class 1", "class 2"]
    assert content["seconds_per_iteration"] > 0
    assert set(content["plan"]["reasons"]) == set(content["plan"]) - {"reasons"}


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [(["--batchsize", "2"], 2, "batchsize"), (["--img_list", "none.txt"], 1, "error: the data list has 1 problem")],
)
def test_a_misspelt_option_and_bad_data_are_told(
    dataset: Path,
    tool: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    status: int,
    said: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["plan.py", "--data_root", str(dataset), *options])
    with pytest.raises(SystemExit) as ended:
        tool.main()
    assert ended.value.code == status
    shown = capsys.readouterr()
    assert said in shown.err
    assert "cases" not in shown.out


def test_given_values_reach_the_plan(dataset: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"spacing": [2, 2, 2], "patch_size": [16, 8, 8], "batch_size": 3, "intensity": "ct", "flip_axes": [0]}
    options["window_size"] = [16, 16, 8]
    tool.plan(str(dataset), no_cuda=True, iterations=0, memory_gb=4, head="medicalnet", **options)
    shown = capsys.readouterr().out
    for text in ("spacing 2 x 2 x 2 mm: as given", "patch_size 16 x 8 x 8 voxels: as given", "batch_size 3: as given"):
        assert text in shown
    assert "window_size 16 x 16 x 8 voxels: as given" in shown
    assert "s per epoch" not in shown


def test_a_class_that_no_label_has_is_warned_of(
    dataset: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["background", "bone", "fat", "heart"]
    tool.plan(str(dataset), n_seg_classes=4, class_names=names, no_cuda=True, iterations=0, memory_gb=4)
    shown = capsys.readouterr().out
    assert "3 heart 0 of 6 - - - 0 %" in " ".join(shown.split())
    assert "warning: in no case: class 3 (heart)" in shown


def test_a_file_is_replaced_only_if_asked(dataset: Path, tool: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    out.write_text("mine")
    with pytest.raises(Med3dError, match="exists already; replace it with --overwrite"):
        tool.plan(str(dataset), no_cuda=True, out=str(out))
    assert out.read_text() == "mine"
    tool.plan(str(dataset), no_cuda=True, iterations=0, memory_gb=4, out=str(out), overwrite=True)
    assert json.loads(out.read_text())["cases"] == 6
    with pytest.raises(Med3dError, match="got the folder"):
        tool.plan(str(dataset), no_cuda=True, out=str(tmp_path))


def test_the_wrong_number_of_classes_is_an_error(dataset: Path, tool: ModuleType) -> None:
    with pytest.raises(Med3dError, match="found label values 2"):
        tool.plan(str(dataset), n_seg_classes=2, no_cuda=True)
    with pytest.raises(Med3dError, match="no variant 'resnet_11'"):
        tool.plan(str(dataset), variant="resnet_11", no_cuda=True)
