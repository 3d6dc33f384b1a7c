"""The command that fetches published files, on synthetic ones: fixtures, which a module imports by name."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from conftest import ROOT, load_tool
from published import constant_state, write_published
from servers import serve

from med3d_nets import variants
from med3d_nets.variants import VARIANTS, get_variant
from med3d_nets.weights import file_sha256

TOOLS = ROOT / "tools"
SMALL = ("resnet_10", "resnet_10_23dataset", "resnet_18")


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(TOOLS))  # as it is for a script there
    yield load_tool("download_weights")
    sys.path.remove(str(TOOLS))
    del sys.modules["convert_pth"]  # which it imports


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Synthetic published files of three variants, by name; their bytes differ."""
    folder = tmp_path_factory.mktemp("published")
    files = {}
    for name in SMALL:
        row = get_variant(name)
        state = constant_state(row.depth, row.shortcut)
        state["bn1.weight"] = torch.full((64,), float(row.datasets))
        files[name] = write_published(folder / row.filename, state)
    return files


@pytest.fixture
def rows(published, monkeypatch):
    """The table, with the digests of the synthetic files."""
    changed = tuple(
        dataclasses.replace(row, sha256=file_sha256(published[row.name])) if row.name in published else row
        for row in VARIANTS
    )
    monkeypatch.setattr(variants, "VARIANTS", changed)
    return {row.name: row for row in changed}


@pytest.fixture
def root(tool, tmp_path, monkeypatch):
    """A project's folder with a bundle of every variant in it, instead of the real one."""
    folder = tmp_path / "a project"
    for row in VARIANTS:
        (folder / "bundles" / row.bundle).mkdir(parents=True)
    monkeypatch.setattr(tool, "ROOT", folder)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield folder
    for path in tmp_path.rglob("*.pt"):
        path.unlink()  # pytest keeps the folders of three runs


@pytest.fixture
def server(published):
    with serve({f"/{file.name}": file.read_bytes() for file in published.values()}) as running:
        yield running


@pytest.fixture
def run(tool, root, rows, monkeypatch, capsys):
    """Runs the tool's main with arguments; gives its exit status, output and errors."""

    def run_main(*arguments):
        monkeypatch.setattr(sys, "argv", ["download_weights.py", *map(str, arguments)])
        status = 0
        try:
            tool.main()
        except SystemExit as error:
            status = error.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_main
