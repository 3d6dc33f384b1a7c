"""A reader of HTML pages that checks that they are whole and fetch nothing."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
from matplotlib import image
from numpy.typing import NDArray

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The parts of a page.

    Attributes:
        texts: text by tag, in order.
        images: attributes of the pictures.
        tables: rows of cells; merged cells are repeated.
        tags: every tag.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.images: list[dict[str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.tags: list[str] = []
        self.merged = ("", 0)
        assert text.startswith("<!DOCTYPE html>\n")
        self.feed(text)
        self.close()
        assert self.stack == []
        assert not re.search(r"url\(|@import", self.text("style"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        assert tag not in ("script", "link", "iframe", "object")
        assert not any(name.startswith("on") or name in ("href", "action", "srcset") for name in found)
        assert found.get("src", "data:").startswith("data:")
        if tag == "img":
            self.images.append(found)
            assert found["alt"]
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            name, left = self.merged
            self.tables[-1].append([name] if left else [])
            self.merged = name, max(left - 1, 0)
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.span = int(found.get("rowspan", 1))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag
        if tag in ("td", "th") and self.span > 1:
            self.merged = self.tables[-1][-1][-1], self.span - 1

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if self.stack:
            self.texts.append((self.stack[-1], data))

    def text(self, *tags: str) -> str:
        """All text, or that of some tags."""
        return " ".join(data for tag, data in self.texts if not tags or tag in tags)


def decode(source: str) -> NDArray[np.float32] | ElementTree.Element:
    """Pixels of a PNG, ``(row, column, channel)``, or the root of an SVG, from a data URI."""
    found = re.fullmatch(r"data:image/(png|svg\+xml);base64,([A-Za-z0-9+/=]+)", source)
    assert found
    content = base64.b64decode(found[2], validate=True)
    if found[1] == "png":
        return np.asarray(image.imread(io.BytesIO(content), format="png"))
    return ElementTree.fromstring(content)
