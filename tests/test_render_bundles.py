from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

from med3d_nets.variants import VARIANTS


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render_bundles", ROOT / "tools" / "render_bundles.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tree_is_as_rendered() -> None:
    done = subprocess.run(
        [sys.executable, "tools/render_bundles.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_difference_is_found(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = tool.render()
    for path, content in rendered.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    assert tool.differences(rendered) == []
    configs = tmp_path / "bundles" / VARIANTS[-1].bundle / "configs"
    (configs / "train.json").write_bytes((configs / "train.json").read_bytes() + b"\n")
    (configs / "inference.json").unlink()
    (configs / "extra.json").write_text("{}")
    (configs.parent / "models").mkdir()
    (configs.parent / "models" / "model.pt").write_text("not ours to check")
    found = "\n".join(tool.differences(rendered))
    for part in ("train.json: differs", "inference.json: missing", "extra.json: not rendered"):
        assert part in found
    assert "model.pt" not in found


def test_a_template_names_known_facts_alone(tool: ModuleType) -> None:
    with pytest.raises(KeyError, match="nonsense"):
        tool.fill("[[nonsense]]", tool.facts(VARIANTS[0]))
    assert not [path for path, content in tool.render().items() if b"[[" in content and path.name != "README.md"]
