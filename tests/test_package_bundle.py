"""What is in a package of a bundle, and what its model card and metadata say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BUNDLE, ROOT
from monai.apps.utils import extractall
from packages import CLASSES, DIGEST, NAME, RENDERED, SIZE, entries, section, write_pretrained, write_trained

from med3d_nets import create_model
from med3d_nets.weights import file_sha256

pytest_plugins = ["package_fixtures"]


@pytest.mark.parametrize(("kind", "weights"), [("trained", "model"), ("pretrained", "pretrained")])
def test_a_package_holds_the_rendered_files_and_the_weights_alone(
    kind: str, weights: str, bundle: Path, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(f"{kind}_zip")
    name = {"trained": NAME, "pretrained": "encoder_only"}[kind]
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        found = archive.infolist()
    names = [entry.filename for entry in found]
    assert names == sorted(names)
    assert set(names) == {f"{name}/{file}" for file in [*RENDERED, f"models/{weights}.pt", f"models/{weights}.json"]}
    for entry in found:
        assert entry.date_time == (1980, 1, 1, 0, 0, 0)
        assert (entry.create_system, entry.external_attr >> 16) == (3, 0o100644)
        assert entry.compress_type == zipfile.ZIP_STORED
    packaged = entries(path)
    for file in (
        f"models/{weights}.pt",
        f"models/{weights}.json",
        "LICENSE",
        "configs/logging.conf",
    ):
        assert packaged[file] == (bundle / file).read_bytes()


def test_the_same_input_gives_the_same_bytes(
    bundle: Path, trained_zip: Path, packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another process, from another folder, of a copy with other times, permissions and order of creation."""
    copy = tmp_path / "a copy" / "of it"
    for path in sorted(bundle.rglob("*"), reverse=True):
        if path.is_file():
            target = copy / path.relative_to(bundle)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
            os.utime(target, (1e9, 1e9))
            target.chmod(0o600)
    options = {"name": NAME, "version": "1.2.3", "changelog": "fine-tuned, at last", "dst": "out"}
    options["scores"] = str(packages / "metrics_summary.csv")
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "package_bundle.py"), "a copy/of it", *words],
        cwd=tmp_path, env={**os.environ, "TZ": "Asia/Tokyo"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = tmp_path / "out" / trained_zip.name
    assert made.read_bytes() == trained_zip.read_bytes()
    assert list(made.parent.iterdir()) == [made]
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(copy)


def test_the_configs_get_the_recorded_settings_and_stay_as_they_were(trained_zip: Path, pretrained_zip: Path) -> None:
    settings = {"n_seg_classes": 3, "class_names": CLASSES, "in_channels": 1, "head": "medicalnet"}
    settings |= {"input_D": 16, "input_H": 20, "input_W": 16, "fill_empty_with_noise": True}
    # Training goes on from the packaged weights, whose head is not new.
    settings |= {"pretrain_path": "$@bundle_root + '/models/model.pt'", "new_layer_names": []}
    packaged = entries(trained_zip)
    for name in (file for file in RENDERED if re.match(r"configs/.*\.json", file)):
        before, after = json.loads((BUNDLE / name).read_text()), json.loads(packaged[name])
        if name.endswith("/metadata.json"):
            continue
        expected = {"configs/train.json": settings, "configs/inference.json": settings}.get(name, {})
        assert list(after) == list(before)
        assert after == {key: expected.get(key, value) for key, value in before.items()}
        assert packaged[name].decode() == json.dumps(after, indent=4, ensure_ascii=False) + "\n"
        assert entries(pretrained_zip)[name] == (BUNDLE / name).read_bytes()
    assert json.loads(packaged["configs/inference.json"])["n_seg_classes"] == 3
    assert json.loads(packaged["configs/train.json"])["input_H"] == 20


def test_the_metadata_of_trained_weights(trained_zip: Path) -> None:
    before = json.loads((BUNDLE / "configs/metadata.json").read_text())
    text = entries(trained_zip)["configs/metadata.json"].decode()
    metadata = json.loads(text)
    assert text == json.dumps(metadata, indent=4, ensure_ascii=False) + "\n"
    assert list(metadata) == list(before)
    assert metadata["version"] == "1.2.3"
    assert next(iter(metadata["changelog"].items())) == ("1.2.3", "fine-tuned, at last")
    assert before["changelog"].items() < metadata["changelog"].items()
    assert metadata["eval_metrics"] == {
        "val_mean_dice": 0.75,
        "val_dice_anterior": 0.8,
        "val_dice_posterior_|_tail": 0.7,
        "evaluation: Dice anterior, mean of 2 cases": 0.8125,
    }
    image = metadata["network_data_format"]["inputs"]["image"]
    pred = metadata["network_data_format"]["outputs"]["pred"]
    assert (image["num_channels"], image["spatial_shape"], image["channel_def"]) == (1, SIZE, {"0": "image"})
    assert (pred["num_channels"], pred["spatial_shape"]) == (3, SIZE)
    assert pred["channel_def"] == {"0": "background", "1": "anterior", "2": "posterior | tail"}
    assert metadata["description"].startswith(before["description"] + "; packaged weights: trained from resnet_10.pth")
    untouched = {"version", "changelog", "eval_metrics", "network_data_format", "description"}
    assert {key for key in before if before[key] != metadata[key]} <= untouched


def test_the_model_card_of_trained_weights(trained_zip: Path, bundle: Path) -> None:
    before = (BUNDLE / "docs/README.md").read_text()
    card = entries(trained_zip)["docs/README.md"].decode()
    cut = re.compile(r"(<!-- (performance|weights) -->\n).*?(<!-- /\2 -->)", re.DOTALL)
    assert cut.sub(r"\1\3", card) == cut.sub(r"\1\3", before)
    performance, weights = (section(card, name) for name in ("performance", "weights"))
    for part in ("after epoch 12", "| val_mean_dice | 0.7500 |", "| Dice anterior | 0.8125 | 2 |",
                 "These scores chose the weights", "is not recorded"):  # fmt: skip
        assert part in performance
    assert "val_none" not in performance
    assert "nan" not in performance
    for part in (
        f"`{file_sha256(bundle / 'models/model.pt')}`", "`resnet_10`", "| head | medicalnet |", "| recipe | whole |",
        "0 background, 1 anterior, 2 posterior \\| tail", "16 x 20 x 16 voxels", "noise | yes |", "| epoch | 12 |",
        f"resnet_10.pth (SHA-256 {DIGEST}, the published file)", f"torch {torch.__version__}", "Apache-2.0",
        "MIT licence, copyright (C) 2019 THL A29 Limited",
    ):  # fmt: skip
        assert part in weights


def test_the_model_card_and_metadata_of_pretrained_weights(pretrained_zip: Path, bundle: Path) -> None:
    packaged = entries(pretrained_zip)
    card = packaged["docs/README.md"].decode()
    assert section(card, "performance") == section((BUNDLE / "docs/README.md").read_text(), "performance")
    weights = section(card, "weights")
    for part in (file_sha256(bundle / "models/pretrained.pt"), DIGEST, "72, 14361292", "MIT licence", '"encoder_only"'):
        assert part in weights
    metadata = json.loads(packaged["configs/metadata.json"])
    assert metadata["eval_metrics"] == {}
    assert metadata["version"] in metadata["changelog"]
    assert (
        metadata["network_data_format"]
        == json.loads((BUNDLE / "configs/metadata.json").read_text())["network_data_format"]
    )


def test_weights_from_scratch_of_several_channels_without_a_record(
    run: Callable[..., Any], tmp_path: Path, bundle: Path
) -> None:
    write_trained(tmp_path / "models", pretrained=None, in_channels=2)
    record = json.loads((tmp_path / "models/model.json").read_text())
    for name in ("epoch", "validation", "versions"):
        del record[name]
    (tmp_path / "models/model.json").write_text(json.dumps(record))
    torch.save(create_model("resnet_10", 3, in_channels=2).state_dict(), tmp_path / "models/model.pt")
    status, _, err = run(bundle, "--models", tmp_path / "models", "--dst", tmp_path)
    assert status == 0, err
    packaged = entries(tmp_path / f"{NAME}_v0.1.0.zip")
    metadata, card = json.loads(packaged["configs/metadata.json"]), packaged["docs/README.md"].decode()
    assert metadata["eval_metrics"] == {}
    assert metadata["changelog"] == json.loads((BUNDLE / "configs/metadata.json").read_text())["changelog"]
    image = metadata["network_data_format"]["inputs"]["image"]
    assert image["channel_def"] == {"0": "image channel 0", "1": "image channel 1"}
    assert "single channel" not in metadata["image_classes"]
    assert json.loads(packaged["configs/train.json"])["in_channels"] == 2
    assert section(card, "performance") == "No score is recorded for the packaged weights.\n"
    assert "| trained from | random weights |" in section(card, "weights")
    assert "THL A29" not in section(card, "weights")
    for path in tmp_path.rglob("*.*t"):
        path.unlink()


def test_the_report(run: Callable[..., Any], bundle: Path, tmp_path: Path) -> None:
    status, out, err = run(
        bundle, "--dst", tmp_path / "dist", "--name", "mine", "--version", "2.0.0", "--changelog", "a, b"
    )
    assert (status, err) == (0, "")
    path = tmp_path / "dist" / "mine_v2.0.0.zip"
    for part in (
        str(path), f"{path.stat().st_size:,} bytes", file_sha256(path), "mine/", "models/model.pt", "weights: trained",
        "python -m monai.bundle download --name mine --url <where you put it>/mine_v2.0.0.zip", "push_to_hf_hub",
    ):  # fmt: skip
        assert part in out
    assert json.loads(entries(path)["configs/metadata.json"])["changelog"]["2.0.0"] == "a, b"
    first = path.read_bytes()
    assert run(bundle, "--dst", path.parent, "--name", "mine", "--version", "2.0.0")[0] == 1
    assert path.read_bytes() == first
    status, _, err = run(bundle, "--dst", path.parent, "--name", "mine", "--version", "2.0.0", "--overwrite")
    assert status == 0, err
    assert json.loads(entries(path)["configs/metadata.json"])["changelog"]["2.0.0"] == "packaged with trained weights"
    shutil.rmtree(path.parent)


def test_an_unpacked_package_can_be_packaged_again(run: Callable[..., Any], trained_zip: Path, tmp_path: Path) -> None:
    extractall(trained_zip, tmp_path)
    status, _, err = run(tmp_path / NAME, "--dst", tmp_path)
    assert status == 0, err
    again, first = entries(tmp_path / trained_zip.name), entries(trained_zip)
    metadata, before = (json.loads(files.pop("configs/metadata.json")) for files in (again, first))
    evaluated = "evaluation: Dice anterior, mean of 2 cases"
    assert before["eval_metrics"].pop(evaluated)  # no --scores this time
    assert metadata == before
    assert {name for name in first if again[name] != first[name]} == {"docs/README.md"}
    write_pretrained(tmp_path / NAME / "models")
    status, _, err = run(tmp_path / NAME, "--weights", "pretrained", "--dst", tmp_path / "other")
    assert status == 1
    assert "its configs are those of trained weights" in err
    shutil.rmtree(tmp_path / NAME)
    (tmp_path / trained_zip.name).unlink()
