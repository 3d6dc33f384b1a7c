"""Compressed volumes are read as nibabel reads them, whatever their type and scaling, and to their end."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from med3d_nets.checks import read_volume
from med3d_nets.volume_files import read_voxels

AFFINE = np.diag([-0.5, 2.0, 3.0, 1.0])
VOXELS = np.arange(-300, 4 * 5 * 6 * 5 - 300).reshape(4, 5, 30) * 7


def save(path: Path, dtype: str, slope: float = 1.0, inter: float = 0.0, kind: Any = nib.Nifti1Image) -> Path:
    """A file with voxels of a type and, in its header, their scaling."""
    volume = kind(VOXELS.astype(dtype), AFFINE)
    volume.header.set_data_dtype(dtype)
    if dtype.startswith(">"):
        volume = kind(VOXELS.astype(dtype), AFFINE, volume.header.as_byteswapped(">"))
    content = bytearray(volume.to_bytes())
    if (slope, inter) != (1, 0):
        content[112:120] = np.array([slope, inter], "<f4").tobytes()  # past nibabel, which would scale the voxels too
    path.write_bytes(gzip.compress(bytes(content)))
    return path


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "u1", "<i4", "<f4", "<f8", ">f4"])
@pytest.mark.parametrize("scaling", [(1, 0), (0.5, 0), (1, -1024), (2.5, 3)])
def test_as_nibabel_reads_them(tmp_path: Path, dtype: str, scaling: tuple[float, float]) -> None:
    path = save(tmp_path / "a.nii.gz", dtype, *scaling) if dtype[0] != ">" else save(tmp_path / "a.nii.gz", dtype)
    volume = nib.load(path)
    expected = np.asanyarray(volume.dataobj)
    found = read_voxels(str(path), volume)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    assert found.flags.f_contiguous


def test_other_kinds_of_nifti(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", "<i2", kind=nib.Nifti2Image)
    np.testing.assert_array_equal(read_voxels(str(path), nib.load(path)), VOXELS)
    # What stands between header and voxels.
    extended = nib.Nifti1Image(VOXELS.astype(np.int16), AFFINE)
    extended.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"text" * 40))
    nib.save(extended, path)
    np.testing.assert_array_equal(read_voxels(str(path), nib.load(path)), VOXELS)


def test_parts_and_padding_of_a_gzip_file(tmp_path: Path) -> None:
    content = nib.Nifti1Image(VOXELS.astype(np.int16), AFFINE).to_bytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]) + bytes(100))
    problems: list[str] = []
    found = read_volume(str(path), problems)
    assert problems == []
    assert found is not None
    np.testing.assert_array_equal(found[0], VOXELS)
    path.write_bytes(gzip.compress(content) + b"no gzip")
    assert read_volume(str(path), problems) is None
    assert "Not a gzipped file" in problems[0]


def test_nothing_is_held_twice(tmp_path: Path) -> None:
    path, size = tmp_path / "a.nii.gz", 64 * 64 * 64 * 2
    nib.save(nib.Nifti1Image(np.random.RandomState(0).randint(0, 999, (64, 64, 64)).astype(np.int16), AFFINE), path)
    volume = nib.load(path)
    tracemalloc.start()
    try:
        read_voxels(str(path), volume)
        assert tracemalloc.get_traced_memory()[1] < 1.6 * size
    finally:
        tracemalloc.stop()


def test_an_offset_that_is_a_lie_takes_no_memory(tmp_path: Path) -> None:
    content = bytearray(nib.Nifti1Image(VOXELS.astype(np.int16), AFFINE).to_bytes())
    content[108:112] = np.array(1e12, "<f4").tobytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(bytes(content)))
    problems: list[str] = []
    tracemalloc.start()
    try:
        assert read_volume(str(path), problems) is None
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert "a file of this size has" in problems[0]
