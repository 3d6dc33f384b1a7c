"""How a recipe's network is applied to a volume."""

from __future__ import annotations

from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer

from med3d_nets.planning import Plan
from med3d_nets.settings import Settings

__all__ = ["make_inferer", "rotate_range"]


def make_inferer(settings: Settings, overlap: float = 0.5, batch_size: int = 1, progress: bool = False) -> Inferer:
    """The inferer of a recipe: once for the ``whole`` volume, or patch by patch with Gaussian blending.

    Args:
        settings: those of the network.
        overlap: share of a patch that its neighbour covers too; half, as nnU-Net.
        batch_size: patches at a time.
        progress: whether to show a bar.
    """
    if settings.recipe == "whole":
        return SimpleInferer()
    return SlidingWindowInferer(
        roi_size=list(settings.input_size),
        sw_batch_size=batch_size,
        overlap=overlap,
        mode="gaussian",
        progress=progress,
    )


def rotate_range(plan: Plan, angle: float = 0.26) -> list[float]:
    """Largest rotations for augmentation about each axis, in radians; 15 degrees, half of nnU-Net's.

    A flat patch is turned in the plane of its long axes alone: out of it, a turn would move its slices into each other.
    """
    if not plan.anisotropic:
        return [angle] * 3
    flat = min(range(3), key=lambda axis: plan.patch_size[axis])
    return [angle if axis == flat else 0.0 for axis in range(3)]
