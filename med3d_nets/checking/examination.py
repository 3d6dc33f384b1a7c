"""Reads all cases, several at a time, and collects what is found."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from nibabel.imageglobals import logger as nibabel_logger
from tqdm import tqdm

from med3d_nets.checking.cases import Case, Options, Record, read_case
from med3d_nets.checking.comparisons import compare
from med3d_nets.checking.findings import ERROR, KINDS, WARNING, Finding, count
from med3d_nets.checking.lists import Lists
from med3d_nets.checking.pictures import PictureStore
from med3d_nets.list_files import short_names

__all__ = ["Examination", "examine"]


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        lists: cases and their lists.
        options: what the cases should be like.
        records: of the cases, in their order.
        names: short name of each case.
        findings: in the order of :data:`~med3d_nets.checking.findings.KINDS`, then of the cases.
        seconds: that reading took.
    """

    lists: Lists
    options: Options
    records: Sequence[Record]
    names: Sequence[str]
    findings: Sequence[Finding]
    seconds: float

    @property
    def errors(self) -> int:
        """Number of errors."""
        return count(self.findings, ERROR)

    @property
    def warnings(self) -> int:
        """Number of warnings."""
        return count(self.findings, WARNING)

    def settings(self) -> dict[str, Any]:
        """Lists and options that were used."""
        return {**self.lists.options, "in_channels": self.options.in_channels}

    def lead(self) -> str:
        """How many cases of which lists, in words."""
        parts = Counter(record.case.part for record in self.records)
        named = ", ".join(f"{number} {part}" for part, number in parts.items())
        patients = len({record.case.patient for record in self.records if record.case.patient})
        known = f"of {patients} patients" if patients else "patients not known"
        return f"{len(self.records)} cases ({named}; {known}), read in {self.seconds:.1f} s"


def examine(lists: Lists, options: Options, store: PictureStore, num_workers: int = 0) -> Examination:
    """Read all cases and compare them.

    Memory holds one volume for each thread, and about 2 kB for each case.

    Args:
        lists: the cases.
        options: what they should be like.
        store: gets a picture of each.
        num_workers: threads (0: up to four, one for each processor).
    """
    start = time.perf_counter()
    # Reading, decompressing, hashing and numpy's sums release the interpreter's lock, so that threads do as well as
    # processes, which would import torch and MONAI first.
    pool = ThreadPoolExecutor(num_workers if num_workers > 0 else min(4, os.cpu_count() or 1))
    try:
        with _quiet_nibabel():
            found = pool.map(partial(read_case, options=options, store=store), lists.cases)
            records = list(tqdm(found, "checking cases", len(lists.cases), unit="case", disable=None))
    finally:
        pool.shutdown(cancel_futures=True)
    names = _names(lists.cases)
    findings = [_finding(problem) for problem in lists.problems]
    for record, name in zip(records, names, strict=True):
        findings += [_finding(problem, record, name) for problem in record.problems]
    findings += compare(records, names, options.n_seg_classes)
    order = list(KINDS)
    findings.sort(key=lambda finding: order.index(finding.kind))  # stable
    return Examination(lists, options, records, names, findings, time.perf_counter() - start)


def _names(cases: Sequence[Case]) -> list[str]:
    """Short names of the cases, each another: an image may have several labels."""
    times: Counter[str] = Counter()
    names = []
    for name in short_names([case.images[0] for case in cases]):
        times[name] += 1
        names.append(name if times[name] == 1 else f"{name} ({times[name]})")
    return names


def _finding(problem: str, record: Record | None = None, name: str = "") -> Finding:
    """The finding that a line ``where: found ...; expected ...`` tells."""
    where, _, rest = problem.partition(": found ")
    found, _, expected = rest.partition("; expected ")
    kind = getattr(problem, "kind", "unreadable")
    return Finding(kind, record.case.part if record else "", name, where, found, expected)


@contextmanager
def _quiet_nibabel() -> Iterator[None]:
    """Keep nibabel from printing what it mends in headers: what matters of it is a finding."""
    level = nibabel_logger.level
    nibabel_logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        nibabel_logger.setLevel(level)
