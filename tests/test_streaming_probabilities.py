"""Probabilities besides the labels, patch by patch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from test_streaming import grid
from torch import Tensor

from med3d_nets.streaming import PatchInferer

PATCH = (4, 6, 5)


def network(patch: Tensor) -> Tensor:
    return torch.cat([-patch, patch, 2 * patch - 0.5], 1)


def answers(**meta: Any) -> tuple[Tensor, Tensor]:
    """Labels, and probabilities in 255ths, of a volume of noise; the labels are those without probabilities."""
    torch.manual_seed(0)
    given = grid(torch.randn(1, 8, 9, 6), **meta)
    found = PatchInferer(PATCH, n_probabilities=3)(given, network)[0].as_tensor()
    assert found.dtype == torch.uint8
    assert torch.equal(found[:1], PatchInferer(PATCH)(given, network)[0].as_tensor())
    return found[0], found[1:]


def check(labels: Tensor, probabilities: Tensor) -> None:
    assert probabilities.shape == (3, *labels.shape)
    assert (probabilities.int().sum(0) - 255).abs().max() <= 2
    chosen = probabilities.gather(0, labels[None].long())[0].int()
    assert (chosen >= probabilities.amax(0).int() - 1).all()
    assert len(labels.unique()) == 3


def test_on_the_networks_own_grid() -> None:
    labels, probabilities = answers()
    check(labels, probabilities)
    torch.manual_seed(0)
    volume = torch.randn(1, 8, 9, 6)
    expected = PatchInferer((8, 9, 6), n_probabilities=3)(grid(volume), network)[0, 1:].as_tensor()
    assert (expected.int() - (network(volume[None])[0].softmax(0) * 255).round()).abs().max() <= 1
    assert (expected.int() - probabilities.int()).abs().max() <= 1  # the network sees each voxel alone


def test_on_a_file_that_lies_otherwise_and_is_larger() -> None:
    turned = np.array([[0.0, 0, 0.5, -1], [-0.5, 0, 0, 9], [0, 1, 0, -2], [0, 0, 0, 1]])
    labels, probabilities = answers(original_affine=turned, spatial_shape=np.array((22, 10, 20)))
    check(labels, probabilities)
    assert (probabilities[:, :, 0] == torch.tensor([255, 0, 0])[:, None, None]).all()  # below the network's grid


def test_on_a_file_whose_axes_are_sheared() -> None:
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    labels, probabilities = answers(original_affine=sheared, spatial_shape=np.array((8, 9, 6)))
    check(labels, probabilities)
    assert (probabilities[:, 7, 8] == torch.tensor([255, 0, 0])[:, None]).all()  # 2.4 voxels beyond the edge
