"""``med3d get`` and ``med3d plan``: what the tools of the same purpose do, with the words of this command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from downloader import published, rows, server
from servers import FileServer
from test_cli import Outcome, med3d

from med3d_nets.variants import VARIANTS, Variant
from med3d_nets.weights import file_sha256

__all__ = ["med3d", "published", "rows", "server"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with the tools and a bundle of every variant in it, instead of the real one."""
    folder = tmp_path / "a project"
    for row in VARIANTS:
        (folder / "bundles" / row.bundle).mkdir(parents=True)
    (folder / "tools").symlink_to(ROOT / "tools")
    monkeypatch.setattr("med3d_nets.cli.get.ROOT", folder)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return folder


def test_get_fetches_and_converts(
    med3d: Callable[..., Outcome], project: Path, rows: dict[str, Variant], server: FileServer
) -> None:
    status, out, err = med3d("get", "--keep_pth", "resnet_10", "--source", server.url)
    assert (status, err) == (0, "")
    models = project / "bundles" / "medicalnet_resnet_10" / "models"
    assert out.startswith(f"resnet_10: {models / 'resnet_10.pth'} (")
    assert {path.name for path in models.iterdir()} == {"resnet_10.pth", "pretrained.pt", "pretrained.json"}
    record = json.loads((models / "pretrained.json").read_text())
    assert record["source_sha256"] == rows["resnet_10"].sha256
    assert record["sha256"] == file_sha256(models / "pretrained.pt")


def test_get_fetches_nothing_for_a_wrong_word(med3d: Callable[..., Outcome], project: Path) -> None:
    for words, said in (
        ([], "name the variants to fetch, or all. Known are: resnet_10"),
        (["resnet_10", "resnet_50_23datasets"], "no variant 'resnet_50_23datasets'; did you mean"),
        (["resnet_10", "--source", "2024"], "2024: no such folder"),
    ):  # fmt: skip
        status, out, err = med3d("get", *words)
        assert (status, out) == (1, "")
        assert err.startswith("error: ")
        assert said in err


def test_plan(med3d: Callable[..., Outcome], dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "my plan.json"
    words = ["--no_cuda", "--iterations", "0", "--memory_gb", "4", "--spacing", "[2,2,2]", "--out", out]
    status, shown, err = med3d("plan", dataset, *words)
    assert status == 0, err
    assert "spacing 2 x 2 x 2 mm: as given" in shown
    assert json.loads(out.read_text())["cases"] == 6
    status, shown, err = med3d("plan", dataset / "val.txt", *words, "--overwrite")
    assert status == 0, err
    assert json.loads(out.read_text())["cases"] == 2
