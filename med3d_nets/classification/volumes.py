"""Volumes to classify, as MONAI transforms: read from files of every kind, and cropped to their region of interest."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Crop, InvertibleTransform, LoadImage, MapTransform

from med3d_nets.checks import Grid, check_grid, read_volume
from med3d_nets.classification.arrays import read_array, split_reference
from med3d_nets.classification.regions import Box, box_around, box_of_mask, outside
from med3d_nets.errors import Med3dError
from med3d_nets.volume_reader import VolumeReader

__all__ = ["REGION", "CropRegiond", "LoadVolumed", "name_case", "name_region"]

REGION = "region_of_interest"
"""Key of a volume's metadata."""


def name_region(item: Mapping[Hashable, Any], image: str) -> str:
    """What tells the region of an item from others of its image; "" for the whole of it.

    It is the path of its mask from the folder of the image, since masks of one image may have the same name, or its
    centre and size.

    Args:
        item: with the region.
        image: path of the image.
    """
    if "mask" in item:
        return os.path.relpath(item["mask"], os.path.dirname(image))
    if "center" in item:
        return f"{' '.join(f'{value:g}' for value in item['center'])}, {item['size_mm']:g} mm"
    return ""


def name_case(image: MetaTensor) -> str:
    """The file of a volume, with its region where it is a part."""
    region = image.meta.get(REGION, "")
    return f"{image.meta['filename_or_obj']}{f' [{region}]' if region else ''}"


class LoadVolumed(MapTransform):
    """Read volumes as ``LoadImaged`` and ``EnsureChannelFirstd`` do, with ``VolumeReader``, or from ``.npz`` files.

    They become float32 ``(channel, depth, height, width)`` with their affine (mm). Arrays of a ``.npz`` file lie as
    they are stored, with voxels of 1 mm.

    Args:
        keys: paths of volumes (:data:`med3d_nets.formats.WANTED`), or references
            (:mod:`~med3d_nets.classification.arrays`).
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)
        self.load = LoadImage(reader=VolumeReader(), image_only=True, ensure_channel_first=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the volumes of one case.

        Raises:
            Med3dError: if a volume cannot be read.
        """
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            image = os.fspath(loaded[key])
            reference = split_reference(image)
            loaded[key] = _load_array(image, *reference) if reference else self.load(image)
        return loaded


def _load_array(image: str, path: str, key: str, index: int) -> MetaTensor:
    """One volume of an array, with the metadata that MONAI gives those of files."""
    array = np.array(read_array(path, key)[index], np.float32)
    shape = array.shape[:3]
    volume = torch.from_numpy(array[None] if array.ndim == 3 else np.ascontiguousarray(np.moveaxis(array, -1, 0)))
    meta = {"filename_or_obj": image, "spatial_shape": np.array(shape), "original_affine": np.eye(4)}
    return MetaTensor(volume, affine=torch.eye(4, dtype=torch.float64), meta=meta)


class CropRegiond(MapTransform, InvertibleTransform):
    """Crop volumes to the region of interest that their item gives, if it gives one, and a margin.

    The region is the bounding box of the item's "mask" (values above 0), or the box of "size_mm" around its "center",
    along the volume's own axes; see :mod:`~med3d_nets.classification.cases`. What lies beyond the volume is left out.
    Sizes are rounded to whole voxels. The crop is MONAI's own, so that the affine follows and ``Invertd`` undoes it.
    The volume's metadata get the region's name, under :data:`REGION`.

    Args:
        keys: volumes as :class:`LoadVolumed` gives them, on the grid of their file.
        margin_mm: kept on each side of the region.
    """

    def __init__(self, keys: KeysCollection, margin_mm: float = 0.0) -> None:
        super().__init__(keys)
        self.margin_mm = margin_mm
        self.crop = Crop()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Crop the volumes of one case.

        Raises:
            Med3dError: if the centre lies outside of the volume, or the mask cannot be read, is empty or is not on the
                volume's grid.
        """
        cropped = dict(data)
        for key in self.key_iterator(cropped):
            volume = cropped[key]
            grid = tuple(volume.shape[1:]), np.asarray(volume.affine, np.float64)
            start, end = self._box(data, str(volume.meta.get("filename_or_obj", key)), grid)
            cropped[key] = self.crop(volume, tuple(slice(*side) for side in zip(start, end, strict=True)))
            cropped[key].meta[REGION] = name_region(data, str(volume.meta.get("filename_or_obj", key)))
        return cropped

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Bring volumes back to the grid of their file, with zeros around the region."""
        restored = dict(data)
        for key in self.key_iterator(restored):
            restored[key] = self.crop.inverse(restored[key])
        return restored

    def _box(self, item: Mapping[Hashable, Any], image: str, grid: Grid) -> Box:
        if "mask" in item:
            return _box_of_file(item["mask"], image, grid, self.margin_mm)
        if "center" in item:
            if problem := outside(image, item["center"], grid):
                raise Med3dError(problem)
            return box_around(item["center"], item["size_mm"], grid, self.margin_mm)
        return [0, 0, 0], list(grid[0])


def _box_of_file(mask: str, image: str, grid: Grid, margin_mm: float) -> Box:
    problems: list[str] = []
    read = read_volume(mask, problems, image)
    if read is None:
        raise Med3dError("\n".join(problems))
    voxels, affine = read
    check_grid(mask, (voxels.shape[:3], affine), image, grid, problems)
    if problems:
        raise Med3dError("\n".join(problems))
    voxels = voxels.reshape(grid[0])
    if not (voxels > 0).any():
        raise Med3dError(f"{mask}: found no voxel above 0; expected some, the region of {image}")
    return box_of_mask(voxels, affine, margin_mm)
