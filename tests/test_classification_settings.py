"""``model.json`` of a classifier: written, read, and refused where it cannot be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from med3d_nets.classification.settings import ClassifierSettings, check_task
from med3d_nets.errors import Med3dError
from med3d_nets.settings import read_settings

BASE = {
    "variant": "resnet_10",
    "head": "classification",
    "recipe": "region",
    "in_channels": 1,
    "class_names": ["benign", "malignant", "other"],
    "input_size": [32, 40, 24],
    "spacing": [0.7, 0.7, 1.25],
}
AGE = {"task": "regression", "class_names": ["age"], "target": {"mean": 61.5, "std": 12.25}}


def settings(**changes: Any) -> ClassifierSettings:
    return ClassifierSettings(**{**BASE, **changes})


@pytest.mark.parametrize("changes", [{"temperature": 1.6, "dropout": 0.2, "margin_mm": 5, "keep_size": False}, AGE])
def test_round_trip(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(settings(**changes).to_json(epoch=3))
    found = read_settings(path, ClassifierSettings)
    assert found == settings(**changes)
    assert {name: getattr(found, name) for name in changes} == changes
    assert json.loads(path.read_text())["epoch"] == 3


def test_a_network_has_an_output_for_each_class_or_one_for_the_number() -> None:
    assert settings().n_outputs == 3
    assert settings(**AGE).n_outputs == 1


def test_volumes_are_padded_with_the_lowest_intensity() -> None:
    assert settings().empty_value == 0
    known = {"lower": -1000.0, "upper": 400.0, "mean": -200.0, "std": 400.0}
    assert settings(intensity=known).empty_value == -2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "detection"}, "task is 'detection', expected classification or regression"),
        ({"class_names": ["one"]}, r"class_names is \['one'\], expected two classes or more"),
        ({**AGE, "class_names": ["age", "sex"]}, r"class_names is \['age', 'sex'\], expected the name of one number"),
        ({"temperature": 0}, "temperature is 0, expected a number above 0"),
        ({"temperature": math.nan}, "temperature is nan, expected a number above 0"),
        ({"temperature": "hot"}, "temperature is 'hot', expected a number above 0"),
        ({"margin_mm": -1}, "margin_mm is -1, expected a number of mm, 0 or more"),
        ({"margin_mm": math.inf}, "margin_mm is inf, expected a number of mm, 0 or more"),
        ({"margin_mm": None}, "margin_mm is None, expected a number of mm, 0 or more"),
        ({**AGE, "target": None}, "target is None, expected a mean and an std above 0 for task 'regression'"),
        ({**AGE, "target": {"mean": 1.0}}, r"target is \{'mean': 1.0\}, expected a mean and an std above 0"),
        ({**AGE, "target": {"mean": 1.0, "std": 0.0}}, "target is .*, expected a mean and an std above 0"),
        ({**AGE, "target": {"mean": math.nan, "std": 1.0}}, "target is .*, expected a mean and an std above 0"),
        ({"target": AGE["target"]}, "target is .*, expected None for task 'classification'"),
        ({"spacing": []}, r"spacing is \[\], expected 3 numbers of mm for recipe 'region'"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(Med3dError, match=f"^{said}"):
        settings(**changes)
    path = tmp_path / "model.json"
    path.write_text(json.dumps({**json.loads(settings().to_json()), **changes}))
    with pytest.raises(Med3dError, match=f"model.json: {said}"):
        read_settings(path, ClassifierSettings)


def test_file_of_a_segmentation_is_not_one_of_a_classifier(tmp_path: Path) -> None:
    content = json.loads(settings().to_json())
    path = tmp_path / "model.json"
    path.write_text(json.dumps({name: value for name, value in content.items() if name not in ("task", "dropout")}))
    with pytest.raises(Med3dError, match=r"model.json: lacks task, dropout$"):
        read_settings(path, ClassifierSettings)


def test_tasks_that_can_be() -> None:
    check_task("classification", ["a", "b"])
    check_task("regression", ["age"])
