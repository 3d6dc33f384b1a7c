"""A picture to see at a glance whether a label map can be right: three planes, outlines in colours, a legend.

Planes go through the middle of the largest structure and are drawn as radiologists look at them, see
:mod:`med3d_nets.report_slices`.
"""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from med3d_nets.report_plots import draw_text, drawing, make_figure, plain_text
from med3d_nets.report_slices import PLANES, array_axis, cut_slice

__all__ = ["draw_quicklook"]

COLOURS = ("#56b4e9", "#e69f00", "#00b583", "#f0e442", "#ff7fbf", "#ff5a36", "#4d8dff")
"""Okabe and Ito's, brighter where black is around them."""
LEGEND = 24
"""Structures that the legend names."""
ROW, PANEL = 0.22, 3.6  # inches
DOTS_PER_INCH = 120


def draw_quicklook(
    labels: NDArray[Any],
    image: NDArray[Any],
    affine: NDArray[np.float64],
    structures: Sequence[Mapping[str, Any]],
    title: str = "",
) -> bytes:
    """Draw a case.

    Args:
        labels: class numbers, ``(x, y, z)``.
        image: intensities on the same grid, ``(x, y, z)`` or ``(x, y, z, channel)``, of which the first channel is
            shown.
        affine: from voxels to RAS+ in mm, ``(4, 4)``.
        structures: of :func:`~med3d_nets.structures.measure_structures`.
        title: name of the case.

    Returns:
        A PNG picture.
    """
    there = sorted((row for row in structures if row["voxels"]), key=lambda row: row["voxels"], reverse=True)
    middle = _middle(labels, there[0]) if there else [size // 2 for size in labels.shape]
    shown = [(plane, *_cut(image, labels, affine, plane, middle)) for plane in PLANES]
    widths = [picture.shape[1] * step[1] for _, picture, _, step in shown]
    heights = [picture.shape[0] * step[0] for _, picture, _, step in shown]
    columns = max(1, min(4, len(there)))
    rows = math.ceil(min(len(there), LEGEND + 1) / columns)
    below = ROW * (rows + 1)
    grey = _grey_levels([picture for _, picture, _, _ in shown])
    with drawing():
        figure = make_figure(3 * PANEL, PANEL + below, layout=None, facecolor="black")
        for place, (plane, picture, cut, step) in enumerate(shown):
            size = (1 / 3 - 0.006, PANEL / (PANEL + below))
            axes = figure.add_axes((place / 3 + 0.003, 1 - size[1], *size), facecolor="black")
            _draw_plane(axes, plane, picture, cut, step, grey)
            side = max(*widths, *heights)  # one scale
            axes.set(xlim=((widths[place] - side) / 2, (widths[place] + side) / 2))
            axes.set(ylim=((heights[place] + side) / 2, (heights[place] - side) / 2))
        figure.text(0.01, ROW / 2 / (PANEL + below), plain_text(title), color="white", fontsize=8, va="center")
        _draw_legend(figure, there, columns, ROW / (PANEL + below))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, facecolor="black")
    return buffer.getvalue()


def in_millilitres(structure: Mapping[str, Any]) -> str:
    """A structure's volume with three digits or whole mL."""
    volume = structure["volume_ml"]
    return f"{volume:.0f} mL" if volume >= 100 else f"{volume:.3g} mL"


def colour_of(label: int) -> tuple[float, float, float] | str:
    """The colour of a class, the same in every picture; later ones by the golden ratio, far from their neighbours'."""
    if label <= len(COLOURS):
        return COLOURS[label - 1]
    return colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.55 + 0.45 * (label % 2), 1.0)


def _middle(labels: NDArray[Any], row: Mapping[str, Any]) -> list[int]:
    """The median of a structure's voxels along each axis, so that every plane meets it."""
    start = row["first_voxel"]
    box = tuple(slice(first, last + 1) for first, last in zip(start, row["last_voxel"], strict=True))
    mask = labels[box] == row["label"]
    sums = [mask.sum(axis=tuple(axis for axis in range(3) if axis != own)).cumsum() for own in range(3)]
    return [first + int(np.searchsorted(each, (each[-1] + 1) // 2)) for first, each in zip(start, sums, strict=True)]


def _cut(
    image: NDArray[Any], labels: NDArray[Any], affine: NDArray[np.float64], plane: int, middle: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[Any], tuple[float, float]]:
    """Picture, labels and mm between rows and between columns of a plane."""
    across = array_axis(affine, plane)
    volume = image[..., 0] if image.ndim > 3 else image
    where: Any = tuple(slice(middle[axis], middle[axis] + 1) if axis == across else slice(None) for axis in range(3))
    # Of types that torch has: files may be of another byte order, or of 16 bits without a sign.
    thin: list[Any] = [volume[where].astype(np.float32), labels[where].astype(np.int32)]
    picture, cut = (cut_slice(each, affine, plane, 0) for each in thin)
    spacing = nibabel.affines.voxel_sizes(affine)
    columns, rows = (array_axis(affine, world) for world in range(3) if world != plane)
    return picture, cut, (float(spacing[rows]), float(spacing[columns]))


def _grey_levels(pictures: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    low, high = np.percentile(np.concatenate([picture.ravel() for picture in pictures]), [1, 99.5])
    return float(low), float(high) if high > low else float(low) + 1


def _draw_plane(
    axes: Any,
    plane: int,
    picture: NDArray[np.float32],
    cut: NDArray[Any],
    step: tuple[float, float],
    grey: tuple[float, float],
) -> None:
    extent = (0, picture.shape[1] * step[1], picture.shape[0] * step[0], 0)
    look = {"cmap": "gray", "vmin": grey[0], "vmax": grey[1], "interpolation": "bilinear"}
    axes.imshow(picture, extent=extent, aspect="equal", **look)
    for label, box in enumerate(ndimage.find_objects(cut), 1):
        if box is not None:
            mask = np.pad((cut[box] == label).astype(float), 1)
            y, x = ((part.start - 0.5 + np.arange(n)) * mm for part, n, mm in zip(box, mask.shape, step, strict=True))
            axes.contour(x, y, mask, levels=[0.5], colors=[colour_of(label)], linewidths=1.3)
    axes.set_axis_off()
    name, letters = PLANES[plane]
    sides = ((0.01, 0.5, "left", "center"), (0.99, 0.5, "right", "center"))
    ends = ((0.5, 0.99, "center", "top"), (0.5, 0.01, "center", "bottom"))
    for letter, where in zip(letters, (*sides, *ends), strict=True):
        draw_text(axes, where[0], where[1], letter, where[2], where[3])
    draw_text(axes, 0.01, 0.99, name, "left", "top")


def _draw_legend(figure: Any, there: Sequence[Mapping[str, Any]], columns: int, row: float) -> None:
    """Names and volumes of what was found, the largest first."""
    from matplotlib.patches import Patch

    handles = [
        Patch(color=colour_of(each["label"]), label=plain_text(f"{each['structure']}  {in_millilitres(each)}"))
        for each in there[:LEGEND]
    ]
    if len(there) > LEGEND:
        handles.append(Patch(color="none", label=f"and {len(there) - LEGEND} more"))
    if not handles:
        figure.text(0.5, row / 2, "no structure was found", color="white", ha="center", va="center")
        return
    figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.9 * row),
        ncols=columns,
        labelcolor="white",
        fontsize=8,
        handlelength=1,
        handleheight=0.6,
        borderpad=0,
        labelspacing=0.35,
    )
