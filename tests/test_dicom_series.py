"""DICOM series: evenly stacked slices, in the order of positions whatever files are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import OBLIQUE
from other_formats import write_enhanced, write_series

from med3d_nets.dicom_series import read_series
from med3d_nets.errors import Med3dError

pytest.importorskip("pydicom")

Array = np.ndarray[Any, Any]
SPACING = float(np.linalg.norm(OBLIQUE[:3, 2]))


def hounsfield(shape: tuple[int, ...] = (3, 4, 6)) -> Array:
    return np.random.RandomState(0).randint(-1000, 1000, shape).astype(np.int16)


def message(folder: Path) -> str:
    with pytest.raises(Med3dError) as caught:
        read_series(str(folder))
    assert str(caught.value).startswith(str(folder))
    return str(caught.value)


def shift(header: Any, way: Array) -> None:
    """Move a slice by mm in the patient's LPS axes."""
    header.ImagePositionPatient = [f"{a + b:.6f}" for a, b in zip(header.ImagePositionPatient, way, strict=True)]


def test_order_is_that_of_positions(tmp_path: Path) -> None:
    def renumber(index: int, header: Any) -> None:
        header.InstanceNumber = (5 * index) % 6

    write_series(tmp_path, hounsfield(), OBLIQUE, name=lambda index: f"{(7 - 3 * index) % 11}", change=renumber)
    found = read_series(str(tmp_path))
    assert [Path(path).name for path in found.files] == [f"{(7 - 3 * index) % 11}" for index in range(6)]
    np.testing.assert_allclose(found.affine, OBLIQUE, atol=1e-6)
    assert (found.shape, found.frames) == ((3, 4, 6), ())


def test_a_missing_slice_is_named_by_its_neighbours(tmp_path: Path) -> None:
    write_series(tmp_path, hounsfield(), OBLIQUE)
    (tmp_path / "IM002").unlink()
    text = message(tmp_path)
    assert "found slices at uneven positions" in text
    for index in (1, 3):
        place = ", ".join(f"{mm:.6g}" for mm in (OBLIQUE @ [0, 0, index, 1])[:3] * [-1, -1, 1])
        assert f"IM{index:03} at ({place})" in text
    assert f"{2 * SPACING:.4g} mm from IM001" in text
    assert f"expected {SPACING:.4g} mm between all 5" in text
    assert "IM000" not in text


@pytest.mark.parametrize("index", [0, 1, 4, 5])
def test_slices_missing_at_either_end(tmp_path: Path, index: int) -> None:
    write_series(tmp_path, hounsfield(), OBLIQUE)
    (tmp_path / f"IM{index:03}").unlink()
    if index in (0, 5):
        assert len(read_series(str(tmp_path)).files) == 5  # nobody can tell
    else:
        assert "uneven" in message(tmp_path)


def test_a_slice_that_is_there_twice(tmp_path: Path) -> None:
    write_series(tmp_path, hounsfield(), OBLIQUE)
    write_series(tmp_path, hounsfield((3, 4, 3)), OBLIQUE, name="again{}".format)
    assert "0 mm from IM000 at (" in message(tmp_path)


def test_slices_at_one_place(tmp_path: Path) -> None:
    def stay(_: int, header: Any) -> None:
        header.ImagePositionPatient = [0, 0, 0]

    assert "0 mm from IM000" in message(write_series(tmp_path, hounsfield(), OBLIQUE, change=stay))


@pytest.mark.parametrize("spacing", [0.04, 0.3, 2.0, 15.0])
def test_any_distance_of_slices(tmp_path: Path, spacing: float) -> None:
    write_series(tmp_path, hounsfield(), np.diag([1, 1, spacing, 1]))
    assert len(read_series(str(tmp_path)).files) == 6
    (tmp_path / "IM003").unlink()
    assert "uneven" in message(tmp_path)


def test_rounded_positions_are_even(tmp_path: Path) -> None:
    def round_off(_: int, header: Any) -> None:
        header.ImagePositionPatient = [f"{float(mm):.1f}" for mm in header.ImagePositionPatient]

    affine = np.diag([0.7, 0.7, 0.625, 1])
    assert len(read_series(str(write_series(tmp_path, hounsfield(), affine, change=round_off))).files) == 6


def test_a_tilted_gantry(tmp_path: Path) -> None:
    write_series(tmp_path, hounsfield(), np.eye(4), change=lambda index, header: shift(header, np.array([0, index, 0])))
    assert "shifted against each other by 5 mm over 5 mm, as by a tilted gantry" in message(tmp_path)


def test_drifting_positions(tmp_path: Path) -> None:
    """No two slices are far from the usual distance, and yet the middle is a slice off its place."""
    slices = np.cumsum([0, *[4.7] * 20, *[5.3] * 20])
    write_series(
        tmp_path,
        hounsfield((3, 4, 41)),
        np.diag([1, 1, 0.001, 1]),
        change=lambda index, header: shift(header, np.array([0, 0, slices[index]])),
    )
    assert "uneven" in message(tmp_path)


def test_slices_of_several_directions(tmp_path: Path) -> None:
    def turn(index: int, header: Any) -> None:
        if index == 3:
            header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]

    write_series(tmp_path, hounsfield(), OBLIQUE, change=turn)
    text = message(tmp_path)
    assert text.startswith(f"{tmp_path}/IM003: found slices of another direction, [1.0, 0.0, 0.0")
    assert f"that of {tmp_path}/IM000" in text


def test_slices_of_several_sizes(tmp_path: Path) -> None:
    write_series(
        tmp_path, hounsfield(), OBLIQUE, change=lambda index, header: setattr(header, "Rows", 4 + (index == 2))
    )
    assert "IM002: found 3 x 5 pixels of" in message(tmp_path)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 0, 5, 1, 4, 3]])
def test_frames_of_one_file(tmp_path: Path, order: list[int]) -> None:
    path = write_enhanced(tmp_path / "frames", hounsfield(), OBLIQUE, order)
    found = read_series(str(path))
    assert (found.files, found.shape) == ([str(path)], (3, 4, 6))
    assert [order[frame] for frame in found.frames] == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(found.affine, OBLIQUE, atol=1e-6)
    assert read_series(str(tmp_path)).files == [str(path)]


def test_a_frame_that_is_missing(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "frames", hounsfield(), OBLIQUE, [0, 1, 3, 4, 5])
    assert f"{2 * SPACING:.4g} mm from frames, frame 2 at (" in message(path)


def test_frames_of_several_files(tmp_path: Path) -> None:
    for name, order in (("a", [0, 1, 2]), ("b", [3, 4, 5])):
        write_enhanced(tmp_path / name, hounsfield(), OBLIQUE, order)
    assert "found 6 frames in 2 files; expected a file for each slice" in message(tmp_path)


def test_frames_without_positions(tmp_path: Path) -> None:
    write_series(tmp_path, hounsfield(), OBLIQUE, change=lambda _, header: setattr(header, "NumberOfFrames", "4"))
    assert "IM000, frame 1: found no ImagePositionPatient and no ImageOrientationPatient" in message(tmp_path)


def test_one_slice_is_as_thick_as_it_says(tmp_path: Path) -> None:
    write_series(
        tmp_path, hounsfield((3, 4, 1)), OBLIQUE, change=lambda _, header: setattr(header, "SliceThickness", "2.5")
    )
    found = read_series(str(tmp_path)).affine
    np.testing.assert_allclose(found[:, :2], OBLIQUE[:, :2], atol=1e-6)
    assert np.linalg.norm(found[:3, 2]) == pytest.approx(2.5)


def test_a_file_without_a_position(tmp_path: Path) -> None:
    def forget(index: int, header: Any) -> None:
        if index == 1:
            del header.ImagePositionPatient

    write_series(tmp_path, hounsfield(), OBLIQUE, change=forget)
    assert "IM001: found no ImagePositionPatient; expected" in message(tmp_path)
