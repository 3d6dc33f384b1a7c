"""``med3d plan`` and ``tools/plan.py``: look at training cases and propose the settings of the patch recipe."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses import DiceCELoss
from torch import nn

from med3d_nets.checkpointing import checkpoint_activations
from med3d_nets.cli.lists import data_folder, find_list
from med3d_nets.cli.tables import align
from med3d_nets.datalist import load_cases
from med3d_nets.distributed import select_device
from med3d_nets.errors import Med3dError
from med3d_nets.fingerprint import Fingerprint, count_classes, measure_cases
from med3d_nets.footprint import training_cost
from med3d_nets.networks import create_model
from med3d_nets.planning import Plan, check_given, make_plan
from med3d_nets.precision import is_faster, name_precision
from med3d_nets.settings import name_classes
from med3d_nets.sources import known_classes
from med3d_nets.timing import time_iterations
from med3d_nets.weights import write_atomically

__all__ = ["plan"]

OVERRIDES = {
    "spacing": 'three lengths in mm along the RAS axes, such as --spacing "[1,1,2.5]"',
    "patch_size": 'three numbers of voxels along the RAS axes, such as --patch_size "[64,64,32]"',
    "window_size": 'three numbers of voxels, such as --window_size "[96,96,64]"; otherwise as --patch_size',
    "batch_size": "a number, such as --batch_size 2",
    "intensity": '--intensity mr, --intensity ct, or the HU to clip to, such as --intensity "[-1000,400]"',
    "flip_axes": 'axes, such as --flip_axes "[0]" for left-right alone, or "[]" for none',
    "memory_gb": "GB of 10^9 bytes to plan for, such as --memory_gb 8",
}


def plan(
    data_root: str = ".",
    img_list: str = "",
    *,
    n_seg_classes: int = 0,
    class_names: Sequence[str] = (),
    in_channels: int = 1,
    variant: str = "resnet_10",
    head: str = "unet",
    no_cuda: bool = False,
    gpu_id: int = 0,
    memory_gb: float = 0,
    spacing: Sequence[float] = (),
    patch_size: Sequence[int] = (),
    window_size: Sequence[int] = (),
    batch_size: int = 0,
    intensity: str | Sequence[float] = "auto",
    flip_axes: str | Sequence[int] = "auto",
    activation_checkpointing: bool = False,
    num_workers: int = 0,
    iterations: int = 3,
    out: str = "",
    overwrite: bool = False,
) -> None:
    """Print what training cases look like, the settings of the recipe "patch" for them, and the time of an epoch.

    Examples:
        med3d plan /data/Task04_Hippocampus --n_seg_classes 3
        med3d plan /data/nodules --spacing "[0.7,0.7,1]" --batch_size 2 --out plan.json

    Training plans by the same rules; each value that is given here is given there by the same option.

    Args:
        data_root: folder that the list's paths are relative to, or the list in it.
        img_list: list of the training cases, as training takes it; by default the folder's, or the folder itself.
        n_seg_classes: number of classes, background included; 0: as the labels tell.
        class_names: their names; by default those of a dataset.json in the data's folder.
        in_channels: channels of the images.
        variant: of the network.
        head: of the network.
        no_cuda: plan for the CPU although there is a GPU.
        gpu_id: which GPU.
        memory_gb: memory to plan for, GB of 10^9 bytes; 0: what is found.
        spacing: mm along the RAS axes, instead of the planner's.
        patch_size: voxels along the RAS axes, instead of the planner's.
        window_size: voxels along the RAS axes of a window in inference; otherwise a patch_size that is given, or the
            planner's.
        batch_size: patches in an iteration, instead of the planner's.
        intensity: "auto", "ct", "mr" or the HU to clip to.
        flip_axes: "auto", or those that may be flipped.
        activation_checkpointing: whether training will save memory in that way.
        num_workers: threads that read files (0: up to four).
        iterations: training iterations to time (0: none).
        out: a JSON file to write.
        overwrite: whether to replace that file.

    Raises:
        Med3dError: for data or options that do not fit.
    """
    if not img_list:
        img_list = str(find_list(data_root))
        data_root = str(data_folder(data_root))
    given = (spacing, patch_size, batch_size, intensity, memory_gb, flip_axes)
    check_given(*given, in_channels, window_size=window_size)
    target = _target(out, overwrite)
    device = select_device(no_cuda, gpu_id)
    training_cost(variant, n_seg_classes or 2, in_channels, head)  # unknown names are told before files are read
    told = n_seg_classes or None
    cases = load_cases(data_root, img_list, n_seg_classes=told, in_channels=in_channels, num_workers=num_workers)
    classes = n_seg_classes or count_classes(cases, num_workers)
    names = name_classes(class_names or known_classes(img_list, data_root, classes), classes, data_root)
    fingerprint = measure_cases(cases, classes, in_channels, num_workers)
    proposed = make_plan(fingerprint, variant, head, device, *given, names, activation_checkpointing, window_size)
    print("\n".join(describe_cases(fingerprint, names)))
    print("\n".join(["", *describe_plan(proposed)]), flush=True)
    seconds = None
    if iterations:
        created = create_model(variant, classes, in_channels, head)
        network = checkpoint_activations(created, activation_checkpointing)
        seconds = time_iteration(proposed, network, classes, in_channels, device, iterations)
        print("\n".join(["", describe_time(seconds, len(cases), proposed, variant, head, device)]))
    if target:
        content = {
            "plan": asdict(proposed),
            "network": {"variant": variant, "head": head, "in_channels": in_channels, "device": device.type},
            "class_names": names,
            "cases": len(cases),
            "seconds_per_iteration": seconds,
        }
        write_atomically(target, json.dumps(content, indent=4) + "\n")
        print(f"\nwritten: {target}")


def describe_cases(fingerprint: Fingerprint, names: Sequence[str]) -> list[str]:
    """Lines of two tables: shapes, spacings and intensities; classes."""
    shapes, spacings = fingerprint.shapes, fingerprint.spacings
    lines = [f"{len(fingerprint.cases)} cases, axes in RAS order (right, anterior, superior)", ""]
    rows = [["", "minimum", "median", "maximum"]]
    for what, values, unit in (("shape", shapes, "voxels"), ("spacing", spacings, "mm")):
        rows.append([f"{what}, {unit}", *(_by(pick(values, axis=0)) for pick in (np.min, np.median, np.max))])
    rows.append(["extent, mm", *(_by(pick(shapes * spacings, axis=0)) for pick in (np.min, np.median, np.max))])
    lows, middles, highs = np.array([case.percentiles for case in fingerprint.cases]).T
    for what, values in (("0.5 %", lows), ("50 %", middles), ("99.5 %", highs)):
        rows.append([f"intensity, {what}", *(f"{pick(values):.4g}" for pick in (np.min, np.median, np.max))])
    lines += [*align(rows), ""]
    rows = [["class", "name", "cases with it", "mL, minimum", "median", "maximum", "share of voxels"]]
    totals = fingerprint.counts.sum(axis=0)
    for index, name in enumerate(names):
        present = fingerprint.counts[:, index] > 0
        volumes = fingerprint.volumes[present, index]
        of = [f"{pick(volumes):.4g}" for pick in (np.min, np.median, np.max)] if volumes.size else ["-"] * 3
        share = f"{100 * totals[index] / totals.sum():.3g} %"
        rows.append([str(index), name, f"{present.sum()} of {len(present)}", *of, share])
    lines += align(rows)
    absent = [f"{index} ({name})" for index, name in enumerate(names) if not totals[index]]
    return lines + ([f"warning: in no case: class {', '.join(absent)}; it cannot be learnt"] if absent else [])


def describe_plan(proposed: Plan) -> list[str]:
    """Lines with each setting's reason, and how to override it."""
    lines = ["proposed settings", *(f"- {reason}" for reason in proposed.reasons.values()), "", "to override, for the"]
    lines[-1] += " planner and for training alike"
    return lines + [f"- {name}: {how}" for name, how in OVERRIDES.items()]


def describe_time(seconds: float, n_cases: int, proposed: Plan, variant: str, head: str, device: torch.device) -> str:
    """The time of an epoch of one patch a case."""
    iterations = -(-n_cases // proposed.batch_size)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    precision = name_precision(device, proposed.patch_size[0])
    return (
        f"time: {seconds:.3g} s per iteration of {variant} with head {head} on {where} (median, {precision}, synthetic "
        f"patches, without loading); {iterations} iterations of {proposed.batch_size} patches, one of each case: "
        f"{iterations * seconds:.3g} s per epoch"
    )


def time_iteration(
    proposed: Plan, network: nn.Module, n_seg_classes: int, in_channels: int, device: torch.device, repeats: int
) -> float:
    """Median seconds of a training iteration on synthetic patches, after one that is not counted."""
    network.to(device).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    image = torch.randn(proposed.batch_size, in_channels, *proposed.patch_size, device=device)
    label = torch.randint(0, n_seg_classes, (proposed.batch_size, 1, *proposed.patch_size), device=device)
    times = time_iterations(network, optimiser, loss_function, image, label, repeats + 1, is_faster(device))
    return statistics.median(times[1:])


def _target(out: str, overwrite: bool) -> Path | None:
    if not out:
        return None
    target = Path(str(out))
    if target.is_dir():
        raise Med3dError(f"--out names a JSON file, got the folder {target}")
    if target.exists() and not overwrite:
        raise Med3dError(f"{target}: exists already; replace it with --overwrite, or name another file with --out")
    return target


def _by(values: Any) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
