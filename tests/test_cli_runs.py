"""The commands of MONAI that the short forms print and run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import BUNDLE, ROOT
from test_cli import Outcome, med3d

__all__ = ["med3d"]

HEAD = ["-m", "monai.bundle"]
Printed = Callable[..., list[str]]


@pytest.fixture
def printed(med3d: Callable[..., Outcome]) -> Printed:
    """The words that a short form prints, after ``python -m monai.bundle``."""

    def call(*words: object) -> list[str]:
        status, out, err = med3d(*words, "--dry_run")
        assert status == 0, err
        assert out.count("\n") == 1
        python, *rest = shlex.split(out)
        assert Path(shutil.which(python) or "").name.startswith("python")
        assert rest[:2] == HEAD
        return rest[2:]

    return call


def configs(*names: str, bundle: Path = BUNDLE) -> str:
    paths = [str(bundle / "configs" / name) for name in names]
    return paths[0] if len(paths) == 1 else json.dumps(paths)


def start(run_id: str, *names: str, bundle: Path = BUNDLE) -> list[str]:
    return ["run", run_id, "--config_file", configs(*names, bundle=bundle), "--bundle_root", str(bundle)]


def lists(folder: Path, **files: str) -> Path:
    """Writes empty lists, and others with their content."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


# Training


def test_train_takes_the_lists_of_a_folder(printed: Printed, dataset: Path) -> None:
    expected = [*start("training", "train.json", "patch.json"), "--data_root", str(dataset)]
    expected += ["--img_list", "train.txt", "--val_list", "val.txt"]
    assert printed("train", dataset) == expected
    assert printed("train", dataset, "--recipe", "patch") == expected
    whole = [*start("training", "train.json"), *expected[6:]]
    others = ["--input_D", "16", "--pretrain_path", "", "--output_dir", "my runs", "--class_names", "['a b','c']"]
    assert printed("train", dataset, "--recipe", "whole", *others) == [*whole, *others]


def test_train_takes_a_decathlon_description(
    printed: Printed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = lists(tmp_path / "d", dataset__json=json.dumps({"labels": {"0": "background", "1": "a", "2": "b"}}))
    options = ["--data_root", str(folder), "--img_list", "dataset.json", "--val_list", ""]
    assert printed("train", folder)[6:] == [*options, "--n_seg_classes", "3"]
    assert f"training cases: {folder / 'dataset.json'}" in caplog.text
    assert "validation cases: those that this list has, else held out by the training" in caplog.text
    assert "classes: 3, of" in caplog.text
    assert printed("train", folder, "--n_seg_classes", "2")[6:] == [*options, "--n_seg_classes", "2"]
    assert printed("train", folder / "dataset.json")[6:] == [*options, "--n_seg_classes", "3"]
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "a": 1}}))
    assert printed("train", folder)[6:] == [*options, "--n_seg_classes", "2"]
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "all": [1, 2]}}))
    assert printed("train", folder)[6:] == options


def test_train_takes_a_list(printed: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lists(tmp_path / "my lists", cls_train__txt="", cls_val__txt="", all__txt="")
    monkeypatch.chdir(tmp_path)
    pair = ["--img_list", "cls_train.txt", "--val_list", "cls_val.txt"]
    expected = [*start("training", "classification/train.json"), "--data_root", str(folder), *pair]
    assert printed("train", "my lists/cls_train.txt", "--task", "classification") == expected
    assert printed("train", "my lists", "--task", "classification") == expected
    assert printed("train", "my lists", "--task", "regression") == [*expected, "--task", "regression"]
    assert printed("train", "my lists/all.txt")[6:] == [*expected[6:8], "--img_list", "all.txt", "--val_list", ""]
    places = [str(folder / name) for name in pair[1::2]]
    elsewhere = ["--data_root", "elsewhere"]
    options = ["--img_list", places[0], "--val_list", places[1], *elsewhere]
    assert printed("train", "my lists/cls_train.txt", *elsewhere)[6:] == options


def test_train_leaves_given_lists_as_they_are(printed: Printed, med3d: Callable[..., Outcome], tmp_path: Path) -> None:
    folder = lists(tmp_path / "d", train__txt="", val__txt="", mytrain__txt="", myval__txt="")
    root = ["--data_root", str(folder)]
    folds = ["--img_list", "all.txt", "--folds", "5", "--fold", "0"]
    assert printed("train", folder, *folds)[6:] == [*root, *folds]
    assert printed("train", folder, *folds[2:])[6:] == [*root, "--img_list", "train.txt", *folds[2:]]
    given = ["--img_list", "mytrain.txt"]
    assert printed("train", folder, *given)[6:] == [*root, "--val_list", "myval.txt", *given]
    given = ["--val_list", ""]
    assert printed("train", folder, *given)[6:] == [*root, "--img_list", "train.txt", *given]
    status, _, err = med3d("train", folder / "train.txt", "--img_list", "all.txt")
    assert (status, "both name a list" in err) == (1, True)


def test_a_folder_without_a_list_is_an_error(med3d: Callable[..., Outcome], tmp_path: Path) -> None:
    for words, said in (
        (
            ["train"],
            "found none of seg_train.txt, seg_train.csv, train.txt, train.csv, dataset.json, imagesTr, DICOM series;",
        ),
        (["train", "--task", "classification"], "found none of cls_train.txt, cls_train.csv, train.txt, train.csv;"),
        (
            ["evaluate"],
            "found none of seg_test.txt, seg_test.csv, test.txt, test.csv, seg_val.txt, seg_val.csv, val.txt, val.csv, "
            "seg_train.txt, seg_train.csv, train.txt, train.csv, dataset.json, imagesTr, DICOM series;",
        ),
        (
            ["evaluate", "--task", "regression"],
            "found none of cls_test.txt, cls_test.csv, test.txt, test.csv, cls_val.txt, cls_val.csv, val.txt, val.csv;",
        ),
    ):
        status, out, err = med3d(words[0], tmp_path, *words[1:])
        assert (status, out) == (1, "")
        assert f"error: {tmp_path}: {said}" in err


# Evaluation, inference, features


def test_evaluate_takes_the_test_before_the_validation(printed: Printed, tmp_path: Path) -> None:
    folder = lists(tmp_path / "d", train__txt="", val__txt="")
    expected = [*start("evaluating", "train.json", "evaluate.json"), "--data_root", str(folder), "--val_list"]
    assert printed("evaluate", folder) == [*expected, "val.txt"]
    lists(folder, test__txt="", mine__txt="")
    assert printed("evaluate", folder, "--no_cuda", "True") == [*expected, "test.txt", "--no_cuda", "True"]
    assert printed("evaluate", folder / "mine.txt") == [*expected, "mine.txt"]
    assert printed("evaluate", folder, "--val_list", "mine.txt") == [*expected, "mine.txt"]
    of_classes = printed("evaluate", folder, "--task", "classification")
    assert of_classes[3] == configs("classification/train.json", "classification/evaluate.json")
    fold = ["--folds", "5", "--fold", "0"]
    assert printed("evaluate", folder, *fold)[6:] == [*expected[6:8], "--img_list", "train.txt", *fold]
    assert printed("evaluate", folder / "mine.txt", *fold)[6:] == [*expected[6:8], "--img_list", "mine.txt", *fold]
    together = [*expected[6:], "test.txt", "--img_list", "train.txt", *fold[:2]]
    assert printed("evaluate", folder, *fold[:2])[6:] == together


def test_evaluate_takes_what_the_training_held_out(
    printed: Printed, med3d: Callable[..., Outcome], tmp_path: Path
) -> None:
    folder = lists(tmp_path / "d", dataset__json=json.dumps({"training": [{"image": "a", "label": "b"}]}))
    held_out = ["--img_list", "dataset.json", "--val_list", ""]
    assert printed("evaluate", folder)[8:] == held_out
    lists(folder, dataset__json=json.dumps({"validation": [{"image": "a", "label": "b"}]}))
    assert printed("evaluate", folder)[8:] == ["--val_list", "dataset.json"]
    assert printed("evaluate", folder, "--val_list", "")[8:] == held_out
    lists(folder, train__txt="a b")
    assert printed("evaluate", folder)[8:] == ["--val_list", "dataset.json"]
    (folder / "dataset.json").unlink()
    assert printed("evaluate", folder)[8:] == ["--img_list", "train.txt", "--val_list", ""]
    assert med3d("evaluate", folder, "--task", "classification")[0] == 1


def test_predict_takes_files_folders_and_lists(
    printed: Printed, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.chdir(dataset)
    expected = start("inference", "inference.json")
    images = [str(dataset / "images" / f"case_{index}.nii.gz") for index in (0, 1)]
    assert printed("predict", "images/case_0.nii.gz") == [*expected, "--img_list", images[0]]
    assert f"answers go to {BUNDLE / 'predictions'}; --output_dir names" in caplog.text
    caplog.clear()
    assert printed("predict", "images", "--output_dir", "a b")[6:] == [
        *("--img_list", str(dataset / "images"), "--output_dir", "a b")
    ]
    assert "answers" not in caplog.text
    assert printed("predict", *images) == [*expected, "--img_list", json.dumps(images)]
    listed = ["--data_root", str(dataset), "--img_list", str(dataset / "val.txt")]
    assert printed("predict", "val.txt", "--task", "classification")[6:] == listed
    (tmp_path / "data.npz").touch()
    volume = f"{tmp_path / 'data.npz'}::test_images::0"
    assert printed("predict", volume, "--task", "regression")[6:] == ["--img_list", volume]
    assert printed("features", "val.txt") == [*start("features", "classification/features.json"), *listed]


# The bundle


def test_which_bundle(
    printed: Printed, med3d: Callable[..., Outcome], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "my bundle"
    shutil.copytree(BUNDLE, copy, ignore=shutil.ignore_patterns("models", "eval", "predictions", "features"))
    eighteen = ROOT / "bundles" / "medicalnet_resnet_18"
    assert printed("evaluate", dataset)[5] == str(BUNDLE)
    assert printed("evaluate", dataset, "--variant", "resnet_18")[5] == str(eighteen)
    assert printed("evaluate", dataset, "--bundle", os.path.relpath(copy))[3:6] == [
        *(configs("train.json", "evaluate.json", bundle=copy), "--bundle_root", str(copy))
    ]
    monkeypatch.chdir(copy)
    assert printed("evaluate", dataset)[5] == str(copy)
    assert printed("evaluate", dataset, "--variant", "resnet_18")[5] == str(eighteen)
    for words, said in (
        (["--bundle", dataset], f"{dataset}: found no bundle"),
        (["--bundle", copy, "--variant", "resnet_18"], "both choose a bundle"),
    ):
        status, _, err = med3d("evaluate", dataset, *words)
        assert (status, said in err) == (1, True)
    (copy / "configs" / "evaluate.json").unlink()
    status, _, err = med3d("evaluate", dataset)
    assert (status, f"{copy / 'configs' / 'evaluate.json'}: no such file" in err) == (1, True)


def test_a_package_without_its_bundles(
    med3d: Callable[..., Outcome], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("med3d_nets.cli.bundles.ROOT", tmp_path)
    status, _, err = med3d("train", dataset)
    assert status == 1
    assert "no bundle there; expected the package installed from a checkout" in err


# Export


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    for folder in ("models", "models/fold_1"):
        (tmp_path / "my runs" / folder).mkdir(parents=True)
        (tmp_path / "my runs" / folder / "model.pt").touch()
    return tmp_path / "my runs" / "models"


def exported(folder: Path, suffix: str, below: str = "") -> list[str]:
    words = ["network_def", "--filepath", str(folder / f"model.{suffix}"), "--ckpt_file", str(folder / "model.pt")]
    words += ["--meta_file", str(BUNDLE / "configs" / below / "metadata.json")]
    return [*words, "--config_file", configs(f"{below}inference.json"), "--bundle_root", str(BUNDLE)]


def test_export(printed: Printed, trained: Path) -> None:
    where = ["--ckpt_dir", str(trained)]
    assert printed("export", *where) == ["ckpt_export", *exported(trained, "ts"), *where]
    onnx = printed("export", "onnx", "--task", "classification", *where)
    assert onnx[:-6] == ["onnx_export", *exported(trained, "onnx", "classification/")]
    assert onnx[-6:-3] == ["--use_trace", "True", "--converter_kwargs"]
    fold = [*where, "--folds", "2", "--fold", "1"]
    assert printed("export", *fold) == ["ckpt_export", *exported(trained / "fold_1", "ts"), *fold]
    given = ["--filepath", "my.ts", "--ckpt_file", str(trained / "model.pt")]
    words = printed("export", *given)
    assert words[-4:] == given
    assert len(words) == len(set(words)) == len(exported(trained, "ts")) + 1


def test_export_refuses_what_monai_would_ignore(med3d: Callable[..., Outcome], trained: Path) -> None:
    for words, said in (
        (["--ckpt_dri", trained], "no option --ckpt_dri; did you mean '--ckpt_dir'?"),
        (["--ckpt_dir", trained / "none"], f"{trained / 'none' / 'model.pt'}: no trained weights there"),
    ):
        status, out, err = med3d("export", *words)
        assert (status, out) == (1, "")
        assert said in err


def test_values_that_cannot_be_right_are_told_before_anything_starts(
    med3d: Callable[..., Outcome], tmp_path: Path
) -> None:
    data = lists(tmp_path / "data", **{"train.txt": "", "val.txt": ""})
    for words, said in (
        (["--n_epochs", "ten"], "--n_epochs: found 'ten'; expected a whole number, such as 200"),
        (["--n_epochs=0"], "--n_epochs: found 0; expected at least 1"),
        (["--learning_rate", "fast"], "--learning_rate: found 'fast'; expected a number, such as 0.001"),
        (["--pretrain_path", "--n_epochs", "3"], "--pretrain_path: found no value; expected one behind it"),
        (["--n_epochs", "3", "--output_dir"], "--output_dir: found no value; expected one behind it"),
    ):
        status, out, err = med3d("train", data, *words)
        assert (status, out) == (1, "")
        assert said in err
        assert "Traceback" not in err
    for words in (["--fold", "-1"], ["--n_epochs", "$2 + 1"], ["--pretrain_path", ""], ["--gpu_id", "[0,1]"]):
        assert med3d("train", data, *words, "--dry_run")[0] == 0
