"""Where in a volume a classifier looked, by MONAI's Grad-CAM."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.folder_layout import default_name_formatter
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_tensor
from monai.visualize import GradCAM
from torch import nn

from med3d_nets.classification.arrays import split_reference
from med3d_nets.datalist import output_names
from med3d_nets.ensemble import Ensemble
from med3d_nets.errors import Med3dError
from med3d_nets.formats import WANTED
from med3d_nets.runs import check_outputs

__all__ = ["LAYER", "Saliencyd", "check_maps", "name_map"]

LAYER = "encoder.layer4"
"""The last stage, which the linear layer reads: an eighth of the resolution, and so are the maps."""


class Saliencyd(MapTransform):
    """Adds the Grad-CAM of the predicted class (Selvaraju et al., arXiv:1610.02391), from 0 to 1 in each volume.

    Of an ensemble it is the mean of the members' maps for the class that the ensemble predicts.

    Args:
        keys: preprocessed volumes, ``(channel, depth, height, width)``.
        network: that predicted.
        device: that of the network.
        pred_key: the prediction, ``(n_outputs,)``; the largest entry is explained.
        output_key: key of the map, ``(1, depth, height, width)``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        network: nn.Module,
        device: torch.device | str,
        pred_key: str = "pred",
        output_key: str = "saliency",
    ) -> None:
        super().__init__(keys)
        members = list(network.networks) if isinstance(network, Ensemble) else [network]
        self.maps = [GradCAM(each, LAYER, postprocessing=_scale) for each in members]
        self.device = device
        self.pred_key = pred_key
        self.output_key = output_key

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Explain the prediction of one case."""
        explained = dict(data)
        for key in self.key_iterator(explained):
            image = data[key]
            index = int(torch.as_tensor(data[self.pred_key]).argmax())
            with torch.enable_grad():  # an evaluator computes without
                batch = convert_to_tensor(image, track_meta=False)[None].to(self.device).requires_grad_()
                found = torch.stack([each(batch, class_idx=index)[0].detach().cpu() for each in self.maps]).mean(dim=0)
            for each in self.maps:
                each.nn_module.model.zero_grad()  # of the weights, which came with those of the map
            meta = image.meta if isinstance(image, MetaTensor) else {}
            explained[self.output_key] = MetaTensor(found, meta=meta)
        return explained


def check_maps(
    cases: Sequence[Mapping[str, Any]], output_dir: str, root: str, overwrite: bool, exported_path: str = ""
) -> None:
    """Refuse to make maps that cannot be, or to write over those of an earlier run.

    Args:
        cases: items with the path of an ``image``.
        output_dir: folder of the maps.
        root: folder below which the images' relative paths are kept.
        overwrite: whether the user asked for it.
        exported_path: network that is used in place of the trained one, or empty.

    Raises:
        Med3dError: if an image is in an ``.npz`` file, which has no grid to write on, or has several regions; if two
            maps would have one name; if the network is an exported one, whose stages cannot be looked into; or naming
            the first file in the way.
    """
    if exported_path:
        raise Med3dError(
            f"{exported_path}: an exported network has no saliency; leave out --saliency or --exported_path"
        )
    if arrays := [case["image"] for case in cases if split_reference(case["image"])]:
        raise Med3dError(
            f"{arrays[0]}: found an array; expected {WANTED} for --saliency, as maps are written on its grid"
        )
    counts = Counter(case["image"] for case in cases)
    if several := [image for image, count in counts.items() if count > 1]:
        raise Med3dError(
            f"{several[0]}: found {counts[several[0]]} regions; expected one for --saliency, a file an image"
        )
    check_outputs(output_names(cases, root), output_dir, root, "saliency", overwrite)


def name_map(meta: Mapping[str, Any], saver: Transform) -> dict[str, Any]:
    """What MONAI's ``SaveImage`` names a map after: what a label map of the image would be named after.

    Args:
        meta: of the map, with the path of its image.
        saver: that asks.
    """
    named = default_name_formatter(dict(meta), saver)
    (item,) = output_names([{"image": named["subject"]}], os.path.dirname(named["subject"]))
    return named | {"subject": item["image"]}


def _scale(found: torch.Tensor) -> torch.Tensor:
    """From 0 to the largest value of each map, which becomes 1; a map without any stays 0."""
    return found / found.amax(dim=(1, 2, 3, 4), keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)
