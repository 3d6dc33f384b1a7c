"""Validation Dice against minutes, of trainings from random weights, drawn and printed as Markdown.

``python tools/dice_curve.py --data_root /data/Task04_Hippocampus --n_seg_classes 3 --n_epochs 10,60 --out curve.svg``
runs the shipped ``train.json`` with ``patch.json`` once for each number of epochs, one after the other, in the bundle's
folder. Minutes count from the command's start: reading the files, planning and validating are in them. A learning rate
schedule ends with its training, so that a short training is not the beginning of a long one: each has a curve.
"""

from __future__ import annotations

import argparse
import json
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
VALIDATION = re.compile(r"validation Dice: .*mean ([\d.]+)")


@dataclass(frozen=True)
class Run:
    """A training: its curve as ``(minutes, mean Dice)``, its minutes in all and what ``model.json`` says."""

    n_epochs: int
    curve: Sequence[tuple[float, float]]
    minutes: float
    epoch: int
    scores: dict[str, float]


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
    minutes = (time.monotonic() - started) / 60
    if process.returncode:
        raise RuntimeError(f"the training ended with status {process.returncode}; its output is above")
    record = json.loads((folder / "models" / "model.json").read_text(encoding="utf-8"))
    return Run(n_epochs, curve, minutes, record["epoch"], record["validation"])


def table(runs: Sequence[Run]) -> str:
    """The runs as a Markdown table: scores of the saved weights, those of the best validation."""
    classes = [name for name in runs[0].scores if name.startswith("val_dice_")]
    names = [name.removeprefix("val_dice_") for name in classes]
    lines = [
        f"| epochs | minutes in all | {' | '.join(names)} | mean Dice | best epoch |",
        "|---" * (4 + len(names)) + "|",
    ]
    for run in runs:
        scores = " | ".join(f"{run.scores[name]:.4f}" for name in [*classes, "val_mean_dice"])
        lines.append(f"| {run.n_epochs} | {run.minutes:.1f} | {scores} | {run.epoch} |")
    return "\n".join(lines)


def draw(runs: Sequence[Run], path: Path, title: str) -> None:
    """Draw the curves."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "curve", "font.size": 10}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot(
            xlabel="minutes since the command's start", ylabel="mean validation Dice", title=title
        )
        for run in runs:
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
        axes.set(xlim=(0, None), ylim=(max(0.0, known[len(known) // 10] - 0.02), known[-1] + 0.01))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", required=True, help="folder with train.txt and val.txt")
    parser.add_argument("--n_seg_classes", type=int, default=2)
    parser.add_argument("--n_epochs", type=lambda text: [int(part) for part in text.split(",")], default=[10, 60])
    parser.add_argument("--variant", default="resnet_10")
    parser.add_argument("--out", type=Path, help="picture, .svg or .png")
    given, others = parser.parse_known_args(argv)
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
    print(table(runs))
    if given.out:
        draw(runs, given.out, f"{Path(given.data_root).name}, {given.variant} from random weights")


if __name__ == "__main__":
    main()
