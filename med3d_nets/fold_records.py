"""Which cases a network was trained on and validated with: ``cases.json`` beside it, or ``fold.json`` of a fold.

A fold's record has its settings too. Cases are known by what is in the file of their image, wherever it lies, by the
file's path relative to the data's folder, and by their patient.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from ignite import distributed as idist

from med3d_nets.errors import Med3dError
from med3d_nets.folds import RECORD, fold_folder, fold_numbers, known_patient, name_some, relative_name
from med3d_nets.settings import OF_A_FOLD, Settings
from med3d_nets.weights import write_atomically

__all__ = ["check_fold", "record_fold"]

Cases: TypeAlias = Sequence[Mapping[str, Any]]

CASES = "cases.json"
"""The record of a training without folds."""

DIVISION = ("folds", "fold", "validation")

PIECE = 2**16
"""Bytes at the start, in the middle and at the end of a file by which its content is known: the ends of ``.nii.gz`` and
``.npz`` files have checksums of all of it."""

_log = logging.getLogger(__name__)


def record_fold(
    ckpt_dir: str,
    cases: Cases,
    data_root: str | os.PathLike[str],
    folds: int = 0,
    fold: int = -1,
    resume_path: str = "",
    settings: Settings | None = None,
    training: Cases = (),
) -> None:
    """Write the record of a training beside its network, before it starts; a resumed one keeps what it had seen.

    Args:
        ckpt_dir: folder of the network, or of all folds.
        cases: the validation cases.
        data_root: folder that their paths are recorded relative to.
        folds, fold: as for :func:`fold_folder`.
        resume_path: checkpoint that the training goes on from, or empty.
        settings: those of the training.
        training: the training cases, with a "patient" where it is known.

    Raises:
        Med3dError: if the checkpoint is of a fold that held out others; if another fold in ``ckpt_dir`` holds out some
            of the same cases, so that they come from two divisions; or if it has other settings, so that the networks
            cannot answer together: plans depend on the machine's memory.
    """
    record = _record(cases, data_root, folds, fold)
    name = RECORD if folds else CASES
    if resume_path:
        _compare(Path(resume_path).with_name(RECORD), record if folds else None)
    if folds:
        given = {} if settings is None else json.loads(json.dumps(asdict(settings)))
        record["settings"] = {name: value for name, value in given.items() if name not in OF_A_FOLD}
        _check_others(ckpt_dir, record)
    if idist.get_rank() == 0:
        names = [relative_name(case, data_root) for case in [*training, *cases]]
        record["training"] = sorted(set(names[: len(training)]))
        record["patients"] = sorted(set(filter(None, map(known_patient, training))))
        record["contents"] = dict(sorted(zip(names, _contents([*training, *cases]), strict=True)))
        if resume_path:
            _add_earlier(record, Path(resume_path).with_name(name))
        write_atomically(Path(fold_folder(ckpt_dir, folds, fold)) / name, json.dumps(record, indent=4) + "\n")
    idist.barrier()


def check_fold(
    ckpt_dir: str,
    cases: Cases,
    data_root: str | os.PathLike[str],
    folds: int = 0,
    fold: int = -1,
    allow_seen: bool = True,
) -> list[str]:
    """Compare the cases of an evaluation with those that its networks were trained on and validated with.

    A line of the log tells of how many the training has validated with. Cases that have the path of a trained one but
    another content, or one that no record tells, are a warning: data sets may have the same names.

    Args:
        ckpt_dir, data_root, folds, fold: as for :func:`record_fold`.
        cases: the cases to evaluate, with a "patient" where it is known.
        allow_seen: whether it is a warning alone that a network was trained on some of them, or of their patients.

    Returns:
        What a reader of the scores must know, as sentences for a page.

    Raises:
        Med3dError: if a fold's are not those that it held out; or for what a network was trained on.
    """
    if folds and fold >= 0:
        _compare(Path(fold_folder(ckpt_dir, folds, fold)) / RECORD, _record(cases, data_root, folds, fold))
    numbers = range(folds) if folds and fold < 0 else [fold]
    paths = [Path(fold_folder(ckpt_dir, folds, number)) / (RECORD if folds else CASES) for number in numbers]
    records = [record for path in paths if (record := _read_record(path))]
    caveats = []
    if len(records) < len(paths):
        unknown = f"{paths[0]}: found no record of a training: its cases may be among those to evaluate"
        _log.info(unknown)
        caveats.append(f"{unknown}.")
    where = str(paths[0] if len(paths) == 1 else ckpt_dir)
    lists = ("training",) if len(paths) == 1 else ("training", "validation")  # what a fold holds out, others train on
    trained = {name for record in records for key in lists for name in record.get(key, ())}
    known = {name: content for record in records for name, content in record.get("contents", {}).items()}
    names = [relative_name(case, data_root) for case in cases]
    contents = _contents(cases)

    def found(listed: Iterable[str]) -> list[str]:
        wanted = {known[name] for name in listed if name in known}
        return [name for name, content in zip(names, contents, strict=True) if content in wanted]

    seen = found(trained)
    patients = {name for record in records for name in record.get("patients", ())}
    shared = sorted(patients & set(map(known_patient, cases)))
    caveats += _tell_of_seen(where, seen, shared, len(cases), allow_seen)
    if same := [name for name in names if name in trained and name not in seen]:
        text = "cases have the names of cases that it was trained on, but are not known to be the same"
        _log.warning("%s: %d of %d %s: %s", where, len(same), len(cases), text, name_some(same))
        caveats.append(f"{len(same)} of the {len(cases)} {text} ({name_some(same)}).")
    validated = names if fold >= 0 else found(name for record in records for name in record["validation"])
    if len(paths) == 1 and validated:
        text = "cases are those that the training was validated with, to choose its epoch: scores are too good"
        _log.info("%s: %d of %d %s", where, len(validated), len(cases), text)
        caveats.append(f"{len(validated)} of the {len(cases)} {text}.")
    return caveats


def _tell_of_seen(where: str, seen: Sequence[str], patients: Sequence[str], n_cases: int, allowed: bool) -> list[str]:
    """Refuse, or warn of, cases and patients that a network was trained on; a sentence on them."""
    parts = [f"{len(seen)} of the {n_cases} cases to evaluate ({name_some(seen)})"] if seen else []
    parts += [f"cases of patients to evaluate ({name_some(patients)})"] if patients else []
    if not parts:
        return []
    text = f"trained on {' and on '.join(parts)}"
    if not allowed:
        raise Med3dError(
            f"{where}: {text}: scores would be too good. Evaluate on others, or pass --allow_seen_cases True"
        )
    _log.warning("%s: %s: scores are too good", where, text)
    return [f"The network was {text}: scores are too good."]


def _contents(cases: Cases) -> list[str]:
    """A digest of each image's content; that of a volume in an array is its file's, with its place."""

    @cache
    def digest(path: str) -> str:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            found = hashlib.blake2b(str(size).encode(), digest_size=16)
            for start in (0, size // 2, max(0, size - PIECE)):
                file.seek(start)
                found.update(file.read(PIECE))
        return found.hexdigest()

    parts = [case["image"].partition("::") for case in cases]
    return [digest(path) + separator + place for path, separator, place in parts]


def _add_earlier(record: dict[str, Any], path: Path) -> None:
    """Add what the training had seen before it was stopped."""
    earlier = _read_record(path)
    if earlier is None:
        return
    for name in ("training", "validation", "patients"):
        record[name] = sorted({*record[name], *earlier.get(name, ())})
    record["contents"] = earlier.get("contents", {}) | record["contents"]


def _check_others(ckpt_dir: str, record: Mapping[str, Any]) -> None:
    """Compare a fold with the others that are there."""
    folds, fold = record["folds"], record["fold"]
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
        _compare_settings(path, other.get("settings", {}), record["settings"])


def _record(cases: Cases, data_root: str | os.PathLike[str], folds: int, fold: int) -> dict[str, Any]:
    return {"folds": folds, "fold": fold, "validation": sorted({relative_name(case, data_root) for case in cases})}


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise Med3dError(f"{path}: not JSON ({error})") from error
    if not isinstance(record, dict) or not set(DIVISION) <= set(record):
        raise Med3dError(f"{path}: found no record of a training; expected folds, fold and validation in it")
    return record


def _compare(path: Path, expected: dict[str, Any] | None) -> None:
    found = _read_record(path)
    if found is None and expected is None:
        return
    if found is None or expected is None:
        one, other = ("no fold", "one") if found is None else (f"fold {found['fold']} of {found['folds']}", "none")
        raise Med3dError(f"{path}: found the record of {one}; expected {other}, as --folds and --fold say")
    held, given = set(found["validation"]), set(expected["validation"])
    if held == given and all(found[name] == expected[name] for name in ("folds", "fold")):
        return
    differ = f"the two differ in {name_some(sorted(held ^ given))}" if held != given else "the same"
    raise Med3dError(
        f"{path}: the network was trained as fold {found['fold']} of {found['folds']} with {len(held)} cases held out, "
        f"but the options give fold {expected['fold']} of {expected['folds']} with {len(given)}: {differ}. "
        "Give the img_list, folds, fold, manual_seed and patient_pattern of its training"
    )


def _compare_settings(path: Path, found: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Compare the settings of another fold with those of this one, where both are known."""
    differ = [name for name in given if name in found and given[name] != found[name]]
    if differ:
        said = "; ".join(f"{name} is {given[name]!r}, but {found[name]!r} in {path}" for name in differ)
        raise Med3dError(
            f"networks of folds that are to answer together need the same settings: {said}. Give these to both "
            "trainings, such as --spacing or --patch_size, or give another --ckpt_dir"
        )
