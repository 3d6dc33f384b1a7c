"""Trained classifiers as they answer: calibrated, in the unit of their targets, alone or as an ensemble of folds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from med3d_nets.classification.settings import ClassifierSettings
from med3d_nets.ensemble import Ensemble
from med3d_nets.networks import ClassificationNet, create_classifier
from med3d_nets.settings import read_settings

__all__ = ["NumberEnsemble", "make_classifier"]


class NumberEnsemble(Ensemble):
    """Networks whose numbers are averaged."""

    def forward(self, x: Tensor) -> Tensor:
        """The mean of the members' numbers.

        Args:
            x: ``(batch, channel, depth, height, width)``.

        Returns:
            ``(batch, 1)``, in float32.
        """
        return torch.stack([network(x).float() for network in self.networks]).mean(dim=0)


def make_classifier(variant: str, folders: Sequence[str]) -> nn.Module:
    """A network with fresh weights for each folder's ``model.json``: one alone, or an ensemble.

    Logits are divided by the temperature, and numbers are in the unit of the targets, that it names.

    Args:
        variant: of the networks.
        folders: from :func:`~med3d_nets.folds.fold_folders`.

    Raises:
        Med3dError: see :func:`~med3d_nets.settings.read_settings` and
            :func:`~med3d_nets.networks.create_classifier`.
    """
    settings = [read_settings(Path(folder) / "model.json", ClassifierSettings) for folder in folders]
    networks = [_make_one(variant, each) for each in settings]
    if len(networks) == 1:
        return networks[0]
    return NumberEnsemble(networks) if settings[0].task == "regression" else Ensemble(networks)


def _make_one(variant: str, settings: ClassifierSettings) -> ClassificationNet:
    network = create_classifier(variant, settings.n_outputs, settings.in_channels, settings.dropout)
    target = settings.target or {"mean": 0.0, "std": 1 / settings.temperature}
    network.scale, network.shift = float(target["std"]), float(target["mean"])
    return network
