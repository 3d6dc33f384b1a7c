"""The page of a check: counts, what to do, pictures of the cases with findings, and how the cases compare."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from med3d_nets.checking import outliers
from med3d_nets.checking.cases import Record
from med3d_nets.checking.examination import Examination
from med3d_nets.checking.findings import ERROR, KINDS, WARNING, Finding, by_kind
from med3d_nets.checking.pictures import PictureStore
from med3d_nets.checking.reports import notes, verdict
from med3d_nets.checks import AFFINE_TOLERANCE
from med3d_nets.report_html import (
    NOTHING,
    all_versions,
    cards,
    figure,
    flatten,
    note,
    now,
    number,
    page,
    section,
    table,
    volume,
)
from med3d_nets.report_plots import draw_scores

__all__ = ["MAX_PICTURES", "render"]

MAX_PICTURES = 60
"""Cases with findings that the page shows a picture of."""
OTHERS = 12
"""Cases without that are shown, evenly drawn, to compare with."""
MAX_ROWS = 1000
MAX_POINTS = 400
MAX_FINDINGS = 4
"""Findings of a case that stand below its picture."""
MAX_CLASSES = 8
ENDS = ("left-right", "back-front", "foot-head")

STYLE = """<style>
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .75rem; }
.gallery .card { min-width: 0; overflow-wrap: anywhere; font-size: .8125rem; }
.gallery figure { margin: 0 0 .5rem; }
.gallery img { height: 13rem; object-fit: contain; }
.gallery p { margin: .35rem 0 0; }
.gallery .card span { font-size: inherit; }
.gallery .none { display: grid; place-items: center; height: 13rem; color: var(--soft); border: 1px dashed var(--line);
  border-radius: 6px; }
.error::before, .warning::before { content: ""; display: inline-block; width: .6rem; height: .6rem; margin-right: .4rem;
  border-radius: 50%; background: #d55e00; }
.warning::before { background: #e69f00; border-radius: 0; }
</style>"""


def render(examination: Examination, store: PictureStore) -> str:
    """The page's HTML.

    Args:
        examination: what was found.
        store: pictures of the cases.
    """
    return page(
        f"Check: {verdict(examination)}",
        f"{examination.lead()}, {now()}",
        STYLE,
        _cards(examination),
        note(*(f"{text[0].upper()}{text[1:]}." for text in notes(examination))),
        _summary(examination),
        _gallery(examination, store),
        _comparison(examination),
        _table(examination),
        section(
            "Settings",
            table(["setting", "value"], flatten(examination.settings()), text_columns=2),
            section("Versions", table(["package", "version"], list(all_versions().items()), text_columns=2), level=3),
        ),
    )


def _cards(examination: Examination) -> str:
    parts = [record.case.part for record in examination.records]
    listed = [f"{parts.count(part)} in {part}" for part in dict.fromkeys(parts)]
    touched = {finding.case for finding in examination.findings if finding.case}
    return cards(
        [
            ("Cases", str(len(parts)), listed),
            ("Errors", str(examination.errors), ["training stops at them"]),
            ("Warnings", str(examination.warnings), ["training goes on"]),
            ("Cases without a finding", str(len(parts) - len(touched)), []),
        ]
    )


def _summary(examination: Examination) -> str:
    rows = [
        [KINDS[kind].severity, KINDS[kind].title, str(len(found)), KINDS[kind].advice]
        for kind, found in by_kind(examination.findings).items()
    ]
    listed = [
        [KINDS[finding.kind].title, finding.file, _words(finding)]
        for finding in examination.findings
        if not finding.case
    ]
    of_lists = table(["what", "where", "found"], listed[:MAX_ROWS], text_columns=3) if listed else ""
    return section(
        "Findings",
        table(["", "what", "number", "what to do"], rows, text_columns=4) if rows else note("Nothing was found."),
        section("In the lists", of_lists, level=3) if listed else "",
    )


def _words(finding: Finding) -> str:
    return f"{finding.found}; expected {finding.expected}" if finding.expected else finding.found


def _by_case(examination: Examination) -> dict[str, list[Finding]]:
    """Findings of each case that has some; errors come first, as in the examination."""
    found: dict[str, list[Finding]] = {}
    for finding in examination.findings:
        if finding.case:
            found.setdefault(finding.case, []).append(finding)
    return found


def _gallery(examination: Examination, store: PictureStore) -> str:
    """Pictures of the cases with findings, then of some without."""
    found = _by_case(examination)
    records = dict(zip(examination.names, examination.records, strict=True))
    shown = list(found)[:MAX_PICTURES]
    clean = [name for name in records if name not in found]
    drawn = [clean[index] for index in np.unique(np.linspace(0, len(clean) - 1, OTHERS).astype(int))] if clean else []
    legend = note(
        "Axial slices through the middle of the label, or of the volume: the patient's right is at the left, the front "
        "at the top. Outlines are the label's, a colour for each class."
    )
    left = f"The first {len(shown)} of {len(found)} cases; check.json has all." if len(found) > len(shown) else ""
    with_findings = [_picture(name, records[name], found[name], store) for name in shown]
    others = [_picture(name, records[name], [], store) for name in drawn]
    return section(
        "Cases in pictures",
        legend,
        section("With findings", note(left), _grid(with_findings), level=3) if shown else "",
        section("Some without", _grid(others), level=3) if drawn else "",
    )


def _grid(items: Sequence[str]) -> str:
    return f'<div class="gallery">{"".join(items)}</div>'


def _picture(name: str, record: Record, findings: Sequence[Finding], store: PictureStore) -> str:
    if record.picture is None:
        picture = '<div class="none">no picture</div>'
    else:
        source = f"data:image/jpeg;base64,{base64.b64encode(store.get(record.picture)).decode()}"
        picture = figure(source, f"Axial slice of {name}.", kind="picture")
    lines = [
        f'<p class="{each.severity}"><strong>{escape(KINDS[each.kind].title)}:</strong> {escape(_words(each))}</p>'
        for each in findings[:MAX_FINDINGS]
    ]
    if len(findings) > MAX_FINDINGS:
        lines.append(f"<p>and {len(findings) - MAX_FINDINGS} more</p>")
    patient = f", patient {record.case.patient}" if record.case.patient else ""
    title = f"<strong>{escape(name)}</strong><br><span>{escape(record.case.part + patient)}</span>"
    return f'<div class="card">{picture}{title}{"".join(lines)}</div>'


def _comparison(examination: Examination) -> str:
    """Plots of what outliers are looked for in."""
    records = [record for record in examination.records if record.images and record.images[0] is not None]
    if not records:
        return ""
    records = [records[index] for index in np.unique(np.linspace(0, len(records) - 1, MAX_POINTS).astype(int))]
    images = [record.images[0] for record in records if record.images[0] is not None]
    panels = {
        "size [mm]": {words: [image.geometry.size[axis] for image in images] for axis, words in enumerate(ENDS)},
        "spacing [mm]": {words: [image.geometry.spacing[axis] for image in images] for axis, words in enumerate(ENDS)},
        "intensity": {
            "0.5 %": [image.percentiles[0] for image in images],
            "median": [image.percentiles[1] for image in images],
            "99.5 %": [image.percentiles[2] for image in images],
        },
    }
    volumes = [record.label.volumes if record.label is not None else {} for record in records]
    classes = sorted(set[int]().union(*volumes))[:MAX_CLASSES]
    if classes:
        panels["volume [mL]"] = {f"class {value}": [each.get(value, math.nan) for each in volumes] for value in classes}
    sample = f"{MAX_POINTS} of {len(examination.records)} cases are drawn." * (len(records) == MAX_POINTS)
    grids = f"Affines of image and label may differ by {AFFINE_TOLERANCE:g} mm."
    names = list(panels)
    plots = [
        figure(draw_scores({name: panels[name] for name in pair}), f"Each case's {' and '.join(pair)}.")
        for pair in (names[:2], names[2:])
    ]
    return section("How the cases compare", *plots, note(outliers.rule(), grids, sample))


def _table(examination: Examination) -> str:
    header = ["case", "list", "findings", "shape", "spacing [mm]", "axes", "0.5 %", "median", "99.5 %", "labels [mL]"]
    rows = list(_rows(examination))
    left = f"The first {MAX_ROWS} of {len(rows)}; check.json has all." if len(rows) > MAX_ROWS else ""
    words = "Spacing and size are along the axes right, anterior and superior; shapes along those of the file."
    return section("All cases", table(header, rows[:MAX_ROWS], text_columns=2), note(words, left))


def _rows(examination: Examination) -> Iterator[list[str]]:
    found = _by_case(examination)
    for name, record in zip(examination.names, examination.records, strict=True):
        image = record.images[0] if record.images else None
        own = found.get(name, [])
        kinds = [sum(finding.severity == severity for finding in own) for severity in (ERROR, WARNING)]
        counts = ", ".join(f"{n} {word}{'s' * (n > 1)}" for n, word in zip(kinds, (ERROR, WARNING), strict=True) if n)
        label = record.label.volumes if record.label is not None else {}
        volumes = ", ".join(f"{value}: {volume(size)}" for value, size in list(label.items())[:MAX_CLASSES])
        cells = [NOTHING] * 6
        if image is not None:
            cells = ["x".join(map(str, image.geometry.shape)), " ".join(f"{mm:.4g}" for mm in image.geometry.spacing)]
            cells += [image.geometry.codes, *(number(value, 1) for value in image.percentiles)]
        yield [name, record.case.part, counts or NOTHING, *cells, volumes or NOTHING]
