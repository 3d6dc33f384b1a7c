"""A case as the viewer's page takes it: volumes that fit, and what it says of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from med3d_nets.viewer_cases import ViewCase
from med3d_nets.viewer_volumes import (
    CT_WINDOWS,
    KINDS,
    Shown,
    count_classes,
    crop_to_labels,
    dice,
    encode,
    find_window,
    middle,
    reduce_to,
    store,
)

__all__ = ["Choices", "Content", "make_content"]

MOST_VOXELS = 2**25
"""Of a volume: a graphics card holds each with four bytes, twice."""
IN_TEXT = 4 / 3
"""Characters of base64 to a byte."""


@dataclass(frozen=True)
class Choices:
    """What is the same for all cases.

    Attributes:
        class_names: background first, as far as they are known.
        modality: ``"ct"``, ``"mr"`` or ``"auto"``.
        window: values shown as black and as white, or empty.
        margin: mm around truth and prediction that are kept; 0: the whole volume.
    """

    class_names: Sequence[str] = ()
    modality: str = "auto"
    window: Sequence[float] = ()
    margin: float = 0


@dataclass(frozen=True)
class Content:
    """A case in the page.

    Attributes:
        volumes: gzipped NIfTI files by name: ``image``, and ``truth`` and ``prediction``.
        described: for ``viewer_assets/page.js``.
        n_classes: background included.
    """

    volumes: dict[str, bytes]
    described: dict[str, Any]
    n_classes: int

    @property
    def size(self) -> int:
        """Bytes that the volumes take in the page."""
        return _size(self.volumes)


def make_content(case: ViewCase, read: Shown, choices: Choices, share: float) -> Content:
    """Volumes that take no more than ``share`` bytes of the page, and numbers that are those of the files."""
    n_classes = max([len(choices.class_names), 2, *(int(volume.max()) + 1 for volume in read.labels.values())])
    found = find_window(read, choices.modality)
    window = (float(choices.window[0]), float(choices.window[1])) if choices.window else (found.lower, found.upper)
    cut = crop_to_labels(read, choices.margin) if choices.margin else read
    small, volumes, notes = _fit(cut, window, share)
    counts = count_classes(read.labels, n_classes)
    scores = [case.dice.get(name, math.nan) for name in choices.class_names[1:]]
    if len(read.labels) == len(KINDS):
        scores = dice(counts).tolist()
    known = [score for score in scores if math.isfinite(score)]
    title = f"{case.name}, mean Dice {np.mean(known):.3f}" if known else case.name
    windows = {"given": window} if choices.window else {}
    if found.modality == "ct":
        windows |= CT_WINDOWS
    else:
        windows |= {"0.5 to 99.5 %": (found.lower, found.upper)}
        windows |= {"all values": (float(read.image.min()), float(read.image.max()))}
    described = {
        "name": case.name,
        "title": title,
        "labels": list(read.labels),
        "modality": found.modality,
        "window": window,
        "windows": windows,
        "start": middle(small),
        "toVoxel": np.linalg.inv(read.file_affine).tolist(),
        "dice": [score if math.isfinite(score) else None for score in scores],
        "notes": notes,
    }
    millilitres = abs(float(np.linalg.det(read.file_affine[:3, :3]))) / 1000
    for name, axis in zip(KINDS, (1, 0), strict=True):
        sizes = (counts.sum(axis)[1:] * millilitres).tolist()
        described[f"{name}Volumes"] = sizes if name in read.labels else []
    return Content(volumes, described, n_classes)


def _fit(cut: Shown, window: tuple[float, float], share: float) -> tuple[Shown, dict[str, bytes], list[str]]:
    most = MOST_VOXELS
    while True:
        small = reduce_to(cut, most)
        voxels, slope, intercept = store(small.image, window)
        volumes = {"image": encode(voxels, small.affine, slope, intercept)}
        volumes |= {name: encode(labels, small.affine, label=True) for name, labels in small.labels.items()}
        if _size(volumes) <= share or small.image.size == 1:
            break
        most = max(1, int(small.image.size * 0.95 * share / _size(volumes)))
    rounded = [] if slope == 1 else [f"Intensities are rounded to {slope:.3g}."]
    return small, volumes, [*small.notes, *rounded]


def _size(volumes: dict[str, bytes]) -> int:
    return math.ceil(sum(map(len, volumes.values())) * IN_TEXT)
