"""``med3d list``: the variants."""

from __future__ import annotations

import json
from pathlib import Path

from med3d_nets.cli.bundles import bundle_folder, is_bundle
from med3d_nets.cli.tables import align
from med3d_nets.variants import VARIANTS, Variant

__all__ = ["list_variants"]

HEADER = ["variant", "depth", "shortcut", "data sets", "encoder values", "published file", "size", "licence"]
HEADER += ["weights", "trained for"]
LICENCE = "MIT"
TRAINED = {"segmentation": ".", "classification": "classification"}
"""Folders of trained weights in a bundle's ``models``; regression shares that of classification."""


def list_variants() -> None:
    """List the published variants, and what the bundle of each has: pretrained weights and trained networks.

    Example:
        med3d list

    Shortcut A is a strided slice padded with zero channels, B a convolution. Encoder values are the numbers in the
    published file, of four bytes each. med3d get fetches weights.
    """
    print("\n".join(align([HEADER, *map(_row, VARIANTS)])))


def _row(row: Variant) -> list[str]:
    folder = bundle_folder(row)
    facts = [row.name, str(row.depth), row.shortcut, str(row.datasets), f"{row.encoder_values:,}", row.filename]
    facts += [f"{row.encoder_values * 4 / 1e6:.0f} MB", LICENCE]
    if not is_bundle(folder):
        return [*facts, "no bundle", "no bundle"]
    weights = "yes" if (folder / "models" / "pretrained.pt").is_file() else "no"
    networks = {task: _networks(folder / "models" / below) for task, below in TRAINED.items()}
    trained = [_task(files[0], task) for task, files in networks.items() if files]
    return [*facts, weights, ", ".join(trained) or "nothing"]


def _networks(models: Path) -> list[Path]:
    """Trained weights, of one network or of folds."""
    return [*models.glob("model.pt"), *models.glob("fold_*/model.pt")]


def _task(weights: Path, default: str) -> str:
    """What a network was trained for, by the settings beside it."""
    try:
        return str(json.loads(weights.with_suffix(".json").read_text(encoding="utf-8")).get("task", default))
    except (OSError, ValueError, AttributeError):
        return default
