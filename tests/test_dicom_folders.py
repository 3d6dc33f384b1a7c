"""Folders as archives give them: series anywhere below, and the label maps that belong to them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from conftest import OBLIQUE
from other_formats import write_series
from test_dicom import set_header
from test_dicom_series import hounsfield

from med3d_nets.datalist import load_images
from med3d_nets.dicom_folders import is_dicom_tree, read_tree
from med3d_nets.sources import known_classes, read_source

pytest.importorskip("pydicom")


def write_segmentation(path: Path, uid: str, names: tuple[str, ...] = ("liver",)) -> Path:
    """What tells of a DICOM segmentation, without its pixels."""
    from pydicom.dataset import Dataset

    def change(_: int, header: Any) -> None:
        header.Modality = "SEG"
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
        reference = Dataset()
        reference.SeriesInstanceUID = uid
        header.ReferencedSeriesSequence = [reference]
        header.SegmentSequence = [Dataset() for _ in names]
        for number, (segment, name) in enumerate(zip(header.SegmentSequence, names, strict=True), 1):
            segment.SegmentNumber, segment.SegmentLabel = number, name

    write_series(path.parent, hounsfield((3, 4, 1)), OBLIQUE, f"{uid}.66", lambda _: path.name, change)
    return path


def write_nifti(path: Path) -> Path:
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 6), np.uint8), OBLIQUE), path)
    return path


def series(folder: Path, number: int, patient: str = "", name: Any = "IM{:03}".format) -> Path:
    change = set_header(PatientID=patient or f"P{number}", SeriesNumber=number)
    return write_series(folder, hounsfield(), OBLIQUE, f"1.2.{number}", name, change)


def test_what_is_a_tree(tmp_path: Path) -> None:
    (tmp_path / "nifti").mkdir()
    write_nifti(tmp_path / "nifti" / "a.nii.gz")
    series(tmp_path / ".hidden", 1)
    assert not is_dicom_tree(str(tmp_path))
    series(tmp_path / "a/b/c", 1)
    assert is_dicom_tree(str(tmp_path))
    assert is_dicom_tree(str(tmp_path / "a/b/c"))
    assert not is_dicom_tree(str(tmp_path / "a/b/c/IM001"))
    assert not is_dicom_tree(str(tmp_path / "missing"))


def test_segmentations_belong_to_the_series_that_they_refer_to(tmp_path: Path) -> None:
    """Wherever they lie: beside the slices, in a folder of their own, or of another patient."""
    places = [tmp_path / "P1/ct", tmp_path / "P2/ct", tmp_path / "P3/mixed"]
    series(places[0], 1)
    series(places[1], 2)
    series(places[2], 3, name="{}b".format)
    series(places[2], 4, patient="P3", name="{}a".format)
    series(tmp_path / "P4", 5)
    labels = [
        write_segmentation(tmp_path / "P1/seg/1-1.dcm", "1.2.1"),
        write_segmentation(places[1] / "seg.dcm", "1.2.2"),
        write_segmentation(tmp_path / "P1/seg/of_another", "1.2.3"),
    ]
    problems: list[str] = []
    found = read_source(tmp_path, "", problems)
    assert problems == []
    images = [places[0], places[1], places[2] / "0b"]
    assert found.training == [
        {"image": str(image), "label": str(label), "patient": f"P{number}"}
        for number, (image, label) in enumerate(zip(images, labels, strict=True), 1)
    ]
    assert found.class_names == ["background", "liver"]
    assert known_classes(tmp_path, "", 2) == ["background", "liver"]
    assert known_classes(tmp_path, "", 3) == []
    every = [str(places[0]), str(places[1]), str(places[2] / "0a"), str(places[2] / "0b"), str(tmp_path / "P4")]
    assert [case["image"] for case in load_images(tmp_path, check=False)] == every


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan_seg.nii", "scan_label.nrrd", "scan/mask.nii.gz"])
def test_label_maps_beside_their_series(tmp_path: Path, name: str) -> None:
    image = series(tmp_path / "scan", 1)
    (tmp_path / name).write_bytes(b"")
    problems: list[str] = []
    rows = read_tree(str(tmp_path), problems)
    assert [case for _, case in rows] == [{"image": str(image), "label": str(tmp_path / name), "patient": "P1"}]
    assert problems == []
    both = [str(image), str(tmp_path / name)]
    assert [case["image"] for case in load_images(tmp_path, check=False)] == both[: 1 + (name == "scan.nii.gz")]


def test_series_without_a_label_map_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in (1, 2, 3):
        series(tmp_path / f"{number}", number)
    write_nifti(tmp_path / "2_seg.nii.gz")
    with caplog.at_level(logging.INFO):
        (row,) = read_tree(str(tmp_path), [])
    assert row[1]["image"] == str(tmp_path / "2")
    assert "left out 2 of 3 DICOM series, which have no label map" in caplog.text


def test_patients_that_have_been_made_the_same_are_unknown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in (1, 2, 3):
        series(tmp_path / f"{number}", number, "ANONYMOUS")
        write_nifti(tmp_path / f"{number}_seg.nii.gz")
    rows = read_tree(str(tmp_path), [])
    assert ["patient" in case for _, case in rows] == [False] * 3
    assert "as their PatientID tells too little: found 1 in 3 series" in caplog.text


def problems_of(folder: Path) -> list[str]:
    problems: list[str] = []
    read_source(folder, "", problems)
    return problems


def test_no_label_map_at_all(tmp_path: Path) -> None:
    image = series(tmp_path / "1", 1)
    (problem,) = problems_of(tmp_path)
    assert problem.startswith(f"{tmp_path}: found 1 DICOM series without a label map; expected DICOM segmentations")
    assert problem.endswith(f"{image}_seg.nii.gz")


def test_two_label_maps_of_one_series(tmp_path: Path) -> None:
    image = series(tmp_path / "1", 1)
    first, second = write_segmentation(tmp_path / "seg/a", "1.2.1"), write_nifti(tmp_path / "1_seg.nii.gz")
    assert problems_of(tmp_path) == [
        f"{image}: found 2 label maps, {first}, {second}; expected one: name the one that is meant in a CSV"
    ]


def test_segmentations_of_series_that_are_not_there(tmp_path: Path) -> None:
    series(tmp_path / "1", 1)
    lost = [write_segmentation(tmp_path / f"seg/{name}", f"1.2.{name}") for name in ("8", "9")]
    assert problems_of(tmp_path)[0] == (
        f"{lost[0]}: found a segmentation of a series that is not in {tmp_path}, and 1 more; expected its series there"
    )


def test_segmentations_that_number_their_classes_otherwise(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        series(tmp_path / f"{number}", number)
    first = write_segmentation(tmp_path / "seg/1", "1.2.1", ("liver", "tumour"))
    write_segmentation(tmp_path / "seg/2", "1.2.2", ("Liver",))
    third = write_segmentation(tmp_path / "seg/3", "1.2.3", ("tumour",))
    expected = f"expected 'liver', as in {first}: labels must number their classes alike"
    assert problems_of(tmp_path) == [f"{third}: found segment 1 named 'tumour'; {expected}"]


def test_a_damaged_header_below(tmp_path: Path) -> None:
    series(tmp_path / "1", 1)
    write_nifti(tmp_path / "1_seg.nii.gz")
    damaged = series(tmp_path / "2", 2) / "IM001"
    damaged.write_bytes(damaged.read_bytes()[:200])
    expected = f"{damaged}: found no SeriesInstanceUID in its header; expected a whole DICOM file"
    assert problems_of(tmp_path) == [expected]
    found = [case["image"] for case in load_images(tmp_path, check=False)]
    assert found == [str(tmp_path / "1"), str(tmp_path / "2")]
