"""Checks of volumes and label maps, before any long work starts."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias, TypeVar

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from med3d_nets.dicom_seg import is_segmentation
from med3d_nets.distributed import gather, shard
from med3d_nets.formats import WANTED, images_of, is_other_format, read_other_volume
from med3d_nets.volume_files import Problem, check_header, check_spacing, read_voxels

__all__ = [
    "Grid",
    "check_case",
    "check_cases",
    "check_each",
    "check_finite",
    "check_grid",
    "check_image",
    "check_intensities",
    "check_shape",
    "count_labels",
    "identity",
    "read_volume",
    "reason",
]

T = TypeVar("T")
R = TypeVar("R")
Grid: TypeAlias = tuple[tuple[int, ...], NDArray[np.float64]]
"""Spatial shape and affine (mm)."""

AFFINE_TOLERANCE = 1e-3
"""Largest difference between an entry of the image's affine and the label's (mm, or mm per voxel)."""
MAX_VALUES = 5
MAX_CLASSES = 2**15
"""Label values looked for where nobody says how many classes there are."""
_PART = 2**20

_log = logging.getLogger(__name__)


def check_cases(
    cases: Sequence[Mapping[str, Any]], n_seg_classes: int | None = 2, in_channels: int = 1, num_workers: int = 0
) -> list[str]:
    """Read every file of one list and say what is wrong with it, a problem a line; nothing is raised.

    What is possible, such as a label without foreground or a class that no label has, is logged as a warning.

    Several processes share the work, and each returns all problems.

    Args:
        cases: items with "image", a path or those of the channels, and, where there is one, "label".
        n_seg_classes: number of classes, background included; None: as the labels tell.
        in_channels, num_workers: as for :func:`med3d_nets.datalist.load_datalist`.
    """
    if not cases:
        return []
    check = partial(check_case, n_seg_classes=n_seg_classes or MAX_CLASSES, in_channels=in_channels)
    results = check_each(check, cases, num_workers)
    labels = [values for _, values in results if values is not None]
    if empty := sum(values <= {0} for values in labels):
        _log.warning("%d of %d labels have no foreground: all their voxels are 0", empty, len(cases))
    if labels and n_seg_classes and (absent := sorted(set(range(1, n_seg_classes)).difference(*labels))):
        named = ", ".join(map(str, absent[:MAX_VALUES])) + ", ..." * (len(absent) > MAX_VALUES)
        _log.warning("no label has class %s: is n_seg_classes=%d right?", named, n_seg_classes)
    problems = [problem for case_problems, _ in results for problem in case_problems]
    times = Counter(identity(case) for case in cases)
    return problems + [f"{path}: found {n} times in one list; expected once" for path, n in times.items() if n > 1]


def check_each(check: Callable[[T], R], cases: Sequence[T], num_workers: int = 0) -> list[R]:
    """What ``check`` finds in each case, in their order, with the time told in the log.

    Several processes share the work, and each returns all of it.

    Args:
        check: reads the files of a case.
        cases: of one list.
        num_workers: threads (0: up to four).
    """
    _log.info("checking the files of %d cases", len(cases))
    start = time.perf_counter()
    # Threads suffice: reading and decompressing release the interpreter's lock.
    with ThreadPoolExecutor(num_workers if num_workers > 0 else min(4, os.cpu_count() or 1)) as pool:
        results = gather(list(pool.map(check, shard(cases))))
    _log.info("checked the files of %d cases in %.1f s", len(cases), time.perf_counter() - start)
    return results


def check_case(case: Mapping[str, Any], n_seg_classes: int, in_channels: int) -> tuple[list[str], set[int] | None]:
    """Problems of one case, and the classes in its label, if it can be read. Only one volume is in memory at a time.

    Args:
        case: item with "image", a path or those of the channels, and, where there is one, "label".
        n_seg_classes: number of classes, background included.
        in_channels: of the image.
    """
    problems: list[str] = []
    images = images_of(case)
    channels = in_channels if len(images) == 1 else 1
    grids = [check_image(path, channels, problems, problems) for path in images]
    image = grids[0]
    for path, grid in zip(images[1:], grids[1:], strict=True):
        if image and grid:
            check_grid(path, grid, images[0], image, problems)
    if "label" not in case:
        return problems, None
    label, classes = _check_label(case["label"], images[0], n_seg_classes, problems)
    if image and label:
        check_grid(case["label"], label, images[0], image, problems)
    return list(dict.fromkeys(problems)), classes  # a label map that is put on its image's grid tells of the image too


def check_grid(path: str, found: Grid, image: str, expected: Grid, problems: list[str]) -> None:
    """Check that a label map or mask lies on its image's grid.

    Args:
        path, found: the label map and its grid.
        image, expected: the image and its grid.
        problems: added to.
    """
    reference = f"that of its image {image}"
    if found[0] != expected[0]:
        problems.append(Problem(f"{path}: found spatial shape {found[0]}; expected {expected[0]}, {reference}", "grid"))
    if not np.allclose(found[1], expected[1], rtol=0, atol=AFFINE_TOLERANCE):
        has, wanted = (np.round(affine[:3], 4).tolist() for affine in (found[1], expected[1]))
        margin = f"largest difference {np.abs(found[1] - expected[1]).max():.4g}, tolerance {AFFINE_TOLERANCE:g} mm"
        differs = f"another {' and '.join(_differences(found[1], expected[1]))}: "
        problems.append(
            Problem(f"{path}: found {differs}affine {has}; expected {wanted}, {reference} ({margin})", "grid")
        )


def _differences(found: NDArray[np.float64], expected: NDArray[np.float64]) -> list[str]:
    """In what two affines differ beyond the tolerance, which a millimetre at the voxel's edge and a direction share."""
    spacings = [nib.affines.voxel_sizes(affine) for affine in (found, expected)]
    directions = [affine[:3, :3] / sizes for affine, sizes in zip((found, expected), spacings, strict=True)]
    pairs = {"spacing": spacings, "direction": directions, "origin": [found[:3, 3], expected[:3, 3]]}
    names = [name for name, (one, other) in pairs.items() if np.abs(one - other).max() > AFFINE_TOLERANCE]
    return names or ["affine"]


def check_image(path: str, channels: int, problems: list[str], constant: list[str]) -> Grid | None:
    """Read an image and check its shape and that its values are finite and vary.

    Args:
        path: NIfTI file.
        channels: that it should have.
        problems: added to.
        constant: added to where all voxels are the same; may be ``problems``.

    Returns:
        Its grid, or None where the file or its dimensions are wrong.
    """
    read = read_volume(path, problems)
    if read is None:
        return None
    voxels, affine = read
    return (voxels.shape[:3], affine) if check_intensities(path, voxels, channels, problems, constant) else None


def check_intensities(path: str, voxels: NDArray[Any], channels: int, problems: list[str], constant: list[str]) -> bool:
    """Check the shape of an image that has been read, and that its values are finite and vary.

    Args:
        voxels: of the file.
        path, channels, problems, constant: as for :func:`check_image`.

    Returns:
        Whether its dimensions are right.
    """
    fits = check_shape(path, voxels.shape, channels, f"an image of in_channels={channels}", problems)
    if check_finite(path, voxels, problems) and voxels.min() == voxels.max():
        found = f"{voxels.max():.6g} in every voxel; expected intensities that vary"
        constant.append(Problem(f"{path}: found {found}", "constant"))
    return fits


def _check_label(path: str, image: str, n_seg_classes: int, problems: list[str]) -> tuple[Grid | None, set[int] | None]:
    """Read a label map and check its shape and values; its grid and classes, None where they are wrong."""
    if os.path.isdir(path) and not is_segmentation(path):
        expected = "the file of a label map, or a DICOM segmentation alone in a folder"
        problems.append(Problem(f"{path}: found a folder; expected {expected}", "missing"))
        return None, None
    read = read_volume(path, problems, image)
    if read is None:
        return None, None
    voxels, affine = read
    grid = (voxels.shape[:3], affine) if check_shape(path, voxels.shape, 1, "a label", problems) else None
    counts = count_labels(path, voxels, n_seg_classes, problems)
    return grid, None if counts is None else set(np.flatnonzero(counts).tolist())


def count_labels(path: str, voxels: NDArray[Any], n_seg_classes: int, problems: list[str]) -> NDArray[np.int64] | None:
    """Check the values of a label map that has been read.

    Args:
        path: for messages.
        voxels: of the file.
        n_seg_classes: number of classes, background included.
        problems: added to.

    Returns:
        Voxels of each class, or None where values are wrong.
    """
    finite = check_finite(path, voxels, problems)
    values = voxels if finite else voxels[np.isfinite(voxels)]
    whole = values.dtype.kind in "iu" or not (values % 1).any()
    if whole and (not values.size or (values.min() >= 0 and values.max() < n_seg_classes)):
        wrong = values[:0]
    else:
        wrong = values[(values < 0) | (values >= n_seg_classes) | (values % 1 != 0)]
    if wrong.size:
        kinds = np.unique(wrong)
        named = ", ".join(f"{value:.6g}" for value in kinds[:MAX_VALUES]) + ", ..." * (len(kinds) > MAX_VALUES)
        expected = f"whole numbers from 0 to {n_seg_classes - 1} (n_seg_classes={n_seg_classes})"
        text = f"{path}: found label values {named} ({wrong.size} voxels); expected {expected}"
        problems.append(Problem(text, "label_values"))
    if wrong.size or not finite:
        return None
    counts = np.zeros(n_seg_classes, np.int64)
    flat = voxels.ravel(order="K")
    for start in range(0, flat.size, _PART):  # numpy's indices take 8 bytes a voxel
        counts += np.bincount(flat[start : start + _PART].astype(np.intp), minlength=n_seg_classes)
    return counts


def check_shape(path: str, found: tuple[int, ...], channels: int, kind: str, problems: list[str]) -> bool:
    """Check the shape of a file's array, ``(x, y, z)`` or ``(x, y, z, channels)``; one problem is added if it is wrong.

    Args:
        path: for the message.
        found: shape.
        channels: that it should have.
        kind: what should have it, for the message.
        problems: added to.
    """
    if len(found) >= 3 and found[3:] in ([(), (1,)] if channels == 1 else [(channels,)]):
        return True
    shape = "(x, y, z) or (x, y, z, 1)" if channels == 1 else f"(x, y, z, {channels})"
    problems.append(Problem(f"{path}: found shape {found}; expected {shape} for {kind}", "dimensions"))
    return False


def check_finite(path: str, voxels: NDArray[Any], problems: list[str]) -> bool:
    """Check that no voxel is NaN or infinite; one problem is added if some are."""
    bad = voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
    if bad:
        nans = int(np.count_nonzero(np.isnan(voxels)))
        found = f"{nans} NaN and {bad - nans} infinite voxels; expected finite values only"
        problems.append(Problem(f"{path}: found {found}", "not_finite"))
    return not bad


def read_volume(path: str, problems: list[str], image: str = "") -> tuple[NDArray[Any], NDArray[np.float64]] | None:
    """Voxels of one file or DICOM series, of single precision at most as MONAI loads them, and its affine.

    Args:
        path: of an image, a label map or a mask.
        problems: added to.
        image: the image of a label map or mask: DICOM segmentations have the slices alone that they say something of,
            and are put on its grid.
    """
    if os.path.exists(path) and is_other_format(path):
        other = read_other_volume(path, problems, image)
        return other if other and check_spacing(path, other[1], problems) else None
    if not os.path.isfile(path):
        found = "a folder" if os.path.isdir(path) else "no such file"
        problems.append(Problem(f"{path}: found {found}; expected {WANTED}", "missing"))
        return None
    try:
        volume = nib.load(path)
        if not isinstance(volume, SpatialImage) or volume.affine is None:
            problems.append(Problem(f"{path}: found a {type(volume).__name__}; expected a NIfTI volume", "type"))
        elif check_header(path, volume, problems):
            with np.errstate(all="ignore"):
                voxels = read_voxels(path, volume)
                single = voxels.astype(np.float32, copy=False) if voxels.dtype.kind == "f" else voxels
            return single, np.asarray(volume.affine, np.float64)
    except Exception as error:  # whatever a damaged file makes nibabel, gzip, zlib or numpy raise
        text = f"{path}: found an unreadable file ({reason(error)}); expected a whole NIfTI file"
        problems.append(Problem(text, "unreadable"))
    return None


def identity(case: Mapping[str, Any]) -> str:
    """The file of a case's image, or of its first channel, whatever links lead to it."""
    return os.path.normcase(os.path.realpath(images_of(case)[0]))


def reason(error: BaseException) -> str:
    """An error's type and first line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
