"""How the tools and ``med3d`` run a function with the options of the command line."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import fire
from fire.decorators import SetParseFn, SetParseFns
from fire.parser import DefaultParseValue

from med3d_nets import errors

__all__ = ["exit_with_message", "read_call", "run_tool", "show_help"]


def run_tool(function: Callable[..., None], texts: Sequence[str] = (), sizes: Mapping[str, Any] | None = None) -> None:
    """Run ``function`` with the options of the command line; exit with 1 for an error that the user can mend.

    Args:
        function: its parameters are the options, its docstring their help.
        texts: options that Fire shall not read as Python values.
        sizes: see :func:`~med3d_nets.errors.explain`.
    """
    calls, collect = _collector(function)
    fire.Fire(SetParseFn(str, *texts)(collect) if texts else collect)
    with exit_with_message(sizes):
        for call in calls:
            call()


def read_call(
    program: str,
    command: str,
    function: Callable[..., None],
    words: Sequence[str],
    parsed: Sequence[str],
    fixed: Mapping[str, Any],
) -> Callable[[], None]:
    """The call of ``function`` that the words of one of a program's commands ask for.

    Args:
        program: its name, for messages.
        command: likewise.
        function: its parameters are the command's options.
        words: those after the command's name.
        parsed: options that Fire reads as Python values; the others are texts, as they are.
        fixed: arguments that are no options.
    """
    calls, collect = _collector(function, fixed)
    collect = SetParseFns(**dict.fromkeys(parsed, DefaultParseValue))(SetParseFn(str)(collect))
    fire.Fire({command: collect}, command=[command, *words], name=program)
    return calls[0]


def show_help(program: str, command: str, function: Callable[..., None], hidden: Sequence[str] = ()) -> NoReturn:
    """Show the help of one of a program's commands, and exit.

    Args:
        program: its name.
        command: likewise.
        function: its parameters are the command's options, its docstring their help.
        hidden: parameters that are no options.
    """
    _, collect = _collector(function)
    signature = inspect.signature(function, eval_str=True)
    shown = [parameter for name, parameter in signature.parameters.items() if name not in hidden]
    collect.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    fire.Fire({command: collect}, command=[command, "--", "--help"], name=program)
    raise AssertionError("Fire exits after its help")


def _collector(
    function: Callable[..., None], fixed: Mapping[str, Any] | None = None
) -> tuple[list[Callable[[], None]], Callable[..., None]]:
    """A function for Fire with the options of ``function``, and the list in which it leaves the calls to make."""
    calls: list[Callable[[], None]] = []

    # Fire would call the function first and complain about a misspelt option afterwards, with its work already done.
    @functools.wraps(function)
    def collect(*args: Any, **options: Any) -> None:
        calls.append(functools.partial(function, *args, **options, **(fixed or {})))

    return calls, collect


@contextlib.contextmanager
def exit_with_message(
    sizes: Mapping[str, Any] | None = None, *, debug: bool = False, unexpected: bool = True
) -> Iterator[None]:
    """Show an error that the user can mend as one line, and exit with 1.

    Args:
        sizes: see :func:`~med3d_nets.errors.explain`.
        debug: show the traceback of every error.
        unexpected: show that of those that are no fault of the user; otherwise one line too.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        shown = errors.explain(error, sizes or {}) or (error if isinstance(error, OSError) else None)
        if debug or (shown is None and unexpected):
            raise
        fault = f"{type(error).__name__}: {error}. This should not happen; --debug shows where it did"
        sys.stdout.flush()
        print(f"error: {shown or fault}", file=sys.stderr)
        sys.exit(1)
