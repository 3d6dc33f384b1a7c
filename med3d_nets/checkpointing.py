"""Activation checkpointing: less memory in training, for the time of computing activations a second time.

What the backward pass reads is not kept from the forward pass but computed anew, segment by segment
(``torch.utils.checkpoint``). MONAI's ``ActivationCheckpointWrapper`` does so too, but it renames the parameters, and
batch norms in it count every batch twice in their running statistics.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from med3d_nets.errors import Med3dError
from med3d_nets.heads import MedicalNetHead, UNetHead, merge
from med3d_nets.resnet import ResNetEncoder

__all__ = ["checkpoint_activations"]

MAX_BLOCKS = 6
"""Blocks of the encoder in a segment, at most: longer ones keep less, but what is computed again at once grows."""


def checkpoint_activations(network: nn.Module, enabled: bool = True) -> nn.Module:
    """Let the encoder and the head of a network compute their activations again in the backward pass.

    The encoder keeps the stem, each stage's output and the input of every few blocks; its forward pass runs twice. The
    ``unet`` head, whose activations at full resolution are the largest, keeps the output of each 3 x 3 x 3
    convolution, and so repeats all but those convolutions. Weights, gradients and running statistics are what they
    are without. Names in checkpoints stay, and so does all that happens without gradients or in evaluation mode. The
    network cannot be scripted by TorchScript; a fresh one with its weights can.

    Args:
        network: changed in place; see :class:`~med3d_nets.networks.SegmentationNet`.
        enabled: False leaves the network as it is.

    Raises:
        Med3dError: if the network has neither an encoder nor a head of this package.
    """
    if not enabled:
        return network
    found = [(module, run) for module in network.modules() for kind, run in _RUNS.items() if isinstance(module, kind)]
    if not found:
        raise Med3dError(
            f"activation_checkpointing: {type(network).__name__} has none of the modules that it is for: "
            f"{', '.join(kind.__name__ for kind in _RUNS)}"
        )
    for module, run in found:
        # The method of this one module: a module around it would change the names of its parameters.
        module.forward = functools.partial(_choose, module, run)
    return network


def _choose(module: nn.Module, run: Callable[..., Any], *inputs: Any) -> Any:
    if module.training and torch.is_grad_enabled():
        return run(module, *inputs)
    return type(module).forward(module, *inputs)


def _encode(encoder: ResNetEncoder, x: Tensor) -> list[Tensor]:
    """:meth:`ResNetEncoder.forward`, in segments."""
    features = [_recompute([encoder.conv1, encoder.bn1, encoder.relu], x)]
    x = features[0]
    before: list[nn.Module] = [encoder.maxpool]
    for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        for blocks in _portions(list(stage)):
            x = _recompute([*before, *blocks], x)
            before = []
        features.append(x)
    return features


def _decode(head: UNetHead, features: list[Tensor], image: Tensor) -> Tensor:
    """:meth:`UNetHead.forward`, in segments that end with a convolution.

    A segment is computed anew as far as the last operator's input, so that its convolution is not.
    """
    x = head.join(features)
    *segments, tail = _cut_after_convolutions(head.bottom_block)
    for segment in segments:
        x = _recompute(segment, x)
    sides = (features[1], features[0], image)
    for up, skip, block, side in zip(head.ups, head.skips, head.blocks, sides, strict=True):
        first, *segments, end = _cut_after_convolutions(block)
        step = functools.partial(_step, tail, up, skip, first)
        x = _checkpoint(step, [*tail, up, skip, *first], x, side)
        for segment in segments:
            x = _recompute(segment, x)
        tail = end
    return _recompute([*tail, head.classifier], x)


def _step(
    tail: Sequence[nn.Module], up: nn.Module, skip: nn.Module, first: Sequence[nn.Module], x: Tensor, side: Tensor
) -> Tensor:
    return _in_order(first, merge(up(_in_order(tail, x)), skip(side)))


def _answer(head: MedicalNetHead, features: list[Tensor]) -> Tensor:
    """:meth:`MedicalNetHead.forward`, in one segment."""
    return _recompute(list(head), features[-1])


_RUNS: dict[type[nn.Module], Callable[..., Any]] = {
    ResNetEncoder: _encode,
    UNetHead: _decode,
    MedicalNetHead: _answer,
}


def _portions(blocks: list[nn.Module]) -> Iterator[list[nn.Module]]:
    """Split into the fewest portions of at most :data:`MAX_BLOCKS`, of about equal length."""
    size = math.ceil(len(blocks) / math.ceil(len(blocks) / MAX_BLOCKS))
    for start in range(0, len(blocks), size):
        yield blocks[start : start + size]


def _cut_after_convolutions(block: nn.Module) -> list[list[nn.Module]]:
    """The layers of a decoder's block; the last part is what follows the last convolution."""
    parts: list[list[nn.Module]] = [[]]
    for layer in block.modules():
        if not isinstance(layer, nn.Sequential):
            parts[-1].append(layer)
        if isinstance(layer, nn.Conv3d):
            parts.append([])
    return parts


def _in_order(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _recompute(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    return _checkpoint(functools.partial(_in_order, layers), layers, x)


def _checkpoint(run: Callable[..., Tensor], modules: Sequence[nn.Module], *inputs: Tensor) -> Tensor:
    """Run a segment that consists of ``modules``, which draw no random numbers."""
    norms = [part for module in modules for part in module.modules() if isinstance(part, _BatchNorm)]
    return checkpoint(
        run,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _HeldStatistics(norms)),
    )


class _HeldStatistics:
    """While this context lasts, batch norms update copies of their running statistics and of their counters.

    Copies, and not no statistics at all: the recomputation must save as many tensors as the forward pass did. It may be
    entered more than once, as it is when a graph is kept for a second backward pass.
    """

    def __init__(self, norms: Sequence[_BatchNorm]) -> None:
        self._norms = norms
        self._kept: list[tuple[_BatchNorm, str, Tensor]] = []

    def __enter__(self) -> None:
        self._kept = [(norm, name, value) for norm in self._norms for name, value in norm.named_buffers(recurse=False)]
        for norm, name, value in self._kept:
            setattr(norm, name, value.clone())

    def __exit__(self, *_: object) -> None:
        for norm, name, value in self._kept:
            setattr(norm, name, value)
