"""The reader that the configs give to LoadImaged: channels from several files, in any formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import OBLIQUE
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from other_formats import write_metaimage, write_series
from test_formats import SHAPE, hounsfield, write_nifti

from med3d_nets.errors import Med3dError

Array = np.ndarray[Any, Any]


def load(image: str | list[str]) -> Any:
    reader = "med3d_nets.volume_reader.VolumeReader"
    return Compose([LoadImaged("image", reader=reader), EnsureChannelFirstd("image")])({"image": image})["image"]


def problems_of(image: str | list[str]) -> list[str]:
    """Lines of the error, which MONAI wraps."""
    with pytest.raises(RuntimeError) as caught:
        load(image)
    assert isinstance(caught.value.__cause__, Med3dError)
    return str(caught.value.__cause__).splitlines()


def channels(folder: Path, second: Array = OBLIQUE) -> list[str]:
    voxels = hounsfield()
    paths = [
        write_nifti(folder / "a.nii.gz", voxels, OBLIQUE),
        write_nifti(folder / "b.nii", voxels[..., None] + np.int16(1), second),
        write_metaimage(folder / "c.mha", voxels + np.int16(2), OBLIQUE),
        write_series(folder / "d", voxels + np.int16(3), OBLIQUE),
    ]
    return list(map(str, paths))


def test_channels_of_every_format(tmp_path: Path) -> None:
    paths = channels(tmp_path)
    volume = load(paths)
    assert volume.shape == (4, *SHAPE)
    for index in range(4):
        np.testing.assert_array_equal(volume[index].numpy(), hounsfield() + index)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)
    assert volume.meta["filename_or_obj"] == paths[0]
    assert tuple(volume.meta["spatial_shape"]) == SHAPE


def test_affines_may_differ_by_rounding(tmp_path: Path) -> None:
    """MONAI's readers refuse 1e-6 mm beside a zero."""
    assert load(channels(tmp_path, OBLIQUE + 1e-4 * np.eye(4, k=3))[:2]).shape == (2, *SHAPE)


def test_one_file_is_as_monai_loads_it(tmp_path: Path) -> None:
    path = channels(tmp_path)[0]
    found, expected = load(path), Compose([LoadImaged("image"), EnsureChannelFirstd("image")])({"image": path})["image"]
    np.testing.assert_array_equal(found, expected)
    assert found.meta.keys() == expected.meta.keys()
    many = hounsfield((*SHAPE, 3))
    volume = load(str(write_nifti(tmp_path / "many.nii", many, OBLIQUE)))
    np.testing.assert_array_equal(volume, np.moveaxis(many, -1, 0))


def test_channels_on_other_grids_are_named(tmp_path: Path) -> None:
    paths = channels(tmp_path, OBLIQUE + 0.1 * np.eye(4, k=3))
    write_metaimage(Path(paths[2]), hounsfield((5, 6, 8)), OBLIQUE)
    lines = problems_of(paths[:3])
    assert [line.split(":")[0] for line in lines] == paths[1:3]
    assert "affine" in lines[0]
    assert "found spatial shape (5, 6, 8); expected (5, 6, 7)" in lines[1]


def test_a_file_of_several_channels_among_others(tmp_path: Path) -> None:
    paths = channels(tmp_path)
    write_nifti(Path(paths[1]), hounsfield((*SHAPE, 2)), OBLIQUE)
    (line,) = problems_of(paths)
    assert "b.nii: found shape (5, 6, 7, 2); expected one channel" in line


def test_other_readers_are_not_tried(tmp_path: Path) -> None:
    """MONAI's would take the first of two series."""
    write_series(tmp_path / "two", hounsfield(), OBLIQUE, "1.2.3")
    write_series(tmp_path / "two", hounsfield(), OBLIQUE, "1.2.4", "other{}".format)
    (line,) = problems_of(str(tmp_path / "two"))
    assert "found 2 DICOM series" in line
