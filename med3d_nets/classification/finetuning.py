"""How much of a pretrained encoder learns: all of it, none, or one stage after the other from the last on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ignite import distributed as idist
from ignite.engine import Engine, Events
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from med3d_nets.errors import Med3dError
from med3d_nets.networks import ClassificationNet, create_classifier

__all__ = ["FINETUNE", "GradualUnfreezing", "check_pretrained", "create_network", "freeze_encoder"]

logger = logging.getLogger(__name__)

FINETUNE = ("full", "gradual", "frozen")
STAGES = (("layer4",), ("layer3",), ("layer2",), ("layer1",), ("conv1", "bn1"))
"""Children of the encoder that start to learn together, first ones first."""


def create_network(finetune: str = "full", **options: Any) -> ClassificationNet:
    """A network with fresh weights whose encoder learns as asked.

    Args:
        finetune: see :func:`freeze_encoder`.
        options: of :func:`~med3d_nets.networks.create_classifier`.

    Raises:
        Med3dError: see both.
    """
    return freeze_encoder(create_classifier(**options), finetune)


def freeze_encoder(network: ClassificationNet, finetune: str) -> ClassificationNet:
    """Have the encoder learn from the start (``"full"``), stage by stage (``"gradual"``), or never (``"frozen"``).

    The batch norms of a stage that does not learn keep and use their running statistics.

    Args:
        network: changed in place.
        finetune: one of :data:`FINETUNE`.

    Raises:
        Med3dError: if it is none of these; or for ``"gradual"`` with several processes, which agree once, as they
            start, on the parameters that learn.
    """
    if finetune not in FINETUNE:
        raise Med3dError(f"finetune is {finetune!r}, expected one of {', '.join(FINETUNE)}")
    if finetune == "full":
        return network
    if finetune == "gradual" and idist.get_world_size() > 1:
        raise Med3dError("finetune is 'gradual', expected 'full' or 'frozen' with several processes")
    network.encoder.requires_grad_(False)
    # A hook of the encoder, not of each batch norm: those are replaced where several GPUs train.
    network.encoder.register_forward_pre_hook(_keep_statistics)
    return network


def check_pretrained(finetune: str, pretrained: bool) -> None:
    """Refuse to keep an encoder as it is that nobody has trained.

    Raises:
        Med3dError: if there are no pretrained weights for an encoder that does not learn from the start.
    """
    if finetune != "full" and not pretrained:
        raise Med3dError(
            f"finetune is {finetune!r} without pretrained weights, expected 'full': random weights must learn"
        )


class GradualUnfreezing:
    """Lets one stage more of the encoder learn at a time, the last one first, as Howard and Ruder (arXiv:1801.06146).

    The first epochs train the head alone; the five stages follow evenly over ``share`` of the training. A resumed
    training never freezes what has learned, also where more epochs than planned would have it wait: the optimiser has
    a state for each parameter that it has changed (but for plain SGD, which has none).

    Args:
        network: what :func:`freeze_encoder` froze.
        optimizer: that of the training, with all of the network's parameters.
        n_epochs: of the whole training.
        share: of the training, after which all learns.
    """

    def __init__(self, network: ClassificationNet, optimizer: Optimizer, n_epochs: int, share: float = 0.5) -> None:
        self.network = network
        self.optimizer = optimizer
        self.n_epochs = n_epochs
        self.share = share
        self.stages = -1

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Unfreeze what is due at this epoch, or has learned before a resumed training's first."""
        epoch = engine.state.epoch
        if self.stages < 0:
            self.stages = self._learned()
            self._unfreeze(0, self.stages)
            logger.info("unfreezing: %s", self._tell(epoch))
        if (due := self._due(epoch)) > self.stages:
            logger.info("epoch %d: %s from here on", epoch, _learn(self.stages, due))
            self._unfreeze(self.stages, due)
            self.stages = due

    def _due(self, epoch: int) -> int:
        """How many stages learn in an epoch by the plan."""
        done = (epoch - 1) / (self.share * self.n_epochs)
        return min(len(STAGES), int(done * (len(STAGES) + 1)))

    def _learned(self) -> int:
        """How many stages the optimiser has changed."""
        states = [[self.optimizer.state.get(parameter) for parameter in self._parameters(names)] for names in STAGES]
        return max((number for number, found in enumerate(states, 1) if any(found)), default=0)

    def _unfreeze(self, first: int, last: int) -> None:
        for names in STAGES[first:last]:
            for parameter in self._parameters(names):
                parameter.requires_grad_(True)

    def _parameters(self, names: Sequence[str]) -> list[nn.Parameter]:
        return [value for name in names for value in self.network.encoder.get_submodule(name).parameters()]

    def _tell(self, first: int) -> str:
        """The plan of the epochs from ``first`` on."""
        now, parts = self.stages, [f"{_learn(0, self.stages)} already"] if self.stages else ["the head learns"]
        for epoch in range(first, self.n_epochs + 1):
            if (due := self._due(epoch)) > now:
                parts.append(f"{_name(now, due)} from epoch {epoch} on")
                now = due
        return "; ".join([*parts, f"not {_name(now, len(STAGES))}"] if now < len(STAGES) else parts)


def _name(first: int, last: int) -> str:
    return ", ".join(name for names in STAGES[first:last] for name in names)


def _learn(first: int, last: int) -> str:
    names = _name(first, last)
    return f"{names} learn{'' if ', ' in names else 's'}"


def _keep_statistics(encoder: nn.Module, _: object) -> None:
    for module in encoder.modules():
        if isinstance(module, _BatchNorm) and not module.weight.requires_grad:
            module.eval()  # the trainer puts the whole network into training mode at each iteration
