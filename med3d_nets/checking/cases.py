"""Reads a case, checks it as training does, and keeps what reports and comparisons need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from med3d_nets.checking.classified import read_volume
from med3d_nets.checking.measures import ImageFacts, LabelFacts, measure_image, measure_label, to_ras
from med3d_nets.checking.pictures import PictureStore, axial, draw, middle
from med3d_nets.checks import (
    MAX_CLASSES,
    Grid,
    check_finite,
    check_grid,
    check_intensities,
    check_shape,
    count_labels,
    reason,
)
from med3d_nets.volume_files import Problem

__all__ = ["Case", "Options", "Record", "read_case"]


@dataclass(frozen=True)
class Case:
    """A case of a list.

    Attributes:
        part: ``"training"``, ``"validation"`` or ``"test"``.
        images: one file or more, on one grid, or a reference to a volume of an array.
        label: file of the label map, or of the mask; "" for none.
        patient: name, "" where it is not known.
        masked: whether ``label`` is a mask, whose values above 0 are the region of interest.
    """

    part: str
    images: tuple[str, ...]
    label: str = ""
    patient: str = ""
    masked: bool = False


@dataclass(frozen=True)
class Options:
    """What cases should be like.

    Attributes:
        n_seg_classes: number of classes, background included; 0: as the labels tell.
        in_channels: channels of the images.
    """

    n_seg_classes: int = 0
    in_channels: int = 1


@dataclass(frozen=True)
class Record:
    """What is kept of a case: a few kB.

    Attributes:
        case: the case.
        problems: what is wrong with its files.
        images: what was measured, None for each image that could not be.
        label: the same.
        picture: number of its picture in the store, or None.
    """

    case: Case
    problems: tuple[str, ...] = ()
    images: tuple[ImageFacts | None, ...] = ()
    label: LabelFacts | None = None
    picture: int | None = None


@dataclass
class _Slice:
    """Where the picture of a case is cut, and the label there."""

    index: int | None = None
    label: NDArray[Any] | None = None
    grid: Grid | None = None


def read_case(case: Case, options: Options, store: PictureStore) -> Record:
    """Read the files of a case, one after another; whatever is wrong is told in the record, nothing is raised.

    Args:
        case: what to read.
        options: what it should be like.
        store: a picture is added.
    """
    problems: list[str] = []
    try:
        return _read(case, options, store, problems)
    except Exception as error:  # one odd file must not lose the report on all others
        text = f"{case.images[0]}: found a case that cannot be measured ({reason(error)}); expected one that can"
        return Record(case, (*problems, Problem(text, "unreadable")))


def _read(case: Case, options: Options, store: PictureStore, problems: list[str]) -> Record:
    # The label comes first, as it says where the picture is cut, so that one volume is in memory at a time; problems
    # are told in the order of training.
    about_label: list[str] = []
    label, cut = _read_label(case, options, about_label) if case.label else (None, _Slice())
    channels = options.in_channels if len(case.images) == 1 else 1
    found = [_read_image(path, channels, problems, None if place else cut) for place, path in enumerate(case.images)]
    (first, _, picture), *others = found
    for path, (grid, _, _) in zip(case.images[1:], others, strict=True):
        if first and grid:
            check_grid(path, grid, case.images[0], first, problems)
    problems += [problem for problem in about_label if problem not in problems]  # those of the image, for its grid
    if first and cut.grid:
        check_grid(case.label, cut.grid, case.images[0], first, problems)
    number = store.add(picture) if picture else None
    return Record(case, tuple(problems), tuple(facts for _, facts, _ in found), label, number)


def _read_image(
    path: str, channels: int, problems: list[str], cut: _Slice | None
) -> tuple[Grid | None, ImageFacts | None, bytes]:
    """Grid and facts of an image, and a picture of it if it is cut; None and nothing for what is not there."""
    read = read_volume(path, problems)
    if read is None:
        return None, None, b""
    voxels, affine = read
    if not check_intensities(path, voxels, channels, problems, problems):
        return None, None, b""
    grid = voxels.shape[:3], affine
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        return grid, None, b""
    facts = measure_image(voxels, affine)
    return grid, facts, _draw(voxels, affine, facts, cut) if cut else b""


def _read_label(case: Case, options: Options, problems: list[str]) -> tuple[LabelFacts | None, _Slice]:
    """What was measured in a label map or mask, and what the picture needs of it."""
    path = case.label
    read = read_volume(path, problems, case.images[0])
    if read is None:
        return None, _Slice()
    voxels, affine = read
    fits = check_shape(path, voxels.shape, 1, "a mask" if case.masked else "a label", problems)
    if case.masked:
        finite = check_finite(path, voxels, problems)
        voxels = (voxels > 0).astype(np.uint8)
        if finite and not voxels.any():
            found = f"no voxel above 0; expected some, the region of {case.images[0]}"
            problems.append(Problem(f"{path}: found {found}", "empty_mask"))
    counts = count_labels(path, voxels, 2 if case.masked else options.n_seg_classes or MAX_CLASSES, problems)
    if not fits:
        return None, _Slice()
    cut = _Slice(grid=(voxels.shape[:3], affine))
    if counts is None:
        return None, cut
    voxels = voxels.reshape(voxels.shape[:3])
    turned = to_ras(voxels, affine)
    cut.index = middle(turned)
    if cut.index is not None:
        cut.label = axial(turned, cut.index)
    return measure_label(voxels, counts, affine), cut


def _draw(voxels: NDArray[Any], affine: NDArray[np.float64], facts: ImageFacts, cut: _Slice) -> bytes:
    """The picture of an image, through the middle of the foreground or of the volume; a label that fits is outlined."""
    turned = to_ras(voxels.reshape(*voxels.shape[:3], -1)[..., 0], affine)
    index = cut.index if cut.index is not None and cut.index < turned.shape[2] else turned.shape[2] // 2
    apart: list[str] = []
    if cut.grid:
        check_grid("", cut.grid, "", (voxels.shape[:3], affine), apart)
    outline = None if apart else cut.label
    return draw(axial(turned, index), outline, (facts.geometry.spacing[1], facts.geometry.spacing[0]))
