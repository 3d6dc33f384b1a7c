"""Findings that only several cases together show."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from med3d_nets.checking.cases import Record
from med3d_nets.checking.findings import Finding
from med3d_nets.checking.measures import ImageFacts
from med3d_nets.checking.outliers import SHARE, Outlier, find_outliers
from med3d_nets.checking.sides import mirrored
from med3d_nets.classification.arrays import split_reference

__all__ = ["compare"]

AXES = ("from left to right", "from back to front", "from foot to head")
INTENSITIES = ("0.5th percentile", "median", "99.5th percentile")
_SHOWN = 3

Quantities = dict[str, tuple[Sequence[float], float | None]]
"""By name: the number of each case, and the least distance that counts."""


def compare(records: Sequence[Record], names: Sequence[str], n_seg_classes: int) -> list[Finding]:
    """Duplicates, mixed orientations, sides that may be swapped, labels that are empty, and outliers.

    Args:
        records: of all cases.
        names: short name of each.
        n_seg_classes: number of classes, background included; 0: not given.
    """
    return [
        *_labels(records, names, n_seg_classes),
        *_duplicates(records, names),
        *_mirrored(records, names),
        *_orientations(records, names),
        *_outliers(records, names),
    ]


def _finding(kind: str, record: Record, name: str, found: str, expected: str, file: str = "") -> Finding:
    return Finding(kind, record.case.part, name, file or record.case.images[0], found, expected)


def _labels(records: Sequence[Record], names: Sequence[str], n_seg_classes: int) -> Iterator[Finding]:
    """Labels without foreground, and classes that none has."""
    present = set[int]()
    labelled = [(record, name) for record, name in zip(records, names, strict=True) if record.label is not None]
    for record, name in labelled:
        assert record.label is not None
        present.update(record.label.voxels)
        if not record.label.volumes and not record.case.masked:
            yield _finding("empty_label", record, name, "0 in every voxel", "foreground", record.case.label)
    absent = sorted(set(range(1, n_seg_classes)) - present) if labelled else []
    if absent:
        named = ", ".join(map(str, absent[:_SHOWN])) + f" and {len(absent) - _SHOWN} more" * (len(absent) > _SHOWN)
        yield Finding("absent_class", "", "", "", f"no label with class {named}", f"n_seg_classes={n_seg_classes}")


def _duplicates(records: Sequence[Record], names: Sequence[str]) -> Iterator[Finding]:
    """Images whose voxels another has too."""
    seen: dict[tuple[str, ...], int] = {}
    for place, record in enumerate(records):
        contents = tuple(image.content for image in record.images if image is not None)
        if len(contents) < len(record.case.images):
            continue
        first = seen.setdefault(contents, place)
        if first != place and records[first].case.images != record.case.images:
            other = records[first].case
            where = f"the voxels of {other.images[0]}, which is for {other.part}"
            yield _finding("duplicate", record, names[place], where, "voxels of its own")


def _mirrored(records: Sequence[Record], names: Sequence[str]) -> Iterator[Finding]:
    """Cases that lie mirrored; how those of arrays lie, nobody knows."""
    known = [
        (place, record.images[0])
        for place, record in enumerate(records)
        if record.images and record.images[0] and not split_reference(record.case.images[0])
    ]
    images = [image for _, image in known if image is not None]
    labels = [records[place].label for place, _ in known]
    reasons = mirrored(
        [image.geometry.right_handed for image in images],
        [image.sides for image in images],
        [label.sides if label is not None else None for label in labels],
    )
    for index, reason in reasons.items():
        place = known[index][0]
        yield _finding("mirrored", records[place], names[place], reason, "right and left as in the other cases")


def _orientations(records: Sequence[Record], names: Sequence[str]) -> Iterator[Finding]:
    """Images whose axes point elsewhere than those of most."""
    known = {place: image for place, record in enumerate(records) for image in record.images[:1] if image is not None}
    codes = Counter(image.geometry.codes for image in known.values())
    if len(codes) < 2:
        return
    (most, number), *_ = codes.most_common()
    for place, image in known.items():
        if image.geometry.codes != most:
            expected = f"{most}, as of {number} of {len(known)} images"
            yield _finding("orientation", records[place], names[place], f"axes {image.geometry.codes}", expected)


def _outliers(records: Sequence[Record], names: Sequence[str]) -> Iterator[Finding]:
    """Cases that are far from the others; one finding for a case and kind, with what is furthest."""
    for kind, quantities in _quantities(records).items():
        far: dict[int, list[tuple[str, Outlier]]] = {}
        for name, (values, margin) in quantities.items():
            for outlier in find_outliers(values, margin):
                far.setdefault(outlier.place, []).append((name, outlier))
        for place, found in sorted(far.items()):
            quantity, outlier = max(found, key=lambda item: item[1].distance)
            others = [name for name, _ in found if name != quantity]
            text = f"{quantity}: {_short(outlier.value)}" + f" (also far: {', '.join(others)})" * bool(others)
            usual = f"{_short(outlier.low)} to {_short(outlier.high)}, around the median {_short(outlier.median)}"
            file = records[place].case.label if kind == "outlier_label" else ""
            yield _finding(kind, records[place], names[place], text, usual, file)


def _short(value: float) -> str:
    """A number to about four digits, without an exponent where it is large."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _quantities(records: Sequence[Record]) -> dict[str, Quantities]:
    """What is compared, by the kind of finding."""
    sizes, spacings = Quantities(), Quantities()
    for axis, words in enumerate(AXES):
        of_axis = [
            (image.geometry.size[axis], image.geometry.spacing[axis]) if image is not None else (math.nan, math.nan)
            for image in map(_first, records)
        ]
        sizes[f"size in mm {words}"] = [size for size, _ in of_axis], None
        spacings[f"spacing in mm {words}"] = [spacing for _, spacing in of_axis], None
    labels = [record.label.volumes if record.label is not None else {} for record in records]
    classes = sorted(set[int]().union(*labels))
    volumes: Quantities = {
        f"mL of class {value}": ([each.get(value, math.nan) for each in labels], None) for value in classes
    }
    return {
        "outlier_size": sizes,
        "outlier_spacing": spacings,
        "outlier_intensity": _intensities(records),
        "outlier_label": volumes,
    }


def _intensities(records: Sequence[Record]) -> Quantities:
    """Mean and percentiles of each channel that is a file."""
    found = Quantities()
    for channel in range(max((len(record.images) for record in records), default=0)):
        images = [record.images[channel] if channel < len(record.images) else None for record in records]
        rows = [(*image.percentiles, image.mean) if image is not None else (math.nan,) * 4 for image in images]
        columns = np.array(rows)
        if not np.isfinite(columns).any():
            continue
        margin = SHARE * float(np.nanmedian(columns[:, 2] - columns[:, 0]))
        suffix = f" of channel {channel + 1}" if channel else ""
        for name, column in zip((*INTENSITIES, "mean"), columns.T, strict=True):
            found[f"{name}{suffix}"] = column.tolist(), margin
    return found


def _first(record: Record) -> ImageFacts | None:
    return record.images[0] if record.images else None
