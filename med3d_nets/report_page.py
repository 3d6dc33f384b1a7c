"""Ignite handlers that write a self-contained HTML page after an evaluation, and during a training.

Numbers for programs are in the files of :class:`~med3d_nets.reports.CaseReport` and in TensorBoard's; these pages are
for people to look at. MONAI and Ignite have no handler that writes one.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from med3d_nets.distributed import gather_shares
from med3d_nets.errors import Med3dError
from med3d_nets.evaluation_page import Case, Pick, render_evaluation
from med3d_nets.folds import known_patient
from med3d_nets.handlers import BestModelSaver
from med3d_nets.report_slices import Cut, cut_class
from med3d_nets.runs import check_free
from med3d_nets.settings import Settings
from med3d_nets.statistics import case_means, pick_cases
from med3d_nets.training_page import render_training
from med3d_nets.weights import write_atomically

__all__ = ["EvaluationPage", "TrainingPage", "check_training_page"]

logger = logging.getLogger(__name__)

PAUSE = 20
"""How much longer than a drawing the pause after it is."""

METRICS = {"val_mean_dice": "Dice", "val_hd95": "HD95 [mm]", "val_surface_dice": "Surface Dice"}


class EvaluationPage:
    """Writes ``report/index.html``: scores, volumes and pictures of an evaluation.

    Of each case it keeps volumes and three compressed slices per class; images are read again for the pictures.

    Args:
        output_dir: folder to write ``report`` to.
        class_names: names of the classes, background first.
        settings: of the network: :class:`~med3d_nets.settings.Settings`, or the content of ``model.json``.
        metrics: names of the metrics with details per case and foreground class, and their name on the page; the first
            one ranks the cases, higher is better. One that the evaluator lacks is left out with a warning.
        overwrite: whether to replace the page of an earlier evaluation.
        n_pictures: cases to draw, evenly from best to worst.
        caveats: sentences on the cases, such as those of :func:`~med3d_nets.fold_records.check_fold`.

    Raises:
        Med3dError: if ``n_pictures`` is no number; if a page is there already, as the evaluation starts.
    """

    def __init__(
        self,
        output_dir: str,
        class_names: Sequence[str],
        settings: Settings | Mapping[str, Any],
        metrics: Mapping[str, str] | None = None,
        overwrite: bool = False,
        n_pictures: int = 3,
        caveats: Sequence[str] = (),
    ) -> None:
        self.path = Path(output_dir) / "report" / "index.html"
        self.overwrite = overwrite
        if isinstance(n_pictures, bool) or not isinstance(n_pictures, int) or n_pictures < 0:
            raise Med3dError(f"n_pictures is {n_pictures!r}, expected a whole number of cases, 0 or more")
        self.class_names = list(class_names)[1:]
        self.settings = settings
        self.metrics = dict(METRICS if metrics is None else metrics)
        self.n_pictures = n_pictures
        self.caveats = list(caveats)
        self.cases: list[Case] = []
        self.cuts: list[tuple[tuple[Cut, ...], ...]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator, after its metrics."""
        engine.add_event_handler(Events.STARTED, self.prepare)
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def prepare(self, engine: Engine) -> None:
        """Look for the page of an earlier evaluation; this one may replace its own."""
        check_free([self.path], self.overwrite)
        self.overwrite = True

    def start(self, engine: Engine) -> None:
        """Forget the cases of an earlier run of the evaluator."""
        self.cases, self.cuts = [], []

    def collect(self, engine: Engine) -> None:
        """Measure the cases of an iteration: one-hot ``pred`` and ``label``, ``(class, depth, height, width)``."""
        state: Any = engine.state
        for given, found in zip(state.batch, state.output, strict=True):
            affine = _affine(given["image"], found["label"])
            millilitres = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
            sizes: list[tuple[float, float]] = []
            cuts: list[tuple[Cut, ...]] = []
            for channel in range(1, len(self.class_names) + 1):
                pred, label = (_foreground(found[key], channel) for key in ("pred", "label"))
                sizes.append((int(pred.count_nonzero()) * millilitres, int(label.count_nonzero()) * millilitres))
                cuts.append(cut_class(pred, label, affine) if self.n_pictures else ())
            file, shape = str(given["image"].meta["filename_or_obj"]), tuple(found["label"].shape[1:])
            predicted, reference = zip(*sizes, strict=True)
            self.cases.append(Case(file, shape, affine, predicted, reference, known_patient(given)))
            self.cuts.append(tuple(cuts))

    def __call__(self, engine: Engine) -> None:
        """Write the page.

        Raises:
            Med3dError: if the evaluator has none of the metrics.
        """
        scores, missing = self._scores(engine)
        shares = gather_shares(self.cases)
        # The metrics have the cases of one process after another; the page has them in the list's order.
        owners = [(rank, place) for rank, share in enumerate(shares) for place in range(len(share))]
        order = sorted(range(len(owners)), key=lambda index: owners[index][1])
        scores = {name: values[order] for name, values in scores.items()}
        owners = [owners[index] for index in order]
        picked = pick_cases(case_means(next(iter(scores.values()))), self.n_pictures)
        mine = [(index, self.cuts[owners[index][1]]) for _, index in picked if owners[index][0] == idist.get_rank()]
        cuts = {index: found for share in gather_shares(mine) for index, found in share}
        if idist.get_rank() > 0:
            return
        cases = [shares[rank][place] for rank, place in owners]
        picks = [Pick(name, index, cuts[index]) for name, index in picked]
        text = render_evaluation(cases, scores, self.class_names, self.settings, picks, missing, self.caveats)
        write_atomically(self.path, text)
        logger.info("written: %s", self.path)

    def _scores(self, engine: Engine) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
        state: Any = engine.state
        details = state.metric_details
        missing = [label for name, label in self.metrics.items() if name not in details]
        if len(missing) == len(self.metrics):
            raise Med3dError(
                f"the evaluator has none of the metrics {', '.join(self.metrics)}; its own: {', '.join(details)}"
            )
        if missing:
            logger.warning("not on the page, as the evaluator does not compute it: %s", ", ".join(missing))
        known = {label: details[name] for name, label in self.metrics.items() if name in details}
        return {label: torch.as_tensor(values).cpu().double().numpy() for label, values in known.items()}, missing


class TrainingPage:
    """Writes ``report/training.html`` as each epoch ends: curves of loss, validation Dice, learning rate and speed.

    Where epochs are so short that drawing would take more than a twentieth of the time, some are left to a later one;
    the end of the training is always drawn.

    The curves' numbers are beside the page, in ``training.json``. A resumed training goes on with them.

    Args:
        output_dir: folder to write ``report`` to.
        class_names: names of the classes, background first.
        best: handler that saves the best weights; its settings, with those that validation found out, are shown.
        optimizer: its groups' rates are shown under their ``name``.
        evaluator: the validation's, with :class:`~med3d_nets.reports.DiceReport`.
        ckpt_dir: folder of ``model.pt``, to name it; or empty.
        overwrite: whether to replace the page of an earlier training.
        resume: whether this training goes on from an earlier one, whose page may be there.
        metric: the validation's metric that tells the best epoch.
        scores: validation metrics to show, by the name to show; None: Dice of the classes.

    Raises:
        Med3dError: if a page is there already, as the training starts.
    """

    def __init__(
        self,
        output_dir: str,
        class_names: Sequence[str],
        best: BestModelSaver,
        optimizer: torch.optim.Optimizer,
        evaluator: Engine,
        ckpt_dir: str = "",
        overwrite: bool = False,
        resume: bool = False,
        metric: str = "val_mean_dice",
        scores: Mapping[str, str] | None = None,
    ) -> None:
        self.path = Path(output_dir) / "report" / "training.html"
        self.overwrite = overwrite
        self.resume = resume
        self.class_names = list(class_names)[1:]
        self.best = best
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.weights = os.path.join(ckpt_dir, "model.pt") if ckpt_dir else ""
        self.metric = metric
        self.scores = scores
        self.records: list[dict[str, Any]] = []
        self.rates: dict[str, float] = {}
        self.next_drawing = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after ``EpochReport`` and the validation and before what saves checkpoints."""
        engine.add_event_handler(Events.STARTED, self.prepare)
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def prepare(self, engine: Engine) -> None:
        """Look for the page of an earlier training."""
        check_training_page(self.path.parent.parent, self.overwrite or self.resume or bool(self.records))
        if self.resume:
            self.records = _read_record(self.path).get("epochs", self.records)

    def start(self, engine: Engine) -> None:
        """Note the rates that the epoch starts with: its end has those of the next one."""
        groups = self.optimizer.param_groups
        names = [group.get("name", "all" if len(groups) == 1 else f"group {n}") for n, group in enumerate(groups, 1)]
        self.rates = {name: float(group["lr"]) for name, group in zip(names, groups, strict=True)}

    def __call__(self, engine: Engine) -> None:
        """Note the epoch and write the page."""
        epoch, metrics = engine.state.epoch, engine.state.metrics
        validated = self.evaluator.state.epoch == epoch  # as MONAI's ValidationHandler runs it
        scores = self.evaluator.state.metrics if validated else {}
        record = {
            "epoch": epoch,
            "loss": float(metrics.get("mean_loss", math.nan)),
            "volumes_per_second": float(metrics.get("volumes_per_second", math.nan)),
            "rates": dict(self.rates),
            "validation": {name: float(value) for name, value in scores.items() if isinstance(value, (int, float))},
        }
        self.records = [*(known for known in self.records if known["epoch"] < epoch), record]
        started = time.monotonic()
        if started >= self.next_drawing:
            self._write(engine, running=True)
            finished = time.monotonic()
            self.next_drawing = finished + PAUSE * (finished - started)

    def finish(self, engine: Engine) -> None:
        """Write the page for the last time."""
        self._write(engine, running=False)

    def _write(self, engine: Engine, running: bool) -> None:
        if idist.get_rank() > 0 or not self.records:
            return
        last = engine.state.max_epochs or self.records[-1]["epoch"]
        metric = self.metric
        if not any(math.isfinite(each["validation"].get(metric, math.nan)) for each in self.records):
            # Where validation cases lack a class, another metric tells a classifier's best epoch.
            metric = getattr(self.evaluator.state, "key_metric_name", None) or metric
        shown = (self.class_names, self.best.settings, metric, self.weights)
        record = {"weights": os.path.abspath(self.weights), "epochs": self.records}
        write_atomically(self.path.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
        write_atomically(self.path, render_training(self.records, last, *shown, running, self.scores))


def check_training_page(output_dir: str | os.PathLike[str], overwrite: bool) -> None:
    """Refuse to replace the page of a training that left weights; one that stopped before is of no use.

    Args:
        output_dir: folder that ``report`` is in.
        overwrite: whether the user asked for it, or goes on with that training.

    Raises:
        Med3dError: naming the page.
    """
    path = Path(output_dir) / "report" / "training.html"
    weights = _read_record(path).get("weights", "")
    check_free([path], overwrite or (bool(weights) and not os.path.exists(weights)))


def _read_record(page: Path) -> dict[str, Any]:
    path = page.with_suffix(".json")
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _affine(image: MetaTensor, label: Tensor) -> NDArray[np.float64]:
    """Affine of the label map, which is on the image file's own grid."""
    found = label.affine if isinstance(label, MetaTensor) else image.meta["original_affine"]
    return np.asarray(torch.as_tensor(found).cpu(), float)


def _foreground(volume: Tensor, channel: int) -> Tensor:
    mask = volume[channel] > 0.5
    return mask.as_tensor() if isinstance(mask, MetaTensor) else mask
