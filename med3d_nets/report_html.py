"""Pieces of a self-contained HTML page: no scripts, nothing fetched, everything that is text escaped."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from html import escape
from importlib.metadata import version
from typing import Any

from med3d_nets.settings import Settings, versions

__all__ = [
    "MINUS",
    "NOTHING",
    "all_versions",
    "cards",
    "details",
    "figure",
    "flatten",
    "interval",
    "note",
    "now",
    "number",
    "page",
    "section",
    "settings_section",
    "settings_title",
    "table",
    "volume",
]

MINUS, NOTHING = "\N{MINUS SIGN}", "\N{EN DASH}"

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f23; --soft: #57606a; --line: #d0d7de; --paper: #ffffff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #a0a9b2; --line: #3a424a; --paper: #14181c;
  --card: #1d2329; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.25; }
h2 { margin: 2.5rem 0 .75rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); font-size: 1.25rem; }
h3 { margin: 1.75rem 0 .5rem; font-size: 1rem; }
.lead, figcaption, .note { color: var(--soft); }
.lead { margin: .25rem 0 1.25rem; }
.note { max-width: 52rem; font-size: .875rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: .75rem; margin: 0; }
.card { padding: .9rem 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.card b { display: block; font-size: 1.9rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .875rem; }
.card .title { color: var(--ink); font-weight: 600; font-size: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: pre; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 600; }
th.text, td.text { text-align: left; white-space: normal; overflow-wrap: break-word; }
thead th:first-child, tbody th { padding-left: 0; }
figure { margin: 0 0 1.25rem; }
figure img { display: block; width: 100%; height: auto; }
figure.picture img { background: #000; border-radius: 6px; }
figcaption { margin-bottom: .35rem; font-size: .875rem; }
figcaption b { color: var(--ink); }
.key { display: inline-block; width: 1.6rem; margin: 0 .3rem 0 .9rem; border-top: 3px solid; vertical-align: middle; }
.key.dashed { border-top-style: dashed; }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --card: #fff; }
  body { padding: 0; max-width: none; font-size: 10pt; }
  figure, .card, tr { break-inside: avoid; }
  h2, h3, figcaption { break-after: avoid; }
  thead { display: table-header-group; }
  .wide { overflow: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


def page(title: str, lead: str, *sections: str, refresh: int = 0) -> str:
    """A whole page.

    Args:
        title: text of the title.
        lead: text below it.
        sections: HTML.
        refresh: seconds after which a browser reads the page again; 0 for never.
    """
    again = f'<meta http-equiv="refresh" content="{refresh}">\n' if refresh else ""
    body = "\n".join(part for part in sections if part)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{again}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n{body}\n</body>\n</html>\n'
    )


def section(title: str, *parts: str, level: int = 2) -> str:
    """A heading (text) and what stands below it (HTML); nothing if nothing does."""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h{level}>{escape(title)}</h{level}>\n{body}\n</section>" if body else ""


def note(*sentences: str) -> str:
    """A paragraph of small print (text); nothing if it is empty."""
    text = " ".join(sentence for sentence in sentences if sentence)
    return f'<p class="note">{escape(text)}</p>' if text else ""


def cards(items: Sequence[tuple[str, str, Sequence[str]]]) -> str:
    """Boxes with a title, a large figure and lines below it (text)."""
    boxes = []
    for title, large, lines in items:
        rest = "".join(f"<br><span>{escape(line)}</span>" for line in lines)
        boxes.append(
            f'<div class="card"><span class="title">{escape(title)}</span><b>{escape(large)}</b>{rest[4:]}</div>'
        )
    return f'<div class="cards">{"".join(boxes)}</div>'


def figure(source: str, alternative: str, caption: str = "", kind: str = "plot") -> str:
    """A picture.

    Args:
        source: its data URI.
        alternative: text for those who do not see it.
        caption: HTML.
        kind: ``"plot"`` or ``"picture"``.
    """
    text = f"<figcaption>{caption}</figcaption>\n" if caption else ""
    return f'<figure class="{kind}">\n{text}<img alt="{escape(alternative)}" src="{source}">\n</figure>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A table of text; a first cell that repeats the one above is merged with it.

    Args:
        header: names of the columns.
        rows: cells.
        text_columns: how many columns, from the first on, are set left; the others are numbers.
    """

    def cell(tag: str, index: int, content: str, more: str = "") -> str:
        kind = ' class="text"' if index < text_columns else ""
        return f"<{tag}{kind}{more}>{escape(content)}</{tag}>"

    head = "".join(cell("th", index, name, ' scope="col"') for index, name in enumerate(header))
    lines, start = [], 0
    while start < len(rows):
        stop = start + 1
        while stop < len(rows) and rows[stop][0] == rows[start][0]:
            stop += 1
        for place in range(start, stop):
            span = f' rowspan="{stop - start}"' if stop - start > 1 else ""
            first = cell("th", 0, rows[place][0], f' scope="row"{span}') if place == start else ""
            rest = "".join(cell("td", index, content) for index, content in enumerate(rows[place]) if index)
            lines.append(f"<tr>{first}{rest}</tr>")
        start = stop
    body = "\n".join(lines)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def details(title: str, content: str) -> str:
    """HTML that is folded away below a title (text)."""
    return f"<details><summary>{escape(title)}</summary>\n{content}\n</details>"


def number(value: float, digits: int = 3) -> str:
    """A number for a reader: a dash for NaN, a sign for infinity."""
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    return f"{value:.{digits}f}".replace("-", MINUS)


def interval(ends: tuple[float, float], digits: int = 3) -> str:
    """Both ends of an interval."""
    return NOTHING if any(map(math.isnan, ends)) else f"{number(ends[0], digits)} to {number(ends[1], digits)}"


def volume(value: float, sign: bool = False) -> str:
    """A volume in mL, to about three digits."""
    if value == 0:
        return "0"
    size = abs(value)
    text = number(value, 3 if size < 1 else 2 if size < 10 else 1 if size < 1000 else 0)
    return f"+{text}" if sign and value > 0 else text


def flatten(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Names and values of nested settings, as text."""
    rows: list[tuple[str, str]] = []
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            rows += flatten(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, default=str)))
    return rows


def as_mapping(settings: Settings | Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings by name."""
    return settings if isinstance(settings, Mapping) else asdict(settings)


def settings_title(settings: Settings | Mapping[str, Any]) -> str:
    """Variant, head and recipe in words."""
    content = as_mapping(settings)
    parts = [str(content.get("variant", "network"))]
    parts += [f"{content[name]} {name}" for name in ("head", "recipe") if content.get(name)]
    return ", ".join(parts)


def settings_section(settings: Settings | Mapping[str, Any]) -> str:
    """Tables of settings and versions."""
    content = dict(as_mapping(settings))
    trained = content.pop("versions", None)
    rows = [(name, value, trained.get(name, "") if trained else "") for name, value in all_versions().items()]
    columns = ["package", "this page", "training"] if trained else ["package", "version"]
    return section(
        "Settings",
        table(["setting", "value"], flatten(content), text_columns=2),
        section("Versions", table(columns, [row[: len(columns)] for row in rows], text_columns=3), level=3),
    )


def all_versions() -> dict[str, str]:
    """Versions of Python and the packages that a report depends on."""
    others = {
        name: version(name) for name in ("pytorch-ignite", "nibabel", "numpy", "scipy", "scikit-learn", "matplotlib")
    }
    return {**versions(), **others, "python": platform.python_version()}


def now() -> str:
    """Date and time with the offset from UTC."""
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M (UTC%z)")
