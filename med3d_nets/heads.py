"""What turns the encoder's features into a prediction."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["MedicalNetHead"]


class MedicalNetHead(nn.Sequential):
    """MedicalNet's own segmentation head, ``conv_seg`` in the original code, with the same parameter names.

    It reads the last stage alone and answers at a quarter of the input's resolution.

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
