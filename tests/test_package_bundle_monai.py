"""What MONAI makes of a package: it downloads, loads, checks, exports and runs it."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
import urllib.error
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE, ROOT
from monai.apps.utils import extractall
from monai.bundle import ckpt_export, create_workflow, download, verify_metadata, verify_net_in_out
from packages import NAME, SIZE
from published import constant
from servers import Reply, serve

from med3d_nets import create_model


@pytest.fixture(scope="module")
def downloaded(trained_zip: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The trained package as another user has it who fetched it by MONAI's command."""
    folder = tmp_path_factory.mktemp("fetched bundles")
    with serve({f"/{trained_zip.name}": trained_zip.read_bytes()}) as server:
        words = ["--name", NAME, "--url", f"{server.url}/{trained_zip.name}", "--bundle_dir", folder]
        command = [sys.executable, "-m", "monai.bundle", "download", *map(str, words)]
        done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (folder / f"{NAME}.zip").unlink()
    yield folder / NAME
    shutil.rmtree(folder)


LOADS = """
import json, sys, torch, monai.bundle

pytest_plugins = ["package_fixtures"]
for case in json.load(sys.stdin):
    network = monai.bundle.load(device="cpu", **case["options"])
    expected, prefix = torch.load(case["weights"], weights_only=True), case["prefix"]
    state = {key: value for key, value in network.state_dict().items() if key.startswith(prefix)}
    found = {
        "same": set(state) == {prefix + key for key in expected} and len(state),
        "wrong": [key for key, value in expected.items() if not torch.equal(state[prefix + key], value)],
        "classes": network.head[-1].weight.shape[0],
    }
    print("found", json.dumps(found))
"""


@pytest.fixture(scope="module")
def loaded(
    downloaded: Path, pretrained_zip: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What ``monai.bundle.load`` gives in a fresh interpreter in an empty folder, compared with the weights' file."""
    folder = tmp_path_factory.mktemp("elsewhere")
    extractall(pretrained_zip, folder / "bundles")
    ours = {"name": NAME, "bundle_dir": str(downloaded.parent)}
    encoder = {"name": "encoder_only", "bundle_dir": str(folder / "bundles"), "net_override": {"n_seg_classes": 5}}
    encoder |= {"model_file": "models/pretrained.pt", "copy_model_args": {"dst_prefix": "encoder."}}
    trained, pretrained = str(bundle / "models/model.pt"), str(bundle / "models/pretrained.pt")
    cases = {
        "train": {"options": {**ours, "workflow_type": "train"}, "weights": trained, "prefix": ""},
        "inference": {"options": {**ours, "workflow_type": "inference"}, "weights": trained, "prefix": ""},
        "encoder": {"options": encoder, "weights": pretrained, "prefix": "encoder."},
    }
    (folder / "empty").mkdir()
    command = [sys.executable, "-W", "ignore", "-c", LOADS]
    text = json.dumps(list(cases.values()))
    done = subprocess.run(
        command, cwd=folder / "empty", input=text, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not list((folder / "empty").iterdir())
    shutil.rmtree(folder)
    found = [json.loads(line.removeprefix("found ")) for line in done.stdout.splitlines() if line.startswith("found ")]
    return dict(zip(cases, found, strict=True))


@pytest.mark.parametrize("kind", ["train", "inference"])
def test_monai_loads_the_trained_network(kind: str, loaded: dict[str, dict[str, Any]]) -> None:
    expected = len(create_model("resnet_10", 3).state_dict())
    assert loaded[kind] == {"same": expected, "wrong": [], "classes": 3}


def test_monai_loads_the_encoder_of_a_pretrained_package(loaded: dict[str, dict[str, Any]], bundle: Path) -> None:
    assert loaded["encoder"] == {"same": 72, "wrong": [], "classes": 5}
    written = torch.load(bundle / "models/pretrained.pt", weights_only=True)
    assert written["conv1.weight"].mean() == pytest.approx(constant("conv1.weight"))


def workflow(folder: Path, **options: Any) -> Any:
    """The inference workflow of a bundle, from wherever the process is."""
    config = {"config_file": str(folder / "configs/inference.json"), "meta_file": str(folder / "configs/metadata.json")}
    options = {"workflow_type": "inference", "bundle_root": str(folder), "logging_file": False, **options}
    return create_workflow(**config, **options)


def same_maps(first: Path, second: Path) -> int:
    """The number of label maps in two folders, which must be equal and not empty of structures."""
    names = [path.name for path in sorted(first.glob("*.nii.gz"))]
    assert names == [path.name for path in sorted(second.glob("*.nii.gz"))]
    for name in names:
        ours, theirs = nibabel.load(first / name), nibabel.load(second / name)
        assert np.array_equal(ours.get_fdata(), theirs.get_fdata())
        assert np.array_equal(ours.affine, theirs.affine)
    assert any(nibabel.load(first / name).get_fdata().any() for name in names)
    return len(names)


def test_the_downloaded_bundle_infers_as_the_original_does(
    downloaded: Path, bundle: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, folder in (("ours", bundle), ("theirs", downloaded)):
        workflow(folder, img_list=str(dataset / "images"), output_dir=str(tmp_path / name), no_cuda=True).run()
    assert same_maps(tmp_path / "ours", tmp_path / "theirs") == 8


@pytest.mark.slow
def test_the_downloaded_bundle_infers_by_command(downloaded: Path, bundle: Path, dataset: Path, tmp_path: Path) -> None:
    for name, folder in (("ours", bundle), ("theirs", downloaded)):
        words = ["--config_file", "configs/inference.json", "--img_list", dataset / "images", "--no_cuda", "True"]
        words += ["--output_dir", tmp_path / name]
        command = [sys.executable, "-m", "monai.bundle", "run", "inference", *map(str, words)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    assert same_maps(tmp_path / "ours", tmp_path / "theirs") == 8


@pytest.mark.slow
def test_a_real_training_is_packaged_and_trained_on(
    run: Callable[..., Any], bundle_run: Callable[..., Any], dataset: Path, tmp_path: Path
) -> None:
    """Train, evaluate, package by --models and --scores, and train on from the packaged weights, retyping nothing."""
    models = tmp_path / "models"
    options = {"data_root": dataset, "n_seg_classes": 3, "input_D": 16, "input_H": 20, "input_W": 16, "batch_size": 3}
    options |= {"pretrain_path": "", "n_epochs": 1, "ckpt_dir": models, "output_dir": tmp_path / "eval"}
    done = bundle_run("training", "configs/train.json", **options)
    assert done.returncode == 0, done.stderr
    evaluate = "['configs/train.json','configs/evaluate.json']"
    done = bundle_run("evaluating", evaluate, data_root=dataset, ckpt_dir=models, output_dir=tmp_path / "eval")
    assert done.returncode == 0, done.stderr
    scores = tmp_path / "eval/metrics_summary.csv"
    status, _, err = run(BUNDLE, "--models", models, "--scores", scores, "--dst", tmp_path, "--version", "0.2.0")
    assert status == 0, err
    extractall(tmp_path / f"{NAME}_v0.2.0.zip", tmp_path / "fetched")
    metrics = json.loads((tmp_path / "fetched" / NAME / "configs/metadata.json").read_text())["eval_metrics"]
    recorded = json.loads((models / "model.json").read_text())["validation"]
    assert metrics["val_mean_dice"] == recorded["val_mean_dice"]
    assert [name for name in metrics if re.fullmatch(r"evaluation: Dice class 1, mean of \d cases?", name)]
    words = ["--data_root", dataset, "--pretrain_path", "models/model.pt", "--ckpt_dir", "next", "--n_epochs", 1]
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", "configs/train.json", *words]
    folder = tmp_path / "fetched" / NAME
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "next/model.json").read_text())["input_size"] == SIZE
    for path in (*tmp_path.rglob("*.pt"), *tmp_path.glob("*.zip")):
        path.unlink()


# The checks that the model zoo makes of a bundle, on the downloaded one


def test_the_model_zoo_finds_its_files_and_the_version(downloaded: Path) -> None:
    for name in ("LICENSE", "configs/metadata.json", "models/model.pt", "configs/inference.json"):
        assert (downloaded / name).is_file(), name
    metadata = json.loads((downloaded / "configs/metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]


def test_the_model_zoo_finds_the_metadata_as_its_schema_says(downloaded: Path, tmp_path: Path) -> None:
    schema = shutil.copy(ROOT / "tests" / "metadata_schema_20240725.json", tmp_path / "schema.json")
    verify_metadata(meta_file=str(downloaded / "configs/metadata.json"), filepath=str(schema))


def test_the_model_zoo_runs_the_network_as_the_metadata_says(
    downloaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {kind: str(downloaded / "configs" / name) for kind, name in
             (("meta_file", "metadata.json"), ("config_file", "inference.json"))}  # fmt: skip
    verify_net_in_out(net_id="network_def", device="cpu", bundle_root=str(downloaded), **files)
    wrong = {"_meta_::network_data_format::outputs::pred::num_channels": 2}
    with pytest.raises(ValueError, match="output channel number `3` doesn't match: `2`"):
        verify_net_in_out(net_id="network_def", device="cpu", bundle_root=str(downloaded), **files, **wrong)


def test_the_model_zoo_exports_the_network_and_loads_it_again(
    downloaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exported = downloaded / "models/verify_model.ts"
    ckpt_export(
        net_id="network_def",
        filepath=str(exported),
        ckpt_file=str(downloaded / "models/model.pt"),
        meta_file=str(downloaded / "configs/metadata.json"),
        config_file=str(downloaded / "configs/inference.json"),
        bundle_root=str(downloaded),
    )
    found = torch.jit.load(exported, map_location="cpu").state_dict()
    exported.unlink()
    for name, value in torch.load(downloaded / "models/model.pt", weights_only=True).items():
        assert torch.equal(found[name], value), name


def test_the_model_zoo_finds_all_properties(
    downloaded: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert workflow(downloaded, data_root=str(dataset / "images"), no_cuda=True).check_properties() == []


# MONAI's own answers to what is broken, so that a change in them is noticed


def fetch(content: bytes, folder: Path, *replies: Reply, name: str = "x") -> None:
    with serve({"/x.zip": content}) as server:
        server.replies.extend(replies)
        download(name=name, url=f"{server.url}/x.zip", bundle_dir=str(folder), progress=False)


def small_zip(path: Path, *names: str) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "{}")
    return path.read_bytes()


def test_a_cut_connection_leaves_nothing_and_the_next_attempt_succeeds(trained_zip: Path, tmp_path: Path) -> None:
    content, folder = trained_zip.read_bytes(), tmp_path / "bundles"
    with pytest.raises(urllib.error.ContentTooShortError):
        fetch(content, folder, Reply(cut_after=len(content) // 2), name=NAME)
    assert not folder.exists()
    fetch(content, folder, name=NAME)
    assert (folder / NAME / "models/model.pt").stat().st_size > 50e6
    shutil.rmtree(folder)


def test_a_cut_that_nothing_tells_of_leaves_a_zip_in_the_way_of_the_next_attempt(tmp_path: Path) -> None:
    """Without a length MONAI takes what came for the whole, and keeps it: one must remove the zip by hand."""
    content, folder = small_zip(tmp_path / "whole.zip", "x/configs/metadata.json", "x/LICENSE"), tmp_path / "bundles"
    for _ in range(2):
        with pytest.raises(zipfile.BadZipFile):
            fetch(content, folder, Reply(cut_after=60, length=False))
    assert (folder / "x.zip").stat().st_size == 60
    (folder / "x.zip").unlink()
    fetch(content, folder)
    assert (folder / "x" / "LICENSE").is_file()


def test_an_entry_that_climbs_out_is_refused_with_what_came_before_it_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the folder of it then passes for the whole bundle at the next attempt: MONAI skips one that is not empty."""
    content, folder = small_zip(tmp_path / "evil.zip", "x/LICENSE", "../evil.txt", "x/models/model.pt"), tmp_path / "b"
    with pytest.raises(ValueError, match=re.escape("Unsafe path detected in archive: ../evil.txt")):
        fetch(content, folder)
    assert not (tmp_path / "evil.txt").exists()
    assert sorted(path.name for path in folder.rglob("*")) == ["LICENSE", "x", "x.zip"]
    fetch(content, folder)
    assert sorted(path.name for path in folder.rglob("*")) == ["LICENSE", "x", "x.zip"]


def test_a_zip_without_metadata_is_unpacked_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content, folder = small_zip(tmp_path / "bare.zip", "x/LICENSE"), tmp_path / "bundles"
    logger = logging.getLogger("monai.bundle.scripts")
    logger.addHandler(caplog.handler)  # it does not propagate
    try:
        fetch(content, folder)
    finally:
        logger.removeHandler(caplog.handler)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [f"metadata file not found in {folder / 'x' / 'configs' / 'metadata.json'}."]
    assert (folder / "x" / "LICENSE").is_file()
