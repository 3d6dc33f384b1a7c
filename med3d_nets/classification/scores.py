"""Scores of a classification, or of predicted numbers: pure functions of arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics

from med3d_nets.classification.calibration import Reliability, measure_reliability
from med3d_nets.classification.resampling import (
    Estimate,
    auc,
    average,
    estimate,
    share,
)
from med3d_nets.errors import Med3dError
from med3d_nets.statistics import RESAMPLES, SEED, Agreement, bland_altman, group_by_patient

__all__ = [
    "ClassScores",
    "Curve",
    "NumberScores",
    "OneClass",
    "OperatingPoint",
    "as_record",
    "check_thresholds",
    "score_classes",
    "score_numbers",
]

Array = NDArray[np.float64]
Labels = NDArray[np.intp]


@dataclass(frozen=True)
class Curve:
    """Points to draw, ``(point,)`` each."""

    x: Array
    y: Array


@dataclass(frozen=True)
class OperatingPoint:
    """Two classes told apart by a threshold: class 1 from this probability on.

    Attributes:
        threshold: probability of class 1.
        sensitivity, specificity: shares of the cases of class 1, and of class 0, that are recognised.
        ppv, npv: shares of the cases that are called class 1, and class 0, that are; they hold for data with as many
            cases of each class.
    """

    threshold: float
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate


@dataclass(frozen=True)
class OneClass:
    """A class against all others.

    Attributes:
        name: of the class.
        n: cases of the class.
        sensitivity, specificity: where the class with the highest probability is predicted.
        auc: area under ``roc``.
        average_precision: see ``sklearn.metrics.average_precision_score``.
        roc: false positive and true positive rate; None if no case or every case is of the class, where areas are NaN.
        precision_recall: recall and precision; None likewise.
    """

    name: str
    n: int
    sensitivity: Estimate
    specificity: Estimate
    auc: Estimate
    average_precision: float
    roc: Curve | None
    precision_recall: Curve | None


@dataclass(frozen=True)
class ClassScores:
    """Scores of a classification; the class with the highest probability is predicted, the first of equals.

    Attributes:
        n, patients: cases, and patients that were resampled for the intervals.
        resamples, seed: of the bootstrap.
        class_names: names of the classes.
        accuracy: share of cases that are right.
        balanced_accuracy: mean of the sensitivities; of the classes that there are, if one has no cases.
        auc: area under the ROC curve: of class 1, or, with more than two classes, the mean of each class against all
            others, as MedMNIST's evaluator takes it (Yang et al., arXiv:2110.14795). NaN if a class has no cases.
        average_precision: of class 1, or the mean over the classes; NaN likewise.
        log_loss: mean negative logarithm of the true class's probability.
        brier: mean squared error of class 1's probability; with more than two classes, of all, summed over them.
        operating_points: at each threshold; empty with more than two classes.
        classes: class 1; with more than two, each.
        confusion: cases by true and predicted class, ``(true, predicted)``.
        reliability: see :func:`~med3d_nets.classification.calibration.measure_reliability`.
    """

    n: int
    patients: int
    resamples: int
    seed: int
    class_names: tuple[str, ...]
    accuracy: Estimate
    balanced_accuracy: Estimate
    auc: Estimate
    average_precision: float
    log_loss: float
    brier: float
    operating_points: tuple[OperatingPoint, ...]
    classes: tuple[OneClass, ...]
    confusion: NDArray[np.int64]
    reliability: Reliability


@dataclass(frozen=True)
class NumberScores:
    """Scores of predicted numbers.

    Attributes:
        n, patients, resamples, seed: as of :class:`ClassScores`.
        mae, rmse: mean absolute and root mean squared error, in the numbers' unit.
        r2: share of the variance that is explained; NaN if all targets are equal.
        pearson: correlation; NaN if all targets, or all predictions, are equal.
        agreement: bias and limits of agreement, see :func:`~med3d_nets.statistics.bland_altman`.
    """

    n: int
    patients: int
    resamples: int
    seed: int
    mae: Estimate
    rmse: Estimate
    r2: Estimate
    pearson: Estimate
    agreement: Agreement


def score_classes(
    probabilities: ArrayLike,
    labels: ArrayLike,
    class_names: Sequence[str],
    patients: Sequence[str] | None = None,
    thresholds: Sequence[float] = (0.5,),
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> ClassScores:
    """Score probabilities against the true classes.

    Args:
        probabilities: ``(case, class)``.
        labels: index of the true class of each case, ``(case,)``.
        class_names: two or more.
        patients: of each case, empty for one of its own; whole patients are resampled. None: each case is one.
        thresholds: of class 1's probability; without meaning for more than two classes.
        resamples: for the intervals; 0 for none. One in which a score is not defined is left out of its interval and
            counted.
        seed: of the resamples.

    Raises:
        Med3dError: if there are no cases, the shapes do not fit, a probability or a label cannot be one, or a threshold
            is no probability.
    """
    check_thresholds(thresholds)
    values, truth = _checked(probabilities, labels, class_names)
    groups = group_by_patient(len(truth), patients)
    predicted = values.argmax(1)
    is_class = truth[:, None] == np.arange(len(class_names))
    shown = [1] if len(class_names) == 2 else list(range(len(class_names)))
    cuts = thresholds if len(class_names) == 2 else ()
    found = estimate(_measure(values, is_class, shown, cuts), groups, resamples, seed)
    classes = tuple(_one_class(class_names[place], place, values, is_class[:, place], found) for place in shown)
    known = range(len(class_names))
    return ClassScores(
        *(len(truth), int(groups.max()) + 1, resamples, seed, tuple(class_names)),
        *(found["accuracy"], found["balanced"], found["auc"]),
        average_precision=float(np.mean([each.average_precision for each in classes])),
        log_loss=float(metrics.log_loss(truth, values, labels=known)),
        brier=float(metrics.brier_score_loss(truth, values, labels=known)),
        operating_points=tuple(
            OperatingPoint(cut, *(found[f"{name} at {cut}"] for name in CUT_SCORES)) for cut in cuts
        ),
        classes=classes,
        confusion=metrics.confusion_matrix(truth, predicted, labels=known),
        reliability=measure_reliability(values, truth),
    )


def score_numbers(
    predictions: ArrayLike,
    targets: ArrayLike,
    patients: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> NumberScores:
    """Score predicted numbers.

    Args:
        predictions, targets: ``(case,)``, in the same unit.
        patients, resamples, seed: as for :func:`score_classes`.

    Raises:
        Med3dError: if there are no cases, the numbers of cases differ, or a number is not finite.
    """
    values, truth = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    if values.ndim != 1 or values.shape != truth.shape or not values.size:
        raise Med3dError(f"predictions {values.shape}, targets {truth.shape}; expected one each for one case or more")
    for name, each in (("predictions", values), ("targets", truth)):
        if not np.isfinite(each).all():
            raise Med3dError(f"{name} of cases {_listed(~np.isfinite(each))} are not finite")
    groups = group_by_patient(len(truth), patients)
    errors = values - truth

    def measure(weights: Array) -> dict[str, Array]:
        square = average(errors**2)(weights)
        return {
            "mae": average(np.abs(errors))(weights),
            "rmse": np.sqrt(square),
            "r2": 1 - square / _variance(truth, weights),
            "pearson": _correlation(values, truth, weights),
        }

    found = estimate(measure, groups, resamples, seed)
    counts = (len(truth), int(groups.max()) + 1, resamples, seed)
    shown = (found["mae"], found["rmse"], found["r2"], found["pearson"])
    return NumberScores(*counts, *shown, agreement=bland_altman(values, truth))


def as_record(scores: Any) -> Any:
    """Scores as plain numbers, lists and dictionaries for JSON, with None for what is not defined.

    Points of curves are left out: they follow from the predictions.

    Args:
        scores: :class:`ClassScores`, :class:`NumberScores`, or a part of them.
    """
    if is_dataclass(scores):
        content = {field.name: getattr(scores, field.name) for field in fields(scores)}
        return {name: as_record(value) for name, value in content.items() if name not in ("roc", "precision_recall")}
    if isinstance(scores, np.ndarray):
        return scores.tolist()
    if isinstance(scores, tuple):
        return [as_record(value) for value in scores]
    if isinstance(scores, float):
        return scores if math.isfinite(scores) else None
    return scores


def check_thresholds(thresholds: Sequence[float]) -> None:
    """Check thresholds of a probability.

    Raises:
        Med3dError: if they are no list, or one is not between 0 and 1 or is there twice.
    """
    listed = isinstance(thresholds, Sequence) and not isinstance(thresholds, str)
    if not listed or len({each for each in thresholds if _is_probability(each)}) < len(thresholds):
        raise Med3dError(f"thresholds is {thresholds!r}, expected a list of different probabilities between 0 and 1")


def _is_probability(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 < value < 1


CUT_SCORES = ("sensitivity", "specificity", "ppv", "npv")


def _measure(
    values: Array, is_class: NDArray[np.bool_], shown: Sequence[int], cuts: Sequence[float]
) -> Callable[[Array], dict[str, Array]]:
    """Statistics of weights, by name; those of a class have its place behind."""
    is_called = values.argmax(1)[:, None] == np.arange(values.shape[1])
    statistics = {"accuracy": average((is_called & is_class).any(1).astype(float))}
    for place, (called, true) in enumerate(zip(is_called.T, is_class.T, strict=True)):
        statistics[f"sensitivity {place}"] = share(called, true)
        statistics[f"specificity {place}"] = share(~called, ~true)
    for place in shown:
        statistics[f"auc {place}"] = auc(_log_odds(values, place), is_class[:, place])
    for cut in cuts:
        called, true = values[:, 1] >= cut, is_class[:, 1]
        pairs = ((called, true), (~called, ~true), (true, called), (~true, ~called))
        statistics |= {f"{name} at {cut}": share(*pair) for name, pair in zip(CUT_SCORES, pairs, strict=True)}
    there = np.flatnonzero(is_class.any(0))

    def measure(weights: Array) -> dict[str, Array]:
        each = {name: statistic(weights) for name, statistic in statistics.items()}
        areas = np.mean([each[f"auc {place}"] for place in shown], axis=0)
        return {**each, "auc": areas, "balanced": np.mean([each[f"sensitivity {place}"] for place in there], axis=0)}

    return measure


def _log_odds(values: Array, place: int) -> Array:
    """Of a class: in the order of its probability, and telling cases apart whose probability is rounded to 1."""
    pair = np.stack([values[:, place], np.delete(values, place, axis=1).sum(1)])
    yes, no = np.log(np.maximum(pair, np.finfo(float).tiny))
    return np.asarray(yes - no)


def _one_class(
    name: str, place: int, values: Array, positive: NDArray[np.bool_], found: dict[str, Estimate]
) -> OneClass:
    n, precision, roc, precision_recall = int(positive.sum()), math.nan, None, None
    if 0 < n < len(positive):
        odds = _log_odds(values, place)
        precision = float(metrics.average_precision_score(positive, odds))
        roc = Curve(*metrics.roc_curve(positive, odds)[:2])
        precision_recall = Curve(*metrics.precision_recall_curve(positive, odds, drop_intermediate=True)[1::-1])
    sensitivity, specificity, area = (found[f"{score} {place}"] for score in ("sensitivity", "specificity", "auc"))
    return OneClass(name, n, sensitivity, specificity, area, precision, roc, precision_recall)


def _variance(values: Array, weights: Array) -> Array:
    """Weighted variance; NaN where all values that count are equal, which rounding would hide."""
    centred = values - values.mean()
    mean = average(centred)(weights)
    variance = average(centred**2)(weights) - mean**2
    lowest, highest = (
        end(np.where(weights > 0, values, sign * np.inf), axis=1) for end, sign in ((np.min, 1), (np.max, -1))
    )
    return np.where(highest > lowest, variance, np.nan)


def _correlation(one: Array, other: Array, weights: Array) -> Array:
    one, other = one - one.mean(), other - other.mean()
    first, second, product = (average(each)(weights) for each in (one, other, one * other))
    return (product - first * second) / np.sqrt(_variance(one, weights) * _variance(other, weights))


def _checked(probabilities: ArrayLike, labels: ArrayLike, class_names: Sequence[str]) -> tuple[Array, Labels]:
    values, truth = np.asarray(probabilities, np.float64), np.asarray(labels)
    if len(class_names) < 2 or values.ndim != 2 or values.shape[1] != len(class_names) or not len(values):
        raise Med3dError(
            f"probabilities have the shape {values.shape} for {len(class_names)} classes, expected (case, class) with "
            "one case and two classes or more"
        )
    if truth.shape != values.shape[:1]:
        raise Med3dError(f"labels have the shape {truth.shape} for {len(values)} cases, expected one each")
    problems = []
    wrong = ~((values >= 0) & (values <= 1)).all(1) | ~np.isclose(values.sum(1), 1, atol=1e-3)
    if wrong.any():
        problems.append(f"cases {_listed(wrong)}: expected probabilities from 0 to 1 with the sum 1")
    unknown = ~np.isin(truth, np.arange(len(class_names)))
    if unknown.any():
        problems.append(f"cases {_listed(unknown)}: the label is no class, expected 0 to {len(class_names) - 1}")
    if problems:
        raise Med3dError("; ".join(problems))
    return values, truth.astype(np.intp)


def _listed(mask: NDArray[np.bool_]) -> str:
    places = np.flatnonzero(mask).tolist()
    return ", ".join(map(str, places[:5])) + (f" and {len(places) - 5} more" if len(places) > 5 else "")
