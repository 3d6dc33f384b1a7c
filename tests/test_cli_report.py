"""``med3d report``: pages are found, with their scores."""

from __future__ import annotations

import json
import webbrowser
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cli import Outcome, med3d

__all__ = ["med3d"]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A segmentation with its training, a classification and pages alone, in a folder with a blank in its name."""
    folder = tmp_path / "my runs"
    for name in ("report/index.html", "report/training.html", "cls/report/index.html", "cls/fold_0/report/index.html"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    epochs = [{"epoch": e, "loss": 1 / e, "validation": {"val_mean_dice": d}} for e, d in ((1, 0.5), (2, 0.75))]
    epochs.append({"epoch": 3, "loss": 0.25, "validation": {"val_mean_dice": float("nan")}})
    (folder / "report" / "training.json").write_text(json.dumps({"weights": "", "epochs": epochs}))
    (folder / "metrics_summary.csv").write_text("metric,mean,median\nDice lung,0.9,0.8\nHD95 [mm] lung,2.5,2\n")
    scores = {"task": "classification", "accuracy": {"value": 0.5}, "auc": {"value": None}, "log_loss": 1}
    (folder / "cls" / "metrics.json").write_text(json.dumps(scores))
    return folder


def test_pages_and_their_scores(med3d: Callable[..., Outcome], runs: Path) -> None:
    status, out, err = med3d("report", runs)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    found = dict(zip(lines[::2], [line.split(": ", 1)[1] for line in lines[1::2]], strict=True))
    assert found == {
        str(runs / "report" / "training.html"): "3 epochs, loss 0.2500, best val_mean_dice 0.7500 in epoch 2",
        str(runs / "report" / "index.html"): "Dice lung 0.9000, HD95 [mm] lung 2.5000",
        str(runs / "cls" / "report" / "index.html"): "accuracy 0.5000",
        str(runs / "cls" / "fold_0" / "report" / "index.html"): "see the page",
    }
    assert lines[1].strip().startswith("evaluation, drawn 20")


def test_damaged_numbers_leave_the_page(med3d: Callable[..., Outcome], runs: Path) -> None:
    (runs / "report" / "training.json").write_text("[]")
    (runs / "metrics_summary.csv").write_text("metric\nDice\n")
    assert med3d("report", runs)[1].count("see the page") == 3


@pytest.mark.parametrize("found", [True, False])
def test_pages_are_opened_if_asked(
    med3d: Callable[..., Outcome],
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    found: bool,
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or found)
    med3d("report", runs / "report")
    assert opened == []
    assert med3d("report", runs / "report", "--browser")[0] == 1, "the pages are below a folder report"
    assert med3d("report", runs, "--browser")[0] == 0
    assert len(opened) == 4
    assert all(address.startswith("file:///") and "my%20runs" in address for address in opened)
    assert ("found no browser" in caplog.text) != found


def test_which_folder(
    med3d: Callable[..., Outcome], runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "a bundle"
    for name in ("configs/metadata.json", "configs/inference.json", "eval/report/training.html", "data/report/x.html"):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).touch()
    page = str(bundle / "eval" / "report" / "training.html")
    assert med3d("report", bundle)[1].splitlines()[0] == page
    assert med3d("report", "--bundle", bundle)[1].splitlines()[0] == page
    monkeypatch.chdir(bundle)
    assert med3d("report")[1].splitlines()[0] == page
    for words, said in (
        ([runs, "--bundle", bundle], "both choose a folder"),
        ([bundle / "configs"], f"{bundle / 'configs'}: found no report/index.html or report/training.html below it"),
    ):
        status, _, err = med3d("report", *words)
        assert (status, said in err) == (1, True)
