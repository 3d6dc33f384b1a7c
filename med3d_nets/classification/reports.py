"""Ignite handlers that score a classifier's validation, and report its evaluation: tables, numbers and a page.

MONAI's and Ignite's metrics have neither intervals nor patients, and there is no handler that writes predictions.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events
from numpy.typing import NDArray

from med3d_nets.classification.calibration import class_probabilities
from med3d_nets.classification.page import MOST_WRONG, CasePrediction, find_doubts, render_classification
from med3d_nets.classification.pictures import CasePictures, Explain
from med3d_nets.classification.resampling import Estimate
from med3d_nets.classification.scores import (
    ClassScores,
    NumberScores,
    as_record,
    check_thresholds,
    score_classes,
    score_numbers,
)
from med3d_nets.classification.settings import check_task
from med3d_nets.classification.volumes import name_case
from med3d_nets.distributed import gather, gather_shares
from med3d_nets.errors import Med3dError
from med3d_nets.reports import text_table
from med3d_nets.runs import check_free
from med3d_nets.settings import Settings, versions
from med3d_nets.weights import write_atomically

__all__ = ["CURVES", "KEY_METRICS", "TIE_BREAKERS", "PredictionReport", "ScoreReport", "score_rows"]

logger = logging.getLogger(__name__)

KEY_METRICS = {
    "classification": ("val_auc", "val_balanced_accuracy", "val_accuracy"),
    "regression": ("val_negative_mae", "val_r2"),
}
"""Metrics by which the best epoch can be chosen, higher is better; the first one is the default."""

TIE_BREAKERS = {"classification": "val_loss", "regression": "val_rmse"}
"""Metrics, lower for the better, that choose between epochs of the same key metric: an AUC is often 1 in many."""

CURVES = {
    "classification": {"AUC": "val_auc", "balanced accuracy": "val_balanced_accuracy", "accuracy": "val_accuracy"},
    "regression": {"negative mean absolute error": "val_negative_mae", "R2": "val_r2"},
}
"""Metrics that are drawn as the training goes on, by their names; the first one is the task's key metric."""


class _Predictions:
    """Collects the predictions of an evaluator's run.

    The evaluator's ``state.batch`` and ``state.output`` are lists with an item a case: ``image``, a ``MetaTensor`` with
    its file's name; ``label``, the index of the true class, or the true number; ``patient``, where it is known; and
    ``pred``, logits ``(class,)`` or the predicted number ``(1,)``.
    """

    def __init__(self, class_names: Sequence[str], task: str) -> None:
        check_task(task, class_names)
        self.class_names = list(class_names)
        self.task = task
        self.cases: list[CasePrediction] = []

    def start(self, engine: Engine) -> None:
        """Forget the cases of an earlier run of the evaluator."""
        self.cases = []

    def collect(self, engine: Engine) -> None:
        """Take the predictions of an iteration.

        Raises:
            Med3dError: naming each case whose prediction or label cannot be one.
        """
        state: Any = engine.state
        problems = []
        for given, output in zip(state.batch, state.output, strict=True):
            try:
                self.cases.append(self._read(given, output["pred"]))
            except Med3dError as problem:
                problems.append(f"{_file(given)}: {problem}")
        if problems:
            raise Med3dError("; ".join(problems))

    def _read(self, given: Mapping[str, Any], pred: Any) -> CasePrediction:
        answer = torch.as_tensor(pred).detach().cpu().double().flatten().tolist()
        label, count = float(given["label"]), len(self.class_names)
        if len(answer) != count or not all(map(math.isfinite, answer)):
            raise Med3dError(f"the network answers with {answer}, expected finite numbers, {count} of them")
        if not math.isfinite(label):
            raise Med3dError(f"label is {label}, expected a finite number")
        facts: dict[str, Any] = {
            "file": _file(given),
            "logits": tuple(answer),
            "patient": str(given.get("patient") or ""),
        }
        if self.task == "regression":
            return CasePrediction(label=label, **facts)
        if label not in range(count):
            raise Med3dError(f"label is {label:g}, expected a whole number from 0 to {count - 1}")
        probabilities = class_probabilities(answer).tolist()
        return CasePrediction(label=int(label), probabilities=tuple(probabilities), **facts)

    def score(self, cases: Sequence[CasePrediction], **options: Any) -> ClassScores | NumberScores:
        """Scores of cases; options are those of the task's function."""
        labels, patients = _labels(cases), [case.patient for case in cases]
        if self.task == "regression":
            return score_numbers([case.logits[0] for case in cases], labels, patients, **options)
        return score_classes([case.probabilities for case in cases], labels, self.class_names, patients, **options)


class ScoreReport(_Predictions):
    """Scores a validation: logs a line and leaves the scores among the engine's metrics, as numbers.

    These are ``val_auc``, ``val_accuracy``, ``val_balanced_accuracy`` and ``val_loss`` (the log loss), or, of a
    regression, ``val_mae``, ``val_negative_mae``, ``val_rmse`` and ``val_r2``. There are no intervals: a bootstrap each
    epoch would take long.

    Where the validation cases lack a class, there is no AUC; balanced accuracy is then the key metric instead, in every
    epoch alike.

    Attributes:
        logits: of the last validation, of all processes, ``(case, class)``; see
            :func:`~med3d_nets.classification.calibration.fit_temperature`.
        labels: likewise, ``(case,)``.

    Args:
        class_names: names of the classes, or of the one number.
        task: ``"classification"`` or ``"regression"``.
        key_metric: the metric that tells the best epoch, one of :data:`KEY_METRICS`; empty for the task's first.

    Raises:
        Med3dError: if the task, its names or the key metric cannot be.
    """

    def __init__(self, class_names: Sequence[str], task: str = "classification", key_metric: str = "") -> None:
        super().__init__(class_names, task)
        self.key_metric = key_metric or KEY_METRICS[task][0]
        if self.key_metric not in KEY_METRICS[task]:
            raise Med3dError(f"key_metric is {key_metric!r}, expected {' or '.join(KEY_METRICS[task])} for {task}")
        self.logits: NDArray[np.float64] = np.empty((0, len(self.class_names)))
        self.labels: NDArray[Any] = np.empty(0)
        self.warned = False

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator, before the handlers that read its metrics."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Score the cases of all processes."""
        cases = gather(self.cases)
        self.logits = np.array([case.logits for case in cases])
        self.labels = _labels(cases)
        state: Any = engine.state
        state.key_metric_name = self.key_metric
        scores = self.score(cases, resamples=0)
        if isinstance(scores, NumberScores):
            shown = {"MAE": scores.mae.value, "RMSE": scores.rmse.value, "R2": scores.r2.value}
            found = {f"val_{name.lower()}": value for name, value in shown.items()}
            found["val_negative_mae"] = -scores.mae.value
        else:
            shown = {"accuracy": scores.accuracy.value, "balanced accuracy": scores.balanced_accuracy.value}
            shown |= {"AUC": scores.auc.value, "loss": scores.log_loss}
            found = {f"val_{name.lower().replace(' ', '_')}": value for name, value in shown.items()}
            if self.key_metric == "val_auc" and math.isnan(scores.auc.value):
                state.key_metric_name = "val_balanced_accuracy"
                self._warn(scores)
        state.metrics.update(found)
        logger.info("validation: %s", ", ".join(f"{name} {value:.3f}" for name, value in shown.items()))

    def _warn(self, scores: ClassScores) -> None:
        if not self.warned and idist.get_rank() == 0:
            missing = [name for name, row in zip(self.class_names, scores.confusion, strict=True) if not row.sum()]
            logger.warning(
                "no validation case of %s: without an AUC, balanced accuracy tells the best epoch", ", ".join(missing)
            )
        self.warned = True


class PredictionReport(_Predictions):
    """Reports an evaluation: ``predictions.csv``, ``metrics.json`` and the page ``report/index.html``.

    ``predictions.csv`` has a row a case, in the list's order: file, patient, true and predicted class and the
    probability of each class; or the true and the predicted number. ``metrics.json`` has the scores, see
    :class:`~med3d_nets.classification.scores.ClassScores`, with ``null`` for what is not defined, and ``caveats``: what
    a reader of them must know.

    Args:
        output_dir: folder to write to.
        class_names: names of the classes, or of the one number.
        task: ``"classification"`` or ``"regression"``.
        settings: of the network: :class:`~med3d_nets.settings.Settings`, or the content of ``model.json``.
        thresholds: of class 1's probability, of two classes, to give sensitivity and specificity at.
        overwrite: whether to replace files of an earlier evaluation.
        report: whether to write the page.
        n_pictures: how many of the cases on the page that are the most wrong are drawn: an axial slice of what the
            network saw.
        chosen: cases that the page shows whatever their loss, see
            :func:`~med3d_nets.classification.pictures.choose_cases`.
        explain: adds the saliency of a case, which the slices are then chosen and coloured by, or None.
        caveats: sentences on the cases, such as those of :func:`~med3d_nets.fold_records.check_fold`.

    Raises:
        Med3dError: if the task, its names, a threshold or the number of pictures cannot be; and, as the evaluation
            starts, if a file is there already.
    """

    def __init__(
        self,
        output_dir: str,
        class_names: Sequence[str],
        task: str,
        settings: Settings | Mapping[str, Any],
        thresholds: Sequence[float] = (0.5,),
        overwrite: bool = False,
        report: bool = True,
        n_pictures: int = MOST_WRONG,
        chosen: Sequence[str] = (),
        explain: Explain | None = None,
        caveats: Sequence[str] = (),
    ) -> None:
        super().__init__(class_names, task)
        check_thresholds(thresholds)
        if isinstance(n_pictures, bool) or not isinstance(n_pictures, int) or n_pictures < 0:
            raise Med3dError(f"n_pictures is {n_pictures!r}, expected a whole number of cases, 0 or more")
        folder = Path(output_dir)
        self.paths = [folder / "predictions.csv", folder / "metrics.json"]
        self.page = folder / "report" / "index.html" if report else None
        self.settings = settings
        self.thresholds = list(thresholds)
        self.overwrite = overwrite
        self.caveats = list(caveats)
        self.pictures = CasePictures(min(n_pictures, MOST_WRONG), chosen, explain)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self.prepare)
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def prepare(self, engine: Engine) -> None:
        """Look for files of an earlier evaluation; this one may replace its own."""
        check_free(self._files(), self.overwrite)
        self.overwrite = True

    def start(self, engine: Engine) -> None:
        """Forget the cases of an earlier run of the evaluator."""
        super().start(engine)
        self.pictures.kept = {}

    def collect(self, engine: Engine) -> None:
        """Take the predictions of an iteration, and the volumes of the cases that may be shown."""
        super().collect(engine)
        state: Any = engine.state
        if self.page:
            for case, given in zip(self.cases[-len(state.batch) :], state.batch, strict=True):
                self.pictures.keep(case, given["image"])

    def __call__(self, engine: Engine) -> None:
        """Write the files and log the scores."""
        cases = gather(self.cases)
        scores = self._write_scores(cases) if idist.get_rank() == 0 else None
        # After the scores, which are not lost if saliency wants more memory than there is; each process cuts its own.
        slices = self.pictures.cut(self.pictures.shown(cases)) if self.page else []
        pictures = dict(pair for share in gather_shares(slices) for pair in share)
        if scores is None:
            return
        if self.page:
            shown = (self.class_names, self.settings, pictures, self.pictures.chosen, self.caveats)
            write_atomically(self.page, render_classification(cases, scores, *shown))
        written = ", ".join(map(str, self._files()))
        table = text_table(["score", "value", "95 % interval"], score_rows(scores))
        counts = f"{scores.n} cases of {scores.patients} patients, as far as patients are known."
        logger.info("\n%s\n%s\nwritten: %s", table, " ".join([counts, *find_doubts(scores)]), written)

    def _files(self) -> list[Path]:
        return [*self.paths, self.page] if self.page else self.paths

    def _write_scores(self, cases: Sequence[CasePrediction]) -> ClassScores | NumberScores:
        options = {"thresholds": self.thresholds} if self.task == "classification" else {}
        scores = self.score(cases, **options)
        write_atomically(self.paths[0], self._csv(cases))
        record = {"task": self.task, "class_names": self.class_names, **as_record(scores)}
        if self.task == "classification" and len(self.class_names) == 2:
            record["positive_class"] = self.class_names[1]
        record |= {"caveats": [*self.caveats, *find_doubts(scores)], "versions": versions()}
        write_atomically(self.paths[1], json.dumps(record, indent=1) + "\n")
        return scores

    def _csv(self, cases: Sequence[CasePrediction]) -> str:
        content = io.StringIO(newline="")
        writer = csv.writer(content)
        if self.task == "regression":
            writer.writerow(["case", "patient", self.class_names[0], "predicted"])
            writer.writerows([case.file, case.patient, case.label, f"{case.logits[0]:.6g}"] for case in cases)
            return content.getvalue()
        writer.writerow(
            ["case", "patient", "class", "predicted", *(f"probability {name}" for name in self.class_names)]
        )
        for case, label in zip(cases, _labels(cases), strict=True):
            names = [self.class_names[place] for place in (label, int(np.argmax(case.probabilities)))]
            writer.writerow([case.file, case.patient, *names, *(f"{each:.6g}" for each in case.probabilities)])
        return content.getvalue()


def _labels(cases: Sequence[CasePrediction]) -> NDArray[Any]:
    return np.array([case.label for case in cases])


def score_rows(scores: ClassScores | NumberScores) -> list[list[Any]]:
    """Rows to print: a score's name, its value, and its interval, empty where it has none."""
    if isinstance(scores, NumberScores):
        shown = {"MAE": scores.mae, "RMSE": scores.rmse, "R2": scores.r2, "Pearson r": scores.pearson}
        return [_row(name, each) for name, each in shown.items()]
    shown = {"accuracy": scores.accuracy, "balanced accuracy": scores.balanced_accuracy, "AUC": scores.auc}
    for point in scores.operating_points:
        for name in ("sensitivity", "specificity"):
            shown[f"{name} at {point.threshold:g}"] = getattr(point, name)
    for each in scores.classes if not scores.operating_points else ():
        shown |= {f"sensitivity {each.name}": each.sensitivity, f"specificity {each.name}": each.specificity}
    others = {"log loss": scores.log_loss, "Brier score": scores.brier, "calibration error": scores.reliability.error}
    return [_row(name, each) for name, each in shown.items()] + [[name, value, ""] for name, value in others.items()]


def _row(name: str, found: Estimate) -> list[Any]:
    low, high = found.interval
    return [name, found.value, "" if math.isnan(low) else f"{low:.4f} to {high:.4f}"]


def _file(given: Mapping[str, Any]) -> str:
    return name_case(given["image"])
