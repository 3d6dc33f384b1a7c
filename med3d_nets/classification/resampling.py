"""Bootstrap of scores that are functions of weights: a resample says how often each case was drawn.

Scikit-learn's scores take weights too, but one resample at a time; here all of them are a matrix, so that two thousand
resamples of a thousand cases take a fraction of a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from med3d_nets.statistics import LEVEL, RESAMPLES, SEED, Interval

__all__ = ["Estimate", "Statistic", "auc", "average", "estimate", "ratio", "share"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Statistic = Callable[[Array], Array]
"""From weights ``(resample, case)`` to values ``(resample,)``, NaN where there is none."""

PORTION = 200_000
"""Weights that are held at once: few enough for a processor's cache."""


@dataclass(frozen=True)
class Estimate:
    """A score with its 95 % confidence interval.

    Attributes:
        value: of the cases as they are; NaN if it is not defined.
        interval: both ends; NaN if there are fewer than two patients, or no resamples.
        skipped: resamples in which the score is not defined, as where a class was not drawn.
    """

    value: float
    interval: Interval = (math.nan, math.nan)
    skipped: int = 0


def estimate(
    measure: Callable[[Array], Mapping[str, Array]],
    groups: NDArray[np.intp],
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Estimate]:
    """Values with 95 % percentile bootstrap intervals, all of the same resamples.

    Patients are drawn with replacement, each with all its cases, since cases of one patient are alike. Ends are ordered
    values, as of :func:`~med3d_nets.statistics.bootstrap_interval`, which says where it is from. The interval is too
    narrow for few patients, and has no width where every resample has the same score.

    Args:
        measure: statistics by name, of weights.
        groups: of :func:`~med3d_nets.statistics.group_by_patient`, ``(case,)``.
        resamples: how often the patients are drawn; 0 for no intervals.
        seed: of the draws.
    """
    values = measure(np.ones((1, len(groups))))
    found: dict[str, list[Array]] = {name: [np.empty(0)] for name in values}
    if groups.max() > 0:
        for weights in _draw(groups, resamples, seed):
            for name, each in measure(weights).items():
                found[name].append(each)
    return {name: _summarise(float(value[0]), np.concatenate(found[name])) for name, value in values.items()}


def average(values: Array) -> Statistic:
    """The mean of values ``(case,)``."""
    return ratio(values, np.ones_like(values))


def share(part: Mask, whole: Mask) -> Statistic:
    """The share of the cases in ``whole`` that are in ``part``, masks ``(case,)``."""
    return ratio((part & whole).astype(float), whole.astype(float))


def ratio(above: Array, below: Array) -> Statistic:
    """The sum of values ``(case,)`` divided by that of others."""
    return lambda weights: _divide(weights @ above, weights @ below)


def auc(scores: Array, positive: Mask) -> Statistic:
    """Area under the ROC curve: how often a positive case has the higher score than a negative one, ties half.

    This is the Mann-Whitney statistic (Hanley and McNeil, The meaning and use of the area under a receiver operating
    characteristic (ROC) curve, Radiology 143, 1982, 29-36), with every case counted as often as its weight.

    Args:
        scores: ``(case,)``.
        positive: ``(case,)``.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # of runs of equal scores
    is_positive = positive[order]

    def statistic(weights: Array) -> Array:
        ordered = weights[:, order]
        high = np.add.reduceat(ordered * is_positive, starts, axis=1)
        low = np.add.reduceat(ordered * ~is_positive, starts, axis=1)
        wins = (high * (low.cumsum(1) - low / 2)).sum(1)
        return _divide(wins, high.sum(1) * low.sum(1))

    return statistic


def _draw(groups: NDArray[np.intp], resamples: int, seed: int) -> Iterator[Array]:
    """Weights ``(resample, case)``, some resamples at a time."""
    random = np.random.default_rng(seed)
    count = int(groups.max()) + 1
    size = max(1, PORTION // len(groups))
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        drawn = random.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        yield counts[:, groups].astype(float)


def _summarise(value: float, found: Array) -> Estimate:
    kept = found[~np.isnan(found)]
    skipped = int(found.size - kept.size)
    if not kept.size or math.isnan(value):
        return Estimate(value, skipped=skipped)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(kept, [tail, 1 - tail], method="inverted_cdf")
    return Estimate(value, (float(low), float(high)), skipped)


def _divide(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
