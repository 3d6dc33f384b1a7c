"""Validation Dice against minutes, of trainings from random weights, drawn and printed as Markdown.

``python tools/dice_curve.py --data_root /data/Task04_Hippocampus --n_seg_classes 3 --n_epochs 10,60 --out curve.svg``
runs the shipped ``train.json`` with ``patch.json`` once for each number of epochs, one after the other, in the bundle's
folder. Minutes count from the command's start: reading the files, planning and validating are in them. A learning rate
schedule ends with its training, so that a short training is not the beginning of a long one: each has a curve. A row is
printed as its training ends.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from med3d_nets.variants import get_variant

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = "['configs/train.json','configs/patch.json']"
VALIDATION = re.compile(r"validation Dice: .*mean ([\d.]+|nan)")


@dataclass(frozen=True)
class Run:
    """A training: its curve as ``(minutes, mean Dice)``, its minutes in all and what ``model.json`` says."""

    n_epochs: int
    curve: Sequence[tuple[float, float]]
    minutes: float
    epoch: int
    scores: dict[str, float | None]


def train(variant: str, n_epochs: int, folder: Path, options: Sequence[str]) -> Run:
    """Run one training, its output passed on.

    Raises:
        RuntimeError: if it fails.
    """
    places = ["--ckpt_dir", str(folder / "models"), "--output_dir", str(folder / "eval")]
    words = ["--pretrain_path", "", "--n_epochs", str(n_epochs), *places, *options]
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", CONFIGS, *words]
    curve = []
    started = time.monotonic()
    with subprocess.Popen(
        command,
        cwd=ROOT / "bundles" / get_variant(variant).bundle,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Iter: " not in line:
                print(line, end="", file=sys.stderr, flush=True)
            if found := VALIDATION.search(line):
                curve.append(((time.monotonic() - started) / 60, float(found[1])))
    curve = [point for point in curve if math.isfinite(point[1])]
    minutes = (time.monotonic() - started) / 60
    if process.returncode:
        raise RuntimeError(f"the training ended with status {process.returncode}; its output is above")
    record = json.loads((folder / "models" / "model.json").read_text(encoding="utf-8"))
    return Run(n_epochs, curve, minutes, record["epoch"], record["validation"])


def header(run: Run) -> str:
    """The head of the Markdown table that the run's row belongs to."""
    names = [name.removeprefix("val_dice_") for name in run.scores if name.startswith("val_dice_")]
    columns = ["epochs", "minutes in all", *names, "mean Dice", "best epoch"]
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"


def row(run: Run) -> str:
    """Scores of the saved weights, those of the best validation; "-" for a class that no case has."""
    values = [run.scores[name] for name in run.scores if name.startswith("val_dice_")]
    scores = " | ".join("-" if value is None else f"{value:.4f}" for value in [*values, run.scores["val_mean_dice"]])
    return f"| {run.n_epochs} | {run.minutes:.1f} | {scores} | {run.epoch} |"


def draw(runs: Sequence[Run], path: Path, title: str) -> None:
    """Draw the curves."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "curve", "font.size": 10}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot(
            xlabel="minutes since the command's start", ylabel="mean validation Dice", title=title
        )
        for run in (run for run in runs if run.curve):
            minutes, scores = zip(*run.curve, strict=True)
            (line,) = axes.plot(minutes, scores, marker="o", markersize=3, label=f"{run.n_epochs} epochs")
            best = max(run.curve, key=lambda point: point[1])
            axes.annotate(
                f"{best[1]:.3f}",
                best,
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                color=line.get_color(),
            )
        known = sorted(score for run in runs for _, score in run.curve)
        axes.set(xlim=(0, None))
        if known:
            axes.set(ylim=(max(0.0, known[len(known) // 10] - 0.02), known[-1] + 0.01))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", required=True, help="folder with train.txt and val.txt")
    parser.add_argument("--n_seg_classes", type=int, default=2)
    parser.add_argument("--n_epochs", type=lambda text: [int(part) for part in text.split(",")], default=[10, 60])
    parser.add_argument("--variant", default="resnet_10")
    parser.add_argument("--out", type=Path, help="picture, .svg or .png")
    parser.add_argument("--overwrite", action="store_true", help="replace the picture")
    given, others = parser.parse_known_args(argv)
    if given.out and given.out.suffix not in (".svg", ".png"):
        parser.error(f"--out is {given.out}, expected the name of an .svg or a .png")
    if given.out and given.out.exists() and not given.overwrite:
        parser.error(f"{given.out}: exists already; name another file or pass --overwrite")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
    options = [
        "--data_root",
        str(Path(given.data_root).resolve()),
        "--n_seg_classes",
        str(given.n_seg_classes),
        *others,
    ]
    runs: list[Run] = []
    for n_epochs in given.n_epochs:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(train(given.variant, n_epochs, Path(folder), options))
        print("" if len(runs) > 1 else f"{header(runs[0])}\n", row(runs[-1]), sep="", flush=True)
    if given.out:
        draw(runs, given.out, f"{Path(given.data_root).name}, {given.variant} from random weights")


if __name__ == "__main__":
    main()
