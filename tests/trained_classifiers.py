"""Classifiers with random weights, as training writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from med3d_nets.classification.settings import ClassifierSettings
from med3d_nets.networks import create_classifier
from med3d_nets.weights import write_atomically

CLASSES = ["benign", "malignant", "other | odd"]
SIZE = [16, 20, 16]
REGRESSION = {"task": "regression", "class_names": ["size"], "temperature": 1.0, "target": {"mean": 12.0, "std": 4.0}}
"""Settings that make a regression of it."""


def settings(variant: str = "resnet_10", **changes: Any) -> ClassifierSettings:
    known = {"head": "classification", "recipe": "region", "in_channels": 1, "class_names": CLASSES, "input_size": SIZE}
    known |= {"spacing": [1.0, 1.2, 1.5], "temperature": 1.7, "margin_mm": 4.0, "dropout": 0.2}
    return ClassifierSettings(**{"variant": variant, **known, **changes})


def write_classifier(folder: Path, variant: str = "resnet_10", seed: int = 1, **changes: Any) -> ClassifierSettings:
    """``model.pt`` and ``model.json``: batch norms have seen volumes, and answers differ from volume to volume."""
    torch.manual_seed(seed)
    known = settings(variant, **changes)
    network = create_classifier(variant, known.n_outputs, known.in_channels).train()
    nn.init.normal_(network.head.linear.weight, std=2)
    with torch.no_grad():
        for _ in range(3):
            network(1.5 * torch.randn(2, known.in_channels, 24, 32, 28) + 0.3)
    validation = {"val_mae": 1.5} if known.task == "regression" else {"val_auc": 0.75, "val_loss": None}
    write_atomically(folder / "model.pt", network.state_dict())
    write_atomically(folder / "model.json", known.to_json(epoch=7, validation=validation))
    return known
