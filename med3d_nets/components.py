"""Largest-component clean-up: a transform that does it, and a validation handler that tells where it helps."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.transforms.utils import generate_spatial_bounding_box
from monai.utils import convert_to_tensor
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from med3d_nets.distributed import gather_shares
from med3d_nets.errors import Med3dError
from med3d_nets.statistics import case_means

__all__ = ["ComponentChoice", "KeepLargestComponentd", "smaller_components"]

logger = logging.getLogger(__name__)

LEAST_GAIN = 1e-4
"""Mean Dice that the clean-up must add to a class to be worth the risk that it removes what is there."""

NEIGHBOURS = np.ones((3, 3, 3), bool)
"""Voxels that share a face, an edge or a corner are connected."""

Mask = NDArray[np.bool_]


def smaller_components(mask: Mask) -> Mask:
    """Which voxels of a mask are not in its largest 26-connected component.

    Of components of the same size, the first in the array's order counts as the largest.

    Args:
        mask: ``(depth, height, width)``.

    Returns:
        Boolean array of the same shape.
    """
    labels, count = ndimage.label(mask, NEIGHBOURS)
    if count < 2:
        return np.zeros(mask.shape, bool)
    # Plane by plane: bincount makes a copy of 8 bytes a voxel.
    sizes = np.zeros(count + 1, np.int64)
    for plane in labels:
        found = np.bincount(plane.ravel())
        sizes[: found.size] += found
    sizes[0] = 0
    return mask & (labels != sizes.argmax())


class KeepLargestComponentd(MapTransform):
    """Make background of all voxels of a class outside of its largest 26-connected component.

    MONAI's ``KeepLargestConnectedComponentd`` does the same with scikit-image, which is not needed for anything else
    here, labels whole volumes where the class's bounding box will do, and writes into the volume that it is given.

    Args:
        keys: label maps of class numbers, ``(1, depth, height, width)``.
        classes: numbers of the classes to clean up; none: nothing is done.

    Raises:
        Med3dError: if a class is not a whole number of 1 or more.
    """

    def __init__(self, keys: KeysCollection, classes: Sequence[int], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.classes = _check_classes("classes", classes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Clean up the label maps of one case; their meta data stay.

        Raises:
            ValueError: if one has more than one channel.
        """
        cleaned = dict(data)
        for key in self.key_iterator(cleaned):
            volume = cleaned[key]
            if volume.ndim != 4 or volume.shape[0] != 1:
                raise ValueError(f"'{key}' has the shape {tuple(volume.shape)}, expected (1, depth, height, width)")
            cleaned[key] = self._clean(volume) if self.classes else volume
        return cleaned

    def _clean(self, volume: Tensor) -> Tensor:
        result = volume.clone()
        values = convert_to_tensor(result, track_meta=False)
        for number in self.classes:
            part = values[_box(values == number)][0]
            smaller = smaller_components((part == number).cpu().numpy())
            part[torch.as_tensor(smaller, device=part.device)] = 0
        return result


class ComponentChoice:
    """Tells of which classes a prediction should keep the largest component alone, by the validation's cases.

    After a validation, ``classes`` has their numbers, and the engine's metric ``val_cleaned_dice`` is the mean Dice
    with that clean-up: mean over a case's classes, then over the cases, as MONAI's Dice metric takes it. As there, a
    case whose label lacks a class does not count for it. Dice is counted in the prediction's box, since MONAI's
    function would need the whole cleaned volume.

    Args:
        class_names: names of the classes, background first.
        mode: "auto": classes whose mean Dice rises by more than 0.0001 and which get worse in no more cases than they
            get better in; True: all foreground classes; False: none; or a list of class numbers.

    Raises:
        Med3dError: for any other mode.
    """

    def __init__(self, class_names: Sequence[str], mode: str | bool | Sequence[int] = "auto") -> None:
        self.class_names = list(class_names)[1:]
        self.mode = mode
        foreground = list(range(1, len(class_names)))
        if mode == "auto" or mode is True:
            self.candidates = foreground
        elif mode is False:
            self.candidates = []
        elif isinstance(mode, Sequence) and not isinstance(mode, str):
            self.candidates = _check_classes("largest_component", mode, len(class_names))
        else:
            raise Med3dError(
                f"largest_component is {mode!r}, expected 'auto', True, False or a list of class numbers from 1 to "
                f"{len(foreground)}"
            )
        self.classes: list[int] = [] if mode == "auto" else list(self.candidates)
        self.scores: list[list[tuple[float, float]]] = []

    @property
    def found(self) -> dict[str, Any]:
        """The setting that was found, for :class:`~med3d_nets.handlers.BestModelSaver`."""
        return {"largest_component": list(self.classes)}

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator, before the handlers that read ``classes`` or the metric."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Forget the cases of an earlier validation."""
        self.scores = []

    def collect(self, engine: Engine) -> None:
        """Score the cases of an iteration: one-hot ``pred`` and ``label``, ``(class, depth, height, width)``."""
        output: Any = engine.state.output
        for case in output:
            pred, label = (convert_to_tensor(case[key], track_meta=False) for key in ("pred", "label"))
            numbers = range(1, len(self.class_names) + 1)
            self.scores.append([_score(pred[n] > 0, label[n] > 0, n in self.candidates) for n in numbers])

    def __call__(self, engine: Engine) -> None:
        """Choose the classes from the cases of all processes, and log each class's Dice before and after."""
        scores = [case for share in gather_shares(self.scores) for case in share]
        before, after = np.asarray(scores, float).reshape(-1, len(self.class_names), 2).transpose(2, 0, 1)
        if self.mode == "auto":
            self.classes = [n for n in self.candidates if _helps(before[:, n - 1], after[:, n - 1])]
        kept = np.isin(np.arange(1, len(self.class_names) + 1), self.classes)
        engine.state.metrics["val_cleaned_dice"] = _mean(case_means(np.where(kept, after, before)))
        texts = [
            f"{self.class_names[n - 1]} {_mean(before[:, n - 1]):.4f} -> {_mean(after[:, n - 1]):.4f} "
            + ("kept" if n in self.classes else "not kept")
            for n in self.candidates
        ]
        if texts:
            logger.info("largest component: %s", ", ".join(texts))


def _helps(before: NDArray[np.float64], after: NDArray[np.float64]) -> bool:
    better, worse = int((after > before).sum()), int((after < before).sum())
    return _mean(after) - _mean(before) > LEAST_GAIN and worse <= better


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _score(pred: Tensor, label: Tensor, clean: bool) -> tuple[float, float]:
    """Dice of a class's masks, ``(depth, height, width)``, before and after the clean-up; NaN if the label lacks it."""
    true = int(label.count_nonzero())
    if not true:
        return math.nan, math.nan
    box = _box(pred[None])[1:]
    found, hits = pred[box].cpu().numpy(), (pred[box] & label[box]).cpu().numpy()
    sizes = np.array([found.sum(), hits.sum()], float)
    removed = np.zeros(2)
    if clean:
        smaller = smaller_components(found)
        removed = np.array([smaller.sum(), (smaller & hits).sum()], float)
    before, after = (2 * overlap / (size + true) for size, overlap in (sizes, sizes - removed))
    return float(before), float(after)


def _box(mask: Tensor) -> tuple[slice, ...]:
    """Index of the box that holds a mask, ``(1, depth, height, width)``; an empty one for an empty mask."""
    return (slice(None), *map(slice, *generate_spatial_bounding_box(mask, lambda values: values)))


def _check_classes(name: str, classes: Any, n_classes: int | None = None) -> list[int]:
    known = "1 on" if n_classes is None else f"1 to {n_classes - 1}"
    fits = isinstance(classes, Sequence) and not isinstance(classes, str)
    for value in classes if fits else []:
        whole = isinstance(value, int) and not isinstance(value, bool)
        fits = fits and whole and value > 0 and (n_classes is None or value < n_classes)
    if not fits:
        raise Med3dError(f"{name} is {classes!r}, expected a list of class numbers from {known}")
    return sorted(set(classes))
