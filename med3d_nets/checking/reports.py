"""What was found, for the screen and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from med3d_nets import __version__
from med3d_nets.checking import outliers
from med3d_nets.checking.cases import Record
from med3d_nets.checking.examination import Examination
from med3d_nets.checking.findings import ERROR, KINDS, WARNING, Finding, by_kind
from med3d_nets.checking.measures import PERCENTILES, Geometry, ImageFacts
from med3d_nets.checks import AFFINE_TOLERANCE
from med3d_nets.classification.arrays import split_reference
from med3d_nets.cli.tables import align
from med3d_nets.volume_files import MAX_SPACING, MAX_VOXELS

__all__ = ["as_json", "as_text", "notes", "verdict"]

SHOWN = 3
"""Findings of a kind that the screen shows."""
_CLASSES = 10

_EFFECTS = {ERROR: "errors: training stops at them", WARNING: "warnings: training goes on"}


def as_text(examination: Examination) -> str:
    """A table of the kinds of findings, then the first of each kind and what to do."""
    lines = [examination.lead(), *notes(examination)]
    kinds = by_kind(examination.findings)
    if kinds:
        rows = [["", "what", "number"]]
        rows += [[KINDS[kind].severity, KINDS[kind].title, str(len(found))] for kind, found in kinds.items()]
        lines += ["", *align(rows)]
    for severity, title in _EFFECTS.items():
        chosen = {kind: found for kind, found in kinds.items() if KINDS[kind].severity == severity}
        lines += ["", title] if chosen else []
        for kind, found in chosen.items():
            lines += [f"  {KINDS[kind].title} ({len(found)})", *(f"    {text}" for text in _some(found))]
            lines += [f"    -> {KINDS[kind].advice}"]
    return "\n".join([*lines, "", verdict(examination)])


def verdict(examination: Examination) -> str:
    """The result in a line."""
    errors, warnings = examination.errors, examination.warnings
    if not errors and not warnings:
        return "nothing found"
    counts = [f"{n} {word}{'s' * (n > 1)}" for n, word in ((errors, ERROR), (warnings, WARNING)) if n]
    if errors:
        return " and ".join(counts)
    labelled = all(finding.kind != "unlabelled" for finding in examination.findings)
    return f"{' and '.join(counts)}: {'training will start' if labelled else 'the images can be predicted'}"


def notes(examination: Examination) -> list[str]:
    """What the check could not know."""
    values = set[int]().union(*(record.label.voxels for record in examination.records if record.label is not None))
    lines = []
    if values and not examination.options.n_seg_classes and not examination.records[0].case.masked:
        named = ", ".join(map(str, sorted(values)[:_CLASSES])) + ", ..." * (len(values) > _CLASSES)
        train = f": train with --n_seg_classes {max(values) + 1}, if these are right" * (max(values) > 1)
        lines.append(f"n_seg_classes is not given, so that any label value passes; the labels have {named}{train}")
    arrays = sum(split_reference(record.case.images[0]) is not None for record in examination.records)
    if not any(record.case.patient for record in examination.records):
        tells = ": --patient_pattern tells" * (arrays < len(examination.records))
        lines.append(f"patients are not known, so that one may be in training and in validation{tells}")
    if arrays:
        lines.append(f"{arrays} volumes of arrays have no spacing and no orientation: taken for 1 mm and RAS")
    for part, classes in examination.lists.classes.items():
        named = ", ".join(f"{number} of {name}" for name, number in list(classes.items())[:_CLASSES])
        lines.append(f"classes for {part}: {named}{', ...' * (len(classes) > _CLASSES)}")
    return lines


def _some(findings: list[Finding]) -> Iterator[str]:
    for finding in findings[:SHOWN]:
        expected = f"; expected {finding.expected}" * bool(finding.expected)
        yield f"{finding.file}: found {finding.found}{expected}".removeprefix(": ")
    if len(findings) > SHOWN:
        yield f"... and {len(findings) - SHOWN} more"


def as_json(examination: Examination) -> str:
    """Everything that was measured and found, but the pictures."""
    content = {
        "version": __version__,
        "summary": {
            "cases": len(examination.records),
            "errors": examination.errors,
            "warnings": examination.warnings,
            "kinds": {kind: len(found) for kind, found in by_kind(examination.findings).items()},
            "seconds": round(examination.seconds, 3),
        },
        "settings": examination.settings(),
        "rules": {
            "affine_tolerance_mm": AFFINE_TOLERANCE,
            "max_spacing_mm": MAX_SPACING,
            "max_voxels": MAX_VOXELS,
            "outliers": outliers.rule(),
        },
        "classes": examination.lists.classes,
        "findings": [_finding(finding) for finding in examination.findings],
        "cases": [_case(record, name) for record, name in zip(examination.records, examination.names, strict=True)],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _finding(finding: Finding) -> dict[str, str]:
    about = {"list": finding.part, "case": finding.case, "file": finding.file}
    told = {"found": finding.found, "expected": finding.expected}
    return {"severity": finding.severity, "kind": finding.kind, **about, **told}


def _case(record: Record, name: str) -> dict[str, Any]:
    case = record.case
    found: dict[str, Any] = {"case": name, "list": case.part, "patient": case.patient}
    found["images"] = [
        {"file": file, **(_image(facts) if facts is not None else {})}
        for file, facts in zip(case.images, record.images or [None] * len(case.images), strict=False)
    ]
    if case.label:
        found["mask" if case.masked else "label"] = {"file": case.label}
        if record.label is not None:
            found["mask" if case.masked else "label"] |= {
                **_geometry(record.label.geometry),
                "voxels": {str(value): number for value, number in record.label.voxels.items()},
                "ml": {str(value): round(volume, 4) for value, volume in record.label.volumes.items()},
            }
    return found


def _image(facts: ImageFacts) -> dict[str, Any]:
    percentiles = {f"{percent:g} %": value for percent, value in zip(PERCENTILES, facts.percentiles, strict=True)}
    ends = {"min": facts.low, "max": facts.high, "mean": facts.mean}
    return {**_geometry(facts.geometry), "dtype": facts.dtype, **ends, **percentiles, "content": facts.content}


def _geometry(geometry: Geometry) -> dict[str, Any]:
    return {
        "shape": list(geometry.shape),
        "spacing_ras_mm": list(geometry.spacing),
        "size_ras_mm": list(geometry.size),
        "axes": geometry.codes,
        "right_handed": geometry.right_handed,
    }
