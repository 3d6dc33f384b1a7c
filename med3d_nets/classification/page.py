"""The page of an evaluated classification, or of predicted numbers, from what was collected of its cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from med3d_nets.classification.plots import Picture, draw_pictures
from med3d_nets.classification.resampling import Estimate
from med3d_nets.classification.score_sections import class_sections, number_sections
from med3d_nets.classification.scores import ClassScores, NumberScores
from med3d_nets.evaluation_page import FEW_CASES, short_names
from med3d_nets.report_html import (
    cards,
    figure,
    interval,
    note,
    now,
    number,
    page,
    section,
    settings_section,
    settings_title,
    table,
)
from med3d_nets.settings import Settings

__all__ = ["MOST_WRONG", "CasePrediction", "Slices", "render_classification"]

Slices = tuple[NDArray[Any], NDArray[Any] | None, float]
"""A slice of an image ``(row, column)``; the saliency of the same part in any resolution, or None; height of a row
divided by the width of a column."""

MOST_WRONG = 10
"""Cases that are shown at most."""

LIKELIEST = 3
"""Classes whose probabilities are shown of a case, besides the true one."""


@dataclass(frozen=True)
class CasePrediction:
    """What is known of a case.

    Attributes:
        file: its image.
        label: index of the true class, or the true number; None if it is not known.
        logits: of the classes, before temperature scaling; of a regression, the predicted number alone.
        probabilities: of the classes, after temperature scaling; empty for a regression.
        patient: empty for one of its own.
    """

    file: str
    label: int | float | None
    logits: tuple[float, ...]
    probabilities: tuple[float, ...] = ()
    patient: str = ""

    @property
    def loss(self) -> float:
        """How wrong it is: negative logarithm of the true class's probability, or distance to the true number."""
        if self.label is None:
            return math.nan
        if not self.probabilities:
            return abs(self.logits[0] - self.label)
        probability = self.probabilities[int(self.label)]
        return -math.log(probability) if probability > 0 else math.inf


def render_classification(
    cases: Sequence[CasePrediction],
    scores: ClassScores | NumberScores,
    class_names: Sequence[str],
    settings: Settings | Mapping[str, Any],
    pictures: Mapping[str, Slices] | None = None,
) -> str:
    """The page's HTML.

    Args:
        cases: those that were scored; any without a label are left out.
        scores: of the cases.
        class_names: names of the classes; of a regression, that of the number alone.
        settings: of the network.
        pictures: of cases, by file; those of the cases that are the most wrong are shown.
    """
    known = [case for case in cases if case.label is not None]
    counts = f"{scores.n} case{'s' * (scores.n > 1)}"
    if scores.patients < scores.n:
        counts += f" of {scores.patients} patient{'s' * (scores.patients > 1)}"
    labels, outputs = np.array([case.label for case in known]), np.array([case.logits for case in known])
    if isinstance(scores, ClassScores):
        title, boxes, parts = "Classification", _class_cards(scores), class_sections(scores, outputs, labels)
    else:
        title, boxes = "Regression", _number_cards(scores, class_names[0])
        parts = number_sections(scores, outputs[:, 0], labels, class_names[0])
    return page(
        f"{title}: {settings_title(settings)}",
        f"{counts}, {now()}",
        boxes,
        note(*_doubts(scores)),
        *parts,
        _most_wrong(known, class_names, pictures or {}),
        settings_section(settings),
    )


def _class_cards(scores: ClassScores) -> str:
    counts = scores.confusion.sum(1)
    usual = int(counts.argmax())
    alone = f"{scores.class_names[usual]} for every case would have {number(counts[usual] / scores.n)}"
    area = "AUC" if len(scores.class_names) == 2 else "AUC, mean of the classes"
    return cards(
        [
            ("Accuracy", number(scores.accuracy.value), [*_ends(scores.accuracy), alone]),
            ("Balanced accuracy", number(scores.balanced_accuracy.value), _ends(scores.balanced_accuracy)),
            (area, number(scores.auc.value), _ends(scores.auc)),
        ]
    )


def _number_cards(scores: NumberScores, name: str) -> str:
    shown = (
        (f"Mean absolute error, {name}", scores.mae),
        ("Root mean squared error", scores.rmse),
        ("R²", scores.r2),
        ("Pearson r", scores.pearson),
    )
    return cards([(title, number(each.value), _ends(each)) for title, each in shown])


def _ends(found: Estimate) -> list[str]:
    return [] if math.isnan(found.interval[0]) else [f"95 % CI {interval(found.interval)}"]


def _doubts(scores: ClassScores | NumberScores) -> list[str]:
    """What a reader of the figures at the top must know."""
    doubts = []
    if isinstance(scores, ClassScores):
        counts = dict(zip(scores.class_names, scores.confusion.sum(1).tolist(), strict=True))
        missing = [name for name, count in counts.items() if not count]
        few = [f"{name} ({count})" for name, count in counts.items() if 0 < count < FEW_CASES]
        if missing:
            doubts.append(f"No case of {', '.join(missing)}: there is no AUC, and other scores leave the class out.")
        if few:
            doubts.append(f"Few cases of {', '.join(few)}: what the page says of them is uncertain.")
    if scores.patients < FEW_CASES:
        kind = "patients" if scores.patients < scores.n else "cases"
        doubts.append(f"With fewer than about {FEW_CASES} {kind} confidence intervals are too narrow.")
    return doubts


def _most_wrong(cases: Sequence[CasePrediction], class_names: Sequence[str], pictures: Mapping[str, Slices]) -> str:
    names = dict(zip((case.file for case in cases), short_names([case.file for case in cases]), strict=True))
    worst = sorted(cases, key=lambda case: -case.loss)[:MOST_WRONG]
    rows = [
        [str(rank), names[case.file], case.patient, *_truth(case, class_names)] for rank, case in enumerate(worst, 1)
    ]
    if cases[0].probabilities:
        header = ["no.", "case", "patient", "true class", "its probability", "highest probabilities"]
        words = (
            "Ranked by the probability of the true class, lowest first; where few are wrong, some of these are right."
        )
    else:
        header = ["no.", "case", "patient", f"true {class_names[0]}", "predicted", "difference"]
        words = "Ranked by the distance between prediction and truth."
    shown = [
        Picture(*pictures[case.file], title=str(rank)) for rank, case in enumerate(worst, 1) if case.file in pictures
    ]
    text = f"Slices of cases {', '.join(picture.title for picture in shown)} of the table."
    salient = any(picture.saliency is not None for picture in shown)
    caption = "Numbers are those of the table."
    if salient:
        caption += (
            " Colours are a saliency map: where, by its method, the prediction comes from, not whether it is right."
        )
    return section(
        "The cases it got most wrong",
        table(header, rows, text_columns=len(header)),
        note(words),
        figure(draw_pictures(shown), text, caption, kind="picture") if shown else "",
    )


def _truth(case: CasePrediction, class_names: Sequence[str]) -> list[str]:
    assert case.label is not None
    if not case.probabilities:
        predicted = case.logits[0]
        return [number(case.label), number(predicted), number(predicted - case.label)]
    order = np.argsort(-np.array(case.probabilities), kind="stable")[:LIKELIEST]
    highest = ", ".join(f"{class_names[place]} {number(case.probabilities[place])}" for place in order)
    label = int(case.label)
    return [class_names[label], number(case.probabilities[label]), highest]
