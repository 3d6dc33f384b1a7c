"""``med3d export``: a short form of MONAI's ``ckpt_export`` and ``onnx_export``."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from med3d_nets.cli.bundles import check_task, config_option, config_values, find_bundle
from med3d_nets.cli.handed_on import check_handed_on, given_options
from med3d_nets.cli.process import run_monai
from med3d_nets.cli.words import hint, own_names
from med3d_nets.errors import Med3dError

__all__ = ["export"]

COMMANDS = {"ts": "ckpt_export", "onnx": "onnx_export"}
"""MONAI's command of each format."""

ONNX = ["--use_trace", "True", "--converter_kwargs", '{"dynamic_axes": {"x": [0,2,3,4]}, "external_data": False}']
"""Options for a file that takes any batch and any size; without them MONAI writes one of a fixed size."""

MONAI = ("filepath", "ckpt_file", "meta_file", "key_in_ckpt", "use_trace", "input_shape", "converter_kwargs")
"""Options of MONAI's two commands besides the ids of configs; they take any other without a word."""

_log = logging.getLogger(__name__)


def export(
    format: str = "ts",
    *,
    task: str = "segmentation",
    variant: str = "",
    bundle: str = "",
    dry_run: bool = False,
    others: Sequence[str] = (),
) -> None:
    """Write a trained network as TorchScript or ONNX: print MONAI's command, and run it.

    Examples:
        med3d export
        med3d export onnx --ckpt_dir "my runs/models"

    The file goes beside model.pt, as model.ts or model.onnx, and takes any batch and any size. med3d predict takes it
    as --exported_path. ONNX needs pip install 'med3d-nets[export]'.

    Options of the bundle's configs, and of MONAI's ckpt_export and onnx_export, are handed on. Most used:
        --filepath FILE     another file to write; a file that is there is replaced
        --ckpt_dir DIR      where the training put its weights, if not into the bundle
        --folds 5, --fold 0 one of the networks of a cross-validation

    Args:
        format: ts (TorchScript) or onnx.
        task: segmentation, classification or regression.
        variant: one of med3d list, whose bundle in the project was trained; the default is resnet_10.
        bundle: folder of another bundle; in a bundle's folder, that one is the default.
        dry_run: print the command without running it.
        others: handed on.

    Raises:
        Med3dError: for a word that cannot be, or if there are no trained weights.
        SystemExit: with the status of MONAI's command.
    """
    if format not in COMMANDS:
        raise Med3dError(f"no format '{format}'; {hint(format, COMMANDS)}")
    check_task(task)
    if format == "onnx" and (missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]):
        raise Med3dError(f"ONNX needs {' and '.join(missing)}; install it by pip install 'med3d-nets[export]'")
    below = "" if task == "segmentation" else "classification/"
    folder = find_bundle(variant, bundle)
    configs = [f"{below}inference.json"]
    check_handed_on(others, own_names(export), {**dict.fromkeys(MONAI), **config_values(folder, configs)}, strict=True)
    given = given_options(others)
    weights = Path(given["ckpt_file"]) if "ckpt_file" in given else _weights(folder / "models" / below, given)
    if not weights.is_file():
        raise Med3dError(f"{weights}: no trained weights there; med3d train makes them, --ckpt_dir names their folder")
    options = {
        "filepath": str(weights.with_suffix(f".{format}")),
        "ckpt_file": str(weights),
        "meta_file": str(folder / "configs" / below / "metadata.json"),
        "config_file": config_option(folder, configs),
        "bundle_root": str(folder),
    }
    words = [word for name, value in options.items() if name not in given for word in (f"--{name}", value)]
    words += ONNX if format == "onnx" and not {"use_trace", "converter_kwargs"} & set(given) else []
    run_monai([COMMANDS[format], "network_def", *words, *others], dry_run)
    if not dry_run:
        written = given.get("filepath", options["filepath"])
        _log.info("written: %s; med3d predict takes it as --exported_path, with the other options as here", written)


def _weights(models: Path, given: Mapping[str, str]) -> Path:
    """Absolute path of the trained weights, in a folder of their own with a fold."""
    folder = Path(os.path.abspath(given.get("ckpt_dir", models)))
    return folder / (f"fold_{given['fold']}" if "fold" in given else "") / "model.pt"
