"""Synthetic cases for the viewer's page, and what is in a page."""

from __future__ import annotations

import base64
import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from conftest import OBLIQUE
from numpy.typing import NDArray

FLIPPED = np.diag([-1.5, -2.0, 2.5, 1.0]) @ nibabel.affines.from_matvec(np.eye(3), [-12.0, 3.0, -7.0])
AFFINES = {"oblique": OBLIQUE, "flipped": FLIPPED, "straight": np.diag([1.5, 2.0, 2.5, 1.0])}
SHAPE = (20, 24, 16)
SIDES = (60.0, 80.0, 50.0)
"""How much brighter the patient's right, front and upper half are."""


def world(affine: NDArray[np.float64], shape: tuple[int, ...] = SHAPE) -> NDArray[np.float64]:
    """RAS+ in mm of each voxel, ``(x, y, z, 3)``."""
    return nibabel.affines.apply_affine(affine, np.stack(np.indices(shape), -1))


def write_sides(folder: Path, name: str) -> dict[str, Path]:
    """An image that tells the patient's sides apart, a ball in its middle as the truth, and a shifted one.

    The sides are those of the array's axes, each of which is nearest to one of the world's.
    """
    affine = AFFINES[name]
    middle = (np.array(SHAPE) - 1) / 2
    axes, directions = nibabel.io_orientation(affine).T
    sides = np.zeros((*SHAPE, 3), bool)
    sides[..., axes.astype(int)] = (np.stack(np.indices(SHAPE), -1) - middle) * directions > 0
    image = 40 + sides @ np.array(SIDES) + np.random.RandomState(0).normal(0, 3, SHAPE)
    away = world(affine) - nibabel.affines.apply_affine(affine, middle)
    volumes = {
        "image": np.rint(image).astype(np.int16),
        "truth": (np.linalg.norm(away, axis=-1) < 8).astype(np.uint8),
        "prediction": (np.linalg.norm(away - [3, 2, 0], axis=-1) < 7).astype(np.uint8),
    }
    files = {
        "image": folder / "images" / f"{name}.nii.gz",
        "truth": folder / "labels" / f"{name}.nii.gz",
        "prediction": folder / "predictions" / f"{name}_seg.nii.gz",
    }
    for kind, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(volumes[kind], affine), path)
    return files


class Viewed(HTMLParser):
    """The parts of a page of the viewer.

    Attributes:
        data: what is told of the cases.
        volumes: NIfTI images by the names of their blocks, such as ``truth-0``.
        tags: every tag with its attributes.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.text = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: dict[str, str] = {}
        self.name = ""
        self.feed(self.text)
        self.close()
        self.data: dict[str, Any] = json.loads(self.blocks["data"])
        self.volumes = {
            name: nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text, validate=True)))
            for name, text in self.blocks.items()
            if re.fullmatch(r"(image|truth|prediction)-\d+", name)
        }

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.name = dict(attrs).get("id") or "" if tag == "script" else ""

    def handle_endtag(self, tag: str) -> None:
        self.name = ""

    def handle_data(self, data: str) -> None:
        if self.name:
            self.blocks[self.name] = self.blocks.get(self.name, "") + data
