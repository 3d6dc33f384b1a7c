"""The words of a command line, sorted before Fire reads them.

Fire takes the word after a flag for its value, reads texts as Python values, and has no place for options that are
meant for another program; it has no suggestion for a misspelt option either.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fire.parser import DefaultParseValue

from med3d_nets.errors import Med3dError

__all__ = ["OTHERS", "Arranged", "arrange", "hint", "own_names"]

OTHERS = "others"
"""The parameter of a function that hands the options which are not its own on to another program."""

KINDS: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "bool": (bool, "True or False"),
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
}
"""What an option is, by the annotation of its parameter."""

Parameters = Mapping[str, inspect.Parameter]


@dataclass(frozen=True)
class Arranged:
    """Words for :func:`~med3d_nets.commands.read_call`.

    Attributes:
        words: for Fire, the options as ``--name=value``.
        parsed: options that Fire may read as Python values; the others are texts.
        fixed: what is handed on, as the argument :data:`OTHERS`, if the function has it.
    """

    words: list[str]
    parsed: list[str]
    fixed: dict[str, tuple[str, ...]]


def arrange(command: str, function: Callable[..., None], words: Sequence[str]) -> Arranged:
    """Sort the words of a command line by the parameters of a function.

    A parameter with a default of True or False is a flag, to which ``True`` or ``False`` may be added. Parameters that
    are annotated ``str`` take their text as it is. With a parameter :data:`OTHERS`, options that are not the
    function's are handed on, each with the word after it, if that is no option.

    Args:
        command: for messages.
        function: of the command.
        words: after the command's name.

    Raises:
        Med3dError: for an option that is not known, with a suggestion; one without a value or of the wrong kind; and
            words that are too many or missing.
    """
    parameters = inspect.signature(function).parameters
    own = own_names(function)
    hands_on = OTHERS in parameters
    placed: list[str] = []
    values: dict[str, str] = {}
    others: list[str] = []
    rest = deque(words)
    while rest:
        word = rest.popleft()
        if not re.match("--|-[a-zA-Z]", word):
            placed.append(word)
            continue
        given, equals, value = word.partition("=")
        name = _full_name(given, own)
        if name in own:
            values[name] = value if equals else _take(name, parameters[name], rest)
        elif hands_on and re.match("--[a-zA-Z_]", word):
            others += [word, *([rest.popleft()] if not equals and rest and not rest[0].startswith("--") else [])]
        else:
            raise Med3dError(f"{command} has no option {given}; {hint(name, own, '--')}")
    _check_places(command, parameters, placed, values)
    parsed = [name for name in own if _annotation(parameters[name]) != "str"]
    _check_kinds({name: value for name, value in values.items() if name in parsed}, parameters)
    options = [f"--{name}={value}" for name, value in values.items()]
    return Arranged([*placed, *options], parsed, {OTHERS: tuple(others)} if hands_on else {})


def own_names(function: Callable[..., None]) -> list[str]:
    """Names of the options that are a function's own."""
    parameters = inspect.signature(function).parameters.items()
    return [name for name, each in parameters if each.kind != each.VAR_POSITIONAL and name != OTHERS]


def hint(word: str, known: Iterable[str], prefix: str = "") -> str:
    """A suggestion for a word that is not known: the nearest one that is, or all."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"did you mean '{prefix}{near[0]}'?"
    return f"known: {', '.join(prefix + one for one in known) or 'none'}"


def _full_name(option: str, own: Sequence[str]) -> str:
    """The name of an option, with ``_`` for ``-``; of a letter, as Fire's help shows them, the only one with it."""
    name = option.lstrip("-").replace("-", "_")
    with_it = [one for one in own if one.startswith(name)]
    return with_it[0] if len(name) == 1 and len(with_it) == 1 else name


def _take(name: str, parameter: inspect.Parameter, rest: deque[str]) -> str:
    """The value of an option that has none within its own word."""
    if isinstance(parameter.default, bool):
        return rest.popleft() if rest and rest[0] in ("True", "False") else "True"
    if not rest or rest[0].startswith("--"):
        raise Med3dError(f"--{name} needs a value")
    return rest.popleft()


def _check_places(command: str, parameters: Parameters, placed: Sequence[str], values: Iterable[str]) -> None:
    """Compare the words that belong to no option with the parameters that take them."""
    takers = [name for name, each in parameters.items() if each.kind == each.POSITIONAL_OR_KEYWORD]
    if len(placed) > len(takers) and not any(each.kind == each.VAR_POSITIONAL for each in parameters.values()):
        raise Med3dError(
            f"'{placed[len(takers)]}' belongs to no option of {command}; text with blanks is written in quotes"
        )
    missing = [
        name.upper()
        for index, name in enumerate(takers)
        if index >= len(placed) and name not in values and parameters[name].default is inspect.Parameter.empty
    ]
    if missing:
        raise Med3dError(f"{command} needs {' and '.join(missing)} before its options; --help shows an example")


def _check_kinds(values: Mapping[str, str], parameters: Parameters) -> None:
    problems = []
    for name, text in values.items():
        kind, wanted = KINDS.get(_annotation(parameters[name]), (object, ""))
        value = DefaultParseValue(text)
        if not isinstance(value, kind) or (kind is not bool and wanted and isinstance(value, bool)):
            problems.append(f"--{name} is '{text}', expected {wanted}")
    if problems:
        raise Med3dError("; ".join(problems))


def _annotation(parameter: inspect.Parameter) -> Any:
    return getattr(parameter.annotation, "__name__", parameter.annotation)
