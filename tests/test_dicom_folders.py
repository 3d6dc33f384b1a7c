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

from med3d_nets.datalist import load_datalist, load_images
from med3d_nets.dicom_folders import is_dicom_tree, read_tree
from med3d_nets.errors import Med3dError
from med3d_nets.folds import name_patients
from med3d_nets.sources import known_classes, read_source

pytest.importorskip("pydicom")


def write_segmentation(path: Path, uid: str, names: tuple[str, ...] = ("liver",), manufacturer: str = "x") -> Path:
    """What tells of a DICOM segmentation, without its pixels."""
    from pydicom.dataset import Dataset

    def change(_: int, header: Any) -> None:
        header.Modality, header.Manufacturer = "SEG", manufacturer
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
        {"image": str(image), "label": str(label), "dicom_patient": f"P{number}"}
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
    assert [case for _, case in rows] == [{"image": str(image), "label": str(tmp_path / name)}]
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


def labelled(folder: Path, *patients: str | None, study: str = "") -> list[Any]:
    """Series with a label map each, of these patients; where none is given, of a study alone."""
    for number, patient in enumerate(patients, 1):
        values = {"StudyInstanceUID": study or f"1.2.{number}.0", **({} if patient is None else {"PatientID": patient})}
        write_series(folder / f"{number}", hounsfield(), OBLIQUE, f"1.2.{number}", change=set_header(**values))
        write_nifti(folder / f"{number}_seg.nii.gz")
    problems: list[str] = []
    cases = read_source(folder, "", problems).training
    assert problems == []
    return [case.get("dicom_patient") for case in cases]


def test_patients_are_those_of_the_headers(tmp_path: Path) -> None:
    """Where one has been taken out, its study tells; one that all have is one patient, unless paths tell more."""
    assert labelled(tmp_path / "a", "P1", "P2", "P1") == ["P1", "P2", "P1"]
    assert labelled(tmp_path / "b", "P1", "", None) == ["P1", "study 1.2.2.0", "study 1.2.3.0"]
    assert labelled(tmp_path / "c", "", "", study="1.2.9") == ["study 1.2.9"] * 2
    assert labelled(tmp_path / "d", "ANON", "ANON", "ANON") == ["ANON"] * 3
    with pytest.raises(Med3dError, match="found 3 cases, 1 apart: the others are of the same patients"):
        load_datalist("", tmp_path / "d", n_seg_classes=2)
    problems: list[str] = []
    cases = read_source(tmp_path / "d", "", problems).training
    assert name_patients(cases, str(tmp_path), r"/(\d)", problems) == ["1", "2", "3"]


def test_a_patient_is_on_one_side(tmp_path: Path) -> None:
    """Also in a folder with one patient alone, and in lists that name folders."""
    labelled(tmp_path / "train", "P1", "P2", "P3")
    labelled(tmp_path / "val", "P1", "P1")
    (tmp_path / "val.txt").write_text("val/1 val/1_seg.nii.gz\n")
    for val_list in ("val", "val.txt"):
        with pytest.raises(Med3dError, match=r"patient 'P1': found .*; expected on one side only"):
            load_datalist(tmp_path, "train", val_list, n_seg_classes=2)


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
    expected = "expected one, of all segments: name the one that is meant in a CSV"
    assert problems_of(tmp_path) == [f"{image}: found 2 label maps, {first}, {second}; {expected}"]


def test_segmentations_of_series_that_are_not_there(tmp_path: Path) -> None:
    series(tmp_path / "1", 1)
    lost = [write_segmentation(tmp_path / f"seg/{name}", f"1.2.{name}") for name in ("8", "9")]
    assert problems_of(tmp_path)[0] == (
        f"{lost[0]}: found a segmentation of no series that is in {tmp_path}, and 1 more; "
        "expected it to refer to one that is there"
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


def images_of(folder: Path) -> list[str]:
    """Images that an inference finds, relative to the folder."""
    return [str(Path(case["image"]).relative_to(folder)) for case in load_images(folder, check=False)]


def test_predictions_are_no_truth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in (1, 2):
        series(tmp_path / f"{number}", number)
    write_nifti(tmp_path / "2_seg.nii.gz")
    (tmp_path / "1/predictions").mkdir()
    write_segmentation(tmp_path / "1/predictions/1_seg.dcm", "1.2.1", manufacturer="med3d_nets")
    assert [Path(case["image"]).name for case in read_source(tmp_path, "", []).training] == ["2"]
    assert "1_seg.dcm: a prediction, which is left out" in caplog.text
    (tmp_path / "predictions.json").write_text("{}")
    assert problems_of(tmp_path)[0].startswith(f"{tmp_path}: found 2 DICOM series without a label map")


def test_links_are_followed_once(tmp_path: Path) -> None:
    outside = series(tmp_path / "outside/1", 1)
    series(tmp_path / "tree/2", 2)
    (tmp_path / "tree/link").symlink_to(outside, target_is_directory=True)
    (tmp_path / "tree/loop").symlink_to(tmp_path / "tree", target_is_directory=True)
    assert images_of(tmp_path / "tree") == ["2", "link"]


def test_scouts_and_pages_are_left_out_in_folders_of_their_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    series(tmp_path / "ct", 1)
    scout = set_header(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "scout", hounsfield((3, 4, 2)), OBLIQUE, "1.2.2", change=scout)
    write_series(tmp_path / "page", hounsfield((3, 4, 1)), OBLIQUE, "1.2.3", change=set_header(SamplesPerPixel=3))
    assert images_of(tmp_path) == ["ct"]
    assert "left out 2 scouts, or pictures of screens" in caplog.text
    assert images_of(tmp_path / "scout") == ["."]


def test_volumes_beside_slices_are_images_too(tmp_path: Path) -> None:
    place = series(tmp_path / "a", 1)
    for name in ("patient2.nii.gz", "other_seg.nii.gz"):
        write_nifti(place / name)
    assert images_of(place) == [".", "patient2.nii.gz"]


def test_several_folders_are_each_looked_into(tmp_path: Path) -> None:
    paths = [series(tmp_path / f"P{number}/ct", number) for number in (1, 2)]
    found = load_images([tmp_path / "P1", tmp_path / "P2"], check=False)
    assert [case["image"] for case in found] == [*map(str, paths)]


def test_a_series_that_lies_in_two_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        series(tmp_path / name, 1)
        write_nifti(tmp_path / f"{name}_seg.nii.gz")
    expected = f"{tmp_path}/b: found the series 1.2.1 of {tmp_path}/a too; expected it in one folder"
    assert problems_of(tmp_path) == [expected]
    assert images_of(tmp_path) == ["a", "b"]
    assert expected in caplog.text
