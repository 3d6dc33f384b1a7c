"""Grids of DICOM frames, and labels on a part of a grid with axes in any order and direction."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from conftest import OBLIQUE

from med3d_nets.dicom_planes import Planes, place_on_grid, stack_planes
from med3d_nets.errors import Med3dError

Array = np.ndarray[Any, Any]
SHAPE = (5, 6, 7)
TURNS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


def some_labels() -> Array:
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:4, 2:5, 3:6] = np.random.RandomState(0).randint(1, 4, (3, 3, 3))
    return labels


def turned(labels: Array, affine: Array, order: tuple[int, ...], signs: tuple[int, ...]) -> tuple[Array, Array]:
    """The same voxels in space, with axes in another order and direction."""
    moved = np.eye(4)
    for axis, (old, sign) in enumerate(zip(order, signs, strict=True)):
        moved[:3, axis] = 0
        moved[old, axis] = sign
        moved[old, 3] = 0 if sign > 0 else labels.shape[old] - 1
    return labels.transpose(order)[tuple(slice(None, None, sign) for sign in signs)], affine @ moved


def cut(labels: Array, affine: Array, box: tuple[slice, ...]) -> tuple[Array, Array]:
    moved = np.eye(4)
    moved[:3, 3] = [part.start for part in box]
    return labels[box], affine @ moved


def message(affine: Array, labels: Array | None = None) -> str:
    with pytest.raises(Med3dError) as caught:
        place_on_grid("some.dcm", some_labels() if labels is None else labels, affine, SHAPE, OBLIQUE)
    assert str(caught.value).startswith("some.dcm: found ")
    assert "; expected " in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("order", "signs"), TURNS)
def test_all_turns_of_a_part(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    part, affine = cut(some_labels(), OBLIQUE, (slice(1, 4), slice(2, 6), slice(3, 6)))
    part, affine = turned(part, affine, order, signs)
    placed = place_on_grid("some.dcm", part, affine, SHAPE, OBLIQUE)
    np.testing.assert_array_equal(placed, some_labels())
    assert placed.dtype == part.dtype


@pytest.mark.parametrize(("order", "signs"), TURNS)
def test_all_turns_of_a_grid_that_is_larger(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    larger = np.pad(some_labels(), ((1, 2), (3, 0), (0, 4)))
    moved = np.eye(4)
    moved[:3, 3] = [-1, -3, 0]
    larger, affine = turned(larger, OBLIQUE @ moved, order, signs)
    np.testing.assert_array_equal(place_on_grid("some.dcm", larger, affine, SHAPE, OBLIQUE), some_labels())


def test_labels_outside_of_the_image() -> None:
    moved = np.eye(4)
    moved[0, 3] = 3  # boxes at 1 to 3 of 5 come to 4 to 6
    text = message(OBLIQUE @ moved)
    assert "found 18 of 27 labelled voxels outside of the image; expected all within its (5, 6, 7) voxels" in text
    moved[0, 3] = -6
    assert "found 27 of 27" in message(OBLIQUE @ moved)
    empty = np.zeros_like(some_labels())
    assert not place_on_grid("some.dcm", empty, OBLIQUE @ moved, SHAPE, OBLIQUE).any()


def test_other_grids_are_told_apart() -> None:
    stretched = OBLIQUE @ np.diag([1, 1.2, 1, 1])
    assert "of another spacing, affine" in message(stretched)
    shifted = OBLIQUE.copy()
    shifted[:3, 3] += 0.5 * OBLIQUE[:3, 1]
    assert "of another origin, affine" in message(shifted)
    assert "(off by 0.5 voxels, tolerance 0.1" in message(shifted)
    angle = np.deg2rad(8)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    assert "direction" in message(np.block([[turn @ OBLIQUE[:3, :3], OBLIQUE[:3, 3:]], [OBLIQUE[3:]]]))
    diagonal = np.eye(4)
    diagonal[:3, :2] = [[1, 1], [1, 1.1], [0, 0]]  # both nearest to one axis
    assert "direction" in message(OBLIQUE @ diagonal)


@pytest.mark.parametrize(
    ("spacing", "off", "fits"),
    [(2, 0.19, True), (2, 0.21, False), (0.5, 0.09, True), (0.5, 0.11, False), (0.1, 0.039, True), (0.1, 0.041, False)],
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_tolerance(spacing: float, off: float, fits: bool, axis: int) -> None:
    image = np.diag([spacing, spacing, spacing, 1.0])
    affine = image.copy()
    affine[axis, 3] = off + 2 * spacing
    labels = np.ones((2, 2, 2), np.uint8)
    if fits:
        expected = np.zeros((4, 4, 4), np.uint8)
        expected[tuple(slice(2, 4) if each == axis else slice(0, 2) for each in range(3))] = 1
        np.testing.assert_array_equal(place_on_grid("", labels, affine, (4, 4, 4), image), expected)
    else:
        with pytest.raises(Med3dError, match="another origin"):
            place_on_grid("", labels, affine, (4, 4, 4), image)


def test_a_spacing_that_is_rounded() -> None:
    """That of a hundred voxels may be off by less than that of ten."""
    image = np.diag([0.9765625, 0.9765625, 2.0, 1.0])
    rounded = np.diag([0.977, 0.9766, 2.0, 1.0])
    for length, fits in ((200, True), (400, False)):
        labels = np.ones((length, 4, 2), np.uint8)
        if fits:
            assert place_on_grid("", labels, rounded, labels.shape, image).all()
        else:
            with pytest.raises(Med3dError, match="another spacing, affine"):
                place_on_grid("", labels, rounded, labels.shape, image)


def test_one_slice_fits_whatever_its_distance() -> None:
    part, affine = cut(some_labels(), OBLIQUE, (slice(0, 5), slice(0, 6), slice(4, 5)))
    affine[:3, 2] *= 3.3
    placed = place_on_grid("some.dcm", part, affine, SHAPE, OBLIQUE)
    np.testing.assert_array_equal(placed[:, :, 4], some_labels()[:, :, 4])
    assert not np.delete(placed, 4, axis=2).any()


def planes(distances: Any, spacing: float = 0, thickness: float = 0, **moved: Any) -> Planes:
    """Of the slices of OBLIQUE, at distances along its normal."""
    lps = np.diag([-1, -1, 1]) @ OBLIQUE[:3]
    normal = lps[:, 2] / np.linalg.norm(lps[:, 2])
    places = lps[:, 3] + np.asarray(distances, float)[:, None] * normal
    for name, way in moved.items():
        places[int(name[1:])] += way
    return Planes(places, lps[:, 0], lps[:, 1], spacing, thickness)


def uneven(given: Planes, whole: bool) -> str:
    with pytest.raises(Med3dError) as caught:
        stack_planes("some.dcm", given, whole)
    assert str(caught.value).startswith("some.dcm: found frames at uneven positions, ")
    return str(caught.value)


def test_places_in_any_order() -> None:
    distances = np.array([3, 0, 2, 1]) * np.linalg.norm(OBLIQUE[:3, 2])
    index, affine = stack_planes("", planes(distances), whole=True)
    assert index.tolist() == [3, 0, 2, 1]
    np.testing.assert_allclose(affine, OBLIQUE, atol=1e-9)


@pytest.mark.parametrize(
    ("distances", "spacing", "expected"),
    [
        ([0, 4, 4, 6], 2, [0, 2, 2, 3]),  # two frames of a slice
        ([0, 4, 8], 2, [0, 2, 4]),  # every other slice
        ([0, 4, 8], 0, [0, 1, 2]),  # nobody can tell
        ([0, 4, 8, 10], 0, [0, 2, 4, 5]),  # the smallest distance
        ([0, 3, 6], 2, [0, 1, 2]),  # a header that is wrong
        ([0, 4, 4.0004, 8], 0, [0, 1, 1, 2]),  # of one slice but for rounding
        ([0, 70.3, 105.45], 0.7, [0, 100, 150]),  # a header that is rounded, of 0.703
        ([0, 0.6, 1.3, 1.9, 2.5], 0.625, [0, 1, 2, 3, 4]),  # positions that are rounded
        ([0, 0.3, 0.5, 0.8, 1.0], 0.25, [0, 1, 2, 3, 4]),
    ],
)
def test_places_of_a_part(distances: list[float], spacing: float, expected: list[int]) -> None:
    index, affine = stack_planes("", planes(distances, spacing), whole=False)
    assert index.tolist() == expected
    assert np.linalg.norm(affine[:3, 2]) == pytest.approx(distances[-1] / expected[-1])


@pytest.mark.parametrize(("spacing", "thickness", "expected"), [(2.5, 4, 2.5), (0, 4, 4), (0, 0, 1)])
def test_one_place(spacing: float, thickness: float, expected: float) -> None:
    index, affine = stack_planes("", planes([3, 3], spacing, thickness), whole=False)
    assert index.tolist() == [0, 0]
    assert np.linalg.norm(affine[:3, 2]) == pytest.approx(expected)


def test_uneven_places() -> None:
    text = uneven(planes([0, 2, 4.8, 6], 2), whole=False)
    assert "positions, 1.2, 2, 2.8 mm from one to the next along their normal; expected multiples of one" in text
    assert "0, 2 mm" in uneven(planes([0, 2, 2, 4]), whole=True)
    assert "2, 4 mm" in uneven(planes([0, 2, 4, 8, 10]), whole=True)
    across = planes([0, 2, 4], m1=0.3 * np.array([0, 0, 1]))
    assert "positions, 2 mm from one to the next along their normal; expected" in uneven(across, whole=False)
