"""Sources of cases: the same items from every kind, and what is wrong with each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from med3d_nets.sources import Source, default_val_list, known_classes, read_source


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def describe(root: Path, **content: Any) -> Path:
    path = root / "dataset.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def read(path: Path | str, root: Path | str = "", labelled: bool = True, **options: Any) -> Source:
    problems: list[str] = []
    source = read_source(path, root, problems, labelled, **options)
    assert problems == []
    return source


def problems_of(path: Path | str, root: Path | str = "", labelled: bool = True, **options: Any) -> list[str]:
    problems: list[str] = []
    read_source(path, root, problems, labelled, **options)
    return problems


def pair(root: Path, name: str) -> dict[str, str]:
    return {"image": str(root / f"imagesTr/{name}.nii.gz"), "label": str(root / f"labelsTr/{name}.nii.gz")}


NAMES = [f"{folder}/{name}.nii.gz" for folder in ("imagesTr", "labelsTr") for name in "ab"]


def test_every_kind_of_source_makes_the_same_items(tmp_path: Path) -> None:
    touch(tmp_path, *NAMES, "imagesTs/c.nii.gz")
    lines = ["imagesTr/a.nii.gz labelsTr/a.nii.gz", "imagesTr/b.nii.gz labelsTr/b.nii.gz"]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    (tmp_path / "train.csv").write_text("image,label\n" + "\n".join(line.replace(" ", ",") for line in lines))
    expected = [pair(tmp_path, "a"), pair(tmp_path, "b")]
    assert read("train.txt", tmp_path).training == expected
    assert read("train.csv", tmp_path).training == expected
    folder = read(tmp_path)
    assert folder.training == expected
    assert folder.test == [{"image": str(tmp_path / "imagesTs/c.nii.gz")}]
    listed = [{key: f"./{key}sTr/{name}.nii.gz" for key in ("image", "label")} for name in "ab"]
    path = describe(tmp_path, training=listed, test=["./imagesTs/c.nii.gz"])
    assert read(path) == read(tmp_path) == folder  # the folder's own description
    path = describe(tmp_path, channel_names={"0": "CT"}, labels={"background": 0}, numTraining=2, file_ending=".nii.gz")
    assert read(path).training == expected
    assert read(path).channel_names == ["CT"]


def test_paths_without_labels(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a.nii.gz", "imagesTs/c.nii.gz", "scans/x.nii", "scans/y.mha", "scans/notes.txt")
    (tmp_path / "list.txt").write_text("imagesTr/a.nii.gz\nimagesTr/b.nii.gz gone.nii\n")
    images = [str(tmp_path / f"imagesTr/{name}.nii.gz") for name in "ab"]
    assert read("list.txt", tmp_path, False).training == [{"image": image} for image in images]
    source = read(tmp_path, "", False)
    assert source.training == [{"image": images[0]}]
    assert source.test == [{"image": str(tmp_path / "imagesTs/c.nii.gz")}]
    assert read("scans/y.mha", tmp_path, False).test == [{"image": str(tmp_path / "scans/y.mha")}]
    scans = [str(tmp_path / "scans" / name) for name in ("x.nii", "y.mha")]
    assert [case["image"] for case in read("scans", tmp_path, False).test] == scans


def test_a_folder_without_labels_has_channels_where_they_are_expected(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}_{channel:04}.nii.gz" for name in "ab" for channel in range(2)))
    files = [str(tmp_path / f"{name}_{channel:04}.nii.gz") for name in "ab" for channel in range(2)]
    assert [case["image"] for case in read(tmp_path, "", False, in_channels=1).test] == files
    assert [case["image"] for case in read(tmp_path, "", False, in_channels=2).test] == [files[:2], files[2:]]
    (problem,) = problems_of(tmp_path, "", False, in_channels=3)
    assert '["a_0000.nii.gz", "a_0001.nii.gz"], 2 files, as 1 more' in problem
    assert "expected one file, or in_channels=3: --in_channels 2?" in problem


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path)
    assert "found a folder without dataset.json and imagesTr; expected one of them, DICOM series, or a list" in problem
    assert "no images" in problems_of(tmp_path, "", False)[0]


# dataset.json


def test_parts_and_folds_of_a_description(tmp_path: Path) -> None:
    item = {"image": "a.nii", "label": "b.nii"}
    folds = [{**item, "fold": 0}, {**item, "fold": 1}]
    source = read(describe(tmp_path, training=folds, validation=[item], testing=["c.nii"]))
    assert [case["fold"] for case in source.training] == [0, 1]
    assert source.validation == [{"image": str(tmp_path / "a.nii"), "label": str(tmp_path / "b.nii")}]
    assert source.test == [{"image": str(tmp_path / "c.nii")}]
    assert read(describe(tmp_path, training=[item], validation=[{"image": "a.nii"}])).validation == []


def test_channels_of_a_description(tmp_path: Path) -> None:
    path = describe(tmp_path, training=[{"image": ["a.nii", "b.nii"], "label": "c.nii"}])
    assert read(path, in_channels=2).training[0]["image"] == [str(tmp_path / "a.nii"), str(tmp_path / "b.nii")]
    one = describe(tmp_path, training=[{"image": ["a.nii"], "label": "c.nii"}])
    assert read(one, in_channels=1).training[0]["image"] == str(tmp_path / "a.nii")


def test_channels_that_a_description_leaves_out(tmp_path: Path) -> None:
    """The first version of nnU-Net lists imagesTr/a.nii.gz for the files of its channels."""
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "imagesTr/b.nii.gz")
    listed = [{"image": f"./imagesTr/{name}.nii.gz", "label": "c.nii"} for name in "ab"]
    path = describe(tmp_path, training=listed[:1])
    expected = [str(tmp_path / f"imagesTr/a_{channel:04}.nii.gz") for channel in range(2)]
    assert read(path).training[0]["image"] == expected
    assert read(describe(tmp_path, training=listed[1:])).training[0]["image"] == str(tmp_path / "imagesTr/b.nii.gz")
    (tmp_path / "imagesTr/a_0001.nii.gz").unlink()
    assert read(describe(tmp_path, training=listed[:1])).training[0]["image"] == expected[0]


def test_cases_of_nnunet_that_lie_elsewhere(tmp_path: Path) -> None:
    listed = {"one": {"images": ["../x_0000.nii", "../x_0001.nii"], "label": "../l.nii"}}
    (case,) = read(describe(tmp_path, dataset=listed, labels={})).training
    names = [tmp_path.parent / name for name in ("x_0000.nii", "x_0001.nii", "l.nii")]
    assert [*case["image"], case["label"]] == list(map(str, names))


def test_one_file_and_several_are_not_mixed(tmp_path: Path) -> None:
    items = [{"image": image, "label": "c.nii"} for image in ("a.nii", ["a.nii", "b.nii"])]
    (problem,) = problems_of(describe(tmp_path, training=items), in_channels=2)
    assert all(part in problem for part in ("training[0]: found one file for all channels", "training[1]", "expected"))


def test_a_label_to_ignore_would_be_learnt(tmp_path: Path) -> None:
    path = describe(tmp_path, training=[{"image": "a", "label": "b"}], labels={"background": 0, "x": 1, "ignore": 2})
    (problem,) = problems_of(path)
    assert "found the label 'ignore' (2); expected none" in problem
    assert problems_of(path, "", False) == []


def test_labels_of_a_test_are_kept_where_there_are_some(tmp_path: Path) -> None:
    item = {"image": "a.nii", "label": "b.nii"}
    path = describe(tmp_path, training=[item], test=[item, "c.nii", {"image": "d.nii", "label": ""}])
    (tmp_path / "t.csv").write_text("image,label,split\na.nii,b.nii,train\na.nii,b.nii,test\nc.nii,,test\nd.nii,,test")
    for source, root in ((path, ""), ("t.csv", tmp_path)):
        assert [case.get("label") for case in read(source, root).test] == [str(tmp_path / "b.nii"), None, None]
        assert not any("label" in case for case in read(source, root, False).test)


def test_what_is_wrong_with_a_test_does_not_stop_a_training(tmp_path: Path) -> None:
    path = describe(tmp_path, training=[{"image": "a", "label": "b"}], test=[3])
    assert len(read(path).training) == 1
    assert "test[0]: found 3" in problems_of(path, "", False)[0]


# Names


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"0": "background", "1": "liver"}, ["background", "liver"]),
        ({"1": "liver", "0": "background"}, ["background", "liver"]),
        ({"background": 0, "liver": 1}, ["background", "liver"]),
        ({"liver": 1, "background": 0, "ignore": 2}, ["background", "liver"]),
        ({"background": 0, "tumour": [1, 2], "core": 2}, []),
        ({"background": 0, "liver": 2}, []),
        ({"0": "background", "2": "liver"}, []),
        ({}, []),
        (["background"], []),
        (None, []),
    ],
)
def test_names_of_the_classes(tmp_path: Path, labels: Any, expected: list[str]) -> None:
    path = describe(tmp_path, training=[{"image": "a", "label": "b"}], labels=labels)
    problems: list[str] = []
    assert list(read_source(path, "", problems).class_names) == expected
    assert known_classes(path, "", 2) == expected
    assert known_classes(tmp_path, "", 2) == expected
    assert known_classes("no list", tmp_path, 2) == expected  # that of the data's folder
    assert known_classes(path, "", 3) == []


def test_names_of_the_channels(tmp_path: Path) -> None:
    item = [{"image": "a", "label": "b"}]
    assert read(describe(tmp_path, training=item, modality={"0": "T1", "1": "T2"})).channel_names == ["T1", "T2"]
    assert read(describe(tmp_path, training=item, modality="CT")).channel_names == []


def test_default_of_the_validation_list(tmp_path: Path) -> None:
    touch(tmp_path, "train.txt", "train.csv", "dataset.json")
    names = ("train.txt", "no", "dataset.json", "train.csv", ".")
    assert [default_val_list(name, tmp_path) for name in names] == ["val.txt", "val.txt", "", "", ""]
    touch(tmp_path, "val.txt")
    assert [default_val_list(name, tmp_path) for name in names] == ["val.txt", "val.txt", "val.txt", "", ""]
