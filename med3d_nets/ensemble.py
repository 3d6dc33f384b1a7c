"""The networks of all folds as one network, and the settings that they share.

MONAI's ``EnsembleEvaluator`` runs its inferer once for each network and keeps every one's logits of the whole volume,
which its ``MeanEnsembled`` then stacks; the mean is of what it is given, so that each would need a softmax of its own
before. Here an inferer calls one network that answers with the mean already, patch by patch, so that memory does not
grow with the number of members but for their weights, and evaluator, inferer and postprocessing stay as they are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from med3d_nets.errors import Med3dError
from med3d_nets.networks import create_model
from med3d_nets.settings import OF_A_FOLD, Kind, Settings, read_settings
from med3d_nets.weights import load_trained

__all__ = ["Ensemble", "EnsembleCheckpointLoader", "make_network", "read_ensemble_settings"]


class Ensemble(nn.Module):
    """Networks whose softmax probabilities are averaged.

    Args:
        networks: the members; each maps ``(batch, channel, depth, height, width)`` to logits
            ``(batch, class, depth, height, width)``.

    Raises:
        Med3dError: if there are none.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        if not networks:
            raise Med3dError("an ensemble of no networks; expected at least one")
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        """Logarithm of the mean of the members' probabilities, so that a softmax of it is that mean.

        The sum is taken between logarithms: probabilities too small for float32 keep their order.

        Args:
            x: ``(batch, channel, depth, height, width)``.

        Returns:
            ``(batch, class, depth, height, width)``, in float32.
        """
        total = torch.empty(0)
        for index, network in enumerate(self.networks):
            part = torch.log_softmax(network(x).float(), dim=1)
            total = torch.logaddexp(total, part) if index else part
        return total - math.log(len(self.networks))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the weights of all members.

        Raises:
            Med3dError: if they are those of one network, as in an export of an ensemble by MONAI, which reads one file.
        """
        if not any(name.startswith("networks.") for name in state_dict):
            raise Med3dError(
                f"found the weights of one network; expected those of an ensemble of {len(self.networks)}. An export "
                "is of one network: give --fold with --folds, and that fold's model.pt"
            )
        return super().load_state_dict(state_dict, strict, assign)


def make_network(
    variant: str,
    n_seg_classes: int = 2,
    in_channels: int = 1,
    head: str = "medicalnet",
    n_networks: int = 1,
    **options: Any,
) -> nn.Module:
    """A network with fresh weights: that of :func:`~med3d_nets.networks.create_model`, or an ensemble of such.

    Args:
        variant, n_seg_classes, in_channels, head: as for ``create_model``.
        n_networks: number of members; 1: the network alone, with the names of its own checkpoint.
        options: others of ``create_model``.

    Raises:
        Med3dError: if ``n_networks`` is no whole number above 0; or see ``create_model``.
    """
    if isinstance(n_networks, bool) or not isinstance(n_networks, int) or n_networks < 1:
        raise Med3dError(f"n_networks is {n_networks!r}, expected a whole number of at least 1")
    networks = [create_model(variant, n_seg_classes, in_channels, head, **options) for _ in range(n_networks)]
    return networks[0] if n_networks == 1 else Ensemble(networks)


class EnsembleCheckpointLoader:
    """Loads the ``model.pt`` of each folder, whole, as an evaluator starts.

    MONAI's ``CheckpointLoader`` takes what fits, from one file. Federated learning disables handlers by that word in
    their name.

    Args:
        network: an :class:`Ensemble` with a member for each folder, or any network for one folder.
        folders: from :func:`~med3d_nets.folds.fold_folders`.

    Raises:
        Med3dError: if there are more members than folders, or fewer.
    """

    def __init__(self, network: nn.Module, folders: Sequence[str]) -> None:
        self.networks = list(network.networks) if isinstance(network, Ensemble) else [network]
        self.paths = [os.path.join(folder, "model.pt") for folder in folders]
        if len(self.networks) != len(self.paths):
            raise Med3dError(f"an ensemble of {len(self.networks)}, expected one for each of {', '.join(folders)}")

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load.

        Raises:
            Med3dError: see :func:`~med3d_nets.weights.load_trained`.
        """
        for network, path in zip(self.networks, self.paths, strict=True):
            load_trained(network, path)


def read_ensemble_settings(folders: Sequence[str], kind: type[Kind] = Settings) -> Kind:  # type: ignore[assignment]
    """The settings of networks that are to answer together, from the ``model.json`` in each folder.

    All must agree but for the pretrained weights, of which those of the first are kept, and for the classes that are
    reduced to their largest component: those that more than half of the networks name are.

    Args:
        folders: from :func:`~med3d_nets.folds.fold_folders`.
        kind: what the settings are of.

    Raises:
        Med3dError: naming the files and both values of each setting that differs; or see
            :func:`~med3d_nets.settings.read_settings`.
    """
    paths = [os.path.join(folder, "model.json") for folder in folders]
    settings = [read_settings(path, kind) for path in paths]
    first = settings[0]
    names = [entry.name for entry in fields(kind) if entry.name not in OF_A_FOLD]
    wrong = [
        f"{name} is {getattr(other, name)!r} in {path}, but {getattr(first, name)!r} in {paths[0]}"
        for path, other in zip(paths, settings, strict=True)
        for name in names
        if getattr(other, name) != getattr(first, name)
    ]
    if wrong:
        raise Med3dError(f"networks of an ensemble must agree: {'; '.join(wrong)}")
    votes = [number for each in settings for number in set(getattr(each, "largest_component", ()))]
    kept = [number for number in sorted(set(votes)) if 2 * votes.count(number) > len(settings)]
    return replace(first, largest_component=kept) if len(settings) > 1 and votes else first
