"""Volume files read whole, and without trust in what their headers say.

A header can ask for a million voxels a side, or for a spacing of 0; nibabel mends the latter without a word to the
program, takes a file's first bytes for its voxels and never looks whether a gzip file ends as it should. Here the size
is compared with the file's before memory is asked for, and every byte of a gzip file is compared with its checksum.
"""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import SerializableImage
from nibabel.spatialimages import SpatialImage
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

__all__ = ["MAX_SPACING", "MAX_VOXELS", "Problem", "check_header", "check_spacing", "read_voxels"]

NIFTI_SUFFIXES = (".nii", ".nii.gz")
OTHER_SUFFIXES = (".mha", ".mhd", ".nrrd")
SUFFIXES = (*NIFTI_SUFFIXES, *OTHER_SUFFIXES)
"""Of volumes in a file; DICOM files have any."""
MAX_SPACING = 20.0
"""Largest plausible distance between voxels, in mm."""
MAX_VOXELS = 2**31
"""Values that a file may hold: 1290 voxels a side, 8 GiB in single precision."""

_MAX_RATIO = 1032
"""What deflate can make of a byte at most (zlib's "Technical Details")."""
_BLOCK, _MARGIN = 2**16, 2**20


class Problem(str):
    """A line about what is wrong, ``path: found ...; expected ...``, that knows its kind.

    Attributes:
        kind: a key of :data:`med3d_nets.checking.findings.KINDS`.
    """

    kind: str

    def __new__(cls, text: str, kind: str = "unreadable") -> Problem:
        """Of a text and its kind."""
        problem = super().__new__(cls, text)
        problem.kind = kind
        return problem


def check_header(path: str, volume: SpatialImage, problems: list[str]) -> bool:
    """Check what a header says of type, shape, size and spacing, before any voxel is read.

    Args:
        path: of the file.
        volume: as nibabel loaded it.
        problems: added to.

    Returns:
        Whether the voxels can be read and placed in space.
    """
    shape = tuple(int(length) for length in volume.shape)
    kind, item = volume.get_data_dtype().kind, volume.get_data_dtype().itemsize
    if kind not in "iuf":
        found = f"voxels of type {volume.get_data_dtype()}; expected real numbers"
        problems.append(Problem(f"{path}: found {found}", "type"))
    elif not shape or min(shape) < 1:
        wanted = "no axis of size 0" if 0 in shape else "axes of one voxel at least"
        problems.append(Problem(f"{path}: found shape {shape}; expected {wanted}", "dimensions"))
    elif math.prod(shape) > MAX_VOXELS:
        found = f"a header with {math.prod(shape)} voxels, {shape}; expected at most {MAX_VOXELS} in a file"
        problems.append(Problem(f"{path}: found {found}", "size"))
    elif (most := _most_bytes(path, volume)) < math.prod(shape) * item:
        why = f"its header states {math.prod(shape) * item} bytes of voxels, a file of this size has {most} at most"
        problems.append(Problem(f"{path}: found an unreadable file ({why}); expected a whole NIfTI file", "unreadable"))
    else:
        # nibabel corrects spacings of the header that are no lengths as it loads it.
        return check_spacing(path, np.asarray(volume.affine, np.float64), problems, _written_spacing(volume))
    return False


def read_voxels(path: str, volume: SpatialImage) -> NDArray[Any]:
    """Voxels in the file's own type, or scaled as its header says; a gzip file is read to its end and its checksum.

    Args:
        path: of the file.
        volume: as nibabel loaded it, with a header that :func:`check_header` has passed.

    Raises:
        Exception: whatever a damaged file makes nibabel, gzip, zlib or numpy raise.
    """
    proxy: Any = volume.dataobj
    if not (path.lower().endswith(".gz") and isinstance(volume, SerializableImage)):
        return np.asanyarray(proxy)
    # nibabel would take them from the stream in one piece, of which gzip makes copies.
    size, done = int(proxy.offset) + math.prod(proxy.shape) * proxy.dtype.itemsize, 0
    content = np.empty(size, np.uint8)
    with gzip.open(path) as stream:
        while block := stream.read(_BLOCK):
            part = np.frombuffer(block, np.uint8)[: max(0, size - done)]
            content[done : done + len(part)] = part
            done += len(block)
            if done > 2 * size + _MARGIN:
                raise ValueError(f"more than twice the {math.prod(proxy.shape)} voxels of its header")
    if done < size:
        raise OSError(f"Expected {size} bytes, got {done} bytes")
    voxels: NDArray[Any] = np.ndarray(proxy.shape, proxy.dtype, content, proxy.offset, order=proxy.order)
    return apply_read_scaling(voxels, np.asanyarray(proxy.slope), np.asanyarray(proxy.inter))


def _most_bytes(path: str, volume: SpatialImage) -> float:
    """Bytes that the voxels can have in a file of this size; infinite where its packing does not tell."""
    image = volume.file_map["image"].filename or path
    size = os.path.getsize(image)
    suffix = os.path.splitext(image)[1].lower()
    ratio = {".gz": _MAX_RATIO, ".nii": 1, ".img": 1}.get(suffix, math.inf)
    proxy: Any = volume.dataobj
    return ratio * size - int(proxy.offset)


def check_spacing(path: str, affine: NDArray[np.float64], problems: list[str], written: Sequence[float] = ()) -> bool:
    """Check the spacing of an affine, and that of a header, which other programs go by; one problem at most.

    Args:
        path: of the file.
        affine: from voxels to RAS+ in mm, ``(4, 4)``.
        problems: added to.
        written: spacing of the header, in mm, where there is another than the affine's.

    Returns:
        Whether the affine has three directions.
    """
    expected = f"expected more than 0 and at most {MAX_SPACING:g} mm along each axis"
    if not np.isfinite(affine).all():
        found = f"an affine with values that are not finite, {affine[:3].tolist()}"
        problems.append(Problem(f"{path}: found {found}; expected finite ones", "spacing"))
        return False
    spacing = nib.affines.voxel_sizes(affine)
    regular = bool(np.linalg.matrix_rank(affine[:3, :3]) == 3)
    for where, values in (("its affine", spacing), ("its header (pixdim)", written)):
        if not all(0 < value <= MAX_SPACING * (1 + 1e-6) for value in values):
            named = ", ".join(f"{value:.6g}" for value in values)
            problems.append(Problem(f"{path}: found spacing ({named}) mm in {where}; {expected}", "spacing"))
            return regular
    if not regular:
        found = f"an affine whose axes lie in one plane, {np.round(affine[:3, :3], 4).tolist()}"
        problems.append(Problem(f"{path}: found {found}; expected three directions", "spacing"))
    return regular


def _written_spacing(volume: SpatialImage) -> list[float]:
    """The spacing of a NIfTI header as it stands in the file, of the first three axes; [] in other formats."""
    if not isinstance(volume.header, nib.Nifti1Header):
        return []
    place = volume.file_map.get("header", volume.file_map["image"])
    with place.get_prepare_fileobj("rb") as file:
        header = type(volume.header).from_fileobj(file, check=False)
    return [float(value) for value in header["pixdim"][1 : 1 + min(3, len(volume.shape))]]
