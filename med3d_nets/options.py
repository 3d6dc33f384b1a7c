"""Options on the command line that no config knows.

``python -m monai.bundle run`` takes any ``--name value`` and adds what it does not know to the config, where nothing
reads it: a misspelt option would be ignored without a word.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import sys
from collections.abc import Iterable, Sequence

from monai.bundle import ConfigParser
from monai.bundle.scripts import run

from med3d_nets.distributed import check_processes
from med3d_nets.errors import Med3dError, explain_errors, is_bundle_command

__all__ = ["check_command_line", "check_words", "unknown_options"]

TRACKING = ("output_dir", "tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0")
"""Ids that MONAI's experiment tracking reads."""


def unknown_options(arguments: Sequence[str], known: Iterable[str]) -> list[str]:
    """Options among command line arguments that are not known, each with the nearest known name.

    Args:
        arguments: words of the command line.
        known: top-level names; ``--train::trainer::max_epochs`` counts as ``train``.
    """
    names = sorted(set(known))
    unknown = []
    for argument in arguments:
        match = re.match(r"--([A-Za-z_]\w*)", argument)
        if match and match[1] not in names:
            near = difflib.get_close_matches(match[1], names, n=1)
            unknown.append(f"--{match[1]}" + (f" (did you mean --{near[0]}?)" if near else ""))
    return unknown


def check_words(arguments: Sequence[str]) -> None:
    """Refuse words that Fire would take for something else, without one of its own.

    Args:
        arguments: words of the command line, ``run`` first.

    Raises:
        Med3dError: for a word that belongs to no option, which would replace what runs first, and for ``--no_...``
            without a value, which Fire reads as the opposite of what follows ``no``.
    """
    rest = list(arguments)
    expected = 2  # "run" and the name of what to run
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            expected -= 1
            if expected < 0:
                raise Med3dError(
                    f"'{word}' belongs to no option; several values are written as --gpu_id \"[0,1]\", "
                    "and text with spaces in quotes"
                )
            continue
        has_value = "=" in word or bool(rest and not rest[0].startswith("--"))
        if word.startswith("--no") and not has_value:
            raise Med3dError(f"{word} needs a value: {word} True")
        if "=" not in word and has_value:
            rest.pop(0)


def check_command_line() -> None:
    """Check the options of ``python -m monai.bundle run`` against its config files; elsewhere, do nothing.

    Raises:
        Med3dError: naming each option that neither MONAI nor the configs know; or see :func:`check_words` and
            :func:`~med3d_nets.distributed.check_processes`.
    """
    if not is_bundle_command():
        return
    explain_errors()  # again, where a stray word was taken for the name of what runs first
    arguments = sys.argv[1:]
    check_words(arguments)
    check_processes()
    files = _option(arguments, "config_file")
    if not files or _option(arguments, "args_file"):
        return
    config = ConfigParser.load_config_files(files)
    known = {key.split("::")[0].split("#")[0] for key in config}
    unknown = unknown_options(arguments, {*known, *inspect.signature(run).parameters, *TRACKING})
    if unknown:
        raise Med3dError(f"unknown option: {', '.join(unknown)}")


def _option(arguments: Sequence[str], name: str) -> list[str]:
    for index, argument in enumerate(arguments):
        option, _, value = argument.partition("=")
        if option == f"--{name}":
            text = value or (arguments[index + 1] if index + 1 < len(arguments) else "")
            return list(ast.literal_eval(text)) if text.startswith(("[", "(")) else [text]
    return []
