"""Folders in nnU-Net's layout: which files are the channels of a case, and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import OBLIQUE
from other_formats import write_series
from test_dicom_folders import write_segmentation
from test_dicom_series import hounsfield
from test_sources import describe, problems_of, read, touch


def images(cases: list[dict[str, Any]], root: Path) -> list[Any]:
    """Images of the cases, paths relative to a folder."""

    def short(path: str) -> str:
        return Path(path).relative_to(root).as_posix()

    return [short(path) if isinstance(path := case["image"], str) else [*map(short, path)] for case in cases]


def test_files_of_channels(tmp_path: Path) -> None:
    files = [f"{name}_{channel:04}.nii.gz" for name in ("a_1", "b") for channel in (1, 0)]
    touch(tmp_path, *(f"imagesTr/{name}" for name in files), "labelsTr/a_1.nii.gz", "labelsTr/b.nii.gz")
    touch(tmp_path, "imagesTs/c_0000.nii.gz", "imagesTs/c_0001.nii.gz", "imagesTr/._a_1_0000.nii.gz")
    source = read(tmp_path, in_channels=2)
    wanted = [[f"imagesTr/{name}_{channel:04}.nii.gz" for channel in (0, 1)] for name in ("a_1", "b")]
    assert images(source.training, tmp_path) == wanted
    assert source.training[0]["label"] == str(tmp_path / "labelsTr/a_1.nii.gz")
    assert images(source.test, tmp_path) == [["imagesTs/c_0000.nii.gz", "imagesTs/c_0001.nii.gz"]]
    assert images(read(tmp_path, "", False).training, tmp_path) == wanted


def test_one_channel_with_and_without_its_number(tmp_path: Path) -> None:
    touch(tmp_path / "with", "imagesTr/a_0000.nii", "labelsTr/a.nii", "imagesTs/b_0000.nii")
    source = read(tmp_path / "with")
    assert images(source.training + source.test, tmp_path / "with") == ["imagesTr/a_0000.nii", "imagesTs/b_0000.nii"]
    # Numbers of cases, which labels and so images of a test have too.
    names = ("a_0000", "a_0001", "a_0002")
    touch(
        tmp_path / "no", *(f"{folder}/{name}.nii" for folder in ("imagesTr", "labelsTr", "imagesTs") for name in names)
    )
    source = read(tmp_path / "no", in_channels=1)
    assert images(source.training, tmp_path / "no") == [f"imagesTr/{name}.nii" for name in names]
    assert images(source.test, tmp_path / "no") == [f"imagesTs/{name}.nii" for name in names]


def test_a_test_alone_has_channels_where_all_files_are_named_so(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTs/a_0001.nii", "imagesTs/a_0002.nii")
    assert images(read(tmp_path, "", False).test, tmp_path) == ["imagesTs/a_0001.nii", "imagesTs/a_0002.nii"]
    touch(tmp_path, "imagesTs/a_0000.nii")
    assert images(read(tmp_path, "", False).test, tmp_path) == [[f"imagesTs/a_000{n}.nii" for n in range(3)]]


def test_labels_of_a_test(tmp_path: Path) -> None:
    for name, part in {"a": "Tr", "b": "Tr", "c": "Ts", "d": "Ts"}.items():
        touch(tmp_path, *(f"images{part}/{name}_{channel:04}.nii.gz" for channel in range(2)))
        touch(tmp_path, f"labels{part}/{name}.nii.gz")
    (tmp_path / "labelsTs/d.nii.gz").unlink()  # some are not labelled
    touch(tmp_path, "labelsTs/e.nii.gz")  # nor have all labels an image
    for place in (tmp_path, describe(tmp_path, labels={"background": 0}, file_ending=".nii.gz")):
        c, d = read(place, in_channels=2).test
        assert (len(c["image"]), c["label"]) == (2, str(tmp_path / "labelsTs/c.nii.gz"))
        assert "label" not in d
        assert [*map(len, read(place, "", False).test)] == [1, 1]  # the images alone
    source = read(tmp_path)
    assert [Path(case["label"]).parent.name for case in source.training] == ["labelsTr"] * 2


def test_formats_may_differ_and_images_be_series(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    touch(tmp_path, "imagesTr/a.mha", "labelsTr/a.seg.nrrd", "labelsTr/1.2.nii.gz", "labelsTr/a.nrrd")
    (tmp_path / "labelsTr/a.seg.nrrd").unlink()
    write_series(tmp_path / "imagesTr/1.2", hounsfield(), OBLIQUE)
    source = read(tmp_path)
    assert images(source.training, tmp_path) == ["imagesTr/1.2", "imagesTr/a.mha"]
    assert [Path(case["label"]).name for case in source.training] == ["1.2.nii.gz", "a.nrrd"]


def test_labels_may_be_dicom_segmentations(tmp_path: Path) -> None:
    """Files, or the only ones in folders."""
    pytest.importorskip("pydicom")
    for name in ("a", "b.1"):
        write_series(tmp_path / "imagesTr" / name, hounsfield(), OBLIQUE, f"1.2.{len(name)}")
    write_segmentation(tmp_path / "labelsTr/a.dcm", "1.2.1")
    write_segmentation(tmp_path / "labelsTr/b.1/1-1", "1.2.3")
    source = read(tmp_path)
    labels = [Path(case["label"]).relative_to(tmp_path).as_posix() for case in source.training]
    assert labels == ["labelsTr/a.dcm", "labelsTr/b.1"]
    assert source.class_names == ["background", "liver"]
    assert problems_of(tmp_path) == []


def test_other_endings_are_left_alone_where_a_description_names_one(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a.nrrd", "imagesTr/a.nii.gz", "labelsTr/a.nrrd")
    assert "a.nrrd: found beside" in problems_of(tmp_path)[0]
    describe(tmp_path, file_ending=".nrrd")
    assert images(read(tmp_path).training, tmp_path) == ["imagesTr/a.nrrd"]


def test_missing_channels_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii", "imagesTr/a_0002.nii", "labelsTr/a.nii")
    problems = problems_of(tmp_path)
    assert problems[0].startswith(f"{tmp_path}/imagesTr, case a: found channels _0000, _0002; expected all from _0000")


def test_cases_without_a_label_or_an_image(tmp_path: Path) -> None:
    touch(tmp_path, *(f"imagesTr/{name}_0000.nii" for name in "abcdef"), "labelsTr/f.nii", "labelsTr/g.nii")
    label, image = problems_of(tmp_path)
    assert label.startswith(f"{tmp_path}/labelsTr: found nothing for case a, b, c and 2 more; expected a label")
    assert image.startswith(f"{tmp_path}/imagesTr: found nothing for case g; expected an image")
    assert len(read(tmp_path, "", False).training) == 6


def test_channels_that_are_not_those_of_the_network_are_one_problem(tmp_path: Path) -> None:
    for name in "abc":
        touch(tmp_path, *(f"imagesTr/{name}_{channel:04}.nii" for channel in range(2)), f"labelsTr/{name}.nii")
    (problem,) = problems_of(tmp_path, in_channels=1)
    assert problem.startswith(f"{tmp_path}, case a: found ")
    assert "2 files, as 2 more cases have another number too; expected one file, or in_channels=1" in problem
