"""Voxels of DICOM series, slice by slice, each with its own scale.

Readers of whole series take the type of the first slice for all, which cuts off or wraps what others hold, turn images
that are shown with white for the lowest value, and fill slices that are too short. Here pydicom, an extra, decodes each
slice; what it has no decoder for, such as lossless JPEG, is left to ITK.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from med3d_nets.dicom_series import Series
from med3d_nets.errors import Med3dError

__all__ = ["itk_lock", "read_pixels"]

itk_lock = Lock()
"""ITK loads its modules when they are first used, which two threads must not do at once."""


def read_pixels(series: Series) -> NDArray[np.float32]:
    """Values of a series' voxels, such as HU, ``(x, y, z)`` in the order of its slices, in single precision.

    Stored values become these by each slice's own modality transform (DICOM PS3.3, C.11.1), and no other.

    Raises:
        Med3dError: if a slice cannot be decoded, or has colours.
        ImportError: without the packages.
    """
    columns, rows, number = series.shape
    slices = np.empty((number, rows, columns), np.float32)
    if series.frames:
        slices[:] = _told(series.files[0], _read_frames, series)
    else:
        for index, path in enumerate(series.files):
            slices[index] = _told(path, _read_slice, path)
    return slices.transpose(2, 1, 0)


def _told(path: str, read: Any, argument: Any) -> NDArray[Any]:
    """What is read, or one error that names the file, whatever a damaged one makes pydicom or ITK raise."""
    try:
        return read(argument)
    except (ImportError, Med3dError):
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.strip().endswith(":")]
        told = "; ".join([type(error).__name__, *lines[:3]])
        raise Med3dError(f"{path}: found pixels that cannot be decoded ({told}); expected a whole slice") from error


def _read_slice(path: str) -> NDArray[Any]:
    import pydicom
    from pydicom.pixels import apply_modality_lut

    dataset = pydicom.dcmread(path, force=True)
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise Med3dError(f"{path}: found {dataset.SamplesPerPixel} values a pixel; expected 1")
    if not dataset.file_meta.get("TransferSyntaxUID"):
        return _read_by_itk(path, dataset)  # a file without its preamble does not tell how it is written
    try:
        stored = dataset.pixel_array
    except RuntimeError:  # no decoder
        return _read_by_itk(path, dataset)
    return apply_modality_lut(stored, dataset)


def _read_by_itk(path: str, dataset: Any) -> NDArray[Any]:
    """A slice in single precision, which ITK's type of the file may not hold."""
    import itk

    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":  # ITK turns these
        raise Med3dError(f"{path}: found MONOCHROME1 in a compression without a decoder; expected MONOCHROME2")
    with itk_lock:
        image = itk.imread(path, pixel_type=itk.F)
    return np.asarray(itk.GetArrayFromImage(image)).reshape(int(dataset.Rows), int(dataset.Columns))


def _read_frames(series: Series) -> NDArray[Any]:
    """Frames of a file of the enhanced kind, each of which may have a scale, which ITK does not see."""
    import highdicom

    return highdicom.imread(series.files[0]).get_frames(
        series.frames,
        as_indices=True,
        dtype=np.float32,
        apply_real_world_transform=False,
        apply_presentation_lut=False,
    )
