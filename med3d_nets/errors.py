"""Errors that a user can act on, and how they are shown."""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

__all__ = ["DEBUG", "Med3dError", "explain", "explain_errors", "is_bundle_command"]

_sizes: dict[str, Any] = {}
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


OTHERS_WAIT = 30.0
"""Seconds that the other processes wait before they show an error: where all meet the same one, rank 0 shows it, and
torchrun has ended them by then."""


DEBUG = "MED3D_DEBUG"
"""Variable of the environment with which bundles show the traceback of every error, as ``med3d --debug`` sets it."""


class Med3dError(ValueError):
    """Something that the user can mend: the message names what was found, what was expected and what to do."""


def explain(error: BaseException, sizes: Mapping[str, Any]) -> Med3dError | None:
    """The error to show instead of ``error``, or None where there is nothing better to say.

    Args:
        error: what was raised, with its causes.
        sizes: the sizes in force by the name of their option, most worth lowering first.
    """
    for cause in _causes(error):
        if isinstance(cause, Med3dError):
            return cause
        if _is_out_of_memory(cause):
            in_force = ", ".join(f"{name}={value}" for name, value in sizes.items())
            advice = f"Lower {', then '.join(sizes)}, by half; now: {in_force}" if sizes else "It needs more memory"
            return Med3dError(f"out of memory ({_first_line(cause)}). {advice}")
        if isinstance(cause, OSError) and cause.errno in _DISK_FULL:
            where = f" while writing {cause.filename}" if cause.filename else ""
            return Med3dError(f"no space left on the disk{where} ({cause.strerror})")
    return None


def explain_errors(**sizes: Any) -> None:
    """Show errors that a user can act on as one message instead of a traceback; the exit status stays 1.

    MONAI wraps whatever a config raises, so the message would otherwise stand in the middle of a long traceback. Other
    errors keep theirs. A program that uses a bundle from Python is left alone.

    Called again, it takes more sizes: those that are planned are known only after the data, whose errors it shows too.

    Args:
        sizes: passed to :func:`explain`.
    """
    _sizes.update(sizes)
    if not is_bundle_command() or os.environ.get(DEBUG) or sys.excepthook is not sys.__excepthook__:
        return
    rank = int(os.environ.get("RANK", 0))

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        interrupted = isinstance(error, KeyboardInterrupt)
        shown = explain(error, _sizes)
        if rank > 0 and not interrupted:
            time.sleep(OTHERS_WAIT)
        if interrupted:
            if rank == 0:
                print(f"\n{str(error) or 'interrupted'}", file=sys.stderr)
        elif shown is None:
            sys.__excepthook__(kind, error, traceback)
        else:
            sys.stdout.flush()
            print(f"error{f' on rank {rank}' if rank else ''}: {shown}", file=sys.stderr)

    sys.excepthook = hook


def is_bundle_command() -> bool:
    """Whether this process is ``python -m monai.bundle``."""
    return bool(re.search(r"monai[/\\]bundle[/\\]__main__\.py$", sys.argv[0]))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")  # what has not imported it cannot meet its errors, and starts faster without
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
