"""Iterations that are timed train the network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from med3d_nets.precision import MIN_DEPTH
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


@pytest.mark.parametrize(("depth", "mixed"), [(MIN_DEPTH, torch.bfloat16), (MIN_DEPTH - 1, torch.float32)])
def test_mixed_precision_is_that_of_the_trainer(depth: int, mixed: torch.dtype) -> None:
    """On a CPU the network computes in bfloat16 unless the volume is flat, the loss in float32."""
    network = nn.Conv3d(1, 1, 1)
    seen = []
    network.register_forward_hook(lambda module, inputs, answer: seen.append(answer.dtype))

    def loss(answer: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        seen.append(answer.dtype)
        return answer.mean()

    image = torch.ones(1, 1, depth, 2, 2)
    for amp in (False, True):
        time_iterations(network, torch.optim.SGD(network.parameters(), lr=0.1), loss, image, image, 1, amp)
    assert seen == [torch.float32, torch.float32, mixed, torch.float32]
