"""``tools/dice_curve.py``: trainings are run, timed, drawn and printed."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
from conftest import load_tool


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("dice_curve")


def test_table_and_picture(tool: ModuleType, tmp_path: Path) -> None:
    scores = {"val_mean_dice": 0.85, "val_dice_left": 0.9, "val_dice_right": 0.8, "val_cleaned_dice": 0.86}
    runs = [tool.Run(3, [(0.5, 0.6), (1.25, 0.85)], 1.5, 2, scores), tool.Run(6, [(3.0, 0.84)], 3.25, 6, scores)]
    assert tool.header(runs[0]).splitlines() == [
        "| epochs | minutes in all | left | right | mean Dice | best epoch |",
        "|---|---|---|---|---|---|",
    ]
    assert tool.row(runs[0]) == "| 3 | 1.5 | 0.9000 | 0.8000 | 0.8500 | 2 |"
    lacking = tool.Run(9, [], 2.0, 9, {**scores, "val_dice_right": None})
    assert tool.row(lacking) == "| 9 | 2.0 | 0.9000 | - | 0.8500 | 9 |"
    tool.draw([*runs, lacking], tmp_path / "curve.svg", "some data")
    drawn = (tmp_path / "curve.svg").read_text()
    for text in ("some data", "3 epochs", "6 epochs", "0.850", "0.840", "minutes since"):
        assert text in drawn
    tool.draw(runs, tmp_path / "again.svg", "some data")
    assert (tmp_path / "again.svg").read_text() == drawn


@pytest.mark.parametrize(
    ("name", "text"), [("curve.jpg", "expected the name of an .svg"), ("old.svg", "exists already")]
)
def test_the_picture_is_checked_first(
    tool: ModuleType, name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.svg").write_text("mine")
    with pytest.raises(SystemExit):
        tool.main(["--data_root", str(tmp_path), "--out", str(tmp_path / name)])
    assert text in capsys.readouterr().err
    assert (tmp_path / "old.svg").read_text() == "mine"


@pytest.mark.slow
def test_a_training_as_a_user_runs_it(
    tool: ModuleType, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data_root", str(dataset), "--n_seg_classes", "3", "--n_epochs", "1,2", "--no_cuda", "True"]
    tool.main([*options, "--patch_size", "[16,16,8]", "--out", str(tmp_path / "curve.png")])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| 1", "| 2"]
    assert all(re.fullmatch(r"\| \d \| [\d.]+ \| 0\.\d{4} \| 0\.\d{4} \| 0\.\d{4} \| [12] \|", row) for row in rows)
    assert (tmp_path / "curve.png").stat().st_size > 5000
    with pytest.raises(RuntimeError, match="status 1"):
        tool.main([*options, "--no_such_option", "1"])
