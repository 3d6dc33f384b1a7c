"""``fold.json``: which cases a fold's network has not seen, and by which settings it was trained."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ignite import distributed as idist

from med3d_nets.errors import Med3dError
from med3d_nets.folds import RECORD, Cases, fold_folder, fold_numbers, name_some, relative_name
from med3d_nets.settings import OF_A_FOLD, Settings
from med3d_nets.weights import write_atomically

__all__ = ["check_fold", "record_fold"]

DIVISION = ("folds", "fold", "validation")

_log = logging.getLogger(__name__)


def record_fold(
    ckpt_dir: str,
    cases: Cases,
    data_root: str | os.PathLike[str],
    folds: int = 0,
    fold: int = -1,
    resume_path: str = "",
    settings: Settings | None = None,
) -> None:
    """Write ``fold.json`` into the fold's folder, before its training. Without folds, write nothing.

    Args:
        ckpt_dir: folder of all folds.
        cases: the validation cases.
        data_root: folder that their paths are recorded relative to.
        folds, fold: as for :func:`fold_folder`.
        resume_path: checkpoint that the training goes on from, or empty.
        settings: those of the training.

    Raises:
        Med3dError: if the checkpoint was trained with other cases held out; if another fold in ``ckpt_dir`` holds out
            some of the same, so that they come from two divisions; or if it has other settings, so that the networks
            cannot answer together: plans depend on the machine's memory.
    """
    record = _record(cases, data_root, folds, fold) if folds else None
    if resume_path:
        _compare(Path(resume_path).with_name(RECORD), record)
    if record is None:
        return
    given = {} if settings is None else json.loads(json.dumps(asdict(settings)))
    given = {name: value for name, value in given.items() if name not in OF_A_FOLD}
    for number in fold_numbers(ckpt_dir):
        path = Path(ckpt_dir) / f"fold_{number}" / RECORD
        other = _read_record(path)
        if number == fold or other is None:
            continue
        both = set(other["validation"]) & set(record["validation"])
        if both or other["folds"] != folds:
            raise Med3dError(
                f"{path}: found fold {number} of {other['folds']}, with {len(both)} of the cases that fold {fold} of "
                f"{folds} holds out too; expected one division with no case in two. Give all folds the same img_list, "
                "folds, manual_seed and patient_pattern, or give another --ckpt_dir, or delete the folders of the old "
                "division"
            )
        _compare_settings(path, other.get("settings", {}), given)
    if idist.get_rank() == 0:
        write_atomically(
            Path(fold_folder(ckpt_dir, folds, fold)) / RECORD, json.dumps(record | {"settings": given}, indent=4) + "\n"
        )
    idist.barrier()


def check_fold(ckpt_dir: str, cases: Cases, data_root: str | os.PathLike[str], folds: int = 0, fold: int = -1) -> None:
    """Compare the cases of an evaluation with those that the networks have not seen in their training.

    Without a chosen fold, a case of the cross-validation's list is a warning, since other data may have the same names.

    Args:
        ckpt_dir, data_root, folds, fold: as for :func:`record_fold`.
        cases: the cases to evaluate.

    Raises:
        Med3dError: if a fold's are not those that it held out.
    """
    if not folds:
        return
    if fold >= 0:
        _compare(Path(fold_folder(ckpt_dir, folds, fold)) / RECORD, _record(cases, data_root, folds, fold))
        return
    records = [_read_record(Path(fold_folder(ckpt_dir, folds, number)) / RECORD) for number in range(folds)]
    seen = {name for record in records if record for name in record["validation"]}
    if known := [name for name in (relative_name(case, data_root) for case in cases) if name in seen]:
        found = (len(known), len(cases), name_some(known))
        _log.warning("%d of %d cases have the names of cases that the folds were trained on: %s", *found)


def _record(cases: Cases, data_root: str | os.PathLike[str], folds: int, fold: int) -> dict[str, Any]:
    return {"folds": folds, "fold": fold, "validation": sorted(relative_name(case, data_root) for case in cases)}


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise Med3dError(f"{path}: not JSON ({error})") from error
    if not isinstance(record, dict) or not set(DIVISION) <= set(record):
        raise Med3dError(f"{path}: found no record of a fold; expected folds, fold and validation in it")
    return record


def _compare(path: Path, expected: dict[str, Any] | None) -> None:
    found = _read_record(path)
    if (found and expected and all(found[name] == expected[name] for name in DIVISION)) or found == expected:
        return
    if found is None or expected is None:
        one, other = ("no fold", "one") if found is None else (f"fold {found['fold']} of {found['folds']}", "none")
        raise Med3dError(f"{path}: found the record of {one}; expected {other}, as --folds and --fold say")
    held, given = set(found["validation"]), set(expected["validation"])
    differ = f"the two differ in {name_some(sorted(held ^ given))}" if held != given else "the same"
    raise Med3dError(
        f"{path}: the network was trained as fold {found['fold']} of {found['folds']} with {len(held)} cases held out, "
        f"but the options give fold {expected['fold']} of {expected['folds']} with {len(given)}: {differ}. "
        "Give the img_list, folds, fold, manual_seed and patient_pattern of its training"
    )


def _compare_settings(path: Path, found: dict[str, Any], given: dict[str, Any]) -> None:
    """Compare the settings of another fold with those of this one, where both are known."""
    differ = [name for name in given if name in found and given[name] != found[name]]
    if differ:
        said = "; ".join(f"{name} is {given[name]!r}, but {found[name]!r} in {path}" for name in differ)
        raise Med3dError(
            f"networks of folds that are to answer together need the same settings: {said}. Give these to both "
            "trainings, such as --spacing or --patch_size, or give another --ckpt_dir"
        )
