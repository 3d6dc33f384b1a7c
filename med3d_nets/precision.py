"""Mixed precision on CPUs, for which MONAI's trainer has none: convolutions with numbers of half the size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import Tensor

__all__ = ["MixedPrecisionInferer", "is_faster"]


def is_faster(device: torch.device | str) -> bool:
    """Whether training is faster in mixed precision: on GPUs, and on CPUs with AVX512-BF16 instructions.

    Other CPUs compute bfloat16 by float32, which takes longer than float32 itself.
    """
    device = torch.device(device)
    # Private: of torch 2.10, the oldest that is supported, no public function is known to tell it.
    return device.type == "cuda" or (device.type == "cpu" and torch.cpu._is_avx512_bf16_supported())


class MixedPrecisionInferer(SimpleInferer):
    """Calls the network, on a CPU in bfloat16 where autocast has it so, and answers in float32.

    On a GPU the trainer's own ``amp`` does it, in float16 with scaled gradients. bfloat16 has the range of float32, so
    that gradients need no scale. The loss is computed in float32.

    Args:
        enabled: whether to; otherwise, and on a GPU, this is a ``SimpleInferer``.
    """

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Map ``(batch, channel, depth, height, width)`` to the network's answer."""
        if not (self.enabled and inputs.device.type == "cpu"):
            return super().__call__(inputs, network, *args, **kwargs)
        with torch.autocast("cpu", torch.bfloat16):
            return super().__call__(inputs, network, *args, **kwargs).float()
