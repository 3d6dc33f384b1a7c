from __future__ import annotations

import sys

import pytest
from conftest import BUNDLE

from med3d_nets.errors import Med3dError
from med3d_nets.options import check_command_line, check_words, unknown_options


def test_unknown_options_come_with_the_nearest_known() -> None:
    arguments = [
        "run",
        "training",
        "--n_epoch",
        "3",
        "--train::trainer::max_epochs",
        "2",
        "--xyz=1",
        "--data_root",
        "-1",
    ]
    found = unknown_options(arguments, ["n_epochs", "train", "data_root"])
    assert found == ["--n_epoch (did you mean --n_epochs?)", "--xyz"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--gpu_id 0 1 --n_epochs 3", "'1' belongs to no option.*--gpu_id"),
        ("--data_root my scans", "'scans' belongs to no option"),
        ("--no_cuda --n_epochs 3", "--no_cuda needs a value: --no_cuda True"),
        ("--n_epochs 3 --no_cuda", "--no_cuda needs a value"),
    ],
)
def test_words_that_fire_takes_for_something_else(words: str, text: str) -> None:
    with pytest.raises(Med3dError, match=text):
        check_words(["run", "training", *words.split()])


@pytest.mark.parametrize(
    "words", ["", "training", "training --overwrite --n_epochs 3", "training --no_cuda=True --a -1"]
)
def test_words_that_are_right(words: str) -> None:
    check_words(["run", *words.split()])


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str, program: str = "/x/monai/bundle/__main__.py") -> None:
    monkeypatch.setattr(sys, "argv", [program, "run", "training", *arguments])
    check_command_line()


@pytest.mark.parametrize("overlay", [False, True])
def test_options_are_those_of_all_configs(monkeypatch: pytest.MonkeyPatch, overlay: bool) -> None:
    files = [str(BUNDLE / "configs" / "train.json"), *([str(BUNDLE / "configs" / "evaluate.json")] * overlay)]
    config = str(files) if overlay else files[0]
    command(monkeypatch, "--config_file", config, "--n_epochs", "3", "--loss::lambda_dice", "0", "--tracking", "mlflow")
    with pytest.raises(Med3dError, match=r"--learning_rates .did you mean --learning_rate"):
        command(monkeypatch, f"--config_file={config}", "--learning_rates", "3")


def test_other_programs_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, "--config_file", "none.json", "--nonsense", program="/usr/bin/pytest")
