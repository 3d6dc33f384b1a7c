"""Hausdorff distance and surface Dice in mm, against computations by hand and a published implementation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import OBLIQUE
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers.ignite_metric import IgniteMetricHandler
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from med3d_nets import metrics
from med3d_nets.errors import Med3dError
from med3d_nets.metrics import HausdorffDistance95, SurfaceDice

SHAPE = (14, 18, 16)
SPACING = (2.5, 0.8, 1.1)  # of OBLIQUE

pytestmark = pytest.mark.filterwarnings("error")


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


def run(*cases: tuple[MetaTensor, MetaTensor], metric: IgniteMetricHandler | None = None) -> Engine:
    """An engine after an epoch of these cases, a batch each."""
    engine = Engine(lambda engine, batch: batch)
    engine.state.metric_details = {}
    (metric or HausdorffDistance95()).attach(engine, "value")
    engine.run([([found], [truth]) for found, truth in cases])
    return engine


def distances(*cases: tuple[MetaTensor, MetaTensor]) -> list[list[float]]:
    """Per case and foreground class."""
    return run(*cases).state.metric_details["value"].tolist()


def surface_dice(*cases: tuple[MetaTensor, MetaTensor], tolerance: object = 1.0) -> list[list[float]]:
    """Per case and foreground class."""
    return run(*cases, metric=SurfaceDice(tolerance=tolerance)).state.metric_details["value"].tolist()


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
    assert engine.state.metric_details["value"].flatten().tolist() == pytest.approx(expected, rel=1e-5)
    assert engine.state.metrics["value"] == pytest.approx(sum(expected) / 3, rel=1e-5)


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


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift", [2, 4, -3])
def test_surface_dice_of_parallel_plates(axis: int, shift: int):
    """Of two plates, the sides that face each other are a plate's thickness nearer than the sides that do not."""
    pair = (one_hot(plane(axis, 6 + shift)), one_hot(plane(axis, 6)))
    far, near = abs(shift) * SPACING[axis], (abs(shift) - 1) * SPACING[axis]
    expected = {far: 1.0, far - 0.01: 0.5, near: 0.5, near - 0.01: 0.0}  # a distance of just the tolerance is within
    for tolerance, share in expected.items():
        assert surface_dice(pair, tolerance=tolerance) == [[pytest.approx(share, abs=1e-6)]], tolerance


# Of surface-distance 0.1, the implementation of the paper's authors.
PUBLISHED = [
    (0, {0.5: 0.17044295849, 1.2: 0.30009574807, 2.5: 0.49108536751}),
    (1, {0.5: 0.29381389914, 1.2: 0.45403833188, 2.5: 0.66356679691}),
    (2, {0.5: 0.12936844533, 1.2: 0.24222754060, 2.5: 0.47360712268}),
]


@pytest.mark.parametrize(("seed", "expected"), PUBLISHED)
def test_surface_dice_of_irregular_shapes(seed: int, expected: dict[float, float]):
    pair = (one_hot(blob(seed)), one_hot(blob(seed + 10)))
    for tolerance, share in expected.items():
        assert surface_dice(pair, tolerance=tolerance) == [[pytest.approx(share, abs=1e-6)]]


def test_surface_dice_of_a_single_slice():
    mask = np.zeros((1, 12, 12), bool)
    mask[:, 3:8, 3:8] = True
    affine = np.diag([0.7, 0.7, 3.0, 1.0])
    same, moved = one_hot(mask, affine=affine), one_hot(np.roll(mask, 4, 2), affine=affine)
    assert surface_dice((same, same)) == [[1.0]]
    assert 0 < surface_dice((moved, same))[0][0] < 1


def test_surface_dice_is_the_mean_over_cases_and_their_classes():
    empty, full = np.zeros(SHAPE, bool), cube(3, 3, 3)
    engine = run(
        (one_hot(full, empty), one_hot(full, empty)),  # 1, absent
        (one_hot(empty, plane(0, 12)), one_hot(full, plane(0, 12))),  # 0, 1
        (one_hot(empty, empty), one_hot(empty, empty)),  # absent, absent
        metric=SurfaceDice(),
    )
    details = engine.state.metric_details["value"].tolist()
    assert details[0] == [1.0, pytest.approx(math.nan, nan_ok=True)]
    assert details[1] == [0.0, 1.0]
    assert all(map(math.isnan, details[2]))
    assert engine.state.metrics["value"] == pytest.approx((1.0 + 0.5) / 2)


def test_surface_dice_where_one_alone_has_the_class():
    empty, full = one_hot(np.zeros(SHAPE, bool)), one_hot(cube(3, 3, 3))
    assert surface_dice((empty, full), (full, empty)) == [[0.0], [0.0]]


def test_each_class_and_each_case_has_its_tolerance_and_spacing():
    found, truth = one_hot(plane(2, 3), plane(2, 8)), one_hot(plane(2, 5), plane(2, 10))  # both 2.2 mm apart
    assert surface_dice((found, truth), tolerance=[2.2, 2.1]) == [pytest.approx([1.0, 0.5])]
    assert surface_dice((found, truth), tolerance=2.2) == [pytest.approx([1.0, 1.0])]
    wide = (one_hot(plane(2, 3), affine=np.diag([1, 1, 3.0, 1])), one_hot(plane(2, 5), affine=np.diag([1, 1, 3.0, 1])))
    near = (one_hot(plane(2, 3), affine=np.eye(4)), one_hot(plane(2, 5), affine=np.eye(4)))
    assert surface_dice(wide, near, tolerance=2) == [[0.0], [1.0]]


def test_affine_in_single_precision_does_not_change_what_is_within():
    affine = np.diag([1.0000002, 1.0, 1.0, 1.0])
    pair = (one_hot(plane(0, 8), affine=affine), one_hot(plane(0, 7), affine=affine))
    assert surface_dice(pair, tolerance=1) == [[1.0]]


@pytest.mark.parametrize("tolerance", [-1, math.nan, math.inf, "1", "1,2", True, None, [], [1, "a"], {"a": 1}])
def test_wrong_tolerances_are_refused(tolerance: object):
    with pytest.raises(Med3dError, match=r"tolerance is .*, expected a number of mm, 0 or more, or a list"):
        SurfaceDice(tolerance=tolerance)


def test_tolerances_for_another_number_of_classes_are_refused():
    pair = (one_hot(plane(2, 3), plane(2, 8)),) * 2
    with pytest.raises(Med3dError, match=r"tolerance is \[1, 2, 3\], expected one number of mm, or 2, one for each"):
        surface_dice(pair, tolerance=[1, 2, 3])


def in_corner(seed: int) -> np.ndarray:
    """A small irregular mask in one corner of a large volume, up to its faces."""
    mask = np.zeros((40, 50, 45), bool)
    mask[:14, :18, -16:] = blob(seed)
    return mask


@pytest.mark.parametrize("seed", [0, 1])
def test_box_gives_what_the_whole_volume_gives(seed: int, monkeypatch: pytest.MonkeyPatch):
    masks = in_corner(seed), in_corner(seed + 10)
    shapes = []
    for name in ("compute_hausdorff_distance", "compute_surface_dice"):
        function = getattr(metrics, name)

        def spy(found: torch.Tensor, *rest: object, function: Callable = function, **options: object) -> torch.Tensor:
            shapes.append(tuple(found.shape))
            return function(found, *rest, **options)

        monkeypatch.setattr(metrics, name, spy)
    pair = tuple(map(one_hot, masks))
    found = distances(pair), surface_dice(pair)
    assert len(shapes) == 2
    for shape in shapes:
        assert all(size <= limit for size, limit in zip(shape, (1, 1, 15, 19, 17), strict=True))
    whole, spacing = [torch.from_numpy(mask)[None, None] for mask in masks], pair[1].pixdim.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        distance = compute_hausdorff_distance(*whole, include_background=True, percentile=95, spacing=spacing)
        share = compute_surface_dice(*whole, [1.0], include_background=True, spacing=spacing, use_subvoxels=True)
    assert found == ([[distance.item()]], [[share.item()]])


def test_prediction_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"have the shapes \(1, 2, 14, 18, 16\) and \(1, 3, 14, 18, 16\)"):
        run((one_hot(plane(0, 2)), one_hot(plane(0, 2), plane(0, 5))))
