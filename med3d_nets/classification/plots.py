"""Plots and pictures of a classification's page, as data URIs, in the look of :mod:`med3d_nets.report_plots`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from med3d_nets.classification.calibration import Reliability
from med3d_nets.classification.scores import OneClass
from med3d_nets.report_html import number
from med3d_nets.report_plots import (
    COLOURS,
    DASHES,
    SOFT,
    draw_differences,
    draw_text,
    drawing,
    make_figure,
    plain_text,
    to_png,
    to_svg,
)
from med3d_nets.statistics import Agreement

__all__ = [
    "MOST_CURVES",
    "Picture",
    "draw_confusion",
    "draw_numbers",
    "draw_pictures",
    "draw_reliability",
    "draw_roc",
]

Array = NDArray[np.float64]

MOST_CURVES = len(COLOURS)
"""Classes that are told apart in one plot."""

COLUMNS = 4  # of pictures
PANEL = 2.4  # inches
OPAQUE = 0.65  # of the highest saliency
NUMBERED = 20  # classes up to which a confusion matrix has numbers


@dataclass(frozen=True)
class Picture:
    """A slice of a case.

    Attributes:
        image: ``(row, column)``.
        saliency: of the same part of the slice, ``(row, column)``, in any resolution; or None.
        aspect: height of a row divided by the width of a column.
        title: text in its corner.
    """

    image: NDArray[Any]
    saliency: NDArray[Any] | None
    aspect: float
    title: str


def draw_roc(classes: Sequence[OneClass]) -> str:
    """ROC and precision-recall curves.

    Args:
        classes: one to :data:`MOST_CURVES` that have curves.
    """
    with drawing():
        figure = make_figure(9.5, 4.6)
        left, right = figure.subplots(1, 2)
        left.plot([0, 1], [0, 1], color=SOFT, linewidth=1.2)
        for place, each in enumerate(classes):
            look = {"color": COLOURS[place], "linestyle": DASHES[place % len(DASHES)], "linewidth": 1.5}
            name = plain_text(each.name)
            if each.roc:
                left.plot(each.roc.x, each.roc.y, label=f"{name}: AUC {number(each.auc.value)}", **look)
            if each.precision_recall:
                points, label = each.precision_recall, f"{name}: AP {number(each.average_precision)}"
                right.plot(points.x, points.y, drawstyle="steps-post", label=label, **look)
        left.set(title="ROC", xlabel="1 - specificity", ylabel="sensitivity")
        right.set(title="Precision and recall", xlabel="recall (sensitivity)", ylabel="precision (PPV)")
        for axes in (left, right):
            _unit_square(axes)
            axes.legend(loc="best", fontsize=8)
        return to_svg(figure)


def draw_reliability(found: Reliability) -> str:
    """How often probabilities are right against how high they are, and how many cases each bin has."""
    with drawing():
        figure = make_figure(9.5, 4.8)
        left, right = figure.subplots(1, 2)
        left.plot([0, 1], [0, 1], color=SOFT, linewidth=1.2)
        look = {"color": COLOURS[0], "linewidth": 1.3, "marker": "o", "markersize": 4}
        left.plot(found.confidence, found.frequency, **look)
        right.plot(found.confidence, found.count, **look)
        left.set(
            title=f"Reliability (ECE {number(found.error)})",
            xlabel="mean probability in the bin",
            ylabel="share that is right",
        )
        right.set(title="Cases in the bin", xlabel="mean probability in the bin", xlim=(-0.02, 1.02), ylim=(0, None))
        _unit_square(left)
        right.grid()
        return to_svg(figure)


def draw_confusion(confusion: NDArray[np.int64], class_names: Sequence[str]) -> str:
    """A confusion matrix: cases, coloured by their share of the true class.

    Args:
        confusion: ``(true, predicted)``.
        class_names: of both.
    """
    from matplotlib.patches import Rectangle

    totals = confusion.sum(1, keepdims=True)
    shares = confusion / np.maximum(totals, 1)
    count = len(class_names)
    names = [plain_text(name) for name in class_names]
    with drawing():
        figure = make_figure(9.5, min(1.2 + 0.8 * count, 9.0))
        axes = figure.subplots()
        for (row, column), share in np.ndenumerate(shares):
            if share:
                corner = (column - 0.5, row - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, color=COLOURS[0], alpha=0.7 * share, linewidth=0))
            if count <= NUMBERED:
                text = f"{confusion[row, column]}" + (f"\n{100 * share:.0f} %" if count <= NUMBERED // 2 else "")
                axes.text(column, row, text, ha="center", va="center", fontsize=9 if count <= NUMBERED // 2 else 7)
        axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), aspect="equal")
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.set_xticks(range(count), names, **({"rotation": 90} if count > 3 else {}))
        axes.set_yticks(range(count), names)
        axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
        axes.grid(which="minor")
        axes.tick_params(which="both", length=0)
        return to_svg(figure)


def draw_numbers(predictions: Array, targets: Array, agreement: Agreement, name: str) -> str:
    """Predicted against true numbers, and a Bland-Altman plot.

    Args:
        predictions, targets: ``(case,)``.
        agreement: bias and limits.
        name: of the number.
    """
    with drawing():
        figure = make_figure(9.5, 4.4)
        left, right = figure.subplots(1, 2)
        ends = [min(predictions.min(), targets.min()), max(predictions.max(), targets.max())]
        left.plot(ends, ends, color=SOFT, linewidth=1.2)
        left.scatter(targets, predictions, s=18, color=COLOURS[0], alpha=0.75, linewidths=0)
        left.set(title=plain_text(name), xlabel="true", ylabel="predicted", aspect="equal")
        left.grid()
        left.set_axisbelow(True)
        draw_differences(right, predictions, targets, agreement)
        right.set(title=f"Bland-Altman (n = {agreement.n})", xlabel="mean of prediction and truth")
        right.set_ylabel("prediction minus truth")
        return to_svg(figure)


def draw_pictures(pictures: Sequence[Picture]) -> str:
    """Slices in grey, in rows; beside each the same again with its saliency over it, where it has one.

    Grey levels are percentiles of each slice. Saliency is a share of the slice's highest; negative values are none.

    Args:
        pictures: one or more.
    """
    salient = any(picture.saliency is not None for picture in pictures)
    panels: list[Picture] = []
    for picture in pictures:
        panels.append(replace(picture, saliency=None))
        if picture.saliency is not None:
            panels.append(replace(picture, title=""))
    rows = math.ceil(len(panels) / COLUMNS)
    bar = 0.55 if salient else 0.0
    width, height = PANEL * COLUMNS, PANEL * rows + bar
    with drawing():
        figure = make_figure(width, height, layout=None, facecolor="black")
        for place, panel in enumerate(panels):
            row, column = divmod(place, COLUMNS)
            bottom = (bar + PANEL * (rows - 1 - row)) / height
            box = (column / COLUMNS + 0.003, bottom + 0.003, 1 / COLUMNS - 0.006, PANEL / height - 0.006)
            _picture(figure.add_axes(box, facecolor="black"), panel)
        if salient:
            _colour_bar(figure, (0.3, 0.42 / height, 0.4, 0.1 / height))
        return to_png(figure)


def _unit_square(axes: Any) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.grid()


def _picture(axes: Any, picture: Picture) -> None:
    image = np.asarray(picture.image, float)
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    extent = (0, image.shape[1], image.shape[0] * picture.aspect, 0)
    look = {"extent": extent, "aspect": "equal", "interpolation": "bilinear"}
    axes.imshow(image, cmap="gray", vmin=low, vmax=high if high > low else low + 1, **look)
    if picture.saliency is not None:
        shown = np.nan_to_num(np.maximum(picture.saliency, 0), posinf=0)
        axes.imshow(shown / (shown.max() or 1), cmap=_saliency_colours(), vmin=0, vmax=1, **look)
    axes.set_axis_off()
    draw_text(axes, 0.03, 0.97, plain_text(picture.title), "left", "top")


def _saliency_colours() -> Any:
    """Transparent where there is none."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    table = colormaps["inferno"](np.linspace(0.25, 1, 256))
    table[:, 3] = np.linspace(0, OPAQUE, 256)
    return ListedColormap(table)


def _colour_bar(figure: Any, box: tuple[float, float, float, float]) -> None:
    from matplotlib.cm import ScalarMappable

    axes = figure.add_axes(box, facecolor="black")
    bar = figure.colorbar(ScalarMappable(cmap=_saliency_colours()), cax=axes, orientation="horizontal")
    bar.set_label("saliency, share of the slice's highest", color="white", fontsize=8)
    bar.ax.tick_params(colors="white", labelsize=8)
    bar.outline.set_edgecolor("white")
