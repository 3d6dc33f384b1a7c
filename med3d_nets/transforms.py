"""What the recipes need and MONAI lacks, as MONAI transforms on channel-first volumes."""

from __future__ import annotations

import math
import zlib
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, SpatialCrop
from monai.transforms.utils import generate_spatial_bounding_box
from monai.utils import convert_to_tensor
from torch import Tensor

from med3d_nets import dicom_seg

__all__ = [
    "FillEmptyWithNoised",
    "NormalizeByTrainingSetd",
    "PlaceSegmentationd",
    "ProbabilitiesToBytesd",
    "RandCropAroundForegroundd",
    "RestoreGridd",
    "SplitProbabilitiesd",
    "not_background",
]


def not_background(volume: Tensor) -> Tensor:
    """Mask of what differs from the volume's first voxel, MedicalNet's notion of background.

    Use it as ``select_fn`` of ``CropForegroundd``. A volume with one value alone has no background.

    Args:
        volume: ``(channel, depth, height, width)``.

    Returns:
        Boolean tensor of the same shape.
    """
    mask = volume != volume[:, :1, :1, :1]
    return mask if bool(mask.any()) else torch.ones_like(mask)


class PlaceSegmentationd(MapTransform):
    """Put label maps of DICOM segmentations on their image's grid: they have the slices alone that they label.

    Others stay as they are. Grids may differ by flips, the order of axes and whole voxels, not by a resampling.

    Args:
        keys: label maps as ``LoadImaged`` and ``EnsureChannelFirstd`` give them, ``(1, x, y, z)``.
        image_key: their image, loaded in the same way.
    """

    def __init__(self, keys: KeysCollection, image_key: str = "image") -> None:
        super().__init__(keys)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Place the label maps of one case.

        Raises:
            Med3dError: if the grids differ by more, or labels lie outside of the image.
        """
        placed = dict(data)
        image = placed[self.image_key]
        depth, height, width = image.shape[1:]
        shape = (int(depth), int(height), int(width))
        affine = np.asarray(image.affine, np.float64)
        for key in self.key_iterator(placed):
            label = placed[key]
            path = str(label.meta["filename_or_obj"])
            if dicom_seg.is_segmentation(path):
                own = np.asarray(label.affine, np.float64)
                voxels = torch.from_numpy(dicom_seg.place_on_grid(path, label[0].numpy(), own, shape, affine))
                meta = {**label.meta, "affine": image.affine, "spatial_shape": np.array(shape)}
                placed[key] = MetaTensor(voxels[None], meta=meta)
        return placed


class RandCropAroundForegroundd(Randomizable, MapTransform):
    """Crop at random, leaving at least half of the foreground's extent on every side of the foreground.

    Each side of the crop is drawn between the volume's edge and the foreground's bounding box grown by half of its
    size, as in MedicalNet's training. A label without foreground leaves the volume whole.

    Args:
        keys: volumes to crop alike, each ``(channel, depth, height, width)``.
        label_key: the label map that tells the foreground (values above 0).
    """

    def __init__(self, keys: KeysCollection, label_key: str = "label") -> None:
        super().__init__(keys)
        self.label_key = label_key

    def draw(self, label: Tensor) -> tuple[list[int], list[int]]:
        """The crop's start and end, in voxels along depth, height and width."""
        low, high = generate_spatial_bounding_box(label, lambda values: values > 0)
        start, end = [], []
        for size, first, last in zip(label.shape[1:], low, high, strict=True):
            margin = (last - first) / 2
            start.append(int(max(0.0, first - margin) * self.R.random()))
            end.append(math.ceil(size - max(0.0, size - last - margin) * self.R.random()))
        return start, end

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Crop the volumes of one case."""
        cropped = dict(data)
        label = data[self.label_key]
        if not bool((label > 0).any()):
            return cropped
        start, end = self.draw(label)
        crop = SpatialCrop(roi_start=start, roi_end=end)
        for key in self.key_iterator(cropped):
            cropped[key] = crop(cropped[key])
        return cropped


class FillEmptyWithNoised(MapTransform):
    """Replace exact zeros, the empty region of a normalised volume, by standard normal noise.

    MedicalNet does so in training and in testing, with other noise each time. Here the noise is drawn from the volume's
    own content, so that a volume gets the same noise in every run.

    Args:
        keys: normalised volumes, ``(channel, depth, height, width)``.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Fill the volumes of one case."""
        filled = dict(data)
        for key in self.key_iterator(filled):
            volume = filled[key]
            content = volume.cpu().numpy()
            noise = np.random.RandomState(zlib.crc32(content.tobytes())).standard_normal(content.shape)
            filled[key] = torch.where(volume == 0, torch.as_tensor(noise, dtype=volume.dtype), volume)
        return filled


class NormalizeByTrainingSetd(MapTransform):
    """Clip to bounds of the training set, then normalise by its mean and standard deviation, as nnU-Net does for CT.

    MONAI's ``ScaleIntensityRanged`` computes the same from numbers that a config would have to work out.

    Args:
        keys: volumes, ``(channel, depth, height, width)``.
        intensity: ``lower``, ``upper``, ``mean`` and ``std`` in the images' unit (HU in CT).
    """

    def __init__(self, keys: KeysCollection, intensity: Mapping[str, float]) -> None:
        super().__init__(keys)
        self.intensity = intensity

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Normalise the volumes of one case."""
        known = self.intensity
        normalised = dict(data)
        for key in self.key_iterator(normalised):
            volume = normalised[key].clamp(known["lower"], known["upper"])
            normalised[key] = (volume - known["mean"]) / known["std"]
        return normalised


class RestoreGridd(MapTransform):
    """Give an inverted prediction the affine that its image's file has, free of rounding.

    Args:
        keys: predictions brought back to the image's grid, ``(channel, depth, height, width)``.
        orig_key: the image that they were made from.
        allow_missing_keys: leave out predictions that are not there.
    """

    def __init__(self, keys: KeysCollection, orig_key: str = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.orig_key = orig_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Restore the predictions of one case.

        Raises:
            RuntimeError: if a prediction's shape is not the image's own.
        """
        restored = dict(data)
        meta = data[self.orig_key].meta
        expected = tuple(int(n) for n in meta["spatial_shape"])[:3]
        for key in self.key_iterator(restored):
            volume = restored[key]
            if tuple(volume.shape[1:]) != expected:
                raise RuntimeError(f"'{key}' has the shape {tuple(volume.shape[1:])}, its image {expected}")
            restored[key] = MetaTensor(volume.as_tensor(), meta={**meta, "affine": meta["original_affine"]})
        return restored


class ProbabilitiesToBytesd(MapTransform):
    """Keep probabilities that were brought back to the image's grid, in 255ths, before they become labels.

    Voxels that were cropped away are background.

    Args:
        keys: probabilities of the classes, ``(class, depth, height, width)``; they stay as they are.
        output_key: where the bytes go, of the same shape, on the CPU.
    """

    def __init__(self, keys: KeysCollection, output_key: str = "prob") -> None:
        super().__init__(keys)
        self.output_key = output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Keep the probabilities of one case."""
        kept = dict(data)
        for key in self.key_iterator(kept):
            values = convert_to_tensor(kept[key], track_meta=False)
            found = torch.empty(values.shape, dtype=torch.uint8)
            for index, each in enumerate(values):  # one by one: in floating point, they are large
                part = each if index else 1 - values[1:].sum(0)
                found[index] = (part * 255).round().clamp(0, 255).to(torch.uint8)
            kept[self.output_key] = MetaTensor(found, meta=kept[key].meta)
        return kept


class SplitProbabilitiesd(MapTransform):
    """Take the answer of a :class:`~med3d_nets.streaming.PatchInferer` with probabilities apart.

    Args:
        keys: labels and, behind them, probabilities, ``(1 + class, depth, height, width)``; the labels stay.
        output_key: where the probabilities go.
    """

    def __init__(self, keys: KeysCollection, output_key: str = "prob") -> None:
        super().__init__(keys)
        self.output_key = output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Split the answer of one case; nothing is copied."""
        split = dict(data)
        for key in self.key_iterator(split):
            split[key], split[self.output_key] = split[key][:1], split[key][1:]
        return split
