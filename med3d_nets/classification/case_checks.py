"""Checks of classified volumes, their masks and centres, before any long work starts."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from med3d_nets.checks import Grid, check_each, check_finite, check_grid, check_image, check_shape, read_volume
from med3d_nets.classification.arrays import image_identity, read_array, refer, split_reference
from med3d_nets.classification.regions import outside
from med3d_nets.classification.tables import Item
from med3d_nets.errors import Med3dError
from med3d_nets.folds import name_some

__all__ = ["check_volumes", "has_regions", "repeated", "shared", "warn_of_mixture", "warn_of_regions"]

_log = logging.getLogger(__name__)


def check_volumes(
    items: Sequence[Item], in_channels: int = 1, num_workers: int = 0, *, may_be_constant: bool = False
) -> list[str]:
    """Read every image and mask and say what is wrong with it, a problem a line; nothing is raised.

    Each file is read once, however many regions of it there are. Several processes share the files, and each reads the
    arrays of ``.npz`` files, which it needs.

    Args:
        items: of one or more lists.
        in_channels: channels that images should have.
        num_workers: threads (0: up to four).
        may_be_constant: whether an image with one value alone is logged as a warning, not told as a problem.
    """
    files: dict[str, list[Item]] = {}
    arrays: dict[tuple[str, str], dict[int, list[Item]]] = {}
    for item in items:
        reference = split_reference(item["image"])
        if reference is None:
            files.setdefault(image_identity(item["image"]), []).append(item)
        else:
            path, key, index = reference
            arrays.setdefault((path, key), {}).setdefault(index, []).append(item)
    results = []
    if files:
        results += check_each(partial(_check_file, in_channels=in_channels), list(files.values()), num_workers)
    results += [_check_array(path, key, volumes, in_channels) for (path, key), volumes in arrays.items()]
    problems = [problem for found, _ in results for problem in found]
    constant = [problem for _, found in results for problem in found]
    if may_be_constant and constant:
        _log.warning("%d images do not vary: %s", len(constant), name_some(constant))
    return problems if may_be_constant else problems + constant


def _check_file(items: Sequence[Item], in_channels: int) -> tuple[list[str], list[str]]:
    """Problems of the regions of one image, and whether it is constant."""
    problems: list[str] = []
    constant: list[str] = []
    grid = check_image(items[0]["image"], in_channels, problems, constant)
    _check_regions(items, grid, problems)
    return problems, constant


def _check_array(
    path: str, key: str, volumes: Mapping[int, Sequence[Item]], in_channels: int
) -> tuple[list[str], list[str]]:
    """Problems of the volumes of one array, and which of them are constant."""
    name, problems, constant = f"{path}, {key}", list[str](), list[str]()
    try:
        array = read_array(path, key)
    except Med3dError as error:
        return [str(error)], []
    if array.dtype.kind not in "biuf":
        return [f"{name}: found values of type {array.dtype}; expected real numbers"], []
    kind = f"each image of in_channels={in_channels}"
    if 0 in array.shape or not check_shape(name, array.shape[1:], in_channels, kind, problems):
        return problems or [f"{name}: found shape {array.shape}; expected no axis of size 0"], []
    flat = array.reshape(len(array), -1)
    low, high = _single(flat.min(axis=1)), _single(flat.max(axis=1))
    for index, items in volumes.items():
        reference = refer(path, key, index)
        if index >= len(array):
            problems.append(f"{reference}: found {len(array)} volumes; expected an index below that")
            continue
        if not np.isfinite([low[index], high[index]]).all():
            check_finite(reference, _single(array[index]), problems)
        elif low[index] == high[index]:
            constant.append(f"{reference}: found {low[index]:.6g} in every voxel; expected intensities that vary")
        _check_regions(items, (array.shape[1:4], np.eye(4)), problems)
    return problems, constant


def _single(values: NDArray[Any]) -> NDArray[np.float32]:
    """Values in the precision that they are loaded in."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32)


def _check_regions(items: Sequence[Item], grid: Grid | None, problems: list[str]) -> None:
    """Check the masks and centres of one image; a mask itself where the image has no grid to compare with."""
    image = items[0]["image"]
    for path in dict.fromkeys(item["mask"] for item in items if "mask" in item):
        read = read_volume(path, problems, image)
        if read is None:
            continue
        voxels, affine = read
        fits = check_shape(path, voxels.shape, 1, "a mask", problems)
        if check_finite(path, voxels, problems) and not (voxels > 0).any():
            problems.append(f"{path}: found no voxel above 0; expected some, the region of {image}")
        if fits and grid:
            check_grid(path, (voxels.shape[:3], affine), image, grid, problems)
    if grid:
        centers = [item["center"] for item in items if "center" in item]
        problems += [problem for center in centers if (problem := outside(image, center, grid))]


def has_regions(items: Sequence[Item]) -> bool:
    """Whether any case has a region of interest."""
    return any("mask" in item or "center" in item for item in items)


def warn_of_regions(items: Sequence[Item], trained: bool | None) -> None:
    """Warn of whole volumes for a network that was trained on regions of interest, and of the reverse.

    Args:
        items: to evaluate or to infer.
        trained: :attr:`~med3d_nets.classification.settings.ClassifierSettings.regions`.
    """
    count = sum(has_regions([item]) for item in items)
    if trained and count < len(items):
        text = "%d of %d cases have no region of interest, but the network was trained on these: %s"
        advice = "it sees the whole volume; give a CSV with masks or centres, or images that are cropped"
        _log.warning(text, len(items) - count, len(items), advice)
    elif trained is False and count:
        text = "%d of %d cases have a region of interest, but the network was trained on whole volumes"
        _log.warning(text, count, len(items))


def warn_of_mixture(items: Sequence[Item]) -> None:
    """Warn of arrays beside files, since their spacing is not known; and of regions beside whole volumes."""
    count = sum(has_regions([item]) for item in items)
    if 0 < count < len(items):
        _log.warning("found %d cases with a region of interest and %d without", count, len(items) - count)
    arrays = [item["image"] for item in items if split_reference(item["image"])]
    if 0 < len(arrays) < len(items):
        text = "found files and %d volumes of arrays, such as %s, whose spacing is taken for 1 mm"
        _log.warning(text, len(arrays), arrays[0])


def repeated(items: Sequence[Item], class_names: Sequence[str] = ()) -> list[str]:
    """A line for each image, or region of an image, that is in one list more than once.

    Args:
        items: with labels where there are ``class_names``.
        class_names: to name the classes, if they differ.
    """
    places: dict[Hashable, list[Item]] = {}
    for item in items:
        region = image_identity(item["mask"]) if "mask" in item else (*item.get("center", ()), item.get("size_mm"))
        places.setdefault((image_identity(item["image"]), region), []).append(item)
    problems = []
    for same in places.values():
        if len(same) > 1:
            labels = sorted({class_names[item["label"]] for item in same} if class_names else [])
            classes = f" as {' and '.join(labels)}" * (len(labels) > 1)
            problems.append(f"{same[0]['image']}: found {len(same)} times in one list{classes}; expected once")
    return problems


def shared(training: Sequence[Item], validation: Sequence[Item]) -> list[str]:
    """A line for each image and each patient of both lists."""
    known = {image_identity(item["image"]) for item in training}
    both = dict.fromkeys(item["image"] for item in validation if image_identity(item["image"]) in known)
    problems = [f"{image}: found in training and in validation; expected in one of them" for image in both]
    patients = {item["patient"]: item["image"] for item in training if item["patient"]}
    where: dict[str, str] = {}
    for item in validation:
        if (patient := item["patient"]) in patients:
            where.setdefault(patient, f"{patients[patient]} for training and {item['image']} for validation")
    return problems + [f"patient {name!r}: found {found}; expected on one side only" for name, found in where.items()]
