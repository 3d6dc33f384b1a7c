from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch
from conftest import ROOT, load_tool

from med3d_nets import create_model
from med3d_nets.resnet import STRIDES
from med3d_nets.variants import VARIANTS, Variant

EACH = pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in VARIANTS])
DOCS = ("README.md", "network.svg", "data_license.txt")


@pytest.fixture
def tool() -> ModuleType:
    return load_tool("render_bundles")


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


def test_folders_too_many_are_found(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = tool.render()
    for path, content in rendered.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    bundles = tmp_path / "bundles"
    for name in ("medicalnet_resnet_11/models", "medicalnet_resnet_10/scripts", "medicalnet_resnet_10/configs/models"):
        (bundles / name).mkdir(parents=True)
    (bundles / "models").mkdir()
    (bundles / "medicalnet_resnet_10" / "eval").mkdir()
    (bundles / "medicalnet_resnet_10" / "features").mkdir()
    assert tool.differences(rendered) == [
        "bundles/medicalnet_resnet_10/configs/models/: not rendered from anything",
        "bundles/medicalnet_resnet_10/scripts/: not rendered from anything",
        "bundles/medicalnet_resnet_11/: not rendered from anything",
        "bundles/medicalnet_resnet_11/models/: not rendered from anything",
        "bundles/models/: not rendered from anything",
    ]


def test_a_template_names_known_facts_alone(tool: ModuleType) -> None:
    with pytest.raises(KeyError, match="nonsense"):
        tool.fill("[[nonsense]]", tool.facts(VARIANTS[0]))
    assert not [path for path, content in tool.render().items() if b"[[" in content and path.name != "README.md"]


@EACH
def test_the_architecture_is_the_networks(tool: ModuleType, row: Variant) -> None:
    with torch.device("meta"):
        encoder = create_model(row.name).encoder
        features = encoder(torch.empty(2, 1, 16, 24, 32))
    known = tool.architecture(row)
    for index in range(1, 5):
        stage = getattr(encoder, f"layer{index}")
        assert known[f"blocks{index}"] == str(len(stage))
        assert known[f"channels{index}"] == str(features[index].shape[1])
        assert known[f"stride{index}"] == str(STRIDES[index]) == str(16 // features[index].shape[2])
        assert known[f"dilation{index}"] == str(stage[-1].conv2.dilation[0])
        assert type(stage[0]).__name__.lower().startswith(known["block"].replace(" ", "")[:10])


@EACH
def test_the_diagram_stands_alone(row: Variant) -> None:
    text = (ROOT / "bundles" / row.bundle / "docs" / "network.svg").read_text(encoding="utf-8")
    words = " ".join(ElementTree.fromstring(text).itertext())
    for expected in (f"{row.name}: 3D ResNet-{row.depth}, shortcut {row.shortcut}", "stride 8, dilation 4", "1/8"):
        assert expected in words
    assert not re.findall(r"href|url\(|<image|<script|font-face", text)


@EACH
def test_the_documents_of_a_bundle(row: Variant) -> None:
    folder = ROOT / "bundles" / row.bundle / "docs"
    assert sorted(path.name for path in folder.iterdir()) == sorted(DOCS)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    order = ["# Model Overview", "## Data", "## Training configuration", "## Performance", "## MONAI Bundle Commands"]
    order += ["# References", "# License"]
    places = [readme.index(f"\n{title}\n") if index else 0 for index, title in enumerate(order)]
    assert readme.startswith(order[0])
    assert places == sorted(places)
    for name in ("weights", "performance"):
        assert len(re.findall(rf"<!-- {name} -->\n.*?<!-- /{name} -->\n", readme, re.DOTALL)) == 1
    assert f"resolve/main/{row.filename}" in readme
    assert row.sha256 in readme
    assert f"| LungSeg, Dice | {row.lung_dice[0]:.2f}% | {row.lung_dice[1]:.2f}% |" in readme
    assert ("NoduleCls" in readme) == (row.nodule_accuracy is not None)
    assert ("Visceral" in readme) == (row.datasets == 23)
    assert "MIT" in (folder / "data_license.txt").read_text(encoding="utf-8")


@EACH
def test_configs_that_the_documents_name_exist(row: Variant) -> None:
    folder = ROOT / "bundles" / row.bundle
    readme = (folder / "docs" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"configs/\w+\.json", readme))
    assert len(named) > 5
    assert not [name for name in named if not (folder / name).is_file()]
    tools = set(re.findall(r"tools/\w+\.py", readme))
    assert tools
    assert not [name for name in tools if not (ROOT / name).is_file()]


def test_the_table_of_variants_states_memory(tool: ModuleType) -> None:
    lines = tool.variants_table().splitlines()
    assert len(lines) == 2 + len(VARIANTS)
    assert lines[0].endswith("| memory to train, batch 1 | batch on 24 GB |")
    assert lines[2].endswith("| 2.4 GB | 8 |")
    assert lines[-1].endswith("| 20.3 GB | none |")
    assert len({line.count("|") for line in lines}) == 1
