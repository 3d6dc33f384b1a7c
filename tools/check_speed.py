"""Speed and memory of ``med3d check`` as a user runs it, printed as Markdown.

    python tools/check_speed.py
    python tools/check_speed.py --volumes 60 --shape 512,512,100 --num_workers 2
    taskset -c 0,1 python tools/check_speed.py

CT-like volumes with labels are written to a temporary folder: phantoms, enlarged, with noise that takes as many bits as
a scanner's, so that they unpack no faster than real ones. The command runs on them in a process of its own. What is
printed is the largest resident memory that the operating system saw that process have, libraries included, and volumes
a minute of the time that it states for reading, without that of its start and its pages. The files have just been
written, so that they come from the system's cache.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the tool runs from a checkout that is not installed

from med3d_nets import commands  # noqa: E402
from med3d_nets.errors import Med3dError  # noqa: E402
from med3d_nets.phantom import make_phantom  # noqa: E402

SHAPE, SPACING = (512, 512, 100), (0.7, 0.7, 2.5)
COARSE = 4
"""Voxels of a volume that one of its phantom becomes, along each axis."""
SMALLEST = 16
"""Voxels that a phantom has along each axis, at least."""
NOISE_HU = 20.0

MEASURE = """
import json, platform, resource, subprocess, sys, time
started = time.perf_counter()
status = subprocess.call(sys.argv[1:], stdout=sys.stderr)
seconds, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
unit = 1 if platform.system() == "Darwin" else 1024
print(json.dumps([status, used.ru_maxrss * unit, seconds, used.ru_utime + used.ru_stime]))
"""
"""Between the tool and the check stands a small process: a new one's count begins with that of its parent."""


def measure(*, volumes: int = 24, shape: Sequence[int] = SHAPE, num_workers: int = 0) -> None:
    """Check synthetic volumes and print how many a minute, and the peak memory.

    Args:
        volumes: how many.
        shape: of each, in voxels.
        num_workers: threads of the check (0: its default).

    Raises:
        Med3dError: if an option is out of range, or if the check fails or finds an error.
    """
    if not isinstance(volumes, int) or volumes < 1:
        raise Med3dError(f"--volumes is {volumes!r}, expected a whole number of at least 1")
    lengths = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    if len(lengths) != 3 or not all(type(length) is int and length > 0 for length in lengths):
        raise Med3dError(f"--shape is {shape!r}, expected three whole numbers above 0, such as --shape 512,512,100")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        started = time.perf_counter()
        packed = [write_case(folder, number, lengths) for number in range(volumes)]
        print(f"{volumes} volumes written in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        reading, peak, seconds, cpu = run(folder, num_workers)
    print("| volumes | voxels | MB a file | cores | volumes a minute | peak memory, GB | s in all | CPU, s | machine |")
    print("|---" * 9 + "|")
    cells = [volumes, " x ".join(map(str, lengths)), f"{np.mean(packed) / 1e6:.1f}", cores()]
    cells += [f"{60 * volumes / reading:.0f}", f"{peak / 1e9:.2f}", f"{seconds:.0f}", f"{cpu:.0f}"]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy"))
    cells.append(f"{platform.machine()}, Python {platform.python_version()}, {versions}")
    print("| " + " | ".join(map(str, cells)) + " |")


def run(folder: Path, num_workers: int) -> tuple[float, int, float, float]:
    """Check a folder in a process of its own.

    Returns:
        Seconds that it states for reading, peak resident memory in bytes, seconds of the whole, and those of the CPU.

    Raises:
        Med3dError: if it does not end with status 0; what it printed stands on stderr.
    """
    command = [sys.executable, "-m", "med3d_nets", "check", str(folder), "--out", str(folder / "check")]
    command += ["--num_workers", str(num_workers)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    around = [sys.executable, "-c", MEASURE, *command]
    done = subprocess.run(around, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    status, peak, seconds, cpu = json.loads(done.stdout)
    if status:
        raise Med3dError(f"the check ended with status {status}, see above")
    report = json.loads((folder / "check" / "check.json").read_text(encoding="utf-8"))
    return report["summary"]["seconds"], peak, seconds, cpu


def cores() -> int:
    """Processors that this process, and what it starts, may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_case(folder: Path, number: int, shape: tuple[int, ...]) -> int:
    """Write an image in HU and its label, and their line of the list; the size of the image's file in bytes."""
    coarse = [max(SMALLEST, -(-length // COARSE)) for length in shape]
    phantom = make_phantom(number, shape=(coarse[2], coarse[1], coarse[0]))
    image, label = (_enlarge(volume.transpose(2, 1, 0), shape) for volume in (phantom.image, phantom.label))
    noise = np.random.default_rng(number).standard_normal(shape, np.float32)
    image = (image + NOISE_HU * noise).clip(-1024, 3071).astype(np.int16)
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1])
    names = [f"{kind}_{number:04}.nii.gz" for kind in ("image", "label")]
    for name, volume in zip(names, (image, label), strict=True):
        nibabel.save(nibabel.Nifti1Image(volume, affine), folder / name)
    with open(folder / "train.txt", "a", encoding="utf-8") as lines:
        lines.write(f"{' '.join(names)}\n")
    return (folder / names[0]).stat().st_size


def _enlarge(volume: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A volume with each voxel repeated, and cut to a shape: quick, and noise hides the steps."""
    for axis, length in enumerate(shape):
        volume = volume.repeat(-(-length // volume.shape[axis]), axis)
    return volume[tuple(map(slice, shape))]


def main() -> None:
    """Run :func:`measure` with the options of the command line."""
    commands.run_tool(measure)


if __name__ == "__main__":
    main()
