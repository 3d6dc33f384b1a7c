"""How a recipe's network is applied to a volume."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from monai.inferers import Inferer, SimpleInferer
from torch import Tensor

from med3d_nets.errors import Med3dError
from med3d_nets.settings import Settings
from med3d_nets.streaming import PatchInferer

__all__ = ["FlipInferer", "make_inferer", "rotate_range"]


def make_inferer(
    settings: Settings,
    overlap: float = 0.5,
    batch_size: int = 1,
    flips: bool | Sequence[int] = False,
    progress: bool = False,
    probabilities: bool = False,
) -> Inferer:
    """The inferer of a recipe: once for the ``whole`` volume or ``region``, or patch by patch with Gaussian blending.

    Args:
        settings: those of the network.
        overlap: share of a patch that its neighbour covers too; half, as nnU-Net.
        batch_size: patches at a time.
        flips: test-time flips: True to average the prediction over flips along the axes that training flipped, a list
            of axes of RAS orientation for some of these, or False.
        progress: whether to show a bar.
        probabilities: whether the answer patch by patch has them besides the labels.

    Raises:
        Med3dError: if training did not flip along such an axis.
    """
    axes = list(settings.flip_axes) if isinstance(flips, bool) else list(flips)
    if flips and (not axes or not set(axes) <= set(settings.flip_axes)):
        raise Med3dError(
            f"test_time_flips is {flips!r}, but training flipped volumes along "
            f"{'no axis' if not settings.flip_axes else f'axes {list(settings.flip_axes)} alone'}"
        )
    if settings.recipe == "whole":
        return SimpleInferer()
    if settings.recipe == "region":
        return FlipInferer(axes) if flips else SimpleInferer()
    n_probabilities = settings.n_seg_classes if probabilities else 0
    return PatchInferer(settings.input_size, overlap, batch_size, axes if flips else (), progress, n_probabilities)


class FlipInferer(Inferer):
    """Averages what a network answers to a volume and to its mirror images along all combinations of the axes.

    For answers without a place, such as logits of classes.

    Args:
        flip_axes: axes of the volume, from 0.
    """

    def __init__(self, flip_axes: Sequence[int]) -> None:
        super().__init__()
        dims = [2 + axis for axis in flip_axes]
        self.flips = [each for count in range(len(dims) + 1) for each in itertools.combinations(dims, count)]

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """The mean answer to ``(batch, channel, depth, height, width)``."""
        total: Tensor = sum(network(inputs.flip(each), *args, **kwargs) for each in self.flips)
        return total / len(self.flips)


def rotate_range(anisotropic: bool, size: Sequence[int], angle: float = 0.26) -> list[float]:
    """Largest rotations for augmentation about each axis, in radians; 15 degrees, half of nnU-Net's.

    A flat volume is turned in the plane of its long axes alone: out of it, a turn would move its slices into each
    other.

    Args:
        anisotropic: whether it is flat, as the planners tell.
        size: depth, height and width, in voxels.
        angle: the largest rotation.
    """
    if not anisotropic:
        return [angle] * 3
    flat = min(range(3), key=lambda axis: size[axis])
    return [angle if axis == flat else 0.0 for axis in range(3)]
