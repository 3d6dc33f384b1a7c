"""``models/model.json`` of a network that classifies volumes, or predicts a number of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from med3d_nets.errors import Med3dError
from med3d_nets.settings import Settings

__all__ = ["TASKS", "ClassifierSettings", "check_task"]

TASKS = ("classification", "regression")


@dataclass(frozen=True)
class ClassifierSettings(Settings):
    """Settings of a trained classifier. Beside those of every network:

    Attributes:
        task: ``"classification"``, or ``"regression"``: ``class_names`` is then the number's name alone.
        dropout: see :class:`~med3d_nets.networks.ClassificationNet`.
        keep_size: whether volumes are brought to one spacing and padded or cropped to ``input_size``, so that a larger
            structure fills more of it. Otherwise each is resized to it, and nothing tells its size.
        margin_mm: what is kept around a region of interest, mm.
        regions: whether it was trained on regions of interest, and not on whole volumes; None: not known.
        target: of regression: ``mean`` and ``std`` of the training cases' numbers, which the network's are multiples
            of.
        temperature: what logits are divided by, so that probabilities fit the validation cases; found by the training.
    """

    task: str = "classification"
    dropout: float = 0.0
    keep_size: bool = True
    margin_mm: float = 0.0
    regions: bool | None = None
    target: Mapping[str, float] | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_task(self.task, self.class_names)
        if not _is_number(self.temperature) or self.temperature <= 0:
            raise Med3dError(f"temperature is {self.temperature!r}, expected a number above 0")
        if not _is_number(self.margin_mm) or self.margin_mm < 0:
            raise Med3dError(f"margin_mm is {self.margin_mm!r}, expected a number of mm, 0 or more")
        expected = {"mean", "std"} if self.task == "regression" else set()
        found = self.target or {}
        if set(found) != expected or not all(map(_is_number, found.values())) or found.get("std", 1) <= 0:
            wanted = "a mean and an std above 0" if expected else "None"
            raise Med3dError(f"target is {self.target!r}, expected {wanted} for task {self.task!r}")

    @property
    def empty_value(self) -> float:
        """What a normalised volume is padded with: the lowest intensity, or 0 where each is normalised by its own."""
        known = self.intensity
        return (known["lower"] - known["mean"]) / known["std"] if known else 0.0

    @property
    def n_outputs(self) -> int:
        """What the network answers with: a logit for each class, or one number."""
        return len(self.class_names)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_task(task: str, class_names: Sequence[str]) -> None:
    """Check a task and the names of its classes.

    Raises:
        Med3dError: if the task is unknown, or has a number of names that it cannot have.
    """
    if task not in TASKS:
        raise Med3dError(f"task is {task!r}, expected {' or '.join(TASKS)}")
    if task == "regression" and len(class_names) != 1:
        raise Med3dError(f"class_names is {list(class_names)!r}, expected the name of one number for a regression")
    if task == "classification" and len(class_names) < 2:
        raise Med3dError(f"class_names is {list(class_names)!r}, expected two classes or more")
