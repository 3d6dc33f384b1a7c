"""Boxes of masks and around centres, on oblique grids too."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import OBLIQUE

from med3d_nets.classification.regions import box_around, box_of_mask, outside

SHAPE = (20, 30, 25)
SPACING = (2.5, 0.8, 1.1)  # of OBLIQUE


def world(*voxel: float) -> list[float]:
    return (OBLIQUE[:3, :3] @ np.array(voxel) + OBLIQUE[:3, 3]).tolist()


def test_box_of_a_mask() -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:9, 10, 1:24] = 255
    assert box_of_mask(mask, OBLIQUE, 0.0) == ([5, 10, 1], [9, 11, 24])
    # 4 mm: 1.6, 5 and 3.6 voxels, of which the last goes beyond the volume
    assert box_of_mask(mask, OBLIQUE, 4.0) == ([3, 5, 0], [11, 16, 25])


def test_box_around_a_centre() -> None:
    center = world(9.5, 14.6, 12.2)
    # 5 mm: 2, 6.25 and 4.5 voxels
    assert box_around(center, 5.0, (SHAPE, OBLIQUE)) == ([9, 12, 10], [11, 18, 15])
    # and 2.6 mm more on each side: 4.1, 12.8 and 9.3 voxels
    assert box_around(center, 5.0, (SHAPE, OBLIQUE), 2.6) == ([8, 9, 8], [12, 22, 17])


@pytest.mark.parametrize("voxel", [(-0.4, -0.4, -0.4), (19.4, 29.4, 24.4), (10, 0, 24)])
def test_box_at_the_edge_holds_the_centre(voxel: tuple[float, ...]) -> None:
    for size in (0.01, 4.0, 1000.0):
        start, end = box_around(world(*voxel), size, (SHAPE, OBLIQUE))
        for first, last, place, length in zip(start, end, voxel, SHAPE, strict=True):
            assert 0 <= first <= round(place) < last <= length
    assert (start, end) == ([0, 0, 0], list(SHAPE))


def test_size_is_the_same_wherever_the_centre_lies() -> None:
    sizes = set()
    for offset in np.linspace(0, 1, 13):
        start, end = box_around([10 + offset] * 3, 7.0, ((40, 40, 40), np.eye(4)))
        sizes.add(tuple(np.subtract(end, start)))
    assert sizes == {(7, 7, 7)}


def test_centre_outside() -> None:
    grid = SHAPE, OBLIQUE
    for voxel in ((-0.49, 0, 0), (19.49, 29.49, 24.49), (3, 29, 0)):
        assert outside("a.nii", world(*voxel), grid) == ""
    for voxel in ((-0.51, 0, 0), (19.51, 0, 0), (3, 30, 0), (3, 0, -1)):
        assert "a.nii: found centre" in outside("a.nii", world(*voxel), grid)
    text = outside("a.nii", [7.0, -1.0, 0.0], ((6, 4, 4), np.diag([-1.0, 2.0, 3.0, 1.0])))
    assert "(7.0, -1.0, 0.0) mm, voxel (-7.0, -0.5, 0.0) of (6, 4, 4)" in text
    assert "x -5.5 to 0.5, y -1.0 to 7.0, z -1.5 to 10.5 mm" in text


def test_affine_without_three_directions() -> None:
    assert "three directions" in outside("a.nii", [0.0, 0.0, 0.0], (SHAPE, np.diag([1.0, 0.0, 1.0, 1.0])))
