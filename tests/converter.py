"""The converter of published files in a project's folder of its own: fixtures, which a module imports by name."""

from __future__ import annotations

import sys

import pytest
from conftest import ROOT, load_tool

from med3d_nets.variants import VARIANTS

TOOL = ROOT / "tools" / "convert_pth.py"
ALLOW = "--allow_digest_mismatch"


@pytest.fixture(scope="module")
def tool():
    return load_tool("convert_pth")


@pytest.fixture
def root(tool, tmp_path, monkeypatch):
    """A project's folder with a bundle of every variant in it, instead of the real one."""
    for row in VARIANTS:
        (tmp_path / "bundles" / row.bundle).mkdir(parents=True)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for path in tmp_path.rglob("*.pt"):
        path.unlink()  # pytest keeps the folders of three runs


@pytest.fixture
def run(tool, root, monkeypatch, capsys):
    """Runs the tool's main with arguments; gives its exit status, output and errors."""

    def run_main(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert_pth.py", *map(str, arguments)])
        status = 0
        try:
            tool.main()
        except SystemExit as error:
            status = error.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_main


@pytest.fixture
def refused(run, root):
    """Runs the tool, asserts that it fails with one line and leaves every file as it is; gives the message."""

    def run_refused(*arguments):
        before = snapshot(root)
        status, out, err = run(*arguments)
        assert (status, out) == (1, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert snapshot(root) == before
        return err

    return run_refused


def snapshot(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def read_report(report):
    """The report as a dictionary, with its values aligned."""
    pairs = [line.partition(":") for line in report.splitlines()]
    assert (
        len({len(line) - len(rest.lstrip()) for line, (_, _, rest) in zip(report.splitlines(), pairs, strict=True)})
        == 1
    )
    return {name: rest.strip() for name, _, rest in pairs}
