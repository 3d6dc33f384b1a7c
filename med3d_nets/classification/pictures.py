"""Which cases of an evaluation a report shows in pictures, and the slices of them, with what the network looked at.

Which cases are the most wrong is known at the end alone, and to explain one costs a pass through the network and back:
the volumes of the most wrong so far are kept, and those that are shown are explained at the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from med3d_nets.classification.page import CasePrediction, Slices, most_wrong
from med3d_nets.classification.volumes import name_region
from med3d_nets.errors import Med3dError
from med3d_nets.report_slices import array_axis, cut_slice

__all__ = ["CasePictures", "Explain", "choose_cases", "cut_axial"]

Explain: TypeAlias = Callable[[Mapping[Any, Any]], Mapping[Any, Any]]
"""Adds "saliency", ``(1, depth, height, width)``, to a case with "image" and "pred", as
:class:`~med3d_nets.classification.saliency.Saliencyd` does."""

AXIAL = 2  # world axis across the plane


def choose_cases(cases: Sequence[Mapping[Any, Any]], names: str | Sequence[str]) -> list[str]:
    """The cases that a user names, as :func:`~med3d_nets.classification.volumes.name_case` calls them.

    A name is an image's path, relative to any folder above it, or what ``predictions.csv`` calls the case. Of an image
    with several regions all are chosen, unless the name tells one.

    Args:
        cases: items of :func:`~med3d_nets.classification.cases.load_evaluation_cases`.
        names: the option ``shown_cases``; empty for none.

    Returns:
        The cases in the order of their names, each once.

    Raises:
        Med3dError: if the option is no list of names; or with each name that no case has, or several images.
    """
    wanted = [names] if names and isinstance(names, str) else names
    if not isinstance(wanted, Sequence) or not all(isinstance(name, str) and name for name in wanted):
        raise Med3dError(f"shown_cases is {names!r}, expected images' paths in a list, such as ['images/a.nii.gz']")
    images = {_name(case): str(case["image"]) for case in cases}
    chosen: list[str] = []
    problems = []
    for name in wanted:
        found = {case: image for case, image in images.items() if _is_end(case, name) or _is_end(image, name)}
        several = list(dict.fromkeys(found.values()))
        chosen += found
        if not found:
            expected = f"one of the {len(cases)} to evaluate, such as {os.path.basename(cases[0]['image'])}"
            problems.append(f"found no case '{name}'; expected {expected}")
        elif len(several) > 1:
            example = f"{len(several)} images, such as {several[0]} and {several[1]}"
            problems.append(f"found '{name}' at the end of {example}; expected one: give more of its path")
    if problems:
        raise Med3dError(f"shown_cases: {'; '.join(problems)}")
    return list(dict.fromkeys(chosen))


class CasePictures:
    """Keeps the volumes of the cases that may be shown, and cuts slices of those that are.

    Args:
        n_worst: cases to keep, of those that are the most wrong.
        chosen: cases to keep whatever their loss, by name; each takes the memory of its volume.
        explain: adds the saliency of a case, or None for slices without.
    """

    def __init__(self, n_worst: int, chosen: Sequence[str] = (), explain: Explain | None = None) -> None:
        self.n_worst = n_worst
        self.chosen = list(chosen)
        self.explain = explain
        self.kept: dict[str, tuple[CasePrediction, MetaTensor]] = {}

    def keep(self, case: CasePrediction, image: MetaTensor) -> None:
        """Keep a case, and no more of the others than before.

        Args:
            case: that was predicted.
            image: what the network saw of it, ``(channel, depth, height, width)``.
        """
        self.kept[case.file] = case, image.clone()  # a view would keep its whole batch
        worst = self.shown([each for each, _ in self.kept.values()])
        self.kept = {file: pair for file, pair in self.kept.items() if file in worst}

    def shown(self, cases: Sequence[CasePrediction]) -> set[str]:
        """Names of the cases that are shown: the most wrong ones of these, and those that were chosen."""
        return {case.file for case in most_wrong(cases, self.n_worst)} | set(self.chosen)

    def cut(self, files: Collection[str]) -> list[tuple[str, Slices]]:
        """Names and slices of those kept that are among these."""
        return [(file, self._cut(case, image)) for file, (case, image) in self.kept.items() if file in files]

    def _cut(self, case: CasePrediction, image: MetaTensor) -> Slices:
        if self.explain is None:
            return cut_axial(image)
        return cut_axial(image, self.explain({"image": image, "pred": torch.tensor(case.logits)})["saliency"])


def cut_axial(image: MetaTensor, saliency: Tensor | None = None) -> Slices:
    """The axial slice with the largest sum of saliency; through the middle where there is none.

    Slices of one value alone are left out: what a volume is padded with can be salient too, but shows nothing.

    Args:
        image: ``(channel, depth, height, width)``, of which the first channel is shown.
        saliency: ``(1, depth, height, width)``, 0 or more, or None.
    """
    affine = np.asarray(image.affine.cpu(), float)
    across = array_axis(affine, AXIAL)
    index, colours = image.shape[1 + across] // 2, None
    if saliency is not None:
        volume = torch.as_tensor(saliency)[0]
        sums = volume.movedim(across, 0).flatten(1).sum(dim=1)
        values = image.as_tensor()[0].movedim(across, 0).flatten(1).cpu()
        sums = sums * (values.amax(dim=1) > values.amin(dim=1))
        index = int(sums.argmax()) if sums.any() else index
        colours = cut_slice(volume, affine, AXIAL, index).astype(np.float32)
    picture = cut_slice(image.as_tensor()[0], affine, AXIAL, index).astype(np.float32)
    sizes = nibabel.affines.voxel_sizes(affine)
    columns, rows = (float(sizes[array_axis(affine, world)]) for world in (0, 1))
    return picture, colours, rows / columns if rows > 0 and columns > 0 else 1.0


def _name(case: Mapping[Any, Any]) -> str:
    """As ``name_case`` calls it once it has been read."""
    region = name_region(case, str(case["image"]))
    return f"{case['image']} [{region}]" if region else str(case["image"])


def _is_end(path: str, name: str) -> bool:
    return path == os.path.abspath(name) or f"{os.sep}{path}".endswith(f"{os.sep}{os.path.normpath(name)}")
