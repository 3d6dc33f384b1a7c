"""Where a region of interest lies in a volume's grid: the box around a mask, or one of a size in mm around a centre."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.data.utils import affine_to_spacing
from monai.transforms.utils import generate_spatial_bounding_box
from numpy.typing import NDArray

from med3d_nets.checks import Grid

__all__ = ["box_around", "box_of_mask", "outside"]

Box = tuple[list[int], list[int]]
"""First voxel and the one after the last, along each axis."""


def box_of_mask(mask: NDArray[Any], affine: NDArray[np.float64], margin_mm: float) -> Box:
    """The box that holds all voxels above 0, grown on each side by a margin, within the volume.

    Args:
        mask: ``(depth, height, width)``, not empty.
        affine: of its grid, mm.
        margin_mm: rounded to whole voxels along each axis.
    """
    margin = np.round(margin_mm / affine_to_spacing(affine)).astype(int).tolist()
    start, end = generate_spatial_bounding_box(mask[None], lambda voxels: voxels > 0, margin=margin, allow_smaller=True)
    return start, end


def box_around(center: Sequence[float], size_mm: float, grid: Grid, margin_mm: float = 0.0) -> Box:
    """The box along the volume's own axes around a centre, grown on each side by a margin, within the volume.

    It has as many voxels as its length holds, rounded, at least one.

    Args:
        center: world coordinates in mm, inside of the volume.
        size_mm: length of its edges.
        grid: of the volume.
        margin_mm: added on each side.
    """
    shape, affine = grid
    lengths = np.maximum(1, np.round((size_mm + 2 * margin_mm) / affine_to_spacing(affine)))
    start = np.round(_voxel(center, affine) - (lengths - 1) / 2)
    first, last = np.maximum(start, 0), np.minimum(start + lengths, shape)
    return first.astype(int).tolist(), last.astype(int).tolist()


def outside(image: str, center: Sequence[float], grid: Grid) -> str:
    """What to say of a centre that lies outside of the volume; "" if it lies inside.

    Args:
        image: for the message.
        center: world coordinates in mm.
        grid: of the volume.
    """
    shape, affine = grid
    try:
        voxel = _voxel(center, affine)
    except np.linalg.LinAlgError:
        return f"{image}: found affine {affine[:3].tolist()}; expected three directions, to find a centre by"
    edges = np.array(shape) - 0.5  # a voxel's own box ends half a voxel from its centre
    if ((voxel >= -0.5) & (voxel < edges)).all():
        return ""
    corners = np.stack(np.meshgrid(*([-0.5, edge] for edge in edges), indexing="ij"), axis=-1).reshape(-1, 3)
    world = corners @ affine[:3, :3].T + affine[:3, 3]
    bounds = ", ".join(
        f"{axis} {low:.1f} to {high:.1f}"
        for axis, low, high in zip("xyz", world.min(axis=0), world.max(axis=0), strict=True)
    )
    where = f"{_listed(center)} mm, voxel {_listed(voxel)} of {shape}"
    return f"{image}: found centre {where}; expected one inside of the volume, which spans {bounds} mm (RAS+)"


def _voxel(center: Sequence[float], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.solve(affine[:3, :3], np.asarray(center) - affine[:3, 3]), np.float64)


def _listed(values: Sequence[float] | NDArray[np.float64]) -> str:
    return f"({', '.join(f'{value:.1f}' for value in values)})"
