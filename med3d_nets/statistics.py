"""What a report says of scores and volumes: pure functions of arrays.

A score that is NaN has no meaning (the class is not there) and is left out; an infinite one (a Hausdorff distance where
only one of prediction and reference has the class) counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from med3d_nets.errors import Med3dError

__all__ = [
    "Agreement",
    "Summary",
    "bland_altman",
    "bootstrap_interval",
    "case_means",
    "group_by_patient",
    "pick_cases",
    "summarise",
]

Array = NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 2000
SEED = 0
LEVEL = 0.95
LIMIT = 1.96
"""Standard deviations from the bias to a limit of agreement: 95 % of normally distributed differences lie between."""


@dataclass(frozen=True)
class Summary:
    """Scores of one class over the cases.

    Attributes:
        n: cases that count.
        left_out: cases whose score is NaN.
        infinite: those of the ``n`` whose score is infinite.
        mean, median, lowest, highest: of the ``n`` scores; NaN if there are none.
        mean_interval, median_interval: see :func:`bootstrap_interval`.
    """

    n: int
    left_out: int
    infinite: int
    mean: float
    mean_interval: Interval
    median: float
    median_interval: Interval
    lowest: float
    highest: float


@dataclass(frozen=True)
class Agreement:
    """Agreement of measured with reference volumes, in their unit; see :func:`bland_altman`.

    Attributes:
        n: pairs that count.
        bias: mean of measured minus reference.
        sd: standard deviation of the differences, with ``n - 1``.
        lower, upper: limits of agreement.
        bias_margin, limit_margin: half the width of the 95 % confidence interval of the bias and of each limit.
    """

    n: int
    bias: float
    sd: float
    lower: float
    upper: float
    bias_margin: float
    limit_margin: float


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[..., Any] = np.mean,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    patients: ArrayLike | None = None,
) -> Interval:
    """Percentile bootstrap confidence interval of a statistic of the cases.

    Its ends are ordered values of the resampled statistic, not interpolated between two of them as in
    ``scipy.stats.bootstrap``, which makes NaN of infinite scores. (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13.) The interval is too narrow for few patients, about 20 or less.

    Args:
        values: one per case, ``(case,)``; NaN is left out.
        statistic: takes ``axis``.
        level: that of confidence.
        resamples: how often the patients are drawn, with replacement, each with all its cases: they are alike.
        seed: of the draws.
        patients: number of each case's patient, see :func:`group_by_patient`; None: each case is one.

    Returns:
        Both ends; NaN with fewer than two patients, who say nothing of their spread.
    """
    array = np.asarray(values, float)
    numbers = np.arange(array.size) if patients is None else np.asarray(patients)
    kept = ~np.isnan(array)
    # In the order of the cases, so that the draws are the same ones where each case is a patient.
    groups = [array[kept & (numbers == number)] for number in dict.fromkeys(numbers[kept].tolist())]
    if len(groups) < 2:
        return math.nan, math.nan
    drawn = np.random.default_rng(seed).integers(len(groups), size=(resamples, len(groups)))
    if all(len(group) == 1 for group in groups):
        found = np.asarray(statistic(np.concatenate(groups)[drawn], axis=1))
    else:
        found = np.array([statistic(np.concatenate([groups[place] for place in row]), axis=0) for row in drawn])
    tail = (1 - level) / 2
    low, high = np.quantile(found, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)


def summarise(values: ArrayLike, patients: ArrayLike | None = None) -> Summary:
    """Mean and median of a score with their 95 % confidence intervals, and its range.

    Args:
        values: one per case, ``(case,)``; NaN is left out and counted.
        patients: as for :func:`bootstrap_interval`.
    """
    kept = _without_nan(values)
    left_out, infinite = np.size(values) - kept.size, int(np.isinf(kept).sum())
    if not kept.size:
        nothing = (math.nan, math.nan)
        return Summary(0, left_out, 0, math.nan, nothing, math.nan, nothing, math.nan, math.nan)
    return Summary(
        *(int(kept.size), left_out, infinite),
        *(float(kept.mean()), bootstrap_interval(values, patients=patients)),
        *(float(np.median(kept)), bootstrap_interval(values, np.median, patients=patients)),
        *(float(kept.min()), float(kept.max())),
    )


def bland_altman(measured: ArrayLike, reference: ArrayLike) -> Agreement:
    """Bias and 95 % limits of agreement of two measurements of the same cases.

    The limits are ``bias - 1.96 sd`` and ``bias + 1.96 sd`` of the differences; the standard error of the bias is
    ``sd / sqrt(n)``, that of a limit about ``sqrt(3 / n) sd``, and intervals take Student's t with ``n - 1`` degrees of
    freedom. (Bland and Altman, Statistical methods for assessing agreement between two methods of clinical measurement,
    The Lancet 327 (8476), 1986, 307-310.)

    Args:
        measured, reference: one per case, ``(case,)``, in the same unit; pairs with a NaN are left out.

    Returns:
        The agreement; NaN where there are too few pairs: one has a bias but no limits.

    Raises:
        ValueError: if the numbers of cases differ or a value is infinite.
    """
    pairs = np.stack([np.asarray(measured, float), np.asarray(reference, float)])
    if np.isinf(pairs).any():
        raise ValueError("a volume is infinite")
    differences = _without_nan(pairs[0] - pairs[1])
    n = int(differences.size)
    bias = float(differences.mean()) if n else math.nan
    if n < 2:
        return Agreement(n, bias, *[math.nan] * 5)
    sd = float(differences.std(ddof=1))
    t = float(stdtrit(n - 1, 0.975))
    margins = (t * sd / math.sqrt(n), t * sd * math.sqrt(3 / n))
    return Agreement(n, bias, sd, bias - LIMIT * sd, bias + LIMIT * sd, *margins)


def group_by_patient(n: int, patients: Sequence[str] | None = None) -> NDArray[np.intp]:
    """Number of the patient of each case, from 0.

    Args:
        n: number of cases.
        patients: of each case; empty for a patient of its own. None: each case is one.

    Returns:
        ``(case,)``.

    Raises:
        Med3dError: if there are more or fewer patients than cases.
    """
    if patients is None:
        return np.arange(n)
    if len(patients) != n:
        raise Med3dError(f"{len(patients)} patients for {n} cases, expected one each")
    known: dict[str | int, int] = {}
    return np.array([known.setdefault(name or index, len(known)) for index, name in enumerate(patients)], np.intp)


def case_means(scores: ArrayLike) -> Array:
    """Mean of each case over the classes that it has, as MONAI's metrics take it before they average the cases.

    Args:
        scores: ``(case, class)``.

    Returns:
        ``(case,)``; NaN for a case without any.
    """
    table = np.asarray(scores, float)
    there = ~np.isnan(table)
    counts = there.sum(1)
    sums = np.where(there, table, 0).sum(1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), math.nan)


def pick_cases(scores: ArrayLike, count: int = 3) -> list[tuple[str, int]]:
    """Cases to look at, evenly spaced from the best to the worst: with three of them, best, median and worst.

    Args:
        scores: one per case, ``(case,)``, higher is better; cases of NaN are not picked.
        count: how many; 1 picks the median. Fewer are picked where there are fewer cases.

    Returns:
        What each is and its index, best first; among equals, the first case is the better one.
    """
    values = np.asarray(scores, float)
    order = [index for index in np.argsort(-values, kind="stable") if not math.isnan(values[index])]
    last = len(order) - 1
    if count < 1 or last < 0:
        return []
    spots: Sequence[float] = [last / 2] if count == 1 else [float(spot) for spot in np.linspace(0, last, count)]
    ranks = sorted({math.ceil(spot - 0.5) for spot in spots})
    return [(_rank_name(rank, last), int(order[rank])) for rank in ranks]


def _rank_name(rank: int, last: int) -> str:
    if last == 0:
        return "only case"
    names = {0: "best", last: "worst"}
    if last > 1:
        names.setdefault(math.ceil(last / 2 - 0.5), "median")
    return names.get(rank, f"rank {rank + 1} of {last + 1}")


def _without_nan(values: ArrayLike) -> Array:
    array = np.asarray(values, float)
    return array[~np.isnan(array)]
