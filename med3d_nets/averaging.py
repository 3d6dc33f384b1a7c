"""A running average of the weights, which generalises better than the last ones (Izmailov et al., arXiv:1803.05407)."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from torch import nn

from med3d_nets.errors import Med3dError
from med3d_nets.runs import check_share

__all__ = ["AverageUpdate", "WeightAverage"]

MOMENTUM = "average_momentum"
"""Attribute of the trainer's state: weight of the newest weights in the average."""

UPDATES = 50
"""As many updates, or more, make an average: each costs a CPU a fifteenth of a small network's iteration."""
MAX_STEP = 5
"""Iterations from one update to the next, at most."""


class WeightAverage:
    """Ignite's ``EMAHandler`` over a share of the training, and over all iterations until there are as many.

    With Ignite's fixed momentum, the random weights of the start would weigh in the average of a short training. The
    running statistics of batch norms are averaged too.

    Args:
        network: what is trained, or its ``DistributedDataParallel``.
        n_iterations: of the whole training.
        share: of the training that the average goes back over, about; 0: there is no average.

    Attributes:
        network: what to validate and to save: the average, or without one what is trained.

    Raises:
        Med3dError: if the share is none.
    """

    def __init__(self, network: nn.Module, n_iterations: int, share: float) -> None:
        check_share("average_weights", share)
        self.step = min(MAX_STEP, max(1, int(share * n_iterations / UPDATES)))
        self.momentum = min(0.5, self.step / max(1.0, share * n_iterations))
        self.average = EMAHandler(network, self.momentum, handle_buffers="update") if share else None
        self.network: nn.Module = self.average.ema_model if self.average else getattr(network, "module", network)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        if self.average:
            updates = Events.ITERATION_COMPLETED(every=self.step)
            engine.add_event_handler(updates, self)  # before the average reads the momentum
            self.average.attach(engine, MOMENTUM, warn_if_exists=False, event=updates)

    def __call__(self, engine: Engine) -> None:
        """Set the weight with which an iteration's weights are taken into the average."""
        setattr(engine.state, MOMENTUM, max(self.momentum, self.step / engine.state.iteration))

    def state_dict(self) -> dict[str, Any]:
        """The average, for a resumed training."""
        return self.network.state_dict() if self.average else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            Med3dError: if one of the two trainings averages and the other does not.
        """
        if bool(state) != bool(self.average):
            found, expected = ("an average", "none") if state else ("no average", "one")
            raise Med3dError(
                f"found {found} of the weights in the checkpoint; expected {expected}: see average_weights"
            )
        if self.average:
            self.network.load_state_dict(state)


class AverageUpdate:
    """The handler of a :class:`WeightAverage`: MONAI's check of a bundle wants a trainer's handlers written out.

    Args:
        average: attached to the trainer.
    """

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        self.average.attach(engine)
