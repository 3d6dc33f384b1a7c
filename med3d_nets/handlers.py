"""Ignite handlers for what MONAI's do not do: each class says why."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ignite import distributed as idist
from ignite.engine import Engine, Events
from ignite.handlers import DiskSaver
from ignite.utils import manual_seed
from monai.engines import Evaluator
from monai.handlers import CheckpointLoader, CheckpointSaver, ValidationHandler, from_engine
from monai.networks.utils import get_state_dict
from monai.transforms import RandomizableTransform
from torch import distributed as dist
from torch import nn

from med3d_nets.errors import Med3dError, explain
from med3d_nets.runs import check_share, resumable_checkpoints
from med3d_nets.settings import Settings
from med3d_nets.weights import read_checkpoint, write_atomically

__all__ = [
    "BestModelSaver",
    "CleanEnd",
    "EpochSeed",
    "FailureReport",
    "PeriodicValidation",
    "ResumableSaver",
]

logger = logging.getLogger(__name__)


class EpochSeed:
    """Seeds every source of randomness at the start of each epoch, from the seed and the epoch's number.

    An epoch then depends on nothing but the weights it starts from, so that a resumed training goes on to the same
    result as one that never stopped.

    Args:
        seed: seed of the run.
        dataset: data set whose random transforms are seeded, of :func:`~med3d_nets.runs.cached_dataset`.
        sampler: sampler whose order is drawn, of :func:`~med3d_nets.distributed.shuffled`.
    """

    def __init__(self, seed: int, dataset: Any, sampler: Any) -> None:
        self.seed = seed
        self.dataset = dataset
        self.sampler = sampler

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed torch, numpy, random, the data set and the sampler."""
        seed = (self.seed * 100_003 + engine.state.epoch) % 2**31
        manual_seed(seed)
        self.dataset.epoch_seed = seed
        self.sampler.set_epoch(engine.state.epoch)


class CleanEnd:
    """Trains the last epochs without augmentation, on volumes as the network will be given them.

    Strong augmentation lets a network generalise, but has it learn volumes that no scanner makes; a short end without
    it makes up for that. (He et al., Data Augmentation Revisited, arXiv:1909.09148.)

    Args:
        transforms: those of the training; what has no probability, such as a crop, goes on as before.
        n_epochs: of the whole training.
        share: of the epochs; 0: augmentation goes on to the end.

    Raises:
        Med3dError: if the share is none.
    """

    def __init__(self, transforms: Sequence[Any], n_epochs: int, share: float) -> None:
        check_share("clean_end", share)
        self.usual = [(each, each.prob) for each in transforms if isinstance(each, RandomizableTransform)]
        self.n_epochs = n_epochs
        self.n_clean = round(share * n_epochs)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the probabilities of an epoch, which loader processes take with the transforms."""
        left = self.n_epochs - engine.state.epoch + 1
        clean = left <= self.n_clean
        for transform, usual in self.usual:
            transform.prob = 0.0 if clean else usual
        if self.usual and left == self.n_clean:
            logger.info("no augmentation from here on: epochs left %d", left)


class BestModelSaver:
    """Writes ``model.pt`` and ``model.json`` when the validation's key metric is the best so far.

    MONAI's ``CheckpointSaver`` truncates the previous best before it writes, so that a full disk loses both; and the
    settings must change with the weights.

    Args:
        network: network to save, as a flat dictionary of tensors.
        ckpt_dir: folder to write to.
        settings: settings of this training.
        overwrite: whether a file of an earlier training may be replaced.
        found_out: validation handlers that find settings out, each with a dictionary ``found`` of them, such as
            :class:`~med3d_nets.components.ComponentChoice`.
        tie_breaker: metric that is lower for the better of two epochs with the same key metric; empty: the first stays.
    """

    def __init__(
        self,
        network: nn.Module,
        ckpt_dir: str,
        settings: Settings,
        overwrite: bool = False,
        found_out: Sequence[Any] = (),
        tie_breaker: str = "",
    ) -> None:
        self.network = network
        self.path = Path(ckpt_dir) / "model.pt"
        self.settings = settings
        self.overwrite = overwrite
        self.found_out = list(found_out)
        self.tie_breaker = tie_breaker
        self.best_tie: float | None = None
        self.best: float | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator, after what scores and what finds settings out."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Have all processes evaluate the statistics of rank 0, which are saved.

        Raises:
            Med3dError: if an earlier training's weights are in the way. Training checks that before it starts; this is
                for those who run the trainer themselves, as federated learning does.
        """
        if self.path.exists() and not self.overwrite:
            raise Med3dError(f"{self.path}: an earlier training wrote it; give another ckpt_dir or set overwrite")
        self.overwrite = True
        if idist.get_world_size() > 1:
            for buffer in self.network.buffers():
                dist.broadcast(buffer, src=0)

    def __call__(self, engine: Engine) -> None:
        """Compare and save."""
        metric = float(engine.state.metrics[engine.state.key_metric_name])
        tie = float(engine.state.metrics[self.tie_breaker]) if self.tie_breaker else 0.0
        if (
            self.best is not None
            and not metric > self.best
            and not (metric == self.best and tie < (self.best_tie or 0))
        ):
            return
        self.best, self.best_tie = (metric, tie) if math.isfinite(metric) else (None, None)
        for handler in self.found_out:
            self.settings = replace(self.settings, **handler.found)
        if idist.get_rank() > 0:
            return
        metrics = {name: value for name, value in engine.state.metrics.items() if isinstance(value, float)}
        scores = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
        write_atomically(self.path, {name: value.cpu() for name, value in get_state_dict(self.network).items()})
        record = {"epoch": engine.state.epoch, "validation": scores}
        write_atomically(self.path.with_suffix(".json"), self.settings.to_json(**record))
        logger.info("best so far: %s = %.4f, saved %s", engine.state.key_metric_name, metric, self.path)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training must know: the best score and the settings."""
        settings = {name: getattr(self.settings, name) for name in self.settings.__dataclass_fields__}
        return {"best": self.best, "best_tie": self.best_tie, "settings": settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`; the pretrained weights' record is that of the training's start."""
        self.best, self.best_tie = state["best"], state["best_tie"]
        self.overwrite = True
        self.settings = type(self.settings)(**state["settings"])


class PeriodicValidation(ValidationHandler):
    """MONAI's ``ValidationHandler``, which validates after the last epoch too, whatever the interval.

    Args:
        validator: the evaluator.
        interval: epochs between validations.

    Raises:
        Med3dError: if the interval is no number of epochs.
    """

    def __init__(self, validator: Evaluator, interval: int) -> None:
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise Med3dError(f"val_interval is {interval!r}, expected a number of epochs, 1 or more")
        super().__init__(interval, validator)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        super().attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.validate_last)

    def validate_last(self, engine: Engine) -> None:
        """Validate after the last epoch, if the interval does not."""
        if engine.state.epoch == engine.state.max_epochs and engine.state.epoch % self.interval:
            self(engine)


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
            before, now = saved["trainer"]["epoch_length"], engine.state.epoch_length
            if before != now:  # Ignite would go on with the old number, through a part of the cases or twice
                raise Med3dError(
                    f"{self.resume_path}: its epochs have {before} iterations, but this run's have {now}; "
                    "go on with the same list, number of processes times batch_size, and so on"
                )
            load_dict = {name: value for name, value in self.save_dict.items() if name in saved or name != "scaler"}
            schedule = self.save_dict["lr_scheduler"]
            given = {name: value for name, value in schedule.state_dict().items() if name in SCHEDULE}
            CheckpointLoader(self.resume_path, load_dict, map_location=engine.state.device)(engine)
            _take_schedule(schedule, given, self.resume_path)

    def save_last(self, engine: Engine) -> None:
        """Save the last epoch if the interval did not."""
        if engine.state.epoch % self.save_interval:
            self.interval_completed(engine)


SCHEDULE = ("base_lrs", "step_size", "gamma", "total_iters", "power")
"""What a schedule is given, as opposed to where it stands."""


def _take_schedule(schedule: Any, given: dict[str, Any], source: str) -> None:
    """Go on by the schedule of this run where the checkpoint's was another, from the epoch that was reached.

    Unchanged options leave the restored rates alone, to the last bit.
    """
    changed = {name: value for name, value in given.items() if getattr(schedule, name) != value}
    if not changed:
        return
    for name, value in changed.items():
        logger.warning("%s was trained with %s %s; going on with %s", source, name, getattr(schedule, name), value)
        setattr(schedule, name, value)
    rates = schedule._get_closed_form_lr()
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


class _TrainingStoppedError(Med3dError):
    """An error that names the last good checkpoint already."""


class _TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C, with the last good checkpoint named."""


class FailureReport:
    """Ends a training that failed with what to do, and with the last good checkpoint named.

    It watches for a loss that is not finite, memory that ran out, a disk that is full, and Ctrl-C.

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
        loss = from_engine(["loss"], first=True)(engine.state.output)
        if not math.isfinite(loss):
            raise Med3dError(
                f"the loss is {loss} at epoch {engine.state.epoch}, iteration {engine.state.iteration}: "
                "lower learning_rate, or check the data for extreme intensities"
            )

    def fail(self, engine: Engine, error: BaseException) -> None:
        """Say what happened and where to go on from."""
        shown = explain(error, self.sizes)
        told = isinstance(shown or error, (_TrainingStoppedError, _TrainingInterrupted))
        if told or not (shown or isinstance(error, KeyboardInterrupt)):
            raise shown or error  # Ignite calls twice for an error within an epoch
        written = resumable_checkpoints(self.ckpt_dir)
        last = "no checkpoint was written yet"
        if written:
            last = f"the last good checkpoint is {written[-1]}; go on from it with --resume_path"
        if shown is None:
            raise _TrainingInterrupted(f"interrupted in epoch {engine.state.epoch}; {last}") from error
        raise _TrainingStoppedError(f"{shown}; {last}") from error
