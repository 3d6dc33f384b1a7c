"""Plots and pictures: that they decode, and what is in them."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pages import decode

from med3d_nets.classification.calibration import Reliability
from med3d_nets.classification.plots import (
    MOST_CURVES,
    Picture,
    draw_confusion,
    draw_numbers,
    draw_pictures,
    draw_reliability,
    draw_roc,
)
from med3d_nets.classification.scores import score_classes
from med3d_nets.statistics import bland_altman

NAMES = ["$\\frac", "x & <y>", "左肺"]


def svg(source: str) -> str:
    assert decode(source).tag == "{http://www.w3.org/2000/svg}svg"
    return base64.b64decode(source.partition(",")[2]).decode()


def words(source: str) -> str:
    return "".join(decode(source).itertext())


@pytest.mark.filterwarnings("error")
def test_curves_of_every_class() -> None:
    values = np.random.RandomState(0).dirichlet([1] * 3, 60)
    classes = score_classes(values, np.arange(60) % 3, NAMES, resamples=0).classes
    text = words(draw_roc(classes))
    for each in classes:
        assert f"{each.name}: AUC {each.auc.value:.3f}" in text
        assert f"{each.name}: AP {each.average_precision:.3f}" in text
    assert "var(--ink)" in svg(draw_roc(classes[:1]))
    assert draw_roc(classes) == draw_roc(classes)
    assert "AUC" in words(draw_roc(classes[:1] * MOST_CURVES))


def test_reliability_has_its_error() -> None:
    assert "ECE 0.300" in words(draw_reliability(Reliability((0.1, 0.9), (0.25, 0.5), (4, 6), 0.3)))


@pytest.mark.filterwarnings("error")
def test_confusion_has_counts_and_shares() -> None:
    text = words(draw_confusion(np.array([[3, 1, 0], [0, 0, 0], [7, 0, 7]]), NAMES))
    assert all(name in text for name in NAMES)
    assert all(share in text for share in ("75 %", "25 %", "50 %", "0 %"))
    many = svg(draw_confusion(np.diag([1234] + [1] * 29), [f"class {place}" for place in range(30)]))
    assert ">1234<" not in many
    assert ">class 29<" in many


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_numbers(spread: float) -> None:
    truth = np.array([50.0, 50 + spread, 50 + 2 * spread])
    guess = truth + np.array([1, 2, 4])
    text = words(draw_numbers(guess, truth, bland_altman(guess, truth), "a $b$ <c>"))
    assert "a $b$ <c>" in text
    assert "Bland-Altman (n = 3)" in text
    assert "+2.33" in text


def picture(*saliencies: NDArray[Any] | None, aspect: float = 1.0) -> NDArray[np.float32]:
    image = np.zeros((20, 20))
    image[5:15, 5:15] = 1
    found = decode(draw_pictures([Picture(image, each, aspect, "") for each in saliencies or (None,)]))
    assert isinstance(found, np.ndarray)
    return found


def bright(found: NDArray[np.float32]) -> tuple[int, int]:
    """Rows and columns of what is bright."""
    mask = found[..., :3].min(-1) > 0.8
    return int(np.ptp(np.flatnonzero(mask.any(1)))), int(np.ptp(np.flatnonzero(mask.any(0))))


def test_picture_is_grey_and_has_its_aspect() -> None:
    found = picture()
    assert np.abs(found[..., :3] - found[..., :1]).max() == 0
    rows, columns = bright(found)
    assert rows == pytest.approx(columns, abs=4)
    rows, columns = bright(picture(aspect=2.0))
    assert rows == pytest.approx(2 * columns, abs=6)


def test_saliency_colours_where_it_is() -> None:
    saliency = np.zeros((4, 4))
    saliency[:, 3] = [1, 1, 1, 1]
    saliency[0, 0], saliency[1, 0] = -5, np.nan
    found = picture(saliency)
    side = picture().shape[0]
    assert found.shape[0] > side  # the colour bar
    assert np.array_equal(found[:side, :side], picture()[:, :side])  # without it, at the left
    coloured = np.ptp(found[:side, side : 2 * side, :3], axis=-1) > 0.2
    assert coloured[:, int(0.9 * side) :].mean() > 0.8
    assert coloured[:, : int(0.6 * side)].mean() == 0
    assert (np.ptp(found[side:, :, :3], axis=-1) > 0.2).any()


def test_pictures_with_saliency_take_two_places() -> None:
    saliency, side = np.ones((4, 4)), picture().shape[0]
    one, two, three = (picture(*[saliency] * count) for count in (1, 2, 3))
    assert one.shape == two.shape
    assert three.shape[0] == two.shape[0] + side


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("image", [np.full((3, 4), np.nan), np.full((3, 4), 7.0), np.zeros((1, 1), np.int16)])
def test_pictures_without_contrast(image: NDArray[Any]) -> None:
    pictures = [Picture(image, np.zeros((2, 2)), 1.0, str(place)) for place in range(5)]
    found = decode(draw_pictures(pictures))
    assert isinstance(found, np.ndarray)
    assert found.shape[0] == pytest.approx(found.shape[1] * (3 * 2.4 + 0.55) / (4 * 2.4), abs=2)
