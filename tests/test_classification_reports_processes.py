"""Reports of a classifier by several processes, for which threads stand."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Page
from test_classification_reports import SETTINGS, TWO, evaluate, made_up, make_cases

from med3d_nets import distributed
from med3d_nets.classification import reports
from med3d_nets.classification.reports import PredictionReport, ScoreReport


class Processes:
    """Threads that stand for processes: cases are dealt to them in turn."""

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.place = count, threading.local()
        self.meeting, self.table = threading.Barrier(count, timeout=60), [[] for _ in range(count)]
        for module in (distributed, reports):
            monkeypatch.setattr(module, "gather_shares", self.gather_shares)
        monkeypatch.setattr(reports.idist, "get_rank", lambda: getattr(self.place, "rank", 0))

    def gather_shares(self, mine: list[Any]) -> list[list[Any]]:
        self.table[self.place.rank] = list(mine)
        self.meeting.wait()
        found = list(self.table)
        self.meeting.wait()
        return found

    def run(self, handlers: list[Any], cases: list[dict[str, Any]]) -> None:
        failed: list[BaseException] = []

        def start(rank: int) -> None:
            self.place.rank = rank
            try:
                evaluate(handlers[rank], cases[rank :: self.count], batch_size=1)
            except BaseException as error:
                failed.append(error)
                self.meeting.abort()

        threads = [threading.Thread(target=start, args=(rank,)) for rank in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []


def test_processes_share_the_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = made_up()
    cases = make_cases(logits, labels.tolist())
    folders = [tmp_path / name for name in ("one", "two", "other")]
    options = {
        "n_pictures": 4,
        "chosen": ["/data/case <5>.nii.gz"],
        "explain": lambda case: {"saliency": case["image"]},
    }
    alone, *both = (PredictionReport(str(folder), TWO, "classification", SETTINGS, **options) for folder in folders)
    evaluate(alone, cases)
    Processes(2, monkeypatch).run(both, cases)
    assert both[0].paths[0].read_bytes() == alone.paths[0].read_bytes()
    assert both[0].paths[1].read_bytes() == alone.paths[1].read_bytes()
    assert Page(both[0].page.read_text()).images == Page(alone.page.read_text()).images
    assert not folders[2].exists()


def test_validation_is_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = made_up()
    handlers = [ScoreReport(TWO) for _ in range(2)]
    Processes(2, monkeypatch).run(handlers, make_cases(logits, labels.tolist()))
    for report in handlers:
        assert np.array_equal(report.logits, logits)
        assert report.labels.tolist() == labels.tolist()
