"""Packages of a bundle: what is in them, what MONAI makes of them, and what is refused."""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE, ROOT
from monai.apps.utils import extractall
from monai.bundle import ckpt_export, create_workflow, download, verify_metadata, verify_net_in_out
from published import constant, constant_state
from servers import Reply, serve

from med3d_nets import create_model
from med3d_nets.settings import Settings
from med3d_nets.weights import file_sha256, write_atomically

NAME = "medicalnet_resnet_10"
CLASSES = ["background", "anterior", "posterior | tail"]
VALIDATION = {"val_mean_dice": 0.75, "val_dice_anterior": 0.8, "val_dice_posterior_|_tail": 0.7, "val_none": None}
DIGEST = "2824951eaef30e115929b89bec72342380b08d14792bda1449974ac849e497c0"
SIZE = [16, 20, 16]
RENDERED = sorted(
    path.relative_to(ROOT / "tools" / "templates").as_posix()
    for path in (ROOT / "tools" / "templates").rglob("*")
    if path.is_file()
)


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("package_bundle", ROOT / "tools" / "package_bundle.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["package_bundle"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["package_bundle"]


def copy_bundle(folder: Path) -> Path:
    """A copy of the shipped bundle, as rendered."""
    for name in RENDERED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(BUNDLE / name, folder / name)
    return folder


def write_trained(folder: Path, **changes: Any) -> None:
    """A network with random weights and its settings and scores, as training writes them."""
    settings = {"variant": "resnet_10", "head": "medicalnet", "recipe": "whole", "in_channels": 1}
    settings |= {"class_names": CLASSES, "input_size": SIZE, "fill_empty_with_noise": True}
    settings["pretrained"] = {"file": "resnet_10.pth", "sha256": DIGEST, "tensors": 72}
    write_atomically(folder / "model.pt", create_model("resnet_10", 3).state_dict())
    text = Settings(**{**settings, **changes}).to_json(epoch=12, validation=VALIDATION)
    write_atomically(folder / "model.json", text)


def write_pretrained(folder: Path, **changes: Any) -> None:
    """Pretrained weights as the converter writes them."""
    state = {name: value.clone() for name, value in constant_state(10, "B").items()}
    write_atomically(folder / "pretrained.pt", state)
    record = {"variant": "resnet_10", "source": "resnet_10.pth", "source_sha256": DIGEST, "digest": "known"}
    record |= {"tensors": 72, "values": 14361292, "sha256": file_sha256(folder / "pretrained.pt")}
    write_atomically(folder / "pretrained.json", json.dumps({**record, **changes}))


def write_scores(path: Path, *rows: list[Any]) -> Path:
    """A summary of an evaluation."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["metric", "mean", "median", "min", "max", "cases"], *rows])
    return path


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


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {entry.filename.partition("/")[2]: archive.read(entry) for entry in archive.infolist()}


# What is in a package


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


def section(card: str, name: str) -> str:
    return re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", card, re.DOTALL)[1]


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


# What MONAI makes of it

LOADS = """
import json, sys, torch, monai.bundle
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
    names = [path.name for path in sorted(first.iterdir())]
    assert names == [path.name for path in sorted(second.iterdir())]
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


# What is refused


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
     ["neither model.pt nor pretrained.pt", "run training", "download_weights.py resnet_10'",
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
    ("scores of pretrained", lambda b: None, ["--weights", "pretrained", "--scores", "x.csv"], ["nothing to score"]),
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

    monkeypatch.setattr(tool, "_copy", fail)
    with pytest.raises(OSError, match="No space left"):
        tool.package(str(bundle), dst=str(tmp_path), overwrite=True)
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_weights_that_change_meanwhile_are_noticed(
    tool: ModuleType, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool.weights, "file_sha256", lambda path: "0" * 64)
    with pytest.raises(tool.Med3dError, match=r"model\.pt: changed while it was packaged"):
        tool.package(str(bundle), dst=str(tmp_path))
    assert list(tmp_path.iterdir()) == []
