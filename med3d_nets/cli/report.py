"""``med3d report``: the pages of a training or an evaluation, and what they say in a line.

The pages are drawn from what the networks answered, which is not kept: nothing but another evaluation draws them anew.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import time
import webbrowser
from pathlib import Path
from typing import Any

from med3d_nets.cli.bundles import find_bundle, is_bundle
from med3d_nets.cli.lists import existing
from med3d_nets.errors import Med3dError

__all__ = ["report"]

PAGES = {"training.html": "training", "index.html": "evaluation"}
"""Names of the pages in a folder ``report``, and what they are of."""

SCORES = ("accuracy", "balanced_accuracy", "auc", "mae", "rmse", "r2")
"""Scores in a classification's or regression's ``metrics.json``."""

KEYS = ("val_mean_dice", "val_auc", "val_negative_mae")
"""Metrics that tell the best epoch, in a training's ``training.json``."""

_log = logging.getLogger(__name__)


def report(run: str = "", *, variant: str = "", bundle: str = "", browser: bool = False) -> None:
    """Find the pages of a training or an evaluation, with their main scores, and open them in a browser.

    Examples:
        med3d report
        med3d report "my runs/eval" --browser

    The pages are drawn by the training and the evaluation themselves; to draw one anew, evaluate again, with
    --overwrite True.

    Args:
        run: the run's output_dir, or a folder above; by default that of the bundle.
        variant: one of med3d list, whose bundle in the project is meant; the default is resnet_10.
        bundle: folder of another bundle; in a bundle's folder, that one is the default.
        browser: open the pages.

    Raises:
        Med3dError: if there is no such folder, or no page in it.
    """
    if run and (variant or bundle):
        raise Med3dError(f"{run} and --{'variant' if variant else 'bundle'} both choose a folder; expected one of them")
    folder = existing(run) if run else find_bundle(variant, bundle)
    if is_bundle(folder):
        folder /= "eval"
    pages = sorted(page for name in PAGES for page in folder.rglob(f"report/{name}"))
    if not pages:
        raise Med3dError(
            f"{folder}: found no report/index.html or report/training.html below it; expected the --output_dir of a "
            "med3d train or med3d evaluate, which write them unless they are given --report False"
        )
    for page in pages:
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(page.stat().st_mtime))
        print(f"{page}\n    {PAGES[page.name]}, drawn {written}: {_summary(page) or 'see the page'}")
    if browser and not all([webbrowser.open(page.as_uri()) for page in pages]):
        _log.warning("found no browser here; open the files above where there is one")


def _summary(page: Path) -> str:
    """The main numbers of a page, from the files beside it; empty where they cannot be read."""
    readers = [_training] if page.name == "training.html" else [_table, _scores]
    for read in readers:
        try:
            return read(page)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue
    return ""


def _training(page: Path) -> str:
    epochs: list[dict[str, Any]] = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["epochs"]
    found = f"{epochs[-1]['epoch']} epochs, loss {epochs[-1]['loss']:.4f}"
    for key in KEYS:
        known = [each for each in epochs if math.isfinite(each["validation"].get(key, math.nan))]
        if known:
            best = max(known, key=lambda each: each["validation"][key])
            return f"{found}, best {key} {best['validation'][key]:.4f} in epoch {best['epoch']}"
    return found


def _table(page: Path) -> str:
    with (page.parent.parent / "metrics_summary.csv").open(encoding="utf-8", newline="") as file:
        return ", ".join(f"{row['metric']} {float(row['mean']):.4f}" for row in csv.DictReader(file))


def _scores(page: Path) -> str:
    record = json.loads((page.parent.parent / "metrics.json").read_text(encoding="utf-8"))
    known = {name: record[name]["value"] for name in SCORES if name in record}
    return ", ".join(f"{name} {value:.4f}" for name, value in known.items() if value is not None)
