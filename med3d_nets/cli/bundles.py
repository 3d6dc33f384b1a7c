"""Where the bundle is that a command works with, and what is in it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from med3d_nets.cli.words import hint
from med3d_nets.errors import Med3dError
from med3d_nets.variants import Variant, get_variant

__all__ = ["ROOT", "TASKS", "bundle_folder", "check_task", "config_option", "config_values", "find_bundle", "is_bundle"]

ROOT = Path(__file__).resolve().parents[2]
"""The project's folder, which the package is installed from."""

DEFAULT = "resnet_10"
TASKS = ("segmentation", "classification", "regression")

_log = logging.getLogger(__name__)


def bundle_folder(row: Variant) -> Path:
    """The folder of a variant's bundle in the project."""
    return ROOT / "bundles" / row.bundle


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle."""
    return all((folder / "configs" / name).is_file() for name in ("metadata.json", "inference.json"))


def find_bundle(variant: str = "", bundle: str = "") -> Path:
    """Absolute path of the bundle to work with; the choice is logged.

    It is ``bundle``, or the one of ``variant`` in the project, or the working directory if that is a bundle, or the one
    of :data:`DEFAULT`.

    Raises:
        Med3dError: if there is no such variant or bundle, or both are named.
    """
    if bundle and variant:
        raise Med3dError(f"--variant {variant} and --bundle {bundle} both choose a bundle; expected one of them")
    if bundle:
        folder, why = Path(bundle), "--bundle"
        if not is_bundle(folder):
            raise Med3dError(f"{bundle}: found no bundle, which has configs/metadata.json and configs/inference.json")
    elif not variant and is_bundle(Path()):
        folder, why = Path(), "the working directory"
    else:
        folder, why = _of_variant(variant or DEFAULT), "--variant" if variant else "the default"
    folder = Path(os.path.abspath(folder))
    _log.info("bundle: %s (%s)", folder, why)
    return folder


def check_task(task: str) -> None:
    """Refuse a task that is none.

    Raises:
        Med3dError: with a suggestion.
    """
    if task not in TASKS:
        raise Med3dError(f"no task '{task}'; {hint(task, TASKS)}")


def config_option(folder: Path, names: Sequence[str]) -> str:
    """The value of ``--config_file`` for config files of a bundle, with absolute paths.

    Args:
        folder: of the bundle.
        names: of the files in its ``configs``, the one that overrides the others last.

    Raises:
        Med3dError: naming those that are missing.
    """
    paths = [folder / "configs" / name for name in names]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise Med3dError(f"{', '.join(missing)}: no such file; the bundle was made without it")
    return str(paths[0]) if len(paths) == 1 else json.dumps([*map(str, paths)], ensure_ascii=False)


def config_values(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """What stands at the top of config files of a bundle, by id; of several files the first counts.

    Ids of what is within others are there with None.

    Raises:
        Med3dError: naming a file that is no JSON.
    """
    values: dict[str, Any] = {}
    for name in names:
        path = folder / "configs" / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise Med3dError(f"{path}: found no JSON ({error})") from error
        for key, value in content.items():
            top = key.partition("::")[0].partition("#")[0]
            values.setdefault(top, value if top == key else None)
    return values


def _of_variant(name: str) -> Path:
    try:
        folder = bundle_folder(get_variant(name))
    except ValueError as error:
        raise Med3dError(str(error)) from error
    if not is_bundle(folder):
        raise Med3dError(
            f"{folder}: no bundle there; expected the package installed from a checkout of the project, "
            "by pip install -e ., or the folder of a downloaded bundle as --bundle"
        )
    return folder
