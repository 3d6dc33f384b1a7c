"""The Hausdorff distance in mm, against computations by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import OBLIQUE
from ignite.engine import Engine
from monai.data import MetaTensor
from scipy import ndimage

from med3d_nets.metrics import HausdorffDistance95

SHAPE = (14, 18, 16)
SPACING = (2.5, 0.8, 1.1)  # of OBLIQUE

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def one_hot(*classes: np.ndarray, affine: np.ndarray = OBLIQUE) -> MetaTensor:
    """One-hot volume of foreground masks, background first."""
    background = ~np.any(classes, axis=0)
    return MetaTensor(torch.from_numpy(np.stack([background, *classes]).astype(np.float32)), affine=affine)


def plane(axis: int, position: int) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[(slice(None),) * axis + (position,)] = True
    return mask


def cube(*start: int, size: int = 4) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(first, first + size) for first in start)] = True
    return mask


def blob(seed: int) -> np.ndarray:
    """An irregular mask in two parts."""
    return ndimage.gaussian_filter(np.random.RandomState(seed).normal(size=SHAPE), 2) > 0.06


def run(*cases: tuple[MetaTensor, MetaTensor]) -> Engine:
    """An engine after an epoch of these cases, a batch each."""
    engine = Engine(lambda engine, batch: batch)
    engine.state.metric_details = {}
    HausdorffDistance95().attach(engine, "hd95")
    engine.run([([found], [truth]) for found, truth in cases])
    return engine


def distances(*cases: tuple[MetaTensor, MetaTensor]) -> list[list[float]]:
    """Per case and foreground class."""
    return run(*cases).state.metric_details["hd95"].tolist()


def by_hand(one: np.ndarray, other: np.ndarray, spacing: tuple[float, ...]) -> float:
    """95th percentile of the distances of either surface's voxels to the other surface, the larger of the two."""
    points = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) * spacing for mask in (one, other)]
    between = np.linalg.norm(points[0][:, None] - points[1][None], axis=2)
    return float(max(np.percentile(between.min(axis=axis), 95) for axis in (0, 1)))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift", [1, 4, -3])
def test_parallel_planes(axis: int, shift: int):
    found = distances((one_hot(plane(axis, 6 + shift)), one_hot(plane(axis, 6))))
    assert found == [[pytest.approx(abs(shift) * SPACING[axis], rel=1e-5)]]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shifted_cubes(axis: int):
    """Of a cube's surface less than 95 % lies nearer than the shift along the axis."""
    start = [3, 3, 3]
    start[axis] += 4
    found = distances((one_hot(cube(*start)), one_hot(cube(3, 3, 3))))
    assert found == [[pytest.approx(4 * SPACING[axis], rel=1e-5)]]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_irregular_shapes(seed: int):
    one, other = blob(seed), blob(seed + 10)
    expected = by_hand(one, other, SPACING)
    assert not math.isclose(expected, by_hand(one, other, (1, 1, 1)), rel_tol=0.02)
    assert distances((one_hot(one), one_hot(other))) == [[pytest.approx(expected, rel=1e-4)]]


def test_a_few_far_voxels_do_not_count():
    far = plane(0, 2) | (cube(12, 3, 3, size=1))
    assert distances((one_hot(far), one_hot(plane(0, 2)))) == [[0.0]]


def test_each_case_has_its_own_spacing():
    pair = (plane(1, 9), plane(1, 6))
    affines = (np.eye(4), OBLIQUE, np.diag([1.0, -3.0, 1.0, 1.0]))
    engine = run(*(tuple(one_hot(mask, affine=affine) for mask in pair) for affine in affines))
    expected = [3.0, 3 * SPACING[1], 9.0]
    assert engine.state.metric_details["hd95"].flatten().tolist() == pytest.approx(expected, rel=1e-5)
    assert engine.state.metrics["hd95"] == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_classes_are_apart_and_background_is_left_out():
    found = one_hot(plane(2, 3), plane(2, 8))
    truth = one_hot(plane(2, 5), plane(2, 9))
    assert distances((found, truth)) == [pytest.approx([2 * SPACING[2], SPACING[2]], rel=1e-5)]


@pytest.mark.parametrize(
    ("found", "truth", "agrees"),
    [
        (np.zeros(SHAPE, bool), cube(3, 3, 3), math.isinf),
        (cube(3, 3, 3), np.zeros(SHAPE, bool), math.isinf),
        (np.zeros(SHAPE, bool), np.zeros(SHAPE, bool), math.isnan),
    ],
    ids=["missed", "invented", "absent"],
)
def test_absent_classes(found: np.ndarray, truth: np.ndarray, agrees: Callable[[float], bool]):
    value = distances((one_hot(plane(0, 12), found), one_hot(plane(0, 12), truth)))[0]
    assert value[0] == 0
    assert agrees(value[1])
    assert not value[1] < 0


def test_label_without_affine_is_refused():
    truth = one_hot(plane(0, 2))
    with pytest.raises(ValueError, match="no affine to read a spacing from"):
        run((truth, truth.as_tensor()))
