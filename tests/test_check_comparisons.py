"""What only several cases together show: outliers and sides that may be swapped, from numbers alone."""

from __future__ import annotations

import math
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from med3d_nets.checking.measures import SIDES, Geometry, foreground_box, measure_image, measure_label
from med3d_nets.checking.outliers import find_outliers, rule
from med3d_nets.checking.pictures import PictureStore, axial, middle
from med3d_nets.checking.sides import agreement, mirrored

Array = np.ndarray[Any, Any]


def halves(*factors: float, noise: float = 0.3) -> list[Array | None]:
    """Differences of right and left that are one pattern times a factor, with noise; none for a factor of NaN."""
    random = np.random.RandomState(0)
    pattern = random.normal(size=SIDES)
    made = [factor * pattern + noise * random.normal(size=SIDES) for factor in factors]
    return [None if np.isnan(half).any() else half.astype(np.float16) for half in made]


# Outliers


def test_a_value_far_away_is_an_outlier() -> None:
    values = [*np.linspace(9, 11, 20), 30.0]
    (found,) = find_outliers(values)
    assert (found.place, found.value, found.median) == (20, 30.0, pytest.approx(10.05, abs=0.02))
    assert found.low == pytest.approx(found.median**2 / found.high)
    assert found.distance > 1
    assert [outlier.place for outlier in find_outliers([*np.linspace(9, 11, 20), 3.0])] == [20]


def test_small_differences_are_none() -> None:
    """Where most values are the same the MAD is 0."""
    assert find_outliers([1.0] * 20 + [1.4]) == []
    assert len(find_outliers([1.0] * 20 + [1.6])) == 1
    assert find_outliers([5.0] * 20 + [5.9], margin=1) == []
    assert len(find_outliers([5.0] * 20 + [6.1, -7], margin=1)) == 2


def test_what_cannot_be_compared_is_left_out() -> None:
    assert find_outliers([1.0] * 8 + [50.0]) == []  # too few
    assert find_outliers([1.0] * 9 + [math.nan] * 9 + [50.0]) != []
    assert find_outliers([1.0] * 8 + [0.0, -1.0, 50.0]) == []  # no logarithm
    assert find_outliers([math.nan] * 20, margin=1) == []
    assert find_outliers([]) == []


def test_the_rule_names_its_numbers() -> None:
    assert all(part in rule() for part in ("5 robust", "1.4826", "10 cases", "1.5 times", "25%"))


# Right and left


def test_a_case_that_lies_the_other_way_is_found() -> None:
    sides = halves(*[1] * 9, -1)
    values = agreement(sides)
    assert (values[:9] > 0.5).all()
    assert values[9] < -0.5
    found = mirrored([True] * 10, sides, [None] * 10)
    assert list(found) == [9]
    assert "image (correlation -0." in found[9]
    assert "lies mirrored" in found[9]


def test_organs_on_either_side_tell_nothing() -> None:
    assert np.isnan(agreement(halves(*[1, -1] * 5))).all()
    assert mirrored([True] * 10, halves(*[1, -1] * 5), [None] * 10) == {}
    assert np.isnan(agreement(halves(*[0] * 10, noise=1))).all()
    assert np.isnan(agreement(halves(*[1] * 5))).all()  # too few


def test_cases_without_a_difference_are_left_out() -> None:
    values = agreement([*halves(*[1] * 9, math.nan), np.zeros(SIDES, np.float16)])
    assert np.isnan(values).tolist() == [False] * 9 + [True] * 2
    assert np.isnan(agreement([])).all()


def test_handedness_counts_where_content_tells_nothing() -> None:
    hands = [True] * 9 + [False]
    unknown = [None] * 10
    assert mirrored(hands, unknown, unknown) == {
        9: "its affine has a negative determinant, unlike that of 9 of 10 cases"
    }
    assert mirrored([not hand for hand in hands], unknown, unknown)[9].startswith("its affine has a positive")
    assert mirrored(hands, halves(*[1] * 10), unknown) == {}  # content is where it should be
    assert mirrored([True, False], [None] * 2, [None] * 2) == {}  # none is in the majority


def test_image_and_label_that_contradict_each_other_tell_nothing() -> None:
    right, swapped = halves(*[1] * 10), halves(*[1] * 9, -1)
    assert mirrored([True] * 10, swapped, right) == mirrored([True] * 10, right, swapped) == {}
    assert " and label (correlation " in mirrored([True] * 10, swapped, swapped)[9]


# Measures


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "PIL"])
def test_measures_do_not_depend_on_how_axes_are_stored(codes: str) -> None:
    random = np.random.RandomState(0)
    label = np.zeros((20, 24, 16), np.uint8)
    label[12:17, 3:9, 5:9] = 1
    label[2:4, 15:20, 8:12] = 2
    image = (random.normal(size=label.shape) + 5 * label).astype(np.float32)
    affine = np.diag([1.0, 0.5, 2.0, 1.0])
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
    stored = affine @ nib.orientations.inv_ornt_aff(turn, label.shape)
    counts = np.bincount(label.ravel())
    expected = measure_image(image, affine), measure_label(label, counts, affine)
    turned = [nib.apply_orientation(volume, turn) for volume in (image, label)]
    found = measure_image(turned[0], stored), measure_label(turned[1], counts, stored)
    for one, other in zip(found, expected, strict=True):
        assert one.geometry.codes == codes
        assert (
            (one.geometry.size, one.geometry.spacing)
            == ((20, 12, 32), (1, 0.5, 2))
            == (
                other.geometry.size,
                other.geometry.spacing,
            )
        )
        np.testing.assert_allclose(one.sides.astype(float), other.sides.astype(float), atol=2e-3)
    assert found[0].percentiles == pytest.approx(expected[0].percentiles)
    assert found[1].volumes == expected[1].volumes == {1: 0.12, 2: 0.04}
    assert found[1].voxels == {0: 7680 - 160, 1: 120, 2: 40}


def test_sides_tell_right_from_left() -> None:
    image = np.zeros((16, 16, 16), np.float32)
    image[12:] = 1
    affine = np.eye(4)
    sides = measure_image(image, affine).sides
    assert sides[0].mean() < -0.5  # the outermost part of the left less that of the right
    np.testing.assert_allclose(measure_image(image[::-1], affine).sides, -sides)
    assert not measure_image(image + image[::-1], affine).sides.any()


def test_handedness() -> None:
    assert Geometry.of((1, 1, 1), np.diag([-1.0, -1, 1, 1])).right_handed
    assert not Geometry.of((1, 1, 1), np.diag([-1.0, 1, 1, 1])).right_handed


def test_content_is_that_of_the_values() -> None:
    image = np.arange(60).reshape(3, 4, 5)
    content = measure_image(image.astype(np.int16), np.eye(4)).content
    assert measure_image(np.asfortranarray(image.astype(">f8")), 2 * np.eye(4)).content == content
    others = [image + 1, image.reshape(5, 4, 3), image[::-1], image / 2, image + 2**16, image + 2**17]
    found = [measure_image(other, np.eye(4)).content for other in others]
    assert len({content, *found}) == 1 + len(others)
    # Numbers that need more than 16 bits, or a fraction, are the same in every type too.
    for values, dtype in ((others[-1], np.int32), (others[-2], np.uint32), (others[-3], np.float32)):
        assert measure_image(values.astype(dtype), np.eye(4)).content in found
    assert measure_image(np.where(image, image, -0.0), np.eye(4)).content == content


def test_box_of_the_foreground() -> None:
    mask = np.zeros((5, 6, 7), bool)
    assert foreground_box(mask) is None
    mask[2, 1, 6] = mask[3, 4, 0] = True
    assert foreground_box(mask) == (slice(2, 4), slice(1, 5), slice(0, 7))


# Pictures


def test_axial_slices_have_the_right_at_the_left_and_the_front_at_the_top() -> None:
    volume = np.zeros((4, 5, 3), np.int16)
    volume[3, 4, 1] = 7  # right, front
    picture = axial(volume, 1)
    assert picture.shape == (5, 4)
    assert picture[0, 0] == 7


def test_middle_of_the_foreground() -> None:
    label = np.zeros((4, 4, 9), np.uint8)
    assert middle(label) is None
    label[0, 0, 2], label[:, :, 6] = 1, 1
    assert middle(label) == 6


def test_pictures_are_kept_by_number() -> None:
    with PictureStore() as store:
        numbers = [store.add(bytes([n]) * n) for n in (3, 1, 2)]
        assert [store.get(number) for number in reversed(numbers)] == [b"\2\2", b"\1", b"\3\3\3"]
        assert store.add(b"x") == 3
        assert store.get(3) == b"x"
