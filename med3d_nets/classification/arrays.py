"""Volumes in the arrays of MedMNIST's ``.npz`` files, each referred to as ``/path/file.npz::train_images::12``.

A compressed array can only be read as a whole, so that the last few are kept; processes that are forked later share
them.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from med3d_nets.checks import identity, reason
from med3d_nets.errors import Med3dError

__all__ = ["array_names", "image_identity", "read_array", "refer", "split_reference"]

KEPT = 6
"""Arrays that a process keeps: images and labels of one file's three parts."""

_REFERENCE = re.compile(r"(.+\.npz)::(\w+)::(\d+)", re.IGNORECASE)
_lock = Lock()


def refer(path: str, key: str, index: int) -> str:
    """The reference to one volume of an array."""
    return f"{path}::{key}::{index}"


def split_reference(image: str) -> tuple[str, str, int] | None:
    """The file, the array's name and the index that a reference names; None for the path of a file."""
    match = _REFERENCE.fullmatch(image)
    return (match[1], match[2], int(match[3])) if match else None


def image_identity(image: str) -> str:
    """What is the same for two paths or references to one image, whatever links lead to it."""
    reference = split_reference(image)
    if reference is None:
        return identity({"image": image})
    path, key, index = reference
    return refer(identity({"image": path}), key, index)


def array_names(path: str) -> list[str]:
    """Names of the arrays in a ``.npz`` file.

    Raises:
        Med3dError: if it cannot be read.
    """
    with _open(path) as archive:
        return list(archive.files)


def read_array(path: str, key: str) -> NDArray[Any]:
    """An array of a ``.npz`` file, not to be written to: the last few are kept as long as their file is the same.

    Raises:
        Med3dError: if the file or the array cannot be read.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise Med3dError(f"{path}: found no such file; expected a .npz file") from error
    with _lock:  # a second thread waits for the first one's array
        return _read(path, key, status.st_mtime_ns, status.st_size)


@lru_cache(KEPT)
def _read(path: str, key: str, _changed: int, _size: int) -> NDArray[Any]:
    with _open(path) as archive:
        if key not in archive.files:
            raise Med3dError(f"{path}: found arrays {', '.join(archive.files) or 'none'}; expected {key}")
        try:
            array: NDArray[Any] = archive[key]
        except Exception as error:  # whatever a damaged file makes zipfile, zlib or numpy raise
            raise Med3dError(f"{path}: found an unreadable {key} ({reason(error)}); expected an array") from error
    array.flags.writeable = False
    return array


def _open(path: str) -> Any:
    try:
        archive = np.load(path)
    except Exception as error:
        raise Med3dError(f"{path}: found an unreadable file ({reason(error)}); expected a .npz file") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise Med3dError(f"{path}: found a single array; expected a .npz file")
    return archive
