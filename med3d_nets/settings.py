"""``models/model.json``: what a trained network was trained with, and inference must agree with."""

from __future__ import annotations

import json
import math
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from med3d_nets.errors import Med3dError

__all__ = ["FOUND_OUT", "OF_A_FOLD", "Settings", "check_settings", "name_classes", "read_settings", "versions"]

RECIPES = ("whole", "patch", "region")
"""How volumes become what the network sees."""

MOST_CLASSES = 256

FORMAT = 1
"""Version of the file's layout."""


ADDED = ("spacing", "intensity", "flip_axes", "largest_component")
"""Settings that the first version of the package did not write."""

FOUND_OUT = ("pretrained", "largest_component", "temperature")
"""Settings that a training finds out, as opposed to those that it is given or planned with."""

OF_A_FOLD = (*FOUND_OUT, "target")
"""Settings in which folds that answer together may differ."""

LEFT_OPEN: Mapping[str, Any] = {"class_names": [], "spacing": [], "input_size": [], "intensity": "auto"}
"""Options that leave a setting to the training."""


@dataclass(frozen=True)
class Settings:
    """Settings of a trained network.

    Attributes:
        variant: name of the variant, see :mod:`med3d_nets.variants`.
        head: kind of head.
        recipe: ``"whole"``: crop to what is not background, resize; or ``"patch"``: bring to one orientation and
            spacing, predict patch by patch. See the bundle's documentation.
        in_channels: channels of the input volume.
        class_names: names of the classes, background first.
        input_size: depth, height and width of what the network sees, in voxels: what volumes are resized to, or the
            ``patch`` recipe's window.
        fill_empty_with_noise: whether empty voxels were filled with noise.
        pretrained: file, digest and tensors of the pretrained weights, or None if trained from scratch.
        spacing: of the ``patch`` recipe, in mm along the axes of RAS orientation.
        intensity: of the ``patch`` recipe for CT: ``lower`` and ``upper`` bounds, ``mean`` and ``std``, in HU. None:
            each volume is normalised by its own.
        flip_axes: of the ``patch`` recipe: axes of RAS orientation along which training flipped volumes at random, so
            that a prediction may be averaged over flips.
        largest_component: classes of which a prediction keeps the largest connected component alone, chosen on the
            validation cases.
    """

    variant: str
    head: str
    recipe: str
    in_channels: int
    class_names: Sequence[str]
    input_size: Sequence[int]
    fill_empty_with_noise: bool = False
    pretrained: Mapping[str, Any] | None = None
    spacing: Sequence[float] = field(default_factory=list)
    intensity: Mapping[str, float] | None = None
    flip_axes: Sequence[int] = field(default_factory=list)
    largest_component: Sequence[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise Med3dError(f"recipe is {self.recipe!r}, expected {' or '.join(RECIPES)}")
        wanted = 0 if self.recipe == "whole" else 3
        if len(self.spacing) != wanted or not all(isinstance(mm, (int, float)) and mm > 0 for mm in self.spacing):
            raise Med3dError(f"spacing is {self.spacing!r}, expected {wanted} numbers of mm for recipe {self.recipe!r}")
        if self.recipe == "patch" and len(self.class_names) > MOST_CLASSES:
            raise Med3dError(
                f"{len(self.class_names)} classes, expected at most {MOST_CLASSES}, as many as the bytes of a label map"
            )
        _check_numbers("flip_axes", self.flip_axes, range(3))
        _check_numbers("largest_component", self.largest_component, range(1, len(self.class_names)))
        names = ("input_D", "input_H", "input_W")
        if not isinstance(self.input_size, Sequence) or len(self.input_size) != len(names):
            raise Med3dError(f"input_size is {self.input_size!r}, expected {', '.join(names)}")
        for name, value in zip(names, self.input_size, strict=True):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise Med3dError(f"{name} is {value!r}, expected a whole number of voxels, 1 or more")

    @property
    def n_seg_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.class_names)

    def to_json(self, **record: Any) -> str:
        """The file's text: settings, versions and a record of the training."""
        content = {"format": FORMAT, **asdict(self), **record, "versions": versions()}
        return json.dumps(content, indent=4) + "\n"


Kind = TypeVar("Kind", bound=Settings)


def read_settings(path: str | os.PathLike[str], kind: type[Kind] = Settings) -> Kind:  # type: ignore[assignment]
    """Read ``model.json``.

    Args:
        path: the file.
        kind: what its settings are of.

    Raises:
        Med3dError: if the file is missing, unreadable, of another format, or lacks a setting or has a wrong one.
    """
    path = Path(path)
    if not path.is_file():
        raise Med3dError(
            f"{path}: no such file. Training writes it beside model.pt; "
            "if the network was trained elsewhere, give its folder as --ckpt_dir"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Med3dError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise Med3dError(f"{path}: format {found!r}, expected {FORMAT}")
    names = [entry.name for entry in fields(kind)]
    missing = [name for name in names if name not in content and name not in ADDED]
    if missing:
        raise Med3dError(f"{path}: lacks {', '.join(missing)}")
    try:
        return kind(**{name: content[name] for name in names if name in content})
    except Med3dError as error:
        raise Med3dError(f"{path}: {error}") from error


def check_settings(settings: Settings, source: str, **given: Any) -> None:
    """Compare what a user gave, or a checkpoint holds, with the settings of the trained network.

    Args:
        settings: those of the trained network.
        source: where they were read, for the message.
        given: values by name, for any attribute of :class:`Settings`; or as options that a training takes: those of
            :data:`LEFT_OPEN`, and "ct", "mr" or ``[lower, upper]`` in HU as an intensity.

    Raises:
        Med3dError: naming both values of each setting that differs.
    """
    wrong = []
    for name, value in given.items():
        value, expected = (
            list(one) if isinstance(one, Sequence) and not isinstance(one, str) else one
            for one in (value, getattr(settings, name))
        )
        left_open = name in LEFT_OPEN and value == LEFT_OPEN[name]
        agrees = _same_intensity if name == "intensity" else operator.eq
        if not left_open and not agrees(value, expected):
            wrong.append(f"{name} is {value!r}, but {source} says {expected!r}")
    if wrong:
        raise Med3dError("; ".join(wrong))


def _same_intensity(given: Any, known: Any) -> bool:
    if isinstance(given, str):
        return given == ("ct" if known else "mr")
    if isinstance(given, list) and len(given) == 2 and known:
        return all(
            isinstance(one, (int, float)) and math.isclose(one, known[name], rel_tol=1e-5)  # the plan rounds
            for one, name in zip(given, ("lower", "upper"), strict=True)
        )
    return bool(given == known)


def name_classes(class_names: Sequence[str], n_seg_classes: int, data_root: str = "") -> list[str]:
    """Names for the classes, background first.

    Args:
        class_names: names given, or empty: then those of ``dataset.json`` in the data's folder if it names as many, and
            otherwise ``class 1`` and so on.
        n_seg_classes: number of classes, background included.
        data_root: folder of the data.

    Raises:
        Med3dError: if the number of names, or of classes, is wrong.
    """
    if isinstance(n_seg_classes, bool) or not isinstance(n_seg_classes, int) or n_seg_classes < 2:
        raise Med3dError(f"n_seg_classes is {n_seg_classes!r}, expected a whole number above 1 (background included)")
    if class_names:
        if len(class_names) != n_seg_classes:
            raise Med3dError(f"class_names has {len(class_names)} names, expected n_seg_classes={n_seg_classes}")
        return [str(name) for name in class_names]
    try:
        labels = json.loads((Path(data_root) / "dataset.json").read_text(encoding="utf-8"))["labels"]
        names = [str(labels[str(index)]) for index in range(n_seg_classes)]
        if len(labels) == n_seg_classes:
            return names
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no Decathlon description there: names are a courtesy
    return ["background", *(f"class {index}" for index in range(1, n_seg_classes))]


def versions() -> dict[str, str]:
    """Versions of this package and of those whose behaviour the weights depend on."""
    import monai
    import torch

    from med3d_nets import __version__

    return {"med3d_nets": __version__, "monai": monai.__version__, "torch": torch.__version__}


def _check_numbers(name: str, values: Any, known: range) -> None:
    if not isinstance(values, Sequence) or isinstance(values, str) or any(value not in known for value in values):
        raise Med3dError(f"{name} is {values!r}, expected a list of numbers from {known.start} to {known.stop - 1}")
