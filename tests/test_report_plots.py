"""Plots and pictures: that they decode, and what is in them."""

from __future__ import annotations

import base64
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pages import decode

from med3d_nets.report_plots import (
    PREDICTION,
    REFERENCE,
    draw_agreement,
    draw_curves,
    draw_cuts,
    draw_scores,
)
from med3d_nets.report_slices import cut_class
from med3d_nets.statistics import bland_altman

NAN, INF = math.nan, math.inf


def svg(source: str) -> str:
    assert decode(source).tag == "{http://www.w3.org/2000/svg}svg"
    return base64.b64decode(source.partition(",")[2]).decode()


def near(picture: NDArray[np.float32], colour: str) -> NDArray[np.bool_]:
    """Pixels of a colour."""
    wanted = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.abs(picture[..., :3] - wanted).max(-1) < 0.12


@pytest.mark.parametrize(
    "values", [[0.5, 0.7, NAN, 0.9, 0.2], [1.0, INF], [0.5], [NAN], [], [0.0, 0.0], [INF], [2.0] * 5]
)
def test_scores_of_any_kind(values: list[float]) -> None:
    text = svg(draw_scores({"Dice": {"lung": values, "no<dule": [0.5] * len(values)}, "HD95 [mm]": {"lung": values}}))
    assert "var(--ink)" in text
    assert "prefers-color-scheme: dark" in text
    assert ("∞" in text) == any(map(math.isinf, values))


@pytest.mark.parametrize(("measured", "limits"), [([1, 2, 4], True), ([1.0, 2.0, 3.0], False), ([2.0], False)])
def test_agreement_of_many_few_and_equal(measured: list[float], limits: bool) -> None:
    reference = [1.0, 2.0, 3.0][: len(measured)]
    names = [f"class {number}" for number in range(5)]
    found = bland_altman(measured, reference)
    text = svg(draw_agreement(*({name: each for name in names} for each in (measured, reference, found))))
    assert text.count(">bias<") == 5
    assert ("1.96 SD" in text) == limits


def test_curves() -> None:
    epochs = [1, 2, 3]
    panels = {
        "Loss": {"loss": (epochs, [3.0, NAN, 1.0])},
        "Dice": {f"class {place}": (epochs, [0.1, 0.2, 0.3]) for place in range(9)},
        "Learning rate": {"new": (epochs, [0.1, 0.01, 0.0]), "other": ([1], [0.001])},
    }
    text = svg(draw_curves(panels, best=3))
    assert ">best epoch, 3<" in text
    assert "best epoch" not in svg(draw_curves(panels))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["$\\frac", "a $b$ c", "左肺", "x & <y>"])
def test_names_are_drawn_as_they_are(name: str) -> None:
    values = [0.5, 0.75]
    plots = [
        draw_scores({name: {name: values}}),
        draw_agreement({name: values}, {name: [0.5, 0.5]}, {name: bland_altman(values, [0.5, 0.5])}),
        draw_curves({"Dice": {name: ([1, 2], values), "other": ([1], [0.5])}}),
    ]
    for plot in plots:
        assert name in "".join(decode(plot).itertext())


def test_same_scores_give_the_same_plot() -> None:
    scores = {"Dice": {"lung": [0.5, 0.7, 0.9, 0.2]}}
    assert draw_scores(scores) == draw_scores(scores)


def draw(
    spacing: tuple[float, float, float], shape: tuple[int, int, int] = (40, 40, 40), **images: bool
) -> NDArray[np.float32]:
    """Three planes of a box of 20 mm, predicted 10 mm too far in front."""
    grid = np.stack(
        np.meshgrid(*((np.arange(n) + 0.5) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    )
    reference = (np.abs(grid - 30) < 10).all(0)
    prediction = (np.abs(grid - np.array([30, 40, 30]).reshape(3, 1, 1, 1)) < 10).all(0)
    cuts = cut_class(torch.from_numpy(prediction), torch.from_numpy(reference), np.diag([*spacing, 1]))
    pictures = [np.full(cut.shape, 7, np.float32) for cut in cuts] if images.get("flat") else None
    picture = decode(draw_cuts(cuts, pictures))
    assert picture.shape[1] == 3 * picture.shape[0]
    return picture


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 1.0, 5.0), (4.0, 0.8, 1.0)])
def test_outlines_have_the_aspect_of_millimetres(spacing: tuple[float, float, float]) -> None:
    shape = tuple(round(60 / step) for step in spacing)
    picture = draw(spacing, shape)
    side = picture.shape[0]
    for plane in range(3):
        blue = near(picture[:, plane * side : (plane + 1) * side], REFERENCE)
        rows, columns = (np.flatnonzero(blue.any(axis)) for axis in (1, 0))
        assert np.ptp(rows) == pytest.approx(np.ptp(columns), rel=0.06)


def test_prediction_is_drawn_where_it_is() -> None:
    picture = draw((1.0, 1.0, 1.0), (60, 60, 60))
    side = picture.shape[0]
    axial, coronal, sagittal = (picture[:, plane * side : (plane + 1) * side] for plane in range(3))

    def middle(plane: NDArray[np.float32], colour: str, axis: int) -> float:
        return float(np.flatnonzero(near(plane, colour).any(axis)).mean())

    assert middle(axial, PREDICTION, 1) < middle(axial, REFERENCE, 1) - 20  # the front is at the top
    assert middle(axial, PREDICTION, 0) == pytest.approx(middle(axial, REFERENCE, 0), abs=6)
    assert middle(sagittal, PREDICTION, 0) < middle(sagittal, REFERENCE, 0) - 20  # and at the left
    assert near(coronal, REFERENCE).any()


def test_image_without_contrast() -> None:
    assert near(draw((2.0, 2.0, 2.0), flat=True), REFERENCE).any()


def test_one_slice() -> None:
    reference = torch.zeros(30, 20, 1, dtype=torch.bool)
    reference[5:9, 5:9] = True
    cuts = cut_class(torch.zeros_like(reference), reference, np.diag([1.0, 1.0, 5.0, 1.0]))
    picture = decode(draw_cuts(cuts, [np.random.RandomState(0).rand(*cut.shape).astype(np.float32) for cut in cuts]))
    assert near(picture, REFERENCE).any()
    assert not near(picture, PREDICTION).any()
