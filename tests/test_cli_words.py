"""The words of a command line, sorted for Fire and for MONAI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from med3d_nets import commands
from med3d_nets.cli.handed_on import check_handed_on, given_options
from med3d_nets.cli.words import arrange
from med3d_nets.errors import Med3dError


def command(
    data: str,
    *,
    name: str = "",
    flag: bool = False,
    size: Sequence[int] = (),
    count: int = 0,
    share: float = 0.5,
    others: Sequence[str] = (),
) -> None:
    """A command."""


def strict(*names: str, source: str = "", overwrite: bool = False) -> None:
    """A command that hands nothing on."""


def call(function: Callable[..., None], *words: str) -> Any:
    """The arguments that a function would be called with."""
    found = arrange("med3d x", function, words)
    made = commands.read_call("med3d", "x", function, found.words, found.parsed, found.fixed)
    return made.args, made.keywords


@pytest.mark.parametrize(
    ("words", "args", "options"),
    [
        (["a b"], ["a b"], {}),
        (["10"], ["10"], {}),
        (["--data", "[1,2]"], ["[1,2]"], {}),
        (["a", "--name", "{1: 2}"], ["a"], {"name": "{1: 2}"}),
        (["a", "--name="], ["a"], {"name": ""}),
        (["a", "--name", ""], ["a"], {"name": ""}),
        (["a", "--name", "b=c"], ["a"], {"name": "b=c"}),
        (["--flag", "a"], ["a"], {"flag": True}),
        (["--flag", "False", "a"], ["a"], {"flag": False}),
        (["a", "-f"], ["a"], {"flag": True}),
        (["a", "--size", "[40,56,40]"], ["a"], {"size": [40, 56, 40]}),
        (["a", "--count", "-1", "--share=2"], ["a"], {"count": -1, "share": 2}),
    ],
)
def test_own_options_are_read(words: list[str], args: list[str], options: dict[str, Any]) -> None:
    found_args, found = call(command, *words)
    assert list(found_args) == args
    assert found.pop("others") == ()
    assert found == options


@pytest.mark.parametrize(
    "others",
    [
        ["--input_size", "[40,56,40]"],
        ["--pretrain_path", ""],
        ["--output_dir", "my runs/it's 1"],
        ["--fold", "-1"],
        ["--train::trainer::max_epochs=5"],
        ["--no_cuda", "--n_epochs", "5"],
        ["--patient_pattern", r"LIDC-IDRI-\d+"],
        ["--class_names", "['background','left lung']"],
    ],
)
def test_other_options_are_handed_on_as_they_are(others: list[str]) -> None:
    args, options = call(command, "a", "--name", "mine", *others, "--flag", "False")
    assert args == ("a",)
    assert options == {"name": "mine", "flag": False, "others": tuple(others)}


def test_varied_places() -> None:
    assert call(strict, "resnet_10", "--overwrite", "50") == (("resnet_10", "50"), {"overwrite": True})
    assert call(strict, "--source", "2024") == ((), {"source": "2024"})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "med3d x needs DATA before its options"),
        (["a", "b"], "'b' belongs to no option of med3d x"),
        (["a", "--name"], "--name needs a value"),
        (["a", "--name", "--flag"], "--name needs a value"),
        (["a", "--count", "1.5", "--share", "x"], "--count is '1.5', expected a whole number; --share is 'x', "),
        (["a", "--count", "True"], "--count is 'True', expected a whole number"),
        (["a", "--flag=perhaps"], "--flag is 'perhaps', expected True or False"),
        (["a", "-x"], "med3d x has no option -x; known: --data, --name"),
        (["a", "--"], "med3d x has no option --;"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(words: list[str], said: str) -> None:
    with pytest.raises(Med3dError) as raised:
        arrange("med3d x", command, words)
    assert said in str(raised.value)


def test_an_unknown_option_is_told_where_nothing_is_handed_on() -> None:
    with pytest.raises(Med3dError, match=r"med3d x has no option --overwite; did you mean '--overwrite'\?"):
        arrange("med3d x", strict, ["--overwite=True"])


def test_values_of_handed_on_options() -> None:
    words = ["--folds", "5", "--resume_path=a b", "--no_cuda", "--pretrain_path", ""]
    assert given_options(words) == {"folds": "5", "resume_path": "a b", "no_cuda": "", "pretrain_path": ""}


def test_handed_on_options_that_cannot_be() -> None:
    own, ids = ["recipe", "bundle"], {"n_epochs": 200, "bundle_root": ".", "train": None}
    check_handed_on(["--n_epochs", "5", "--train::x", "1", "--tracking", "mlflow", "--n_epoch", "5"], own, ids)
    with pytest.raises(Med3dError) as raised:
        check_handed_on(["--recipie", "patch", "--config_file", "x.json"], own, ids)
    assert "no option --recipie; did you mean '--recipe'?" in str(raised.value)
    assert "--config_file cannot be given: --task and --recipe choose it" in str(raised.value)
    with pytest.raises(Med3dError, match="no option --n_epoch; did you mean '--n_epochs'"):
        check_handed_on(["--n_epoch", "5"], own, ids, strict=True)
