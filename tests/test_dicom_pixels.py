"""Voxels of DICOM slices: each by its own scale, whatever its type and however it is packed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import OBLIQUE
from other_formats import write_enhanced, write_series
from test_dicom import set_header
from test_dicom_series import hounsfield

from med3d_nets.dicom_pixels import read_pixels
from med3d_nets.dicom_series import read_series
from med3d_nets.errors import Med3dError

pytest.importorskip("highdicom")
pytest.importorskip("itk")

Array = np.ndarray[Any, Any]


def read(path: Path) -> Array:
    return read_pixels(read_series(str(path)))


def message(path: Path) -> str:
    with pytest.raises(Med3dError) as caught:
        read(path)
    return str(caught.value)


def test_whole_numbers_are_exact(tmp_path: Path) -> None:
    found = read(write_series(tmp_path, hounsfield(), OBLIQUE))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, hounsfield())


def test_each_slice_has_its_own_scale(tmp_path: Path) -> None:
    """As in PET; that of the first is a whole number, which must not be the type of all."""
    real = np.random.RandomState(1).rand(3, 4, 6) * 60000
    real[:, :, 0] = 0
    slopes = np.maximum(real.max((0, 1)), 1) / 32767

    def scale(index: int, header: Any) -> None:
        slope = slopes[index] if index else 1
        header.RescaleSlope, header.RescaleIntercept = f"{slope:.10g}", "0"
        header.PixelData = np.round(real[:, :, index].T / slope).astype("<u2").tobytes()

    found = read(write_series(tmp_path, hounsfield(), OBLIQUE, change=scale))
    np.testing.assert_allclose(found, real, atol=slopes.max())


def test_types_may_differ_by_slice(tmp_path: Path) -> None:
    """Stored as HU with a sign in some, as HU and 1024 without one in others."""

    def store(index: int, header: Any) -> None:
        if index % 2:
            header.PixelRepresentation, header.RescaleIntercept = 1, "0"
            header.PixelData = hounsfield()[:, :, index].T.astype("<i2").tobytes()

    np.testing.assert_array_equal(read(write_series(tmp_path, hounsfield(), OBLIQUE, change=store)), hounsfield())


def test_how_values_are_shown_is_nothing_that_they_are(tmp_path: Path) -> None:
    change = set_header(PhotometricInterpretation="MONOCHROME1", WindowCenter="40", WindowWidth="400")
    for path in (
        write_series(tmp_path / "1", hounsfield(), OBLIQUE, change=change),
        write_enhanced(tmp_path / "2", hounsfield(), OBLIQUE, [2, 0, 1, 5, 3, 4], change=change),
    ):
        np.testing.assert_array_equal(read(path), hounsfield())


def test_frames_have_their_own_scales(tmp_path: Path) -> None:
    slopes = [1, 2, 4, 8, 16, 32]
    voxels = (np.random.RandomState(0).randint(0, 100, (3, 4, 6)) * 32 - 1024).astype(np.int16)
    path = write_enhanced(tmp_path / "frames", voxels, OBLIQUE, [5, 3, 1, 0, 2, 4], slopes)
    np.testing.assert_array_equal(read(path), voxels)


def deflate(dataset: Any) -> None:
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"


def write_implicit(dataset: Any) -> None:
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"


def compress(syntax: str) -> Callable[[Any], None]:
    return lambda dataset: dataset.compress(syntax, encoding_plugin="")


@pytest.mark.parametrize(
    "pack",
    [deflate, write_implicit, compress("1.2.840.10008.1.2.5"), compress("1.2.840.10008.1.2.4.80")],
    ids=["deflated", "implicit", "RLE", "JPEG-LS"],
)
def test_transfer_syntaxes(tmp_path: Path, pack: Callable[[Any], None]) -> None:
    import pydicom

    voxels = np.indices((40, 50, 3)).sum(0).astype(np.int16) * 7 - 500
    write_series(tmp_path, voxels, OBLIQUE)
    for path in tmp_path.iterdir():
        dataset = pydicom.dcmread(path)
        pack(dataset)
        dataset.save_as(path, enforce_file_format=True)
    np.testing.assert_array_equal(read(tmp_path), voxels)


def test_files_without_a_preamble(tmp_path: Path) -> None:
    import pydicom

    write_series(tmp_path, hounsfield(), OBLIQUE)
    for path in tmp_path.iterdir():
        dataset = pydicom.dcmread(path)
        del dataset.file_meta
        dataset.preamble = None
        dataset.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        content = path.read_bytes()
        assert content[128:132] != b"DICM"
    np.testing.assert_array_equal(read(tmp_path), hounsfield())


def test_slices_without_all_their_pixels_are_named(tmp_path: Path) -> None:
    write_series(tmp_path / "1", hounsfield(), OBLIQUE, change=shorten)
    assert message(tmp_path / "1").startswith(f"{tmp_path}/1/IM003: found pixels that cannot be decoded (ValueError; ")
    path = write_series(tmp_path / "2", hounsfield(), OBLIQUE) / "IM004"
    path.write_bytes(path.read_bytes()[:-10])
    assert message(tmp_path / "2").startswith(f"{path}: found pixels that cannot be decoded (")


def shorten(index: int, header: Any) -> None:
    header.PixelData = header.PixelData[: -4 if index == 3 else None]


def test_colours_are_told(tmp_path: Path) -> None:
    def colour(_: int, header: Any) -> None:
        header.SamplesPerPixel, header.PhotometricInterpretation, header.PlanarConfiguration = 3, "RGB", 0
        header.PixelData = header.PixelData * 3

    write_series(tmp_path, hounsfield(), OBLIQUE, change=colour)
    assert message(tmp_path) == f"{tmp_path}/IM000: found 3 values a pixel; expected 1"
