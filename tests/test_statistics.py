"""Statistics against values known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from med3d_nets.classification.resampling import average, estimate
from med3d_nets.errors import Med3dError
from med3d_nets.statistics import (
    bland_altman,
    bootstrap_interval,
    case_means,
    group_by_patient,
    pick_cases,
    summarise,
)

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("values", "level", "expected"),
    [
        # Means of two cases drawn from {0, 1}: 0, 1/2 and 1 with chances 1/4, 1/2 and 1/4.
        ([0, 1], 0.95, (0, 1)),
        ([0, 1], 0.4, (0.5, 0.5)),
        # Three cases from {1, 2, inf}: all are 1 in 1/27 > 2.5 % of the draws, none is infinite in 8/27.
        ([1, 2, INF], 0.95, (1, INF)),
        ([INF, INF, INF], 0.95, (INF, INF)),
        ([0.8] * 7, 0.95, (0.8, 0.8)),
        ([NAN, 0, NAN, 1], 0.95, (0, 1)),
    ],
)
def test_bootstrap_known_values(values: list[float], level: float, expected: tuple[float, float]) -> None:
    assert bootstrap_interval(values, level=level) == pytest.approx(expected)


def test_bootstrap_agrees_with_scipy() -> None:
    values = np.random.default_rng(5).beta(8, 2, 60)
    for statistic in (np.mean, np.median):
        theirs = stats.bootstrap((values,), statistic, method="percentile", n_resamples=20000, rng=1)
        ours = bootstrap_interval(values, statistic)
        assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.006)
    assert bootstrap_interval(values) == bootstrap_interval(values) != bootstrap_interval(values, seed=1)


def test_bootstrap_by_patient_is_that_of_weights() -> None:
    """The classifiers' bootstrap counts how often each case was drawn, with the same draws of the same seed."""
    random = np.random.default_rng(3)
    patients = group_by_patient(60, [f"patient {number}" for number in random.integers(20, size=60)])
    values = random.normal(0, 1, 20)[patients] + random.normal(0, 0.1, 60)
    by_case, by_patient = bootstrap_interval(values), bootstrap_interval(values, patients=patients)
    theirs = estimate(lambda weights: {"mean": average(values)(weights)}, patients)["mean"].interval
    assert by_patient == pytest.approx(theirs, abs=0.02)
    assert np.ptp(by_patient) > 1.3 * np.ptp(by_case)
    assert bootstrap_interval(values, patients=np.arange(60)) == by_case
    values[patients == 4] = NAN
    kept = patients != 4
    assert bootstrap_interval(values, np.median, patients=patients) == bootstrap_interval(
        values[kept], np.median, patients=patients[kept]
    )
    assert summarise(values, patients).mean_interval == bootstrap_interval(values, patients=patients)


def test_cases_of_one_patient_have_no_interval() -> None:
    assert all(map(math.isnan, bootstrap_interval([0.1, 0.2, 0.9, NAN], patients=[0, 0, 0, 1])))


@pytest.mark.parametrize("values", [[], [0.5], [NAN, 0.5], [NAN, NAN]])
def test_too_few_cases_have_no_interval(values: list[float]) -> None:
    assert all(map(math.isnan, bootstrap_interval(values)))


def test_summary() -> None:
    found = summarise([0.5, NAN, 0.25, 0.75, 1.0, NAN])
    assert (found.n, found.left_out, found.infinite) == (4, 2, 0)
    assert (found.mean, found.median, found.lowest, found.highest) == (0.625, 0.625, 0.25, 1.0)
    assert found.mean_interval == bootstrap_interval([0.5, 0.25, 0.75, 1.0])
    assert found.median_interval == bootstrap_interval([0.5, 0.25, 0.75, 1.0], np.median)
    assert found.mean_interval[0] < 0.625 < found.mean_interval[1]


def test_summary_counts_infinite_scores() -> None:
    found = summarise([1.0, INF, 2.0, 3.0, 4.0])
    assert (found.n, found.infinite, found.left_out) == (5, 1, 0)
    assert (found.mean, found.median, found.highest) == (INF, 3.0, INF)
    assert found.mean_interval[0] < found.mean_interval[1] == INF


def test_summary_of_nothing_and_of_one() -> None:
    nothing = summarise([NAN, NAN])
    assert (nothing.n, nothing.left_out) == (0, 2)
    assert math.isnan(nothing.mean)
    assert math.isnan(nothing.median)
    one = summarise([0.5])
    assert (one.n, one.mean, one.median, one.lowest, one.highest) == (1, 0.5, 0.5, 0.5, 0.5)
    assert math.isnan(one.mean_interval[0])


def test_bland_altman_by_hand() -> None:
    found = bland_altman([1, 2, 3, 4, NAN], [1, 1, 1, 1, 1])
    assert found.n == 4
    assert found.bias == 1.5
    sd = math.sqrt(5 / 3)  # of 0, 1, 2, 3
    assert found.sd == pytest.approx(sd)
    assert (found.lower, found.upper) == pytest.approx((1.5 - 1.96 * sd, 1.5 + 1.96 * sd))
    t = 3.182446  # two-sided 95 %, three degrees of freedom
    assert found.bias_margin == pytest.approx(t * sd / 2, rel=1e-6)
    assert found.limit_margin == pytest.approx(t * sd * math.sqrt(3) / 2, rel=1e-6)


def test_bland_altman_of_few_or_equal_pairs() -> None:
    nothing, one = bland_altman([], []), bland_altman([3.0], [5.0])
    assert (nothing.n, one.n, one.bias) == (0, 1, -2.0)
    assert all(map(math.isnan, (nothing.bias, nothing.sd, one.sd, one.lower, one.upper, one.bias_margin)))
    same = bland_altman([2.0, 3.0, 4.0], [1.0, 2.0, 3.0])
    assert (same.bias, same.sd, same.lower, same.upper, same.limit_margin) == (1.0, 0.0, 1.0, 1.0, 0.0)


def test_bland_altman_refuses_what_is_no_pair() -> None:
    with pytest.raises(ValueError, match="shape"):
        bland_altman([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="infinite"):
        bland_altman([INF], [1.0])


def test_case_means() -> None:
    found = case_means([[0.5, 1.0], [NAN, 0.25], [NAN, NAN], [INF, 1.0]])
    assert found[[0, 1, 3]].tolist() == [0.75, 0.25, INF]
    assert math.isnan(found[2])


@pytest.mark.parametrize(
    ("scores", "count", "expected"),
    [
        ([0.5, 0.9, 0.1, NAN, 0.7, 0.3], 3, [("best", 1), ("median", 0), ("worst", 2)]),
        ([0.5, 0.9, 0.1, 0.7], 3, [("best", 1), ("median", 3), ("worst", 2)]),
        ([0.5, 0.9], 3, [("best", 1), ("worst", 0)]),
        ([NAN, 0.9], 3, [("only case", 1)]),
        ([NAN, NAN], 3, []),
        ([0.5, 0.5, 0.5], 3, [("best", 0), ("median", 1), ("worst", 2)]),
        ([0.5, 0.9, 0.1], 0, []),
        ([0.5, 0.9, 0.1], 1, [("median", 0)]),
        ([0.5, 0.9, 0.1], 2, [("best", 1), ("worst", 2)]),
        ([5, 4, 3, 2, 1], 5, [("best", 0), ("rank 2 of 5", 1), ("median", 2), ("rank 4 of 5", 3), ("worst", 4)]),
        ([3, 2, 1], 9, [("best", 0), ("median", 1), ("worst", 2)]),
    ],
)
def test_picked_cases(scores: list[float], count: int, expected: list[tuple[str, int]]) -> None:
    assert pick_cases(scores, count) == expected


def test_patients_of_each_case() -> None:
    assert group_by_patient(3).tolist() == [0, 1, 2]
    with pytest.raises(Med3dError, match="2 patients for 3 cases, expected one each"):
        group_by_patient(3, ["a", "b"])
