"""MONAI's reader of images in every format, from one file or from one for each channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.data import ImageReader, NibabelReader
from monai.utils import MetaKeys, ensure_tuple
from numpy.typing import NDArray

from med3d_nets.checks import check_grid
from med3d_nets.errors import Med3dError
from med3d_nets.formats import is_other_format, read_other_format

__all__ = ["VolumeReader"]


class VolumeReader(ImageReader):
    """Reads what :mod:`~med3d_nets.sources` lists, for ``LoadImaged``.

    NIfTI is read by ``NibabelReader``, other formats by ``ITKReader`` (:mod:`~med3d_nets.formats`). Several files are
    the channels of one image, on one grid up to rounding. ``LoadImaged`` alone takes files of one format whose affines
    are the same to the last digits, and of several readers the one that happens to be installed.
    """

    def verify_suffix(self, filename: Any) -> bool:
        """Whether it reads such files: it is named in the configs for all that they read."""
        return True

    def read(self, data: Any, **_: Any) -> tuple[str, ...]:
        """The paths: MONAI tries other readers where this fails, which would take the first of several series."""
        return tuple(map(str, ensure_tuple(data)))

    def get_data(self, img: Sequence[str]) -> tuple[NDArray[Any], dict[str, Any]]:
        """Voxels and metadata, of which the first file's for several.

        Args:
            img: paths.

        Returns:
            ``(x, y, z)`` or ``(x, y, z, channel)`` of one file, ``(channel, x, y, z)`` of several.

        Raises:
            Med3dError: if a file is not of one channel, or not on the first one's grid; or see
                :func:`~med3d_nets.formats.read_other_format`.
        """
        volumes = [_read(path) for path in img]
        voxels, meta = volumes[0]
        if len(volumes) == 1:
            return voxels, meta
        shape = tuple(int(length) for length in meta[MetaKeys.SPATIAL_SHAPE])
        channels, problems = list[NDArray[Any]](), list[str]()
        for path, (channel, other) in zip(img, volumes, strict=True):
            check_grid(path, _grid(other), img[0], _grid(meta), problems)
            if channel.shape[3:] not in ((), (1,)):
                found = f"shape {channel.shape}; expected one channel, as its image has a file for each"
                problems.append(f"{path}: found {found}")
            channels.append(channel)
        if problems:
            raise Med3dError("\n".join(problems))
        stacked = np.stack([channel.reshape(shape) for channel in channels])
        return stacked, {**meta, MetaKeys.ORIGINAL_CHANNEL_DIM: 0}


def _read(path: str) -> tuple[NDArray[Any], dict[str, Any]]:
    if is_other_format(path):
        return read_other_format(path)
    reader = NibabelReader()
    voxels, meta = reader.get_data(reader.read(path))
    return voxels, meta


def _grid(meta: dict[str, Any]) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    return tuple(int(length) for length in meta[MetaKeys.SPATIAL_SHAPE]), np.asarray(meta[MetaKeys.AFFINE], np.float64)
