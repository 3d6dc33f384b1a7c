"""The running average of the weights: what it holds, what is validated, saved and resumed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from med3d_nets import create_model
from med3d_nets.averaging import WeightAverage
from med3d_nets.checkpointing import checkpoint_activations
from med3d_nets.errors import Med3dError


def run(network: nn.Module, average: WeightAverage, weights: list[float]) -> None:
    """A training whose iterations leave these weights."""

    def step(engine: Engine, batch: Any) -> None:
        nn.init.constant_(network.weight, weights[engine.state.iteration - 1])

    engine = Engine(step)
    average.attach(engine)
    engine.run(range(len(weights)), max_epochs=1)


def test_short_trainings_average_all_iterations() -> None:
    network = nn.Linear(1, 1)
    average = WeightAverage(network, n_iterations=100, share=0.1)
    run(network, average, [1.0, 3.0, 8.0])
    assert average.network.weight.item() == pytest.approx(4.0)
    assert network.weight.item() == 8.0


def test_long_trainings_average_their_end() -> None:
    network = nn.Linear(1, 1)
    average = WeightAverage(network, n_iterations=100, share=0.1)
    run(network, average, [5.0] * 50 + [7.0] * 50)
    assert average.network.weight.item() == pytest.approx(7 - 2 * 0.9**50)


def test_every_fifth_iteration_of_a_long_training_counts() -> None:
    network = nn.Linear(1, 1)
    average = WeightAverage(network, n_iterations=1000, share=0.5)
    run(network, average, [9.0] * 4 + [2.0] + [9.0] * 4 + [4.0])
    assert average.network.weight.item() == pytest.approx(3.0)
    average = WeightAverage(network, n_iterations=1000, share=0.5)
    run(network, average, [5.0] * 600 + [7.0] * 400)
    assert average.network.weight.item() == pytest.approx(7 - 2 * 0.99**80, abs=1e-4)


def test_batch_norms_statistics_are_averaged_too() -> None:
    network = nn.BatchNorm1d(1)
    average = WeightAverage(network, n_iterations=2, share=1)
    engine = Engine(lambda engine, batch: network.running_mean.fill_(2.0 * engine.state.iteration))
    average.attach(engine)
    engine.run([0, 1], max_epochs=1)
    assert average.network.running_mean.item() == pytest.approx(3.0)


def test_without_a_share_what_is_trained_is_validated() -> None:
    network = nn.Linear(1, 1)
    average = WeightAverage(network, n_iterations=100, share=0)
    run(network, average, [1.0, 2.0])
    assert average.network is network
    assert average.state_dict() == {}
    average.load_state_dict({})


def test_recomputing_activations_stays_with_the_network_that_it_is_of() -> None:
    network = checkpoint_activations(create_model("resnet_10", head="unet"))
    average = WeightAverage(network, n_iterations=10, share=0.1)
    nn.init.zeros_(network.encoder.conv1.weight)
    x = torch.rand(1, 1, 16, 16, 16)
    for copy in (average.network.train(), average.network.eval()):
        assert not torch.equal(copy.encoder(x)[0], network.encoder(x)[0])


def test_state_goes_on() -> None:
    network = nn.Linear(1, 1)
    first, second = (WeightAverage(network, n_iterations=10, share=0.5) for _ in range(2))
    run(network, first, [1.0, 2.0])
    second.load_state_dict(first.state_dict())
    assert second.network.weight.item() == pytest.approx(1.5)


@pytest.mark.parametrize(("shares", "said"), [((0, 0.1), "found no average"), ((0.1, 0), "found an average")])
def test_trainings_that_do_not_fit_are_told(shares: tuple[float, float], said: str) -> None:
    saved, resumed = (WeightAverage(nn.Linear(1, 1), 10, share) for share in shares)
    with pytest.raises(Med3dError, match=said):
        resumed.load_state_dict(saved.state_dict())


@pytest.mark.parametrize("share", [-0.1, 1.5, True, "a tenth"])
def test_share_that_is_none(share: Any) -> None:
    with pytest.raises(Med3dError, match=r"average_weights is .*, expected a share"):
        WeightAverage(nn.Linear(1, 1), 10, share)
