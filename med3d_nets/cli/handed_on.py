"""Options that are handed on to MONAI's command, as they are given."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from med3d_nets.cli.words import hint
from med3d_nets.errors import Med3dError

__all__ = ["check_handed_on", "given_options"]

CHOSEN = {"config_file": "--task and --recipe choose it", "bundle_root": "--variant or --bundle chooses it"}
"""Options of MONAI's command that cannot be handed on, and why."""
WHOLE = (
    "batch_size",
    "folds",
    "in_channels",
    "manual_seed",
    "n_epochs",
    "n_seg_classes",
    "num_workers",
    "sw_batch_size",
)
"""Options that are whole numbers."""


def _values(others: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """A line for each option without its value, and for each that should be a number and is none."""
    problems = []
    for place, word in enumerate(others):
        name, mark, value = word[2:].partition("=")
        if not word.startswith("--") or name not in values:
            continue
        default = values[name]
        if isinstance(default, bool):  # told by the config itself
            continue
        if not mark:
            value = next(iter(others[place + 1 : place + 2]), "--")
        if not mark and value.startswith("--"):
            problems.append(f"--{name}: found no value; expected one behind it")
        elif isinstance(default, (int, float)) and not value.startswith(("$", "@", "[")):
            problems += _number(name, value, default)
    return problems


def _number(name: str, value: str, default: float) -> list[str]:
    kind = "a whole number" if name in WHOLE else "a number"
    try:
        number = int(value) if name in WHOLE else float(value)
    except ValueError:
        return [f"--{name}: found {value!r}; expected {kind}, such as {default}"]
    if name == "n_epochs" and number < 1:
        return [f"--{name}: found {value}; expected at least 1"]
    return []


def given_options(others: Sequence[str]) -> dict[str, str]:
    """Values of the options among words, by name; "" for one without a value."""
    found: dict[str, str] = {}
    name = ""
    for word in others:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            found[name] = value
        else:
            found[name] = word
    return found


def check_handed_on(others: Sequence[str], own: Iterable[str], values: Mapping[str, Any], strict: bool = False) -> None:
    """Refuse options that are another's misspelt, that are chosen otherwise, or whose values cannot be right.

    MONAI's ``run`` is checked by the configs, which cannot know the short form's own options, and evaluate what they
    are given before they can check it.

    Args:
        others: words to hand on.
        own: options of the short form itself.
        values: by the ids that the configs know, what they have.
        strict: whether to refuse all that is in neither, where MONAI's command would ignore it.

    Raises:
        Med3dError: naming each, with a suggestion.
    """
    own, ids = list(own), list(values)
    problems = _values(others, values)
    for given in given_options(others):
        name = given.partition("::")[0].partition("#")[0]
        near = difflib.get_close_matches(name, [*own, *ids], n=1)
        if name in CHOSEN:
            problems.append(f"--{name} cannot be given: {CHOSEN[name]}; for others use python -m monai.bundle itself")
        elif name not in ids and (strict or (near and near[0] in own)):
            problems.append(f"no option --{given}; {hint(name, near or own, '--')}")
    if problems:
        raise Med3dError("; ".join(problems))
