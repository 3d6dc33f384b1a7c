"""Options that are handed on to MONAI's command, as they are given."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from med3d_nets.cli.words import hint
from med3d_nets.errors import Med3dError

__all__ = ["check_handed_on", "given_options"]

CHOSEN = {"config_file": "--task and --recipe choose it", "bundle_root": "--variant or --bundle chooses it"}
"""Options of MONAI's command that cannot be handed on, and why."""


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


def check_handed_on(others: Sequence[str], own: Iterable[str], ids: Iterable[str], strict: bool = False) -> None:
    """Refuse options that are another's misspelt, and those that are chosen otherwise.

    MONAI's ``run`` is checked by the configs, which cannot know the short form's own options.

    Args:
        others: words to hand on.
        own: options of the short form itself.
        ids: those that the configs know.
        strict: whether to refuse all that is in neither, where MONAI's command would ignore it.

    Raises:
        Med3dError: naming each, with a suggestion.
    """
    own, ids = list(own), list(ids)
    problems = []
    for given in given_options(others):
        name = given.partition("::")[0].partition("#")[0]
        near = difflib.get_close_matches(name, [*own, *ids], n=1)
        if name in CHOSEN:
            problems.append(f"--{name} cannot be given: {CHOSEN[name]}; for others use python -m monai.bundle itself")
        elif name not in ids and (strict or (near and near[0] in own)):
            problems.append(f"no option --{given}; {hint(name, near or own, '--')}")
    if problems:
        raise Med3dError("; ".join(problems))
