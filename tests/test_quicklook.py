"""The picture of a case."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from med3d_nets.quicklook import colour_of, draw_quicklook, in_millilitres
from med3d_nets.structures import measure_structures

SHAPE = (40, 30, 20)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
NAMES = ["background", "large", "small $x$"]


def draw(labels: np.ndarray, image: np.ndarray | None = None, names: list[str] = NAMES) -> np.ndarray:
    """Pixels, ``(row, column, 3)``, from 0 to 1."""
    scan = np.zeros(SHAPE, np.int16) if image is None else image
    structures = measure_structures(labels, scan, AFFINE, names)
    return imread(io.BytesIO(draw_quicklook(labels, scan, AFFINE, structures, "case_0")), format="png")[..., :3]


def labelled() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:16, 5:20, 6:14] = 1
    labels[30:33, 25:28, 15:18] = 2  # on none of the planes
    return labels


def near(pixels: np.ndarray, colour: object) -> np.ndarray:
    return np.abs(pixels - to_rgb(colour)).max(axis=-1) < 0.1


def test_three_planes_show_the_largest_structure() -> None:
    pixels = draw(labelled())
    height = round(3.6 * 120)
    panels = np.split(pixels[:height], 3, axis=1)
    for panel in panels:
        assert near(panel, colour_of(1)).sum() > 50
        assert near(panel, colour_of(2)).sum() == 0
    assert near(pixels[height:], colour_of(2)).sum() > 20  # in the legend


def test_the_outline_lies_where_the_structure_is() -> None:
    """The axial picture has the patient's right on the left and the front above; a mm is 120 * 3.6 / 40 pixels."""
    labels = labelled()
    inside = near(draw(labels), colour_of(1))[: round(3.6 * 120), : round(3.6 * 120)]
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    mm = inside.shape[0] / 40 * (1 / 3 - 0.006) * 3
    left = inside.shape[1] / 2 - 20 * mm
    assert abs(columns[0] - (left + (40 - 16) * mm)) < 4
    assert abs(columns[-1] - (left + (40 - 4) * mm)) < 4
    top = inside.shape[0] / 2 - 15 * mm
    assert abs(rows[0] - (top + (30 - 20) * mm)) < 4
    assert abs(rows[-1] - (top + (30 - 5) * mm)) < 4


def test_grey_levels_are_those_of_the_image() -> None:
    image = np.zeros(SHAPE, np.int16)
    image[:, :, 8:12] = 1000
    axial = draw(labelled(), image)[150:280, 330:400]  # no outline there
    assert axial.mean() > 0.9
    assert draw(labelled())[150:280, 330:400].mean() < 0.1


@pytest.mark.parametrize("kind", [">i2", "uint16", "float64", "int8"])
def test_any_type_of_voxels_and_channels(kind: str) -> None:
    image = np.random.RandomState(0).randint(0, 100, (*SHAPE, 2)).astype(kind)
    assert draw(labelled(), image).std() > 0.1


def test_nothing_found() -> None:
    pixels = draw(np.zeros(SHAPE, np.uint8))
    assert not near(pixels, colour_of(1)).any()
    assert pixels[432:].max() > 0.9  # it says so


def test_many_structures_get_colours_of_their_own_and_a_legend_that_ends() -> None:
    labels = (np.arange(np.prod(SHAPE)).reshape(SHAPE) // 97 % 60).astype(np.uint8)
    pixels = draw(labels, names=[f"structure {n}" for n in range(60)])
    assert pixels.shape[0] < 1200
    assert len({to_rgb(colour_of(label)) for label in range(1, 60)}) == 59


def test_volumes_are_short() -> None:
    texts = [in_millilitres({"volume_ml": volume}) for volume in (1234.56, 99.96, 1.23456, 0.001)]
    assert texts == ["1235 mL", "100 mL", "1.23 mL", "0.001 mL"]
