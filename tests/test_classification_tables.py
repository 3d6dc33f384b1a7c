"""The three kinds of lists of classified volumes, and the message for each kind of bad line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classified import volumes, write_csv, write_images, write_npz

from med3d_nets.classification.tables import Table, has_section, read_table
from med3d_nets.formats import WANTED


def read(root: Path, name: str, problems: list[str] | None = None, **options: Any) -> Table:
    found: list[str] = []
    table = read_table("img_list", name, root, found, options.pop("sections", ["train"]), **options)
    if problems is None:
        assert found == []
    else:
        problems += found
    return table


def only_problem(root: Path, name: str, *parts: str, **options: Any) -> None:
    problems: list[str] = []
    read(root, name, problems, **options)
    assert len(problems) == 1, problems
    for part in (*parts, "expected"):
        assert part in problems[0]


def test_text_list(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# image class\n'my a.nii' benign\n\nb.nii 'very bad'  # worse\n")
    table = read(tmp_path, "list.txt")
    assert [row.label for row in table.rows] == ["benign", "very bad"]
    assert table.rows[0].item == {"image": str(tmp_path / "my a.nii"), "patient": ""}
    assert table.rows[1].where.endswith("list.txt, line 4")
    assert table.target == "value"
    (tmp_path / "list.txt").write_text("a.nii\nb.nii 1\n")
    assert [row.label for row in read(tmp_path, "list.txt", labels="ignored").rows] == ["", ""]
    assert [row.label for row in read(tmp_path, "list.txt", labels="kept").rows] == ["", "1"]
    only_problem(tmp_path, "list.txt", "line 1", "'image class'")


def test_csv_with_every_column(tmp_path: Path) -> None:
    write_csv(
        tmp_path,
        "\ufeffImage, age ,Class,patient,mask,x,y,z,size_mm",
        'a.nii,60,"one, two",p1,m.nii,,,,',
        "",
        "b.nii,,two,,,-1.5,2e1,3,10",
        ",,,,,,,,",
        "c.nii,,two,,,,,,",
    )
    table = read(tmp_path, "train.csv")
    assert table.target == "Class"
    assert [row.label for row in table.rows] == ["one, two", "two", "two"]
    first, second, third = (row.item for row in table.rows)
    assert first == {"image": str(tmp_path / "a.nii"), "patient": "p1", "mask": str(tmp_path / "m.nii")}
    assert second == {"image": str(tmp_path / "b.nii"), "patient": "", "center": [-1.5, 20.0, 3.0], "size_mm": 10.0}
    assert third == {"image": str(tmp_path / "c.nii"), "patient": ""}
    assert table.rows[1].where.endswith("train.csv, line 4")


def test_rows_without_label_are_left_out_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_csv(tmp_path, "image,label", "a.nii,1", "b.nii,", "c.nii, ", "d.nii,0")
    assert [row.label for row in read(tmp_path, "train.csv").rows] == ["1", "0"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "2 of 4 rows, which have no label: line 3, line 4" in caplog.text
    caplog.clear()
    assert len(read(tmp_path, "train.csv", labels="ignored").rows) == 4
    assert not caplog.records


def test_names_of_patients_have_no_point(tmp_path: Path) -> None:
    write_csv(tmp_path, "image,label,patient", "a.nii,1,17.0", "b.nii,1,", "c.nii,1,p1.0", "d.nii,1,017")
    assert [row.item["patient"] for row in read(tmp_path, "train.csv").rows] == ["17", "", "p1.0", "017"]


def test_csv_without_labels_for_inference(tmp_path: Path) -> None:
    write_csv(tmp_path, "patient,image", "p,a.nii")
    assert read(tmp_path, "train.csv", labels="ignored").rows[0].item["patient"] == "p"
    only_problem(tmp_path, "train.csv", "patient, image", "label, class, target")
    write_csv(tmp_path, ",image,label,target", "0,a.nii,1,2")  # with the index of pandas
    assert [row.label for row in read(tmp_path, "train.csv", labels="ignored").rows] == [""]
    only_problem(tmp_path, "train.csv", "label, target", "one of label, class, target", labels="kept")


@pytest.mark.parametrize(
    ("header", "parts"),
    [
        ("path,label", ("path, label", "'image'")),
        ("image;label", ("image;label", "'image'", "commas")),
        ("image,label,target", ("one of label, class, target",)),
        ("image,label,mask,mask", ("mask once",)),
        ("image,label,x,y,z", ("size_mm beside x, y, z",)),
        ("image,label,size_mm", ("x, y, z beside size_mm",)),
    ],
)
def test_bad_headers(tmp_path: Path, header: str, parts: tuple[str, ...]) -> None:
    write_csv(tmp_path, header, ",".join("a" for _ in header.split(",")))
    problems: list[str] = []
    read(tmp_path, "train.csv", problems)
    assert all(part in problems[0] for part in parts)


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("a.nii,1,", ("3 values", "7")),
        (",1,,,,,", ("no image",)),
        ("a.nii,1,m.nii,1,2,3,4", ("a mask and x, y, z, size_mm", "one of them")),
        ("a.nii,1,,1,2,,4", ("x, y, size_mm without z",)),
        ("a.nii,1,,1,two,3,4", ("y 'two'", "number of mm")),
        ("a.nii,1,,nan,2,3,4", ("x 'nan'",)),
        ("a.nii,1,,1,2,3,0", ("size_mm '0'", "above 0")),
    ],
)
def test_bad_rows(tmp_path: Path, row: str, parts: tuple[str, ...]) -> None:
    write_csv(tmp_path, "image,label,mask,x,y,z,size_mm", "b.nii,0,,,,,", row)
    only_problem(tmp_path, "train.csv", "line 3", *parts)


def test_csv_that_is_empty_or_broken(tmp_path: Path) -> None:
    write_csv(tmp_path, "")
    only_problem(tmp_path, "train.csv", "nothing", "image,label")
    write_csv(tmp_path, "image,label")
    only_problem(tmp_path, "train.csv", "no cases")
    write_csv(tmp_path, "image,label", '"a.nii"b,1')
    only_problem(tmp_path, "train.csv", "line 2", "commas")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    only_problem(tmp_path, "no.csv", "img_list no.csv", "no such file")
    path = str(tmp_path / write_csv(tmp_path, "image,label,mask", "a.nii,1,m.nii", "b.nii,1,"))
    only_problem(tmp_path / "typo", path, "data_root", "typo")
    (tmp_path / "dataset.json").write_text("{}")
    only_problem(tmp_path, "dataset.json", ".json", ".csv")


@pytest.mark.parametrize("image", ["data.npz", "data.NPZ::train_images", "data.npz::train_images::x"])
def test_array_in_place_of_an_image(tmp_path: Path, image: str) -> None:
    expected = f"{WANTED}, or one volume of an array, such as data.npz::train_images::0"
    write_csv(tmp_path, "image,label", "a.nii,0", f"{image},1")
    only_problem(tmp_path, "train.csv", "line 3", f"found {image};", expected)
    (tmp_path / "list.txt").write_text(f"a.nii 0\n{image} 1\n")
    only_problem(tmp_path, "list.txt", "line 2", f"found {image};", expected)
    write_csv(tmp_path, "image,label", "data.npz::train_images::2,1")
    assert read(tmp_path, "train.csv").rows[0].item["image"] == f"{tmp_path / 'data.npz'}::train_images::2"


@pytest.mark.parametrize("labels", [[0, 2, 1], [0.0, 2.0, 1.0], ["0", "2", "1"]])
def test_npz(tmp_path: Path, labels: list[Any]) -> None:
    write_npz(tmp_path, train=labels, val=[5])
    table = read(tmp_path, "data.npz")
    assert [row.label for row in table.rows] == ["0", "2", "1"]
    assert table.rows[1].item == {"image": f"{tmp_path / 'data.npz'}::train_images::1", "patient": ""}
    assert "train_labels[1]" in table.rows[1].where
    assert [row.label for row in read(tmp_path, "data.npz", section="val").rows] == ["5"]


def test_sections_of_an_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", test_images=volumes(2), val_images=volumes(3), val_labels=np.zeros(3))
    assert len(read(tmp_path, "data.npz", sections=["test", "val"]).rows) == 3
    assert len(read(tmp_path, "data.npz", sections=["test"], labels="ignored").rows) == 2
    only_problem(tmp_path, "data.npz", "val_labels", "train_images and train_labels")
    only_problem(tmp_path, "data.npz", "test_images and test_labels", sections=["val"], section="test")
    assert has_section("data.npz", tmp_path, "val")
    assert not has_section("data.npz", tmp_path, "test")
    assert not has_section("no.npz", tmp_path, "val")
    np.savez(tmp_path / "one.npz", val_images=volumes(2))
    assert len(read(tmp_path, "one.npz", sections=["test"], labels="ignored").rows) == 2
    write_csv(tmp_path, "image,label", "a.nii,1")
    only_problem(tmp_path, "train.csv", "section", "'val'", section="val")


def test_bad_npz(tmp_path: Path) -> None:
    (tmp_path / "junk.npz").write_bytes(b"PK junk")
    only_problem(tmp_path, "junk.npz", "unreadable")
    assert not has_section("junk.npz", tmp_path, "val")
    np.savez(tmp_path / "two.npz", train_images=volumes(2), train_labels=np.zeros((2, 3)))
    only_problem(tmp_path, "two.npz", "(2, 3)", "(2,) or (2, 1)")
    np.savez(tmp_path / "few.npz", train_images=volumes(3), train_labels=np.zeros(2))
    only_problem(tmp_path, "few.npz", "(2,)", "one for each volume")
    np.savez(tmp_path / "zero.npz", train_images=np.uint8(1), train_labels=np.zeros(2))
    only_problem(tmp_path, "zero.npz", "single value")


def test_nan_is_an_empty_cell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path, ["a", "b", "c"])
    write_csv(tmp_path, "image,label,patient", "a.nii.gz,1,NaN", "b.nii.gz,nan,p", "c.nii.gz,0,nan")
    rows = read(tmp_path, "train.csv").rows
    assert [(row.label, row.item["patient"]) for row in rows] == [("1", ""), ("0", "")]
    assert "left out 1 of 3 rows, which have no label: line 3" in caplog.text
