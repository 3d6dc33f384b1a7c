"""Inferences of the shipped config in a fraction of a second: a network that looks at brightness alone."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BUNDLE, write_case
from monai.bundle import ConfigWorkflow
from test_every_bundle import workflow
from torch import Tensor, nn
from torch import cat as concatenate

from med3d_nets.errors import explain
from med3d_nets.settings import Settings
from med3d_nets.weights import write_atomically

CLASSES = ["background", "one", "two"]
INTENSITY = {"lower": 0.0, "upper": 300.0, "mean": 130.0, "std": 30.0}


class Brightness(nn.Module):
    """Answers class 1 above a brightness and class 2 far above, and calls ``before`` with what it gets."""

    def __init__(self, before: Callable[[Tensor], None] = lambda volume: None) -> None:
        super().__init__()
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        """Logits of three classes."""
        self.before(x)
        return 3 * concatenate([-x, x, 3 * x - 4], dim=1)


def make_bundle(folder: Path, recipe: str = "patch") -> Path:
    """A bundle with the settings of a trained network, and any bytes in place of its weights."""
    bundle = Path(shutil.copytree(BUNDLE, folder / BUNDLE.name, ignore=shutil.ignore_patterns("models", "predictions")))
    options: dict[str, Any] = {"spacing": [0.9, 1.2, 2.0], "intensity": INTENSITY} if recipe == "patch" else {}
    size = [16, 16, 8] if recipe == "patch" else [14, 18, 16]
    settings = Settings("resnet_10", "unet", recipe, 1, CLASSES, size, **options)
    write_atomically(bundle / "models" / "model.json", settings.to_json())
    write_atomically(bundle / "models" / "model.pt", "weights")
    return bundle


def write_scans(folder: Path, *numbers: int) -> Path:
    """Write images of different content; the folder that they are in."""
    for number in numbers:
        write_case(folder, f"case_{number}", number)
    return folder / "images"


def predict(bundle: Path, images: Path | list[str], before: Callable[[Tensor], None] = lambda volume: None,
            **options: Any) -> ConfigWorkflow:  # fmt: skip
    """Run the shipped inference."""
    given: dict[str, Any] = {"quicklook": False, "handlers": [], "network": Brightness(before), **options}
    source = images if isinstance(images, list) else str(images)
    found = workflow(bundle, "inference", "inference", img_list=source, **given)
    found.run()
    return found


def refused(bundle: Path, images: Path | list[str], *others: Any, **options: Any) -> str:
    """What an inference says that ends with an error."""
    with pytest.raises(RuntimeError) as caught:
        predict(bundle, images, *others, **options)
    shown = explain(caught.value, {})
    assert shown is not None, repr(caught.value.__cause__)
    return str(shown)


def content(folder: Path) -> dict[str, bytes]:
    """Bytes of all files in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows(bundle: Path) -> list[dict[str, str]]:
    with (bundle / "predictions" / "structures.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def cube(shape: tuple[int, ...] = (6, 7, 8)) -> np.ndarray:
    """A label map with a class of two parts that touch in a corner, one of a voxel, and none of class 3."""
    labels = np.zeros(shape, np.uint8)
    labels[1:3, 2:4, 3:5] = 1
    labels[3, 4, 5] = 1
    labels[5, 0, 7] = 2
    return labels
