"""Dilated 3D convolution that skips the taps which fall on padding, for CPUs.

At MedicalNet's output stride of 8, a volume of 40 x 56 x 40 voxels leaves 5 x 7 x 5 positions to a convolution that is
dilated by 4: most of its 27 taps read nothing but padding. A library convolution computes them all the same; this one
multiplies only the positions where a tap meets the volume. ``tools/benchmark.py`` prints what that saves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["DilatedConv3d", "covered_fraction"]

MAX_FRACTION = 0.65
"""Share of multiplications left above which the library's convolution is used (measured on two cores)."""


def covered_fraction(size: tuple[int, ...], dilation: int) -> float:
    """Share of a 3 x 3 x 3 kernel's multiplications that meet the volume and not its padding.

    Args:
        size: depth, height and width of the feature map.
        dilation: dilation, and padding, along each axis.
    """
    fraction = 1.0
    for length in size:
        fraction *= (length + 2 * max(0, length - dilation)) / (3 * length)
    return fraction


class DilatedConv3d(nn.Conv3d):
    """A 3 x 3 x 3 convolution of stride 1 whose padding equals its dilation, without bias.

    It is an ``nn.Conv3d`` in every respect (parameters, TorchScript, ONNX, CUDA) but for the way in which small feature
    maps are computed on a CPU.
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False)
        # Channels last, so that the weights of one tap are a matrix that needs no copy.
        self.weight.data = self.weight.data.contiguous(memory_format=torch.channels_last_3d)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_channels, depth, height, width)`` to ``(batch, out_channels, depth, height, width)``."""
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript compiles the second condition otherwise
            if self._skips_padding(x):
                weight = self.weight
                if torch.is_autocast_enabled("cpu"):
                    dtype = torch.get_autocast_dtype("cpu")
                    x, weight = x.to(dtype), weight.to(dtype)
                return _SkipPadding.apply(x, weight, self.dilation[0])
        # cuDNN picks its layout from the weight's: leave it the ordinary one.
        return self._conv_forward(x, self.weight.contiguous() if x.is_cuda else self.weight, self.bias)

    @torch.jit.unused
    def _skips_padding(self, x: Tensor) -> bool:
        if (
            x.device.type != "cpu"
            or x.dtype not in (torch.float32, torch.bfloat16)
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()
        ):
            return False
        return covered_fraction(tuple(x.shape[2:]), self.dilation[0]) <= MAX_FRACTION


def _taps(size: torch.Size, dilation: int) -> Iterator[tuple[int, tuple[slice, ...], tuple[slice, ...]]]:
    """Kernel positions that meet the volume: their index, and where they read and write."""
    for index in range(27):
        offsets = [(index // step % 3 - 1) * dilation for step in (9, 3, 1)]
        if all(abs(offset) < length for offset, length in zip(offsets, size, strict=True)):
            spans = list(zip(offsets, size, strict=True))
            read = tuple(slice(max(0, offset), length + min(0, offset)) for offset, length in spans)
            write = tuple(slice(max(0, -offset), length - max(0, offset)) for offset, length in spans)
            yield index, (slice(None), *read), (slice(None), *write)


def _by_tap(weight: Tensor) -> Tensor:
    """View ``(out, in, 3, 3, 3)``, laid out channels last, as ``(27, out, in)``."""
    return weight.contiguous(memory_format=torch.channels_last_3d).movedim((2, 3, 4), (0, 1, 2)).flatten(0, 2)


class _SkipPadding(torch.autograd.Function):
    """The convolution as one matrix product per tap, over ``(batch, depth, height, width, channel)`` tensors.

    Products are added up in float32, of bfloat16 too.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        x = x.movedim(1, -1).contiguous()
        kernel = _by_tap(weight)
        y = x.new_zeros((*x.shape[:-1], weight.shape[0]), dtype=torch.float32)
        for index, read, write in _taps(x.shape[1:4], dilation):
            y[write] += x[read] @ kernel[index].T
        ctx.save_for_backward(x, kernel)
        ctx.dilation = dilation
        return y.to(x.dtype).movedim(-1, 1).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, kernel = ctx.saved_tensors
        grad = grad.movedim(1, -1).contiguous()
        grad_x = torch.zeros_like(x, dtype=torch.float32)
        shape = (*kernel.shape[1:], 3, 3, 3)
        grad_weight = torch.empty(shape, dtype=grad.dtype, memory_format=torch.channels_last_3d)
        grad_kernel = _by_tap(grad_weight)
        taps = list(_taps(x.shape[1:4], ctx.dilation))
        if len(taps) < len(grad_kernel):
            grad_weight.zero_()
        for index, read, write in taps:
            part = grad[write].flatten(0, 3)
            grad_x[read] += (part @ kernel[index]).view_as(x[read])
            torch.mm(part.T, x[read].flatten(0, 3), out=grad_kernel[index])
        return grad_x.to(x.dtype).movedim(-1, 1).contiguous(), grad_weight, None
