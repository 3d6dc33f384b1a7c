"""What a user may give in place of a planner's choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from med3d_nets.errors import Med3dError

__all__ = ["STRIDE", "check_given"]

STRIDE = 8
"""The encoder's stride: sizes are multiples of it."""


def check_given(
    spacing: Sequence[float],
    patch_size: Sequence[int],
    batch_size: int,
    intensity: str | Sequence[float],
    memory_gb: float,
    flip_axes: str | Sequence[int] = "auto",
    in_channels: int = 1,
    size_name: str = "patch_size",
    window_size: Sequence[int] = (),
) -> None:
    """Check what a user gave instead of the planner's choice, before files are read.

    Args:
        spacing, patch_size, batch_size, intensity, memory_gb, flip_axes, in_channels: as for
            :func:`~med3d_nets.planning.plan_training`.
        size_name: the option that ``patch_size`` was given as.
        window_size: as for :func:`~med3d_nets.planning.plan_training`.

    Raises:
        Med3dError: naming every value that is none of those that :func:`~med3d_nets.planning.plan_training` takes.
    """
    problems = []
    if not _numbers(spacing, (0, 3)) or any(value <= 0 for value in spacing):
        problems.append(f"spacing is {spacing!r}, expected three lengths in mm (right, anterior, superior), or []")
    for name, size in ((size_name, patch_size), ("window_size", window_size)):
        if not _numbers(size, (0, 3), int) or any(value < STRIDE for value in size):
            problems.append(f"{name} is {size!r}, expected three whole numbers from {STRIDE}, or []")
    if not _numbers([batch_size], (1,), int) or batch_size < 0:
        problems.append(f"batch_size is {batch_size!r}, expected a whole number from 1, or 0 for the planner's choice")
    if not _numbers([memory_gb], (1,)) or memory_gb < 0:
        problems.append(f"memory_gb is {memory_gb!r}, expected a number of GB, or 0 to find out")
    if flip_axes != "auto" and (not _numbers(flip_axes, range(4), int) or not set(flip_axes) <= {0, 1, 2}):
        problems.append(f"flip_axes is {flip_axes!r}, expected some of 0, 1 and 2 in a list, or auto")
    window = not isinstance(intensity, str) and _numbers(intensity, (2,)) and intensity[0] < intensity[1]
    if not window and not (isinstance(intensity, str) and intensity in ("auto", "ct", "mr")):
        problems.append(f"intensity is {intensity!r}, expected auto, ct, mr or [lower, upper] in HU")
    elif in_channels > 1 and intensity not in ("auto", "mr"):
        problems.append(f"intensity is {intensity!r}, but images have {in_channels} channels; expected auto or mr")
    if problems:
        raise Med3dError("; ".join(problems))


def _numbers(values: Any, lengths: Sequence[int], kind: Any = (int, float)) -> bool:
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) not in lengths:
        return False
    return all(isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value) for value in values)
