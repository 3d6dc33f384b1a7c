"""Folds, their ensemble and the report pages, by the shipped configs from training to label maps."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE
from pages import Page
from test_every_bundle import workflow

from med3d_nets.ensemble import Ensemble
from med3d_nets.errors import Med3dError

PATCH = {"pretrain_path": "", "n_epochs": 1, "patch_size": [16, 16, 8], "n_seg_classes": 3}


@pytest.fixture(scope="module")
def dataset(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cases with slices of 1.0 to 1.7 mm, so that each half of them has its own median."""
    folder = Path(shutil.copytree(dataset, tmp_path_factory.mktemp("folds data") / "data"))
    for path in sorted(folder.glob("*/*.nii.gz")):
        volume = nibabel.load(path)
        affine = volume.affine.copy()
        affine[:3, 2] *= (1 + int(re.findall(r"\d+", path.name)[0]) / 10) / np.linalg.norm(affine[:3, 2])
        nibabel.save(nibabel.Nifti1Image(np.asanyarray(volume.dataobj), affine), path)
    return folder


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the networks of two folds of ``train.txt``."""
    folder = Path(shutil.copytree(BUNDLE, tmp_path_factory.mktemp("folds") / BUNDLE.name))
    for fold in range(2):
        training = workflow(folder, "train", "train", "patch", data_root=str(dataset), folds=2, fold=fold, **PATCH)
        training.run_id = "training"
        training.run()
    return folder


def evaluate(folder: Path, dataset: Path, **options: object) -> None:
    evaluation = workflow(folder, "train", "train", "evaluate", data_root=str(dataset), **options)
    evaluation.run_id = "evaluating"
    evaluation.run()


def cases(path: Path) -> set[str]:
    with path.open() as file:
        return {Path(row["case"]).name for row in csv.DictReader(file)}


def listed(path: Path) -> set[str]:
    return {Path(line.split()[0]).name for line in path.read_text().splitlines()}


def test_every_case_is_held_out_once(trained: Path, dataset: Path) -> None:
    records = [json.loads((trained / "models" / f"fold_{fold}" / "fold.json").read_text()) for fold in range(2)]
    first, second = ({Path(name).name for name in record["validation"]} for record in records)
    assert not first & second
    assert first | second == listed(dataset / "train.txt")
    plans = [json.loads((trained / "models" / f"fold_{fold}" / "model.json").read_text()) for fold in range(2)]
    assert plans[0]["spacing"] == plans[1]["spacing"] == pytest.approx([0.8, 1.25, 2.5], rel=1e-4)  # of all six


def test_training_draws_a_page(trained: Path) -> None:
    for fold in range(2):
        page = Page((trained / "eval" / f"fold_{fold}" / "report" / "training.html").read_text())
        assert page.text("p").startswith("finished, epoch 1 of 1")


def test_a_fold_is_evaluated_on_what_it_held_out(trained: Path, dataset: Path) -> None:
    evaluate(trained, dataset, folds=2, fold=1)
    record = json.loads((trained / "models" / "fold_1" / "fold.json").read_text())
    assert cases(trained / "eval" / "fold_1" / "metrics.csv") == {Path(name).name for name in record["validation"]}
    page = Page((trained / "eval" / "fold_1" / "report" / "index.html").read_text())
    assert page.text("h1") == "Evaluation: resnet_10, unet head, patch recipe"
    assert {row[0] for row in page.tables[0][1:]} == {"Dice", "HD95 [mm]", "Surface Dice"}
    for options, text in (
        ({}, "exist already"),
        ({"manual_seed": 5, "output_dir": str(trained / "other")}, "fold.json"),
    ):
        with pytest.raises((Med3dError, RuntimeError)) as caught:  # the seed divides the cases
            evaluate(trained, dataset, folds=2, fold=1, **options)
        assert text in f"{caught.value} {caught.value.__cause__}"


def test_the_ensemble_is_evaluated_on_the_other_list(trained: Path, dataset: Path) -> None:
    evaluate(trained, dataset, folds=2, report=False)
    assert cases(trained / "eval" / "metrics.csv") == listed(dataset / "val.txt")
    assert not (trained / "eval" / "report").exists()


def test_the_ensemble_infers(trained: Path, dataset: Path) -> None:
    image = dataset / "images" / "case_7.nii.gz"
    options = {"img_list": str(image), "data_root": str(dataset)}
    inference = workflow(trained, "inference", "inference", folds=2, **options)
    inference.run()
    network = inference.parser.get_parsed_content("network")
    assert isinstance(network, Ensemble)
    assert len(network.networks) == 2
    answer, scan = nibabel.load(trained / "predictions" / "case_7_seg.nii.gz"), nibabel.load(image)
    assert answer.shape == scan.shape
    np.testing.assert_array_equal(answer.affine, scan.affine)
    saved = torch.load(trained / "models" / "fold_1" / "model.pt", weights_only=True)
    assert torch.equal(network.networks[1].state_dict()["head.classifier.weight"], saved["head.classifier.weight"])
    one = workflow(trained, "inference", "inference", folds=2, fold=0, output_dir=str(trained / "one"), **options)
    one.run()
    assert (trained / "one" / "case_7_seg.nii.gz").is_file()
