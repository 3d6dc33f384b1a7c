"""Mixed precision on CPUs, for which MONAI's trainer has none: convolutions with numbers of half the size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import Tensor

from med3d_nets.resnet import STRIDES

__all__ = ["MixedPrecisionInferer", "is_faster", "name_precision"]

MIN_DEPTH = 2 * max(STRIDES) + 1
"""Voxels along the first axis from which on a CPU computes in bfloat16: no feature map then has a depth of 2.

At that depth, oneDNN leaves a part of the gradient of a 3 x 3 x 3 convolution's weights unwritten in bfloat16 (seen
with torch 2.13.0): it then is whatever lay in that memory, NaN included.
"""


def is_faster(device: torch.device | str) -> bool:
    """Whether training is faster in mixed precision: on GPUs, and on CPUs with AVX512-BF16 instructions.

    Other CPUs compute bfloat16 by float32, which takes longer than float32 itself.
    """
    device = torch.device(device)
    # Private: of torch 2.10, the oldest that is supported, no public function is known to tell it.
    return device.type == "cuda" or (device.type == "cpu" and torch.cpu._is_avx512_bf16_supported())


def name_precision(device: torch.device | str, depth: int) -> str:
    """How the ``patch`` recipe trains on patches of a depth in voxels: "mixed precision" or "float32"."""
    in_half = is_faster(device) and (torch.device(device).type == "cuda" or depth >= MIN_DEPTH)
    return "mixed precision" if in_half else "float32"


class MixedPrecisionInferer(SimpleInferer):
    """Calls the network, on a CPU in bfloat16 where autocast has it so, and answers in float32.

    On a GPU the trainer's own ``amp`` does it, in float16 with scaled gradients. bfloat16 has the range of float32, so
    that gradients need no scale. The loss is computed in float32.

    Args:
        enabled: whether to; otherwise, on a GPU, and for volumes of a depth below :data:`MIN_DEPTH`, this is a
            ``SimpleInferer``.
    """

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Map ``(batch, channel, depth, height, width)`` to the network's answer."""
        if not (self.enabled and inputs.device.type == "cpu" and inputs.shape[2] >= MIN_DEPTH):
            return super().__call__(inputs, network, *args, **kwargs)
        with torch.autocast("cpu", torch.bfloat16):
            return super().__call__(inputs, network, *args, **kwargs).float()
