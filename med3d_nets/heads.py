"""What turns the encoder's features into a prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ClassificationHead", "MedicalNetHead", "UNetHead", "merge"]


class ClassificationHead(nn.Module):
    """Dropout and a linear layer, on the mean over all positions of the encoder's last stage.

    Args:
        in_channels: channels of ``layer4``.
        n_outputs: number of classes, or 1 for a number.
        dropout: share of the features that are left out at random in training.
    """

    def __init__(self, in_channels: int, n_outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_channels, n_outputs)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map pooled features ``(batch, in_channels)`` to logits ``(batch, n_outputs)``."""
        return self.linear(self.dropout(pooled))


class MedicalNetHead(nn.Sequential):
    """MedicalNet's own segmentation head, ``conv_seg`` in the original code, with the same parameter names.

    It reads the last stage alone and decides at a quarter of the input's resolution.

    Args:
        in_channels: channels of ``layer4``.
        n_seg_classes: number of classes, background included.
    """

    def __init__(self, in_channels: int, n_seg_classes: int) -> None:
        super().__init__(
            nn.ConvTranspose3d(in_channels, 32, 2, stride=2),
            nn.BatchNorm3d(32),
            nn.ReLU(inplace=True),
            nn.Conv3d(32, 32, 3, padding=1, bias=False),
            nn.BatchNorm3d(32),
            nn.ReLU(inplace=True),
            nn.Conv3d(32, n_seg_classes, 1, bias=False),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map the encoder's features to logits.

        Args:
            features: the five tensors of :class:`~med3d_nets.resnet.ResNetEncoder`.

        Returns:
            ``(batch, n_seg_classes, depth / 4, height / 4, width / 4)``, sizes rounded up to a multiple of 2.
        """
        x = features[-1]
        for layer in self:
            x = layer(x)
        return x


class UNetHead(nn.Module):
    """A decoder with skip connections from every stage of the encoder and from the input, up to the input's resolution.

    MedicalNet's last three stages share an eighth of the resolution; they are joined there. From there, each step up
    interpolates to the size of the next skip connection, whatever it is, so that any volume fits, however flat. What
    comes up and the skip connection are narrowed to half the step's width each, by a 1 x 1 x 1 convolution, and two
    3 x 3 x 3 convolutions follow. Most of the work is at full resolution, so the step there has 16 channels alone.
    Weights are stored channels last, which makes an iteration on a CPU a fifth shorter.

    Group norm (Wu and He, arXiv:1803.08494), since batches are small, and since instance norm has no answer where a
    small volume leaves a single position.

    Args:
        channels: channels of the encoder's five outputs.
        in_channels: channels of the input volume.
        n_seg_classes: number of classes, background included.
    """

    WIDTHS = (128, 64, 32, 16)
    """Channels at an eighth, a quarter, half and the whole of the resolution."""
    BLOCKS = (2, 2, 2)
    """Convolutions at a quarter, half and the whole of the resolution; docs/measured.md compares one and two there."""

    def __init__(self, channels: Sequence[int], in_channels: int, n_seg_classes: int) -> None:
        super().__init__()
        stem, stage1, *stages = channels
        deep, *widths = self.WIDTHS
        self.bottom = nn.ModuleList(nn.Conv3d(width, deep, 1, bias=False) for width in stages)
        self.bottom_block = nn.Sequential(_normalised(deep), _block(deep))
        narrow = [
            nn.Conv3d(width, half // 2, 1, bias=False) for width, half in ((stage1, widths[0]), (stem, widths[1]))
        ]
        from_input = nn.Conv3d(in_channels, widths[2] // 2, 3, padding=1, bias=False)
        self.skips = nn.ModuleList([*narrow, from_input])
        self.ups = nn.ModuleList(
            nn.Conv3d(above, width // 2, 1, bias=False) for above, width in zip(self.WIDTHS, widths, strict=False)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(_normalised(width), *(_block(width) for _ in range(n_blocks)))
            for width, n_blocks in zip(widths, self.BLOCKS, strict=True)
        )
        self.classifier = nn.Conv3d(widths[-1], n_seg_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, a=LEAK)
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)

    def forward(self, features: list[Tensor], image: Tensor) -> Tensor:
        """Map the encoder's features and its input to logits.

        Args:
            features: the five tensors of :class:`~med3d_nets.resnet.ResNetEncoder`.
            image: the input, ``(batch, in_channels, depth, height, width)``.

        Returns:
            ``(batch, n_seg_classes, depth, height, width)``.
        """
        x = self.bottom_block(self.join(features))
        sides = [features[1], features[0], image]
        for index, (up, skip, block) in enumerate(zip(self.ups, self.skips, self.blocks)):  # noqa: B905 - TorchScript
            x = block(merge(up(x), skip(sides[index])))
        return self.classifier(x)

    def join(self, features: list[Tensor]) -> Tensor:
        """Narrow the encoder's last three outputs and add them up, at an eighth of the resolution."""
        x = features[-1].new_zeros(1)
        for index, narrow in enumerate(self.bottom):
            x = x + narrow(features[2 + index])
        return x


def merge(x: Tensor, side: Tensor) -> Tensor:
    """Bring what comes up to the size of a skip connection, and put that behind it.

    Args:
        x: narrowed already, which gives the same result as after it has grown, in an eighth of the time.
        side: the skip connection, narrowed.
    """
    x = F.interpolate(x, size=side.shape[2:], mode="trilinear", align_corners=False)
    return torch.cat([x, side], dim=1)


LEAK = 0.01
GROUP = 8
"""Channels that a group norm takes together."""


def _normalised(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.GroupNorm(channels // GROUP, channels), nn.LeakyReLU(LEAK, inplace=True))


def _block(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(channels, channels, 3, padding=1, bias=False), *_normalised(channels))
