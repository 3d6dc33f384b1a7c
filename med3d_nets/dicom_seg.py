"""DICOM segmentations read as label maps; :mod:`~med3d_nets.dicom_seg_writing` writes them.

Such a file holds a frame for each slice and segment and may leave out those without a voxel, so that its own grid is a
part of its image's. pydicom reads them frame by frame, also those that highdicom finds too lax, or too uneven where
positions were rounded. It is an extra.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from med3d_nets.dicom import DIRECTORY, dicom_files
from med3d_nets.dicom_planes import GROUPS, PACKAGES, SHOWN, find_planes, frame_groups, place_on_grid, stack_planes
from med3d_nets.dicom_seg_writing import write_segmentation
from med3d_nets.errors import Med3dError
from med3d_nets.volume_files import MAX_VOXELS

__all__ = ["Segmentation", "is_segmentation", "place_on_grid", "read_segmentation", "write_segmentation"]

Array = NDArray[np.float64]

_LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
_KINDS = ("1.2.840.10008.5.1.4.1.1.66.4", _LABEL_MAP)


@dataclass(frozen=True)
class Segmentation:
    """A label map, as far as there are frames of it.

    Attributes:
        labels: segment numbers, ``(x, y, z)``: columns, rows, slices in the order of their positions along their
            normal; of 8 or 16 bits without a sign.
        affine: from voxels to RAS+ in mm, ``(4, 4)``.
        class_names: "background", and labels of the segments by number; ``class 2`` where there is none.
        series_uid: ``SeriesInstanceUID`` of the images that it refers to, or "".
    """

    labels: NDArray[Any]
    affine: Array
    class_names: list[str]
    series_uid: str


def is_segmentation(path: str) -> bool:
    """Whether a path is that of a DICOM segmentation, or of a folder whose DICOM files are such.

    The first bytes tell, without pydicom; where that is missing, :func:`read_segmentation` says so.

    Args:
        path: of anything; false where it does not exist or cannot be opened.
    """
    try:
        files = dicom_files(path) if os.path.isdir(path) else [path]
        kinds = (kind for kind in map(_kind, files) if kind != DIRECTORY)
        return next(kinds, "") in _KINDS and all(kind in _KINDS for kind in kinds)
    except OSError:
        return False


def read_segmentation(path: str) -> Segmentation:
    """Read a segmentation; of one with fractions, what is a half or more.

    Args:
        path: of its file, or of a folder with no other segmentation directly in it.

    Raises:
        Med3dError: if it cannot be read, naming the packages if these are missing; if it is no segmentation, or one of
            tiles; if frames are uneven, there twice, or of segments that are not described; if segments overlap.
    """
    file = _only_file(path) if os.path.isdir(path) else path
    try:
        import pydicom

        dataset = pydicom.dcmread(file)
        if dataset.get("SOPClassUID") not in _KINDS:
            found = f"SOPClassUID {dataset.get('SOPClassUID')}"
            raise Med3dError(f"{file}: found {found}; expected that of a segmentation, {' or '.join(_KINDS)}")
        return _decode(file, dataset)
    except Med3dError:
        raise
    except ImportError as error:
        raise Med3dError(f"{file}: found a file that needs other packages; expected {PACKAGES} ({error})") from error
    except Exception as error:  # whatever a damaged file makes pydicom raise
        raise Med3dError(f"{file}: found an unreadable file ({_reason(error)}); expected a segmentation") from error


def _kind(path: str) -> str:
    """``MediaStorageSOPClassUID`` of a DICOM file, or "": it is near the start, in one encoding whatever follows."""
    with open(path, "rb") as file:
        head = file.read(512)
    at = head.find(b"\x02\x00\x02\x00UI", 132)
    if head[128:132] != b"DICM" or at < 0:
        return ""
    length = int.from_bytes(head[at + 6 : at + 8], "little")
    return head[at + 8 : at + 8 + length].rstrip(b"\0 ").decode("ascii", "replace")


def _only_file(folder: str) -> str:
    files = [path for path in dicom_files(folder) if _kind(path) in _KINDS]
    if len(files) != 1:
        named = ", ".join(os.path.basename(path) for path in files[:SHOWN]) + ", ..." * (len(files) > SHOWN)
        found = f"{len(files)} DICOM segmentations{': ' * bool(files)}{named}"
        raise Med3dError(f"{folder}: found {found}; expected one, or the path of one")
    return files[0]


def _decode(path: str, dataset: Any) -> Segmentation:
    if "TotalPixelMatrixColumns" in dataset or "ImageOrientationSlide" in dataset:
        raise Med3dError(f"{path}: found tiles of a slide; expected slices of a volume")
    names = {int(each.SegmentNumber): str(each.get("SegmentLabel") or "") for each in dataset.SegmentSequence}
    planes = find_planes(path, *(frame_groups(path, dataset, name) for name in GROUPS))
    place, affine = stack_planes(path, planes, whole=False)
    shape = (int(place.max()) + 1, int(dataset.Rows), int(dataset.Columns))
    if math.prod(shape) > MAX_VOXELS:
        raise Med3dError(f"{path}: found frames on a grid of {shape[::-1]}; expected at most {MAX_VOXELS} voxels")
    labels = np.zeros(shape, np.min_scalar_type(max(names)))
    draw = _draw_map if dataset.SOPClassUID == _LABEL_MAP else _draw_segments
    draw(path, dataset, names, place.tolist(), labels)
    class_names = ["background", *(names.get(number) or f"class {number}" for number in range(1, max(names) + 1))]
    references = dataset.get("ReferencedSeriesSequence") or [{}]
    return Segmentation(labels.T, affine, class_names, str(references[0].get("SeriesInstanceUID", "")))


def _draw_map(path: str, dataset: Any, names: Mapping[int, str], place: Sequence[int], labels: NDArray[Any]) -> None:
    """Copy frames of segment numbers into ``(slice, row, column)``."""
    _check_once(path, list(zip(place, [0] * len(place), strict=True)))
    background = int(dataset.get("PixelPaddingValue", 0))
    found: set[int] = set()
    for pixels, index in zip(_pixels(dataset), place, strict=True):
        found.update(np.flatnonzero(np.bincount(pixels.ravel())).tolist())
        labels[index] = np.where(pixels == background, 0, pixels)
    if wrong := sorted(found - (names.keys() - {0}) - {background}):
        raise Med3dError(f"{path}: found values {wrong[:SHOWN]}; expected numbers of segments that it describes")


def _draw_segments(
    path: str, dataset: Any, names: Mapping[int, str], place: Sequence[int], labels: NDArray[Any]
) -> None:
    """Draw frames of one segment each into ``(slice, row, column)``."""
    identities = frame_groups(path, dataset, "SegmentIdentificationSequence")
    numbers = [int(each.ReferencedSegmentNumber) for each in identities]
    if wrong := sorted(set(numbers) - (names.keys() - {0})):
        raise Med3dError(f"{path}: found frames of segments {wrong[:SHOWN]}; expected segments that it describes")
    _check_once(path, list(zip(place, numbers, strict=True)))
    least = dataset.MaximumFractionalValue / 2 if dataset.SegmentationType == "FRACTIONAL" else 1
    shared: Counter[tuple[int, int]] = Counter()
    for pixels, index, number in zip(_pixels(dataset), place, numbers, strict=True):
        mask = pixels >= least
        for other, voxels in zip(*np.unique(labels[index][mask], return_counts=True), strict=True):
            shared[int(other), number] += int(voxels)
        labels[index][mask] = number
    overlaps = [f"{a} ({names[a]}) and {b} ({names[b]}) share {n} voxels" for (a, b), n in shared.items() if a]
    if overlaps:
        found = "; ".join(overlaps[:SHOWN]) + f"; and {len(overlaps) - SHOWN} more" * (len(overlaps) > SHOWN)
        raise Med3dError(f"{path}: found segments that overlap, {found}; expected one segment for a voxel")


def _pixels(dataset: Any) -> Iterator[NDArray[Any]]:
    """Stored values of each frame, ``(row, column)``."""
    from pydicom.pixels import iter_pixels

    if dataset.BitsAllocated > 1 or dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        yield from iter_pixels(dataset, raw=True)
        return
    # pydicom 3.0 takes frames of bits to begin with a byte.
    packed = np.frombuffer(dataset.PixelData, np.uint8)
    shape = (int(dataset.Rows), int(dataset.Columns))
    for first in range(0, math.prod(shape) * int(dataset.get("NumberOfFrames") or 1), math.prod(shape)):
        bits = np.unpackbits(packed[first // 8 : (first + math.prod(shape) + 7) // 8], bitorder="little")
        yield bits[first % 8 :][: math.prod(shape)].reshape(shape)


def _check_once(path: str, frames: Sequence[tuple[int, int]]) -> None:
    """Check that no slice has two frames of a segment."""
    seen: dict[tuple[int, int], int] = {}
    for number, frame in enumerate(frames, 1):
        if (other := seen.setdefault(frame, number)) != number:
            of = f" of segment {frame[1]}" * bool(frame[1])
            raise Med3dError(f"{path}: found frames {other} and {number}{of} at one place; expected one frame there")


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
