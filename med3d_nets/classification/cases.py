"""Checked lists of volumes with a class or a number each: to train on, to evaluate and to infer.

Items are dictionaries for MONAI's data sets:

=============  =======================================================================================================
``image``      absolute path of a volume (:data:`med3d_nets.formats.WANTED`), or a reference into a ``.npz`` file
               (:mod:`~med3d_nets.classification.arrays`)
``label``      index of the class, or a number; of images without a task, what their list says, if it is asked for
``patient``    name, "" where it is not known
``mask``       absolute path of a volume on the image's grid, if the list gives one: the region of interest
``center``     ``[x, y, z]`` of the region of interest in world coordinates (mm, RAS+), if the list gives them
``size_mm``    length of the edges of the box around the centre
=============  =======================================================================================================

Lists are read by :mod:`~med3d_nets.classification.tables`. Every volume is read once before the work begins, and all
problems that are found come in one :class:`~med3d_nets.errors.Med3dError`, one a line.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, TypeAlias

from med3d_nets.classification.arrays import split_reference
from med3d_nets.classification.case_checks import check_volumes, repeated, shared, warn_of_mixture
from med3d_nets.classification.classes import (
    absent_classes,
    class_problems,
    encode,
    find_names,
    name_problems,
    number_problems,
    warn_of_absent,
    warn_of_single,
)
from med3d_nets.classification.division import divide, division_problems, hold_out, sort_items, tell_of_unknown
from med3d_nets.classification.tables import (
    SECTIONS,
    Item,
    Labels,
    Row,
    Table,
    has_section,
    read_table,
    without_point,
)
from med3d_nets.dicom import patient_of, series_path
from med3d_nets.dicom_folders import images_in
from med3d_nets.folds import fold_problems, name_patients
from med3d_nets.formats import NIFTI_SUFFIXES, is_other_format
from med3d_nets.list_files import find_path, raise_for

__all__ = ["load_evaluation_cases", "load_images", "load_lists"]

Path: TypeAlias = str | os.PathLike[str]

_log = logging.getLogger(__name__)


def load_lists(
    data_root: Path,
    img_list: Path,
    val_list: Path | None = "",
    *,
    task: str = "classification",
    class_names: Sequence[str] = (),
    in_channels: int = 1,
    val_fraction: float = 0.2,
    folds: int = 0,
    fold: int = -1,
    seed: int = 1,
    patient_pattern: str = "",
    num_workers: int = 0,
) -> dict[str, Any]:
    """Lists of training and validation cases whose files have been read and checked.

    Without a ``val_list``, the validation cases are the ``val_`` part of a ``.npz`` file where it has one, else a share
    of the cases (:func:`~med3d_nets.classification.division.hold_out`). With ``folds``, they are one part of
    ``img_list`` (:func:`~med3d_nets.classification.division.divide`), of whose ``.npz`` file the ``train_`` part alone
    is divided; ``val_list`` and the other parts are left for a test. Cases of one patient stay together.

    Args:
        data_root: folder that the paths in a list are relative to ("": the working directory).
        img_list: text list (``image class`` a line), table in CSV, or ``.npz`` file; absolute, or relative to
            ``data_root``, else to the working directory.
        val_list: such a list of the validation cases; "" or None where there is none.
        task: one of :data:`~med3d_nets.classification.settings.TASKS`.
        class_names: of the classes in the order of their indices; empty: those of ``img_list``, whole numbers in their
            order, anything else sorted. Of a regression, the number's name; empty: that of its column in a CSV, else
            "value".
        in_channels: 1 for images of ``(x, y, z)`` or ``(x, y, z, 1)``, else images are ``(x, y, z, in_channels)``.
        val_fraction: share of each class's cases, or patients, to hold out.
        folds: number of parts that ``img_list`` is divided into; 0: none.
        fold: the part for validation, from 0.
        seed: of the draw.
        patient_pattern: see :func:`~med3d_nets.folds.name_patients`; for the cases that have no patient in the list.
        num_workers: threads that read files, each with one volume in memory (0: up to four).

    Returns:
        Items as "training", "validation" and "planning", and "class_names". Plans may look at the cases of "planning":
        all of ``img_list`` with ``folds``, so that the folds share one plan, else the training cases.

    Raises:
        Med3dError: with every problem found.
    """
    wrong = [*fold_problems(folds, fold, patient_pattern, choose=True), *name_problems(task, class_names)]
    _check_options(in_channels, wrong, val_fraction=val_fraction)
    problems: list[str] = []
    table = read_table("img_list", img_list, data_root, problems, ["train"])
    others = Table()
    if val_list and not folds:
        others = read_table("val_list", val_list, data_root, problems, ["val", "train"])
    elif not folds and has_section(img_list, data_root, "val"):
        others = read_table("img_list", img_list, data_root, problems, ["val"])
    names = [str(name) for name in class_names] or find_names(table, task)
    problems += [] if problems else number_problems(task, names, img_list)
    training, validation = (
        _make_items(rows, task, names, data_root, patient_pattern, problems) for rows in (table.rows, others.rows)
    )
    if not problems:  # a case that was left out above may be the only one of its class
        problems += class_problems(training, task, names, img_list)
    if not problems and not validation:
        problems += division_problems(training, folds, task, names, img_list)
    problems += shared(training, validation)
    problems += check_volumes([*training, *validation], in_channels, num_workers)
    raise_for(problems)
    if not validation:
        tell_of_unknown(training, "those of one patient may lie on both sides")
    if validation:
        planning = training
    elif folds:
        _log.info("fold %d of %d of %s; val_list is left out, for a test", fold, folds, img_list)
        planning = sort_items(training)
        parts = divide(training, folds, seed, task)
        training = sort_items(item for number, part in enumerate(parts) if number != fold for item in part)
        validation = parts[fold]
    else:
        training, validation = hold_out(training, val_fraction, seed, task)
        planning = training
    if task == "classification" and (absent := absent_classes(training, names)):
        found = f"found all cases of {', '.join(absent)} held out"
        raise_for([f"{img_list}: {found}; expected some left to train on: choose another seed"])
    warn_of_mixture([*training, *validation])
    warn_of_single(training, task, names)
    warn_of_absent(validation, task, names)
    return {"training": training, "validation": validation, "planning": planning, "class_names": names}


def load_evaluation_cases(
    data_root: Path,
    img_list: Path,
    val_list: Path,
    *,
    task: str,
    class_names: Sequence[str],
    in_channels: int = 1,
    section: str = "",
    folds: int = 0,
    fold: int = -1,
    seed: int = 1,
    patient_pattern: str = "",
    num_workers: int = 0,
) -> list[Item]:
    """Labelled cases to evaluate, whose files have been read and checked: ``val_list``, or what a fold has not seen.

    The other arguments, items and errors are those of :func:`load_lists`. With a ``fold``, the cases are those that its
    training held out of ``img_list``. With ``folds`` alone, for all networks together, they are those of ``val_list``,
    none of whose images and patients may be in ``img_list``.

    Args:
        class_names: of the network, from its settings.
        section: part of a ``.npz`` file that is ``val_list``: "train", "val" or "test"; "": "test" if it has labels,
            else "val".
    """
    wrong = [*fold_problems(folds, fold, patient_pattern), *name_problems(task, class_names)]
    if task == "classification" and not class_names:
        wrong.append("class_names: found none; expected those of the network")
    if fold < 0 and not val_list:
        wrong.append(
            "val_list: found none; expected a list of cases that had no part in the training, or the same .npz file, "
            "of which --section names the part"
        )
    _check_options(in_channels, wrong, section)
    names = [str(name) for name in class_names]
    problems: list[str] = []
    divided, rows = Table(), Table()
    if folds:
        divided = read_table("img_list", img_list, data_root, problems, ["train"])
    if fold < 0:
        rows = read_table("val_list", val_list, data_root, problems, ["test", "val"], section=section)
    seen, cases = (
        _make_items(table.rows, task, names, data_root, patient_pattern, problems) for table in (divided, rows)
    )
    if fold >= 0:
        problems += [] if problems else division_problems(seen, folds, task, names, img_list)
        raise_for(problems)
        cases = divide(seen, folds, seed, task)[fold]
    problems += shared(seen, cases) if fold < 0 else []
    problems += check_volumes(cases, in_channels, num_workers)
    raise_for(problems)
    warn_of_mixture(cases)
    warn_of_absent(cases, task, names)
    effect = "intervals take each for a patient of its own, and those that were trained on are not noticed"
    tell_of_unknown(cases, effect, logging.INFO)
    return cases


def load_images(
    source: Path | Sequence[Path],
    data_root: Path = "",
    in_channels: int = 1,
    *,
    section: str = "",
    labels: bool = False,
    num_workers: int = 0,
) -> list[Item]:
    """Images for inference or features, read and checked.

    An image with one value alone is logged as a warning.

    Args:
        source: a volume (:data:`med3d_nets.formats.WANTED`), a reference into a ``.npz`` file, a folder with volumes
            directly in it, a list of any kind that :func:`load_lists` takes, without labels too, or a sequence of
            these. Relative paths are looked for in ``data_root``, then in the working directory.
        data_root, in_channels, num_workers: as for :func:`load_lists`.
        section: part of a ``.npz`` file, "train", "val" or "test"; "": "test", else the only one that it has.
        labels: whether items get a "label", as their list writes it (whole numbers without a point), "" where there is
            none. Otherwise, those that a list may have are left alone.

    Returns:
        Items, without "label" unless it is asked for.

    Raises:
        Med3dError: with every problem found.
    """
    _check_options(in_channels, [], section)
    problems: list[str] = []
    sources = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    if not sources:
        problems.append("source: found an empty list; expected at least one image")
    items = [item for one in sources for item in _find_images(one, data_root, section, labels, problems)]
    problems += repeated(items)
    problems += check_volumes(items, in_channels, num_workers, may_be_constant=True)
    raise_for(problems)
    return items


def _find_images(source: Path, data_root: Path, section: str, labels: bool, problems: list[str]) -> list[Item]:
    """Items of one file, folder or list."""
    reference = split_reference(os.fspath(source))
    found = find_path("source", reference[0] if reference else source, data_root, problems)
    if found is None:
        return []
    if reference:
        images = [found + os.fspath(source)[len(reference[0]) :]]
    elif os.path.isdir(found):
        images = images_in(found, problems)
    elif found.lower().endswith(NIFTI_SUFFIXES) or is_other_format(found):
        images = [series_path(found)]
    else:
        kind: Labels = "kept" if labels else "ignored"
        table = read_table("source", found, data_root, problems, ["test"], section=section, labels=kind)
        return [{**row.item, "label": without_point(row.label)} if labels else row.item for row in table.rows]
    return [{"image": image, "patient": "", **({"label": ""} if labels else {})} for image in images]


def _make_items(
    rows: Sequence[Row], task: str, names: Sequence[str], data_root: Path, pattern: str, problems: list[str]
) -> list[Item]:
    """Items of one list with labels and, where a pattern finds them, patients."""
    items = encode(rows, task, names, problems)
    unknown = [item for item in items if not item["patient"]]
    if pattern and unknown:
        for item, name in zip(unknown, name_patients(unknown, data_root, pattern, problems), strict=True):
            item["patient"] = name
    for item in items:
        if not item["patient"]:
            item["patient"] = patient_of(item["image"])
    problems += repeated(items, names if task == "classification" else ())
    return items


def _check_options(in_channels: int, problems: Sequence[str], section: str = "", val_fraction: float = 0.5) -> None:
    problems = list(problems)
    if not isinstance(in_channels, int) or isinstance(in_channels, bool) or in_channels < 1:
        problems.append(f"in_channels: found {in_channels!r}; expected a whole number of at least 1")
    if not isinstance(val_fraction, (int, float)) or not 0 < val_fraction < 1:
        problems.append(f"val_fraction: found {val_fraction!r}; expected a number between 0 and 1")
    if section not in ("", *SECTIONS):
        problems.append(f"section: found {section!r}; expected {', '.join(SECTIONS)} or none")
    raise_for(problems)
