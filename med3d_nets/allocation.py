"""How the C library hands out a training's memory on a CPU."""

from __future__ import annotations

import ctypes
import os

__all__ = ["keep_freed_memory"]

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``, by its malloc.h."""
KEPT = 1 << 30
"""Bytes: larger blocks, and more free memory at the end of the heap, go back to the system as they did."""


def keep_freed_memory() -> bool:
    """Keep what an iteration frees for the next one, which needs as much again.

    By default glibc returns large blocks to the system, which clears their pages anew when they are asked for. On two
    cores the ``patch`` recipe's iterations took a tenth longer so. Does nothing where another C library is in use, or
    where the user has set one of glibc's ``MALLOC_`` variables or ``GLIBC_TUNABLES``.

    Returns:
        Whether the C library accepted it.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return all(mallopt(parameter, KEPT) == 1 for parameter in (MMAP_THRESHOLD, TRIM_THRESHOLD))
