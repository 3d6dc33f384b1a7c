"""Small classified volumes for the tests of classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from test_datalist import SHAPE, ramp, save

ROOT = Path(__file__).parents[1]
LIDC = ROOT / ".." / "shared" / "data" / "LIDC_nodules"
ADRENAL = ROOT / ".." / "shared" / "data" / "AdrenalMNIST3D" / "adrenalmnist3d.npz"


def write_images(root: Path, names: Sequence[str]) -> None:
    for name in names:
        save(root / f"{name}.nii.gz", ramp())


def write_text(root: Path, labels: Mapping[str, Any], to: str = "train.txt") -> str:
    """A text list of images, which are named by the keys."""
    (root / to).write_text("".join(f"{name}.nii.gz '{label}'\n" for name, label in labels.items()), encoding="utf-8")
    return to


def write_csv(root: Path, *lines: str, to: str = "train.csv") -> str:
    (root / to).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return to


def volumes(count: int, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """``(count, *shape)`` of uint8, each volume different from the others and from one end to the other."""
    size = int(np.prod(shape))
    return (np.arange(count * size) % 251).astype(np.uint8).reshape(count, *shape)


def write_npz(root: Path, to: str = "data.npz", **labels: Sequence[Any]) -> str:
    """A file in MedMNIST's layout; for each section the labels of its volumes."""
    arrays: dict[str, Any] = {}
    for section, values in labels.items():
        arrays |= {f"{section}_images": volumes(len(values)), f"{section}_labels": np.array(values)[:, None]}
    np.savez_compressed(root / to, **arrays)
    return to
