"""Metrics in physical units."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from monai.data import MetaTensor
from monai.handlers.ignite_metric import IgniteMetricHandler
from monai.metrics import HausdorffDistanceMetric
from torch import Tensor

__all__ = ["HausdorffDistance95"]


class _InMillimetres(HausdorffDistanceMetric):
    """MONAI's metric, with the spacing of each case's own label map: the handler has no way to pass one."""

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        if not isinstance(y, MetaTensor):
            raise ValueError("the label map has no affine to read a spacing from")
        spacing = [float(step) for step in y.pixdim]
        distances = torch.as_tensor(super()._compute_tensor(y_pred, y, spacing=spacing, **kwargs))
        found, true = (torch.as_tensor(volume)[:, 1:].flatten(2).any(-1) for volume in (y_pred, y))
        return distances.masked_fill(found != true, math.inf)  # MONAI's quantile of infinities is NaN


class HausdorffDistance95(IgniteMetricHandler):
    """95th percentile of the symmetric Hausdorff distance per foreground class, in mm, as an Ignite metric.

    It is infinite where only one of prediction and truth has the class, and NaN where neither has.

    Args:
        output_transform: gives ``(prediction, truth)``, each a list of one-hot ``(class, depth, height, width)`` with
            the affine of the volume's own grid.
    """

    def __init__(self, output_transform: Callable[..., Any] = lambda output: output) -> None:
        super().__init__(_InMillimetres(percentile=95), output_transform=output_transform)
