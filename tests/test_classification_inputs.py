"""Special lists and options, as a user of the shipped classification configs meets them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from classified import write_csv, write_npz, write_text
from conftest import BUNDLE
from test_classification_bundle import evaluate, train, volume
from test_datalist import save
from test_every_bundle import workflow

from med3d_nets.errors import Med3dError, explain
from med3d_nets.formats import WANTED

TRAIN = {f"p{index // 2}_{index}": ("small", "large")[index % 2] for index in range(8)}
VAL = {"p4_8": "small", "p4_9": "large"}
TEST = {"p5_10": "small", "p5_11": "large"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes of two classes, small and large, with lists of them; one that does not vary; an array."""
    folder = tmp_path_factory.mktemp("cases")
    for index, name in enumerate({**TRAIN, **VAL, **TEST}):
        nibabel.save(nibabel.Nifti1Image(volume(index, 3 + 4 * (index % 2)), np.eye(4)), folder / f"{name}.nii.gz")
    save(folder / "flat.nii.gz", np.full((14, 16, 12), 7.0))
    write_npz(folder, train=[0, 1])
    for name, labels in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        write_text(folder, labels, f"{name}.txt")
    return folder


def lists(data: Path, folder: Path, training: dict[str, str], validation: dict[str, str]) -> dict[str, str]:
    """Options of two lists; no path for one without cases."""
    names = {"img_list": training, "val_list": validation}
    return {
        option: write_text(data, labels, str(folder / f"{option}.txt")) if labels else ""
        for option, labels in names.items()
    }


def load(data: Path, **options: Any) -> dict[str, Any]:
    """The data list of a training by the shipped config."""
    training = workflow(BUNDLE, "train", "classification/train", data_root=str(data), **options)
    return training.parser.get_parsed_content("datalist")


def refusal(call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises((Med3dError, RuntimeError)) as caught:
        call(*args, **options)
    return str(explain(caught.value, {}))


CASE, TWO, THREE = ({name: TRAIN[name] for name in list(TRAIN)[:count]} for count in (1, 2, 3))
BAD_LISTS = {
    "unknown class to validate with": (TRAIN, {**VAL, "p5_10": "huge"}, {}, ["line 3: found class 'huge'"]),
    "class with no case": (TRAIN, VAL, {"class_names": ["small", "large", "huge"]}, ["found no case of huge"]),
    "one case": (CASE, {}, {}, ["found class small alone"]),
    "one case and a val_list": (CASE, VAL, {}, ["found class small alone", "found class 'large'"]),
    "two cases": (TWO, {}, {}, ["found a single case or patient of class large, small"]),
    "two cases in folds": (TWO, {}, {"folds": 2, "fold": 0}, ["found a single case", "at most 1 cases of a class"]),
    "constant image": ({**TRAIN, "flat": "small"}, VAL, {}, ["flat.nii.gz: found 7 in every voxel"]),
    "patient in both lists": (TRAIN, {**VAL, "p5_10": "small"}, {"patient_pattern": r"_(\d)"}, ["patient '1': found"]),
    "image in both lists": (TRAIN, {**VAL, "p3_7": "large"}, {}, ["p3_7.nii.gz: found in training and in validation"]),
    "each case of its own class": (dict(zip(THREE, "abc", strict=True)), {}, {}, ["of class a, b, c"]),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_lists_that_training_refuses(data: Path, tmp_path: Path, name: str) -> None:
    training, validation, options, parts = BAD_LISTS[name]
    text = refusal(load, data, **lists(data, tmp_path, training, validation), **options)
    assert text.startswith(f"the data list has {len(parts)} problem")
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("training", "validation", "part"),
    [
        (TRAIN, {"p4_8": "small", "p5_10": "small"}, "none of the 2 cases to validate with is of large"),
        (TWO, VAL, "2 of 2 classes have a single case to train on: large, small"),
    ],
    ids=["one class to validate with", "two cases and a val_list"],
)
def test_lists_that_training_warns_of(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, training: Any, validation: Any, part: str
) -> None:
    assert len(load(data, **lists(data, tmp_path, training, validation))["validation"]) == 2
    assert part in caplog.text


def test_image_twice(data: Path, tmp_path: Path) -> None:
    rows = [f"{name}.nii.gz,{label}" for name, label in TRAIN.items()]
    for again, classes in (("p0_0.nii.gz,small", ""), ("p0_0.nii.gz,large", " as large and small")):
        table = write_csv(data, "image,label", *rows, again, to=str(tmp_path / "twice.csv"))
        assert f"p0_0.nii.gz: found 2 times in one list{classes};" in refusal(load, data, img_list=table)


def test_array_in_a_list_of_files(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [f"{name}.nii.gz,{label}" for name, label in TRAIN.items()]
    table = write_csv(data, "image,label", *rows, "data.npz,small", to=str(tmp_path / "all.csv"))
    assert f"line 10: found data.npz; expected {WANTED}, or one volume" in refusal(load, data, img_list=table)
    write_csv(data, "image,label", *rows, "data.npz::train_images::1,small", to=str(tmp_path / "all.csv"))
    assert len(load(data, img_list=table, val_list="val.txt")["training"]) == 9
    assert "whose spacing is taken for 1 mm" in caplog.text


def test_labels_that_another_program_wrote_as_floats(data: Path, tmp_path: Path) -> None:
    """pandas does so to a column of whole numbers with an empty cell, in one list and not in the other."""
    rows = [f"{name}.nii.gz,{index % 2}.0,{name[1]}.0" for index, name in enumerate(TRAIN)]
    table = write_csv(data, "image,label,patient", *rows, "p5_10.nii.gz,,", to=str(tmp_path / "train.csv"))
    other = write_csv(data, "image,label,patient", "p4_8.nii.gz,0,4", "p4_9.nii.gz,1,4", to=str(tmp_path / "val.csv"))
    loaded = load(data, img_list=table, val_list=other)
    assert loaded["class_names"] == ["0", "1"]
    assert [item["label"] for item in loaded["validation"]] == [0, 1]
    write_csv(data, "image,label,patient", "p4_8.nii.gz,0,4", "p4_9.nii.gz,1,3", to=other)
    assert "patient '3': found" in refusal(load, data, img_list=table, val_list=other)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a network of the training list, of volumes that are resized, by patients."""
    bundle = Path(shutil.copytree(BUNDLE, tmp_path_factory.mktemp("trained") / BUNDLE.name))
    train(bundle, data, keep_size=False, report=False, patient_pattern="p.")
    return bundle


def test_evaluation_refuses_cases_of_the_training(trained: Path, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = refusal(evaluate, trained, data, val_list="train.txt", report=False)
    assert "cases.json: trained on 8 of the 8 cases to evaluate (p0_0.nii.gz, p0_1.nii.gz, p1_2.nii.gz and" in text
    assert "--allow_seen_cases True" in text
    evaluate(trained, data, val_list="train.txt", report=False, allow_seen_cases=True, patient_pattern="p.")
    assert "trained on 8 of the 8 cases to evaluate" in caplog.text
    assert "and on cases of patients to evaluate (p0, p1, p2 and 1 more): scores are too good" in caplog.text


def test_evaluation_on_others_and_on_the_validation_cases(
    trained: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    options = {"report": False, "patient_pattern": "p.", "output_dir": str(tmp_path), "overwrite": True}
    evaluate(trained, data, val_list="test.txt", **options)
    assert "cases.json" not in caplog.text
    evaluate(trained, data, val_list="val.txt", **options)
    assert (
        "2 of 2 cases are those that the training was validated with, to choose its epoch: scores are too good"
        in caplog.text
    )


def test_evaluation_refuses_other_settings_than_the_network_has(trained: Path, data: Path, tmp_path: Path) -> None:
    options = {"val_list": "test.txt", "report": False, "output_dir": str(tmp_path)}
    wrong = {
        "keep_size": True,
        "spacing": [1, 1, 2],
        "input_size": [16, 16, 8],
        "intensity": "ct",
        "dropout": 0.5,
        "class_names": ["a", "b"],
    }
    text = refusal(evaluate, trained, data, **options, **wrong)
    for name, value in wrong.items():
        assert f"{name} is {value!r}, but {trained}/models/classification/model.json says " in text
    left = {"spacing": [], "input_size": [], "intensity": "auto", "class_names": []}
    evaluate(trained, data, **options, **left, keep_size=False, dropout=0.2)
