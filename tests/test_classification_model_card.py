from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trained_classifiers import CLASSES, REGRESSION, settings

from med3d_nets.classification.model_card import Classifier, fill_classifier, read_metrics
from med3d_nets.classification.scores import as_record, score_numbers
from med3d_nets.errors import Med3dError
from med3d_nets.model_card import Trained, performance_section, weights_section

NUMBERS = {"task": "regression", "class_names": ["size"], "n": 4, "patients": 1}


def network(digest: str = "ab", validation: dict[str, Any] | None = None, **changes: Any) -> Trained:
    record = {"epoch": 3, "validation": validation, "versions": {"torch": "9.9"}}
    return Trained(Path("model.pt"), digest, settings(**changes), record)


def test_a_classifier_without_scores() -> None:
    card = Classifier([network(validation={"val_auc": None})])
    assert card.eval_metrics == {}
    assert "No score is recorded for it." in card.performance()
    assert performance_section([card]) == card.performance()
    weights = weights_section([card], "mine")
    for part in ("| SHA-256 | `ab` |", "| trained from | random weights |", "| trained with | torch 9.9 |", "`mine`",
                 "| volumes | kept in mm", "| margin around a region | 4 mm |"):  # fmt: skip
        assert part in weights
    assert "THL A29" not in weights


def test_what_folds_share_is_said_once_and_what_they_found_of_each() -> None:
    origin = {"file": "mine.pt", "sha256": "cd", "tensors": 1}
    one, other = network("ab", {"val_auc": 0.5}), network("ef", {"val_auc": 0.75}, temperature=2.5, pretrained=origin)
    card = Classifier([one, other])
    assert list(card.files) == [f"models/classification/fold_{number}/model.pt" for number in (0, 1)]
    assert card.eval_metrics == {"fold 0: val_auc": 0.5, "fold 1: val_auc": 0.75}
    assert "| val_auc | 0.5000 | 0.7500 |" in card.performance()
    weights = weights_section([card], "mine")
    assert "| SHA-256 | fold 0 `ab`, fold 1 `ef` |" in weights
    assert "fold 0 a temperature of 1.7, fold 1 a temperature of 2.5" in weights
    assert "fold 0 random weights, fold 1 mine.pt (SHA-256 cd, not the published resnet_10.pth)" in weights
    assert "| epoch | 3 |" in weights
    assert "THL A29" in weights  # one of them derives from MedicalNet's


def test_scores_of_a_regression() -> None:
    scores = as_record(score_numbers(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.5, 3.0, 4.5]), ["a"] * 4))
    card = Classifier([network(**REGRESSION)], {**scores, **NUMBERS})
    assert card.eval_metrics["evaluation: MAE of 4 cases of 1 patient"] == pytest.approx(0.25)
    assert "| MAE | 0.2500 |  |" in card.performance()  # one patient has no interval
    assert "temperature of" not in card.weights("mine")
    assert "| answer | size, in the unit of the training's list |" in card.weights("mine")


@pytest.mark.parametrize(("changes", "expected"), [({}, ["probabilities", 3]), (REGRESSION, ["number", 1])])
def test_metadata_of_either_task(changes: dict[str, Any], expected: list[Any]) -> None:
    tensor: dict[str, Any] = {"type": "", "format": "", "num_channels": 9, "spatial_shape": [], "channel_def": {}}
    data = {"inputs": {"image": dict(tensor)}, "outputs": {"pred": dict(tensor)}}
    fill_classifier({"network_data_format": data}, Classifier([network(**changes)]), "metadata.json")
    pred = data["outputs"]["pred"]
    assert [pred["type"], pred["num_channels"]] == expected
    assert (pred["spatial_shape"], data["inputs"]["image"]["spatial_shape"]) == ([], [16, 20, 16])


def test_text_of_the_users_cannot_break_the_card() -> None:
    name = "b | c\n<!-- /weights -->"
    scores = {**NUMBERS, "log_loss": 0.5, "caveats": [f"Few cases of {name} (3)"]}
    card = Classifier([network(class_names=["a", name])], scores)
    assert "| Few cases of b \\| c &lt;!-- /weights --> (3) |" in card.performance()
    assert "| classes | 0 a, 1 b \\| c &lt;!-- /weights --> |" in card.weights("mine")
    assert "<!--" not in card.weights("mine") + card.performance()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[]", "not the scores of a classifier"),
        (json.dumps({"task": "classification"}), "expected task, class_names, n and patients in it"),
        (json.dumps(NUMBERS), "task is 'regression', but the classifier has 'classification'; class_names is ['size']"),
    ],
)
def test_scores_of_another_network_or_form_are_refused(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(content)
    with pytest.raises(Med3dError, match=re.escape(f"{path}: ") + ".*" + re.escape(said)):
        read_metrics(path, settings())
    path.write_text(json.dumps({**NUMBERS, "task": "classification", "class_names": CLASSES}))
    assert read_metrics(path, settings())["n"] == 4
    path.unlink()
    with pytest.raises(Med3dError, match=r"metrics\.json: no such file; the evaluation of a classifier writes"):
        read_metrics(path, settings())
