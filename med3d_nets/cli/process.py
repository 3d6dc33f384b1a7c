"""The commands of MONAI, printed and run."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

__all__ = ["run_monai", "run_program"]

QUIET = "ignore:parsing config_file"
"""MONAI warns of configs by others, which these are not."""


def run_monai(words: Sequence[str], dry_run: bool = False) -> None:
    """Print and run ``python -m monai.bundle`` in the working directory.

    Args:
        words: after ``monai.bundle``.
        dry_run: print alone.

    Raises:
        SystemExit: with the status of the command, if it is not 0.
    """
    command = [_python(), "-m", "monai.bundle", *words]
    print(shlex.join(command), flush=True)
    if not dry_run and (status := run_program(command)):
        sys.exit(status)


def run_program(command: Sequence[str]) -> int:
    """The exit status of a program that shares the terminal; 128 and the signal's number if a signal ended it.

    On Ctrl-C the terminal stops the program itself, and this one waits for it: ``subprocess.run`` would kill it after a
    quarter of a second. SIGTERM is passed on.
    """
    running: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in running:
            process.send_signal(number)

    handlers: dict[int, Any] = {signal.SIGINT: lambda number, frame: None, signal.SIGTERM: pass_on}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        running.append(subprocess.Popen(command, env={"PYTHONWARNINGS": QUIET, **os.environ}))
        status = running[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - status if status < 0 else status


def _python() -> str:
    """``python`` where this is the interpreter that it starts, as in an activated environment; else its path."""
    found = shutil.which("python")
    same = found is not None and os.path.dirname(os.path.abspath(found)) == os.path.dirname(sys.executable)
    return "python" if same else sys.executable
