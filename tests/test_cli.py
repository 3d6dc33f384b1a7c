"""The command line itself: its commands, how it starts, what it says of a wrong word; and what ``list`` shows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from conftest import ROOT

from med3d_nets import __version__, cli
from med3d_nets.errors import DEBUG
from med3d_nets.variants import VARIANTS

Outcome = tuple[int, str, str]


@pytest.fixture
def med3d(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Runs ``med3d`` in this process; its exit status, output and errors."""
    monkeypatch.setenv(DEBUG, "")  # and restored: --debug sets it

    def call(*words: object) -> Outcome:
        status = 0
        try:
            cli.run([str(word) for word in words])
        except SystemExit as ended:
            status = ended.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def as_module(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """``python -m med3d_nets``, as a user runs it."""
    command = [sys.executable, "-m", "med3d_nets", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def test_the_module_and_the_entry_point_are_the_same_program(tmp_path: Path) -> None:
    done = as_module("get", "resnet_50_23datasets", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: no variant 'resnet_50_23datasets'; did you mean 'resnet_50_23dataset'?\n"
    (script,) = entry_points(group="console_scripts", name="med3d")
    assert script.load() is cli.main


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("--debug",)])
def test_help_names_every_command(med3d: Callable[..., Outcome], words: tuple[str, ...]) -> None:
    status, shown, _ = med3d(*words)
    assert status == 0
    assert "  med3d get resnet_10\n" in shown
    for name, (_, summary) in cli.COMMANDS.items():
        assert f"\n  {name} " in shown
        assert f" {summary}\n" in shown


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_help_of_each_command_shows_an_example(med3d: Callable[..., Outcome], name: str) -> None:
    status, out, err = med3d(name, "--help")
    shown = out + err
    assert status == 0
    assert f"med3d {name}" in shown.split("SYNOPSIS")[1].splitlines()[1]
    examples = shown.split("DESCRIPTION")[1].split("\n\n")[0].splitlines()
    assert any(line.strip().startswith(f"med3d {name}") for line in examples)
    for inner in ("--others", "FIRE_METADATA", "Med3dError"):
        assert inner not in shown


def test_version(med3d: Callable[..., Outcome]) -> None:
    assert med3d("--version") == (0, f"med3d {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian", "data"], "no command 'trian'; did you mean 'train'?"),
        (["x"], "no command 'x'; known: list, get, check, plan, train, "),
        (["train"], "med3d train needs DATA before its options"),
        (["train", ".", "--recipe", "patches"], "no recipe 'patches'; did you mean 'patch'?"),
        (["train", ".", "--task", "regresion"], "no task 'regresion'; did you mean 'regression'?"),
        (["train", ".", "--recipe", "whole", "--task", "regression"], "--recipe whole is for segmentation"),
        (["train", ".", "--variant", "resnet_11"], "no variant 'resnet_11'; did you mean 'resnet_101'?"),
        (["train", "nodata"], "nodata: no such file or folder"),
        (["plan", ".", "--spacin", "2"], "med3d plan has no option --spacin; did you mean '--spacing'?"),
        (["plan", ".", "--batch_size", "two"], "--batch_size is 'two', expected a whole number"),
        (["get", "--sorce", "x"], "med3d get has no option --sorce; did you mean '--source'?"),
        (["list", "all"], "'all' belongs to no option of med3d list"),
        (["predict"], "inputs: found none; expected NIfTI files"),
        (["export", "onx"], "no format 'onx'; did you mean 'onnx'?"),
        (["report", "nodata"], "nodata: no such file or folder"),
    ],
)
def test_a_wrong_word_is_one_line(
    med3d: Callable[..., Outcome],
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = med3d(*words)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err


def test_a_traceback_is_shown_only_if_asked(med3d: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no variant 'resnet_11'"):
        med3d("train", ".", "--variant", "resnet_11", "--debug")

    def fail() -> None:
        raise KeyError("of the program")

    monkeypatch.setattr("med3d_nets.cli.listing.list_variants", fail)
    status, _, err = med3d("list")
    assert (status, err.count("\n")) == (1, 1)
    assert "KeyError: 'of the program'. This should not happen; --debug shows where it did" in err
    with pytest.raises(KeyError):
        med3d("--debug", "list")


def test_list_shows_what_each_bundle_has(
    med3d: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("med3d_nets.cli.bundles.ROOT", tmp_path)
    for name in ("resnet_10", "resnet_18", "resnet_50"):
        configs = tmp_path / "bundles" / f"medicalnet_{name}" / "configs"
        configs.mkdir(parents=True)
        for file in ("metadata.json", "inference.json"):
            (configs / file).touch()
    ten, fifty = (tmp_path / "bundles" / f"medicalnet_{name}" / "models" for name in ("resnet_10", "resnet_50"))
    for file in (ten / "pretrained.pt", ten / "fold_1" / "model.pt", fifty / "classification" / "model.pt"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (fifty / "classification" / "model.json").write_text(json.dumps({"task": "regression"}))
    status, out, _ = med3d("list")
    rows = {line.split()[0]: line for line in out.splitlines()[1:]}
    found = ["MIT", "yes", "segmentation"]
    assert status == 0
    assert list(rows) == [row.name for row in VARIANTS]
    assert rows["resnet_10"].split()[1:] == ["10", "B", "8", "14,361,292", "resnet_10.pth", "57", "MB", *found]
    assert rows["resnet_18"].split()[-3:] == ["MIT", "no", "nothing"]
    assert rows["resnet_50"].split()[-3:] == ["MIT", "no", "regression"]
    assert rows["resnet_34"].split()[-4:] == ["no", "bundle"] * 2


def test_the_projects_bundles_are_found(med3d: Callable[..., Outcome]) -> None:
    assert (ROOT / "bundles").is_dir()
    assert "no bundle" not in med3d("list")[1]
