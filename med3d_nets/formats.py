"""Volumes in other formats than NIfTI: MetaImage, NRRD, and folders that are one DICOM series.

They are read by MONAI's ``ITKReader``, so that training and checks see the same. ITK and pydicom are an extra. Voxels
are ``(x, y, z)`` or ``(x, y, z, channel)`` as nibabel has those of NIfTI, and affines are in RAS+ mm.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from threading import Lock
from typing import Any

import numpy as np
from monai.data import ITKReader
from monai.utils import MetaKeys
from numpy.typing import NDArray

from med3d_nets.dicom import is_series, read_series
from med3d_nets.errors import Med3dError
from med3d_nets.volume_files import Problem

__all__ = [
    "NIFTI_SUFFIXES",
    "SUFFIXES",
    "WANTED",
    "images_of",
    "is_other_format",
    "read_other_format",
    "read_other_volume",
]

NIFTI_SUFFIXES = (".nii", ".nii.gz")
OTHER_SUFFIXES = (".mha", ".mhd", ".nrrd")
SUFFIXES = (*NIFTI_SUFFIXES, *OTHER_SUFFIXES)
WANTED = f"a NIfTI, {', '.join(OTHER_SUFFIXES)} file or a folder of one DICOM series"
"""What an image may be, for messages."""

# Whenever a loader is made and pydicom is there, MONAI tells that a decoder for GPUs is not, whatever is to be loaded.
warnings.filterwarnings("ignore", "NvImgCodecPydicomReader: nvImageCodec decoder plugin did not register")
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)

_KEPT = (
    MetaKeys.AFFINE,
    MetaKeys.ORIGINAL_AFFINE,
    MetaKeys.ORIGINAL_CHANNEL_DIM,
    MetaKeys.SPACE,
    MetaKeys.SPATIAL_SHAPE,
)
"""The others are the file's own, such as a patient's name."""
_lock = Lock()


def images_of(case: Mapping[str, Any]) -> list[str]:
    """Paths of a case's image: one, or one for each channel."""
    image = case["image"]
    return [os.fspath(path) for path in image] if isinstance(image, (list, tuple)) else [os.fspath(image)]


def is_other_format(path: str) -> bool:
    """Whether a path is that of a file with another suffix than NIfTI's, or of a folder with DICOM files in it."""
    return path.lower().endswith(OTHER_SUFFIXES) or (os.path.isdir(path) and is_series(path))


def read_other_format(path: str) -> tuple[NDArray[Any], dict[str, Any]]:
    """Voxels and MONAI's metadata of a file or of a DICOM series.

    Args:
        path: for which :func:`is_other_format` is true.

    Raises:
        Med3dError: if it cannot be read, naming the packages if these are missing, or if a folder holds no one series
            (:func:`~med3d_nets.dicom.read_series`).
    """
    try:
        with _lock:  # ITK loads its modules when they are first used, and reads one file at a time anyway
            voxels, meta = _read_folder(path) if os.path.isdir(path) else ITKReader().get_data(_read_file(path))
    except ImportError as error:  # that of MONAI too
        packages = "itk-io and pydicom, by pip install 'med3d-nets[formats]'"
        raise Med3dError(f"{path}: found a file that needs other packages; expected {packages} ({error})") from error
    except RuntimeError as error:
        expected = "whole slices" if os.path.isdir(path) else f"a whole {os.path.splitext(path)[1]} file"
        raise Med3dError(f"{path}: found an unreadable file ({_reason(error)}); expected {expected}") from error
    return voxels, {key: meta[key] for key in _KEPT}


def read_other_volume(path: str, problems: list[str]) -> tuple[NDArray[Any], NDArray[np.float64]] | None:
    """Voxels, of single precision at most, and affine, as of :func:`read_other_format`; None and a problem without."""
    try:
        voxels, meta = read_other_format(path)
    except Med3dError as error:
        problems.append(Problem(str(error)))
    except Exception as error:  # whatever else a damaged file makes ITK or pydicom raise
        problems.append(
            Problem(f"{path}: found an unreadable file ({type(error).__name__}: {error}); expected {WANTED}")
        )
    else:
        return voxels.astype(np.float32, copy=False) if voxels.dtype.kind == "f" else voxels, meta[MetaKeys.AFFINE]
    return None


def _read_file(path: str) -> Any:
    """ITK's image of a file: of its own type, or of floating point where ITK's package has none of that type."""
    try:
        return ITKReader().read(path)
    except TypeError:
        import itk

        header = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
        header.SetFileName(path)
        header.ReadImageInformation()
        if header.GetNumberOfComponents() == 1:
            return ITKReader(pixel_type=itk.D).read(path)
        reader = itk.ImageFileReader[itk.VectorImage[itk.F, header.GetNumberOfDimensions()]].New(FileName=path)
        reader.Update()
        return reader.GetOutput()


def _read_folder(folder: str) -> tuple[NDArray[Any], dict[str, Any]]:
    series = read_series(folder)
    reader = ITKReader()
    import itk

    voxels, meta = reader.get_data(itk.imread(series.files))  # in order: ITKReader's own groups take other fields too
    if len(series.files) > 1:  # ITK takes the slices' normal for their way
        affine = meta[MetaKeys.ORIGINAL_AFFINE]
        affine[:3, 2] = (series.last - series.first) / (len(series.files) - 1)
        meta[MetaKeys.AFFINE] = affine.copy()
    return voxels, meta


def _reason(error: RuntimeError) -> str:
    """What ITK says, without its own files' lines."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    told = next((line.partition("): ")[2] for line in lines if line.startswith("ITK ERROR")), "")
    return told or (lines or [type(error).__name__])[0]
