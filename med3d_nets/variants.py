"""The eleven published MedicalNet checkpoints, one row each.

Everything that names a variant (bundles, documentation, converters, tests) is derived from :data:`VARIANTS`.
Digests, tensor counts and sizes are those of the files published by Tencent under the MIT licence. This module needs
nothing but the standard library.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["VARIANTS", "Variant", "batch_that_fits", "find_variants", "get_variant", "list_variants"]


@dataclass(frozen=True)
class Variant:
    """One published checkpoint.

    Attributes:
        name: the published file's stem, such as ``resnet_10_23dataset``.
        depth: depth of the ResNet: 10, 18, 34, 50, 101, 152 or 200.
        shortcut: ``"A"`` (strided slice padded with zero channels) or ``"B"`` (1 x 1 x 1 convolution).
        datasets: number of data sets that it was trained on, 8 or 23.
        sha256: digest of the published file.
        sha256_sources: how many independent public projects state that digest.
        encoder_tensors: entries of the encoder's state dict, ``num_batches_tracked`` included.
        encoder_values: numbers in those entries.
        fixed_mb: memory that training needs whatever the batch size, in MB of 10^6 bytes, in float32 at the default
            input of 56 x 448 x 448 voxels and two classes. Like ``volume_mb`` counted by ``tools/memory.py``.
        volume_mb: memory that it needs for each volume in the batch.
        lung_dice: Dice that MedicalNet's authors published, in percent, for lung segmentation from random weights and
            from this file; the rows of 8 and of 23 data sets are not of the same experiment.
        nodule_accuracy: the like for the classification of pulmonary nodules, or None.
    """

    name: str
    depth: int
    shortcut: str
    datasets: int
    sha256: str
    sha256_sources: int
    encoder_tensors: int
    encoder_values: int
    fixed_mb: int
    volume_mb: int
    lung_dice: tuple[float, float]
    nodule_accuracy: tuple[float, float] | None = None

    @property
    def filename(self) -> str:
        """Name of the published file."""
        return f"{self.name}.pth"

    @property
    def hub_repo(self) -> str:
        """Repository on the Hugging Face hub that holds the published file."""
        return f"TencentMedicalNet/MedicalNet-Resnet{self.depth}"

    @property
    def bundle(self) -> str:
        """Name of the MONAI bundle's folder."""
        return f"medicalnet_{self.name}"

    def batch_size(self, gpu_gb: int) -> int:
        """The largest batch to train with on a GPU of ``gpu_gb`` GB, 0 if none; see :func:`batch_that_fits`."""
        return batch_that_fits(self.fixed_mb, self.volume_mb, gpu_gb)


VARIANTS: tuple[Variant, ...] = (
    Variant(
        "resnet_10",
        10,
        "B",
        8,
        "2824951eaef30e115929b89bec72342380b08d14792bda1449974ac849e497c0",
        1,
        72,
        14361292,
        227,
        2147,
        (71.3, 87.16),
        (79.8, 86.87),
    ),
    Variant(
        "resnet_10_23dataset",
        10,
        "B",
        23,
        "afa8055f3e47f4a18239495d92a7abc587902c69c31c743de2b2784653b72605",
        9,
        72,
        14361292,
        227,
        2147,
        (69.31, 96.56),
    ),
    Variant(
        "resnet_18",
        18,
        "A",
        8,
        "38b3a17444c5c18a795355a868e6a2d9ce9318054067f5373d337f55c0f61da3",
        1,
        102,
        32994001,
        522,
        2563,
        (75.22, 87.26),
        (80.8, 88.89),
    ),
    Variant(
        "resnet_18_23dataset",
        18,
        "A",
        23,
        "61224f9317fcce873366deb3703183e92cc47325b726b69691b33536244e10f4",
        1,
        102,
        32994001,
        522,
        2563,
        (70.89, 94.68),
    ),
    Variant(
        "resnet_34",
        34,
        "A",
        8,
        "977a1be79298602fa35980de9c03789229ad36087fb1f4d9bde468aec653c658",
        1,
        198,
        63311073,
        999,
        3372,
        (76.82, 89.31),
        (83.84, 89.9),
    ),
    Variant(
        "resnet_34_23dataset",
        34,
        "A",
        23,
        "3ea7188e396774e4ef95b66e5e90a78273bb33f6e58d3d717bf24f5f1aaeaa28",
        1,
        198,
        63311073,
        999,
        3372,
        (75.25, 94.14),
    ),
    Variant(
        "resnet_50",
        50,
        "B",
        8,
        "5b6189cafbee2f5604a7279b62bc163365aa6a86a377e1dc260a14275cacbd84",
        1,
        318,
        46208245,
        688,
        7620,
        (71.75, 93.31),
        (84.85, 89.9),
    ),
    Variant(
        "resnet_50_23dataset",
        50,
        "B",
        23,
        "ff48a62219073fb977fd3f4ddfb8dc1367f0ec156c8d6f6c37e205bd683a246e",
        2,
        318,
        46208245,
        688,
        7620,
        (52.94, 89.25),
    ),
    Variant(
        "resnet_101",
        101,
        "B",
        8,
        "a26bbcf9b2ad35f048b0fa317234c003f171a4d719760e5c4aff9f793654ebcf",
        1,
        624,
        85306664,
        1278,
        12206,
        (72.1, 92.79),
        (81.82, 90.91),
    ),
    Variant(
        "resnet_152",
        152,
        "B",
        8,
        "e96c459f5317ef2cbb898c91575402da2c78b31a31f55c5d28943683fe0626da",
        1,
        930,
        117511515,
        1756,
        16252,
        (73.29, 92.33),
        (73.74, 90.91),
    ),
    Variant(
        "resnet_200",
        200,
        "B",
        8,
        "df58525b0276117169782617a379480d2cbc75230e84e152c603bf22a1fabfa8",
        1,
        1218,
        126735755,
        1866,
        18410,
        (71.29, 92.06),
        (76.77, 90.91),
    ),
)


def batch_that_fits(fixed_mb: int, volume_mb: int, gpu_gb: int) -> int:
    """The largest batch whose counted memory leaves a fifth of a GPU free, 0 if there is none.

    The fifth is for what is not counted: the GPU's own context, the libraries' work space, the allocator's gaps.

    Args:
        fixed_mb: MB that do not depend on the batch.
        volume_mb: MB of each volume.
        gpu_gb: memory of the GPU, in GB of 10^9 bytes.
    """
    return max(0, gpu_gb * 1000 * 4 // 5 - fixed_mb) // volume_mb


def list_variants() -> list[str]:
    """Names of all variants, in the order of the table."""
    return [variant.name for variant in VARIANTS]


def get_variant(name: str) -> Variant:
    """The row called ``name``.

    Raises:
        ValueError: if there is none; the message suggests the nearest name.
    """
    for variant in VARIANTS:
        if variant.name == name:
            return variant
    near = difflib.get_close_matches(str(name), list_variants(), n=1)
    hint = f"did you mean '{near[0]}'?" if near else "known are: " + ", ".join(list_variants())
    raise ValueError(f"no variant '{name}'; {hint}")


def find_variants(
    *, sha256: str | None = None, depth: int | None = None, shortcut: str | None = None
) -> Iterator[Variant]:
    """Rows that agree with every fact given."""
    for variant in VARIANTS:
        if sha256 is not None and variant.sha256 != sha256:
            continue
        if depth is not None and variant.depth != depth:
            continue
        if shortcut is not None and variant.shortcut != shortcut:
            continue
        yield variant
