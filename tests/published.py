"""What several tests need: networks without a random start, redrawn weights, and files in the published format."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from med3d_nets.networks import SegmentationNet
from med3d_nets.weights import load_strict, map_names

ROOT = Path(__file__).resolve().parent.parent
SEED = 20190401

# Threads of OpenMP spin while they wait for each other: where the cores are shared, two take ten times as long as one.
torch.set_num_threads(1)


def empty_net(depth: int, shortcut: str, n_seg_classes: int = 2, in_channels: int = 1) -> SegmentationNet:
    """A network whose weights are whatever the memory held; it must be loaded before use, and is built fast."""
    with torch.device("meta"):
        net = SegmentationNet(depth, shortcut, n_seg_classes, in_channels)
    return net.to_empty(device="cpu").eval()


def upstream_shapes(
    depth: int, shortcut: str, n_seg_classes: int | None = None, in_channels: int = 1
) -> dict[str, Tensor]:
    """MedicalNet's state dict on the meta device, under its names, without the head if there are no classes."""
    with torch.device("meta"):
        net = SegmentationNet(depth, shortcut, n_seg_classes or 2, in_channels)
    state = dict(net.encoder.state_dict())
    if n_seg_classes is not None:
        state |= {f"conv_seg.{name}": value for name, value in net.head.state_dict().items()}
    return state


def redraw(depth: int, shortcut: str, n_seg_classes: int | None = None, in_channels: int = 1) -> dict[str, Tensor]:
    """Weights by the recipe of the reference outputs: every tensor is drawn from its name."""
    shapes = upstream_shapes(depth, shortcut, n_seg_classes, in_channels)
    return {name: _draw(name, tuple(value.shape)) for name, value in shapes.items()}


def _draw(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    n = np.random.RandomState((zlib.crc32(name.encode()) + SEED) % 2**32).standard_normal(shape)
    if name.endswith("running_var"):
        n = 1 + 0.2 * np.abs(n)
    elif len(shape) == 5:
        n = n * np.sqrt(1 / np.prod(shape[1:]))
    elif name.endswith("weight"):
        n = 0.5 + 0.1 * n
    else:
        n = 0.1 * n
    return torch.from_numpy(np.asarray(n, dtype=np.float32))


def constant_state(
    depth: int, shortcut: str, n_seg_classes: int | None = None, in_channels: int = 1
) -> dict[str, Tensor]:
    """Weights of the right shapes, each tensor filled with :func:`constant`.

    They are views of a single number, so that files of them are small at every depth.
    """
    shapes = upstream_shapes(depth, shortcut, n_seg_classes, in_channels)
    return {name: torch.tensor(constant(name)).to(value.dtype).expand(value.shape) for name, value in shapes.items()}


def constant(name: str) -> float:
    """A number that tells a tensor's name."""
    return 0.0 if name.endswith("num_batches_tracked") else zlib.crc32(name.encode()) % 9973 / 9973


def changed(state: Mapping[str, Tensor], change: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """``state`` with some tensors replaced, added, or (for None) taken out."""
    return {name: value for name, value in {**state, **change}.items() if value is not None}


def write_published(path: Path, state: Mapping[str, Tensor], **options: Any) -> Path:
    """Write a file as they were published: ``{"state_dict": OrderedDict}``, every name below ``module.``."""
    torch.save({"state_dict": OrderedDict((f"module.{name}", value) for name, value in state.items())}, path, **options)
    return path


def write_train_py(path: Path, state: Mapping[str, Tensor], **options: Any) -> Path:
    """Write a file as the original ``train.py`` does, with its spelling of the epoch and the optimiser's state."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.001, momentum=0.9, weight_decay=1e-3)
    parameter.grad = torch.ones(3)
    optimizer.step()
    content = {
        "ecpoch": 12,
        "batch_id": 3,
        "state_dict": OrderedDict((f"module.{name}", value) for name, value in state.items()),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(content, path, **options)
    return path


def golden_params() -> list[Any]:
    """The reference outputs as parameters of a test. They are committed: without them the tests do not even start."""
    found = {path.stem: path for path in sorted((ROOT / "tests" / "golden").glob("resnet_*.npz"))}
    if not found:
        raise FileNotFoundError("no reference outputs in tests/golden")
    return [
        pytest.param(path, id=name, marks=[pytest.mark.slow] if int(name.split("_")[1]) > 50 else [])
        for name, path in found.items()
    ]


@dataclass(frozen=True)
class Run:
    """What this project's network computes for the input of the reference outputs."""

    head: np.ndarray
    whole: np.ndarray
    means: list[np.ndarray]
    shapes: list[tuple[int, ...]]
    n_tensors: int
    n_values: int


@cache
def run_golden(path: Path) -> Run:
    """Redraw the weights, load them the way this project loads any, and run the network."""
    _, depth, shortcut = path.stem.split("_")
    net = empty_net(int(depth), shortcut, 3)
    load_strict(net, map_names(redraw(int(depth), shortcut, 3)), path)
    x = torch.from_numpy(np.random.RandomState(SEED).standard_normal((1, 1, 40, 56, 48)).astype(np.float32))
    with torch.no_grad():
        features = net.encoder(x)
        head = net.head(features)
        whole = torch.nn.functional.interpolate(head, size=x.shape[2:], mode="trilinear")
        assert torch.equal(net(x), whole)
    encoder = net.encoder.state_dict().values()
    return Run(
        head.numpy(),
        whole.numpy(),
        [stage.mean((0, 2, 3, 4)).numpy() for stage in features[1:]],
        [tuple(stage.shape) for stage in features[1:]],
        len(encoder),
        sum(value.numel() for value in encoder),
    )


def relative_error(found: Any, expected: Any) -> float:
    """Largest difference, relative to the largest number expected."""
    found, expected = (torch.as_tensor(value).detach().double() for value in (found, expected))
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())
