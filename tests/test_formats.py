"""Volumes in every format are the same volume: voxels, and affine in RAS+ mm."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from conftest import OBLIQUE
from other_formats import write_metaimage, write_nrrd, write_series

from med3d_nets.checks import read_volume
from med3d_nets.errors import Med3dError
from med3d_nets.formats import images_of, is_other_format, read_other_format
from med3d_nets.volume_reader import VolumeReader

pytest.importorskip("itk")
pytest.importorskip("pydicom")

Array = np.ndarray[Any, Any]
SHAPE = (5, 6, 7)


def write_nifti(path: Path, voxels: Array, affine: Array) -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


WRITERS: dict[str, Callable[..., Path]] = {
    "a.nii": write_nifti,
    "a.nii.gz": write_nifti,
    "a.mha": write_metaimage,
    "a.mhd": write_metaimage,
    "a.nrrd": write_nrrd,
    "ras.nrrd": partial(write_nrrd, space="right-anterior-superior"),
    "las.seg.nrrd": partial(write_nrrd, space="left-anterior-superior"),
    "1.2.840.5": write_series,
}


def hounsfield(shape: tuple[int, ...] = SHAPE, dtype: str = "int16") -> Array:
    return np.random.RandomState(0).randint(-1000, 1000, shape).astype(dtype)


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_volume_in_each_format(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name, hounsfield(), OBLIQUE)
    problems: list[str] = []
    found = read_volume(str(path), problems)
    assert found is not None, problems
    loaded, meta = VolumeReader().get_data([str(path)])
    for voxels in (found[0], loaded):
        np.testing.assert_array_equal(voxels, hounsfield())
    for affine in (found[1], meta["affine"], meta["original_affine"]):
        np.testing.assert_allclose(affine, OBLIQUE, atol=1e-5)
    assert tuple(meta["spatial_shape"]) == SHAPE
    assert meta["space"] == "RAS"


@pytest.mark.parametrize("writer", [write_metaimage, write_nrrd])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "float32", "float64"])
def test_types_that_itk_has_not_are_read_all_the_same(tmp_path: Path, writer: Callable[..., Path], dtype: str) -> None:
    voxels = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)
    path = writer(tmp_path / ("a.mha" if writer is write_metaimage else "a.nrrd"), voxels, OBLIQUE)
    found, meta = read_other_format(str(path))
    np.testing.assert_array_equal(found, voxels)
    np.testing.assert_allclose(meta["affine"], OBLIQUE, atol=1e-6)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_channels_in_one_file_come_last(tmp_path: Path, dtype: str) -> None:
    voxels = hounsfield((*SHAPE, 5), dtype)
    found, meta = read_other_format(str(write_metaimage(tmp_path / "a.mha", voxels, OBLIQUE)))
    np.testing.assert_array_equal(found, voxels)
    assert tuple(meta["spatial_shape"]) == SHAPE
    assert meta["original_channel_dim"] == -1


def test_floating_point_is_of_single_precision(tmp_path: Path) -> None:
    path = write_metaimage(tmp_path / "a.mha", hounsfield(dtype="float64"), OBLIQUE)
    found = read_volume(str(path), [])
    assert found is not None
    assert found[0].dtype == np.float32


def test_nothing_else_of_a_header_is_kept(tmp_path: Path) -> None:
    _, meta = read_other_format(str(write_series(tmp_path / "a", hounsfield((5, 6, 1)), OBLIQUE)))
    assert set(map(str, meta)) == {"affine", "original_affine", "original_channel_dim", "space", "spatial_shape"}


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = WRITERS[name](tmp_path / name, hounsfield(), OBLIQUE)
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    problems: list[str] = []
    assert read_volume(str(path), problems) is None
    (problem,) = problems
    assert problem.startswith(f"{path}: found an unreadable file (")
    assert "\n" not in problem
    assert f"expected a whole {path.suffix} file" in problem


def test_a_missing_file_is_that(tmp_path: Path) -> None:
    problems: list[str] = []
    assert read_volume(str(tmp_path / "a.mha"), problems) is None
    assert "found no such file; expected a NIfTI, .mha, .mhd, .nrrd file, a folder of" in problems[0]


@pytest.mark.parametrize(("name", "package"), [("a.mha", "itk"), ("1.2.3", "pydicom")])
def test_a_missing_package_is_named_with_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    path = WRITERS["a.mha" if name == "a.mha" else "1.2.840.5"](tmp_path / name, hounsfield(), OBLIQUE)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(f"monai.data.image_reader.has_{package}", False)
    with pytest.raises(
        Med3dError, match=r"expected itk-io, pydicom and highdicom, by pip install 'med3d-nets\[formats\]'"
    ) as caught:
        read_other_format(str(path))
    assert str(caught.value).startswith(f"{path}: ")


def test_what_is_of_another_format(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    series = write_series(tmp_path / "series", hounsfield((5, 6, 1)), OBLIQUE)
    assert [is_other_format(str(tmp_path / name)) for name in ("A.MHA", "a.nii.gz", "empty")] == [True, False, False]
    assert is_other_format(str(series))


def test_images_of_a_case() -> None:
    assert images_of({"image": "a.nii"}) == ["a.nii"]
    assert images_of({"image": [Path("a.nii"), "b.nii"]}) == ["a.nii", "b.nii"]
