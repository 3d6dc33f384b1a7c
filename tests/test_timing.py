"""Iterations that are timed train the network."""

from __future__ import annotations

import torch
from torch import nn

from med3d_nets.timing import time_iterations


def test_each_iteration_is_a_step_of_the_optimiser() -> None:
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(1.0)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.5)
    ones, zeros = torch.ones(1, 1), torch.zeros(1, 1)
    seconds = time_iterations(network, optimiser, lambda answer, label: (answer - label).sum(), ones, zeros, 3)
    assert len(seconds) == 3
    assert min(seconds) > 0
    assert network.weight.item() == 1 - 3 * 0.5  # a gradient of 1 each time: none is added up
