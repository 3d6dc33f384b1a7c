"""The page of an evaluation, from what was collected of its cases."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from med3d_nets.list_files import short_names
from med3d_nets.report_html import (
    NOTHING,
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
    volume,
)
from med3d_nets.report_plots import PREDICTION, REFERENCE, draw_agreement, draw_cuts, draw_scores
from med3d_nets.report_slices import Cut, read_pictures
from med3d_nets.settings import Settings
from med3d_nets.statistics import (
    RESAMPLES,
    SEED,
    Agreement,
    Summary,
    bland_altman,
    case_means,
    group_by_patient,
    summarise,
)

__all__ = ["Case", "Pick", "render_evaluation"]

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

FEW_CASES = 20
MAX_CLASSES = 4
"""Classes drawn per case."""


@dataclass(frozen=True)
class Case:
    """What the page tells of a case.

    Attributes:
        file: its image.
        shape: ``(depth, height, width)`` of its label map.
        affine: of its label map, from voxels to RAS+ in mm, ``(4, 4)``.
        predicted, reference: volume of each foreground class, in mL.
        patient: whose it is; "" where that is not known, which takes the case for a patient of its own.
    """

    file: str
    shape: tuple[int, ...]
    affine: Array
    predicted: tuple[float, ...]
    reference: tuple[float, ...]
    patient: str = ""


@dataclass(frozen=True)
class Pick:
    """A case to draw.

    Attributes:
        name: what it is, such as ``"best"``.
        index: its place among the cases.
        cuts: slices through each foreground class, see :func:`~med3d_nets.report_slices.cut_class`.
    """

    name: str
    index: int
    cuts: tuple[tuple[Cut, ...], ...]


@dataclass(frozen=True)
class _Evaluation:
    cases: Sequence[Case]
    names: list[str]
    classes: Sequence[str]
    scores: Mapping[str, Array]
    predicted: Array
    reference: Array
    patients: NDArray[np.intp]

    @property
    def n_patients(self) -> int:
        """How many patients the cases are of, as far as they are known."""
        return int(self.patients.max()) + 1

    def present(self, index: int) -> NDArray[np.bool_]:
        """Cases with a class in prediction or reference."""
        return (self.predicted[:, index] > 0) | (self.reference[:, index] > 0)


def render_evaluation(
    cases: Sequence[Case],
    scores: Mapping[str, Array],
    classes: Sequence[str],
    settings: Settings | Mapping[str, Any],
    picks: Sequence[Pick] = (),
    missing: Sequence[str] = (),
    caveats: Sequence[str] = (),
) -> str:
    """The page's HTML.

    Args:
        cases: one or more.
        scores: by the metric's name, ``(case, foreground class)``; the first metric ranks the cases.
        classes: names of the foreground classes.
        settings: of the network.
        picks: cases to draw; their images are read.
        missing: names of metrics that were asked for and not computed.
        caveats: sentences on the cases that a reader of the scores must know.
    """
    columns = (len(cases), len(classes))
    predicted = np.array([case.predicted for case in cases], float).reshape(columns)
    reference = np.array([case.reference for case in cases], float).reshape(columns)
    names = short_names([case.file for case in cases])
    patients = group_by_patient(len(cases), [case.patient for case in cases])
    found = _Evaluation(cases, names, classes, scores, predicted, reference, patients)
    summaries = {
        metric: {name: summarise(values[:, place], patients) for place, name in enumerate(classes)}
        for metric, values in scores.items()
    }
    counts = f"{len(cases)} case{'s' * (len(cases) > 1)}"
    if found.n_patients < len(cases):
        counts += f" of {found.n_patients} patient{'s' * (found.n_patients > 1)}"
    lead = f"{counts}, {now()}"
    absent = f"Not computed by this evaluation: {', '.join(missing)}." if missing else ""
    return page(
        f"Evaluation: {settings_title(settings)}",
        lead,
        _cards(found, summaries),
        note(*caveats),
        note(absent),
        section("Scores", _score_plot(found), _score_table(found, summaries), *_score_notes(found, summaries)),
        section(f"{' and '.join(_listed(picks))} in pictures", _key(), *(_pictures(found, pick) for pick in picks))
        if picks
        else "",
        _volumes(found),
        section("Cases", _case_table(found, picks)),
        settings_section(settings),
    )


def _listed(picks: Sequence[Pick]) -> list[str]:
    names = [pick.name for pick in picks]
    names[0] = names[0].capitalize()
    return [", ".join(names[:-1]), names[-1]] if len(names) > 1 else names


def _cards(found: _Evaluation, summaries: Mapping[str, Mapping[str, Summary]]) -> str:
    (first, main), *others = summaries.items()
    boxes = []
    for name, summary in main.items():
        known = not math.isnan(summary.mean_interval[0])  # of one case, or patient, it is not
        lines = [f"mean {first}" + (f", 95 % CI {interval(summary.mean_interval)}" if known else "")]
        lines += [f"median {metric} {number(rest[name].median, _digits(metric))}" for metric, rest in others]
        boxes.append((name, number(summary.mean), lines))
    return cards(boxes)


def _score_plot(found: _Evaluation) -> str:
    panels = {
        metric: {name: values[:, place] for place, name in enumerate(found.classes)}
        for metric, values in found.scores.items()
    }
    text = f"Scores of each case: {', '.join(found.scores)}, by class."
    return figure(draw_scores(panels), text, "Each point is a case; boxes span the quartiles around the median.")


def _score_table(found: _Evaluation, summaries: Mapping[str, Mapping[str, Summary]]) -> str:
    header = ["metric", "class", "cases", "mean", "95 % CI", "median", "95 % CI", "min", "max", "infinite", "left out"]
    rows = []
    for metric, each in summaries.items():
        shown = dict(each)
        if len(each) > 1:
            shown["mean of the classes"] = summarise(case_means(found.scores[metric]), found.patients)
        digits = _digits(metric)
        for name, row in shown.items():
            middle = [number(row.mean, digits), interval(row.mean_interval, digits)]
            middle += [number(row.median, digits), interval(row.median_interval, digits)]
            ends = [number(row.lowest, digits), number(row.highest, digits), str(row.infinite), str(row.left_out)]
            rows.append([metric, name, str(row.n), *middle, *ends])
    return table(header, rows, text_columns=2)


def _score_notes(found: _Evaluation, summaries: Mapping[str, Mapping[str, Summary]]) -> list[str]:
    rows = [row for each in summaries.values() for row in each.values()]
    infinite = any(row.infinite for row in rows)
    left_out = any(row.left_out for row in rows)
    drawn = "patients" if found.n_patients < len(found.cases) else "cases"
    few = min(found.n_patients, min((row.n for row in rows if row.n), default=0)) < FEW_CASES
    detection = []
    for place, name in enumerate(found.classes):
        there, seen = found.reference[:, place] > 0, found.predicted[:, place] > 0
        groups = (there & seen, there & ~seen, ~there & seen, ~there & ~seen)
        detection.append([name, *(str(int(group.sum())) for group in groups)])
    words = (
        f"CI: 95 % confidence interval by percentile bootstrap over the {drawn} ({RESAMPLES} resamples, seed {SEED}).",
        f"With fewer than about {FEW_CASES} {drawn} such intervals are too narrow." if few else "",
        "Infinite (∞): only one of prediction and reference has the class; it counts." if infinite else "",
        "Left out: the metric is not defined, as where the reference lacks the class; see the next table."
        if left_out
        else "",
    )
    header = ["class", "in both", "missed: in the reference alone", "false: in the prediction alone", "in neither"]
    return [note(*words), section("Cases that have the class", table(header, detection), level=3)]


def _key() -> str:
    return (
        f'<p class="note"><span class="key" style="color: {REFERENCE}; margin-left: 0"></span>reference'
        f'<span class="key dashed" style="color: {PREDICTION}"></span>prediction. '
        "Slices through the middle of the class along the image's own axes; letters are the patient's "
        "right, left, anterior, posterior, superior and inferior.</p>"
    )


def _pictures(found: _Evaluation, pick: Pick) -> str:
    metric, scores = next(iter(found.scores.items()))
    case, row = found.cases[pick.index], scores[pick.index]
    drawn = [place for place, cuts in enumerate(pick.cuts) if cuts]
    ranks = np.where(np.isnan(row), -math.inf, row)
    chosen = sorted(sorted(drawn, key=lambda place: ranks[place])[:MAX_CLASSES])
    mean = number(float(case_means(row[None])[0]), _digits(metric))
    title = f"{pick.name.capitalize()}: {found.names[pick.index]}, mean {metric} {mean}"
    cuts = [cut for place in chosen for cut in pick.cuts[place]]
    pictures, problem = None, ""
    try:
        pictures = read_pictures(case.file, case.shape, case.affine, cuts)
    except Exception as error:  # an evaluation of hours is not lost for a picture, whatever the reader trips over
        logger.warning("%s: cannot be drawn (%s)", case.file, error)
        problem = f"The image could not be read for this page, so outlines alone are drawn ({type(error).__name__})."
    parts = [note(problem)]
    for number_, place in enumerate(chosen):
        planes = slice(3 * number_, 3 * number_ + 3)
        values = ", ".join(
            f"{name} {number(float(each[pick.index, place]), _digits(name))}" for name, each in found.scores.items()
        )
        sizes = f"reference {volume(case.reference[place])} mL, prediction {volume(case.predicted[place])} mL"
        caption = f"<b>{escape(found.classes[place])}</b>: {escape(values)}; {sizes}"
        source = draw_cuts(cuts[planes], pictures[planes] if pictures else None)
        text = f"{title}; {found.classes[place]}: {values}; {sizes}. Axial, coronal and sagittal slice."
        parts.append(figure(source, text, caption, kind="picture"))
    if len(chosen) < len(drawn):
        parts.append(note(f"The {len(chosen)} of {len(drawn)} classes with the lowest {metric} are shown."))
    return section(title, *parts, level=3)


def _volumes(found: _Evaluation) -> str:
    measured, reference, agreements = {}, {}, {}
    for place, name in enumerate(found.classes):
        there = found.present(place)
        if there.any():
            measured[name], reference[name] = found.predicted[there, place], found.reference[there, place]
            agreements[name] = bland_altman(measured[name], reference[name])
    if not agreements:
        return ""
    header = ["class", "cases", "left out", "mean\nreference", "mean\nprediction", "bias\n(95 % CI)", "SD"]
    header += ["lower limit\n(95 % CI)", "upper limit\n(95 % CI)"]
    rows = []
    for name, row in agreements.items():
        means = [volume(float(values[name].mean())) for values in (reference, measured)]
        counts = [str(row.n), str(len(found.cases) - row.n)]
        rows.append([name, *counts, *means, *_limits(row)])
    names = ", ".join(agreements)
    return section(
        "Volumes in mL",
        figure(
            draw_agreement(measured, reference, agreements),
            f"Bland-Altman plots of the volumes of {names}.",
            "Bland-Altman plot: each point is a case; lines are the bias and the 95 % limits of agreement.",
        ),
        table(header, rows),
        note(
            "Differences are prediction minus reference. Limits of agreement: bias ± 1.96 SD of the differences; "
            "intervals with Student's t (Bland and Altman, Lancet 1986;327:307-310).",
            "They suppose that the differences are about normal and do not grow with the volume.",
            "They take cases of one patient for independent." if found.n_patients < len(found.cases) else "",
            "Left out: cases with the class in neither.",
        ),
    )


def _limits(row: Agreement) -> list[str]:
    limits = (_around(limit, row.limit_margin) for limit in (row.lower, row.upper))
    return [_around(row.bias, row.bias_margin), volume(row.sd), *limits]


def _around(value: float, margin: float) -> str:
    text = volume(value, sign=True)
    if math.isnan(margin):
        return text
    return f"{text}\n({volume(value - margin, sign=True)} to {volume(value + margin, sign=True)})"


def _case_table(found: _Evaluation, picks: Sequence[Pick]) -> str:
    marks = {pick.index: f" ({pick.name})" for pick in picks}
    header = ["case", "class", *found.scores, "reference [mL]", "prediction [mL]", "difference [mL]", "[%]"]
    rows = []
    for index, name in enumerate(found.names):
        for place, class_name in enumerate(found.classes):
            values = [number(float(each[index, place]), _digits(metric)) for metric, each in found.scores.items()]
            true, seen = found.reference[index, place], found.predicted[index, place]
            share = number(100 * (seen - true) / true, 1) if true > 0 else NOTHING
            sizes = [volume(true), volume(seen), volume(seen - true, sign=True), share]
            rows.append([f"{name}{marks.get(index, '')}", class_name, *values, *sizes])
    return table(header, rows, text_columns=2)


def _digits(metric: str) -> int:
    """Decimals: scores from 0 to 1 have three, distances in mm two."""
    return 2 if "mm" in metric else 3
