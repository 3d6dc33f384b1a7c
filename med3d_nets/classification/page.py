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

__all__ = ["MOST_WRONG", "CasePrediction", "Slices", "find_doubts", "most_wrong", "render_classification"]

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
        logits: of the classes; of a regression, the predicted number alone.
        probabilities: of the classes; empty for a regression.
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


def most_wrong(cases: Sequence[CasePrediction], count: int = MOST_WRONG) -> list[CasePrediction]:
    """The cases with the highest loss, that first, and of equals the earlier one; so many at most."""
    return sorted(cases, key=lambda case: -case.loss)[:count]


def render_classification(
    cases: Sequence[CasePrediction],
    scores: ClassScores | NumberScores,
    class_names: Sequence[str],
    settings: Settings | Mapping[str, Any],
    pictures: Mapping[str, Slices] | None = None,
    chosen: Sequence[str] = (),
    caveats: Sequence[str] = (),
) -> str:
    """The page's HTML.

    Args:
        cases: those that were scored; any without a label are left out.
        scores: of the cases.
        class_names: names of the classes; of a regression, that of the number alone.
        settings: of the network.
        pictures: of cases, by file; those of the cases that are listed are shown.
        chosen: files of cases to list beside those that are the most wrong.
        caveats: sentences on the cases that a reader of the scores must know.
    """
    known = [case for case in cases if case.label is not None]
    counts = f"{scores.n} case{'s' * (scores.n > 1)}"
    if scores.patients < scores.n:
        counts += f" of {scores.patients} patient{'s' * (scores.patients > 1)}"
    if isinstance(scores, ClassScores):
        title, boxes, parts = "Classification", _class_cards(scores), class_sections(scores)
        ranked = "by the probability of the true class, lowest first; where few are wrong, some of these are right"
    else:
        title, boxes = "Regression", _number_cards(scores, class_names[0])
        truth, predicted = np.array([(case.label, case.logits[0]) for case in known], float).T
        parts = number_sections(scores, predicted, truth, class_names[0])
        ranked = "by the distance between prediction and truth"
    by_file = {case.file: case for case in known}
    shown = dict(zip(by_file, short_names(list(by_file)), strict=True)), class_names, pictures or {}
    return page(
        f"{title}: {settings_title(settings)}",
        f"{counts}, {now()}",
        boxes,
        note(*caveats, *find_doubts(scores)),
        *parts,
        _case_section("Chosen cases", "", [by_file[file] for file in chosen], *shown),
        _case_section("The cases it got most wrong", f"Ranked {ranked}.", most_wrong(known), *shown),
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


def find_doubts(scores: ClassScores | NumberScores) -> list[str]:
    """What a reader of the scores must know: sentences for the page, the log and ``metrics.json``."""
    doubts = []
    if isinstance(scores, ClassScores):
        counts = dict(zip(scores.class_names, scores.confusion.sum(1).tolist(), strict=True))
        missing = [name for name, count in counts.items() if not count]
        few = [f"{name} ({count})" for name, count in counts.items() if 0 < count < FEW_CASES]
        if missing:
            doubts.append(f"No case of {', '.join(missing)}: there is no AUC, and other scores leave the class out.")
        if few:
            doubts.append(f"Few cases of {', '.join(few)}: what is said of them is uncertain.")
    if scores.patients < FEW_CASES:
        kind = "patients" if scores.patients < scores.n else "cases"
        doubts.append(f"With fewer than about {FEW_CASES} {kind} confidence intervals are too narrow.")
    return doubts


def _case_section(
    title: str,
    words: str,
    cases: Sequence[CasePrediction],
    names: Mapping[str, str],
    class_names: Sequence[str],
    pictures: Mapping[str, Slices],
) -> str:
    """A table of cases, and the pictures of those that have one."""
    if not cases:
        return ""
    header = ["no.", "case", "patient", "true class", "its probability", "highest probabilities"]
    if not cases[0].probabilities:
        header[3:] = [f"true {class_names[0]}", "predicted", "difference"]
    rows = [[str(n), names[case.file], case.patient, *_truth(case, class_names)] for n, case in enumerate(cases, 1)]
    shown = [Picture(*pictures[case.file], title=str(n)) for n, case in enumerate(cases, 1) if case.file in pictures]
    return section(
        title,
        table(header, rows, text_columns=len(header)),
        note(words),
        _figure(shown, "class" if cases[0].probabilities else "number") if shown else "",
    )


def _figure(shown: Sequence[Picture], explained: str) -> str:
    text = f"Slices of {_numbered([picture.title for picture in shown])} of the table"
    caption = "Numbers are those of the table."
    maps = {picture.title: picture.saliency for picture in shown if picture.saliency is not None}
    if not maps:
        caption += " Axial slices through the middle, as the network saw them."
        return figure(draw_pictures(shown), f"{text}.", caption, kind="picture")
    caption += (
        " Left: the axial slice with the most saliency, as the network saw it. Right: Grad-CAM (Selvaraju et al., "
        f"arXiv:1610.02391) of the predicted {explained} over it, of an ensemble the mean of its networks' maps. "
        "Colours show where, by this method, the prediction comes from, not whether it is right."
    )
    empty = [title for title, found in maps.items() if not found.any()]
    if empty:
        caption += f" Nothing that raises the {explained} was found in {_numbered(empty)}: middle slices, no colours."
    return figure(draw_pictures(shown), f"{text}, with saliency maps.", caption, kind="picture")


def _numbered(numbers: Sequence[str]) -> str:
    return f"case{'s' * (len(numbers) > 1)} {', '.join(numbers)}"


def _truth(case: CasePrediction, class_names: Sequence[str]) -> list[str]:
    assert case.label is not None
    if not case.probabilities:
        predicted = case.logits[0]
        return [number(case.label), number(predicted), number(predicted - case.label)]
    order = np.argsort(-np.array(case.probabilities), kind="stable")[:LIKELIEST]
    highest = ", ".join(f"{class_names[place]} {number(case.probabilities[place])}" for place in order)
    label = int(case.label)
    return [class_names[label], number(case.probabilities[label]), highest]
