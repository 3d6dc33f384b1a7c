"""The viewer's page: NiiVue's code, the volumes, and what the reader chooses with, in one file that needs no network.

NiiVue is not copied into this package. It comes with ``ipyniivue``, whose widget has the whole library in it as text,
for NiiVue's own ``saveHTML``, which writes pages that stand alone too.
"""

from __future__ import annotations

import base64
import colorsys
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import unquote

from med3d_nets.errors import Med3dError

__all__ = ["Viewer", "colours", "load_viewer", "render_view"]

WIDGET = "ipyniivue"
INSTALL = "pip install 'med3d-nets[view]'"
# What encodeURIComponent leaves of a text: no quote, so that the text ends where the string does.
ENCODED = re.compile(r'"([\w%\-.!~*\'()]{500000,})"', re.ASCII)
EXPORTS = re.compile(r"\bexport\s*\{([^{}]*)\};?\s*$")
NEEDED = ("DRAG_MODE", "Niivue", "NVImage", "SLICE_TYPE", "SHOW_RENDER", "cmapper")

PALETTE = ("#56b4e9", "#e69f00", "#1fc08f", "#f0e442", "#e07fb5", "#ff6f3c", "#8f9bff")
"""Colours of Okabe and Ito's palette, those that are dark made lighter, for a black background."""


@dataclass(frozen=True)
class Viewer:
    """NiiVue, to be put into a page.

    Attributes:
        script: JavaScript that leaves its exports in ``globalThis.niivue``.
        name: with versions.
        licences: texts of the licences of it and of what it contains.
    """

    script: str
    name: str
    licences: str


def load_viewer() -> Viewer:
    """NiiVue, from the installed ``ipyniivue``, which is not imported.

    Raises:
        Med3dError: if it is not installed, or not a version that has what is needed.
    """
    found = importlib.util.find_spec(WIDGET)
    if found is None or not found.submodule_search_locations:
        raise Med3dError(f"the viewer needs the package {WIDGET}, which is not installed; get it by {INSTALL}")
    path = Path(found.submodule_search_locations[0], "static", "widget.js")
    version = metadata.version(WIDGET)
    encoded = ENCODED.search(path.read_text(encoding="utf-8") if path.is_file() else "")
    code = unquote(encoded[1]) if encoded else ""
    exports = EXPORTS.search(code)
    names = dict(_split(entry) for entry in exports[1].split(",")) if exports else {}
    missing = [name for name in NEEDED if name not in names]
    if exports is None or missing:
        lacks = ", ".join(missing) if exports else "NiiVue as text"
        raise Med3dError(f"{path} of {WIDGET} {version} lacks {lacks}; expected the version that {INSTALL} installs")
    listed = ", ".join(f"{name}: {names[name]}" for name in NEEDED)
    script = f"{code[: exports.start()]};globalThis.niivue = {{ {listed} }}"
    return Viewer(script, f"NiiVue, from {WIDGET} {version}", f"{_licence()}\n\n{_asset('notices.txt')}")


def render_view(title: str, viewer: Viewer, data: Mapping[str, Any], volumes: Sequence[Mapping[str, bytes]]) -> str:
    """The page's HTML.

    Args:
        title: text.
        viewer: see :func:`load_viewer`.
        data: what ``viewer_assets/page.js`` reads.
        volumes: of each case, gzipped NIfTI files by name: ``image``, and ``truth`` and ``prediction``.
    """
    blocks = [
        f'<script type="text/plain" id="{name}-{index}">{base64.b64encode(content).decode()}</script>'
        for index, case in enumerate(volumes)
        for name, content in case.items()
    ]
    return Template(_asset("page.html")).substitute(
        title=escape(title),
        style=_asset("page.css"),
        shader=_asset("contours.glsl"),
        script=_asset("page.js"),
        niivue=_inline(viewer.script),
        viewer=escape(viewer.name),
        licences=escape(viewer.licences),
        data=_inline(json.dumps(data)),
        volumes="\n".join(blocks),
    )


def colours(n_classes: int) -> list[str]:
    """Colours of foreground classes, ``#rrggbb``: those of a palette, then others that differ from their neighbours."""
    # Steps of the golden angle come back to no earlier hue.
    more = (colorsys.hls_to_rgb(0.618034 * index % 1, 0.65, 0.75) for index in range(n_classes - len(PALETTE)))
    return [*PALETTE[:n_classes], *("#" + "".join(f"{round(255 * part):02x}" for part in each) for each in more)]


def _split(entry: str) -> tuple[str, str]:
    """Name that an entry of an ``export`` is known by, and that within the module."""
    own, _, other = entry.strip().partition(" as ")
    return other or own, own


def _inline(text: str) -> str:
    """Text that does not end the script that it stands in, nor opens a comment there; the same to JavaScript."""
    return re.sub(r"<(?=/script|script|!--)", r"\\u003c", text, flags=re.IGNORECASE)


def _licence() -> str:
    """That of ``ipyniivue``, which NiiVue's authors give both under."""
    files = [file for file in metadata.files(WIDGET) or [] if file.name.upper().startswith("LICENSE")]
    return "\n\n".join(file.read_text(encoding="utf-8").strip() for file in files)


def _asset(name: str) -> str:
    return resources.files("med3d_nets").joinpath("viewer_assets", name).read_text(encoding="utf-8").strip()
