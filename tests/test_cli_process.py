"""MONAI's commands as processes: they are what is printed, and their end is the program's."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from test_cli import Outcome, med3d

from med3d_nets.cli.process import run_program

__all__ = ["med3d"]

CHILD = """
import signal, sys, time
def stop(number, frame):
    time.sleep(0.6)
    print("tidied up after", number, flush=True)
    sys.exit(5)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import runpy, sys
sys.exit(runpy.run_path(sys.argv[1])["run_program"]([sys.executable, "-c", sys.argv[2]]))
"""


@pytest.mark.parametrize("status", [0, 3])
def test_what_is_printed_is_run_and_its_status_passed_on(
    med3d: Callable[..., Outcome], dataset: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr("med3d_nets.cli.process.run_program", lambda command: ran.append(command) or status)
    found, out, _ = med3d("train", dataset, "--pretrain_path", "", "--output_dir", 'it\'s "1"')
    assert found == status
    assert [shlex.split(line) for line in out.splitlines()] == ran


def test_python_is_named_by_its_path_where_it_is_not_the_first(
    med3d: Callable[..., Outcome], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "python"
    other.symlink_to(sys.executable)
    for path, name in ((tmp_path, sys.executable), (Path(sys.executable).parent, "python")):
        monkeypatch.setenv("PATH", str(path))
        assert shlex.split(med3d("evaluate", dataset, "--dry_run")[1])[0] == name


def test_the_status_of_a_program() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run_program([sys.executable, "-c", "import sys; sys.exit(7)"]) == 7
    assert run_program([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 137
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_program_may_tidy_up(number: signal.Signals) -> None:
    """Ctrl-C reaches both processes, a scheduler's SIGTERM the first one."""
    words = [sys.executable, "-c", PARENT, str(ROOT / "med3d_nets" / "cli" / "process.py"), CHILD]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.communicate(timeout=30)[0] == f"tidied up after {int(number)}\n"
    assert process.returncode == 5
