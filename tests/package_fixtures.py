"""A bundle that was used, the tool that packages it, and packages: a plugin for ``test_package_bundle*.py``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import load_tool
from packages import NAME, copy_bundle, write_pretrained, write_scores, write_trained


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("package_bundle")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bundle's folder, below one with a space in its name, in which its user has trained and much else lies."""
    folder = copy_bundle(tmp_path_factory.mktemp("my bundles") / NAME)
    write_trained(folder / "models")
    write_pretrained(folder / "models")
    others = ("data/case.nii.gz", "eval/metrics.csv", "predictions/case_seg.nii.gz", "models/checkpoint_epoch=2.pt")
    for name in (*others, "models/resnet_10.pth", "configs/__pycache__/a.pyc", "docs/.hidden", "notes.txt", ".env"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("the user's own")
    yield folder
    for path in folder.rglob("*.pt"):
        path.unlink()  # pytest keeps the folders of three runs


@pytest.fixture
def run(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs the tool's main with arguments; gives its exit status, output and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["package_bundle.py", *map(str, arguments)])
        status = 0
        try:
            tool.main()
        except SystemExit as error:
            status = error.code
        return (status, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def packages(tool: ModuleType, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the trained and the pretrained package of the bundle."""
    folder = tmp_path_factory.mktemp("packages")
    rows = [["Dice anterior", 0.8125, 0.82, 0.7, 0.9, 2], ["Dice posterior | tail", "nan", "nan", "nan", "nan", 0]]
    scores = write_scores(folder / "metrics_summary.csv", *rows)
    options = {"version": "1.2.3", "changelog": "fine-tuned, at last", "scores": str(scores), "dst": str(folder)}
    tool.package(str(bundle), **options)
    tool.package(str(bundle), weights="pretrained", name="encoder_only", dst=str(folder))
    yield folder
    for path in folder.glob("*.zip"):
        path.unlink()


@pytest.fixture(scope="module")
def trained_zip(packages: Path) -> Path:
    return packages / f"{NAME}_v1.2.3.zip"


@pytest.fixture(scope="module")
def pretrained_zip(packages: Path) -> Path:
    return packages / "encoder_only_v0.1.0.zip"
