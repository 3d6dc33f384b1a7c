"""MONAI's own command that fetches published files, on ``large_files.yml``."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import load_tool
from downloader import TOOLS
from downloader import published as published
from downloader import root as root
from downloader import rows as rows
from downloader import run as run
from downloader import server as server
from downloader import tool as tool
from published import ROOT
from servers import Reply

from med3d_nets.variants import VARIANTS
from med3d_nets.weights import read_tensors


@pytest.fixture
def bundle(root, rows, server):
    """``medicalnet_resnet_10`` with a space in its name, whose ``large_files.yml`` names the server."""
    folder = root / "my bundles" / "medicalnet_resnet_10 copy"
    shutil.copytree(ROOT / "bundles" / "medicalnet_resnet_10", folder, ignore=shutil.ignore_patterns("models", "eval"))
    text = _large_files(rows["resnet_10"])
    hub = "https://huggingface.co/TencentMedicalNet/MedicalNet-Resnet10/resolve/main"
    assert hub in text
    (folder / "large_files.yml").write_text(text.replace(hub, server.url))
    return folder


@pytest.fixture
def monai_bundle(monkeypatch):
    """``python -m monai.bundle`` in this process, which has imported MONAI already."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["monai.bundle", *map(str, arguments)])
        runpy.run_module("monai.bundle", run_name="__main__")

    return call


def _large_files(row):
    render = load_tool("render_bundles")
    return render.fill((TOOLS / "templates" / "large_files.yml").read_text(), render.facts(row))


@pytest.mark.parametrize("row", VARIANTS, ids=lambda row: row.name)
def test_large_files_of_every_variant(row):
    text = _large_files(row)
    assert yaml.safe_load(text) == {
        "large_files": [
            {
                "path": f"models/{row.name}.pth",
                "url": f"https://huggingface.co/{row.hub_repo}/resolve/main/{row.name}.pth",
                "hash_val": row.sha256,
                "hash_type": "sha256",
            }
        ]
    }
    assert "[[" not in text


def test_monai_fetches_and_ours_imports(monai_bundle, run, root, bundle, published, server, monkeypatch):
    monai_bundle("download_large_files", "--bundle_path", bundle)
    file = bundle / "models" / "resnet_10.pth"
    assert file.read_bytes() == published["resnet_10"].read_bytes()
    assert server.paths == ["/resnet_10.pth"]
    convert = sys.modules["convert_pth"]
    convert.convert(str(file), dst=str(bundle / "models" / "pretrained.pt"))
    record = json.loads((bundle / "models" / "pretrained.json").read_text())
    assert (record["variant"], record["digest"]) == ("resnet_10", "known")
    assert len(read_tensors(bundle / "models" / "pretrained.pt")) == 72


@pytest.mark.slow
def test_monai_in_the_bundles_folder(bundle, published):
    """As a user does it, with nothing but the working directory to tell which bundle."""
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "download_large_files"],
        cwd=bundle,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (bundle / "models" / "resnet_10.pth").read_bytes() == published["resnet_10"].read_bytes()


def test_monai_refuses_a_wrong_digest(monai_bundle, bundle, server):
    before = sorted(bundle.rglob("*"))
    server.files["/resnet_10.pth"] = b"another"
    with pytest.raises(ValueError, match="sha256 hash check of downloaded file failed"):
        monai_bundle("download_large_files", "--bundle_path", bundle)
    assert sorted(bundle.rglob("*")) == before


def test_monai_refuses_a_broken_download(monai_bundle, bundle, server):
    before = sorted(bundle.rglob("*"))
    server.replies.append(Reply(cut_after=1000))
    with pytest.raises(OSError, match="retrieval incomplete"):
        monai_bundle("download_large_files", "--bundle_path", bundle)
    assert sorted(bundle.rglob("*")) == before
