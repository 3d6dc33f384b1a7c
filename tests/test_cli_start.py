"""The command line starts without torch; and ``--debug`` reaches the bundles."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from test_cli import Outcome, med3d

import med3d_nets
from med3d_nets.errors import DEBUG, explain_errors
from med3d_nets.networks import create_model

__all__ = ["med3d"]

SHOW = """
import sys
from med3d_nets import cli
try:
    cli.run(sys.argv[1:])
finally:
    print(sorted({"torch", "monai", "numpy", "nibabel", "matplotlib"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("words", [["--help"], ["list"], ["evaluate", "DATA", "--dry_run"], ["export", "--help"]])
def test_commands_that_compute_nothing_import_nothing_heavy(dataset: Path, words: list[str]) -> None:
    words = [str(dataset) if word == "DATA" else word for word in words]
    command = [sys.executable, "-c", SHOW, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def test_names_of_the_package_are_there_all_the_same() -> None:
    assert med3d_nets.create_model is create_model
    assert all(hasattr(med3d_nets, name) for name in med3d_nets.__all__)
    with pytest.raises(AttributeError, match="module 'med3d_nets' has no attribute 'creat_model'"):
        med3d_nets.creat_model  # noqa: B018


@pytest.mark.parametrize("debug", [True, False])
def test_debug_shows_the_tracebacks_of_bundles(
    med3d: Callable[..., Outcome], dataset: Path, monkeypatch: pytest.MonkeyPatch, debug: bool
) -> None:
    seen: list[str] = []
    monkeypatch.setattr("med3d_nets.cli.process.run_program", lambda command: seen.append(os.environ[DEBUG]) or 0)
    assert med3d("evaluate", dataset, *(["--debug"] if debug else []))[0] == 0
    assert seen == ["1" if debug else ""]
    monkeypatch.setattr(sys, "argv", [os.path.join("monai", "bundle", "__main__.py")])
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    explain_errors()
    assert (sys.excepthook is sys.__excepthook__) == debug
