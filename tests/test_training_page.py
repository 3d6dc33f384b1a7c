"""The page of a training, rendered from made-up epochs."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pages import Page, decode

from med3d_nets.report_html import NOTHING
from med3d_nets.training_page import best_record, render_training

SETTINGS = {"variant": "resnet_10", "head": "unet"}
METRIC = "val_mean_dice"


def record(epoch: int, *dice: float) -> dict[str, Any]:
    names = ["val_dice_left_lung", "val_dice_nodule", METRIC]
    return {
        "epoch": epoch,
        "loss": 1 / epoch,
        "volumes_per_second": 2.5,
        "rates": {"new layers": 0.1, "other layers": 0.001 * epoch},
        "validation": dict(zip(names, dice, strict=False)),
    }


RECORDS = [record(1), record(2, 0.5, 0.75, 0.625), record(3), record(4, 0.75, 0.5, 0.625), record(5, 0.25, 0.25, 0.25)]


def render(records: list[dict[str, Any]], **options: Any) -> Page:
    return Page(render_training(records, 5, ["left lung", "nodule"], SETTINGS, METRIC, **options))


def test_curves_cards_and_table() -> None:
    found = render(RECORDS, weights="/models/<best>/model.pt")
    assert found.text("h1") == "Training: resnet_10, unet head"
    assert found.text("p").startswith("finished, epoch 5 of 5, ")
    assert "Best validation Dice, epoch 2" in found.text("span")
    assert "saved as /models/<best>/model.pt" in found.text("span")
    assert "0.625" in found.text("b")
    (plot,) = found.images
    assert decode(plot["src"]).tag.endswith("svg")
    assert plot["alt"] == "Curves over epochs: Training loss, Validation Dice, Learning rate, Volumes per second."
    table = found.tables[0]
    assert table[0][1:5] == ["loss", "Dice left lung", "Dice nodule", "Dice mean"]
    assert table[1] == ["1", "1.0000", NOTHING, NOTHING, NOTHING, "0.1", "0.001", "2.50"]
    assert table[2] == ["2 (best)", "0.5000", "0.500", "0.750", "0.625", "0.1", "0.002", "2.50"]
    assert [row[0] for row in table[3:]] == ["3", "4", "5"]


def test_running_page_is_read_again() -> None:
    text = render_training(RECORDS[:2], 5, ["a", "b"], SETTINGS, METRIC, running=True)
    assert 'http-equiv="refresh"' in text
    assert Page(text).text("p").startswith("running, epoch 2 of 5, ")
    assert render(RECORDS[:2]).text("p").startswith("stopped, epoch 2 of 5, ")


def test_without_validation_or_loss() -> None:
    found = render([{**record(1), "loss": math.nan, "volumes_per_second": math.nan}])
    assert "Best" not in found.text("span")
    assert "Validation Dice" not in found.images[0]["alt"]
    assert found.tables[0][1][1] == NOTHING


def test_single_class_has_no_mean() -> None:
    records = [{**record(1), "validation": {"val_dice_lung": 0.5, METRIC: 0.5}}]
    found = Page(render_training(records, 1, ["lung"], SETTINGS, METRIC))
    assert found.tables[0][0][:3] == ["epoch", "loss", "Dice lung"]


@pytest.mark.parametrize(
    ("scores", "best"), [([0.1, 0.5, 0.5], 2), ([math.nan, 0.1], 2), ([math.nan], None), ([], None)]
)
def test_best_epoch_is_the_first_of_the_highest(scores: list[float], best: int | None) -> None:
    records = [{"epoch": epoch, "validation": {METRIC: score}} for epoch, score in enumerate(scores, 1)]
    found = best_record([*records, {"epoch": 9, "validation": {}}], METRIC)
    assert (found and found["epoch"]) == best


CLASSIFIED = [
    {**record(1), "validation": {"val_auc": 0.6, "val_accuracy": 0.7}},
    {**record(2), "validation": {"val_auc": 0.9, "val_accuracy": 0.5, "val_loss": 3.0}},
    {**record(3), "validation": {"val_auc": 0.8, "val_accuracy": 0.8}},
]
SCORES = {"AUC": "val_auc", "accuracy": "val_accuracy", "R2": "val_r2"}


def test_other_scores_by_their_names() -> None:
    found = Page(render_training(CLASSIFIED, 3, ["benign"], SETTINGS, "val_auc", scores=SCORES))
    assert found.tables[0][0][1:5] == ["loss", "AUC", "accuracy", "R2"]
    assert [row[0] for row in found.tables[0][1:]] == ["1", "2 (best)", "3"]
    assert found.tables[0][2][2:5] == ["0.900", "0.500", NOTHING]
    assert "Best validation AUC, epoch 2" in found.text("span")
    assert "accuracy 0.500" in found.text("span")
    assert "0.900" in found.text("b")
    assert "Validation scores" in found.images[0]["alt"]
    assert "Dice" not in found.text()


@pytest.mark.parametrize(("metric", "name"), [("val_accuracy", "accuracy"), ("val_f1", "val_f1")])
def test_best_epoch_is_named_after_its_own_metric(metric: str, name: str) -> None:
    records = [{**each, "validation": {"val_f1": 1 / n, **each["validation"]}} for n, each in enumerate(CLASSIFIED, 1)]
    found = Page(render_training(records, 3, ["benign"], SETTINGS, metric, scores=SCORES))
    assert f"Best validation {name}, epoch {3 if name == 'accuracy' else 1}" in found.text("span")
    assert "AUC 0." in found.text("span")
