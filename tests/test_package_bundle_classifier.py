"""Packages with a classifier: what is in them, what they say of it, and that they run as they are unpacked."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE
from monai.apps.utils import extractall
from monai.bundle import verify_metadata, verify_net_in_out
from packages import DIGEST, NAME, RENDERED, copy_bundle, entries, section, write_pretrained, write_trained
from test_every_bundle import SCHEMA, workflow
from trained_classifiers import CLASSES, REGRESSION, SIZE, write_classifier

from med3d_nets.classification.scores import as_record, score_classes
from med3d_nets.networks import create_classifier
from med3d_nets.weights import file_sha256

pytest_plugins = ["package_fixtures"]

ORIGIN = {"file": "resnet_10.pth", "sha256": DIGEST, "tensors": 72}
METADATA = "configs/classification/metadata.json"


def write_metrics(path: Path, **changes: Any) -> Path:
    """Scores of six cases, as an evaluation writes them."""
    labels = np.array([0, 0, 1, 1, 2, 2])
    probabilities = np.eye(3)[[0, 1, 1, 1, 2, 2]] * 0.7 + 0.1
    scores = as_record(score_classes(probabilities, labels, CLASSES, ["a", "b", "c", "d", "e", "e"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"task": "classification", "class_names": CLASSES, **scores, **changes}))
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bundle's folder in which its user has trained a classifier alone, from pretrained weights, and evaluated it."""
    folder = copy_bundle(tmp_path_factory.mktemp("my bundles") / NAME)
    write_classifier(folder / "models/classification", pretrained=ORIGIN)
    write_pretrained(folder / "models")
    write_metrics(folder / "eval/classification/metrics.json")
    (folder / "models/classification/checkpoint_epoch=7.pt").write_text("the user's own")
    (folder / "data").mkdir()
    for index in range(6):
        array = np.random.RandomState(index).normal(100, 5, (14, 16, 12 + index)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.2, 1.5, 1.0])), folder / "data" / f"{index}.nii.gz")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def package(tool: Any, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("packages")
    tool.package(str(bundle), dst=str(folder), version="1.2.3")
    yield folder / f"{NAME}_v1.2.3.zip"
    shutil.rmtree(folder)


def predictions(folder: Path, **options: Any) -> list[list[str]]:
    """What inference in a bundle's folder writes of the volumes in its ``data``, without other options than these."""
    with contextlib.chdir(folder):
        found = workflow(Path("."), "inference", "classification/inference", overwrite=True, **options)
        assert found.check_properties() == []
        found.run()
    with (folder / "predictions/classification/predictions.csv").open(newline="") as file:
        return list(csv.reader(file))


def unpack(package: Path, target: Path, data: Path) -> Path:
    extractall(package, target)
    shutil.copytree(data, target / NAME / "data")
    return target / NAME


def test_a_classifier_is_packaged_with_its_settings(package: Path, bundle: Path) -> None:
    """And without the pretrained weights that it no longer needs, and without checkpoints."""
    packaged = entries(package)
    weights = {f"models/classification/model.{suffix}" for suffix in ("pt", "json")}
    assert set(packaged) == {*RENDERED, *weights}
    for name in weights:
        assert packaged[name] == (bundle / name).read_bytes()
    train = json.loads(packaged["configs/classification/train.json"])
    expected = {"task": "classification", "class_names": CLASSES, "margin_mm": 4.0, "keep_size": True}
    expected |= {"spacing": [1.0, 1.2, 1.5], "input_size": SIZE, "in_channels": 1, "intensity": "mr"}
    expected |= {"pretrain_path": "$@bundle_root + '/models/classification/model.pt'", "new_layer_names": []}
    assert train == json.loads((BUNDLE / "configs/classification/train.json").read_text()) | expected
    same = set(RENDERED) - {"configs/classification/train.json", METADATA, "configs/metadata.json", "docs/README.md"}
    for name in same:
        assert packaged[name] == (BUNDLE / name).read_bytes(), name


def test_the_metadata_and_the_card_name_it(package: Path, bundle: Path, tmp_path: Path) -> None:
    packaged = entries(package)
    metadata, own = (json.loads(packaged[name]) for name in (METADATA, "configs/metadata.json"))
    summary = "; packaged weights: a classifier trained from resnet_10.pth"
    assert summary in metadata["description"]
    assert summary in own["description"]
    assert own["eval_metrics"] == {}
    assert metadata["version"] == own["version"] == "1.2.3"
    assert metadata["eval_metrics"]["val_auc"] == 0.75
    assert metadata["eval_metrics"]["evaluation: accuracy of 6 cases of 5 patients"] == pytest.approx(5 / 6)
    image, pred = (metadata["network_data_format"][kind] for kind in ("inputs", "outputs"))
    assert image["image"]["spatial_shape"] == SIZE
    assert pred["pred"]["channel_def"] == {"0": "benign", "1": "malignant", "2": "other | odd"}
    assert (pred["pred"]["num_channels"], pred["pred"]["spatial_shape"]) == (3, [])
    card = packaged["docs/README.md"].decode()
    performance, weights = section(card, "performance"), section(card, "weights")
    for part in ("The classifier in `models/classification`", "after epoch 7", "| val_auc | 0.7500 |",
                 "Evaluation on 6 cases of 5 patients", "| accuracy | 0.8333 | ", "| log loss | "):  # fmt: skip
        assert part in performance
    for part in (
        file_sha256(bundle / "models/classification/model.pt"), "0 benign, 1 malignant, 2 other \\| odd",
        "configs/classification/inference.json", "temperature of 1.7", "1 x 1.2 x 1.5 mm", "16 x 20 x 16 voxels",
        "MIT licence, copyright (C) 2019 THL A29 Limited",
    ):  # fmt: skip
        assert part in weights
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    schema = shutil.copy(SCHEMA, tmp_path / "schema.json")
    verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(schema))


def test_the_unpacked_bundle_answers_without_options(package: Path, bundle: Path, tmp_path: Path) -> None:
    unpacked = unpack(package, tmp_path, bundle / "data")
    expected = predictions(bundle)
    assert len(expected) == 1 + 6
    assert [row[1:] for row in predictions(unpacked)] == [row[1:] for row in expected]
    files = {"meta_file": METADATA, "config_file": "configs/classification/inference.json"}
    with contextlib.chdir(unpacked):
        verify_net_in_out("network_def", device="cpu", **files)
    shutil.rmtree(unpacked)


def test_an_unpacked_package_can_be_packaged_again(package: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    extractall(package, tmp_path)
    write_metrics(tmp_path / NAME / "eval/classification/metrics.json")
    status, _, err = run(tmp_path / NAME, "--dst", tmp_path)
    assert status == 0, err
    assert (tmp_path / package.name).read_bytes() == package.read_bytes()
    shutil.rmtree(tmp_path / NAME)
    (tmp_path / package.name).unlink()


def test_scores_that_are_older_than_the_weights(
    run: Callable[..., Any], bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = write_metrics(tmp_path / "metrics.json")
    options = ["--metrics", metrics, "--dst", tmp_path, "--overwrite"]
    assert run(bundle, *options)[0] == 0
    assert not caplog.text
    os.utime(metrics, (0, 0))
    assert run(bundle, *options)[0] == 0
    assert f"{metrics} is older than {bundle / 'models/classification/model.pt'}: if that was trained" in caplog.text
    (tmp_path / f"{NAME}_v0.1.0.zip").unlink()


def test_folds_answer_together(run: Callable[..., Any], bundle: Path, tmp_path: Path) -> None:
    """Of a regression; what each fold held out stays with its user."""
    folds = tmp_path / "folds"
    targets = [{"mean": 12.0, "std": 4.0}, {"mean": 11.0, "std": 5.0}]
    for number, target in enumerate(targets):
        write_classifier(folds / f"fold_{number}", seed=number, **{**REGRESSION, "target": target})
        record = {"folds": 2, "fold": number, "validation": ["somebody.nii.gz"]}
        (folds / f"fold_{number}/fold.json").write_text(json.dumps(record))
    status, _, err = run(bundle, "--classifier", folds, "--dst", tmp_path)
    assert status == 0, err
    package = tmp_path / f"{NAME}_v0.1.0.zip"
    packaged = entries(package)
    names = {f"models/classification/fold_{number}/model.{suffix}" for number in (0, 1) for suffix in ("pt", "json")}
    assert set(packaged) == {*RENDERED, *names}
    assert json.loads(packaged["configs/classification/inference.json"])["folds"] == 2
    train = json.loads(packaged["configs/classification/train.json"])
    assert (train["folds"], train["task"], train["class_names"]) == (0, "regression", ["size"])
    assert train["pretrain_path"].endswith("/models/classification/fold_0/model.pt'")
    metadata = json.loads(packaged[METADATA])
    assert "a regression of 2 networks trained from random weights, predicting size" in metadata["description"]
    assert metadata["eval_metrics"] == {"fold 0: val_mae": 1.5, "fold 1: val_mae": 1.5}  # no other's metrics.json
    pred = metadata["network_data_format"]["outputs"]["pred"]
    assert (pred["format"], pred["num_channels"], pred["channel_def"]) == ("regression", 1, {"0": "size"})
    card = packaged["docs/README.md"].decode()
    assert "| score | fold 0 | fold 1 |" in section(card, "performance")
    assert "mean of its 2 networks" in section(card, "weights")
    unpacked = unpack(package, tmp_path / "fetched", bundle / "data")
    expected = predictions(bundle, ckpt_dir=str(folds), folds=2)
    assert [row[1:] for row in predictions(unpacked)] == [row[1:] for row in expected]
    for folder in (unpacked, folds):
        shutil.rmtree(folder)
    package.unlink()


def test_beside_a_segmentation(run: Callable[..., Any], bundle: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_trained(models)
    options = ["--models", models, "--classifier", bundle / "models/classification", "--dst", tmp_path]
    status, out, err = run(bundle, *options, "--metrics", write_metrics(tmp_path / "metrics.json", n=7))
    assert status == 0, err
    assert "weights: trained" in out
    packaged = entries(tmp_path / f"{NAME}_v0.1.0.zip")
    assert {name for name in packaged if name.endswith(".pt")} == {"models/model.pt", "models/classification/model.pt"}
    own = json.loads(packaged["configs/metadata.json"])
    assert "trained from resnet_10.pth" in own["description"]
    assert "; a classifier trained from resnet_10.pth" in own["description"]
    assert own["network_data_format"]["outputs"]["pred"]["channel_def"]["1"] == "anterior"
    assert json.loads(packaged["configs/train.json"])["n_seg_classes"] == 3
    card = packaged["docs/README.md"].decode()
    performance, weights = section(card, "performance"), section(card, "weights")
    for part in ("val_mean_dice", "val_auc", "Evaluation on 7 cases"):
        assert part in performance
    assert (weights.count("THL A29"), weights.count("SHA-256 |")) == (1, 2)
    shutil.rmtree(models)
    (tmp_path / f"{NAME}_v0.1.0.zip").unlink()


@pytest.mark.slow
def test_training_goes_on_from_an_unpacked_classifier(package: Path, bundle: Path, tmp_path: Path) -> None:
    """By its command, retyping nothing."""
    unpacked = unpack(package, tmp_path, bundle / "data")
    lines = [f"{index}.nii.gz '{CLASSES[index % 3]}'\n" for index in range(6)]
    for name, part in (("train", lines[:3]), ("val", lines[3:])):
        (unpacked / f"data/{name}.txt").write_text("".join(part))
    words = ["--ckpt_dir", "next", "--n_epochs", 1, "--val_list", "val.txt", "--no_cuda", True]
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file"]
    command += ["configs/classification/train.json", *map(str, words)]
    done = subprocess.run(command, cwd=unpacked, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    before, after = (
        json.loads((unpacked / name / "model.json").read_text()) for name in ("models/classification", "next")
    )
    digest = file_sha256(unpacked / "models/classification/model.pt")
    state = create_classifier("resnet_10", 3).state_dict()
    assert after["pretrained"] == {"file": "model.pt", "sha256": digest, "tensors": len(state)}
    for name in ("class_names", "spacing", "input_size", "margin_mm", "keep_size", "intensity"):
        assert after[name] == before[name], name
    shutil.rmtree(unpacked)


def _edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.unlink()
    path.write_text(json.dumps(content))


def _other_classes(folder: Path) -> None:
    (folder / "model.pt").unlink()
    torch.save(create_classifier("resnet_10", 4).state_dict(), folder / "model.pt")


def _folds(folder: Path, count: int) -> None:
    for number in range(count):
        (folder / f"fold_{number}").mkdir()
        for name in ("model.pt", "model.json"):
            os.link(folder / name, folder / f"fold_{number}" / name)
    for name in ("model.pt", "model.json"):
        (folder / name).unlink()


def _linked(folder: Path) -> None:
    target = folder.parents[2] / "other" / "elsewhere"
    folder.rename(target)
    folder.symlink_to(target)


def _one_of_five(folder: Path) -> None:
    _folds(folder, 2)
    (folder / "fold_0/fold.json").write_text(json.dumps({"folds": 3, "fold": 0, "validation": []}))


def _different(folder: Path) -> None:
    _folds(folder, 2)
    _edit(folder / "fold_1/model.json", margin_mm=5)


Case = tuple[str, Callable[[Path], object], list[str], list[str]]
REFUSED: list[Case] = [
    ("no settings", lambda f: (f / "model.json").unlink(), [], ["classification/model.json: no such file", "training"]),
    ("other variant", lambda f: _edit(f / "model.json", variant="resnet_50"), [], ["variant is 'resnet_50'"]),
    ("class that runs", lambda f: _edit(f / "model.json", class_names=["a", "b", "$exit()"]), [],
     ["'$exit()' would be an expression"]),
    ("no classifier's settings", lambda f: _edit(f / "model.json", task="guess"), [], ["task is 'guess'"]),
    ("other classes", _other_classes, [], ["model.pt: the tensors do not fit", "head.linear.weight"]),
    ("a fold is missing", _one_of_five, [], ["fold_2: found no model.json and no model.pt"]),
    ("a fold differs", _different, [], ["margin_mm is 5 in", "fold_1"]),
    ("a fold alone", lambda f: _folds(f, 1), [], ["folds: found 1"]),
    ("other scores", lambda f: _edit(f.parents[1] / "eval/classification/metrics.json", class_names=["a", "b"]), [],
     ["metrics.json: class_names is ['a', 'b'], but the classifier has", "of another network?"]),
    ("linked", _linked, [], ["classification/model.pt: a link out of", "--classifier"]),
    ("no such scores", lambda f: None, ["--metrics", "x.json"], ["x.json: no such file"]),
    ("scores of a segmentation", lambda f: None, ["--scores", "x.csv"], ["scores of a classifier are --metrics"]),
    ("scores of nothing", lambda f: None, ["--models", "other", "--metrics", "x.json"], ["--metrics x.json", "has no"]),
    ("pretrained", lambda f: None, ["--weights", "pretrained", "--classifier", f"{NAME}/models/classification"],
     ["--classifier", "these are the pretrained weights"]),
    ("nowhere", lambda f: None, ["--classifier", "nowhere"], ["nowhere: no such folder"]),
    ("nothing there", lambda f: None, ["--classifier", f"{NAME}/docs"], ["docs has no classifier, neither model.pt"]),
    ("taken for a segmentation", lambda f: None, ["--models", f"{NAME}/models/classification"],
     ["of a classifier; give its folder as --classifier"]),
    ("old bundle", lambda f: (f.parents[1] / METADATA).unlink(), [], [f"lacks {METADATA}; render it anew"]),
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
    folder = copy_bundle(tmp_path / NAME) / "models/classification"
    for source, target in ((bundle / "models/classification", folder), (bundle / "models", folder.parent)):
        target.mkdir(parents=True, exist_ok=True)
        for path in source.glob("*.*"):
            os.link(path, target / path.name)  # no 57 MB to copy; a change makes a new file
    write_metrics(folder.parents[1] / "eval/classification/metrics.json")
    (tmp_path / "other").mkdir()
    shutil.copy(bundle / "models/pretrained.json", tmp_path / "other")
    os.link(bundle / "models/classification/model.pt", tmp_path / "other/model.pt")
    change(folder)
    monkeypatch.chdir(tmp_path)
    status, out, err = run(NAME, *options)
    assert status != 0
    assert out == ""
    assert err.startswith("error: ")
    for part in parts:
        assert part in err
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME, "other"]
    for path in tmp_path.rglob("*.pt"):
        path.unlink()
