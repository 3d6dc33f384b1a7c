"""The handlers that report, on a small network and a few small volumes."""

from __future__ import annotations

import csv
import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from small_training import (
    CLASSES,
    EPOCH_LENGTH,
    Parts,
    at,
)
from torch import nn

from med3d_nets.errors import Med3dError
from med3d_nets.reports import CaseReport, DiceReport, EpochReport


def logged(caplog: pytest.LogCaptureFixture, start: str) -> list[str]:
    """Messages of the handlers that start like this."""
    found = [record.getMessage() for record in caplog.records if record.name == "med3d_nets.reports"]
    return [text for text in found if text.startswith(start)]


def test_epoch_report(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    losses: list[float] = []
    parts = Parts(tmp_path)
    at(Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output[0]["loss"]), parts).run()
    texts = logged(caplog, "epoch ")
    assert len(texts) == 4
    for epoch, text in enumerate(texts, 1):
        found = re.fullmatch(
            r"epoch (\d)/4: (\d+\.\d) s, (\d+\.\d) volumes/s, mean loss (\d\.\d{4}), "
            r"learning rates: new layers (\S+), other layers (\S+)",
            text,
        )
        assert found, text
        mean = np.mean(losses[(epoch - 1) * EPOCH_LENGTH : epoch * EPOCH_LENGTH])
        assert (int(found[1]), float(found[4])) == (epoch, pytest.approx(mean, abs=1e-4))
        factor = 0.1 if epoch > 3 else 1
        assert [float(found[5]), float(found[6])] == pytest.approx([0.1 * factor, 0.025 * factor])
    assert parts.trainer.state.metrics["mean_loss"] == pytest.approx(np.mean(losses[-EPOCH_LENGTH:]))


def test_epoch_report_measures_time(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    clock = iter([100.0, 104.0, 200.0, 202.5])
    monkeypatch.setattr("med3d_nets.reports.time.perf_counter", lambda: next(clock))
    engine = Engine(lambda engine, batch: [{"loss": float(batch)}])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.125)
    report = EpochReport(optimizer, 10)
    engine.add_event_handler(Events.EPOCH_STARTED, report.start)
    engine.add_event_handler(Events.ITERATION_COMPLETED, report.collect)
    engine.add_event_handler(Events.EPOCH_COMPLETED, report)
    monkeypatch.setattr("ignite.engine.engine.time.time", lambda: 0.0)
    engine.run([1, 2, 6], max_epochs=2)
    assert logged(caplog, "epoch ") == [
        "epoch 1/2: 4.0 s, 2.5 volumes/s, mean loss 3.0000, learning rates: all 0.125",
        "epoch 2/2: 2.5 s, 4.0 volumes/s, mean loss 3.0000, learning rates: all 0.125",
    ]
    assert engine.state.metrics == {"volumes_per_second": 4.0, "mean_loss": 3.0}


def run_report(report: Any, names: list[list[str]], **details: list[list[float]]) -> Engine:
    """An engine after one epoch over images of these names, with these metrics per case and class."""
    engine = Engine(lambda engine, batch: None)
    engine.state.metric_details = {name: torch.tensor(values) for name, values in details.items()}
    engine.state.metrics = {name: 0.4375 for name in details}
    report.attach(engine)
    batches = [[{"image": MetaTensor(torch.zeros(1), meta={"filename_or_obj": name})} for name in b] for b in names]
    engine.run(batches)
    return engine


def test_dice_report_leaves_absent_classes_out(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    values = [[0.5, math.nan, math.nan], [0.25, 0.75, math.nan], [0.75, 0.25, math.nan], [0.0, math.nan, math.nan]]
    engine = run_report(DiceReport([*CLASSES, "airways"]), [["a"]], val_mean_dice=values)
    metrics = engine.state.metrics
    assert metrics["val_dice_left_lung"] == 0.375
    assert metrics["val_dice_nodule"] == 0.5
    assert math.isnan(metrics["val_dice_airways"])
    assert metrics["val_mean_dice"] == 0.4375
    assert all(type(value) is float for value in metrics.values())
    (text,) = logged(caplog, "validation Dice")
    assert text == "validation Dice: left lung 0.3750, nodule 0.5000, airways nan; mean 0.4375"


def test_dice_report_agrees_with_the_metric(tmp_path: Path):
    parts = Parts(tmp_path, 1).run()
    metrics = parts.evaluator.state.metrics
    details = parts.evaluator.state.metric_details["val_mean_dice"].numpy()
    assert details.shape == (2, 2)
    assert [metrics["val_dice_left_lung"], metrics["val_dice_nodule"]] == pytest.approx(details.mean(0).tolist())
    assert metrics["val_mean_dice"] == pytest.approx(details.mean())
    record = json.loads((tmp_path / "model.json").read_text())
    assert record["epoch"] == 1
    assert record["validation"] == {name: value for name, value in metrics.items() if isinstance(value, float)}
    assert record["validation"].keys() >= {"val_mean_dice", "val_dice_left_lung", "val_dice_nodule"}


METRICS = {"val_mean_dice": "Dice", "val_hd95": "HD95 [mm]"}
NAMES = [["/data/a b.nii.gz", "/data/c.nii.gz"], ["/data/sub, 1/d.nii.gz"]]
DICE = [[0.5, math.nan], [0.25, 1.0], [0.9, 0.5]]
HD95 = [[1.5, math.nan], [2.0, math.inf], [4.0, 0.0]]


def report_cases(folder: Path, overwrite: bool = False) -> None:
    run_report(CaseReport(str(folder), CLASSES, overwrite, METRICS), NAMES, val_mean_dice=DICE, val_hd95=HD95)


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_case_report_writes_cases_and_classes(tmp_path: Path):
    report_cases(tmp_path / "new" / "folder")
    columns = ["Dice left lung", "Dice nodule", "HD95 [mm] left lung", "HD95 [mm] nodule"]
    assert read_csv(tmp_path / "new" / "folder" / "metrics.csv") == [
        ["case", *columns],
        ["/data/a b.nii.gz", "0.5000", "nan", "1.5000", "nan"],
        ["/data/c.nii.gz", "0.2500", "1.0000", "2.0000", "inf"],
        ["/data/sub, 1/d.nii.gz", "0.9000", "0.5000", "4.0000", "0.0000"],
    ]
    assert read_csv(tmp_path / "new" / "folder" / "metrics_summary.csv") == [
        ["metric", "mean", "median", "min", "max", "cases"],
        [columns[0], "0.5500", "0.5000", "0.2500", "0.9000", "3"],
        [columns[1], "0.7500", "0.7500", "0.5000", "1.0000", "2"],
        [columns[2], "2.5000", "2.0000", "1.5000", "4.0000", "3"],
        [columns[3], "inf", "inf", "0.0000", "inf", "2"],
    ]


def test_case_report_logs_a_table(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    report_cases(tmp_path)
    (text,) = logged(caplog, "\n")
    lines = text.splitlines()[1:]
    assert [re.split(r"\s{2,}", line) for line in lines[:2]] == [
        ["case", "Dice left lung", "Dice nodule", "HD95 [mm] left lung", "HD95 [mm] nodule"],
        ["-" * 10, "-" * 14, "-" * 11, "-" * 19, "-" * 16],
    ]
    assert [re.split(r"\s{2,}", line) for line in lines[2:6]] == [
        ["a b.nii.gz", "0.5000", "nan", "1.5000", "nan"],
        ["c.nii.gz", "0.2500", "1.0000", "2.0000", "inf"],
        ["d.nii.gz", "0.9000", "0.5000", "4.0000", "0.0000"],
        ["mean", "0.5500", "0.7500", "2.5000", "inf"],
    ]
    assert len({len(line) for line in lines[:6]}) == 1
    assert lines[6] == f"written: {tmp_path / 'metrics.csv'}, {tmp_path / 'metrics_summary.csv'}"


def test_class_in_no_case(tmp_path: Path):
    values = [[0.5, math.nan]]
    run_report(CaseReport(str(tmp_path), CLASSES, False, {"dice": "Dice"}), [["a"]], dice=values)
    assert read_csv(tmp_path / "metrics_summary.csv")[2] == ["Dice nodule", "nan", "nan", "nan", "nan", "0"]


def test_surface_dice_is_a_column(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Values of 0 where one alone has the class, NaN where neither has it, beside distances that are infinite."""
    caplog.set_level(logging.INFO)
    metrics = {"val_hd95": "HD95 [mm]", "val_surface_dice": "Surface Dice (1 mm)"}
    distances, shares = [[math.inf, math.nan], [2.0, math.nan]], [[0.0, math.nan], [0.875, math.nan]]
    report = CaseReport(str(tmp_path), CLASSES, False, metrics)
    run_report(report, [["a"], ["b"]], val_hd95=distances, val_surface_dice=shares)
    names = ["HD95 [mm]", "Surface Dice (1 mm)"]
    columns = [f"{name} {lung}" for name in names for lung in ("left lung", "nodule")]
    assert read_csv(tmp_path / "metrics.csv") == [
        ["case", *columns],
        ["a", "inf", "nan", "0.0000", "nan"],
        ["b", "2.0000", "nan", "0.8750", "nan"],
    ]
    assert read_csv(tmp_path / "metrics_summary.csv")[1:] == [
        [columns[0], "inf", "inf", "2.0000", "inf", "2"],
        [columns[1], "nan", "nan", "nan", "nan", "0"],
        [columns[2], "0.4375", "0.4375", "0.0000", "0.8750", "2"],
        [columns[3], "nan", "nan", "nan", "nan", "0"],
    ]
    (text,) = logged(caplog, "\n")
    lines = text.splitlines()[1:]
    assert [line.split() for line in lines[2:5]] == [
        ["a", "inf", "nan", "0.0000", "nan"],
        ["b", "2.0000", "nan", "0.8750", "nan"],
        ["mean", "inf", "nan", "0.4375", "nan"],
    ]
    assert len({len(line) for line in lines[:5]}) == 1


@pytest.mark.parametrize("name", ["metrics.csv", "metrics_summary.csv"])
def test_case_report_does_not_overwrite(name: str, tmp_path: Path):
    (tmp_path / name).write_text("kept")
    with pytest.raises(Med3dError) as caught:
        CaseReport(str(tmp_path), CLASSES, False, METRICS)
    assert str(caught.value) == (
        f"{tmp_path / name}: exists already; give another --output_dir or pass --overwrite True"
    )
    assert (tmp_path / name).read_text() == "kept"
    report_cases(tmp_path, overwrite=True)
    assert "kept" not in (tmp_path / name).read_text()


def test_case_report_needs_a_row_per_case(tmp_path: Path):
    with pytest.raises(ValueError, match="zip"):
        run_report(CaseReport(str(tmp_path), CLASSES, False, {"dice": "Dice"}), NAMES, dice=DICE[:2])
