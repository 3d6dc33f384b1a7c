"""The dilated 3D ResNet encoder of MedicalNet.

Chen, Ma and Zheng, "Med3D: Transfer Learning for 3D Medical Image Analysis", arXiv:1904.00625. Stages 3 and 4 keep the
resolution of stage 2 and dilate their convolutions by 2 and 4 instead of striding, so MONAI's and torchvision's 3D
ResNets accept the same tensors and compute another function. Parameter names are those of the published files.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from med3d_nets.dilation import DilatedConv3d

__all__ = ["DEPTHS", "STRIDES", "BasicBlock", "Bottleneck", "ResNetEncoder", "ZeroPadShortcut"]

STRIDES = (2, 4, 8, 8, 8)
"""Output stride of the stem and of ``layer1`` to ``layer4``."""


class ZeroPadShortcut(nn.Module):
    """Shortcut A: every ``stride``-th voxel, with zero channels appended. It has no parameters.

    MedicalNet's own version reads ``.data`` and so cuts the gradient of the shortcut; this one passes it, which leaves
    the forward function as it was.

    Args:
        out_channels: number of channels to pad to.
        stride: step along each spatial axis.
    """

    def __init__(self, out_channels: int, stride: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, channel, depth, height, width)`` to ``out_channels`` channels at the reduced size."""
        step = self.stride
        x = x[:, :, ::step, ::step, ::step]
        return F.pad(x, [0, 0, 0, 0, 0, 0, 0, self.out_channels - x.shape[1]])


def _conv3x3x3(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Conv3d:
    if dilation > 1 and stride == 1:
        return DilatedConv3d(in_channels, out_channels, dilation)
    return nn.Conv3d(in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False)


class BasicBlock(nn.Module):
    """Two 3 x 3 x 3 convolutions with a shortcut (depths 10, 18 and 34)."""

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, stride: int = 1, dilation: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3x3(in_channels, width, stride, dilation)
        self.bn1 = nn.BatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3x3(width, width, 1, dilation)
        self.bn2 = nn.BatchNorm3d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_channels, depth, height, width)`` to ``(batch, width, depth', height', width')``."""
        residual = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += residual
        return self.relu(out)


class Bottleneck(nn.Module):
    """1 x 1 x 1, 3 x 3 x 3 and 1 x 1 x 1 convolutions with a shortcut (depths from 50)."""

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int = 1, dilation: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = _conv3x3x3(width, width, stride, dilation)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_channels, depth, height, width)`` to ``(batch, 4 * width, depth', height', width')``."""
        residual = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += residual
        return self.relu(out)


DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    10: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
    200: (Bottleneck, (3, 24, 36, 3)),
}
"""Block and number of blocks per stage, by depth."""


class ResNetEncoder(nn.Module):
    """MedicalNet's encoder: a stem and four stages, without a classifier.

    Args:
        depth: one of :data:`DEPTHS`.
        shortcut: ``"A"`` or ``"B"``, see :class:`ZeroPadShortcut` and :class:`~med3d_nets.variants.Variant`.
        in_channels: channels of the input volume. Published weights have one; see
            :func:`med3d_nets.weights.inflate_stem`.

    Raises:
        ValueError: if the depth or the shortcut is not one of these.
    """

    def __init__(self, depth: int, shortcut: str = "B", in_channels: int = 1) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth must be one of {', '.join(map(str, DEPTHS))}, got {depth!r}")
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut must be 'A' or 'B', got {shortcut!r}")
        block, blocks = DEPTHS[depth]
        self.channels: tuple[int, ...] = (64, *(width * block.expansion for width in (64, 128, 256, 512)))
        self.conv1 = nn.Conv3d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        self.layer1 = _make_stage(block, blocks[0], 64, 64, shortcut)
        self.layer2 = _make_stage(block, blocks[1], self.channels[1], 128, shortcut, stride=2)
        self.layer3 = _make_stage(block, blocks[2], self.channels[2], 256, shortcut, dilation=2)
        self.layer4 = _make_stage(block, blocks[3], self.channels[3], 512, shortcut, dilation=4)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of the stem and of the four stages.

        Args:
            x: ``(batch, in_channels, depth, height, width)``, any spatial size.

        Returns:
            Five tensors of :attr:`channels` channels, at :data:`STRIDES` (sizes rounded up).
        """
        stem = self.relu(self.bn1(self.conv1(x)))
        stage1 = self.layer1(self.maxpool(stem))
        stage2 = self.layer2(stage1)
        stage3 = self.layer3(stage2)
        stage4 = self.layer4(stage3)
        return [stem, stage1, stage2, stage3, stage4]


def _make_stage(
    block: type[BasicBlock] | type[Bottleneck],
    blocks: int,
    in_channels: int,
    width: int,
    shortcut: str,
    stride: int = 1,
    dilation: int = 1,
) -> nn.Sequential:
    out_channels = width * block.expansion
    downsample: nn.Module | None = None
    if stride != 1 or in_channels != out_channels:
        if shortcut == "A":
            downsample = ZeroPadShortcut(out_channels, stride)
        else:
            downsample = nn.Sequential(
                nn.Conv3d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm3d(out_channels)
            )
    layers: Sequence[nn.Module] = [
        block(in_channels, width, stride, dilation, downsample),
        *(block(out_channels, width, dilation=dilation) for _ in range(1, blocks)),
    ]
    return nn.Sequential(*layers)
