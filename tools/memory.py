"""Memory that training needs, counted without hardware and printed as Markdown.

    python tools/memory.py
    python tools/memory.py resnet_10 --input_D 96 --input_H 96 --input_W 96 --n_seg_classes 3
    python tools/memory.py --measure

One training iteration runs on torch's ``meta`` device, where tensors have sizes and no content, and every tensor that
is alive is counted: weights, gradients, momentum, what the forward pass keeps for the backward pass, and what comes and
goes. Not counted are the libraries' work space, the allocator's gaps and the GPU's own context; the batch sizes leave a
fifth of the GPU for them. torch has such a count in ``torch.distributed._tools`` alone, which is not public.
``--measure`` runs an iteration of each variant on the GPU and puts the most that torch had allocated beside the count.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.losses import DiceCELoss

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the tool runs from a checkout that is not installed

from med3d_nets import create_model, variants  # noqa: E402
from med3d_nets.commands import exit_with_message  # noqa: E402
from med3d_nets.dilation import DilatedConv3d  # noqa: E402
from med3d_nets.errors import Med3dError  # noqa: E402
from med3d_nets.footprint import iteration_cost  # noqa: E402
from med3d_nets.timing import time_iterations  # noqa: E402

DEFAULT_SIZE = (56, 448, 448)
GPUS = (8, 16, 24, 80)
"""Memory of the GPUs in the table, in GB."""


@dataclass(frozen=True)
class Memory:
    """What training needs, in MB of 10^6 bytes.

    Attributes:
        fixed_mb: part that does not depend on the batch: weights, their gradients and momentum, and the copies in the
            library's own layout that the dilated convolutions make on a GPU.
        volume_mb: part of each volume in the batch.
        mixed_mb: the same in mixed precision: the network's tensors in 16 bits, the loss in 32.
    """

    fixed_mb: int
    volume_mb: int
    mixed_mb: int


def peak_bytes(variant: str, size: tuple[int, int, int], batch: int, n_seg_classes: int = 2, half: bool = False) -> int:
    """Bytes that are alive at the peak of a training iteration as ``train.json`` makes it.

    Args:
        variant: the variant's name.
        size: depth, height and width of the input.
        batch: volumes in the batch.
        n_seg_classes: number of classes, background included.
        half: store the network's weights and tensors in 16 bits; the loss stays in 32.

    Raises:
        ValueError: if the input is too small for batch normalisation.
    """
    return iteration_cost(variant, size, batch, n_seg_classes, half=half)[0]


def count(variant: str, size: tuple[int, int, int] = DEFAULT_SIZE, n_seg_classes: int = 2) -> Memory:
    """Count the memory of a training iteration on a GPU.

    Args:
        variant: the variant's name.
        size: depth, height and width of the input.
        n_seg_classes: number of classes, background included.

    Raises:
        Med3dError: if the variant is not known or the input too small.
    """
    peak = functools.partial(peak_bytes, variant, size, n_seg_classes=n_seg_classes)
    try:
        one, two = peak(1), peak(2)
        mixed = peak(2, half=True) - peak(1, half=True)
    except Med3dError:
        raise
    except ValueError as error:  # batch normalisation needs more than one voxel at a stride of 8
        raise Med3dError(f"{' x '.join(map(str, size))} voxels cannot be trained on: {error}") from error
    with torch.device("meta"):
        network = create_model(variant, n_seg_classes)
    copies = sum(module.weight.nbytes for module in network.modules() if isinstance(module, DilatedConv3d))
    return Memory(*(round(value / 1e6) for value in (2 * one - two + copies, two - one, mixed)))


def table(names: Sequence[str], size: tuple[int, int, int], n_seg_classes: int) -> str:
    """The table in Markdown."""
    columns = ["variant", "fixed", "each volume", "in mixed precision", *(f"batch, {gpu} GB" for gpu in GPUS)]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name in names:
        memory = count(name, size, n_seg_classes)
        batches = (variants.batch_that_fits(memory.fixed_mb, memory.volume_mb, gpu) for gpu in GPUS)
        parts = (f"{value:,} MB" for value in (memory.fixed_mb, memory.volume_mb, memory.mixed_mb))
        lines.append("| " + " | ".join([f"`{name}`", *parts, *(str(batch or "none") for batch in batches)]) + " |")
    return "\n".join(lines)


def measure(variant: str, size: tuple[int, int, int], n_seg_classes: int, half: bool, device: torch.device) -> int:
    """Bytes that torch had allocated at most in two training iterations on one volume, as ``train.json`` makes them.

    Args:
        variant: the variant's name.
        size: depth, height and width of the input.
        n_seg_classes: number of classes, background included.
        half: in mixed precision.
        device: a GPU.
    """
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    network = create_model(variant, n_seg_classes).to(device).train()
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-3)
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True)
    image = torch.randn(1, 1, *size, device=device)
    label = torch.zeros(1, 1, *size, device=device)
    time_iterations(network, optimiser, loss_function, image, label, 2, half)  # the second has momentum
    return torch.cuda.max_memory_allocated(device)


def measured_table(names: Sequence[str], size: tuple[int, int, int], n_seg_classes: int) -> str:
    """Counts and measurements of one volume, in Markdown."""
    device = torch.device("cuda")
    columns = ("variant", "float32, counted", "measured", "mixed precision, counted", "measured")
    lines = [torch.cuda.get_device_name(device), "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name in names:
        memory, parts = count(name, size, n_seg_classes), []
        for half, volume_mb in ((False, memory.volume_mb), (True, memory.mixed_mb)):
            parts += [memory.fixed_mb + volume_mb, round(measure(name, size, n_seg_classes, half, device) / 1e6)]
        lines.append(f"| `{name}` | " + " | ".join(f"{value:,} MB" for value in parts) + " |")
    return "\n".join(lines)


def main() -> None:
    """Count and print; exit with 1 for an error that the user can mend."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", help="names of variants; all, if none is given")
    for axis, length in zip("DHW", DEFAULT_SIZE, strict=True):
        parser.add_argument(f"--input_{axis}", type=int, default=length)
    parser.add_argument("--n_seg_classes", type=int, default=2)
    parser.add_argument("--measure", action="store_true", help="compare with what a GPU takes, for one volume")
    given = parser.parse_args()
    size = (given.input_D, given.input_H, given.input_W)
    with exit_with_message():
        if min(size) < 1:
            raise Med3dError(f"--input_D, --input_H and --input_W are numbers of voxels from 1, got {size}")
        if given.measure and not torch.cuda.is_available():
            raise Med3dError("--measure needs a GPU, and torch finds none")
        print(f"{size[0]} x {size[1]} x {size[2]} voxels, {given.n_seg_classes} classes, float32 unless stated\n")
        show = measured_table if given.measure else table
        print(show(given.variants or variants.list_variants(), size, given.n_seg_classes))


if __name__ == "__main__":
    main()
