"""Sizes, places and intensities of structures."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from conftest import OBLIQUE
from predicted import cube

from med3d_nets.structures import COLUMNS, INTENSITY, PLACES, measure_structures, to_csv, to_json

NAMES = ["background", "liver", "cyst, small", "nothing"]
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 0, 3, -5], [0, 0.5, 0, 100], [0, 0, 0, 1]])


def image(shape: tuple[int, ...] = (6, 7, 8)) -> np.ndarray:
    return np.random.RandomState(0).randint(-1000, 1000, shape).astype(np.int16)


def test_counts_volumes_and_components() -> None:
    found = measure_structures(cube(), image(), AFFINE, NAMES)
    assert [row["label"] for row in found] == [1, 2, 3]
    assert [row["structure"] for row in found] == NAMES[1:]
    assert [row["voxels"] for row in found] == [9, 1, 0]
    assert [row["volume_ml"] for row in found] == [0.027, 0.003, 0.0]  # 3 mm³ a voxel
    assert [row["components"] for row in found] == [1, 1, 0]  # a corner connects


def test_components_that_do_not_touch() -> None:
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[0, 0, 0] = labels[2, 0, 0] = labels[4, 4, 4] = 1
    assert measure_structures(labels, image((5, 5, 5)), np.eye(4), NAMES[:2])[0]["components"] == 3


def test_the_box_is_of_whole_voxels_on_the_grid_and_in_mm() -> None:
    row = measure_structures(cube(), image(), AFFINE, NAMES)[0]
    assert (row["first_voxel"], row["last_voxel"]) == ([1, 2, 3], [3, 4, 5])
    # x falls from 10 by 2 a voxel, y rises with k, z with j; half a voxel around.
    assert row["min_mm"] == [10 - 2 * 3.5, -5 + 3 * 2.5, 100 + 0.5 * 1.5]
    assert row["max_mm"] == [10 - 2 * 0.5, -5 + 3 * 5.5, 100 + 0.5 * 4.5]


@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE], ids=["straight", "oblique"])
def test_the_centre_is_the_mean_of_the_voxels_places(affine: np.ndarray) -> None:
    row = measure_structures(cube(), image(), affine, NAMES)[0]
    voxels = np.argwhere(cube() == 1)
    expected = (voxels @ affine[:3, :3].T + affine[:3, 3]).mean(axis=0)
    np.testing.assert_allclose(row["centre_mm"], expected, atol=6e-4)
    corners = (voxels[:, None] + np.indices((2, 2, 2)).reshape(3, -1).T - 0.5) @ affine[:3, :3].T + affine[:3, 3]
    assert (corners.min(axis=(0, 1)) >= np.array(row["min_mm"]) - 1e-3).all()
    assert (corners.max(axis=(0, 1)) <= np.array(row["max_mm"]) + 1e-3).all()


@pytest.mark.parametrize("kind", ["int16", ">i2", "uint16", "float32", "float64"])
def test_intensities_are_those_of_numpy(kind: str) -> None:
    scan = np.abs(image()).astype(kind)
    before = scan.copy()
    row = measure_structures(cube(), scan, AFFINE, NAMES)[0]
    values = scan[cube() == 1].astype(float)
    percentiles = np.percentile(values, [5, 50, 95])
    expected = [values.mean(), values.std(), values.min(), *percentiles, values.max()]
    np.testing.assert_allclose([row[name] for name in INTENSITY], expected, rtol=1e-5)
    np.testing.assert_array_equal(scan, before)


def test_the_first_of_several_channels_counts() -> None:
    scan = image()
    both = np.stack([scan, scan + 500], axis=-1)
    assert measure_structures(cube(), both, AFFINE, NAMES) == measure_structures(cube(), scan, AFFINE, NAMES)


def test_a_spread_far_from_zero_is_exact() -> None:
    labels = np.ones((10, 10, 10), np.uint8)
    scan = (30_000 + np.arange(1000).reshape(10, 10, 10) % 3).astype(np.int16)
    row = measure_structures(labels, scan, np.eye(4), NAMES[:2])[0]
    assert row["sd"] == pytest.approx(scan.std(), rel=1e-4)


def test_an_empty_structure_has_sizes_of_zero_and_nothing_else() -> None:
    row = measure_structures(cube(), image(), AFFINE, NAMES)[2]
    assert all(row[name] is None for name in (*PLACES, *INTENSITY))
    one = measure_structures(np.zeros((3, 3, 3), np.uint8), image((3, 3, 3)), AFFINE, NAMES)
    assert [(row["voxels"], row["volume_ml"], row["mean"]) for row in one] == [(0, 0.0, None)] * 3


def test_tables_say_the_same() -> None:
    structures = measure_structures(cube(), image(), AFFINE, NAMES)
    record = {"case": "a/b", "image": "/data/a/b.nii.gz", "label_map": "a/b_seg.nii.gz", "structures": structures}
    rows = list(csv.DictReader(io.StringIO(to_csv([record, {**record, "case": "c"}]), newline="")))
    assert [(row["case"], row["structure"]) for row in rows] == [
        (case, name) for case in ("a/b", "c") for name in NAMES[1:]
    ]
    assert tuple(rows[0]) == COLUMNS
    assert [float(rows[0][f"centre_mm_{axis}"]) for axis in "xyz"] == structures[0]["centre_mm"]
    assert [int(rows[0][f"last_voxel_{axis}"]) for axis in "ijk"] == structures[0]["last_voxel"]
    assert (float(rows[0]["mean"]), rows[0]["image"]) == (structures[0]["mean"], "/data/a/b.nii.gz")
    assert (rows[2]["volume_ml"], rows[2]["voxels"], rows[2]["mean"], rows[2]["min_mm_x"]) == ("0.0", "0", "", "")
    assert json.loads(to_json([record]))["cases"][0]["structures"] == structures
