"""Prediction of a volume patch by patch, of which no more than a slab is held in floating point.

MONAI's ``SlidingWindowInferer`` holds the logits of all classes for the whole volume, and ``Invertd`` brings them back
to the file's grid through more such copies: tens of GB for a CT of the chest with a dozen classes. Here the planes that
no later window reaches become labels on the file's grid at once.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ignite import distributed as idist
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import Inferer
from monai.inferers.utils import _get_scan_interval
from torch import Tensor
from tqdm import tqdm

from med3d_nets.errors import Med3dError

__all__ = ["AxisMap", "NotParallelError", "PatchInferer", "match_grids"]

OFF_AXIS = 0.1
"""Distance, in voxels of the network's grid, that the file's axes may stray from the network's over the volume. Affines
that a file rounds to three digits stray by less; a tilted gantry's axes by more."""

logger = logging.getLogger(__name__)

WHOLE = 1e-3
"""Distance, in voxels, from a voxel's centre below which a position counts as that centre."""

Window = tuple[slice, slice, slice]


class NotParallelError(ValueError):
    """The axes of two grids are not parallel."""


@dataclass(frozen=True)
class AxisMap:
    """Where the file's voxels lie along one axis of the network's grid.

    Attributes:
        file_axis: the file's axis that runs along it.
        inside: the file's voxels whose centres are inside the network's grid; the others were cropped away.
        low, high: of each of these, the network's voxels below and above.
        weight: share of the one above.
    """

    file_axis: int
    inside: slice
    low: Tensor
    high: Tensor
    weight: Tensor

    def resample(self, values: Tensor, dim: int) -> Tensor:
        """Interpolate linearly along ``dim``, from the network's voxels to those of the file that are inside."""
        below = values.index_select(dim, self.low)
        if not bool(self.weight.any()):
            return below
        weight = self.weight.view([-1 if axis == dim else 1 for axis in range(values.ndim)])
        return below.lerp_(values.index_select(dim, self.high), weight)

    def by_plane(self) -> dict[int, list[tuple[int, float]]]:
        """The file's voxels, each with its weight, by the network's voxel that completes them in ascending order."""
        found: dict[int, list[tuple[int, float]]] = {}
        rows = zip(self.low.tolist(), self.high.tolist(), self.weight.tolist(), strict=True)
        for voxel, (low, high, weight) in enumerate(rows, self.inside.start):
            found.setdefault(high if weight else low, []).append((voxel, weight))
        return found


class PatchInferer(Inferer):
    """Predicts the label map of a file, on the file's own grid, from its preprocessed volume.

    Windows lie and are blended as those of MONAI's ``SlidingWindowInferer`` with ``mode="gaussian"``, and the blended
    logits' softmax is interpolated linearly to the centres of the file's voxels, as ``Invertd`` does; voxels outside
    the volume, which was cropped, become background. Where the file's axes are sheared, as those of a scanner whose
    gantry is tilted, a voxel takes the label of the network's nearest voxel instead.

    Of the floating-point numbers, no more is held than the planes that a row of windows reaches, along the axis where
    they are fewest. They are on the input's device and in single precision, also where the network's logits are not.

    Args:
        patch_size: depth, height and width of the windows, in voxels of the network's grid. Smaller volumes are padded
            with zeros on both sides.
        overlap: share of a window that its neighbour covers too.
        batch_size: windows at a time.
        flip_axes: axes of the network's grid (of RAS orientation: 0, 1, 2) along which each window is flipped too, in
            every combination; the logits are averaged.
        progress: whether to show a bar.
        n_probabilities: number of the network's classes, for their probabilities besides the labels: a byte for each
            class and voxel of the file. 0: labels alone.

    Raises:
        Med3dError: if one of them is out of range.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        overlap: float = 0.5,
        batch_size: int = 1,
        flip_axes: Sequence[int] = (),
        progress: bool = False,
        n_probabilities: int = 0,
    ) -> None:
        super().__init__()
        self.patch_size = tuple(int(size) for size in patch_size)
        self.overlap = overlap
        self.batch_size = batch_size
        self.flip_axes = sorted(set(flip_axes))
        self.progress = progress
        self.n_probabilities = n_probabilities
        if len(self.patch_size) != 3 or min(self.patch_size) < 1:
            raise Med3dError(f"patch_size is {list(patch_size)}, expected three numbers of voxels, 1 or more")
        if not 0 <= overlap < 1:
            raise Med3dError(f"overlap is {overlap}, expected a share from 0 to less than 1")
        if batch_size < 1:
            raise Med3dError(f"batch_size is {batch_size}, expected a number of patches, 1 or more")
        if not set(self.flip_axes) <= {0, 1, 2}:
            raise Med3dError(f"flip_axes is {list(flip_axes)}, expected a list of numbers from 0 to 2")

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> MetaTensor:
        """Predict.

        Args:
            inputs: ``(batch, channel, depth, height, width)``, with the affine of the network's grid as ``affine`` and
                that of the file as ``original_affine``, as MONAI's transforms and data loader leave them. Where there
                is no ``original_affine``, the network's grid is taken for the file's.
            network: windows, ``(batch, channel, *patch_size)``, to logits of up to 256 classes of the same size.
            args, kwargs: passed to ``network``.

        Returns:
            Class numbers, ``(batch, 1, *shape of the file)``, uint8, on the CPU, with the file's affine. Probabilities
            in 255ths follow as further channels, one for each class; outside of the volume, all is background.

        Raises:
            Med3dError: if the files of a batch differ in shape.
        """
        volumes = _split(inputs)
        shapes = [_file_grid(volume)[1] for volume in volumes]
        if len(set(shapes)) > 1:
            found = ", ".join(str(shape) for shape in shapes)
            raise Med3dError(f"a batch has files of the shapes {found}, expected one shape; load one file at a time")
        with torch.no_grad():
            labels = [
                self._predict(volume, shape, lambda window: network(window, *args, **kwargs))
                for volume, shape in zip(volumes, shapes, strict=True)
            ]
        return list_data_collate(
            [
                MetaTensor(label, meta={**volume.meta, "affine": _file_grid(volume)[0]})
                for label, volume in zip(labels, volumes, strict=True)
            ]
        )

    def _predict(self, volume: MetaTensor, shape: Sequence[int], predictor: Callable[[Tensor], Tensor]) -> Tensor:
        """Label map and probabilities of one volume, ``(1 + n_probabilities, *shape)``."""
        size = tuple(volume.shape[1:])
        own, other = (_as_array(affine) for affine in (volume.affine, _file_grid(volume)[0]))
        try:
            maps = match_grids(own, size, other, shape, volume.device)
        except NotParallelError as error:
            logger.warning("%s: %s", volume.meta.get("filename_or_obj", "a volume"), error)
            straight = self._predict(MetaTensor(volume.as_tensor(), affine=torch.from_numpy(own)), size, predictor)
            return _take_nearest(straight, np.linalg.solve(own, other), self._background(shape))
        axis = min(range(3), key=lambda axis: min(1.0, self.patch_size[axis] / size[axis]))
        first, *others = [maps[axis], *(other for index, other in enumerate(maps) if index != axis)]
        answer = self._background(shape)
        planes = self._planes(volume.as_tensor(), axis, predictor)
        turned = answer.permute(0, 1 + first.file_axis, *(1 + other.file_axis for other in others))
        _write(turned, planes, first, others)
        return answer

    def _background(self, shape: Sequence[int]) -> Tensor:
        """The answer where nothing was found."""
        answer = torch.zeros(1 + self.n_probabilities, *shape, dtype=torch.uint8)
        answer[1:2] = 255
        return answer

    def _planes(self, volume: Tensor, axis: int, predictor: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """Blended logits, plane by plane along ``axis``, each ``(class, *the other two axes)``."""
        size = tuple(volume.shape[1:])
        window = tuple(min(pair) for pair in zip(self.patch_size, size, strict=True))
        before = [(full - part) // 2 for full, part in zip(self.patch_size, window, strict=True)]
        behind = [full - part - half for full, part, half in zip(self.patch_size, window, before, strict=True)]
        padding = [number for pair in zip(reversed(before), reversed(behind), strict=True) for number in pair]
        inner: tuple[Any, ...] = (..., *(slice(half, half + part) for half, part in zip(before, window, strict=True)))
        interval = _get_scan_interval(size, window, 3, (self.overlap,) * 3)
        windows = sorted(dense_patch_slices(size, window, interval), key=lambda where: where[axis].start)
        weight = compute_importance_map(self.patch_size, mode="gaussian", device=volume.device)[inner]
        blend = _Blend(_first(size, axis), weight.movedim(axis, 0))
        with tqdm(total=len(windows), leave=None, disable=not self.progress or idist.get_rank() > 0) as bar:
            for start in range(0, len(windows), self.batch_size):
                batch = windows[start : start + self.batch_size]
                patches = torch.stack([F.pad(volume[:, *where], padding) for where in batch])
                logits = self._logits(patches, predictor)[inner].movedim(2 + axis, 2)
                for where, part in zip(batch, logits, strict=True):
                    yield from blend.finish(where[axis].start)
                    blend.add(_first(where, axis), part)
                bar.update(len(batch))
            yield from blend.finish(size[axis])

    def _logits(self, patches: Tensor, predictor: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits of windows in single precision, averaged over the flips; both ``(batch, channel, *patch_size)``."""
        flips = [dims for count in range(4) for dims in itertools.combinations([2 + a for a in self.flip_axes], count)]
        total = predictor(patches).float()
        for dims in flips[1:]:
            total = total + predictor(patches.flip(dims)).float().flip(dims)
        return total / len(flips) if len(flips) > 1 else total


class _Blend:
    """Weighted sums of logits for the planes that windows still reach, in a ring of as many planes as a window has.

    Args:
        size: of the volume, in voxels, planes first.
        weight: of a window's voxels.
    """

    def __init__(self, size: tuple[int, int, int], weight: Tensor) -> None:
        self.weight = weight
        self.depth = weight.shape[0]
        self.total = torch.zeros(self.depth, *size[1:], device=weight.device)
        self.sums: Tensor | None = None
        self.finished = 0

    def add(self, where: Window, logits: Tensor) -> None:
        """Add a window, which must not begin before one that was added; logits are ``(class, *window)``."""
        if self.sums is None:
            self.sums = logits.new_zeros(len(logits), *self.total.shape)
        turn = where[0].start % self.depth
        weighted = logits * self.weight
        for ring, own in ((slice(turn, None), slice(self.depth - turn)), (slice(turn), slice(self.depth - turn, None))):
            self.sums[:, ring, *where[1:]] += weighted[:, own]
            self.total[ring, *where[1:]] += self.weight[own]

    def finish(self, stop: int) -> Iterator[Tensor]:
        """The planes before ``stop``, which no window will reach any more, each once."""
        while self.finished < stop:
            assert self.sums is not None
            place = self.finished % self.depth
            yield self.sums[:, place] / self.total[place]
            self.sums[:, place] = 0
            self.total[place] = 0
            self.finished += 1


def _write(answer: Tensor, planes: Iterator[Tensor], first: AxisMap, others: Sequence[AxisMap]) -> None:
    """Turn planes of logits, ``(class, height, width)``, into labels on the file's grid, its axes in the same order.

    Probabilities are added where the answer has channels for them.
    """
    ready = first.by_plane()
    needed = {*first.low.tolist(), *first.high.tolist()}
    earlier = torch.empty(0)
    for index, logits in enumerate(planes):
        if index not in needed:
            continue
        plane = logits.softmax(0)
        for dim, other in enumerate(others, 1):
            plane = other.resample(plane, dim)
        for voxel, weight in ready.get(index, ()):
            values = torch.lerp(earlier, plane, weight) if weight else plane
            target = answer[:, voxel, others[0].inside, others[1].inside]
            target[0] = values.argmax(0).to(torch.uint8).cpu()
            if len(target) > 1:
                target[1:] = (values * 255).round().to(torch.uint8).cpu()
        earlier = plane


def match_grids(
    network_affine: np.ndarray,
    network_shape: Sequence[int],
    file_affine: np.ndarray,
    file_shape: Sequence[int],
    device: torch.device | str = "cpu",
) -> list[AxisMap]:
    """Where the file's voxels lie in the network's grid, axis by axis of the latter.

    Args:
        network_affine, file_affine: from voxels to millimetres, 4 x 4.
        network_shape, file_shape: numbers of voxels along the three axes.
        device: of the tensors in the result.

    Raises:
        NotParallelError: if the axes are not parallel.
    """
    matrix = np.linalg.solve(network_affine, file_affine)
    order = [int(axis) for axis in np.abs(matrix[:3, :3]).argmax(1)]
    strays = np.abs(matrix[:3, :3]) * (np.asarray(file_shape) - 1)
    strays[range(3), order] = 0
    stray = float(strays.sum(1).max())
    if sorted(order) != [0, 1, 2] or stray > OFF_AXIS:
        raise NotParallelError(
            f"the axes of the file stray by {stray:.3g} voxels from those of the grid that the network sees, so that "
            "its labels are those of the nearest voxels, not interpolated: the file's affine is sheared"
        )
    maps = []
    for axis, file_axis in enumerate(order):
        positions = matrix[axis, file_axis] * np.arange(file_shape[file_axis]) + matrix[axis, 3]
        maps.append(_match_axis(positions, network_shape[axis], file_axis, device))
    return maps


def _match_axis(positions: np.ndarray, size: int, file_axis: int, device: torch.device | str) -> AxisMap:
    whole = positions.round()
    positions = np.where(np.abs(positions - whole) < WHOLE, whole, positions)
    found = np.flatnonzero((positions > -0.5 - WHOLE) & (positions < size - 0.5 + WHOLE))
    inside = slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)
    positions = positions[inside].clip(0, size - 1)
    low = np.floor(positions)
    return AxisMap(
        file_axis,
        inside,
        torch.as_tensor(low, dtype=torch.long, device=device),
        torch.as_tensor((low + 1).clip(max=size - 1), dtype=torch.long, device=device),
        torch.as_tensor(positions - low, dtype=torch.float32, device=device),
    )


def _first(values: Sequence[Any], axis: int) -> Any:
    """The same three values, that of ``axis`` first."""
    return (values[axis], *(value for index, value in enumerate(values) if index != axis))


def _split(inputs: Tensor) -> list[MetaTensor]:
    """The volumes of a batch, each with its own metadata; one that a program made from a single volume has but one."""
    if isinstance(inputs, MetaTensor) and inputs.is_batch:
        return decollate_batch(inputs, detach=False)
    meta: Mapping[str, Any] = inputs.meta if isinstance(inputs, MetaTensor) else {}
    values = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
    return [MetaTensor(volume, meta=dict(meta)) for volume in values]


def _file_grid(volume: MetaTensor) -> tuple[Any, tuple[int, ...]]:
    """The file's affine, as it was read, and its shape."""
    if "original_affine" not in volume.meta:
        return volume.affine, tuple(volume.shape[1:])
    return volume.meta["original_affine"], tuple(int(size) for size in volume.meta["spatial_shape"])[:3]


def _as_array(affine: Any) -> np.ndarray:
    return torch.as_tensor(affine, dtype=torch.float64, device="cpu").numpy()


def _take_nearest(answer: Tensor, matrix: np.ndarray, background: Tensor) -> Tensor:
    """The answer at the nearest voxels, plane by plane; background outside.

    Args:
        answer: on the network's grid, ``(channel, depth, height, width)``.
        matrix: from the file's voxels to those of the network, 4 x 4.
        background: on the file's grid, of as many channels; written into.
    """
    rows, columns = np.indices(background.shape[2:])
    for index in range(background.shape[1]):
        file = np.stack([np.full(rows.shape, index), rows, columns, np.ones(rows.shape)])
        found = np.einsum("ij,jrc->irc", matrix[:3], file).round().astype(np.int64)
        pairs = zip(found, answer.shape[1:], strict=True)
        inside = np.logical_and.reduce([(at >= 0) & (at < size) for at, size in pairs])
        places: tuple[Any, ...] = (slice(None), *(torch.from_numpy(at[inside]) for at in found))
        background[:, index, torch.from_numpy(inside)] = answer[places]
    return background
