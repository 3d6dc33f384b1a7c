"""The shipped JSON of a bundle, run as a user runs it."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import OBLIQUE, write_case

Run = Callable[..., subprocess.CompletedProcess[str]]
SMALL = {"n_seg_classes": 3, "input_D": 16, "input_H": 20, "input_W": 16, "batch_size": 3}
EVALUATE = "['configs/train.json','configs/evaluate.json']"


@pytest.fixture(scope="module")
def trained(dataset: Path, bundle_run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and output of a training of four epochs that never stopped."""
    folder = tmp_path_factory.mktemp("trained")
    options = {**SMALL, "data_root": dataset, "pretrain_path": "", "n_epochs": 4, "save_intervals": 2}
    done = bundle_run(
        "training", "configs/train.json", **options, ckpt_dir=folder / "models", output_dir=folder / "eval"
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_training_shows_its_progress(trained: tuple[Path, str]) -> None:
    output = trained[1]
    assert len(re.findall(r"Iter: \d/2 -- train_loss: \d", output)) == 8
    epochs = re.findall(r"epoch \d/4: [\d.]+ s, [\d.]+ volumes/s, mean loss [\d.]+, learning rates: new layers", output)
    assert len(epochs) == 4
    assert len(re.findall(r"validation Dice: class 1 [\d.]+, class 2 [\d.]+; mean [\d.]+", output)) == 4


def test_training_writes_what_it_should(trained: tuple[Path, str]) -> None:
    models = trained[0] / "models"
    assert {path.name for path in models.iterdir()} == {
        *("model.pt", "model.json", "cases.json"),
        *("checkpoint_epoch=2.pt", "checkpoint_epoch=4.pt"),
    }
    state = torch.load(models / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    settings = json.loads((models / "model.json").read_text())
    assert settings["input_size"] == [16, 20, 16]
    assert settings["variant"] == "resnet_10"
    assert settings["pretrained"] is None
    assert 1 <= settings["epoch"] <= 4
    assert list((trained[0] / "eval").glob("events.out.tfevents.*"))


def test_resumed_training_ends_as_if_never_stopped(
    trained: tuple[Path, str], dataset: Path, bundle_run: Run, tmp_path: Path
) -> None:
    options = {**SMALL, "data_root": dataset, "pretrain_path": "", "save_intervals": 2, "lr_step": 2}
    options |= {"ckpt_dir": tmp_path / "models", "output_dir": tmp_path / "eval"}
    checkpoint = trained[0] / "models" / "checkpoint_epoch=2.pt"
    done = bundle_run("training", "configs/train.json", **options, n_epochs=4, resume_path=checkpoint)
    assert done.returncode == 0, done.stderr
    assert "epoch 1/4" not in done.stdout
    whole, resumed = (
        torch.load(folder / "checkpoint_epoch=4.pt", weights_only=True)
        for folder in (trained[0] / "models", tmp_path / "models")
    )
    for name, value in whole["model"].items():
        assert torch.equal(value, resumed["model"][name]), name
    assert whole["lr_scheduler"] == resumed["lr_scheduler"]
    assert whole["best"] == resumed["best"]


def test_evaluation_and_inference_agree_on_the_volumes_own_grid(
    trained: tuple[Path, str], dataset: Path, bundle_run: Run, tmp_path: Path
) -> None:
    models = trained[0] / "models"
    done = bundle_run("evaluating", EVALUATE, data_root=dataset, ckpt_dir=models, output_dir=tmp_path)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["case"]).name for row in rows] == ["case_6.nii.gz", "case_7.nii.gz"]
    assert "case_6.nii.gz" in done.stdout
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "2 of the 2 cases are those that the training was validated with, to choose its epoch" in page
    done = bundle_run("inference", "configs/inference.json", img_list=dataset / "images", ckpt_dir=models,
                      output_dir=tmp_path / "maps")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "maps").glob("*.nii.gz"))) == 8
    for row in rows:
        name = Path(row["case"]).name
        answer = nibabel.load(tmp_path / "maps" / name.replace(".nii.gz", "_seg.nii.gz"))
        truth = nibabel.load(dataset / "labels" / name)
        assert answer.shape == truth.shape
        np.testing.assert_array_equal(answer.affine, truth.affine)
        assert nibabel.aff2axcodes(answer.affine) == nibabel.aff2axcodes(OBLIQUE)
        predicted, expected = np.asanyarray(answer.dataobj), np.asanyarray(truth.dataobj)
        assert predicted.dtype == np.uint8
        for index in (1, 2):
            both = ((predicted == index) & (expected == index)).sum()
            dice = 2 * both / ((predicted == index).sum() + (expected == index).sum())
            assert float(row[f"Dice class {index}"]) == pytest.approx(dice, abs=1e-4)


def test_inference_of_one_file_and_of_a_list(
    trained: tuple[Path, str], dataset: Path, bundle_run: Run, tmp_path: Path
) -> None:
    options = {"ckpt_dir": trained[0] / "models", "output_dir": tmp_path}
    one = dataset / "images" / "case_0.nii.gz"
    assert bundle_run("inference", "configs/inference.json", img_list=one, **options).returncode == 0
    again = bundle_run("inference", "configs/inference.json", img_list=one, **options)
    assert again.returncode == 0, again.stderr
    assert "skipping 1 of 1 cases" in again.stdout
    listed = bundle_run("inference", "configs/inference.json", data_root=dataset, img_list="val.txt", **options)
    assert listed.returncode == 0, listed.stderr
    assert {path.name for path in tmp_path.glob("*.nii.gz")} == {f"case_{index}_seg.nii.gz" for index in (0, 6, 7)}
    with (tmp_path / "structures.csv").open() as file:
        assert [row["case"] for row in csv.DictReader(file)] == [f"case_{i}" for i in (0, 6, 7) for _ in range(2)]


BAD_OPTIONS = [
    ({"n_seg_classes": 2}, ["found label values 2", "expected whole numbers from 0 to 1"]),
    ({"img_list": "nope.txt"}, ["nope.txt"]),
    ({"pretrain_path": "nope.pth"}, ["nope.pth", "med3d get", "--pretrain_path ''"]),
    ({"model_depth": 50}, ["model_depth is 50", "resnet_10 has 10"]),
    ({"input_D": 0}, ["input_D is 0"]),
    ({"n_epoch": 3}, ["unknown option: --n_epoch (did you mean --n_epochs?)"]),
    ({"new_layer_names": "['neck']", "pretrain_path": ""}, ["no parameter contains 'neck'"]),
    (
        {"input_D": 60000, "input_H": 4000, "input_W": 4000},
        ["out of memory", "Lower batch_size, then input_D, then input_H, then input_W, by half", "input_D=60000"],
    ),
]


@pytest.mark.parametrize(("options", "expected"), BAD_OPTIONS, ids=[next(iter(options)) for options, _ in BAD_OPTIONS])
def test_bad_options_are_one_clear_error(
    options: dict[str, object], expected: list[str], dataset: Path, bundle_run: Run, tmp_path: Path
) -> None:
    given = {**SMALL, "data_root": dataset, "pretrain_path": "", "ckpt_dir": tmp_path / "m", "output_dir": tmp_path}
    done = bundle_run("training", "configs/train.json", **{**given, **options})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for part in expected:
        assert part in done.stderr
    assert not list(tmp_path.glob("m/*.pt"))


@pytest.mark.parametrize("config", ["configs/train.json", "['configs/train.json','configs/patch.json']"])
def test_all_problems_of_the_data_in_one_message(config: str, bundle_run: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    lines = [write_case(data, f"case_{index}", index) for index in range(4)]
    image = nibabel.load(data / "images/case_0.nii.gz").get_fdata()
    image[3, 3, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(image, OBLIQUE), data / "images/case_0.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5), np.uint8), OBLIQUE), data / "labels/case_1.nii.gz")
    (data / "labels/case_2.nii.gz").write_bytes((data / "labels/case_2.nii.gz").read_bytes()[:200])
    (data / "train.txt").write_text("".join([*lines[:3], "images/gone.nii.gz labels/gone.nii.gz\n"]))
    (data / "val.txt").write_text(lines[3] + lines[0])
    done = bundle_run("training", config, **SMALL, data_root=data, pretrain_path="", ckpt_dir=tmp_path / "m")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for name in ("images/case_0.nii.gz", "labels/case_1.nii.gz", "labels/case_2.nii.gz", "images/gone.nii.gz"):
        assert name in done.stderr
    assert not (tmp_path / "m").exists()


def test_settings_that_contradict_the_trained_network(
    trained: tuple[Path, str], dataset: Path, bundle_run: Run, tmp_path: Path
) -> None:
    options = {"data_root": dataset, "ckpt_dir": trained[0] / "models", "output_dir": tmp_path}
    done = bundle_run("evaluating", EVALUATE, **options, n_seg_classes=5)
    assert done.returncode == 1
    assert "n_seg_classes is 5" in done.stderr
    assert "says 3" in done.stderr


def test_an_earlier_training_is_not_overwritten(trained: tuple[Path, str], bundle_run: Run) -> None:
    """That is told before the data is looked for, which a large set takes minutes to read."""
    models = trained[0] / "models"
    before = {path.name: path.read_bytes() for path in models.iterdir()}
    done = bundle_run("training", "configs/train.json", **SMALL, data_root="none", pretrain_path="", ckpt_dir=models)
    assert done.returncode == 1
    assert str(models / "model.pt") in done.stderr
    assert f"--resume_path '{models / 'checkpoint_epoch=4.pt'}'" in done.stderr
    assert {path.name: path.read_bytes() for path in models.iterdir()} == before


def test_a_full_disk_ends_the_run_with_the_last_good_checkpoint(
    trained: tuple[Path, str], dataset: Path, bundle_run: Run, tmp_path: Path
) -> None:
    """A limit of the file size stands in for the full disk: a checkpoint has 115 MB, ``model.pt`` half of that."""
    models = tmp_path / "m"
    models.mkdir()
    last = Path(shutil.copy(trained[0] / "models" / "checkpoint_epoch=2.pt", models))
    options = {**SMALL, "data_root": dataset, "pretrain_path": "", "ckpt_dir": models, "output_dir": tmp_path}
    options |= {"lr_step": 2, "n_epochs": 4, "resume_path": last}
    done = bundle_run("training", "configs/train.json", "prlimit", "--fsize=80000000", **options)
    assert done.returncode == 1
    assert "no space left on the disk" in done.stderr
    assert f"the last good checkpoint is {last}" in done.stderr
    assert last.read_bytes() == (trained[0] / "models" / "checkpoint_epoch=2.pt").read_bytes()
    assert {path.name for path in models.iterdir()} <= {last.name, "model.pt", "model.json", "cases.json"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_training_on_a_gpu_in_mixed_precision_resumes(dataset: Path, bundle_run: Run, tmp_path: Path) -> None:
    options = {**SMALL, "data_root": dataset, "pretrain_path": "", "ckpt_dir": tmp_path / "m", "output_dir": tmp_path}
    done = bundle_run("training", "configs/train.json", **options, n_epochs=1)
    assert done.returncode == 0, done.stderr
    checkpoint = tmp_path / "m" / "checkpoint_epoch=1.pt"
    assert "scaler" in torch.load(checkpoint, weights_only=True)
    done = bundle_run("training", "configs/train.json", **options, n_epochs=2, resume_path=checkpoint)
    assert done.returncode == 0, done.stderr
    assert "epoch 2/2" in done.stdout


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_patches_on_a_gpu(dataset: Path, bundle_run: Run, tmp_path: Path) -> None:
    """Label maps are made on the CPU, and so is what they are compared with."""
    both = {"data_root": dataset, "ckpt_dir": tmp_path / "m", "output_dir": tmp_path}
    options = {"n_seg_classes": 3, "pretrain_path": "", "patch_size": "[16,16,8]", "n_epochs": 1}
    done = bundle_run("training", "['configs/train.json','configs/patch.json']", **both, **options)
    assert done.returncode == 0, done.stderr
    done = bundle_run("evaluating", EVALUATE, **both)
    assert done.returncode == 0, done.stderr
    assert "Surface Dice class 1" in (tmp_path / "metrics.csv").read_text()
