"""``med3d check``: what is wrong with a data set, and what is odd, before it is trained on."""

from __future__ import annotations

import sys
from pathlib import Path

from med3d_nets import errors
from med3d_nets.checking.cases import Options
from med3d_nets.checking.examination import examine
from med3d_nets.checking.lists import find_cases
from med3d_nets.checking.page import render
from med3d_nets.checking.pictures import PictureStore
from med3d_nets.checking.reports import as_json, as_text
from med3d_nets.errors import Med3dError
from med3d_nets.list_files import raise_for
from med3d_nets.weights import write_atomically

__all__ = ["check"]

FOUND, FAILED = 1, 2
"""Exit statuses: errors were found; the check could not run. Warnings alone leave it 0."""


def check(
    data: str,
    *,
    data_root: str = "",
    img_list: str = "",
    val_list: str = "",
    task: str = "segmentation",
    n_seg_classes: int = 0,
    in_channels: int = 1,
    patient_pattern: str = "",
    num_workers: int = 0,
    out: str = "check",
    overwrite: bool = False,
) -> None:
    """Read every case of a data set and report what is wrong with it, and what is odd.

    Examples:
        med3d check /data/Task04_Hippocampus
        med3d check /data/nodules/seg_train.txt --n_seg_classes 2 --patient_pattern "LIDC-IDRI-\\d+" --out nodules
        med3d check /data/adrenalmnist3d.npz --task classification

    Errors, such as truncated files or labels on another grid, stop a training too; warnings, such as outliers, do not.
    The report is printed, and written as check.json and check.html, a page with pictures. The exit status is 0 where no
    error was found, 1 where some were, and 2 if the check itself could not run, as without a list.

    A .npz file is held in memory, as by a training; its part for a test is checked too.

    Args:
        data: a folder, or a list in the folder that its paths are relative to, as med3d train takes them.
        data_root: folder that the list's paths are relative to, if it is another.
        img_list: list of the training cases; by default the folder's.
        val_list: list of the validation cases; by default the one beside that of the training cases.
        task: "segmentation", "classification" or "regression"; of the latter two, images, masks, classes and numbers
            are checked.
        n_seg_classes: number of classes, background included; 0: as dataset.json says, else as the labels tell.
        in_channels: channels of the images.
        patient_pattern: regular expression that finds the patient in the path of an image.
        num_workers: threads, each with one volume in memory (0: up to four).
        out: folder to write to.
        overwrite: whether to replace the report of an earlier check.
    """
    try:
        found = _run(
            str(data),
            str(task),
            {"data_root": data_root, "img_list": img_list, "val_list": val_list, "n_seg_classes": n_seg_classes},
            in_channels,
            patient_pattern,
            num_workers,
            Path(str(out)),
            overwrite,
        )
    except (Med3dError, OSError) as error:
        sys.stdout.flush()
        print(f"error: {errors.explain(error, {}) or error}", file=sys.stderr)
        sys.exit(FAILED)
    if found:
        sys.exit(FOUND)


def _run(
    data: str,
    task: str,
    given: dict[str, str | int],
    in_channels: int,
    patient_pattern: str,
    num_workers: int,
    folder: Path,
    overwrite: bool,
) -> int:
    """Check, print and write; the number of errors."""
    _check_options(given["n_seg_classes"], in_channels, num_workers)
    targets = folder / "check.json", folder / "check.html"
    if there := [str(target) for target in targets if target.exists() and not overwrite]:
        raise Med3dError(f"found {' and '.join(there)}; replace them with --overwrite, or name another folder by --out")
    lists = find_cases(data, task, {k: str(v) for k, v in given.items() if v}, in_channels, patient_pattern)
    options = Options(int(lists.options["n_seg_classes"]), in_channels)
    with PictureStore() as store:
        examination = examine(lists, options, store, num_workers)
        print(as_text(examination), flush=True)
        for target, text in zip(targets, (as_json(examination), render(examination, store)), strict=True):
            write_atomically(target, text)
    print(f"written: {', '.join(map(str, targets))}")
    return examination.errors


def _check_options(n_seg_classes: object, in_channels: object, num_workers: object) -> None:
    problems = []
    for name, value, least in (("in_channels", in_channels, 1), ("num_workers", num_workers, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            problems.append(f"{name}: found {value!r}; expected a whole number of at least {least}")
    if not isinstance(n_seg_classes, int) or isinstance(n_seg_classes, bool) or n_seg_classes < 0 or n_seg_classes == 1:
        problems.append(f"n_seg_classes: found {n_seg_classes!r}; expected a whole number of at least 2, or 0")
    raise_for(problems)
