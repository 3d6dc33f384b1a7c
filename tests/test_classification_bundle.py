"""Classification with the shipped configs, from training to predictions: every variant, list and task."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE, ROOT
from pages import Page
from published import redraw, write_published
from test_every_bundle import workflow

from med3d_nets.errors import Med3dError, explain
from med3d_nets.variants import VARIANTS, Variant
from med3d_nets.weights import read_tensors

SMALL = {"n_epochs": 1, "input_size": [16, 16, 16], "spacing": [1, 1, 1], "batch_size": 4}
FIRST_QUICK = [
    pytest.param(variant, id=variant.name, marks=[pytest.mark.slow] if index else [])
    for index, variant in enumerate(VARIANTS)
]
Run = Callable[..., CompletedProcess[str]]


def volume(seed: int, edge: int) -> np.ndarray:
    """A cube of some size that is brighter than the rest."""
    array = np.random.RandomState(seed).normal(100, 5, (14, 16, 12)).astype(np.float32)
    array[4 : 4 + edge, 5 : 5 + edge, 3 : 3 + edge] += 300  # beyond the values of a byte
    return array


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve volumes of two classes, small and large, as lists of several kinds; the folder's name has a space."""
    folder = tmp_path_factory.mktemp("some cases")
    (folder / "images").mkdir()
    lines, rows, arrays = [], ["image,target,patient"], []
    for index in range(12):
        large = index % 2
        array = volume(index, 3 + 4 * large)
        name = f"images/p{index // 2}_{index}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.2, 1.5, 1.0])), folder / name)
        lines.append(f"{name} {'large' if large else 'small'}\n")
        rows.append(f"{name},{3.5 + 4 * large + index / 10},p{index // 2}")
        arrays.append(np.clip(array / 2, 0, 255).astype(np.uint8))
    (folder / "train.txt").write_text("".join(lines[:8]))
    (folder / "val.txt").write_text("".join(lines[8:]))
    (folder / "sizes.csv").write_text("\n".join(rows))
    labels = np.arange(12)[:, None] % 2
    parts = {"train": slice(0, 8), "val": slice(8, 10), "test": slice(10, 12)}
    kinds = {"images": np.stack(arrays), "labels": labels}
    np.savez(folder / "data.npz", **{f"{p}_{k}": v[s] for p, s in parts.items() for k, v in kinds.items()})
    return folder


def train(folder: Path, data: Path, *overlays: str, **options: Any) -> Any:
    given = {"data_root": str(data), "val_list": "val.txt", "pretrain_path": "", **SMALL, **options}
    training = workflow(folder, "train", "classification/train", *overlays, **given)
    training.run_id = "training"
    training.run()
    return training


def evaluate(folder: Path, data: Path, **options: Any) -> Any:
    names = ("classification/train", "classification/evaluate")
    evaluation = workflow(folder, "train", *names, **{"data_root": str(data), "val_list": "val.txt", **options})
    evaluation.run_id = "evaluating"
    evaluation.run()
    return evaluation


def infer(folder: Path, source: Path, **options: Any) -> list[dict[str, str]]:
    inference = workflow(folder, "inference", "classification/inference", img_list=str(source), **options)
    assert inference.check_properties() == []
    inference.run()
    return table(folder / "predictions" / "classification" / "predictions.csv")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLE, tmp_path / "my bundles" / BUNDLE.name))


@pytest.mark.parametrize("variant", FIRST_QUICK)
def test_bundle_classifies(variant: Variant, cases: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / "bundles" / variant.bundle, tmp_path / "my bundles" / variant.bundle))
    published = write_published(tmp_path / variant.filename, redraw(variant.depth, variant.shortcut))
    training = train(folder, cases, pretrain_path=str(published))
    assert training.check_properties() == []
    settings = json.loads((folder / "models/classification/model.json").read_text())
    assert settings["variant"] == variant.name
    assert settings["class_names"] == ["large", "small"]
    assert settings["pretrained"]["tensors"] == variant.encoder_tensors

    evaluation = evaluate(folder, cases, shown_cases=["images/p4_9.nii.gz"])
    assert evaluation.check_properties() == []
    rows = table(folder / "eval/classification/predictions.csv")
    assert [(row["class"], Path(row["case"]).name) for row in rows[:2]] == [
        ("small", "p4_8.nii.gz"),
        ("large", "p4_9.nii.gz"),
    ]
    metrics = json.loads((folder / "eval/classification/metrics.json").read_text())
    assert metrics["auc"]["value"] == pytest.approx(settings["validation"]["val_auc"])
    page = Page((folder / "eval/classification/report/index.html").read_text())
    assert page.text("h1").startswith("Classification")
    assert "4 of the 4 cases are those that the training was validated with" in page.text("p")
    assert [row[1:4] for row in page.tables[-4][1:]] == [["p4_9.nii.gz", "", "large"]]
    assert page.text("figcaption").count("Grad-CAM") == 2

    found = infer(folder, cases / "val.txt", data_root=str(cases))
    assert [row["predicted"] for row in found] == [row["predicted"] for row in rows]
    for ours, theirs in zip(found, rows, strict=True):
        assert float(ours["probability large"]) == pytest.approx(float(theirs["probability large"]), abs=1e-5)


def test_files_of_medmnist(bundle: Path, cases: Path) -> None:
    train(bundle, cases, img_list="data.npz", val_list="", input_size=[], spacing=[])
    settings = json.loads((bundle / "models/classification/model.json").read_text())
    assert settings["intensity"]["upper"] == 255
    found = infer(bundle, cases / "data.npz")
    assert [row["case"].rsplit("::", 2)[1:] for row in found] == [["test_images", "0"], ["test_images", "1"]]
    evaluate(bundle, cases, val_list="data.npz", section="test")
    rows = table(bundle / "eval/classification/predictions.csv")
    assert [row["class"] for row in rows] == ["0", "1"]
    assert [row["predicted"] for row in rows] == [row["predicted"] for row in found]


def test_numbers_by_folds_of_patients(bundle: Path, cases: Path) -> None:
    options = {"img_list": "sizes.csv", "folds": 2}
    held_out = []
    for fold in range(2):
        train(bundle, cases, **options, fold=fold, task="regression")
        record = json.loads((bundle / f"models/classification/fold_{fold}/fold.json").read_text())
        held_out.append({Path(name).name.split("_")[0] for name in record["validation"]})
        evaluate(bundle, cases, **options, fold=fold)
        rows = table(bundle / f"eval/classification/fold_{fold}/predictions.csv")
        assert {row["patient"] for row in rows} == held_out[fold]
    assert not held_out[0] & held_out[1]
    members = [infer(bundle, cases / "images", folds=2, fold=fold, overwrite=True) for fold in range(2)]
    both = infer(bundle, cases / "images", folds=2, overwrite=True)
    for one, other, mean in zip(*members, both, strict=True):
        expected = (float(one["predicted target"]) + float(other["predicted target"])) / 2
        assert float(mean["predicted target"]) == pytest.approx(expected, rel=1e-4)
        assert 0 < expected < 20  # in the unit of the targets


def test_report_without_saliency_and_without_a_case_of_that_name(bundle: Path, cases: Path) -> None:
    train(bundle, cases, report=False)
    with pytest.raises((Med3dError, RuntimeError)) as caught:
        evaluate(bundle, cases, shown_cases=["images/p0_0.nii.gz"])  # it is one of those to train on
    assert "found no case 'images/p0_0.nii.gz'" in str(explain(caught.value, {}))
    assert not (bundle / "eval/classification/predictions.csv").exists()
    evaluate(bundle, cases, saliency=False, shown_cases="p5_10.nii.gz")
    page = Page((bundle / "eval/classification/report/index.html").read_text())
    assert page.text("figcaption").count("Axial slices through the middle") == 2
    assert "Grad-CAM" not in page.text("figcaption")


def test_size_can_be_taken_away(bundle: Path, cases: Path) -> None:
    training = train(bundle, cases, keep_size=False)
    assert json.loads((bundle / "models/classification/model.json").read_text())["keep_size"] is False
    batch = next(iter(training.parser.get_parsed_content("train::dataloader")))
    assert batch["image"].shape[1:] == (1, 16, 16, 16)
    assert all(image[0, 0].std() > 0 for image in batch["image"])  # resized, where padding would leave an empty border
    infer(bundle, cases / "images")


@pytest.mark.parametrize(("finetune", "moves"), [("full", True), ("frozen", False)])
def test_frozen_encoders_stay(bundle: Path, cases: Path, tmp_path: Path, finetune: str, moves: bool) -> None:
    published = write_published(tmp_path / "resnet_10.pth", redraw(10, "B"))
    train(bundle, cases, pretrain_path=str(published), finetune=finetune, average_weights=0)
    before, after = read_tensors(published), read_tensors(bundle / "models/classification/model.pt")
    same = [torch.equal(value, after[f"encoder.{name}"]) for name, value in before.items() if "num_batches" not in name]
    assert all(same) == (not moves)


def test_options_of_imbalance_and_mixup(bundle: Path, cases: Path, tmp_path: Path) -> None:
    published = write_published(tmp_path / "resnet_10.pth", redraw(10, "B"))
    options = {"class_weights": "balanced", "sampler": "balanced", "label_smoothing": 0.1, "mixup": 0.4}
    train(bundle, cases, **options, pretrain_path=str(published), finetune="gradual", n_epochs=2, report=False)
    with pytest.raises((Med3dError, RuntimeError)) as caught:
        train(bundle, cases, finetune="gradual", ckpt_dir=str(tmp_path))
    assert "without pretrained weights" in str(explain(caught.value, {}))


def test_earlier_results_are_kept(bundle: Path, cases: Path) -> None:
    train(bundle, cases)
    with pytest.raises((Med3dError, RuntimeError)) as caught:
        train(bundle, cases, report=False)
    assert "an earlier training wrote" in str(explain(caught.value, {}))
    infer(bundle, cases / "images")
    with pytest.raises((Med3dError, RuntimeError)) as caught:
        infer(bundle, cases / "images")
    assert "predictions.csv: exists already" in str(explain(caught.value, {}))


def test_saliency_on_the_volumes_own_grid(bundle: Path, cases: Path) -> None:
    train(bundle, cases)
    infer(bundle, cases / "images", saliency=True)
    maps = sorted((bundle / "predictions/classification").glob("*_saliency.nii.gz"))
    assert len(maps) == 12
    found, scan = nibabel.load(maps[0]), nibabel.load(cases / "images" / "p0_0.nii.gz")
    assert found.shape == scan.shape
    np.testing.assert_array_equal(found.affine, scan.affine)
    values = found.get_fdata()
    assert 0 <= values.min() < values.max() <= 1
    with pytest.raises((Med3dError, RuntimeError)) as caught:
        infer(bundle, cases / "data.npz", saliency=True, overwrite=True)
    assert "data.npz::test_images::0" in str(explain(caught.value, {}))


def test_bad_lists_are_one_clear_error(cases: Path, bundle_run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("images/p0_0.nii.gz small\nimages/p0_1.nii.gz small\n")
    done = bundle_run(
        "training", "configs/classification/train.json", img_list=tmp_path / "bad.txt",
        pretrain_path="", ckpt_dir=tmp_path, output_dir=tmp_path, data_root=cases,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "bad.txt" in done.stderr
