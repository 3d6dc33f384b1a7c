"""How a recipe's network is applied to a volume."""

from __future__ import annotations

from collections.abc import Sequence

from monai.inferers import Inferer, SimpleInferer

from med3d_nets.errors import Med3dError
from med3d_nets.settings import Settings
from med3d_nets.streaming import PatchInferer

__all__ = ["make_inferer", "rotate_range"]


def make_inferer(
    settings: Settings,
    overlap: float = 0.5,
    batch_size: int = 1,
    flips: bool | Sequence[int] = False,
    progress: bool = False,
) -> Inferer:
    """The inferer of a recipe: once for the ``whole`` volume, or patch by patch with Gaussian blending.

    Args:
        settings: those of the network.
        overlap: share of a patch that its neighbour covers too; half, as nnU-Net.
        batch_size: patches at a time.
        flips: test-time flips: True to average the prediction over flips along the axes that training flipped, a list
            of axes of RAS orientation for some of these, or False.
        progress: whether to show a bar.

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
    return PatchInferer(settings.input_size, overlap, batch_size, axes if flips else (), progress)


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
