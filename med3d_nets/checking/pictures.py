"""Small pictures of cases, kept in a temporary file until a page shows some of them."""

from __future__ import annotations

import io
import tempfile
from threading import Lock
from typing import Any

import numpy as np
from matplotlib import image as images
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["CONTOURS", "PictureStore", "axial", "draw", "middle"]

Array = NDArray[Any]

CONTOURS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#d55e00")
"""Of the classes in turn: colours of Okabe and Ito's palette that stand out from grey."""
EDGE = 160
"""Longest edge of a picture, in pixels."""
_SHORTEST = 16
_QUALITY = 78


class PictureStore:
    """Pictures by number, in a file without a name that is gone when the store is closed."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        self._places: list[tuple[int, int]] = []
        self._lock = Lock()

    def add(self, content: bytes) -> int:
        """Keep a picture; its number. Threads may call it."""
        with self._lock:
            self._places.append((self._file.seek(0, io.SEEK_END), len(content)))
            self._file.write(content)
            return len(self._places) - 1

    def get(self, number: int) -> bytes:
        """The picture of a number."""
        with self._lock:
            start, length = self._places[number]
            self._file.seek(start)
            return self._file.read(length)

    def close(self) -> None:
        """Forget all pictures."""
        self._file.close()

    def __enter__(self) -> PictureStore:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


def middle(label: Array) -> int | None:
    """The axial slice through the middle of the foreground, the median of its voxels; None if there is none.

    Args:
        label: ``(x, y, z)`` in RAS order.
    """
    counts = np.array([np.count_nonzero(label[..., index]) for index in range(label.shape[2])])
    total = counts.sum()
    return int(np.searchsorted(counts.cumsum(), (total + 1) // 2)) if total else None


def axial(volume: Array, index: int) -> Array:
    """An axial slice as it is drawn: the patient's right at the left, the front at the top.

    Args:
        volume: ``(x, y, z)`` in RAS order.
        index: along z.
    """
    return np.array(volume[:, :, index].T[::-1, ::-1])


def draw(picture: Array, label: Array | None, spacing: tuple[float, float]) -> bytes:
    """A JPEG of a slice with the outlines of its classes.

    Args:
        picture: ``(row, column)``.
        label: classes on the same grid, if there is a label.
        spacing: of rows and columns, in mm.
    """
    lengths = np.array(picture.shape) * np.array(spacing)
    pixels = np.maximum(np.round(EDGE * lengths / lengths.max()), _SHORTEST).astype(int)
    # Centres of the pixels in voxels of the slice.
    places = np.meshgrid(
        *((np.arange(n) + 0.5) * size / n - 0.5 for n, size in zip(pixels, picture.shape, strict=True)), indexing="ij"
    )
    grey = ndimage.map_coordinates(np.asarray(picture, np.float32), places, order=1, mode="nearest")
    low, high = np.percentile(grey, (0.5, 99.5))
    grey = np.clip((grey - low) / ((high - low) or 1), 0, 1)
    colours = np.repeat((255 * grey).astype(np.uint8)[..., None], 3, axis=2)
    if label is not None:
        classes = ndimage.map_coordinates(label.astype(np.int32), places, order=0, mode="nearest")
        # An outline is what belongs to a class and has another value among its neighbours.
        edge = (classes > 0) & (ndimage.minimum_filter(classes, 3) < ndimage.maximum_filter(classes, 3))
        palette = (255 * np.array([to_rgb(colour) for colour in CONTOURS])).astype(np.uint8)
        colours[edge] = palette[(classes[edge] - 1) % len(palette)]
    buffer = io.BytesIO()
    images.imsave(buffer, colours, format="jpeg", pil_kwargs={"quality": _QUALITY, "subsampling": 0})
    return buffer.getvalue()
