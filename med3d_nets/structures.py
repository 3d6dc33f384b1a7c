"""Sizes, places and intensities of the structures of a label map, and the tables of them.

One pass over the volume finds the boxes of all structures; everything else looks into these alone.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from med3d_nets.components import NEIGHBOURS

__all__ = ["measure_structures", "to_csv", "to_json"]

INTENSITY = ("mean", "sd", "min", "p5", "median", "p95", "max")
PLACES = ("first_voxel", "last_voxel", "min_mm", "max_mm", "centre_mm")
"""What is known of a structure that is there: three numbers each."""

COLUMNS = (
    *("case", "label", "structure", "volume_ml", "voxels", "components"),
    *(f"{place}_{axis}" for place in PLACES for axis in ("ijk" if "voxel" in place else "xyz")),
    *INTENSITY,
    "image",
)
"""Of the CSV."""


def measure_structures(
    labels: NDArray[Any], image: NDArray[Any], affine: NDArray[np.float64], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """What the tables say of each class but the background.

    Args:
        labels: class numbers, ``(x, y, z)``.
        image: intensities on the same grid, ``(x, y, z)`` or ``(x, y, z, channel)``, of which the first channel counts.
        affine: from voxels to RAS+ in mm, ``(4, 4)``.
        class_names: names of the classes, background first.

    Returns:
        For each class a dictionary: "label" and "structure", its number and name; "volume_ml"; "voxels"; "components",
        connected by faces, edges or corners; "first_voxel" and "last_voxel", the corners of its box, both within, on
        the volume's grid; "min_mm" and "max_mm", the box along the axes of RAS+ that holds these voxels to their edges;
        "centre_mm", its centre of mass; and of the intensities, in the image's unit (HU in CT), "mean", "sd" (of the
        population), "min", "p5", "median", "p95" and "max". All from "first_voxel" on is None where there is no voxel.
    """
    millilitres = float(abs(np.linalg.det(affine[:3, :3]))) / 1000
    boxes = ndimage.find_objects(labels, max_label=len(class_names) - 1)
    found = []
    for label, (name, box) in enumerate(zip(class_names[1:], boxes, strict=True), 1):
        row: dict[str, Any] = {"label": label, "structure": name, "volume_ml": 0.0, "voxels": 0, "components": 0}
        row |= dict.fromkeys((*PLACES, *INTENSITY))
        if box is not None:
            mask = labels[box] == label
            row["voxels"] = int(np.count_nonzero(mask))
            row["volume_ml"] = _short(row["voxels"] * millilitres)
            row["components"] = int(ndimage.label(mask, NEIGHBOURS)[1])
            row |= _place(mask, box, affine) | _intensities((image[..., 0] if image.ndim > 3 else image)[box][mask])
        found.append(row)
    return found


def to_csv(records: Iterable[Mapping[str, Any]]) -> str:
    """A table with a row for each case and structure; cells of what is not there are empty.

    Args:
        records: of cases: "case", "image" and "structures", of :func:`measure_structures`.
    """
    content = io.StringIO(newline="")
    table = csv.DictWriter(content, COLUMNS)
    table.writeheader()
    for record in records:
        for structure in record["structures"]:
            row = {name: structure[name] for name in COLUMNS if name in structure}
            for place in PLACES:
                axes = "ijk" if "voxel" in place else "xyz"
                row |= {f"{place}_{axis}": v for axis, v in zip(axes, structure[place] or [None] * 3, strict=True)}
            table.writerow({"case": record["case"], "image": record["image"], **row})
    return content.getvalue()


def to_json(records: Iterable[Mapping[str, Any]]) -> str:
    """The same as JSON, with null for what is not there."""
    cases = [{name: record[name] for name in ("case", "image", "label_map", "structures")} for record in records]
    return json.dumps({"format": 1, "cases": cases}, indent=2) + "\n"


def _place(mask: NDArray[np.bool_], box: tuple[slice, ...], affine: NDArray[np.float64]) -> dict[str, list[Any]]:
    first = np.array([part.start for part in box])
    last = np.array([part.stop - 1 for part in box])
    edges = np.array(list(itertools.product(*zip(first - 0.5, last + 0.5, strict=True))))
    corners = edges @ affine[:3, :3].T + affine[:3, 3]
    # Counts along each axis: the indices of all voxels would take 24 bytes a voxel.
    counts = (mask.sum(axis=tuple(axis for axis in range(3) if axis != own)) for own in range(3))
    middle = first + [float(np.average(np.arange(len(each)), weights=each)) for each in counts]
    centre = affine[:3, :3] @ middle + affine[:3, 3]
    millimetres = (np.round(each, 3).tolist() for each in (corners.min(axis=0), corners.max(axis=0), centre))
    return dict(zip(PLACES, (first.tolist(), last.tolist(), *millimetres), strict=True))


def _intensities(values: NDArray[Any]) -> dict[str, float]:
    values = values.astype(np.float32)  # a copy, which may be spoilt
    percentiles = np.percentile(values, [5, 50, 95], overwrite_input=True)
    low, high, mean = values.min(), values.max(), values.mean(dtype=np.float64)
    values -= np.float32(mean)
    np.square(values, out=values)
    numbers = (mean, np.sqrt(values.mean(dtype=np.float64)), low, *percentiles, high)
    return {name: _short(float(value)) for name, value in zip(INTENSITY, numbers, strict=True)}


def _short(value: float) -> float:
    """Six digits are more than a scan knows."""
    return float(f"{value:.6g}")
