"""Metrics in physical units."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.handlers.ignite_metric import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric, compute_hausdorff_distance, compute_surface_dice
from monai.metrics.utils import do_metric_reduction
from monai.transforms.utils import generate_spatial_bounding_box
from monai.utils import convert_to_tensor
from torch import Tensor

from med3d_nets.errors import Med3dError

__all__ = ["HausdorffDistance95", "SurfaceDice"]

ROUNDING = 1e-5
"""Share of a tolerance by which a distance may exceed it: NIfTI files round their affines to single precision."""


class _InMillimetres(CumulativeIterationMetric):
    """A measure of each case and foreground class, with the spacing of the case's own label map.

    MONAI's metrics take a spacing, but its handlers have no way to pass one. They also convert whole volumes of all
    classes before they cut out the surfaces; here they get the box that holds both masks of one class, on the CPU.
    """

    alone: float
    """Value where only one of prediction and truth has the class."""

    @abstractmethod
    def measure(self, found: Tensor, true: Tensor, spacing: Sequence[float], index: int) -> Tensor:
        """Compare two masks, neither of them empty.

        Args:
            found, true: ``(1, 1, depth, height, width)``, boolean.
            spacing: in mm.
            index: of the foreground class, from 0.
        """

    def check_classes(self, count: int) -> None:
        """Refuse a number of foreground classes that does not fit the metric's options."""

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        if not isinstance(y, MetaTensor):
            raise ValueError("the label map has no affine to read a spacing from")
        if y_pred.shape != y.shape:
            raise ValueError(f"prediction and truth have the shapes {tuple(y_pred.shape)} and {tuple(y.shape)}")
        spacing = [float(step) for step in y.pixdim]
        found, true = (convert_to_tensor(volume, track_meta=False)[:, 1:] for volume in (y_pred, y))
        self.check_classes(found.shape[1])
        values = torch.full(found.shape[:2], math.nan, device=found.device)
        for case, index in np.ndindex(*found.shape[:2]):
            masks = torch.stack([found[case, index] > 0, true[case, index] > 0])
            there = masks.flatten(1).any(1).tolist()
            if all(there):
                both = _crop(masks).cpu()[:, None, None]
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)  # MONAI's, of its own deprecated argument
                    values[case, index] = self.measure(both[0], both[1], spacing, index).squeeze()
            elif any(there):
                values[case, index] = self.alone
        return values

    def aggregate(self, reduction: str = "mean") -> Tensor:
        """Mean of each case over its classes, then over the cases, as MONAI's metrics."""
        return do_metric_reduction(self.get_buffer(), reduction)[0]


class _HausdorffDistance95(_InMillimetres):
    alone = math.inf

    def measure(self, found: Tensor, true: Tensor, spacing: Sequence[float], index: int) -> Tensor:
        return compute_hausdorff_distance(found, true, include_background=True, percentile=95, spacing=spacing)


class _SurfaceDice(_InMillimetres):
    alone = 0.0

    def __init__(self, tolerance: float | Sequence[float]) -> None:
        super().__init__()
        self.tolerance = tolerance

    def measure(self, found: Tensor, true: Tensor, spacing: Sequence[float], index: int) -> Tensor:
        tolerance = self.tolerance[index] if isinstance(self.tolerance, Sequence) else self.tolerance
        limit = [float(tolerance) * (1 + ROUNDING)]
        return compute_surface_dice(found, true, limit, include_background=True, spacing=spacing, use_subvoxels=True)

    def check_classes(self, count: int) -> None:
        if isinstance(self.tolerance, Sequence) and len(self.tolerance) != count:
            raise Med3dError(
                f"tolerance is {list(self.tolerance)}, expected one number of mm, or {count}, one for each foreground "
                "class"
            )


class HausdorffDistance95(IgniteMetricHandler):
    """95th percentile of the symmetric Hausdorff distance per foreground class, in mm, as an Ignite metric.

    It is infinite where only one of prediction and truth has the class, and NaN where neither has.

    Args:
        output_transform: gives ``(prediction, truth)``, each a list of one-hot ``(class, depth, height, width)`` with
            the affine of the volume's own grid.
    """

    def __init__(self, output_transform: Callable[..., Any] = lambda output: output) -> None:
        super().__init__(_HausdorffDistance95(), output_transform=output_transform)


class SurfaceDice(IgniteMetricHandler):
    """Share of both surfaces that lies within a tolerance of the other one, per foreground class, from 0 to 1.

    The normalised surface Dice of Nikolov et al. (arXiv:1809.04430), with surfaces measured by their area in mm² and
    not, as MONAI's metric does by default, by their number of voxels, which weighs the faces of long voxels wrongly.
    MONAI has no handler of it. It is 0 where only one of prediction and truth has the class, and NaN where neither has.

    Args:
        output_transform: as for :class:`HausdorffDistance95`.
        tolerance: in mm; one for all classes, or one for each foreground class. A distance equal to it is within.

    Raises:
        Med3dError: if a tolerance is not a finite number of 0 or more; at the first case, if there are more or fewer
            of them than foreground classes.
    """

    def __init__(
        self, output_transform: Callable[..., Any] = lambda output: output, tolerance: float | Sequence[float] = 1.0
    ) -> None:
        values = tolerance if isinstance(tolerance, Sequence) else [tolerance]
        if isinstance(tolerance, str) or not values or not all(map(_is_length, values)):
            raise Med3dError(
                f"tolerance is {tolerance!r}, expected a number of mm, 0 or more, or a list of such numbers, one for "
                "each foreground class"
            )
        super().__init__(_SurfaceDice(tolerance), output_transform=output_transform)


def _is_length(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _crop(masks: Tensor) -> Tensor:
    """The box that holds all masks, ``(mask, depth, height, width)``, and a voxel around it where the volume has one.

    The surfaces in it are the same: beyond the volume's edge, MONAI's functions take everything to be empty.
    """
    start, end = generate_spatial_bounding_box(masks, lambda volume: volume, margin=1, allow_smaller=True)
    return masks[(slice(None), *map(slice, start, end))]
