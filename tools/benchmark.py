"""Volumes per second of training, and where the time goes, printed as Markdown.

``python tools/benchmark.py`` trains with the shipped ``train.json`` on synthetic volumes of about the size of the
network's input, and times the steps of an iteration one by one beside it. ``--data_root`` and ``--img_list`` measure on
real scans. The row "as upstream" is the same network computed by the library's convolutions alone, with the loss at a
quarter of the resolution as MedicalNet has it: what the original's iteration costs without its loading.

``--recipe patch`` measures an iteration of the ``patch`` recipe and the most memory that it takes, in a process of its
own: ``python tools/benchmark.py --recipe patch --variant resnet_50 --patch_size 96,160,160 --batch_size 1``. With
``--activation_checkpointing`` a second row shows what that saves and costs. What is counted to need more than the
machine has is not run.
"""

from __future__ import annotations

import argparse
import copy
import functools
import multiprocessing
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel
import numpy as np
import torch
from monai.losses import DiceCELoss
from torch import Tensor

from med3d_nets import create_model, dilation
from med3d_nets.checkpointing import checkpoint_activations
from med3d_nets.commands import exit_with_message
from med3d_nets.errors import Med3dError
from med3d_nets.footprint import find_memory_gb, iteration_cost
from med3d_nets.precision import is_faster, name_precision
from med3d_nets.settings import RECIPES
from med3d_nets.timing import time_iterations
from med3d_nets.variants import get_variant

ROOT = Path(__file__).resolve().parent.parent
SHARE = 0.8
"""Share of the memory that an iteration is counted to need at most; the rest is for the libraries."""


def synthetic(folder: Path, size: tuple[int, int, int], n_volumes: int) -> None:
    """Write volumes of noise with a box as label, a little larger than ``size``, and their list."""
    random = np.random.RandomState(0)
    lines = []
    for index in range(n_volumes):
        shape = tuple(length + random.randint(0, 8) for length in size)
        label = np.zeros(shape, np.uint8)
        label[tuple(slice(length // 3, length // 2) for length in shape)] = 1
        for kind, array in (("image", random.normal(100, 20, shape).astype(np.float32)), ("label", label)):
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / f"{kind}_{index}.nii.gz")
        lines.append(f"image_{index}.nii.gz label_{index}.nii.gz\n")
    (folder / "train.txt").write_text("".join(lines))
    (folder / "val.txt").write_text("".join(lines[:1]).replace("_0.", "_val."))
    for kind in ("image", "label"):
        (folder / f"{kind}_val.nii.gz").write_bytes((folder / f"{kind}_0.nii.gz").read_bytes())


def train(variant: str, options: dict[str, object]) -> list[float]:
    """Volumes per second of every epoch but the first, from the shipped config's own log.

    Raises:
        RuntimeError: if the training fails, with its output.
    """
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", "configs/train.json", *words]
    bundle = ROOT / "bundles" / get_variant(variant).bundle
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return [float(rate) for rate in re.findall(r"([\d.]+) volumes/s", done.stdout)][1:]


def iteration_ms(
    variant: str, size: tuple[int, int, int], batch: int, device: torch.device, as_upstream: bool, repeats: int
) -> dict[str, float]:
    """Median milliseconds of each step of an iteration, after two iterations that are not counted."""
    net = create_model(variant, 3).to(device).train()
    if as_upstream:
        for parameter in net.parameters():
            parameter.data = parameter.data.contiguous()
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-3)
    image = torch.randn(batch, 1, *size, device=device)
    label = torch.randint(0, 3, (batch, 1, *size), device=device)
    dice_ce, cross_entropy = DiceCELoss(to_onehot_y=True, softmax=True), torch.nn.CrossEntropyLoss()
    times: dict[str, list[float]] = {"forward": [], "loss": [], "backward": [], "optimiser": []}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times[name].append(1000 * (time.perf_counter() - started))
        return result

    def loss_of(logits: Tensor) -> Tensor:
        if not as_upstream:
            return dice_ce(logits, label)
        return cross_entropy(logits, torch.nn.functional.interpolate(label.float(), logits.shape[2:])[:, 0].long())

    for _ in range(repeats + 2):
        optimiser.zero_grad()
        logits = timed("forward", lambda: net.head(net.encoder(image)) if as_upstream else net(image))
        loss = timed("loss", functools.partial(loss_of, logits))
        timed("backward", loss.backward)
        timed("optimiser", optimiser.step)
    return {name: float(np.median(values[2:])) for name, values in times.items()}


def patch_iteration(
    variant: str, size: tuple[int, int, int], batch: int, n_seg_classes: int, checkpointed: bool, repeats: int
) -> tuple[float, float]:
    """Median seconds of an iteration of the ``patch`` recipe, after one that is not counted, and GB at its peak.

    In mixed precision where that is faster, and with freed memory kept, as the recipe trains. On a GPU the peak is what
    torch had allocated there. On a CPU it is what this process had in memory at any time, libraries included.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = create_model(variant, n_seg_classes, head="unet").to(device)
    checkpoint_activations(network, checkpointed).train()
    _average = copy.deepcopy(network)  # of the weights: the recipe has one in memory
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    image = torch.randn(batch, 1, *size, device=device)
    label = torch.randint(0, n_seg_classes, (batch, 1, *size), device=device).float()
    times = time_iterations(network, optimiser, loss_function, image, label, repeats + 1, is_faster(device))
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _most_resident()
    return float(np.median(times[1:])), peak / 1e9


def _most_resident() -> int:
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_patches(
    variant: str, size: tuple[int, int, int], batch: int, n_seg_classes: int, checkpointed: bool, repeats: int
) -> tuple[float, float]:
    """:func:`patch_iteration` in a process of its own, whose peak is of this iteration alone.

    Raises:
        Med3dError: if the system ended that process, as it does where memory runs out.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        done = pool.submit(patch_iteration, variant, size, batch, n_seg_classes, checkpointed, repeats)
        try:
            return done.result()
        except BrokenProcessPool as error:
            raise Med3dError("the system ended the iteration's process, probably because memory ran out") from error


def print_patch_recipe(given: argparse.Namespace, device: torch.device) -> None:
    """Measure the ``patch`` recipe and print a row without activation checkpointing and, if wanted, one with it.

    Raises:
        Med3dError: if the patch is too small to train on, or no row was run.
    """
    size, batch, found = given.patch_size, given.batch_size or 2, given.memory_gb or find_memory_gb(device)
    by = "x".join(map(str, size))
    count = functools.partial(iteration_cost, given.variant, size, batch, given.n_seg_classes, head="unet", adamw=True)
    rows = (False, True) if given.activation_checkpointing else (False,)
    try:
        counts = [count(half=device.type == "cuda", activation_checkpointing=row)[0] / 1e9 for row in rows]
    except Med3dError:
        raise
    except ValueError as error:  # batch normalisation needs more than one voxel at a stride of 8
        raise Med3dError(f"patches of {by} voxels in batches of {batch} cannot be trained on: {error}") from error
    if min(counts) > SHARE * found:
        raise Med3dError(
            f"patches of {by} voxels in batches of {batch} do not fit: counted {min(counts):.3g} GB of {found:.3g} GB, "
            f"expected at most {SHARE:.0%} of that; lower --patch_size or --batch_size"
            + ("" if given.activation_checkpointing else ", or try --activation_checkpointing")
        )
    precision = name_precision(device, size[0])
    _print_title(f"{given.variant}, patch recipe, {by.replace('x', ' x ')}, batch {batch}, {precision}", device)
    columns = ("activation checkpointing", "s per iteration", "peak memory", "counted")
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for row, counted in zip(rows, counts, strict=True):
        measured = f"does not fit in {found:.3g} GB | -"
        if counted <= SHARE * found:
            repeats = given.repeats or 2
            seconds, peak = measure_patches(given.variant, size, batch, given.n_seg_classes, row, repeats)
            measured = f"{seconds:.2f} s | {peak:.2f} GB"
        print(f"| {'yes' if row else 'no'} | {measured} | {counted:.2f} GB |", flush=True)


def print_whole_recipe(given: argparse.Namespace, device: torch.device) -> None:
    """Measure the ``whole`` recipe: a row for this package's iteration, one for upstream's, and ``train.json``."""
    size, batch = tuple(given.size), given.batch_size or 4
    _print_title(f"{given.variant}, {size[0]} x {size[1]} x {size[2]}, batch {batch}", device)
    columns = ("computed", "forward", "loss", "backward", "optimiser", "ms per iteration", "volumes/s")
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for as_upstream in (False, True):
        # A fraction of 0 sends every convolution to the library.
        with mock.patch.object(dilation, "MAX_FRACTION", 0.0 if as_upstream else dilation.MAX_FRACTION):
            steps = iteration_ms(given.variant, size, batch, device, as_upstream, given.repeats or 15)
        whole = sum(steps.values())
        each = " | ".join(f"{value:.0f} ms" for value in steps.values())
        row = "as upstream" if as_upstream else "here"
        print(f"| {row} | {each} | {whole:.0f} | {1000 * batch / whole:.1f} |", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data_root = given.data_root and Path(given.data_root).resolve()  # training runs in the bundle's folder
        data: dict[str, object] = {"data_root": data_root, "img_list": given.img_list, "val_list": given.val_list}
        if not given.data_root:
            synthetic(folder, size, given.n_volumes)
            data["data_root"] = folder
        options = {**data, **dict(zip(("input_D", "input_H", "input_W"), size, strict=True)), "batch_size": batch}
        options |= {"n_seg_classes": given.n_seg_classes, "n_epochs": given.n_epochs, "pretrain_path": ""}
        options |= {"val_interval": given.n_epochs, "ckpt_dir": folder / "models", "output_dir": folder / "eval"}
        rates = train(given.variant, options)
    print(f"\ntrain.json, loading and augmentation included: {np.median(rates):.1f} volumes/s "
          f"(median of {len(rates)} epochs after the first)")  # fmt: skip


def _print_title(what: str, device: torch.device) -> None:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{what}, {name}, {platform.machine()}, torch {torch.__version__}\n", flush=True)


def _patch_size(text: str) -> tuple[int, ...]:
    size = tuple(int(part) for part in text.strip("[]() ").split(","))
    if len(size) != 3 or min(size) < 1:
        raise ValueError
    return size


_patch_size.__name__ = "three numbers of voxels"  # in argparse's message


def main() -> None:
    """Measure and print; exit with 1 for an error that the user can mend."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="resnet_10")
    parser.add_argument("--recipe", choices=RECIPES, default="whole")
    parser.add_argument("--batch_size", type=int, help="4 for the whole recipe, 2 for patches, if not given")
    parser.add_argument("--repeats", type=int, help="iterations; 15 for the whole recipe, 2 for patches, if not given")
    parser.add_argument("--n_seg_classes", type=int, default=2)
    whole = parser.add_argument_group("of the whole recipe")
    whole.add_argument("--size", type=int, nargs=3, default=(40, 56, 40), metavar=("D", "H", "W"))
    whole.add_argument("--n_volumes", type=int, default=80)
    whole.add_argument("--n_epochs", type=int, default=4)
    whole.add_argument("--data_root", default="")
    whole.add_argument("--img_list", default="train.txt")
    whole.add_argument("--val_list", default="val.txt")
    patch = parser.add_argument_group("of the patch recipe")
    patch.add_argument("--patch_size", type=_patch_size, default=(96, 160, 160), metavar="D,H,W")
    patch.add_argument("--activation_checkpointing", action="store_true", help="measure with it, too")
    patch.add_argument("--memory_gb", type=float, default=0, help="GB of 10^9 bytes not to exceed, if less than found")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with exit_with_message():
        (print_patch_recipe if given.recipe == "patch" else print_whole_recipe)(given, device)


if __name__ == "__main__":
    main()
