"""Ignite handlers for what MONAI's do not do: what each class says why."""

from __future__ import annotations

import csv
import logging
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import DiskSaver
from ignite.utils import manual_seed
from monai.data.utils import set_rnd
from monai.handlers import CheckpointLoader, CheckpointSaver
from torch import nn

from med3d_nets.errors import Med3dError, explain
from med3d_nets.settings import Settings
from med3d_nets.weights import read_checkpoint, write_atomically

__all__ = ["BestModelSaver", "CaseReport", "DiceReport", "EpochReport", "EpochSeed", "FailureReport", "ResumableSaver"]

logger = logging.getLogger(__name__)


class EpochSeed:
    """Seeds every source of randomness at the start of each epoch, from the seed and the epoch's number.

    An epoch then depends on nothing but the weights it starts from, so that a resumed training goes on to the same
    result as one that never stopped.

    Args:
        seed: seed of the run.
        dataset: data set whose random transforms are seeded.
    """

    def __init__(self, seed: int, dataset: Any) -> None:
        self.seed = seed
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed torch, numpy, random and the transforms."""
        seed = (self.seed * 100_003 + engine.state.epoch) % 2**31
        manual_seed(seed)
        set_rnd(self.dataset, seed)


class EpochReport:
    """Logs time, volumes per second, mean loss and learning rates of each epoch.

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
        self.losses.append(engine.state.output["loss"].item())

    def __call__(self, engine: Engine) -> None:
        """Log the epoch and leave ``volumes_per_second`` and ``mean_loss`` among the engine's metrics."""
        seconds = time.perf_counter() - self.started
        rates = ", ".join(f"{group.get('name', 'all')} {group['lr']:.3g}" for group in self.optimizer.param_groups)
        engine.state.metrics["volumes_per_second"] = self.n_volumes / seconds
        engine.state.metrics["mean_loss"] = float(np.mean(self.losses))
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


class BestModelSaver:
    """Writes ``model.pt`` and ``model.json`` when the validation's key metric is the best so far.

    MONAI's ``CheckpointSaver`` truncates the previous best before it writes, so that a full disk loses both; and the
    settings must change with the weights.

    Args:
        network: network to save, as a flat dictionary of tensors.
        ckpt_dir: folder to write to.
        settings: settings of this training.
    """

    def __init__(self, network: nn.Module, ckpt_dir: str, settings: Settings) -> None:
        self.network = network
        self.path = Path(ckpt_dir) / "model.pt"
        self.settings = settings
        self.best: float | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator, after :class:`DiceReport`."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Compare and save."""
        metric = float(engine.state.metrics[engine.state.key_metric_name])
        if self.best is not None and not metric > self.best:
            return
        self.best = metric if math.isfinite(metric) else None
        metrics = {name: value for name, value in engine.state.metrics.items() if isinstance(value, float)}
        scores = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
        write_atomically(self.path, {name: value.cpu() for name, value in self.network.state_dict().items()})
        record = {"epoch": engine.state.epoch, "validation": scores}
        write_atomically(self.path.with_suffix(".json"), self.settings.to_json(**record))
        logger.info("best so far: %s = %.4f, saved %s", engine.state.key_metric_name, metric, self.path)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training must know: the best score and the settings."""
        settings = {name: getattr(self.settings, name) for name in self.settings.__dataclass_fields__}
        return {"best": self.best, "settings": settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`; the pretrained weights' record is that of the training's start."""
        self.best = state["best"]
        self.settings = Settings(**state["settings"])


class ResumableSaver(CheckpointSaver):
    """Saves resumable checkpoints ``checkpoint_epoch=N.pt``, the last two kept, and resumes from one.

    MONAI's saver with three changes: a file appears whole or not at all, the last epoch is saved too, and the trainer
    that it is attached to is part of the checkpoint, which a config cannot say of itself.

    Args:
        save_dir: folder to write to.
        save_dict: objects to save besides the trainer: ``model``, ``optimizer``, ``lr_scheduler``, ``best``.
        save_interval: epochs between checkpoints.
        resume_path: checkpoint to start from, or empty.
    """

    def __init__(self, save_dir: str, save_dict: dict[str, Any], save_interval: int, resume_path: str = "") -> None:
        if save_interval < 1:
            raise Med3dError(f"save_intervals is {save_interval}, expected a number of epochs, 1 or more")
        super().__init__(save_dir, save_dict, save_interval=save_interval, n_saved=2)
        assert self._interval_checkpoint is not None
        self._interval_checkpoint.save_handler = DiskSaver(save_dir, atomic=True, require_empty=False)
        self.resume_path = resume_path

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after its learning rate schedule and its validation."""
        self.save_dict["trainer"] = engine
        super().attach(engine)
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.COMPLETED, self.save_last)

    def start(self, engine: Engine) -> None:
        """Take the gradient scaler, which MONAI makes as a run starts, and resume."""
        if engine.scaler is not None:
            self.save_dict["scaler"] = engine.scaler
        if self.resume_path:
            saved = read_checkpoint(self.resume_path)  # without a scaler if it was trained on a CPU
            load_dict = {name: value for name, value in self.save_dict.items() if name in saved or name != "scaler"}
            CheckpointLoader(self.resume_path, load_dict, map_location=engine.state.device)(engine)

    def save_last(self, engine: Engine) -> None:
        """Save the last epoch if the interval did not."""
        if engine.state.epoch % self.save_interval:
            self.interval_completed(engine)


class _TrainingStoppedError(Med3dError):
    """An error that names the last good checkpoint already."""


class FailureReport:
    """Ends a training that failed with what to do, and with the last good checkpoint named.

    It watches for a loss that is not finite, memory that ran out and a disk that is full.

    Args:
        ckpt_dir: folder of the checkpoints.
        sizes: the sizes in force by the name of their option, most worth lowering first.
    """

    def __init__(self, ckpt_dir: str, sizes: dict[str, Any]) -> None:
        self.ckpt_dir = Path(ckpt_dir)
        self.sizes = sizes

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, before every other handler of exceptions: Ignite calls them until one raises."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.check_loss)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.fail)

    def check_loss(self, engine: Engine) -> None:
        """Stop at a loss that is NaN or infinite."""
        loss = engine.state.output["loss"].item()
        if not math.isfinite(loss):
            raise Med3dError(
                f"the loss is {loss} at epoch {engine.state.epoch}, iteration {engine.state.iteration}: "
                "lower learning_rate, or check the data for extreme intensities"
            )

    def fail(self, engine: Engine, error: BaseException) -> None:
        """Say what happened and where to go on from."""
        shown = explain(error, self.sizes)
        if shown is None:
            raise error
        if isinstance(shown, _TrainingStoppedError):  # Ignite calls twice for an error within an epoch
            raise shown
        written = sorted(self.ckpt_dir.glob("checkpoint_epoch=*.pt"), key=os.path.getmtime)
        last = f"the last good checkpoint is {written[-1]}" if written else "no checkpoint was written yet"
        raise _TrainingStoppedError(f"{shown}; {last}") from error


class CaseReport:
    """Prints Dice and the 95 % Hausdorff distance per case and class, and writes them to ``metrics.csv``.

    MONAI's ``MetricsSaver`` writes a file per metric and numbers the foreground classes from 0.

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
        for path in self.paths:
            if path.exists() and not overwrite:
                raise Med3dError(f"{path}: exists already; give another --output_dir or pass --overwrite True")

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
        rows = [[case, *row] for case, row in zip(self.cases, values, strict=True)]
        _write_csv(self.paths[0], ["case", *columns], rows)
        summary = [[column, *_summary(values[:, index])] for index, column in enumerate(columns)]
        _write_csv(self.paths[1], ["metric", "mean", "median", "min", "max", "cases"], summary)
        shown = [[os.path.basename(row[0]), *row[1:]] for row in rows]
        means = ["mean", *(row[1] for row in summary)]
        logger.info("\n%s\nwritten: %s, %s", _table(["case", *columns], [*shown, means]), *self.paths)


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


def _table(header: list[str], rows: list[list[Any]]) -> str:
    cells = [header, *([_format(value) for value in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(header))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
