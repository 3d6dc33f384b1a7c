"""The handlers, on a MONAI evaluator whose network's answers are known."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from pages import Page, decode
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score
from torch import Tensor, nn

from med3d_nets.classification import reports
from med3d_nets.classification.calibration import class_probabilities
from med3d_nets.classification.reports import PredictionReport, ScoreReport
from med3d_nets.errors import Med3dError

TWO = ["benign", "cancer, late"]
SETTINGS = {"variant": "resnet_10", "head": "classification"}
AFFINE = np.diag([2.0, 1.0, 4.0, 1.0])


class Answer(nn.Module):
    """Answers with what the first voxels hold."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0, 0, 0, : self.count].half()


def make_cases(logits: Any, labels: Any, patients: bool = True) -> list[dict[str, Any]]:
    cases = []
    for index, (row, label) in enumerate(zip(logits, labels, strict=True)):
        volume = torch.zeros(1, 4, 5, 6)
        volume[0, 0, 0, : len(row)] = torch.tensor(row)
        volume[0, ..., 3] = torch.arange(20.0).reshape(4, 5)  # the middle axial slice
        meta = {"filename_or_obj": f"/data/case <{index}>.nii.gz"}
        image = MetaTensor(volume, affine=torch.from_numpy(AFFINE), meta=meta)
        case = {"image": image, "label": label}
        cases.append({**case, "patient": f"p{index // 2}" if index > 1 else ""} if patients else case)
    return cases


def evaluate(handler: Any, cases: list[dict[str, Any]], batch_size: int = 2) -> SupervisedEvaluator:
    """One run of an evaluator with the handler."""
    count = len(handler.class_names)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(cases), batch_size=batch_size),
        network=Answer(count),
        val_handlers=[handler],
    )
    evaluator.run()
    return evaluator


def made_up(count: int = 9, classes: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that survive half precision, and labels of every class."""
    random = np.random.RandomState(seed)
    labels = np.arange(count) % classes
    return (random.randint(-16, 16, (count, classes)) / 8 + np.eye(classes)[labels]).astype(np.float32), labels


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == reports.__name__]


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_validation_is_scored(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    logits, labels = made_up()
    report = ScoreReport(TWO)
    engine = evaluate(report, make_cases(logits, labels.tolist()))
    values = class_probabilities(logits)
    metrics = {
        "val_accuracy": float((logits.argmax(1) == labels).mean()),
        "val_balanced_accuracy": balanced_accuracy_score(labels, logits.argmax(1)),
        "val_auc": roc_auc_score(labels, logits[:, 1] - logits[:, 0]),
        "val_loss": log_loss(labels, values),
    }
    assert engine.state.metrics == pytest.approx(metrics)
    assert all(type(value) is float for value in engine.state.metrics.values())
    assert engine.state.key_metric_name == "val_auc"
    assert np.array_equal(report.logits, logits)
    assert report.labels.tolist() == labels.tolist()
    assert logged(caplog) == [
        f"validation: accuracy {metrics['val_accuracy']:.3f}, balanced accuracy "
        f"{metrics['val_balanced_accuracy']:.3f}, AUC {metrics['val_auc']:.3f}, loss {metrics['val_loss']:.3f}"
    ]


def test_validation_forgets_the_epoch_before() -> None:
    logits, labels = made_up()
    report = ScoreReport(TWO)
    engine = evaluate(report, make_cases(logits, labels.tolist()))
    first = dict(engine.state.metrics)
    engine.run(2)
    assert engine.state.metrics == first
    assert len(report.logits) == len(logits)


def test_labels_may_be_tensors_and_patients_unknown() -> None:
    logits, labels = made_up(classes=3)
    cases = make_cases(logits, torch.from_numpy(labels), patients=False)
    report = ScoreReport(["a", "b", "c"], key_metric="val_accuracy")
    engine = evaluate(report, cases)
    assert engine.state.key_metric_name == "val_accuracy"
    assert report.labels.tolist() == labels.tolist()
    assert {case.patient for case in report.cases} == {""}


def test_balanced_accuracy_is_the_key_metric_without_an_auc(caplog: pytest.LogCaptureFixture) -> None:
    logits, _ = made_up()
    report = ScoreReport(TWO)
    engine = evaluate(report, make_cases(logits, [1] * 9))
    engine.run(2)
    assert math.isnan(engine.state.metrics["val_auc"])
    assert engine.state.key_metric_name == "val_balanced_accuracy"
    assert engine.state.metrics["val_balanced_accuracy"] == pytest.approx((logits.argmax(1) == 1).mean())
    assert [text for text in logged(caplog) if text.startswith("no validation case")] == [
        "no validation case of benign: without an AUC, balanced accuracy tells the best epoch"
    ]


def test_validation_of_numbers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    report = ScoreReport(["age"], "regression")
    engine = evaluate(report, make_cases([[1.5], [2.0], [4.0]], [1.0, 2.5, 4.0]))
    assert engine.state.key_metric_name == "val_negative_mae"
    rmse, r2 = math.sqrt(0.5 / 3), 1 - 0.5 / 4.5
    assert engine.state.metrics == pytest.approx(
        {"val_mae": 1 / 3, "val_negative_mae": -1 / 3, "val_rmse": rmse, "val_r2": r2}
    )
    assert logged(caplog) == [f"validation: MAE 0.333, RMSE {rmse:.3f}, R2 {r2:.3f}"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"class_names": TWO, "task": "segmentation"}, "task is 'segmentation'"),
        ({"class_names": ["a"]}, "expected two classes or more"),
        ({"class_names": TWO, "key_metric": "val_loss"}, "key_metric is 'val_loss', expected val_auc or "),
        (
            {"class_names": ["age"], "task": "regression", "key_metric": "val_auc"},
            "expected val_negative_mae or val_r2",
        ),
    ],
)
def test_wrong_options(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(Med3dError, match=problem):
        ScoreReport(**options)


@pytest.mark.parametrize(
    ("task", "logits", "labels", "problem"),
    [
        (
            "classification",
            [[0.0, 1.0], [0.0, 1.0]],
            [2, 0.5],
            r"<0>.nii.gz: label is 2, .*; .*<1>.nii.gz: label is 0.5",
        ),
        (
            "classification",
            [[0.0, math.inf]],
            [0],
            r"<0>.nii.gz: the network answers with \[0.0, inf\], expected finite",
        ),
        ("regression", [[0.0]], [math.nan], r"<0>.nii.gz: label is nan, expected a finite number"),
    ],
)
def test_wrong_cases_are_named(task: str, logits: Any, labels: Any, problem: str) -> None:
    report = ScoreReport(TWO if task == "classification" else ["age"], task)
    with pytest.raises(Med3dError, match=problem):
        evaluate(report, make_cases(logits, labels))


def test_number_of_logits_is_checked() -> None:
    report = ScoreReport(TWO)
    cases = make_cases([[0.0, 1.0]], [0])
    with pytest.raises(Med3dError, match=r"answers with \[0.0\], expected finite numbers, 2 of them"):
        report._read(cases[0], torch.zeros(1))


def test_predictions_are_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    logits, labels = made_up()
    known = ["Seen in training."]
    report = PredictionReport(str(tmp_path / "eval"), TWO, "classification", SETTINGS, (0.25, 0.5), caveats=known)
    evaluate(report, make_cases(logits, labels.tolist()))
    values = class_probabilities(logits)
    rows = read_csv(tmp_path / "eval" / "predictions.csv")
    assert rows[0] == ["case", "patient", "class", "predicted", "probability benign", "probability cancer, late"]
    assert rows[1][:2] == ["/data/case <0>.nii.gz", ""]
    assert rows[3][:2] == ["/data/case <2>.nii.gz", "p1"]
    assert [row[2:4] for row in rows[1:]] == [
        [TWO[label], TWO[guess]] for label, guess in zip(labels, logits.argmax(1), strict=True)
    ]
    assert np.array([row[4:] for row in rows[1:]], float) == pytest.approx(values, rel=1e-5)
    record = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert record["accuracy"]["value"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert (record["task"], record["class_names"], record["positive_class"]) == ("classification", TWO, TWO[1])
    assert (record["n"], record["patients"], len(record["operating_points"])) == (9, 6, 2)
    assert record["log_loss"] == pytest.approx(log_loss(labels, values))
    assert "monai" in record["versions"]
    found = Page((tmp_path / "eval" / "report" / "index.html").read_text(encoding="utf-8"))
    assert found.text("p").startswith("9 cases of 6 patients")
    assert "case <3>.nii.gz" in found.text("td")
    (text,) = logged(caplog)
    lines = text.splitlines()
    assert lines[1].split() == ["score", "value", "95", "%", "interval"]
    assert lines[3].split()[:2] == ["accuracy", f"{record['accuracy']['value']:.4f}"]
    assert any(line.startswith("sensitivity at 0.25 ") for line in lines)
    assert record["caveats"][0] == "Seen in training."  # which the log has already
    assert lines[-2] == " ".join(["9 cases of 6 patients, as far as patients are known.", *record["caveats"][1:]])
    assert "Seen in training. Few cases of benign" in found.text("p")
    assert lines[-1] == f"written: {', '.join(str(path) for path in (*report.paths, report.page))}"


def test_pictures_are_of_the_most_wrong(tmp_path: Path) -> None:
    logits, labels = made_up()
    cases = make_cases(logits, labels.tolist())
    report = PredictionReport(str(tmp_path), TWO, "classification", SETTINGS, n_pictures=3)
    evaluate(report, cases)
    losses = -np.log(class_probabilities(logits)[np.arange(9), labels])
    order = np.argsort(-losses, kind="stable")[:3]
    assert set(report.pictures.kept) == {f"/data/case <{index}>.nii.gz" for index in order}
    (shown,) = [image for image in Page(report.page.read_text()).images if "image/png" in image["src"]]
    assert shown["alt"] == "Slices of cases 1, 2, 3 of the table."
    assert np.asarray(decode(shown["src"])).std() > 0


def test_shown_cases_are_explained_and_no_others(tmp_path: Path) -> None:
    logits, labels = made_up()
    explained: list[list[float]] = []

    def explain(case: Mapping[str, Any]) -> dict[str, Any]:
        explained.append(case["pred"].tolist())
        return {"saliency": case["image"]}

    chosen = [f"/data/case <{index}>.nii.gz" for index in (6, 1)]
    options = {"n_pictures": 2, "chosen": chosen, "explain": explain}
    report = PredictionReport(str(tmp_path), TWO, "classification", SETTINGS, **options)
    evaluate(report, make_cases(logits, labels.tolist()))
    losses = -np.log(class_probabilities(logits)[np.arange(9), labels])
    shown = {*np.argsort(-losses, kind="stable")[:2].tolist(), 6, 1}
    assert sorted(explained) == sorted(logits[list(shown)].tolist())
    page = Page(report.page.read_text())
    assert [row[1] for row in page.tables[3][1:]] == [name.removeprefix("/data/") for name in chosen]
    assert page.text("figcaption").count("Grad-CAM") == 2


def test_scores_are_written_before_a_picture_can_fail(tmp_path: Path) -> None:
    def explain(case: Mapping[str, Any]) -> dict[str, Any]:
        raise MemoryError

    logits, labels = made_up()
    report = PredictionReport(str(tmp_path), TWO, "classification", SETTINGS, explain=explain)
    with pytest.raises(MemoryError):
        evaluate(report, make_cases(logits, labels.tolist()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "predictions.csv"]


def test_no_page_unless_wanted(tmp_path: Path) -> None:
    logits, labels = made_up()
    report = PredictionReport(str(tmp_path), TWO, "classification", SETTINGS, report=False)
    evaluate(report, make_cases(logits, labels.tolist()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "predictions.csv"]
    assert report.pictures.kept == {}


def test_numbers_are_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    report = PredictionReport(str(tmp_path), ["age"], "regression", SETTINGS)
    evaluate(report, make_cases([[1.5], [2.0], [4.0]], [1.0, 2.5, 4.0]))
    rows = read_csv(tmp_path / "predictions.csv")
    assert rows[:2] == [["case", "patient", "age", "predicted"], ["/data/case <0>.nii.gz", "", "1.0", "1.5"]]
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["mae"]["value"] == pytest.approx(1 / 3)
    assert "positive_class" not in record
    assert Page(report.page.read_text()).text("h1").startswith("Regression")
    assert "Pearson r" in logged(caplog)[0]


def test_files_are_not_overwritten(tmp_path: Path) -> None:
    logits, labels = made_up()
    cases = make_cases(logits, labels.tolist())
    report = PredictionReport(str(tmp_path), TWO, "classification", SETTINGS)
    report.paths[1].write_text("kept")
    report.page.parent.mkdir()
    report.page.write_text("kept")
    with pytest.raises(Med3dError) as caught:
        evaluate(report, cases)
    assert str(caught.value) == (
        f"{report.paths[1]}, {report.page}: exist already; give another --output_dir or pass --overwrite True"
    )
    assert report.cases == []
    assert not report.paths[0].exists()
    assert report.page.read_text() == "kept"
    report = PredictionReport(str(tmp_path), TWO, "classification", SETTINGS, overwrite=True)
    evaluate(report, cases)
    assert "kept" not in report.paths[1].read_text()


def test_second_run_replaces_the_files_of_the_first(tmp_path: Path) -> None:
    logits, labels = made_up()
    report = PredictionReport(str(tmp_path), TWO, "classification", SETTINGS, report=False)
    evaluate(report, make_cases(logits, labels.tolist())).run()
    assert len(read_csv(report.paths[0])) == 10


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"thresholds": [0.5, 2]}, "expected a list of different probabilities"),
        ({"n_pictures": -1}, "n_pictures is -1, expected a whole number of cases, 0 or more"),
        ({"n_pictures": True}, "n_pictures is True"),
    ],
)
def test_wrong_options_of_the_report(options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(Med3dError, match=problem):
        PredictionReport(str(tmp_path), TWO, "classification", SETTINGS, **options)
