"""Which cases may have left and right swapped: their affine, or their content, differs from that of most.

A flipped affine cannot be told from one file. It can be told where most cases agree which way things lie. The right's
difference from the left is averaged over the other cases; a case whose own difference points the other way lies
mirrored. Where cases do not agree, as where the organ is on either side, content says nothing and the handedness of the
affine alone is compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["AGREEMENT", "MIN_CASES", "agreement", "mirrored"]

MIN_CASES = 6
"""Cases that must agree for content to tell."""
AGREEMENT = 0.5
"""Correlation with the others that half of the cases must have, at least."""
OPPOSITE = -0.4
"""Correlation with the others of a case that lies mirrored, at most."""


def agreement(sides: Sequence[NDArray[np.float16] | None]) -> NDArray[np.float64]:
    """Correlation of each case's difference between right and left with the mean one of the others, from -1 to 1.

    NaN for cases without a difference, and for all where too few cases agree.

    Args:
        sides: of each case, as in :class:`~med3d_nets.checking.measures.ImageFacts`; None where there is none.
    """
    found = np.full(len(sides), np.nan)
    places = [place for place, half in enumerate(sides) if half is not None and np.any(half)]
    if len(places) < MIN_CASES:
        return found
    halves = np.array([np.ravel(half) for place in places if (half := sides[place]) is not None], np.float64)
    halves /= np.linalg.norm(halves, axis=1, keepdims=True)  # no case weighs more than another
    others = halves.sum(axis=0) - halves
    lengths = np.linalg.norm(others, axis=1)
    values = (halves * others).sum(axis=1) / np.where(lengths > 0, lengths, 1)
    if np.median(values) >= AGREEMENT:
        found[places] = values
    return found


def mirrored(
    right_handed: Sequence[bool],
    image_sides: Sequence[NDArray[np.float16] | None],
    label_sides: Sequence[NDArray[np.float16] | None],
) -> dict[int, str]:
    """Cases that may have left and right swapped, with the reason.

    Args:
        right_handed: whether the determinant of each case's affine is positive.
        image_sides, label_sides: as for :func:`agreement`.
    """
    found: dict[int, str] = {}
    content = {"image": agreement(image_sides), "label": agreement(label_sides)}
    most = sum(right_handed) * 2 >= len(right_handed)
    same = sum(one == most for one in right_handed)
    for place, handed in enumerate(right_handed):
        told = {name: float(values[place]) for name, values in content.items() if np.isfinite(values[place])}
        against = {name: value for name, value in told.items() if value <= OPPOSITE}
        agrees = any(value >= -OPPOSITE for value in told.values())
        reasons = []
        if against and not agrees:
            named = " and ".join(f"{name} (correlation {value:.2f})" for name, value in against.items())
            lie = "lie" if len(against) > 1 else "lies"
            reasons.append(f"{named} {lie} mirrored against the other cases")
        if handed != most and same * 2 > len(right_handed) and (reasons or not agrees):
            sign = "negative" if most else "positive"
            reasons.append(f"its affine has a {sign} determinant, unlike that of {same} of {len(right_handed)} cases")
        if reasons:
            found[place] = "; ".join(reasons)
    return found
