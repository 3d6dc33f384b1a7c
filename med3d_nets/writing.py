"""Files that appear whole or not at all, whatever ends the program that writes them.

MONAI's ``SaveImage`` writes in place, so that a kill leaves half a file under the final name, and turns every error of
its writers into a ``RuntimeError`` without a cause. Here files are written under temporary names in their own folder,
and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from med3d_nets.errors import Med3dError, explain

__all__ = ["OutputError", "check_writable", "whole_files", "write_nifti"]

_MARK = ".part-"
_TRIAL = 2**16
"""Bytes that a folder must take before a run begins."""


class OutputError(Med3dError):
    """A file that cannot be written, and so could not the next one either."""


@contextlib.contextmanager
def whole_files(*paths: str, outdated: Iterable[str] = ()) -> Iterator[list[str]]:
    """Temporary names to write to; the files then appear under their own names, in this order.

    Where there are several, older files of their names are removed before the first one appears, so that the last one
    is there together with all the others or not at all. The temporary names are hidden, so that no folder of images
    shows them, and end as the files do, since nibabel looks at that. What a run that was killed has left under such
    names is removed when the same files are written again.

    Args:
        paths: of the files; their folders are made.
        outdated: older files to remove with those.

    Raises:
        OutputError: if they cannot be written; what was there before is left as it was.
    """
    temporaries: list[str] = []
    try:
        try:
            temporaries += [_temporary(path) for path in paths]
            yield temporaries
            for temporary in temporaries:
                with open(temporary, "rb+") as file:
                    os.fsync(file.fileno())
            for path in (*outdated, *paths[1:]):
                Path(path).unlink(missing_ok=True)
            for temporary, path in zip(temporaries, paths, strict=True):
                os.replace(temporary, path)
        finally:
            for temporary in temporaries:
                Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise _explain(paths[-1], error) from error


def write_nifti(path: str, voxels: NDArray[np.integer], affine: NDArray[np.float64], slope: float = 1.0) -> None:
    """Write a NIfTI file as MONAI's ``NibabelWriter`` does, and say that its affine is in mm.

    Args:
        path: where to.
        voxels: ``(x, y, z)`` or ``(x, y, z, channel)``.
        affine: from voxels to RAS+ in mm, ``(4, 4)``.
        slope: what readers multiply the voxels by.
    """
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    if slope != 1:
        image.header.set_slope_inter(slope, 0)
    nibabel.save(image, path)


def check_writable(folder: str) -> None:
    """Make a folder, and write a little into it.

    Raises:
        OutputError: if that fails.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=_MARK) as file:
            file.write(bytes(_TRIAL))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _explain(folder, error) from error


def _temporary(path: str) -> str:
    """A new name beside ``path``; older ones are removed."""
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    mark = f"{_MARK}{hashlib.sha256(name.encode()).hexdigest()[:16]}-"  # the name itself may be as long as is allowed
    for left in os.listdir(folder):
        if left.startswith(mark):
            Path(folder, left).unlink(missing_ok=True)
    return os.path.join(folder, f"{mark}{secrets.token_hex(4)}{''.join(Path(name).suffixes[-2:])}")


def _explain(path: str, error: OSError) -> OutputError:
    error.filename = error.filename or path
    if full := explain(error, {}):
        return OutputError(f"{full}; make room, then run it again")
    why = error.strerror or str(error)
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        place = Path(os.fsdecode(error.filename))
        why = f"{next(each for each in (place, *place.parents) if each.exists())} is a file, expected a folder"
    return OutputError(f"{path}: cannot be written ({why}); give another --output_dir")
