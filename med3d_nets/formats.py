"""Volumes in other formats than NIfTI: MetaImage, NRRD, and DICOM series.

Training and checks read them alike: the first two by MONAI's ``ITKReader``, DICOM slice by slice
(:mod:`~med3d_nets.dicom_pixels`). The packages are an extra. Voxels are ``(x, y, z)`` or ``(x, y, z, channel)`` as
nibabel has those of NIfTI, and affines are in RAS+ mm.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from typing import Any

import nibabel
import numpy as np
from monai.data import ITKReader
from monai.utils import MetaKeys, SpaceKeys
from numpy.typing import NDArray

from med3d_nets import dicom_seg
from med3d_nets.dicom import dicom_files, is_dicom, series_files
from med3d_nets.dicom_pixels import itk_lock, read_pixels
from med3d_nets.dicom_series import read_series
from med3d_nets.errors import Med3dError
from med3d_nets.volume_files import NIFTI_SUFFIXES, OTHER_SUFFIXES, SUFFIXES, Problem

__all__ = [
    "NIFTI_SUFFIXES",
    "SUFFIXES",
    "WANTED",
    "images_of",
    "is_other_format",
    "parts_of",
    "read_other_format",
    "read_other_volume",
]

WANTED = f"a NIfTI, {', '.join(OTHER_SUFFIXES)} file, a folder of one DICOM series or a file of one"
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


def images_of(case: Mapping[str, Any]) -> list[str]:
    """Paths of a case's image: one, or one for each channel."""
    image = case["image"]
    return [os.fspath(path) for path in image] if isinstance(image, (list, tuple)) else [os.fspath(image)]


def parts_of(path: str) -> list[str]:
    """The files that a volume is in, sorted: slices, or a header of MetaImage and its voxels."""
    if path.lower().endswith(".mhd"):  # whose voxels are in a file of the same name
        folder, stem = os.path.split(os.path.splitext(path)[0])
        return sorted(os.path.join(folder, name) for name in os.listdir(folder) if os.path.splitext(name)[0] == stem)
    if not is_dicom(path):
        return [path]
    try:
        return series_files(path)
    except (ImportError, Med3dError):  # told when it is read
        return list(dicom_files(path)) if os.path.isdir(path) else [path]


def is_other_format(path: str) -> bool:
    """Whether a path is that of a file with another suffix than NIfTI's, of a DICOM file, or of a folder with some."""
    if path.lower().endswith(SUFFIXES):
        return path.lower().endswith(OTHER_SUFFIXES)
    return os.path.exists(path) and is_dicom(path)


def read_other_format(path: str) -> tuple[NDArray[Any], dict[str, Any]]:
    """Voxels and MONAI's metadata of a file or of a DICOM series.

    Args:
        path: for which :func:`is_other_format` is true.

    Raises:
        Med3dError: if it cannot be read, naming the packages if these are missing, or if it stands for no one series
            (:func:`~med3d_nets.dicom_series.read_series`) and is no segmentation.
    """
    try:
        voxels, meta = _read(path)
    except ImportError as error:  # that of MONAI too
        packages = "itk-io, pydicom and highdicom, by pip install 'med3d-nets[formats]'"
        raise Med3dError(f"{path}: found a file that needs other packages; expected {packages} ({error})") from error
    except RuntimeError as error:
        whole = f"a whole {os.path.splitext(path)[1]} file"
        raise Med3dError(f"{path}: found an unreadable file ({_reason(error)}); expected {whole}") from error
    return voxels, {key: meta[key] for key in _KEPT}


def read_other_volume(
    path: str, problems: list[str], image: str = ""
) -> tuple[NDArray[Any], NDArray[np.float64]] | None:
    """Voxels, of single precision at most, and affine, as of :func:`read_other_format`; None and a problem without.

    Args:
        path, problems: as for :func:`~med3d_nets.checks.read_volume`.
        image: whose grid a segmentation is put on.
    """
    try:
        voxels, meta = read_other_format(path)
        if image and dicom_seg.is_segmentation(path):
            return _place(path, voxels, meta[MetaKeys.AFFINE], image, problems)
    except Med3dError as error:
        problems.append(Problem(str(error)))
    except Exception as error:  # whatever else a damaged file makes ITK or pydicom raise
        problems.append(
            Problem(f"{path}: found an unreadable file ({type(error).__name__}: {error}); expected {WANTED}")
        )
    else:
        return voxels.astype(np.float32, copy=False) if voxels.dtype.kind == "f" else voxels, meta[MetaKeys.AFFINE]
    return None


def _read(path: str) -> tuple[NDArray[Any], dict[str, Any]]:
    if path.lower().endswith(OTHER_SUFFIXES):
        with itk_lock:
            return ITKReader().get_data(_read_file(path))
    if dicom_seg.is_segmentation(path):
        found = dicom_seg.read_segmentation(path)
        return found.labels, _meta(found.labels.shape, found.affine)
    series = read_series(path)
    return read_pixels(series), _meta(series.shape, series.affine)


def _place(
    path: str, labels: NDArray[Any], affine: NDArray[np.float64], image: str, problems: list[str]
) -> tuple[NDArray[Any], NDArray[np.float64]] | None:
    """A segmentation on the grid of its image; None and a problem where that is another."""
    shape, wanted = _read_grid(image)
    try:
        return dicom_seg.place_on_grid(path, labels, affine, shape, wanted), wanted
    except Med3dError as error:
        problems.append(Problem(str(error), "grid"))
        return None


def _read_grid(path: str) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape ``(x, y, z)`` and affine of an image, from its header where it has one that tells."""
    if not is_other_format(path):
        volume: Any = nibabel.load(path)
        shape, affine = volume.shape, volume.affine
    elif is_dicom(path) and not dicom_seg.is_segmentation(path):
        series = read_series(path)
        shape, affine = series.shape, series.affine
    else:
        _, meta = read_other_format(path)
        shape, affine = meta[MetaKeys.SPATIAL_SHAPE], meta[MetaKeys.AFFINE]
    return (int(shape[0]), int(shape[1]), int(shape[2])), np.asarray(affine, np.float64)


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


def _meta(shape: tuple[int, ...], affine: NDArray[np.float64]) -> dict[str, Any]:
    """MONAI's metadata of a volume of one channel."""
    return {
        MetaKeys.AFFINE: affine.copy(),
        MetaKeys.ORIGINAL_AFFINE: affine,
        MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.SPATIAL_SHAPE: np.array(shape),
    }


def _reason(error: RuntimeError) -> str:
    """What ITK says, without its own files' lines."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.rstrip().endswith(":")]
    told = next((line.partition("): ")[2] for line in lines if line.startswith("ITK ERROR")), "")
    return told or (lines or [type(error).__name__])[0]
