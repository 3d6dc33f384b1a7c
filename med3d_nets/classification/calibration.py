"""Whether probabilities are as often right as they say, and temperature scaling, which makes them so.

Both are of Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, ICML 2017, arXiv:1706.04599. One
temperature for all cases leaves the order of a case's classes, and so the predicted class, as it is.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from med3d_nets.errors import Med3dError

__all__ = [
    "LEAST_CASES",
    "TEMPERATURES",
    "Calibration",
    "Reliability",
    "class_probabilities",
    "fit_temperature",
    "measure_reliability",
]

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

TEMPERATURES = (0.05, 20.0)
"""The lowest and the highest temperature that is tried."""

LEAST_CASES = 10
"""With fewer cases, a temperature would tell of chance alone."""


LEAST_WRONG = 3
"""With fewer cases that are wrong, probabilities are never made surer."""

BINS = 15
"""Of confidence, as in Guo et al."""


@dataclass(frozen=True)
class Reliability:
    """How well probabilities fit, by bins of equal width that have cases.

    Attributes:
        confidence: mean probability in each bin, ``(bin,)``.
        frequency: share of its cases that the probability was right about.
        count: its cases.
        error: expected calibration error: mean distance of the two, weighted with the cases.
    """

    confidence: tuple[float, ...]
    frequency: tuple[float, ...]
    count: tuple[int, ...]
    error: float


def class_probabilities(logits: ArrayLike) -> Array:
    """Softmax of logits.

    Args:
        logits: ``(case, class)``, or ``(class,)`` of one case.

    Returns:
        Probabilities of the same shape, float64.
    """
    return np.asarray(softmax(np.asarray(logits, np.float64), axis=-1))


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature with the lowest negative log likelihood of the labels.

    The likelihood has one maximum, so that a bounded search of the logarithm finds it, the same each time. Where the
    network is right, or wrong, about all cases, it lies beyond :data:`TEMPERATURES`.

    Args:
        logits: ``(case, class)``, finite.
        labels: index of the true class of each case, ``(case,)``.

    Returns:
        The temperature; 1.0, which changes nothing, if there are fewer than :data:`LEAST_CASES` cases or all are of one
        class, or if no temperature between the bounds is best; and 1.0 at least, if fewer than :data:`LEAST_WRONG` are
        wrong.

    Raises:
        Med3dError: if there is not one label for each row of logits, a logit is not finite, or a label is no class.
    """
    values, truth = np.asarray(logits, np.float64), np.asarray(labels)
    if values.ndim != 2 or truth.shape != values.shape[:1]:
        raise Med3dError(f"logits have the shape {values.shape}, labels {truth.shape}; expected (case, class), (case,)")
    if not np.isfinite(values).all():
        raise Med3dError(f"logits of case {int(np.argmin(np.isfinite(values).all(1)))} are not finite")
    known = np.isin(truth, np.arange(values.shape[1]))
    if not known.all():
        raise Med3dError(f"a label is {truth[~known][0]}, expected 0 to {values.shape[1] - 1}")
    if len(truth) < LEAST_CASES or len(np.unique(truth)) < 2 or not np.ptp(values, axis=1).any():
        return 1.0
    rows = np.arange(len(truth)), truth.astype(int)
    wrong = int(np.count_nonzero(values.argmax(axis=1) != truth))

    def loss(log_temperature: float) -> float:
        return -float(np.mean(log_softmax(values / math.exp(log_temperature), axis=1)[rows]))

    low, high = (math.log(bound) for bound in TEMPERATURES)
    found = float(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x)
    if min(found - low, high - found) < 1e-3:
        logger.info("no temperature fits the validation cases best: probabilities are left as they are")
        return 1.0
    # Cases that are all right are the surer the better: that tells nothing of cases that will be wrong.
    return math.exp(found) if wrong >= LEAST_WRONG else max(1.0, math.exp(found))


def measure_reliability(probabilities: ArrayLike, labels: ArrayLike) -> Reliability:
    """How often probabilities are right, in 15 bins of equal width, and their expected calibration error.

    For two classes the probability is that of class 1, and right if the case is of class 1; for more it is the highest
    one, and right if its class is the true one. (Guo et al., On Calibration of Modern Neural Networks,
    arXiv:1706.04599, equations 2 and 3, take the highest one for two classes too.)

    Args:
        probabilities: ``(case, class)``.
        labels: ``(case,)``.
    """
    values, truth = np.asarray(probabilities, float), np.asarray(labels)
    two = values.shape[1] == 2
    confidence = values[:, 1] if two else values.max(1)
    right = truth == (1 if two else values.argmax(1))
    bins = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence)  # upper ends belong to a bin, as in the paper
    counts = np.bincount(bins, minlength=BINS)
    there = counts > 0
    counts = counts[there]
    means, shares = (
        np.bincount(bins, each, minlength=BINS)[there] / counts for each in (confidence, right.astype(float))
    )
    error = float(np.sum(counts * np.abs(means - shares)) / len(truth))
    return Reliability(tuple(means.tolist()), tuple(shares.tolist()), tuple(counts.tolist()), error)


class Calibration:
    """Fits the temperature to the cases of each validation; it is saved with the weights of the best one.

    Args:
        scores: handler with the validation's ``logits`` and ``labels``, as
            :class:`~med3d_nets.classification.reports.ScoreReport`.
        task: of a regression there are no probabilities, and the temperature stays 1.

    Attributes:
        found: the setting, for :class:`~med3d_nets.handlers.BestModelSaver`.
    """

    def __init__(self, scores: Any, task: str = "classification") -> None:
        self.scores = scores
        self.task = task
        self.found = {"temperature": 1.0}

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator, after ``scores``."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Fit."""
        if self.task == "classification":
            self.found = {"temperature": fit_temperature(self.scores.logits, self.scores.labels)}
