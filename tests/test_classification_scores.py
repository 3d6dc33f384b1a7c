"""Scores against scikit-learn's."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import pearsonr
from sklearn import metrics

from med3d_nets.classification.scores import (
    ClassScores,
    as_record,
    check_thresholds,
    score_classes,
    score_numbers,
)
from med3d_nets.errors import Med3dError
from med3d_nets.statistics import bland_altman

TWO, THREE = ["no<dule", "cyst"], ["a", "b", "c"]


def made_up(classes: int, cases: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with some skill, and labels."""
    random = np.random.RandomState(seed)
    labels = np.concatenate([np.arange(classes), random.randint(0, classes, cases - classes)])
    return softmax(random.normal(0, 1, (cases, classes)) + np.eye(classes)[labels], axis=1), labels


@pytest.mark.parametrize("names", [TWO, THREE])
def test_values_are_those_of_scikit_learn(names: list[str]) -> None:
    values, labels = made_up(len(names))
    predicted = values.argmax(1)
    found = score_classes(values, labels, names, resamples=50)
    assert (found.n, found.patients, found.class_names) == (120, 120, tuple(names))
    assert found.accuracy.value == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert found.balanced_accuracy.value == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    assert found.confusion.tolist() == metrics.confusion_matrix(labels, predicted).tolist()
    assert found.log_loss == pytest.approx(float(-np.log(values[np.arange(120), labels]).mean()))
    recalls = metrics.recall_score(labels, predicted, average=None)
    shown = [1] if len(names) == 2 else [0, 1, 2]
    areas = [metrics.roc_auc_score(labels == place, values[:, place]) for place in shown]
    assert found.auc.value == pytest.approx(np.mean(areas))
    for place, area, each in zip(shown, areas, found.classes, strict=True):
        positive = labels == place
        assert (each.name, each.n) == (names[place], positive.sum())
        assert each.auc.value == pytest.approx(area)
        assert each.sensitivity.value == pytest.approx(recalls[place])
        assert each.specificity.value == pytest.approx(metrics.recall_score(~positive, predicted != place))
        assert each.average_precision == pytest.approx(metrics.average_precision_score(positive, values[:, place]))
        assert each.roc
        assert each.precision_recall
        assert metrics.auc(each.roc.x, each.roc.y) == pytest.approx(area)
        assert (each.precision_recall.x[0], each.precision_recall.y[0]) == (1, pytest.approx(positive.mean()))
        assert (each.precision_recall.x[-1], each.precision_recall.y[-1]) == (0, 1)
    assert found.average_precision == pytest.approx(np.mean([each.average_precision for each in found.classes]))


def test_macro_auc_is_that_of_one_against_the_rest() -> None:
    values, labels = made_up(5)
    expected = metrics.roc_auc_score(labels, values, multi_class="ovr", average="macro")
    assert score_classes(values, labels, list("abcde"), resamples=0).auc.value == pytest.approx(expected)


def test_brier_scores() -> None:
    assert score_classes([[0.75, 0.25], [0.5, 0.5]], [0, 1], TWO).brier == pytest.approx((0.0625 + 0.25) / 2)
    values = [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]
    assert score_classes(values, [0, 2], THREE).brier == pytest.approx((0.375 + 2) / 2)


def test_operating_points() -> None:
    one = np.array([0.1, 0.3, 0.3, 0.6, 0.2, 0.3, 0.8, 0.9])
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    found = score_classes(np.stack([1 - one, one], 1), labels, TWO, thresholds=[0.3, 0.85])
    first, second = found.operating_points
    assert (first.threshold, second.threshold) == (0.3, 0.85)
    assert (first.sensitivity.value, first.specificity.value) == (0.75, 0.25)
    assert (first.ppv.value, first.npv.value) == (0.5, 0.5)
    assert (second.sensitivity.value, second.specificity.value) == (0.25, 1)
    assert (second.ppv.value, second.npv.value) == (1, 4 / 7)
    assert second.specificity.interval == (1, 1)
    assert second.ppv.skipped > 0  # resamples without the one case that is called
    assert 0 <= first.sensitivity.interval[0] < 0.75 < first.sensitivity.interval[1] <= 1


def test_intervals_hold_the_value_and_narrow_with_cases() -> None:
    widths = []
    for cases in (60, 960):
        values, labels = made_up(2, cases)
        found = score_classes(values, labels, TWO)
        for each in (found.accuracy, found.balanced_accuracy, found.auc):
            assert each.interval[0] < each.value < each.interval[1]
        widths.append(found.auc.interval[1] - found.auc.interval[0])
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.4)


def test_interval_of_the_auc_is_that_of_scikit_learn_over_the_resamples() -> None:
    values, labels = made_up(2, 40)
    found = score_classes(values, labels, TWO, resamples=300)
    drawn = np.random.default_rng(0).integers(40, size=(300, 40))
    areas = [metrics.roc_auc_score(labels[rows], values[rows, 1]) for rows in drawn]
    assert found.auc.interval == pytest.approx(np.quantile(areas, [0.025, 0.975], method="inverted_cdf"))


def test_patients_are_resampled_whole() -> None:
    values, labels = (np.repeat(each, 5, axis=0) for each in made_up(2, 40))
    alone = score_classes(values, labels, TWO).auc
    found = score_classes(values, labels, TWO, [str(case // 5) for case in range(200)])
    assert (found.n, found.patients) == (200, 40)
    assert found.auc.value == alone.value
    once = score_classes(values[::5], labels[::5], TWO)
    assert found.auc.interval == once.auc.interval
    assert alone.interval[1] - alone.interval[0] < 0.7 * (once.auc.interval[1] - once.auc.interval[0])


def test_resamples_without_a_class_are_skipped_and_counted() -> None:
    values, labels = made_up(2, 30)
    labels[:] = 0
    labels[0] = 1
    found = score_classes(values, labels, TWO, resamples=1000)
    assert found.auc.skipped == found.balanced_accuracy.skipped == pytest.approx(1000 * (29 / 30) ** 30, abs=60)
    assert found.accuracy.skipped == 0
    assert not math.isnan(found.auc.interval[0])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("names", [TWO, THREE])
def test_one_class_alone_has_no_auc(names: list[str]) -> None:
    values, _ = made_up(len(names), 30)
    found = score_classes(values, np.ones(30, int), names)
    right = float((values.argmax(1) == 1).mean())
    assert math.isnan(found.auc.value)
    assert math.isnan(found.average_precision)
    assert np.isnan(found.auc.interval).all()
    assert found.accuracy.value == found.balanced_accuracy.value == pytest.approx(right)
    assert found.log_loss == pytest.approx(float(-np.log(values[:, 1]).mean()))
    assert found.confusion.shape == (len(names), len(names))
    assert found.confusion[1].sum() == 30
    assert all(each.roc is None and each.precision_recall is None for each in found.classes)


def test_missing_class_of_three() -> None:
    values, labels = made_up(3, 60)
    labels[labels == 2] = 0
    found = score_classes(values, labels, THREE)
    assert math.isnan(found.auc.value)
    assert not math.isnan(found.classes[0].auc.value)
    assert found.balanced_accuracy.value == pytest.approx(
        np.mean([each.sensitivity.value for each in found.classes[:2]])
    )


@pytest.mark.filterwarnings("error")
def test_single_case() -> None:
    found = score_classes([[0.2, 0.8]], [1], TWO)
    assert (found.accuracy.value, found.n) == (1, 1)
    assert np.isnan(found.accuracy.interval).all()


def test_probabilities_that_are_rounded_to_one_keep_their_order() -> None:
    logits = np.array([[0.0, 40.0], [0.0, 50.0], [0.0, 60.0], [0.0, 70.0]])
    values = softmax(logits, axis=1)
    assert (values[:, 1] == 1).all()
    found = score_classes(values, [0, 1, 0, 1], TWO)
    assert found.auc.value == found.classes[0].auc.value == 0.75


def test_thousand_cases_take_about_a_second() -> None:
    values, labels = made_up(3, 1000)
    started = time.process_time()
    score_classes(values, labels, THREE)
    assert time.process_time() - started < 5  # 0.4 s on one core


@pytest.mark.parametrize(
    ("values", "labels", "names", "problem"),
    [
        ([[0.5, 0.5]], [0], THREE, r"shape \(1, 2\) for 3 classes"),
        (np.empty((0, 2)), [], TWO, "one case and two classes or more"),
        ([[1.0]], [0], ["a"], "two classes or more"),
        ([[0.5, 0.5]], [0, 1], TWO, r"labels have the shape \(2,\) for 1 cases"),
        ([[0.5, 0.6], [math.nan, 1], [0.5, 0.5], [-0.5, 1.5]], [0] * 4, TWO, "cases 0, 1, 3: expected probabilities"),
        ([[2.0, 0.0], [0.5, 0.5]], [0, 2], TWO, "cases 0: .*; cases 1: the label is no class, expected 0 to 1"),
        ([[0.5, 0.5]] * 7, [0.5] * 7, TWO, "cases 0, 1, 2, 3, 4 and 2 more: the label is no class"),
    ],
)
def test_what_cannot_be_scored(values: Any, labels: Any, names: list[str], problem: str) -> None:
    with pytest.raises(Med3dError, match=problem):
        score_classes(values, labels, names)


@pytest.mark.parametrize("wrong", [[0], [1.0], [0.5, 0.5], ["0.5"], 0.5, "0.5", [math.nan], [True]])
def test_wrong_thresholds(wrong: Any) -> None:
    with pytest.raises(Med3dError, match="expected a list of different probabilities between 0 and 1"):
        check_thresholds(wrong)
    check_thresholds([0.25, 0.5])
    check_thresholds([])


def test_numbers() -> None:
    random = np.random.RandomState(0)
    truth = random.normal(50, 10, 80)
    guess = truth + random.normal(1, 4, 80)
    found = score_numbers(guess, truth, [str(case // 2) for case in range(80)])
    assert (found.n, found.patients) == (80, 40)
    expected = {
        "mae": metrics.mean_absolute_error(truth, guess),
        "rmse": metrics.root_mean_squared_error(truth, guess),
        "r2": metrics.r2_score(truth, guess),
        "pearson": pearsonr(truth, guess).statistic,
    }
    for name, value in expected.items():
        each = getattr(found, name)
        assert each.value == pytest.approx(value)
        assert each.interval[0] < value < each.interval[1]
    assert found.agreement == bland_altman(guess, truth)


def test_intervals_of_numbers_are_those_of_scikit_learn_over_the_resamples() -> None:
    random = np.random.RandomState(0)
    truth = random.normal(0, 1, 25)
    guess = truth + random.normal(0, 1, 25)
    found = score_numbers(guess, truth, resamples=210)
    drawn = np.random.default_rng(0).integers(25, size=(210, 25))
    for each, score in ((found.r2, metrics.r2_score), (found.pearson, lambda *both: pearsonr(*both).statistic)):
        values = [score(truth[rows], guess[rows]) for rows in drawn]
        assert each.interval == pytest.approx(np.quantile(values, [0.025, 0.975], method="inverted_cdf"))


@pytest.mark.filterwarnings("error")
def test_numbers_without_spread() -> None:
    found = score_numbers([1.0, 2.0, 4.0], [0.1] * 3)
    assert math.isnan(found.r2.value)
    assert math.isnan(found.pearson.value)
    assert found.mae.value == pytest.approx(6.7 / 3)
    found = score_numbers([1.0, 1.0, 1.0], [0.1, 0.1, 0.2], resamples=100)
    assert math.isnan(found.pearson.value)
    assert found.r2.skipped > 0  # resamples with equal targets
    assert math.isnan(score_numbers([1.0], [2.0]).r2.value)


@pytest.mark.parametrize(
    ("guess", "truth", "problem"),
    [
        ([1.0], [1.0, 2.0], r"predictions \(1,\), targets \(2,\)"),
        ([], [], "for one case or more"),
        ([1.0, math.inf], [1.0, 2.0], "predictions of cases 1 are not finite"),
        ([1.0, 2.0], [math.nan, 2.0], "targets of cases 0 are not finite"),
    ],
)
def test_numbers_that_cannot_be_scored(guess: list[float], truth: list[float], problem: str) -> None:
    with pytest.raises(Med3dError, match=problem):
        score_numbers(guess, truth)


def test_record_is_plain_json() -> None:
    values, labels = made_up(2, 30)
    scores: ClassScores = score_classes(values, np.zeros_like(labels), TWO, resamples=10)
    record = json.loads(json.dumps(as_record(scores), allow_nan=False))
    assert record["auc"] == {"value": None, "interval": [None, None], "skipped": 10}
    assert record["accuracy"]["value"] == scores.accuracy.value
    assert record["confusion"] == scores.confusion.tolist()
    assert record["class_names"] == TWO
    assert record["operating_points"][0]["threshold"] == 0.5
    assert sum(record["reliability"]["count"]) == 30
    assert record["classes"][0].keys() == {"name", "n", "sensitivity", "specificity", "auc", "average_precision"}
    numbers = json.loads(json.dumps(as_record(score_numbers([1.0], [2.0])), allow_nan=False))
    assert (numbers["mae"]["value"], numbers["r2"]["value"], numbers["agreement"]["bias"]) == (1, None, -1)
