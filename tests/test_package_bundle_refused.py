"""What is refused before a package is written, and what a failed write leaves."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import BUNDLE, ROOT
from packages import NAME, copy_bundle

from med3d_nets import create_model

pytest_plugins = ["package_fixtures"]


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.unlink()
    path.write_text(json.dumps(content))


def _truncate(path: Path) -> None:
    content = path.read_bytes()[:100]
    path.unlink()
    path.write_bytes(content)


def _resave(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = change(torch.load(path, weights_only=True))
    path.unlink()
    torch.save(content, path)


def _link(path: Path, target: Path) -> None:
    path.rename(path.with_name(".before"))
    path.symlink_to(target)


def _four_classes(state: dict[str, Any]) -> dict[str, Any]:
    return create_model("resnet_10", 4).state_dict()


Case = tuple[str, Callable[[Path], object], list[str], list[str]]
REFUSED: list[Case] = [
    ("no metadata", lambda b: (b / "configs/metadata.json").unlink(), [], ["lacks configs/metadata.json"]),
    ("no licence", lambda b: (b / "LICENSE").unlink(), [], ["lacks LICENSE"]),
    ("broken config", lambda b: _truncate(b / "configs/train.json"), [], ["configs/train.json: not JSON"]),
    ("broken overlay", lambda b: _truncate(b / "configs/evaluate.json"), [], ["configs/evaluate.json: not JSON"]),
    ("a list", lambda b: (b / "configs/metadata.json").write_text("[]"), [], ["holds a list, expected an object"]),
    ("no variant", lambda b: _edit(b / "configs/train.json", lambda c: c.pop("variant")), [], ["different variants"]),
    ("an old config", lambda b: _edit(b / "configs/inference.json", lambda c: c.pop("head")), [], ["lacks head at"]),
    ("no format", lambda b: _edit(b / "configs/metadata.json", lambda c: c.pop("network_data_format")), [],
     ["configs/metadata.json: lacks network_data_format"]),
    ("no markers", lambda b: (b / "docs/README.md").write_text("# Mine\n"), [],
     ["docs/README.md: has no section", "<!-- performance -->"]),
    ("no weights", lambda b: shutil.rmtree(b / "models"), [],
     ["neither model.pt nor pretrained.pt", "run training", "'med3d get resnet_10'",
      "convert_pth.py --src resnet_10.pth", "--models"]),
    ("no settings", lambda b: (b / "models/model.json").unlink(), [], ["models/model.json: no such file", "training"]),
    ("no pretrained", lambda b: (b / "models/pretrained.pt").unlink(), ["--weights", "pretrained"],
     ["models/pretrained.pt: no such file", "convert_pth.py"]),
    ("broken settings", lambda b: _truncate(b / "models/model.json"), [], ["models/model.json: not JSON"]),
    ("other format", lambda b: _edit(b / "models/model.json", lambda c: c.update(format=9)), [], ["format 9"]),
    ("other variant", lambda b: _edit(b / "models/model.json", lambda c: c.update(variant="resnet_50")), [],
     ["variant is 'resnet_50'", "is 'resnet_10'"]),
    ("unknown head", lambda b: _edit(b / "models/model.json", lambda c: c.update(head="neck")), [], ["got 'neck'"]),
    ("class that runs", lambda b: _edit(b / "models/model.json", lambda c: c["class_names"].append("$exit()")), [],
     ["'$exit()' would be an expression"]),
    ("broken weights", lambda b: _truncate(b / "models/model.pt"), [], ["models/model.pt: truncated or damaged"]),
    ("other classes", lambda b: _resave(b / "models/model.pt", _four_classes), [],
     ["models/model.pt: the tensors do not fit", "head.6.weight"]),
    ("a tensor too few", lambda b: _resave(b / "models/model.pt", lambda s: dict(list(s.items())[1:])), [],
     ["1 missing: encoder.conv1.weight"]),
    ("nested weights", lambda b: _resave(b / "models/model.pt", lambda s: {"model": s}), [],
     ["holds the entry 'model', expected a flat dictionary"]),
    ("prefixed weights", lambda b: _resave(b / "models/model.pt", lambda s: {f"module.{k}": s[k] for k in s}), [],
     ["module.encoder.conv1.weight"]),
    ("stale record", lambda b: _edit(b / "models/pretrained.json", lambda c: c.update(sha256="00")),
     ["--weights", "pretrained"], ["pretrained.json: sha256 is '00'", "convert again"]),
    ("pretrained of another", lambda b: _edit(b / "models/pretrained.json", lambda c: c.update(variant="resnet_18")),
     ["--weights", "pretrained"], ["variant is 'resnet_18', expected 'resnet_10'"]),
    ("scores of pretrained", lambda b: None, ["--weights", "pretrained", "--scores", "x.csv"],
     ["--scores x.csv: these are the pretrained weights"]),
    ("no such scores", lambda b: None, ["--scores", "x.csv"], ["x.csv: no such file"]),
    ("linked file", lambda b: _link(b / "docs/README.md", ROOT / "README.md"), [],
     ["docs/README.md: a link out of", str(ROOT / "README.md")]),
    ("linked folder", lambda b: _link(b / "docs", BUNDLE / "docs"), [], ["docs/README.md: a link out of"]),
    ("linked settings", lambda b: _link(b / "models/model.json", ROOT / "LICENSE"), [],
     ["model.json: a link out of", "--models"]),
    ("version", lambda b: None, ["--version", "1.0"], ["version is '1.0', expected three whole numbers"]),
    ("version of the metadata", lambda b: _edit(b / "configs/metadata.json", lambda c: c.update(version="v1")), [],
     ["version is 'v1'"]),
    ("name that climbs", lambda b: None, ["--name", "../x"], ["--name is '../x'"]),
    ("name with a folder", lambda b: None, ["--name", "a/b"], ["--name is 'a/b'"]),
    ("name with a dot", lambda b: None, ["--name", "net.v2"], ["--name is 'net.v2'"]),
    ("kind", lambda b: None, ["--weights", "best"], ["--weights is 'best', expected one of trained, pretrained"]),
    ("value missing", lambda b: None, ["--name"], ["--name takes a value, but stands alone"]),
    ("flag with a value", lambda b: None, ["--overwrite", "no"], ["--overwrite takes no value"]),
    ("changelog that runs", lambda b: None, ["--changelog", "$exit()"], ["--changelog: '$exit()' would be"]),
    ("folder of weights", lambda b: None, ["--models", "nowhere"], ["nowhere: no such folder"]),
    ("option", lambda b: None, ["--wieghts", "trained"], ["wieghts"]),
]  # fmt: skip


@pytest.mark.parametrize(("change", "options", "parts"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED])
def test_refused_before_anything_is_written(
    change: Callable[[Path], object],
    options: list[str],
    parts: list[str],
    run: Callable[..., Any],
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = copy_bundle(tmp_path / NAME)
    (folder / "models").mkdir()
    for name in ("model.pt", "model.json", "pretrained.pt", "pretrained.json"):
        os.link(bundle / "models" / name, folder / "models" / name)  # no 57 MB to copy; a change makes a new file
    change(folder)
    monkeypatch.chdir(tmp_path)
    status, out, err = run(NAME, *options)
    assert status != 0
    assert out == ""
    if "--wieghts" not in options:  # Fire's own message, with the usage
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    for part in parts:
        assert part in err
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    for path in folder.rglob("*.pt"):
        path.unlink()


def test_an_existing_zip_and_a_failed_write_leave_the_old_one(
    tool: ModuleType, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / f"{NAME}_v0.1.0.zip"
    old.write_text("old")
    with pytest.raises(tool.Med3dError, match="exists already; replace it with --overwrite"):
        tool.package(str(bundle), dst=str(tmp_path))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("med3d_nets.packaging._copy", fail)
    with pytest.raises(OSError, match="No space left"):
        tool.package(str(bundle), dst=str(tmp_path), overwrite=True)
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_weights_that_change_meanwhile_are_noticed(
    tool: ModuleType, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("med3d_nets.packaged_weights.file_sha256", lambda path: "0" * 64)
    with pytest.raises(tool.Med3dError, match=r"model\.pt: changed while it was packaged"):
        tool.package(str(bundle), dst=str(tmp_path))
    assert list(tmp_path.iterdir()) == []
