"""Memory and time of an inference as a user runs it, printed as Markdown.

    python tools/inference_memory.py
    python tools/inference_memory.py --shape 300,512,512 --n_seg_classes 14 --model_spacing 0.7,0.7,0.7

A synthetic CT and an untrained network of the ``patch`` recipe are written to a temporary folder, and the bundle's own
``inference.json`` runs on them in a process of its own, on the CPU. What is printed is the largest resident memory that
the operating system saw that process have, libraries included. The time is mostly the network's.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the tool runs from a checkout that is not installed

from med3d_nets import commands, create_model, weights  # noqa: E402
from med3d_nets.errors import Med3dError  # noqa: E402
from med3d_nets.settings import Settings  # noqa: E402
from med3d_nets.variants import get_variant  # noqa: E402

SHAPE, SPACING, PATCH = (300, 512, 512), (0.8, 0.8, 1.0), (96, 160, 160)

CT = {"lower": -200.0, "upper": 300.0, "mean": 20.0, "std": 60.0}
"""Intensities that a network for CT could have been trained with, in HU."""

MEASURE = """
import json, platform, resource, subprocess, sys, time
started = time.perf_counter()
status = subprocess.call(sys.argv[1:], stdout=sys.stderr)
seconds = time.perf_counter() - started
unit = 1 if platform.system() == "Darwin" else 1024
print(json.dumps([status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit, seconds]))
"""
"""Between the tool and the inference stands a small process: a new one's count begins with that of its parent."""


def measure(
    *,
    shape: Sequence[int] = SHAPE,
    spacing: Sequence[float] = SPACING,
    model_spacing: Sequence[float] | None = None,
    variant: str = "resnet_10",
    n_seg_classes: int = 2,
    patch_size: Sequence[int] = PATCH,
    modality: str = "CT",
) -> None:
    """Run an inference and print its peak memory and its time.

    Args:
        shape: of the volume, in voxels.
        spacing: of the volume, in mm.
        model_spacing: of the network, in mm; that of the volume, if it is not given.
        variant: the variant's name.
        n_seg_classes: number of classes, background included.
        patch_size: of the network, in voxels.
        modality: CT, normalised by numbers of the training set, or MR, each volume by its own.

    Raises:
        Med3dError: if an option is out of range, or if the inference fails.
    """
    size, patch = _three("shape", shape, int), _three("patch_size", patch_size, int)
    file_mm = _three("spacing", spacing, float)
    network_mm = file_mm if model_spacing is None else _three("model_spacing", model_spacing, float)
    if modality not in ("CT", "MR"):
        raise Med3dError(f"--modality is {modality!r}, expected CT or MR")
    if not isinstance(n_seg_classes, int) or not 2 <= n_seg_classes <= 256:
        raise Med3dError(f"--n_seg_classes is {n_seg_classes!r}, expected a whole number from 2 to 256")
    try:
        row = get_variant(variant)
    except ValueError as error:
        raise Med3dError(f"--variant: {error}") from error
    names = ["background", *(f"class {index}" for index in range(1, n_seg_classes))]
    intensity = CT if modality == "CT" else None
    settings = Settings(row.name, "unet", "patch", 1, names, patch, spacing=network_mm, intensity=intensity)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write_volume(folder / "volume.nii.gz", size, file_mm)
        network = create_model(row.name, n_seg_classes, head="unet")
        weights.write_atomically(folder / "models" / "model.pt", network.state_dict())
        weights.write_atomically(folder / "models" / "model.json", settings.to_json())
        options = {"ckpt_dir": folder / "models", "output_dir": folder / "predictions", "no_cuda": True}
        peak, seconds = run(ROOT / "bundles" / row.bundle, {**options, "img_list": folder / "volume.nii.gz"})
        found = nibabel.Nifti1Image.from_filename(folder / "predictions" / "volume_seg.nii.gz").shape
        if found != size:
            raise Med3dError(f"the label map has the shape {found}, its volume {size}")
    print("| voxels | mm | network's mm | classes | variant | patch | peak memory, GB | time, s | machine |")
    print("|---" * 9 + "|")
    cells = [_by(size), _by(file_mm), _by(network_mm), n_seg_classes, f"`{row.name}`", _by(patch)]
    cells += [f"{peak / 1e9:.2f}", f"{seconds:.0f}", f"{torch.get_num_threads()} CPU threads, {platform.machine()}"]
    print("| " + " | ".join(map(str, cells)) + " |")


def run(bundle: Path, options: Mapping[str, Any]) -> tuple[int, float]:
    """Run inference in a bundle's folder; its peak resident memory in bytes, and its time in seconds.

    Raises:
        Med3dError: if it fails; what it printed stands on stderr.
    """
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--config_file", "configs/inference.json"]
    around = [sys.executable, "-c", MEASURE, *command, *words]
    done = subprocess.run(around, cwd=bundle, stdout=subprocess.PIPE, text=True, check=True)
    status, peak, seconds = json.loads(done.stdout)
    if status:
        raise Med3dError(f"the inference ended with status {status}, see above")
    return peak, seconds


def _write_volume(path: Path, size: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    """A box of noisy tissue in air, in HU, with axes as DICOM has them: to the left, back and up."""
    random = np.random.default_rng(0)
    values = np.full(size, -1024, np.int16)
    body = tuple(slice(length // 20, length - length // 20) for length in size)
    values[body] = random.integers(-150, 250, values[body].shape, np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-spacing[0], -spacing[1], spacing[2], 1])), path)


def _three(name: str, values: Any, kind: type) -> tuple[Any, ...]:
    allowed = (int,) if kind is int else (int, float)
    numbers = tuple(values) if isinstance(values, (tuple, list)) else (values,)
    if len(numbers) != 3 or not all(type(number) in allowed and number > 0 for number in numbers):
        what = "whole numbers of voxels" if kind is int else "numbers of mm"
        raise Med3dError(f"--{name} is {values!r}, expected three {what} above 0, such as --{name} 1,1,1")
    return tuple(kind(number) for number in numbers)


def _by(values: Sequence[Any]) -> str:
    return " x ".join(map(str, values))


def main() -> None:
    """Run :func:`measure` with the options of the command line."""
    commands.run_tool(measure, texts=("variant", "modality"))


if __name__ == "__main__":
    main()
