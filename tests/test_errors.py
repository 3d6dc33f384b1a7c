"""Errors that are shown as one message."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch
from published import ROOT

from med3d_nets.errors import Med3dError, explain

SIZES = {"batch_size": 4, "roi_size": [96, 96, 96]}


def test_own_error_is_found_below_others():
    inner = Med3dError("conv1.weight is missing")
    try:
        try:
            raise inner
        except Med3dError as error:
            raise RuntimeError("Failed to instantiate") from error
    except RuntimeError as error:
        outer = RuntimeError("again")
        outer.__context__ = error
    assert explain(outer, SIZES) is inner


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore"),
        MemoryError("CUDA out of memory. Tried to allocate"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_names_what_to_lower(error):
    shown = str(explain(error, SIZES))
    assert shown.startswith(f"out of memory ({str(error).splitlines()[0]}). Lower batch_size, then roi_size, by half")
    assert shown.endswith("now: batch_size=4, roi_size=[96, 96, 96]")


def test_out_of_memory_without_message_or_sizes():
    assert str(explain(MemoryError(), {})).startswith("out of memory (MemoryError). ")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_names_the_file(number):
    shown = str(explain(OSError(number, "No space", "model.pt"), {}))
    assert shown == "no space left on the disk while writing model.pt (No space)"
    assert str(explain(OSError(number, "No space"), {})) == "no space left on the disk (No space)"


@pytest.mark.parametrize("error", [KeyError("a"), RuntimeError("shape"), FileNotFoundError(errno.ENOENT, "no", "a")])
def test_other_errors_are_left_alone(error):
    assert explain(error, SIZES) is None


def test_causes_that_form_a_circle():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert explain(first, SIZES) is None


@pytest.mark.parametrize(
    ("raised", "shown"),
    [
        ("Med3dError('mend it')", "error: mend it\n"),
        ("MemoryError('big')", "error: out of memory (big). Lower batch_size, by half; now: batch_size=2\n"),
    ],
)
def test_hook_shows_one_line(raised, shown):
    run = _run_with_hook(f"raise RuntimeError('wrapped') from {raised}")
    assert (run.returncode, run.stdout, run.stderr) == (1, "before\n", shown)


def test_sizes_that_are_known_later_are_shown_too():
    run = _run_with_hook("explain_errors(patch_size=8)\nraise RuntimeError('wrapped') from MemoryError('big')")
    assert "Lower batch_size, then patch_size, by half; now: batch_size=2, patch_size=8" in run.stderr


@pytest.mark.parametrize(("words", "shown"), [("", "interrupted"), ("'in epoch 3; go on'", "in epoch 3; go on")])
def test_ctrl_c_is_one_line(words, shown):
    run = _run_with_hook(f"raise KeyboardInterrupt({words})")
    assert (run.returncode, run.stderr) == (-signal.SIGINT, f"\n{shown}\n")
    assert _run_with_hook("raise KeyboardInterrupt", RANK="1").stderr == ""


def test_hook_names_the_rank_of_another_process():
    run = _run_with_hook("raise Med3dError('mend it')", RANK="3")
    assert (run.returncode, run.stderr) == (1, "error on rank 3: mend it\n")


def test_program_that_uses_a_bundle_keeps_its_hook():
    run = _run_with_hook("raise Med3dError('mend it')", script="serve.py")
    assert run.returncode == 1
    assert run.stderr.startswith("Traceback")


def test_hook_leaves_the_traceback_of_other_errors():
    run = _run_with_hook("raise KeyError('unforeseen')")
    assert run.returncode == 1
    assert run.stderr.startswith("Traceback")
    assert "KeyError: 'unforeseen'" in run.stderr


def _run_with_hook(statement, script="site-packages/monai/bundle/__main__.py", **environment):
    code = f"import sys\nsys.argv = [{script!r}]\nfrom med3d_nets.errors import *\nexplain_errors(batch_size=2)\n"
    command = [sys.executable, "-c", f"{code}print('before')\n{statement}"]
    variables = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
