"""Weighted scores against scikit-learn's, and their bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from med3d_nets.classification import resampling
from med3d_nets.classification.resampling import Estimate, auc, average, estimate, ratio, share
from med3d_nets.statistics import group_by_patient

RANDOM = np.random.RandomState(0)


@pytest.mark.parametrize("decimals", [16, 1, 0])
def test_auc_of_weights_is_that_of_scikit_learn(decimals: int) -> None:
    scores = RANDOM.rand(60).round(decimals)  # with many ties, or all but two values the same
    positive = RANDOM.rand(60) < 0.4
    weights = RANDOM.randint(0, 4, (50, 60)).astype(float)
    expected = [roc_auc_score(positive, scores, sample_weight=row) for row in weights]
    assert auc(scores, positive)(weights) == pytest.approx(expected, abs=1e-12)


def test_auc_needs_both_classes() -> None:
    found = auc(np.array([0.1, 0.2, 0.3]), np.array([False, True, True]))
    assert np.isnan(found(np.array([[1.0, 0, 0], [0, 2, 1]]))).all()
    assert found(np.array([[1.0, 1, 0]]))[0] == 1


def test_shares_and_means_count_weights() -> None:
    part, whole = np.array([True, False, True, True]), np.array([True, True, True, False])
    weights = np.array([[1.0, 1, 1, 1], [3, 1, 0, 5], [0, 0, 0, 2]])
    assert share(part, whole)(weights) == pytest.approx([2 / 3, 3 / 4, math.nan], nan_ok=True)
    assert average(np.array([1.0, 2, 3, 4]))(weights) == pytest.approx([2.5, 25 / 9, 4])
    assert ratio(np.array([1.0, 2, 3, 4]), np.array([2.0, 2, 2, 2]))(weights)[0] == 10 / 8


def test_cases_of_a_patient_are_drawn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = group_by_patient(6, ["b", "", "a", "b", "", "a"])
    assert groups.tolist() == [0, 1, 2, 0, 3, 2]
    monkeypatch.setattr(resampling, "PORTION", 60)  # ten resamples at once
    seen: list[np.ndarray] = []

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(weights)
        return {"sum": weights.sum(1)}

    estimate(measure, groups, resamples=25)
    assert [len(weights) for weights in seen] == [1, 10, 10, 5]
    drawn = np.concatenate(seen[1:])
    assert (drawn[:, 0] == drawn[:, 3]).all()
    assert (drawn[:, 2] == drawn[:, 5]).all()
    assert (drawn[:, [0, 1, 2, 4]].sum(1) == 4).all()
    assert (drawn[:, 1] != drawn[:, 4]).any()


def test_interval_is_about_that_of_theory() -> None:
    values = np.random.RandomState(1).normal(5, 2, 400)
    found = estimate(lambda weights: {"mean": average(values)(weights)}, group_by_patient(400))["mean"]
    margin = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.interval == pytest.approx((values.mean() - margin, values.mean() + margin), abs=0.03)
    again = estimate(lambda weights: {"mean": average(values)(weights)}, group_by_patient(400))["mean"]
    assert again == found
    assert estimate(lambda weights: {"mean": average(values)(weights)}, group_by_patient(400), seed=1)["mean"] != found


def test_patients_widen_the_interval() -> None:
    values = np.repeat(np.random.RandomState(2).normal(0, 1, 20), 10)

    def width(groups: np.ndarray) -> float:
        low, high = estimate(lambda weights: {"mean": average(values)(weights)}, groups)["mean"].interval
        return high - low

    assert width(group_by_patient(200, [str(case // 10) for case in range(200)])) > 2 * width(group_by_patient(200))


def test_resamples_without_a_value_are_counted() -> None:
    one = np.array([True, False, False, False])
    found = estimate(lambda weights: {"x": share(one, one)(weights)}, group_by_patient(4), resamples=1000)["x"]
    assert found.interval == (1, 1)
    assert found.skipped == pytest.approx(1000 * 0.75**4, abs=60)


@pytest.mark.parametrize(("patients", "resamples"), [(["a", "a", "a"], 100), (None, 0)])
def test_one_patient_or_no_resamples_have_no_interval(patients: list[str] | None, resamples: int) -> None:
    values = np.array([1.0, 2.0, 6.0])
    found = estimate(lambda weights: {"x": average(values)(weights)}, group_by_patient(3, patients), resamples)["x"]
    assert (found.value, found.skipped) == (3, 0)
    assert np.isnan(found.interval).all()
    assert np.isnan(Estimate(0.5).interval).all()
