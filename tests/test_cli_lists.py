"""Every source of cases that README names, by the short forms: they find it, and what they print reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import pytest
from conftest import OBLIQUE, write_case
from other_formats import write_series
from test_cli import Outcome, med3d
from test_cli_runs import Printed, printed

from med3d_nets.datalist import load_datalist, load_evaluation_cases

__all__ = ["med3d", "printed"]

NAMES = [f"case_{index}" for index in range(5)]
CLASSES = ["background", "lung", "hilum"]


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("volumes")
    for index, name in enumerate(NAMES):
        write_case(folder, name, index)
    return folder


def pair(name: str) -> dict[str, str]:
    return {"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"}


def text_list(root: Path) -> None:
    lines = [" ".join(pair(name).values()) for name in NAMES]
    (root / "train.txt").write_text("\n".join(lines[:4]))
    (root / "val.txt").write_text(lines[4])


def table(root: Path) -> None:
    lines = ["image,label,patient", *(",".join([*pair(name).values(), name]) for name in NAMES)]
    (root / "seg_train.csv").write_text("\n".join(lines[:5]))
    (root / "seg_val.csv").write_text("\n".join([lines[0], lines[5]]))


def table_of_parts(root: Path) -> None:
    lines = ["split,label,image", *(f"train,{pair(name)['label']},{pair(name)['image']}" for name in NAMES)]
    text = "\n".join(lines).replace("train,labels/case_3", "val,labels/case_3")
    (root / "train.csv").write_text(text.replace("train,labels/case_4", "test,labels/case_4"))


def decathlon(root: Path) -> None:
    labels = {str(index): name for index, name in enumerate(CLASSES)}
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "training": [*map(pair, NAMES)]}))


def of_monai(root: Path) -> None:
    parts = {"training": [*map(pair, NAMES[:3])], "validation": [pair(NAMES[3])]}
    testing = [{"image": "images/case_0.nii.gz"}, pair(NAMES[4])]  # one without a label
    labels = {name: index for index, name in enumerate(CLASSES)}
    (root / "dataset.json").write_text(json.dumps({**parts, "testing": testing, "labels": labels}))


def layout(root: Path) -> None:
    """Four cases to train on, and one for a test."""
    for index, name in enumerate(NAMES):
        part = "Tr" if index < 4 else "Ts"
        for folder, file in (("images", f"{name}_0000.nii.gz"), ("labels", f"{name}.nii.gz")):
            (root / f"{folder}{part}").mkdir(exist_ok=True)
            (root / folder / f"{name}.nii.gz").rename(root / f"{folder}{part}" / file)


def described_layout(root: Path) -> None:
    layout(root)
    labels = {name: index for index, name in enumerate(CLASSES)}
    content = {"labels": labels, "channel_names": {"0": "CT"}, "numTraining": 4, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content))


def series(root: Path) -> None:
    """A folder of slices for each case, with its label map beside."""
    pytest.importorskip("pydicom")
    pytest.importorskip("itk")
    for index, name in enumerate(NAMES):
        image, label = (root / kind / f"{name}.nii.gz" for kind in ("images", "labels"))
        voxels = np.asarray(nibabel.load(image).dataobj).astype(int)
        write_series(root / "scans" / name, voxels, OBLIQUE, f"1.2.3.{index}")
        label.rename(root / "scans" / f"{name}_seg.nii.gz")
        image.unlink()


class Source(NamedTuple):
    """What a source should be found as: "" is the folder itself, or no list for validation; None: no part to evaluate.

    The last are its numbers of cases for training and for validation.
    """

    write: Callable[[Path], None]
    training: str
    validation: str
    evaluation: str | None
    classes: int
    cases: tuple[int, int]


SOURCES = {
    "text list": Source(text_list, "train.txt", "val.txt", "val.txt", 0, (4, 1)),
    "CSV": Source(table, "seg_train.csv", "seg_val.csv", "seg_val.csv", 0, (4, 1)),
    "CSV with parts": Source(table_of_parts, "train.csv", "", "train.csv", 0, (3, 1)),
    "dataset.json of the Decathlon": Source(decathlon, "dataset.json", "", None, 3, (5, 0)),
    "dataset.json of MONAI": Source(of_monai, "dataset.json", "", "dataset.json", 3, (3, 1)),
    "dataset.json of nnU-Net": Source(described_layout, "dataset.json", "", "dataset.json", 3, (4, 0)),
    "folder in nnU-Net's layout": Source(layout, "", "", "", 0, (4, 0)),
    "folder of DICOM series": Source(series, "", "", None, 0, (5, 0)),
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> Source:
    return SOURCES[request.param]


@pytest.fixture
def root(source: Source, volumes: Path, tmp_path: Path) -> Path:
    """A folder with a space in its name, and the source in it."""
    folder = Path(shutil.copytree(volumes, tmp_path / "my data"))
    source.write(folder)
    return folder


def options_of(words: list[str]) -> dict[str, Any]:
    """What is printed after the bundle's options."""
    return dict(zip((word.removeprefix("--") for word in words[6::2]), words[7::2], strict=True))


def test_train_finds_what_training_reads(printed: Printed, source: Source, root: Path) -> None:
    options = options_of(printed("train", root))
    expected = {"data_root": str(root), "img_list": source.training or str(root), "val_list": source.validation}
    assert options == {**expected, **({"n_seg_classes": str(source.classes)} if source.classes else {})}
    read = load_datalist(**{**options, "n_seg_classes": 3})
    training, validation = source.cases
    expected_cases = source.cases if validation else (training - 1, 1)  # one is held out
    assert (len(read["training"]), len(read["validation"])) == expected_cases
    assert options_of(printed("train", root / source.training)) == options  # the list itself, instead of its folder


def test_evaluate_takes_cases_that_are_not_trained_on(printed: Printed, source: Source, root: Path) -> None:
    training = source.training or str(root)
    expected = {"val_list": source.evaluation or str(root)}
    if source.evaluation is None:
        expected = {"img_list": training, "val_list": ""}
    options = options_of(printed("evaluate", root))
    assert options == {"data_root": str(root), **expected}
    (case,) = load_evaluation_cases(**{"img_list": "", **options, "n_seg_classes": 3})
    assert source.evaluation is None or "case_4" in case["label"]  # that of a test, or the last
    fold = {"folds": "5", "fold": "0"}
    options = options_of(printed("evaluate", root, "--folds", "5", "--fold", "0"))
    assert options == {"data_root": str(root), "img_list": training, **fold}


def test_check_reads_it(
    med3d: Callable[..., Outcome], source: Source, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parent)
    status, out, err = med3d("check", root)
    assert status == 0, err + out
    training, validation = source.cases
    parts = f"{training} training" + f", {validation} validation" * bool(validation)
    assert out.startswith(f"{training + validation} cases ({parts}; ")
    assert ("n_seg_classes is not given" in out) == (not source.classes)
    report = json.loads((root.parent / "check/check.json").read_text())
    assert report["settings"]["img_list"] == (source.training or str(root))
    assert report["settings"]["n_seg_classes"] == (str(source.classes) if source.classes else 0)


def test_plan_reads_it(med3d: Callable[..., Outcome], source: Source, root: Path) -> None:
    options = ["--no_cuda", "--iterations", "0", "--memory_gb", "4"]
    status, out, err = med3d("plan", root, *options)
    assert status == 0, err
    assert out.startswith(f"{source.cases[0]} cases,")
    assert ("hilum" in out) == bool(source.classes)
    assert med3d("plan", root / source.training, *options)[1] == out


def test_the_folder_itself_is_the_last_choice(printed: Printed, volumes: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(volumes, tmp_path / "data"))
    text_list(root)
    layout(root)
    assert options_of(printed("train", root))["img_list"] == "train.txt"
    (root / "val.txt").unlink()
    assert options_of(printed("evaluate", root))["val_list"] == str(root)
    shutil.rmtree(root / "labelsTs")
    (root / "train.txt").unlink()
    assert options_of(printed("train", root, "--data_root", tmp_path))["img_list"] == str(root)


def test_a_list_may_be_a_folder_below_that_of_the_data(printed: Printed, volumes: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(volumes, tmp_path / "all" / "Task"))
    layout(root)
    words = printed("train", tmp_path / "all", "--img_list", "Task")
    assert options_of(words) == {"data_root": str(tmp_path / "all"), "val_list": "", "img_list": "Task"}
