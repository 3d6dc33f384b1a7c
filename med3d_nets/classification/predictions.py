"""An Ignite handler that writes what a classifier says of volumes whose class nobody has told."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events
from torch import Tensor

from med3d_nets.classification.volumes import name_case
from med3d_nets.distributed import gather
from med3d_nets.reports import text_table
from med3d_nets.runs import check_free
from med3d_nets.weights import write_atomically

__all__ = ["PredictionTable"]

logger = logging.getLogger(__name__)

SHOWN = 20
"""Rows that are printed; the file has all."""


class PredictionTable:
    """Writes ``predictions.csv``: a row a case, in the order given: file, class and the probability of each class.

    Of a regression: file and number. The evaluator's ``state.batch`` and ``state.output`` are lists, an item a case.

    Args:
        output_dir: folder to write to.
        class_names: names of the classes, or of the one number.
        task: ``"classification"`` or ``"regression"``.
        overwrite: whether to replace the file of an earlier run.

    Raises:
        Med3dError: if the file is there already, as the evaluator starts.
    """

    def __init__(self, output_dir: str, class_names: Sequence[str], task: str, overwrite: bool = False) -> None:
        self.path = Path(output_dir) / "predictions.csv"
        self.class_names = list(class_names)
        self.task = task
        self.overwrite = overwrite
        self.rows: list[list[str]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Look for an earlier file; this run may replace its own."""
        check_free([self.path], self.overwrite)
        self.overwrite = True
        self.rows = []
        idist.barrier()  # no process may write before each has looked

    def collect(self, engine: Engine) -> None:
        """Take the predictions of an iteration: logits ``(class,)``, or numbers ``(1,)``."""
        state: Any = engine.state
        for given, found in zip(state.batch, state.output, strict=True):
            answer = torch.as_tensor(found["pred"]).detach().double().cpu().flatten()
            self.rows.append([name_case(given["image"]), *self._row(answer)])

    def _row(self, answer: Tensor) -> list[str]:
        if self.task == "regression":
            return [f"{answer.item():.6g}"]
        probabilities = torch.softmax(answer, dim=0)
        return [self.class_names[int(answer.argmax())], *(f"{value:.6g}" for value in probabilities.tolist())]

    def __call__(self, engine: Engine) -> None:
        """Write and print the table."""
        rows = gather(self.rows)
        if idist.get_rank() > 0:
            return
        columns = ["predicted", *(f"probability {name}" for name in self.class_names)]
        header = ["case", *([f"predicted {self.class_names[0]}"] if self.task == "regression" else columns)]
        content = io.StringIO(newline="")
        csv.writer(content).writerows([header, *rows])
        write_atomically(self.path, content.getvalue())
        more = f"\n... and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
        logger.info("\n%s%s\nwritten: %s", text_table(header, rows[:SHOWN]), more, self.path)
