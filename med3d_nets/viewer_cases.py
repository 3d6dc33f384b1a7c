"""Which images, truths and predictions belong together, from what a user names to look at."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from med3d_nets.checks import reason
from med3d_nets.dicom import is_dicom_file, is_series, name_series, series_in
from med3d_nets.errors import Med3dError
from med3d_nets.formats import SUFFIXES, images_of, is_other_format
from med3d_nets.list_files import raise_for, short_names
from med3d_nets.nnunet import is_layout
from med3d_nets.sources import DESCRIPTION, read_source

__all__ = ["ViewCase", "find_cases"]

TABLE = "metrics.csv"
"""What an evaluation writes: a case a line, with columns such as ``Dice liver``."""
DICE = "Dice "
RECORDS = "cases"
"""Folder of an inference's records, see :mod:`med3d_nets.prediction_store`."""
HOW_TO_PREDICT = (
    "an evaluation keeps no label maps. Predict them, by 'med3d predict IMAGES --output_dir predictions' or "
    "'python -m monai.bundle run inference --config_file configs/inference.json --img_list IMAGES --output_dir "
    "predictions', and add --prediction predictions"
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ViewCase:
    """The files of a case.

    Attributes:
        name: to show.
        image: a volume, or one for each channel.
        truth, prediction: label maps on the image's grid, or empty.
        dice: by the class's name, where an evaluation wrote it.
    """

    name: str
    image: str | Sequence[str]
    truth: str = ""
    prediction: str = ""
    dice: Mapping[str, float] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """Of the image, one or one for each channel."""
        return images_of({"image": self.image})


def find_cases(
    run_or_case: str,
    *,
    label: str = "",
    prediction: str = "",
    images: str = "",
    data_root: str = "",
    postfix: str = "seg",
) -> tuple[list[ViewCase], list[str]]:
    """The cases to look at, and the names of their classes, background first, where they are known.

    An inference's records tell the images of its label maps. Other files belong together by name: ``a.nii.gz`` is the
    image of ``a_seg.nii.gz``. Where several have the same name, the folders that they are in tell.

    Args:
        run_or_case: an image; a folder of predictions; an evaluation's folder, whose ``metrics.csv`` names the images;
            a folder of images; or a source of cases, as training takes it.
        label: the truth: a file for one image, or a folder.
        prediction: likewise, of predictions.
        images: for a folder of predictions, the folder of their images, or a source of cases.
        data_root: folder that a list's paths are relative to; by default the list's own.
        postfix: ends the names of predictions, after ``_``.

    Raises:
        Med3dError: for what is missing, or belongs to several files.
    """
    for option, path in {"": run_or_case, "--label ": label, "--prediction ": prediction, "--images ": images}.items():
        if (path or not option) and not os.path.exists(path):
            raise Med3dError(f"{option}{path}: no such file or folder")
    records = [] if prediction else sorted(Path(run_or_case, RECORDS).rglob("*.json"))
    predicted = bool(records) or (not prediction and _has_predictions(run_or_case, postfix))
    if images and not predicted:
        raise Med3dError(f"--images {images}: goes with a folder of predictions, such as x_{postfix}.nii.gz, alone")
    if os.path.isfile(os.path.join(run_or_case, TABLE)) and not prediction and not predicted:
        raise Med3dError(f"{run_or_case}: {HOW_TO_PREDICT}")
    cases, names = ([], []) if images else _recorded(run_or_case, records)
    if not cases:
        cases, names = _listed(images or run_or_case, data_root, postfix)
        found = _pair(cases, prediction or (run_or_case if predicted else ""), "prediction", postfix)
        cases = [replace(case, prediction=found.get(case.files[0], "")) for case in cases]
        cases = [case for case in cases if case.prediction] if predicted else cases
    truths = _pair(cases, label, "label", postfix)
    titles = short_names([case.files[0] for case in cases])
    return [
        replace(case, truth=truths.get(case.files[0], case.truth), name=_bare(title))
        for case, title in zip(cases, titles, strict=True)
    ], names


def _recorded(folder: str, records: Sequence[Path]) -> tuple[list[ViewCase], list[str]]:
    """What an inference's records say of the label maps that are there; nothing without records.

    Raises:
        Med3dError: naming the images that are no longer where they were.
    """
    cases: list[ViewCase] = []
    names: list[str] = []
    for path in records:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            case = ViewCase("", record["image"], "", os.path.join(folder, record["label_map"]))
            names = [str(name) for name in record["made_with"]["settings"]["class_names"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Med3dError(f"{path}: found no record of an inference ({reason(error)}); name its --images") from error
        cases += [case] if os.path.isfile(case.prediction) else []
    missing = [file for case in cases for file in case.files if not os.path.exists(file)]
    raise_for([f"{file}: found no such file; name the folder where it is now, by --images" for file in missing])
    return cases, names


def _listed(source: str, data_root: str, postfix: str) -> tuple[list[ViewCase], list[str]]:
    """Images of a volume, a folder or a list, with the truths that it names, and the names of classes."""
    table, description = os.path.join(source, TABLE), os.path.join(source, DESCRIPTION)
    if os.path.isfile(table):
        return _of_table(table)
    volumes = list(_volumes(source))
    if os.path.isfile(description) or is_layout(source) or not (volumes or os.path.isdir(source)):
        return _of_source(source, data_root or os.path.dirname(os.path.abspath(source)))
    answers = (f"_{postfix}", "_prob")
    cases = [ViewCase("", path) for path in volumes if path == source or not _stem(path).endswith(answers)]
    if not cases:
        expected = f"volumes, predictions such as x_{postfix}.nii.gz with --images, or an evaluation's {TABLE}"
        raise Med3dError(f"{source}: found no images; expected {expected}")
    return cases, []


def _of_source(path: str, data_root: str) -> tuple[list[ViewCase], list[str]]:
    """Cases of a list or a data set, with the truths if all that are to have one do."""
    problems: list[str] = []
    source = read_source(path, data_root, problems, option="")
    if problems:
        others: list[str] = []
        source = read_source(path, data_root, others, labelled=False, option="")
        raise_for(problems if others else [])
    items = [*source.training, *source.validation, *source.test]
    beside = os.path.join(data_root, DESCRIPTION)
    names = list(source.class_names)
    if not names and os.path.isfile(beside):
        names = list(read_source(beside, data_root, [], labelled=False).class_names)
    if not items:
        raise Med3dError(f"{path}: found no cases; expected at least one")
    return [ViewCase("", item["image"], item.get("label", "")) for item in items], names


def _of_table(path: str) -> tuple[list[ViewCase], list[str]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        columns = [name for name in rows[0] if name.startswith(DICE)]
        scores = [{name.removeprefix(DICE): float(row[name]) for name in columns} for row in rows]
        cases = [ViewCase("", row["case"], dice=dice) for row, dice in zip(rows, scores, strict=True)]
    except (OSError, ValueError, KeyError, IndexError, TypeError, csv.Error) as error:
        raise Med3dError(f"{path}: found no table of cases ({reason(error)}), as an evaluation writes it") from error
    return cases, ["background", *(name.removeprefix(DICE) for name in columns)]


def _pair(cases: Sequence[ViewCase], source: str, option: str, postfix: str) -> dict[str, str]:
    """The label map of each image, or of its first channel, that has one in a folder; or that of the only image.

    Raises:
        Med3dError: where it is not clear which one it is, naming all, or where none has one.
    """
    images = [case.files[0] for case in cases]
    if not source:
        return {}
    if os.path.isfile(source):
        if len(images) > 1:
            raise Med3dError(f"--{option} {source}: found a file for {len(images)} images; expected a folder")
        return {images[0]: source}
    paths = list(_volumes(source))
    if _has_predictions(source, postfix):
        paths = [path for path in paths if _stem(path).endswith(f"_{postfix}")]
    by_name: dict[str, list[str]] = {}
    for image in images:
        by_name.setdefault(name_series(image) if is_dicom_file(image) else _stem(image), []).append(image)
    pairs: dict[str, str] = {}
    problems = []
    unknown = 0
    for path in paths:
        candidates = by_name.get(_stem(path), by_name.get(_stem(path).removesuffix(f"_{postfix}"), []))
        nearest = _nearest(path, candidates)
        if not candidates:
            unknown += 1
        elif nearest is None:
            named = ", ".join(candidates)
            problems.append(f"{path}: found {len(candidates)} images of its name, expected one: {named}")
        elif nearest in pairs:
            problems.append(f"{nearest}: found {pairs[nearest]} and {path} for it, expected one {option}")
        else:
            pairs[nearest] = path
    if unknown and option == "prediction":
        _log.info("%s: %d of %d label maps are left out, as their images are not here", source, unknown, len(paths))
    if not pairs and not problems:
        problems = [f"{source}: found no {option} for any of {len(images)} images, such as {images[0]}"]
    if problems:
        raise Med3dError("\n".join(problems))
    return pairs


def _nearest(path: str, candidates: Sequence[str]) -> str | None:
    """The image whose last folders are those of the label map, or the only one; None where that is not clear."""
    if len(candidates) == 1:
        return candidates[0]
    shared = [_shared(path, image) for image in candidates]
    best = max(shared, default=0)
    return candidates[shared.index(best)] if best and shared.count(best) == 1 else None


def _shared(one: str, other: str) -> int:
    """How many folders two paths have in common, counted from the files."""
    count = 0
    for left, right in zip(reversed(_folders(one)), reversed(_folders(other)), strict=False):
        if left != right:
            break
        count += 1
    return count


def _folders(path: str) -> tuple[str, ...]:
    return PurePath(os.path.abspath(path)).parent.parts


def _has_predictions(folder: str, postfix: str) -> bool:
    return os.path.isdir(folder) and any(_stem(path).endswith(f"_{postfix}") for path in _volumes(folder))


def _volumes(path: str) -> Iterator[str]:
    """Volumes in a folder and those below it, sorted; or the path itself, if it is one.

    Files among the slices of a DICOM series are left out.
    """
    if not os.path.isdir(path):
        yield from [path] if is_other_format(path) or path.lower().endswith(SUFFIXES) else []
        return
    series = series_in(path) if is_series(path) else []
    yield from series
    for name in sorted(os.listdir(path)):
        below = os.path.join(path, name)
        if name.startswith("."):  # such as the "._" files that macOS leaves on other file systems
            continue
        if os.path.isdir(below):
            yield from _volumes(below)
        elif below.lower().endswith(SUFFIXES) and not series:
            yield below


def _stem(path: str) -> str:
    return _bare(PurePath(path).name)


def _bare(path: str) -> str:
    """A path without the suffix of a volume."""
    ends = sorted(SUFFIXES, key=len, reverse=True)
    return next((path[: -len(end)] for end in ends if path.lower().endswith(end)), path)
