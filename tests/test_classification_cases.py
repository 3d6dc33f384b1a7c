"""Lists of classified volumes: what loads, how it is divided, and that all problems come at once."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classified import ADRENAL, LIDC, volumes, write_csv, write_images, write_npz, write_text
from test_datalist import SHAPE, message, only_line, ramp, save

from med3d_nets.classification.cases import load_evaluation_cases, load_images, load_lists
from med3d_nets.errors import Med3dError

NAMES = [f"p{patient}_{scan}" for patient in range(6) for scan in "ab"]
CLASSES = {name: "good" if name < "p3" else "bad" for name in NAMES}
PATTERN = r"p\d"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_images(folder, [*NAMES, "v0", "v1"])
    save(folder / "mask.nii.gz", (ramp() > 5).astype(np.uint8))
    return folder


@pytest.fixture
def lists(root: Path, tmp_path: Path) -> tuple[Path, str, str]:
    """The folder of the images, and two lists of some of them."""
    train, val = (str(tmp_path / name) for name in ("train.txt", "val.txt"))
    write_text(root, CLASSES, train)
    write_text(root, {"v0": "good", "v1": "bad"}, val)
    return root, train, val


def names_of(items: list[dict[str, Any]]) -> list[str]:
    return [Path(item["image"]).name.removesuffix(".nii.gz") for item in items]


def indices(items: list[dict[str, Any]]) -> list[int]:
    return [int(item["image"].rsplit("::", 1)[1]) for item in items]


def evaluate(root: Path, img_list: str, val_list: str, **options: Any) -> list[dict[str, Any]]:
    given = {"task": "classification", "class_names": ["bad", "good"], **options}
    return load_evaluation_cases(root, img_list, val_list, **given)


# Training


def test_two_lists(lists: tuple[Path, str, str]) -> None:
    loaded = load_lists(*lists)
    assert loaded["class_names"] == ["bad", "good"]
    assert names_of(loaded["training"]) == NAMES
    assert loaded["training"][0] == {"image": str(lists[0] / "p0_a.nii.gz"), "label": 1, "patient": ""}
    assert [item["label"] for item in loaded["validation"]] == [1, 0]
    assert loaded["planning"] == loaded["training"]


@pytest.mark.parametrize("val_list", ["", None])
def test_hold_out(lists: tuple[Path, str, str], val_list: str | None) -> None:
    root, train, _ = lists
    loaded = load_lists(root, train, val_list, val_fraction=0.34, patient_pattern=PATTERN, class_names=["good", "bad"])
    assert sorted(names_of([*loaded["training"], *loaded["validation"]])) == NAMES
    assert Counter(item["label"] for item in loaded["validation"]) == {0: 2, 1: 2}
    assert {item["patient"] for item in loaded["validation"]}.isdisjoint(i["patient"] for i in loaded["training"])
    assert loaded["planning"] == loaded["training"]
    assert loaded["class_names"] == ["good", "bad"]
    assert load_lists(root, train, seed=1) == load_lists(root, train) != load_lists(root, train, seed=3)


def test_folds_are_what_evaluation_sees(lists: tuple[Path, str, str]) -> None:
    held: list[str] = []
    options: dict[str, Any] = {"folds": 3, "patient_pattern": PATTERN}
    for fold in range(3):
        loaded = load_lists(*lists, fold=fold, **options)
        assert evaluate(*lists, fold=fold, **options) == loaded["validation"]
        assert Counter(item["label"] for item in loaded["validation"]) == {0: 2, 1: 2}
        assert sorted(names_of([*loaded["training"], *loaded["validation"]])) == NAMES
        assert names_of(loaded["planning"]) == NAMES
        held += names_of(loaded["validation"])
    assert sorted(held) == NAMES
    assert names_of(evaluate(*lists, **options | {"patient_pattern": r"[pv]\d"})) == ["v0", "v1"]


def test_table_with_patients_and_regions(root: Path, tmp_path: Path) -> None:
    box = "2,3,4,2"
    rows = [f"{name}.nii.gz,{CLASSES[name]},{name[:2]},,{box}" for name in NAMES[1:]]
    table = str(tmp_path / "table.csv")
    write_csv(root, "image,class,patient,mask,x,y,z,size_mm", "p0_a.nii.gz,good,p0,mask.nii.gz,,,,", *rows, to=table)
    loaded = load_lists(root, table)
    items = {Path(item["image"]).name[:4]: item for part in ("training", "validation") for item in loaded[part]}
    assert items["p0_a"]["mask"] == str(root / "mask.nii.gz")
    assert "center" not in items["p0_a"]
    assert items["p5_b"] == {
        "image": str(root / "p5_b.nii.gz"),
        "label": 0,
        "patient": "p5",
        "center": [2.0, 3.0, 4.0],
        "size_mm": 2.0,
    }
    assert {item["patient"] for item in loaded["validation"]}.isdisjoint(i["patient"] for i in loaded["training"])


def test_pattern_names_the_patients_that_the_table_does_not(root: Path, tmp_path: Path) -> None:
    table = str(tmp_path / "table.csv")
    rows = [f"{name}.nii.gz,{CLASSES[name]},{'someone' if name == 'p0_a' else ''}" for name in NAMES]
    write_csv(root, "image,class,patient", *rows, to=table)
    loaded = load_lists(root, table, folds=2, fold=0, patient_pattern=PATTERN)
    patients = dict(zip(names_of(loaded["planning"]), (i["patient"] for i in loaded["planning"]), strict=True))
    assert patients["p0_a"] == "someone"
    assert patients["p0_b"] == "p0"


def test_several_regions_of_one_image_stay_together(root: Path, tmp_path: Path) -> None:
    table = str(tmp_path / "table.csv")
    rows = [f"{name}.nii.gz,{label},1,1,{z},2" for name in NAMES[:6] for z, label in ((1, 0), (3, 1))]
    write_csv(root, "image,label,x,y,z,size_mm", *rows, to=table)
    loaded = load_lists(root, table)
    assert len(loaded["validation"]) == 2
    assert len({item["image"] for item in loaded["validation"]}) == 1


def test_regression(root: Path, tmp_path: Path) -> None:
    table = str(tmp_path / "table.csv")
    write_csv(root, "image,target", *(f"{name}.nii.gz,{index / 4}" for index, name in enumerate(NAMES)), to=table)
    loaded = load_lists(root, table, task="regression")
    assert loaded["class_names"] == ["target"]
    assert sorted(item["label"] for part in ("training", "validation") for item in loaded[part])[:2] == [0.0, 0.25]
    assert load_lists(root, table, task="regression", class_names=["age"])["class_names"] == ["age"]
    text = str(tmp_path / "list.txt")
    write_text(root, {"p0_a": 2, "p0_b": 3.5}, text)
    assert load_lists(root, text, task="regression")["class_names"] == ["value"]
    assert [i["label"] for i in evaluate(root, text, text, task="regression", class_names=["age"])] == [2.0, 3.5]


# .npz files


def test_npz_has_its_own_lists(tmp_path: Path) -> None:
    path = write_npz(tmp_path, train=[0, 1] * 4, val=[1, 0], test=[0, 1, 0])
    loaded = load_lists(tmp_path, path)
    assert [len(loaded[name]) for name in ("training", "validation", "planning")] == [8, 2, 8]
    assert loaded == load_lists(tmp_path, path, path)
    assert loaded["validation"][0] == {
        "image": f"{tmp_path / path}::val_images::0",
        "label": 1,
        "patient": "",
    }
    names = {"class_names": ["normal", "ill"]}
    assert [i["label"] for i in evaluate(tmp_path, path, path, **names)] == [0, 1, 0]
    assert [i["label"] for i in evaluate(tmp_path, path, path, section="val", **names)] == [1, 0]
    assert len(load_images(path, tmp_path)) == 3
    assert len(load_images(path, tmp_path, section="train")) == 8


def test_npz_that_is_divided(tmp_path: Path) -> None:
    path = write_npz(tmp_path, train=[0, 1] * 6)
    loaded = load_lists(tmp_path, path)
    assert Counter(item["label"] for item in loaded["validation"]) == {0: 1, 1: 1}
    path = write_npz(tmp_path, train=[0, 1] * 6, val=[0, 1])
    held = [load_lists(tmp_path, path, folds=3, fold=fold)["validation"] for fold in range(3)]
    assert sorted(index for part in held for index in indices(part)) == list(range(12))
    found = evaluate(tmp_path, path, path, folds=3, class_names=["0", "1"])
    assert [item["image"].split("::")[1] for item in found] == ["val_images"] * 2


def test_npz_that_changes_is_read_again(tmp_path: Path) -> None:
    path = write_npz(tmp_path, train=[0, 1] * 2, val=[0, 1])
    assert load_lists(tmp_path, path)
    np.savez(tmp_path / path, train_images=np.zeros((2, 3, 3, 3)), train_labels=np.arange(2))
    assert "in every voxel" in message(load_lists, tmp_path, path)


# Problems


def test_all_problems_come_in_one_message(root: Path, tmp_path: Path) -> None:
    save(tmp_path / "flat.nii.gz", np.ones(SHAPE))
    write_csv(
        root,
        "image,label,patient,mask",
        "p0_a.nii.gz,good,p0,mask.nii.gz",
        "p0_a.nii.gz,bad,p0,mask.nii.gz",
        "p1_a.nii.gz,bad,p1,",
        "no.nii.gz,bad,,no_mask.nii.gz",
        f"{tmp_path / 'flat.nii.gz'},good,,",
        "p2_a.nii.gz",
        to=str(tmp_path / "train.csv"),
    )
    write_csv(
        root,
        "image,label,patient",
        "p1_a.nii.gz,bad,p9",
        "p4_a.nii.gz,ugly,",
        "p0_b.nii.gz,good,p0",
        to=str(tmp_path / "val.csv"),
    )
    lines = message(load_lists, root, tmp_path / "train.csv", tmp_path / "val.csv").splitlines()
    wanted = [
        "train.csv, line 7: found 1 values",
        "p0_a.nii.gz: found 2 times in one list as bad and good",
        "val.csv, line 3: found class 'ugly'; expected one of bad, good",
        "p1_a.nii.gz: found in training and in validation",
        "patient 'p0'",
        "no.nii.gz: found no such file",
        "no_mask.nii.gz: found no such file",
        "flat.nii.gz: found 1 in every voxel",
    ]
    assert lines[0] == f"the data list has {len(wanted)} problems:"
    for part, line in zip(wanted, lines[1:], strict=True):
        assert part in line


@pytest.mark.parametrize(
    ("labels", "options", "parts"),
    [
        ({"p0_a": 1, "p0_b": 1}, {}, ("class 1 alone", "at least two")),
        ({"p0_a": 1, "p0_b": 0}, {"class_names": ["0", "1", "2"]}, ("no case of 2",)),
        ({"p0_a": 1, "p0_b": 0}, {}, ("single case", "class 0, 1")),
        ({"p0_a": 1, "p0_b": 0, "p1_a": 1, "p1_b": 0}, {"folds": 3, "fold": 0}, ("at most 2 cases", "3 folds")),
        ({"p0_a": 1, "p1_a": 0, "p1_b": 0}, {"task": "regression", "folds": 4, "fold": 1}, ("3 cases", "4 folds")),
        ({"p0_a": 1}, {"task": "regression"}, ("single case",)),
        (CLASSES, {"patient_pattern": "q"}, ("patient_pattern 'q'", "found nothing in 12 of 12 paths")),
        (CLASSES, {"patient_pattern": "p[12345]"}, ("2 of 12 paths",)),
    ],
)
def test_lists_that_cannot_be_divided(
    root: Path, tmp_path: Path, labels: dict[str, Any], options: dict[str, Any], parts: tuple[str, ...]
) -> None:
    path = write_text(root, labels, str(tmp_path / "train.txt"))
    only_line(message(load_lists, root, path, **options), *parts)


def test_single_class_to_train_on_is_told_beside_the_others(lists: tuple[Path, str, str]) -> None:
    root, train, val = lists
    write_text(root, {"p0_a": "good"}, train)
    lines = message(load_lists, root, train, val).splitlines()
    assert "class good alone; expected at least two" in lines[1]
    assert "found class 'bad'; expected one of good" in lines[2]


def test_class_that_is_only_in_the_validation_list(lists: tuple[Path, str, str]) -> None:
    root, train, val = lists
    write_text(root, {"v0": "good", "v1": "other"}, val)
    only_line(message(load_lists, root, train, val), val, "line 2", "'other'", "bad, good")
    only_line(message(evaluate, root, train, val), val, "line 2", "'other'", "bad, good")


def test_class_that_is_not_in_the_validation_list(
    lists: tuple[Path, str, str], caplog: pytest.LogCaptureFixture
) -> None:
    root, train, val = lists
    write_text(root, {"v0": "good"}, val)
    load_lists(root, train, val)
    assert "none of the 1 cases to validate with is of bad" in caplog.text
    caplog.clear()
    evaluate(root, train, val)
    assert "is of bad" in caplog.text


def test_unknown_patients_are_told_once(lists: tuple[Path, str, str], caplog: pytest.LogCaptureFixture) -> None:
    root, train, val = lists
    caplog.set_level("INFO", "med3d_nets.classification.division")
    divided = ({}, {"folds": 3, "fold": 0})
    for options in divided:
        load_lists(root, train, **options)
        assert [r.message for r in caplog.records if "patient is known" in r.message] == [
            "no patient is known of 12 of 12 cases: those of one patient may lie on both sides; "
            "give --patient_pattern, or a CSV with a column patient"
        ]
        caplog.clear()
        load_lists(root, train, patient_pattern=PATTERN, **options)
        assert "patient is known" not in caplog.text
        caplog.clear()
    load_lists(*lists)
    assert not caplog.records  # nobody draws
    evaluate(root, train, val)
    assert "of 2 of 2 cases: intervals take each for a patient of its own" in caplog.text
    assert caplog.records[-1].levelname == "INFO"


def test_evaluation_of_all_folds_sees_other_images_and_patients(lists: tuple[Path, str, str]) -> None:
    root, train, val = lists
    write_text(root, {"v0": "good", "p0_a": "good"}, val)
    assert len(evaluate(root, train, val)) == 2
    only_line(message(evaluate, root, train, val, folds=3), "p0_a.nii.gz", "in training and in validation")
    text = message(evaluate, root, train, val, folds=3, patient_pattern="[pv]0")
    assert "patient 'p0'" in text


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"in_channels": 0}, ("in_channels", "0")),
        ({"val_fraction": 1.0}, ("val_fraction", "1.0")),
        ({"task": "other"}, ("task", "'other'")),
        ({"class_names": "ab"}, ("class_names", "'ab'")),
        ({"folds": 1, "fold": 0}, ("folds", "1")),
    ],
)
def test_bad_options(options: dict[str, Any], parts: tuple[str, ...]) -> None:
    only_line(message(load_lists, "", "list.txt", **options), *parts)


def test_bad_options_of_an_evaluation() -> None:
    only_line(message(evaluate, Path(), "a", "b", section="all"), "section", "'all'")
    only_line(message(evaluate, Path(), "a", "b", class_names=[]), "class_names", "those of the network")


# Inference


def test_images_of_every_source(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_images("v0.nii.gz", root) == [{"image": str(root / "v0.nii.gz"), "patient": ""}]
    assert len(load_images(root)) == len(NAMES) + 3
    path = write_text(root, {"v1": "good", "v0": "unknown"}, str(tmp_path / "list.txt"))
    assert names_of(load_images(path, root)) == ["v1", "v0"]
    table = write_csv(root, "image,label,patient,mask", "v0.nii.gz,,p,mask.nii.gz", to=str(tmp_path / "table.csv"))
    expected = {"image": str(root / "v0.nii.gz"), "patient": "p", "mask": str(root / "mask.nii.gz")}
    assert load_images(table, root) == [expected]
    np.savez(tmp_path / "a.npz", val_images=volumes(2))
    reference = f"{tmp_path / 'a.npz'}::val_images::1"
    assert load_images(tmp_path / "a.npz")[1] == {"image": reference, "patient": ""}
    mixed = load_images([reference, "v1.nii.gz", table], root)
    assert names_of(mixed)[1:] == ["v1", "v0"]
    assert mixed[0] == load_images("a.npz::val_images::1", tmp_path)[0] == {"image": reference, "patient": ""}
    assert not caplog.records


def test_constant_images_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "flat.nii.gz", np.ones(SHAPE))
    assert len(load_images(tmp_path)) == 1
    assert "flat.nii.gz" in caplog.text


def test_bad_sources(root: Path, tmp_path: Path) -> None:
    only_line(message(load_images, []), "empty list")
    only_line(message(load_images, ["v0.nii.gz", "no.nii"], root), "source no.nii", "no such file")
    only_line(message(load_images, tmp_path), str(tmp_path), "no images")
    only_line(message(load_images, ["v0.nii.gz", "v0.nii.gz"], root), "2 times")
    only_line(message(load_images, "no.npz::train_images::1", root), "source no.npz")
    np.savez(tmp_path / "a.npz", train_images=volumes(2), val_images=volumes(2))
    only_line(message(load_images, tmp_path / "a.npz"), "train_images, val_images", "test_images", "section")
    only_line(message(load_images, root, section="all"), "section", "'all'")


def test_labels_as_they_are_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path, ["a", "b", "c"])

    def labels(source: str) -> list[str]:
        return [item["label"] for item in load_images(source, tmp_path, labels=True)]

    (tmp_path / "list.txt").write_text("a.nii.gz 'not sure'\n# b.nii.gz x\n\nb.nii.gz\nc.nii.gz 2\n")
    assert labels("list.txt") == ["not sure", "", "2"]
    write_csv(tmp_path, "", "image, Class ", 'a.nii.gz,"x, y"', ",", "b.nii.gz, 1.0", "c.nii.gz,", to="list.csv")
    assert labels("list.csv") == ["x, y", "1", ""]
    write_csv(tmp_path, "image", "a.nii.gz", to="bare.csv")
    assert labels("bare.csv") == labels("a.nii.gz") == [""]
    write_npz(tmp_path, test=[1.0, 0.0, 2.5])
    assert labels("data.npz") == ["1", "0", "2.5"]
    assert not caplog.records
    np.savez(tmp_path / "many.npz", val_images=volumes(2), val_labels=np.eye(2))
    assert labels("many.npz") == ["", ""]
    assert "left out val_labels, of shape (2, 2)" in caplog.text
    write_csv(tmp_path, "image,label,target", "a.nii.gz,1,2", to="two.csv")
    only_line(message(labels, "two.csv"), "label, target")


# Real data


@pytest.mark.skipif(not LIDC.is_dir(), reason="../shared/data/LIDC_nodules is absent")
def test_lung_nodules() -> None:
    loaded = load_lists(LIDC, "cls_train.txt", "cls_val.txt", patient_pattern=r"LIDC-IDRI-\d+")
    assert [len(loaded[name]) for name in ("training", "validation")] == [408, 110]
    assert loaded["class_names"] == ["0", "1"]


@pytest.mark.skipif(not ADRENAL.is_file(), reason="../shared/data/AdrenalMNIST3D is absent")
def test_adrenal_glands() -> None:
    loaded = load_lists("", ADRENAL, class_names=["normal", "hyperplasia"])
    assert [len(loaded[name]) for name in ("training", "validation")] == [1188, 98]
    assert Counter(item["label"] for item in loaded["validation"]) == {0: 76, 1: 22}
    assert os.path.isabs(loaded["training"][0]["image"])


def test_an_evaluation_needs_a_list_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(Med3dError, match="val_list: found none; expected a list of cases that had no part in the tra"):
        evaluate(tmp_path, "", "")
