"""Volumes per second of training, and where the time goes, printed as Markdown.

``python tools/benchmark.py`` trains with the shipped ``train.json`` on synthetic volumes of about the size of the
network's input, and times the steps of an iteration one by one beside it. ``--data_root`` and ``--img_list`` measure on
real scans. The row "as upstream" is the same network computed by the library's convolutions alone, with the loss at a
quarter of the resolution as MedicalNet has it: what the original's iteration costs without its loading.
"""

from __future__ import annotations

import argparse
import functools
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel
import numpy as np
import torch
from monai.losses import DiceCELoss
from torch import Tensor

from med3d_nets import create_model, dilation
from med3d_nets.variants import get_variant

ROOT = Path(__file__).resolve().parent.parent


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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="resnet_10")
    parser.add_argument("--size", type=int, nargs=3, default=(40, 56, 40), metavar=("D", "H", "W"))
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--n_volumes", type=int, default=80)
    parser.add_argument("--n_epochs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--data_root", default="")
    parser.add_argument("--img_list", default="train.txt")
    parser.add_argument("--val_list", default="val.txt")
    parser.add_argument("--n_seg_classes", type=int, default=2)
    given = parser.parse_args()
    size, batch = tuple(given.size), given.batch_size
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{given.variant}, {size[0]} x {size[1]} x {size[2]}, batch {batch}, {name}, {platform.machine()}, ", end="")
    print(f"torch {torch.__version__}\n")

    columns = ("computed", "forward", "loss", "backward", "optimiser", "ms per iteration", "volumes/s")
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for as_upstream in (False, True):
        # A fraction of 0 sends every convolution to the library.
        with mock.patch.object(dilation, "MAX_FRACTION", 0.0 if as_upstream else dilation.MAX_FRACTION):
            steps = iteration_ms(given.variant, size, batch, device, as_upstream, given.repeats)
        whole = sum(steps.values())
        each = " | ".join(f"{value:.0f} ms" for value in steps.values())
        row = "as upstream" if as_upstream else "here"
        print(f"| {row} | {each} | {whole:.0f} | {1000 * batch / whole:.1f} |", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data: dict[str, object] = {"data_root": given.data_root, "img_list": given.img_list, "val_list": given.val_list}
        if not given.data_root:
            synthetic(folder, size, given.n_volumes)
            data["data_root"] = folder
        options = {**data, **dict(zip(("input_D", "input_H", "input_W"), size, strict=True)), "batch_size": batch}
        options |= {"n_seg_classes": given.n_seg_classes, "n_epochs": given.n_epochs, "pretrain_path": ""}
        options |= {"val_interval": given.n_epochs, "ckpt_dir": folder / "models", "output_dir": folder / "eval"}
        rates = train(given.variant, options)
    print(f"\ntrain.json, loading and augmentation included: {np.median(rates):.1f} volumes/s "
          f"(median of {len(rates)} epochs after the first)")  # fmt: skip


if __name__ == "__main__":
    main()
