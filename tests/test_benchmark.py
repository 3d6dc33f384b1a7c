"""The benchmark's rows of the patch recipe, and what it refuses to run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT, load_tool

from med3d_nets.errors import Med3dError

TINY = ["--recipe", "patch", "--variant", "resnet_10", "--patch_size", "16,24,16", "--batch_size", "1"]


@pytest.fixture
def tool() -> ModuleType:
    return load_tool("benchmark")


def run(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *options])
    tool.main()


def measured(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What is measured from now on, without being run."""
    seen: list[tuple[object, ...]] = []

    def measure(*what: object) -> tuple[float, float]:
        seen.append(what)
        return 1.234, 5.678

    monkeypatch.setattr(tool, "measure_patches", measure)
    return seen


def die(*_: object) -> None:
    """What a process does that the system ends."""
    os._exit(137)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_an_iteration_takes_time_and_memory(tool: ModuleType, checkpointed: bool) -> None:
    seconds, gigabytes = tool.patch_iteration("resnet_10", (16, 24, 16), 1, 3, checkpointed, 1)
    assert 0 < seconds < 60
    assert 0.2 < gigabytes < 100


def test_a_row_with_and_one_without(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = measured(tool, monkeypatch)
    run(tool, monkeypatch, *TINY, "--n_seg_classes", "3", "--activation_checkpointing")
    assert seen == [("resnet_10", (16, 24, 16), 1, 3, row, 2) for row in (False, True)]
    text = capsys.readouterr().out
    assert text.startswith("resnet_10, patch recipe, 16 x 24 x 16, batch 1, ")
    assert re.findall(r"^\| (no|yes) \| 1.23 s \| 5.68 GB \| 0\.\d\d GB \|$", text, re.MULTILINE) == ["no", "yes"]


def test_one_row_unless_asked(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = measured(tool, monkeypatch)
    run(tool, monkeypatch, "--recipe", "patch", "--patch_size", "[16, 24, 16]", "--repeats", "1")
    assert seen == [("resnet_10", (16, 24, 16), 2, 2, False, 1)]
    assert "| yes |" not in capsys.readouterr().out


def test_what_does_not_fit_is_refused(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = measured(tool, monkeypatch)
    with pytest.raises(SystemExit, match="1"):
        run(tool, monkeypatch, *TINY, "--patch_size", "96,96,96", "--memory_gb", "0.5")
    shown = capsys.readouterr()
    assert re.match(
        r"error: patches of 96x96x96 voxels in batches of 1 do not fit: counted 0\.\d+ GB of 0\.5 GB, expected at most "
        r"80% of that; lower --patch_size or --batch_size, or try --activation_checkpointing\n",
        shown.err,
    )
    assert "|" not in shown.out
    assert seen == []


def test_what_fits_with_checkpointing_alone_is_run_with_it_alone(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = measured(tool, monkeypatch)
    options = ["--patch_size", "96,160,160", "--memory_gb", "1.7", "--activation_checkpointing"]
    run(tool, monkeypatch, *TINY, *options)
    assert [what[4] for what in seen] == [True]
    assert re.search(r"\| no \| does not fit in 1.7 GB \| - \| 2\.\d\d GB \|\n", capsys.readouterr().out)


def test_a_patch_that_is_too_small_is_told(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, message in (
        (["--patch_size", "8,8,8"], "error: patches of 8x8x8 voxels in batches of 1 cannot be trained on: "),
        (["--variant", "resnet_11"], "error: no variant 'resnet_11'"),
    ):
        with pytest.raises(SystemExit, match="1"):
            run(tool, monkeypatch, *TINY, *options)
        assert capsys.readouterr().err.startswith(message)
    for size in ("16,24", "16,24,0", "a,b,c"):
        with pytest.raises(SystemExit, match="2"):
            run(tool, monkeypatch, *TINY, "--patch_size", size)
        assert f"invalid three numbers of voxels value: '{size}'" in capsys.readouterr().err


def test_a_process_that_the_system_ends_is_an_error(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "patch_iteration", die)
    with pytest.raises(Med3dError, match="the system ended the iteration's process"):
        tool.measure_patches("resnet_10", (16, 24, 16), 1, 2, False, 1)


@pytest.mark.slow
def test_command_line() -> None:
    """Each row in a process of its own."""
    command = [sys.executable, "tools/benchmark.py", *TINY, "--repeats", "1", "--activation_checkpointing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^\| (?:no|yes) \| [\d.]+ s \| [\d.]+ GB \| 0\.\d\d GB \|$", done.stdout, re.MULTILINE)) == 2


def test_data_of_the_whole_recipe_may_be_relative(
    dataset: Path, tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training runs in the bundle's folder."""
    given: dict[str, Any] = {}

    def train(variant: str, options: dict[str, Any]) -> list[float]:
        given.update(options)
        return [1.0]

    monkeypatch.setattr(tool, "train", train)
    monkeypatch.setattr(tool, "iteration_ms", lambda *_: {"forward": 1.0})
    monkeypatch.chdir(dataset.parent)
    run(tool, monkeypatch, "--data_root", dataset.name)
    assert given["data_root"] == dataset.resolve()
    assert "1.0 volumes/s" in capsys.readouterr().out


@pytest.mark.slow
def test_whole_recipe() -> None:
    command = [sys.executable, "tools/benchmark.py", "--size", "16", "24", "16", "--batch_size", "1", "--repeats", "1"]
    command += ["--n_volumes", "2", "--n_epochs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| here | " in done.stdout
    assert "| as upstream | " in done.stdout
    assert re.search(
        r"train.json, loading and augmentation included: [\d.]+ volumes/s \(median of 1 epochs", done.stdout
    )
