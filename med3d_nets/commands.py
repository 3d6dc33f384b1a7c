"""How the tools run a function with the options of the command line."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import fire
from fire.decorators import SetParseFn

from med3d_nets import errors

__all__ = ["exit_with_message", "run_tool"]


def run_tool(function: Callable[..., None], texts: Sequence[str] = (), sizes: Mapping[str, Any] | None = None) -> None:
    """Run ``function`` with the options of the command line; exit with 1 for an error that the user can mend.

    Args:
        function: its parameters are the options, its docstring their help.
        texts: options that Fire shall not read as Python values.
        sizes: see :func:`~med3d_nets.errors.explain`.
    """
    calls: list[Callable[[], None]] = []

    # Fire would call the function first and complain about a misspelt option afterwards, with its work already done.
    @functools.wraps(function)
    def collect(*args: Any, **options: Any) -> None:
        calls.append(functools.partial(function, *args, **options))

    fire.Fire(SetParseFn(str, *texts)(collect) if texts else collect)
    with exit_with_message(sizes):
        for call in calls:
            call()


@contextlib.contextmanager
def exit_with_message(sizes: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Show an error that the user can mend as one line, and exit with 1; others keep their traceback."""
    try:
        yield
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        shown = errors.explain(error, sizes or {}) or (error if isinstance(error, OSError) else None)
        if shown is None:
            raise
        sys.stdout.flush()
        print(f"error: {shown}", file=sys.stderr)
        sys.exit(1)
