"""Sections of a classification's page that show scores: tables, curves and what is to be said of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from med3d_nets.classification.calibration import BINS
from med3d_nets.classification.plots import (
    MOST_CURVES,
    draw_confusion,
    draw_numbers,
    draw_reliability,
    draw_roc,
)
from med3d_nets.classification.resampling import Estimate
from med3d_nets.classification.scores import ClassScores, NumberScores
from med3d_nets.report_html import NOTHING, details, figure, interval, note, number, section, table

__all__ = ["class_sections", "number_sections"]

Array = NDArray[np.float64]

LOWER = "Of log loss, Brier score and calibration error, lower is better; of the others, higher."


def class_sections(scores: ClassScores) -> list[str]:
    """Scores, sensitivity and specificity, curves, calibration and the confusion matrix."""
    estimates = [scores.accuracy, scores.balanced_accuracy, scores.auc]
    for point in scores.operating_points:
        estimates += [point.sensitivity, point.specificity, point.ppv, point.npv]
    for each in scores.classes:
        estimates += [each.sensitivity, each.specificity, each.auc]
    return [
        section("Scores", _class_table(scores), note(LOWER), _method(scores, estimates)),
        _operating_points(scores) if scores.operating_points else _each_class(scores),
        _curves(scores),
        _calibration(scores),
        _confusion(scores),
    ]


def number_sections(scores: NumberScores, predictions: Array, targets: Array, name: str) -> list[str]:
    """Scores, scatter plot and Bland-Altman plot.

    Args:
        scores: of the cases.
        predictions, targets: ``(case,)``.
        name: of the number.
    """
    found = scores.agreement
    estimates = {"MAE": scores.mae, "RMSE": scores.rmse, "R²": scores.r2, "Pearson r": scores.pearson}
    rows = [[title, *_cells(each)] for title, each in estimates.items()]
    limits = (("bias", found.bias, found.bias_margin), ("lower limit", found.lower, found.limit_margin))
    for title, value, margin in (*limits, ("upper limit", found.upper, found.limit_margin)):
        rows.append([title, number(value), interval((value - margin, value + margin))])
    plot = draw_numbers(predictions, targets, found, name)
    return [
        section("Scores", table(["score", "value", "95 % CI"], rows), _method(scores, list(estimates.values()))),
        section(
            "Predicted and true",
            figure(plot, f"Predicted against true {name}, and a Bland-Altman plot.", "Each point is a case."),
            note(
                "Bias is the mean of prediction minus truth; limits of agreement are bias ± 1.96 SD of the "
                "differences, their intervals with Student's t over the cases "
                "(Bland and Altman, Lancet 1986;327:307-310).",
                "R² is 0 for the mean of the true numbers as every prediction.",
            ),
        ),
    ]


def _class_table(scores: ClassScores) -> str:
    two = len(scores.class_names) == 2
    mean = "" if two else ", mean of the classes"
    rows = [
        ["accuracy", *_cells(scores.accuracy)],
        ["balanced accuracy", *_cells(scores.balanced_accuracy)],
        [f"AUC{mean}", *_cells(scores.auc)],
        [f"average precision{mean}", number(scores.average_precision), NOTHING],
        ["log loss", number(scores.log_loss), NOTHING],
        ["Brier score", number(scores.brier), NOTHING],
        ["expected calibration error", number(scores.reliability.error), NOTHING],
    ]
    return table(["score", "value", "95 % CI"], rows)


def _method(scores: ClassScores | NumberScores, estimates: Sequence[Estimate]) -> str:
    kind = "patients, each with all its cases" if scores.patients < scores.n else "cases"
    skipped = max(each.skipped for each in estimates)
    exact = any(each.interval[0] == each.interval[1] for each in estimates)
    if not scores.resamples:
        return ""
    return note(
        f"CI: 95 % confidence interval by percentile bootstrap over the {kind} "
        f"({scores.resamples} resamples, seed {scores.seed}).",
        f"Resamples in which a score is not defined, as where a class was not drawn, are left out: {skipped} at most."
        if skipped
        else "",
        "Where both ends are the same, no resample differed; the score is not certain for that. After n cases without "
        "an error, about 3/n of all such cases may still be wrong (Hanley and Lippman-Hand, JAMA 1983;249:1743-1745)."
        if exact
        else "",
    )


def _operating_points(scores: ClassScores) -> str:
    name = scores.class_names[1]
    header = [
        "threshold",
        *(part for kind in ("sensitivity", "specificity", "PPV", "NPV") for part in (kind, "95 % CI")),
    ]
    rows = []
    for point in scores.operating_points:
        estimates = (point.sensitivity, point.specificity, point.ppv, point.npv)
        rows.append([f"{point.threshold:g}", *(cell for each in estimates for cell in _cells(each))])
    share = number(scores.classes[0].n / scores.n)
    return section(
        "Sensitivity and specificity",
        table(header, rows),
        note(
            f"{name} is called from this probability on.",
            f"PPV and NPV, the shares of the calls that are right, hold where as large a share of all cases is {name} "
            f"as here: {share}.",
            "A threshold that was chosen on these cases looks better here than it is.",
        ),
    )


def _each_class(scores: ClassScores) -> str:
    header = [
        "class",
        "cases",
        "sensitivity",
        "95 % CI",
        "specificity",
        "95 % CI",
        "AUC",
        "95 % CI",
        "average precision",
    ]
    rows = []
    for each in scores.classes:
        estimates = (cell for found in (each.sensitivity, each.specificity, each.auc) for cell in _cells(found))
        rows.append([each.name, str(each.n), *estimates, number(each.average_precision)])
    return section(
        "Sensitivity and specificity",
        table(header, rows),
        note("Each class against all others; the class with the highest probability is predicted."),
    )


def _curves(scores: ClassScores) -> str:
    known = [each for each in scores.classes if each.roc]
    shown = sorted(known, key=lambda each: each.auc.value)[:MOST_CURVES]
    if not shown:
        return ""
    names = ", ".join(each.name for each in shown)
    shares = ", ".join(f"{each.name} {number(each.n / scores.n)}" for each in shown)
    fewer = (
        f"The {len(shown)} of {len(known)} classes with the lowest AUC are drawn." if len(shown) < len(known) else ""
    )
    return section(
        "ROC and precision-recall curves",
        figure(draw_roc(shown), f"ROC and precision-recall curves of {names}."),
        note(
            fewer, f"Without any skill, a ROC follows the diagonal, and precision is the share of the class: {shares}."
        ),
    )


def _calibration(scores: ClassScores) -> str:
    two = len(scores.class_names) == 2
    kind = f"the probability of {scores.class_names[1]}" if two else "the highest probability of each case"
    return section(
        "Calibration",
        figure(
            draw_reliability(scores.reliability),
            f"Reliability diagram. Expected calibration error (ECE): {number(scores.reliability.error)}.",
        ),
        note(
            f"Of {kind}, in {BINS} bins of equal width (Guo et al., arXiv:1706.04599). On the diagonal, probabilities "
            "are as often right as they say.",
            "Chance alone makes the error larger than 0, the more so the fewer cases there are.",
        ),
    )


def _confusion(scores: ClassScores) -> str:
    names = list(scores.class_names)
    wrong = scores.n - int(np.trace(scores.confusion))
    rows = [[name, *map(str, row)] for name, row in zip(names, scores.confusion.tolist(), strict=True)]
    return section(
        "Confusion matrix",
        figure(
            draw_confusion(scores.confusion, names),
            f"Confusion matrix: {wrong} of {scores.n} cases are wrong.",
            f"{wrong} of {scores.n} cases are wrong. Colours are shares of the true class.",
        ),
        details("Numbers", table(["true class", *(f"predicted {name}" for name in names)], rows)),
    )


def _cells(found: Estimate) -> list[str]:
    return [number(found.value), interval(found.interval)]
