"""Cases that are far from the others in a number: by the median and the median absolute deviation (MAD).

The MAD times 1.4826 is the standard deviation of a normal distribution and does not mind the outliers themselves
(Leys et al., Journal of Experimental Social Psychology 49, 2013).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["DEVIATIONS", "FACTOR", "MIN_CASES", "SHARE", "Outlier", "find_outliers", "rule"]

DEVIATIONS = 5.0
"""Robust standard deviations that an outlier is from the median, at least."""
FACTOR = 1.5
"""How many times the median, or what part of it, lengths and volumes of an outlier are, at least."""
SHARE = 0.25
"""How far intensities of an outlier are from the median, at least, in parts of the cases' usual range."""
MIN_CASES = 10
"""Cases that are needed to say what is usual."""

_TO_DEVIATION = 1.4826


@dataclass(frozen=True)
class Outlier:
    """A case that is far from the others.

    Attributes:
        place: of the case.
        value: its number.
        median: of all cases.
        low, high: ends of what is usual.
        distance: from the median, in parts of the largest that is usual.
    """

    place: int
    value: float
    median: float
    low: float
    high: float
    distance: float


def find_outliers(values: ArrayLike, margin: float | None = None) -> list[Outlier]:
    """Cases further than :data:`DEVIATIONS` robust standard deviations, and than a margin, from the median.

    Args:
        values: of each case; NaN where there is none.
        margin: the least distance that counts; None: values are compared by their logarithms, with :data:`FACTOR`, and
            those that are not positive are left out.
    """
    given = np.asarray(values, np.float64)
    known = np.isfinite(given) & ((given > 0) if margin is None else True)
    places = np.flatnonzero(known)
    if len(places) < MIN_CASES:
        return []
    numbers = np.log(given[places]) if margin is None else given[places]
    median = float(np.median(numbers))
    spread = DEVIATIONS * _TO_DEVIATION * float(np.median(np.abs(numbers - median)))
    limit = max(spread, np.log(FACTOR) if margin is None else margin)
    ends = np.array([median, median - limit, median + limit])
    middle, low, high = (float(end) for end in (np.exp(ends) if margin is None else ends))
    distances = np.abs(numbers - median) / limit
    return [
        Outlier(int(place), float(given[place]), middle, low, high, float(distance))
        for place, distance in zip(places, distances, strict=True)
        if distance > 1
    ]


def rule() -> str:
    """The rule in words."""
    return (
        f"An outlier is further than {DEVIATIONS:g} robust standard deviations (1.4826 MAD) from the median of at "
        f"least {MIN_CASES} cases; lengths and volumes are compared by their logarithms, and are also at "
        f"least {FACTOR:g} times as large or small as the median; intensities are at least {SHARE:.0%} of the cases' "
        "usual range from it."
    )
