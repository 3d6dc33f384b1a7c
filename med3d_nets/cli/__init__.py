"""``med3d``, a small command line beside MONAI's: short forms, which print the commands of MONAI that they run.

A command is a line of :data:`COMMANDS`. Its module is imported when it is called, so that the others start without
torch; its function's parameters are the options, as Fire reads them, and its docstring, with an example, is the help.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence

from med3d_nets import __version__, commands
from med3d_nets.cli.tables import align
from med3d_nets.cli.words import OTHERS, arrange, hint
from med3d_nets.errors import DEBUG, Med3dError

__all__ = ["COMMANDS", "main", "run"]

PROGRAM = "med3d"

COMMANDS = {
    "list": ("med3d_nets.cli.listing:list_variants", "the variants, and what each bundle has"),
    "get": ("med3d_nets.cli.get:get", "fetch published weights into their bundles"),
    "check": ("med3d_nets.checking.command:check", "find what is wrong with a data set, and what is odd"),
    "plan": ("med3d_nets.cli.plan:plan", "look at training data and propose settings, with reasons"),
    "train": ("med3d_nets.cli.runs:train", "train a bundle on your cases"),
    "evaluate": ("med3d_nets.cli.runs:evaluate", "score a trained network on labelled cases"),
    "predict": ("med3d_nets.cli.runs:predict", "label maps, classes or numbers for new volumes"),
    "features": ("med3d_nets.cli.runs:features", "a table of the encoder's features of volumes"),
    "export": ("med3d_nets.cli.export:export", "write a trained network as TorchScript or ONNX"),
    "view": ("med3d_nets.viewer:view", "a page to look at slices, truth and prediction"),
    "report": ("med3d_nets.cli.report:report", "find and open the pages of a training or evaluation"),
}
"""Where the function of each command is, as ``module:name``, and what it does."""

EXAMPLES = (
    "med3d get resnet_10",
    "med3d train /data/Task04_Hippocampus --n_epochs 50",
    "med3d predict scan.nii.gz --output_dir answers",
)


def main() -> None:
    """Run the command that the words of the command line name."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("med3d_nets").setLevel(logging.INFO)
    run(sys.argv[1:])


def run(words: Sequence[str]) -> None:
    """Run a command.

    Args:
        words: its name and its options.

    Raises:
        SystemExit: with 1 for an error, after one line about it, or with the status of MONAI's command.
    """
    debug = "--debug" in words
    if debug:
        os.environ[DEBUG] = "1"  # for the processes of bundles too
    name, *rest = [word for word in words if word != "--debug"] or ["--help"]
    with commands.exit_with_message(debug=debug, unexpected=False):
        if name in ("--help", "-h", "help"):
            print(_help())
        elif name == "--version":
            print(f"{PROGRAM} {__version__}")
        elif name not in COMMANDS:
            raise Med3dError(f"no command '{name}'; {hint(name, COMMANDS)}")
        else:
            _read(name, rest)()


def _read(name: str, words: Sequence[str]) -> Callable[[], None]:
    """The call that the words after a command's name ask for; shows its help and exits if that is what they ask."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    function = getattr(importlib.import_module(module), attribute)
    if "--help" in words or "-h" in words:
        commands.show_help(PROGRAM, name, function, [OTHERS])
    found = arrange(f"{PROGRAM} {name}", function, words)
    return commands.read_call(PROGRAM, name, function, found.words, found.parsed, found.fixed)


def _help() -> str:
    lines = [f"{PROGRAM}: MedicalNet's 3D ResNets on your own CT and MR volumes. Commands:", ""]
    lines += [f"  {line}" for line in align([[name, summary] for name, (_, summary) in COMMANDS.items()])]
    lines += ["", "For example:", "", *(f"  {example}" for example in EXAMPLES), ""]
    lines += [
        f"'{PROGRAM} COMMAND --help' shows a command's options, with an example; '--debug', added to any command,"
    ]
    lines += [
        "the traceback of an error. train, evaluate, predict, features and export print MONAI's command, and run it."
    ]
    return "\n".join(lines)
