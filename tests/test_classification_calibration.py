"""Probabilities that fit, and how well they do."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from ignite.engine import Engine, Events
from scipy.special import log_softmax, softmax

from med3d_nets.classification.calibration import (
    LEAST_CASES,
    LEAST_WRONG,
    Calibration,
    class_probabilities,
    fit_temperature,
    measure_reliability,
)
from med3d_nets.classification.settings import ClassifierSettings
from med3d_nets.errors import Med3dError


def fitting(cases: int = 4000, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn with their probabilities."""
    random = np.random.RandomState(0)
    logits = random.normal(0, 1.5, (cases, classes))
    labels = [random.choice(classes, p=row) for row in softmax(logits, axis=1)]
    return logits, np.array(labels)


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_temperature_undoes_confidence(factor: float, classes: int) -> None:
    logits, labels = fitting(classes=classes)
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.08)
    assert fit_temperature(factor * logits, labels) == fit_temperature(factor * logits, labels)


def test_temperature_is_the_best() -> None:
    logits, labels = fitting(60)
    rows = np.arange(60), labels

    def loss(temperature: float) -> float:
        return float(-log_softmax(2 * logits / temperature, axis=1)[rows].mean())

    found = fit_temperature(2 * logits, labels)
    assert loss(found) < min(loss(0.99 * found), loss(1.01 * found), loss(1.0))


def test_no_temperature_for_too_few_cases_or_one_class() -> None:
    logits, labels = fitting(LEAST_CASES)
    assert len(set(labels)) > 1
    assert fit_temperature(3 * logits, labels) != 1
    assert fit_temperature(3 * logits[:-1], labels[:-1]) == 1
    assert fit_temperature(3 * logits, np.ones(LEAST_CASES, int)) == 1
    assert fit_temperature(np.ones((20, 2)), np.arange(20) % 2) == 1


@pytest.mark.parametrize("sign", [1, -1])
def test_cases_without_a_best_temperature_leave_probabilities(sign: int, caplog: pytest.LogCaptureFixture) -> None:
    labels = np.arange(20) % 2
    logits = sign * np.stack([1 - labels, labels], 1)
    with caplog.at_level(logging.INFO, "med3d_nets"):
        assert fit_temperature(logits, labels) == 1
    assert "no temperature fits" in caplog.text


@pytest.mark.parametrize("n_wrong", [LEAST_WRONG - 1, LEAST_WRONG])
def test_probabilities_are_made_surer_only_where_cases_are_wrong(n_wrong: int) -> None:
    labels = np.arange(60) % 2
    logits = 0.4 * np.stack([1 - labels, labels], 1)
    logits[:n_wrong] = logits[:n_wrong, ::-1]
    temperature = fit_temperature(logits, labels)
    assert temperature == 1 if n_wrong < LEAST_WRONG else temperature < 0.5


@pytest.mark.parametrize(
    ("logits", "labels", "problem"),
    [
        ([[0.0, 1.0]], [0, 1], r"shape \(1, 2\), labels \(2,\)"),
        ([[0.0, 1.0], [np.nan, 1.0]], [0, 1], "logits of case 1 are not finite"),
        ([[0.0, 1.0], [0.0, 1.0]], [0, 2], "a label is 2, expected 0 to 1"),
    ],
)
def test_wrong_logits_and_labels(logits: list[list[float]], labels: list[int], problem: str) -> None:
    with pytest.raises(Med3dError, match=problem):
        fit_temperature(logits, labels)


def test_probabilities() -> None:
    assert class_probabilities([0.0, np.log(3)]) == pytest.approx([0.25, 0.75])
    assert class_probabilities([[0.0, np.log(3)]])[0] == pytest.approx([0.25, 0.75])
    assert class_probabilities([0.0, 1000.0]).tolist() == [0, 1]


def test_reliability_of_two_classes_is_that_of_class_1() -> None:
    one = np.array([0.05, 0.06, 0.2, 0.9, 0.92, 0.95])
    found = measure_reliability(np.stack([1 - one, one], 1), [0, 1, 0, 1, 1, 0])
    # Bins of a fifteenth: 0.2 is the upper end of the third, (0.8667, 0.9333] and above are the last two.
    assert found.count == (2, 1, 2, 1)
    assert found.confidence == pytest.approx((0.055, 0.2, 0.91, 0.95))
    assert found.frequency == (0.5, 0, 1, 0)
    assert found.error == pytest.approx((2 * 0.445 + 0.2 + 2 * 0.09 + 0.95) / 6)


def test_reliability_of_more_is_that_of_the_highest() -> None:
    values = [[0.5, 0.3, 0.2], [0.2, 0.51, 0.29], [0.0, 0.0, 1.0]]
    found = measure_reliability(values, [0, 2, 2])
    assert found.count == (2, 1)
    assert found.confidence == pytest.approx((0.505, 1))
    assert found.frequency == (0.5, 1)
    assert found.error == pytest.approx(2 * 0.005 / 3)


def test_error_is_small_where_probabilities_fit() -> None:
    logits, labels = fitting()
    fits = measure_reliability(class_probabilities(logits), labels).error
    assert fits < 0.03
    assert measure_reliability(class_probabilities(3 * logits), labels).error > 0.15
    assert measure_reliability(class_probabilities(3 * logits / 3.0), labels).error == pytest.approx(fits)


class Scores:
    """Stands in for the handler that has the validation's logits, different ones each time."""

    def __init__(self, *factors: float) -> None:
        self.logits, self.labels = np.empty((0, 3)), np.empty(0)
        self.factors = list(factors)

    def __call__(self, engine: Engine) -> None:
        logits, self.labels = fitting(400)
        self.logits = self.factors.pop(0) * logits


def validate(scores: Scores, task: str) -> list[dict[str, float]]:
    """What is found before and after each validation."""
    calibration = Calibration(scores, task)
    found = [calibration.found]
    engine = Engine(lambda engine, batch: None)
    engine.add_event_handler(Events.EPOCH_COMPLETED, scores)
    calibration.attach(engine)
    for _ in range(len(scores.factors)):
        engine.run([0], max_epochs=1)
        found.append(calibration.found)
    return found


def test_each_validation_has_its_own_temperature() -> None:
    logits, labels = fitting(400)
    expected = [fit_temperature(factor * logits, labels) for factor in (2.0, 0.5)]
    assert expected[0] == pytest.approx(4 * expected[1], rel=1e-3)
    found = validate(Scores(2.0, 0.5), "classification")
    assert found == [{"temperature": value} for value in (1.0, *expected)]


def test_found_temperature_is_a_setting() -> None:
    facts = ("resnet_10", "classification", "region", 1, ["a", "b", "c"], [8, 8, 8])
    settings = ClassifierSettings(*facts, spacing=[1, 1, 1])
    (_, found) = validate(Scores(2.0), "classification")
    assert replace(settings, **found).temperature == found["temperature"] != 1


def test_numbers_have_no_temperature() -> None:
    assert validate(Scores(2.0, 0.5), "regression") == [{"temperature": 1.0}] * 3
