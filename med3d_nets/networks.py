"""Whole networks: an encoder and a head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from med3d_nets.errors import Med3dError
from med3d_nets.heads import ClassificationHead, MedicalNetHead, UNetHead
from med3d_nets.resnet import ResNetEncoder
from med3d_nets.variants import Variant, get_variant

__all__ = [
    "HEADS",
    "ClassificationNet",
    "SegmentationNet",
    "create_classifier",
    "create_model",
    "freeze_batch_norm",
]

HEADS = ("medicalnet", "unet")
"""Kinds of head that :class:`SegmentationNet` can be built with."""


class SegmentationNet(nn.Module):
    """A MedicalNet encoder with a segmentation head; children ``encoder`` and ``head``.

    Args:
        depth: depth of the encoder, see :data:`med3d_nets.resnet.DEPTHS`.
        shortcut: ``"A"`` or ``"B"``.
        n_seg_classes: number of classes, background included.
        in_channels: channels of the input volume.
        head: one of :data:`HEADS`.

    Raises:
        Med3dError: if an argument is none of these, with the value found and those expected.
    """

    __constants__ = ("has_unet",)  # so that TorchScript compiles one of the two calls

    def __init__(
        self, depth: int, shortcut: str, n_seg_classes: int, in_channels: int = 1, head: str = "medicalnet"
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise Med3dError(f"head must be one of {', '.join(HEADS)}, got {head!r}")
        if n_seg_classes < 2:
            raise Med3dError(f"n_seg_classes counts the background too, so it is at least 2, got {n_seg_classes}")
        self.encoder = ResNetEncoder(depth, shortcut, in_channels)
        self.has_unet = head == "unet"
        if self.has_unet:
            self.head: nn.Module = UNetHead(self.encoder.channels, in_channels, n_seg_classes)
        else:
            self.head = MedicalNetHead(self.encoder.channels[-1], n_seg_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits at the input's resolution.

        Upstream stops at a quarter of it and shrinks the labels instead; here the ``medicalnet`` head's output is
        brought to the input's size by trilinear interpolation. The ``unet`` head answers there itself.

        Args:
            x: ``(batch, in_channels, depth, height, width)``.

        Returns:
            ``(batch, n_seg_classes, depth, height, width)``.
        """
        features = self.encoder(x)
        if self.has_unet:
            return self.head(features, x)
        logits = self.head(features)
        return F.interpolate(logits, size=x.shape[2:], mode="trilinear", align_corners=False)


class ClassificationNet(nn.Module):
    """A MedicalNet encoder with global average pooling and a linear layer; children ``encoder`` and ``head``.

    Args:
        depth: depth of the encoder, see :data:`med3d_nets.resnet.DEPTHS`.
        shortcut: ``"A"`` or ``"B"``.
        n_outputs: number of classes, or 1 for a number.
        in_channels: channels of the input volume.
        dropout: share of the pooled features that are left out at random in training.

    Attributes:
        scale, shift: what answers are multiplied by, and what is then added, outside of training: 1 and 0 until
            something else is set, such as an inverse temperature, or a regression's unit. They are in no checkpoint.

    Raises:
        Med3dError: if ``n_outputs`` or ``dropout`` is out of range.
    """

    def __init__(self, depth: int, shortcut: str, n_outputs: int, in_channels: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        if n_outputs < 1:
            raise Med3dError(f"n_outputs is {n_outputs}, expected the number of classes, or 1 for a number")
        if not 0 <= dropout < 1:
            raise Med3dError(f"dropout is {dropout}, expected a share from 0 to below 1")
        self.encoder = ResNetEncoder(depth, shortcut, in_channels)
        self.head = ClassificationHead(self.encoder.channels[-1], n_outputs, dropout)
        self.scale, self.shift = 1.0, 0.0

    def forward_features(self, x: Tensor) -> Tensor:
        """The mean of the last stage over all positions: an embedding of the volume.

        Args:
            x: ``(batch, in_channels, depth, height, width)``.

        Returns:
            ``(batch, channels)``: 512 channels, or 2048 from a depth of 50 on.
        """
        return self.encoder(x)[-1].mean(dim=(2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the classes, or the number.

        Args:
            x: ``(batch, in_channels, depth, height, width)``.

        Returns:
            ``(batch, n_outputs)``.
        """
        answer = self.head(self.forward_features(x))
        if self.training:
            return answer
        return answer.float() * self.scale + self.shift


def create_model(
    variant: str,
    n_seg_classes: int = 2,
    in_channels: int = 1,
    head: str = "medicalnet",
    model: str | None = None,
    model_depth: int | None = None,
    resnet_shortcut: str | None = None,
) -> SegmentationNet:
    """A network of a published variant, with fresh weights.

    Args:
        variant: a name from :func:`~med3d_nets.variants.list_variants`.
        n_seg_classes: number of classes, background included.
        in_channels: channels of the input volume.
        head: one of :data:`HEADS`.
        model: MedicalNet's option of that name; the variants are all of kind ``"resnet"``.
        model_depth: MedicalNet's option of that name; must be the variant's own depth.
        resnet_shortcut: MedicalNet's option of that name; must be the variant's own shortcut.

    Raises:
        Med3dError: for an unknown variant, or an option that contradicts it.
    """
    row = _find_variant(variant, model, model_depth, resnet_shortcut)
    return SegmentationNet(row.depth, row.shortcut, n_seg_classes, in_channels, head)


def create_classifier(
    variant: str,
    n_outputs: int = 2,
    in_channels: int = 1,
    dropout: float = 0.0,
    model: str | None = None,
    model_depth: int | None = None,
    resnet_shortcut: str | None = None,
) -> ClassificationNet:
    """A network of a published variant that classifies volumes, with fresh weights.

    Args:
        variant, in_channels, model, model_depth, resnet_shortcut: as for :func:`create_model`.
        n_outputs, dropout: as for :class:`ClassificationNet`.

    Raises:
        Med3dError: for an unknown variant, or an option that contradicts it or is out of range.
    """
    row = _find_variant(variant, model, model_depth, resnet_shortcut)
    return ClassificationNet(row.depth, row.shortcut, n_outputs, in_channels, dropout)


def _find_variant(variant: str, model: str | None, model_depth: int | None, resnet_shortcut: str | None) -> Variant:
    try:
        row = get_variant(variant)
    except ValueError as error:
        raise Med3dError(str(error)) from error
    options = (("model", model, "resnet"), ("model_depth", model_depth, row.depth))
    for name, value, expected in (*options, ("resnet_shortcut", resnet_shortcut, row.shortcut)):
        if value is not None and value != expected:
            raise Med3dError(
                f"{name} is {value!r}, but {row.name} has {expected!r}; "
                "for another depth or shortcut use the bundle of that variant"
            )
    return row


def freeze_batch_norm(network: nn.Module, names: Sequence[str]) -> nn.Module:
    """Keep the running statistics of batch norms as they are, and normalise with them in training too.

    With one or two volumes a batch, the statistics of the pretrained encoder are better than the batch's own. Scales
    and offsets still learn.

    Args:
        network: changed in place.
        names: parts of module names, such as ``["encoder"]``; empty for none.

    Raises:
        Med3dError: if a name matches no batch norm.
    """
    names = [names] if isinstance(names, str) else list(names)
    norms = {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}
    for part in names:
        if not any(part in name for name in norms):
            known = sorted({name.split(".")[0] for name in norms})
            raise Med3dError(f"freeze_batch_norm: no batch norm is called '{part}'; they lie in {', '.join(known)}")
    for name, module in norms.items():
        if any(part in name for part in names):
            module.eval()
            module.register_forward_pre_hook(_stay_in_evaluation)
    return network


def _stay_in_evaluation(module: nn.Module, _: object) -> None:
    module.eval()  # the trainer puts the whole network into training mode at each iteration
