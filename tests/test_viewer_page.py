"""How NiiVue gets into the viewer's page."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from med3d_nets.errors import Med3dError
from med3d_nets.viewer_page import NEEDED, Viewer, colours, load_viewer, render_view

EXPORTS = f"export{{{','.join(name for name in NEEDED if name != 'NVImage')},Image3 as NVImage}};"


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Have a package ``ipyniivue`` whose widget contains some code as text."""
    (folder / "static").mkdir(exist_ok=True)
    encoded = quote("/*" + "x" * 500_000 + "*/" + code, safe="-_.!~*'()")
    (folder / "static" / "widget.js").write_text(f'var a="short",b="{encoded if code else ""}";')
    found = SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)


def test_the_installed_library_has_what_the_page_uses() -> None:
    viewer = load_viewer()
    assert viewer.name.startswith("NiiVue, from ipyniivue ")
    assert 1e6 < len(viewer.script) < 4e6
    assert "export{" not in viewer.script[-5000:]
    assert "Redistribution and use in source and binary forms" in viewer.licences
    for name in ("setCustomSliceShader", "loadDrawing", "setColormapLabel", "overlayOutlineWidth", "drawRimOpacity"):
        assert name in viewer.script


def test_exports_become_one_object(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = 'var a="</script><!--";'
    install(monkeypatch, tmp_path, code + EXPORTS)
    script = load_viewer().script
    assert script.endswith(
        code + ";globalThis.niivue = { DRAG_MODE: DRAG_MODE, Niivue: Niivue, NVImage: Image3, SLICE_TYPE: SLICE_TYPE, "
        "SHOW_RENDER: SHOW_RENDER, cmapper: cmapper }"
    )
    page = render_view("a & b", Viewer(script, "NiiVue", "<b>"), {"cases": []}, [{"image": b"\x00\x01"}])
    assert 'var a="\\u003c/script>\\u003c!--";' in page
    assert "<title>a &amp; b</title>" in page
    assert "<pre>&lt;b&gt;</pre>" in page
    assert '<script type="text/plain" id="image-0">AAE=</script>' in page


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "")
    with pytest.raises(
        Med3dError, match=r"lacks NiiVue as text; expected the version that pip install 'med3d-nets\[view"
    ):
        load_viewer()
    install(monkeypatch, tmp_path, EXPORTS.replace("cmapper,", ""))
    with pytest.raises(Med3dError, match=r"widget.js of ipyniivue [\d.]+ lacks cmapper; expected"):
        load_viewer()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Med3dError, match=r"ipyniivue, which is not installed; get it by pip install 'med3d-nets\[view"):
        load_viewer()


def test_colours_differ() -> None:
    found = colours(60)
    assert len(set(found)) == 60
    assert colours(3) == found[:3]
    assert all(len(colour) == 7 and int(colour[1:], 16) for colour in found)
