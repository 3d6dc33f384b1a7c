"""Plots and pictures of a report, as data URIs.

Plots are SVG whose ink follows the reader's light or dark setting; pictures of slices are PNG on black. Colours are of
Okabe and Ito's palette, which colour-blind readers tell apart, and line styles differ too. Figures are made without
``pyplot``, so that no backend is chosen for the rest of the program.
"""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from med3d_nets.report_html import MINUS
from med3d_nets.report_slices import PLANES, Cut
from med3d_nets.statistics import Agreement

__all__ = [
    "PREDICTION",
    "REFERENCE",
    "Curves",
    "draw_agreement",
    "draw_curves",
    "draw_cuts",
    "draw_differences",
    "draw_scores",
    "draw_text",
    "drawing",
    "make_figure",
    "plain_text",
    "to_png",
    "to_svg",
]

REFERENCE, PREDICTION = "#56b4e9", "#e69f00"  # sky blue, orange
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8a8a8a")
DASHES = ("-", "--", "-.", ":")
INK, SOFT = "#010203", "#040506"  # replaced by what the reader's setting asks for
INKS = (
    "<style>svg { --ink: #1b1f23; --soft: #d0d7de; --blue: #0072b2 } "
    "@media (prefers-color-scheme: dark) { svg { --ink: #e6e9ec; --soft: #3a424a; --blue: #3d9be0 } } "
    "@media print { svg { --ink: #000; --soft: #bbb; --blue: #0072b2 } }</style>"
)
STYLE: Any = {
    "font.size": 9,
    "svg.hashsalt": "report",
    "svg.fonttype": "none",  # the reader's fonts have letters that matplotlib's lacks
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": SOFT,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "xtick.color": INK,
    "ytick.color": INK,
}
DOTS_PER_INCH = 160
PANEL = 3.0  # inches
CURVE_MARKERS = 40  # with fewer epochs, each is marked

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Abscissae and ordinates by name."""


def draw_scores(panels: Mapping[str, Mapping[str, ArrayLike]]) -> str:
    """A box with all its points per class, one panel per metric.

    Scores that are infinite are triangles at the edge of the panel, with their number.

    Args:
        panels: by metric and class, scores ``(case,)``; NaN is left out.
    """
    classes = max(len(scores) for scores in panels.values())
    with drawing():
        figure = make_figure(max(8.0, len(panels) * (1.2 + 0.8 * classes)), 3.6)
        for axes, (metric, scores) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            axes.set_title(plain_text(metric))
            axes.grid(axis="y")
            for place, values in enumerate(scores.values()):
                _strip(axes, place, np.asarray(values, float))
            _limit_scores(axes, np.concatenate([np.asarray(values, float) for values in scores.values()]))
            names = [
                f"{plain_text(name)}\nn = {np.sum(~np.isnan(np.asarray(found, float)))}"
                for name, found in scores.items()
            ]
            axes.set_xticks(range(len(scores)), names, **({"rotation": 30, "ha": "right"} if len(scores) > 5 else {}))
            axes.set_xlim(-0.6, len(scores) - 0.4)
            axes.tick_params(axis="x", length=0)
        return to_svg(figure)


def draw_agreement(
    measured: Mapping[str, ArrayLike], reference: Mapping[str, ArrayLike], agreements: Mapping[str, Agreement]
) -> str:
    """A Bland-Altman plot per class: differences of volumes against their means, in mL.

    Args:
        measured, reference: volumes ``(case,)`` by class.
        agreements: bias and limits by class.
    """
    columns = min(3, len(agreements))
    rows = math.ceil(len(agreements) / columns)
    with drawing():
        figure = make_figure(9.5 if columns > 1 else 6.5, 3.4 * rows)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(agreements) :]:
            axes.set_axis_off()
        for place, (axes, (name, agreement)) in enumerate(zip(grid, agreements.items(), strict=False)):
            draw_differences(axes, np.asarray(measured[name], float), np.asarray(reference[name], float), agreement)
            axes.set_title(f"{plain_text(name)} (n = {agreement.n})")
            axes.set_xlabel("mean of prediction and reference [mL]")
            if place % columns == 0:
                axes.set_ylabel("prediction minus reference [mL]")
        return to_svg(figure)


def draw_curves(panels: Mapping[str, Curves], best: int | None = None) -> str:
    """Curves over epochs, one panel each; learning rates that differ tenfold or more are on a logarithmic axis.

    Args:
        panels: curves by the panel's title.
        best: epoch to mark, if there is one.
    """
    from matplotlib.ticker import MaxNLocator

    rows = math.ceil(len(panels) / 2)
    with drawing():
        figure = make_figure(9.5, 3.0 * rows)
        grid = figure.subplots(rows, 2, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes, (title, curves) in zip(grid, panels.items(), strict=False):
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.grid()
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
            for place, (name, (x, y)) in enumerate(curves.items()):
                look = {
                    "color": COLOURS[place % len(COLOURS)],
                    "linestyle": DASHES[place // len(COLOURS) % len(DASHES)],
                }
                marker = "." if len(x) < CURVE_MARKERS else None
                axes.plot(x, y, label=plain_text(name), marker=marker, linewidth=1.5, **look)
            values = np.concatenate([np.asarray(y, float) for _, y in curves.values()])
            positive = values[np.isfinite(values) & (values > 0)]
            if title.lower().startswith("learning rate") and positive.size and positive.max() >= 10 * positive.min():
                axes.set_yscale("log")
            if best is not None:
                axes.axvline(best, color=INK, linewidth=1, linestyle=":", label=f"best epoch, {best}")
            if len(curves) > 1:
                axes.legend(loc="best", fontsize=8)
        return to_svg(figure)


def draw_cuts(cuts: Sequence[Cut], pictures: Sequence[NDArray[np.float32]] | None) -> str:
    """The planes of a class side by side, at one scale, with the outlines of reference and prediction.

    Args:
        cuts: the planes.
        pictures: the image of each, ``(row, column)``; None to draw outlines alone.
    """
    size = _field_of_view(cuts)
    shown = [_window(cut, size) for cut in cuts]
    low, high = _grey_levels(cuts, pictures, shown) if pictures is not None else (0.0, 1.0)
    with drawing():
        figure = make_figure(PANEL * len(cuts), PANEL, layout=None, facecolor="black")
        for place, cut in enumerate(cuts):
            axes = figure.add_axes((place / len(cuts) + 0.002, 0, 1 / len(cuts) - 0.004, 1), facecolor="black")
            rows, columns = cut.shape[0] * cut.spacing[0], cut.shape[1] * cut.spacing[1]
            if pictures is not None:
                look = {"cmap": "gray", "vmin": low, "vmax": high, "interpolation": "bilinear"}
                axes.imshow(pictures[place], extent=(0, columns, rows, 0), aspect="equal", **look)
            prediction, reference = cut.masks()
            _outline(axes, reference, cut.spacing, color=REFERENCE, linewidth=2.4)
            _outline(axes, prediction, cut.spacing, color=PREDICTION, linewidth=1.3, linestyle=(0, (3.5, 2.5)))
            left, top = shown[place]
            axes.set(xlim=(left, left + size), ylim=(top + size, top))
            axes.set_axis_off()
            _letters(axes, cut)
            if place == 0:
                _scale_bar(axes, size)
        return to_png(figure)


def drawing() -> Any:
    """The context that figures are drawn in: the reports' style."""
    import matplotlib

    return matplotlib.rc_context(STYLE)


def make_figure(width: float, height: float, **options: Any) -> Any:
    """A figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure((width, height), **{"layout": "constrained", **options})


def to_svg(figure: Any) -> str:
    """A figure as the SVG element that a page holds."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of a size that is guessed, then
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :].replace(INK, "var(--ink)").replace(SOFT, "var(--soft)")
    text = text.replace(COLOURS[0], "var(--blue)")  # too dark on black
    start = text.index(">") + 1
    return _uri("svg+xml", (text[:start] + INKS + text[start:]).encode())


def to_png(figure: Any) -> str:
    """A figure as the address of a PNG picture within the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return _uri("png", buffer.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def plain_text(name: str) -> str:
    """A name that is not taken for mathematics."""
    return name.replace("$", r"\$")


def _strip(axes: Any, place: int, values: NDArray[np.float64]) -> None:
    colour = COLOURS[place % len(COLOURS)]
    finite = values[np.isfinite(values)]
    infinite = int(np.isposinf(values).sum())
    # Spread by the golden ratio rather than by chance: the same scores give the same plot.
    spread = place + 0.5 * ((np.arange(finite.size) * 0.618034) % 1 - 0.5)
    axes.scatter(spread, np.sort(finite), s=14, color=colour, alpha=0.75, linewidths=0)
    if finite.size > 3:
        line = {"color": INK, "linewidth": 1.2}
        parts = {f"{part}props": line for part in ("box", "whisker", "cap", "median")}
        axes.boxplot(finite, positions=[place], widths=0.62, showfliers=False, manage_ticks=False, **parts)
    if infinite:
        top = axes.get_xaxis_transform()
        axes.scatter([place], [0.97], marker="^", s=30, color=colour, transform=top, clip_on=False)
        axes.annotate(f"{infinite} ∞", (place, 0.97), (6, 0), xycoords=top, textcoords="offset points", va="center")


def _limit_scores(axes: Any, values: NDArray[np.float64]) -> None:
    """Room for the sign of what is infinite, and an axis from 0 where all scores are the same."""
    finite = values[np.isfinite(values)]
    if finite.size and np.ptp(finite) == 0:
        axes.set_ylim(*sorted((0.0, 2 * float(finite[0]) or 1.0)))
    elif np.isinf(values).any():
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.1 * (high - low))


def draw_differences(
    axes: Any, measured: NDArray[np.float64], reference: NDArray[np.float64], found: Agreement
) -> None:
    """Draw a Bland-Altman plot: differences over means, with the bias and the limits of agreement."""
    means, differences = (measured + reference) / 2, measured - reference
    axes.scatter(means, differences, s=18, color=COLOURS[0], alpha=0.75, linewidths=0)
    axes.axhline(0, color=SOFT, linewidth=1.2)
    lines = ((found.bias, "-", "bias"), (found.upper, "--", "+1.96 SD"), (found.lower, "--", f"{MINUS}1.96 SD"))
    for value, dash, name in lines:
        if math.isfinite(value) and (found.sd > 0 or name == "bias"):
            axes.axhline(value, color=COLOURS[1], linewidth=1.3, linestyle=dash)
            text = f"{name}\n{value:+.3g}".replace("-", MINUS)
            axes.annotate(
                *(text, (1, value), (4, 0)),
                **{
                    "xycoords": axes.get_yaxis_transform(),
                    "textcoords": "offset points",
                    "va": "center",
                    "fontsize": 8,
                },
            )
    axes.margins(0.12, 0.15)


def _field_of_view(cuts: Sequence[Cut]) -> float:
    """Side of the squares that are shown, in mm: the class with a rim, no more than the volume has."""
    extents, sizes = [], []
    for cut in cuts:
        for axis, (start, stop) in enumerate(_bounds(cut)):
            extents.append((stop - start) * cut.spacing[axis])
            sizes.append(cut.shape[axis] * cut.spacing[axis])
    extent = max(extents)
    return min(max(1.4 * extent, extent + 40), 1.02 * max(sizes))


def _bounds(cut: Cut) -> list[tuple[int, int]]:
    """First and one past the last row, and column, of prediction and reference together."""
    both = np.logical_or(*cut.masks())
    found = [np.flatnonzero(both.any(1 - axis)) for axis in range(2)]
    return [(int(where[0]), int(where[-1]) + 1) for where in found]


def _window(cut: Cut, size: float) -> tuple[float, float]:
    """Left and top edge, in mm, of the square shown: about the class, within the slice where it is large enough."""
    edges = []
    for axis, (start, stop) in enumerate(_bounds(cut)):
        length = cut.shape[axis] * cut.spacing[axis]
        centre = (start + stop) / 2 * cut.spacing[axis]
        edges.append(min(max(centre - size / 2, 0), length - size) if length > size else (length - size) / 2)
    return edges[1], edges[0]


def _grey_levels(
    cuts: Sequence[Cut], pictures: Sequence[NDArray[np.float32]], shown: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """Percentiles of what is shown, so that a table or the air around does not set the contrast."""
    size = _field_of_view(cuts)
    parts = []
    for cut, picture, (left, top) in zip(cuts, pictures, shown, strict=True):
        rows = slice(max(int(top / cut.spacing[0]), 0), math.ceil((top + size) / cut.spacing[0]))
        columns = slice(max(int(left / cut.spacing[1]), 0), math.ceil((left + size) / cut.spacing[1]))
        parts.append(picture[rows, columns].ravel())
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, [0.5, 99.5])
    return float(low), float(high) if high > low else float(low) + 1


def _outline(axes: Any, mask: NDArray[np.bool_], spacing: tuple[float, float], **look: Any) -> None:
    """Outline of a mask along the edges of its voxels."""
    if not mask.any():
        return
    where = [np.flatnonzero(mask.any(1 - axis)) for axis in range(2)]
    start = [int(found[0]) for found in where]
    part = mask[start[0] : where[0][-1] + 1, start[1] : where[1][-1] + 1]
    fine = 4  # points per voxel: corners of the outline are cut by an eighth of one
    grid = np.pad(part.repeat(fine, 0).repeat(fine, 1), 1).astype(float)
    y, x = ((start[axis] + (np.arange(grid.shape[axis]) - 0.5) / fine) * spacing[axis] for axis in range(2))
    line = {"colors": look["color"], "linewidths": look["linewidth"], "linestyles": [look.get("linestyle", "-")]}
    axes.contour(x, y, grid, levels=[0.5], **line)


def _letters(axes: Any, cut: Cut) -> None:
    name, letters = PLANES[cut.plane]
    sides = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"))
    ends = ((0.5, 0.98, "center", "top"), (0.5, 0.02, "center", "bottom"))
    for letter, (x, y, ha, va) in zip(letters, (*sides, *ends), strict=True):
        draw_text(axes, x, y, letter, ha, va)
    draw_text(axes, 0.02, 0.98, name, "left", "top")


def _scale_bar(axes: Any, size: float) -> None:
    """A bar of a round length, about a quarter of the width."""
    length = max(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500) if step <= max(size / 3, 1))
    share = length / size
    axes.plot([0.96 - share, 0.96], [0.05, 0.05], color="white", linewidth=2.5, transform=axes.transAxes)
    draw_text(axes, 0.96 - share / 2, 0.06, f"{length} mm", "center", "bottom")


def draw_text(axes: Any, x: float, y: float, text: str, ha: str, va: str) -> None:
    """Write onto a picture, at a place from 0 to 1 along each of its sides."""
    from matplotlib.patheffects import withStroke

    look = {"color": "white", "fontsize": 9, "path_effects": [withStroke(linewidth=2, foreground="black")]}
    axes.text(x, y, text, ha=ha, va=va, transform=axes.transAxes, **look)
