"""Ignite handlers that tell how a training or an evaluation went."""

from __future__ import annotations

import csv
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events
from monai.handlers import from_engine

from med3d_nets.distributed import gather_shares
from med3d_nets.list_files import short_names
from med3d_nets.runs import check_free

__all__ = ["CaseReport", "DiceReport", "EpochReport", "text_table"]

logger = logging.getLogger(__name__)


class EpochReport:
    """Logs time, volumes per second, mean loss (of all processes) and learning rates of each epoch.

    Args:
        optimizer: its groups' rates are logged under their ``name``.
        n_volumes: volumes per epoch.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, n_volumes: int) -> None:
        self.optimizer = optimizer
        self.n_volumes = n_volumes
        self.losses: list[float] = []
        self.started = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, before its validation and its learning rate schedule."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Start the clock."""
        self.started, self.losses = time.perf_counter(), []

    def collect(self, engine: Engine) -> None:
        """Take the loss of an iteration."""
        self.losses.append(from_engine(["loss"], first=True)(engine.state.output))

    def __call__(self, engine: Engine) -> None:
        """Log the epoch and leave ``volumes_per_second`` and ``mean_loss`` among the engine's metrics."""
        seconds = time.perf_counter() - self.started
        rates = ", ".join(f"{group.get('name', 'all')} {group['lr']:.3g}" for group in self.optimizer.param_groups)
        engine.state.metrics["volumes_per_second"] = self.n_volumes / seconds
        losses = float(np.mean(self.losses)) if self.losses else math.nan
        engine.state.metrics["mean_loss"] = idist.all_reduce(losses) / idist.get_world_size()
        logger.info(
            "epoch %d/%d: %.1f s, %.1f volumes/s, mean loss %.4f, learning rates: %s",
            *(engine.state.epoch, engine.state.max_epochs, seconds, self.n_volumes / seconds),
            *(engine.state.metrics["mean_loss"], rates),
        )


class DiceReport:
    """Logs the validation's mean Dice per class and leaves each among the engine's metrics, for TensorBoard.

    Args:
        class_names: names of the classes, background first.
        metric: name of the Dice metric, whose details per case and foreground class are read.
    """

    def __init__(self, class_names: Sequence[str], metric: str = "val_mean_dice") -> None:
        self.class_names = list(class_names)[1:]
        self.metric = metric

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator, after its metrics and before the handlers that read the result."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Log the mean over the cases that have the class."""
        means = _column_means(engine.state.metric_details[self.metric])
        for name, mean in zip(self.class_names, means, strict=True):
            engine.state.metrics[f"val_dice_{name.replace(' ', '_')}"] = mean
        each = ", ".join(f"{name} {mean:.4f}" for name, mean in zip(self.class_names, means, strict=True))
        logger.info("validation Dice: %s; mean %.4f", each, engine.state.metrics[self.metric])


class CaseReport:
    """Prints metrics per case and class, such as Dice and distances, and writes them to ``metrics.csv``.

    A value that has no meaning is ``nan`` and left out of the summary, where infinite ones count; see the metrics in
    :mod:`med3d_nets.metrics`. MONAI's ``MetricsSaver`` writes a file per metric and numbers the foreground classes
    from 0.

    Args:
        output_dir: folder to write ``metrics.csv`` (cases) and ``metrics_summary.csv`` (classes) to.
        class_names: names of the classes, background first.
        overwrite: whether to replace files of an earlier evaluation.
        metrics: names of the metrics with details per case and foreground class, and their column's name.

    Raises:
        Med3dError: if a file is there already.
    """

    def __init__(self, output_dir: str, class_names: Sequence[str], overwrite: bool, metrics: dict[str, str]) -> None:
        self.paths = Path(output_dir) / "metrics.csv", Path(output_dir) / "metrics_summary.csv"
        self.class_names = list(class_names)[1:]
        self.metrics = metrics
        self.cases: list[str] = []
        check_free(self.paths, overwrite)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Forget the cases of an earlier run of the evaluator."""
        self.cases = []

    def collect(self, engine: Engine) -> None:
        """Remember the files of an iteration."""
        self.cases += [str(case["image"].meta["filename_or_obj"]) for case in engine.state.batch]

    def __call__(self, engine: Engine) -> None:
        """Print and write the tables."""
        details = {label: engine.state.metric_details[name].cpu().numpy() for name, label in self.metrics.items()}
        columns = [f"{label} {name}" for label in details for name in self.class_names]
        values = np.concatenate(list(details.values()), axis=1)
        shares = gather_shares(self.cases)
        rows = [[case, *row] for case, row in zip([case for share in shares for case in share], values, strict=True)]
        # The metrics have the cases of one process after another; the tables have them in the list's order.
        places = [place for share in shares for place in range(len(share))]
        rows = [rows[index] for index in np.argsort(places, kind="stable")]
        if idist.get_rank() > 0:
            return
        _write_csv(self.paths[0], ["case", *columns], rows)
        summary = [[column, *_summary(values[:, index])] for index, column in enumerate(columns)]
        _write_csv(self.paths[1], ["metric", "mean", "median", "min", "max", "cases"], summary)
        shown = [[name, *row[1:]] for name, row in zip(short_names([row[0] for row in rows]), rows, strict=True)]
        means = ["mean", *(row[1] for row in summary)]
        logger.info("\n%s\nwritten: %s, %s", text_table(["case", *columns], [*shown, means]), *self.paths)


def _column_means(details: torch.Tensor) -> list[float]:
    values = details.cpu().numpy()
    return [float(np.mean(kept)) if (kept := column[~np.isnan(column)]).size else math.nan for column in values.T]


def _summary(values: np.ndarray) -> list[float | int]:
    kept = values[~np.isnan(values)]
    if not kept.size:
        return [math.nan] * 4 + [0]
    return [float(kept.mean()), float(np.median(kept)), float(kept.min()), float(kept.max()), int(kept.size)]


def _format(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (float, np.floating)) else str(value)


def _write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *([_format(value) for value in row] for row in rows)])


def text_table(header: list[str], rows: list[list[Any]]) -> str:
    """Rows below a header as lines of text, in columns; numbers to four digits."""
    cells = [header, *([_format(value) for value in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(header))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
