"""Memory and arithmetic that a training iteration needs, counted without hardware, and the memory that there is.

One iteration runs on torch's ``meta`` device, where tensors have sizes and no content, and every tensor that is alive
is counted: weights, gradients, momentum, what the forward pass keeps for the backward pass, and what comes and goes.
Not counted are the libraries' work space, the allocator's gaps and the GPU's own context. torch has such a count in
``torch.distributed._tools`` alone, which is not public; floating-point operations are counted by torch's own mode.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from med3d_nets.checkpointing import checkpoint_activations
from med3d_nets.distributed import gather_shares
from med3d_nets.networks import create_classifier, create_model

__all__ = ["Cost", "LiveTensors", "find_memory_gb", "iteration_cost", "training_cost"]

_EDGES = (64, 96)
"""Edges of the two cubes that the counts are taken at: large enough for the volumes to outweigh the weights."""


@dataclass(frozen=True)
class Cost:
    """What a training iteration needs, in single precision.

    Attributes:
        fixed_bytes: part that does not depend on the batch: weights, their gradients and momentum.
        voxel_bytes: part of each voxel in the batch.
        voxel_flop: floating-point operations for each voxel in the batch, forwards and backwards.
    """

    fixed_bytes: int
    voxel_bytes: float
    voxel_flop: float

    def n_bytes(self, n_voxels: int) -> int:
        """Bytes of an iteration on a batch of so many voxels."""
        return self.fixed_bytes + round(self.voxel_bytes * n_voxels)

    def n_voxels(self, n_bytes: float) -> int:
        """Voxels of the largest batch that so many bytes are enough for, 0 if there is none."""
        return max(0, int((n_bytes - self.fixed_bytes) / self.voxel_bytes))


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive while operators run in this context.

    Attributes:
        peak: the largest number of bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operator and count what it allocated."""
        result = func(*args, **(kwargs or {}))
        self.add(*(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)))
        return result

    def add(self, *tensors: Tensor) -> None:
        """Count tensors, views of one storage once, until they are freed."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = storage.nbytes()
                self._now += storage.nbytes()
                weakref.finalize(storage, self._drop, storage._cdata)
        self.peak = max(self.peak, self._now)

    def _drop(self, key: int) -> None:
        self._now -= self._sizes.pop(key)


_PRECISION = {torch.conv3d: torch.float16, torch.conv_transpose3d: torch.float16, F.linear: torch.float16}
_PRECISION |= dict.fromkeys((F.group_norm, torch.softmax, F.cross_entropy), torch.float32)


class _MixedPrecision(TorchFunctionMode):
    """Casts what ``torch.autocast``, which does not know meta tensors, would for a GPU in these networks and losses."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operator on floating-point tensors of the precision that it has."""
        given = (args, kwargs or {})
        if dtype := _PRECISION.get(func):
            given = tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, given)
        return func(*given[0], **given[1])


def _in_mixed_precision(function: Callable[..., Any], *args: Any) -> Any:
    # Layer by layer: within backward(), where activation checkpointing computes again, torch turns such modes off.
    with _MixedPrecision():
        return function(*args)


def iteration_cost(
    variant: str,
    size: tuple[int, int, int],
    batch: int,
    n_seg_classes: int = 2,
    in_channels: int = 1,
    head: str = "medicalnet",
    half: bool = False,
    activation_checkpointing: bool = False,
    adamw: bool = False,
) -> tuple[int, int]:
    """Bytes that are alive at the peak of one training iteration, and its floating-point operations.

    Args:
        variant, n_seg_classes, in_channels, head: as for :func:`~med3d_nets.networks.create_model`; or the head
            "classification".
        size: depth, height and width of the input.
        batch: volumes in the batch.
        half: in mixed precision, as ``torch.autocast`` on a GPU.
        activation_checkpointing: see :func:`~med3d_nets.checkpointing.checkpoint_activations`; what is computed again
            is among the operations.
        adamw: count a fused AdamW's state and an average of the weights, as the ``patch`` recipe has them, and not
            SGD's momentum.

    Raises:
        Med3dError: for an unknown variant or head.
        ValueError: if the input is too small for batch normalisation.
    """
    with torch.device("meta"):
        network: nn.Module
        loss_function: nn.Module
        if head == "classification":
            network, loss_function = create_classifier(variant, n_seg_classes, in_channels), nn.CrossEntropyLoss()
            label = torch.empty(batch, n_seg_classes)
        else:
            network = create_model(variant, n_seg_classes, in_channels, head)
            loss_function, label = DiceCELoss(to_onehot_y=True, softmax=True), torch.empty(batch, 1, *size)
        network = network.train()
        image = torch.empty(batch, in_channels, *size)
    if half:
        layers = (module for module in network.modules() if not list(module.children()))
        for module in (*layers, loss_function):
            module.forward = functools.partial(_in_mixed_precision, module.forward)
    checkpoint_activations(network, activation_checkpointing)
    step, tensors = _prepare(list(network.parameters()), adamw)

    def iterate() -> None:
        # Gradients count throughout, as in DistributedDataParallel's buckets; where they are freed, it is less.
        network.zero_grad(set_to_none=False)
        prediction = network(image)  # which the trainer keeps, so it has a name
        loss_function(prediction, label).backward()
        step()

    live = LiveTensors()
    live.add(image, label, *network.buffers(), *tensors)
    with live:
        iterate()
    # Not at once: the counter keeps what activation checkpointing has computed again.
    with FlopCounterMode(display=False) as flop:
        iterate()
    return live.peak, flop.get_total_flops()


def _prepare(parameters: Sequence[nn.Parameter], adamw: bool) -> tuple[Callable[[], object], list[Tensor]]:
    """The optimiser's step; and parameters, gradients and the optimiser's state."""
    gradients = [torch.zeros_like(parameter) for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if adamw:  # torch's fused step allocates nothing, and takes no meta tensors
        states = [torch.zeros_like(parameter) for _ in range(3) for parameter in parameters]  # the third: the average
        return lambda: None, [*parameters, *gradients, *states]
    # foreach is what SGD chooses by itself on a GPU.
    optimiser = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=1e-3, foreach=True)
    optimiser.step()
    momentum = [state["momentum_buffer"] for state in optimiser.state.values()]
    return optimiser.step, [*parameters, *gradients, *momentum]


@functools.lru_cache
def training_cost(
    variant: str,
    n_seg_classes: int = 2,
    in_channels: int = 1,
    head: str = "medicalnet",
    activation_checkpointing: bool = False,
) -> Cost:
    """What training with the ``patch`` recipe needs for any batch: both counts grow with the number of voxels.

    Args:
        variant, n_seg_classes, in_channels, head: as for :func:`~med3d_nets.networks.create_model`.
        activation_checkpointing: as for :func:`iteration_cost`.

    Raises:
        Med3dError: for an unknown variant or head.
    """
    small, large = (2 * edge**3 for edge in _EDGES)
    count = functools.partial(
        iteration_cost,
        batch=2,
        n_seg_classes=n_seg_classes,
        in_channels=in_channels,
        head=head,
        activation_checkpointing=activation_checkpointing,
        adamw=True,
    )
    (low, _), (high, flop) = (count(variant, (edge, edge, edge)) for edge in _EDGES)
    voxel_bytes = (high - low) / (large - small)
    return Cost(round(high - voxel_bytes * large), voxel_bytes, flop / large)


def find_memory_gb(device: torch.device | str) -> float:
    """Memory that one process of this machine may use, in GB of 10^9 bytes.

    A GPU's is all that it has. Without one it is the machine's, or its container's, shared by the processes that
    ``torchrun`` started here; not what is free at the moment, since plans would then differ from run to run. Of several
    processes, the smallest counts.
    """
    device = torch.device(device)
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device).total_memory
    else:
        found = _host_bytes() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    return min(share[0] for share in gather_shares([found])) / 1e9


def _host_bytes() -> int:
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        found = 8 * 10**9
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found = min(found, int(Path(path).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return found
