"""The shipped JSON on folders of DICOM: from an archive to label maps and segmentations, and back to a training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from conftest import OBLIQUE
from monai.transforms import Compose
from other_formats import LPS, write_enhanced, write_series
from predicted import CLASSES, make_bundle, predict, refused
from test_dicom import set_header
from test_every_bundle import workflow

from med3d_nets.checking.cases import Case, Options, read_case
from med3d_nets.checking.pictures import PictureStore
from med3d_nets.checks import check_case, read_volume
from med3d_nets.dicom_seg import read_segmentation, write_segmentation
from med3d_nets.dicom_series import read_series

pytest.importorskip("itk")
pytest.importorskip("highdicom")

Array = np.ndarray[Any, Any]

SPACING = np.diag([0.9, 1.2, 2.0])
AXIAL = np.eye(4)
AXIAL[:3, :3] = np.diag([-1.0, -1.0, 1.0]) @ SPACING
AXIAL[:3, 3] = [40, 60, -20]
SAGITTAL, CORONAL = np.eye(4), np.eye(4)
SAGITTAL[:3, :3] = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]) @ SPACING
CORONAL[:3, :3] = np.array([[-1.0, 0, 0], [0, 0, -1], [0, -1, 0]]) @ SPACING
ORIENTATIONS = {"axial": AXIAL, "coronal": CORONAL, "oblique": OBLIQUE, "sagittal": SAGITTAL}


def scan(seed: int, shape: tuple[int, int, int] = (14, 18, 16)) -> Array:
    """HU with a bright box, and a brighter one in it, in both of which no slice is like another."""
    voxels = np.random.RandomState(seed).normal(30, 3, shape)
    voxels[3:10, 4:12, 2:9] += 100
    for index in range(4, 8):
        voxels[4:6, 5 : index + 2, index] += 120
    return voxels.round().astype(np.int16)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A patient a folder: series of four orientations, of which one has a slice missing; two series, and one file."""
    folder = tmp_path / "archive"
    for number, (name, affine) in enumerate(ORIENTATIONS.items(), 1):
        change = set_header(PatientID=f"P{number}", SeriesNumber=number)
        write_series(folder / f"P{number}" / name, scan(number), affine, f"1.2.{number}", change=change)
    (folder / "P2/coronal/IM007").unlink()
    for number, affine in ((5, AXIAL), (6, OBLIQUE)):
        change = set_header(PatientID="P5", SeriesNumber=number)
        write_series(folder / "P5", scan(number), affine, f"1.2.{number}", f"{{}}_{number}".format, change)
    (folder / "P7").mkdir()
    write_enhanced(folder / "P7/frames.dcm", scan(7), OBLIQUE, [*range(0, 16, 2), *range(15, 0, -2)])
    return folder


def slices_by_uid(folder: Path) -> dict[str, Array]:
    """Position (LPS mm) of each slice by its UID, straight from the files."""
    import pydicom

    headers = [pydicom.dcmread(path) for path in folder.iterdir()]
    return {header.SOPInstanceUID: np.array(header.ImagePositionPatient, float) for header in headers}


def test_an_archive_becomes_label_maps_and_segmentations(archive: Path, tmp_path: Path) -> None:
    """Series of every orientation, two in a folder and one in a file; that with a slice missing is told, alone."""
    import highdicom

    bundle = make_bundle(tmp_path)
    text = refused(bundle, archive)
    assert "not predicted: 1 of 7 cases" in text
    assert f"{archive}/P2/coronal: found slices at uneven positions, " in text
    answers = {
        "P1/axial": (1, AXIAL),
        "P3/oblique": (3, OBLIQUE),
        "P4/sagittal": (4, SAGITTAL),
        "P5/series_5": (5, AXIAL),
        "P5/series_6": (6, OBLIQUE),
        "P7": (7, OBLIQUE),
    }
    out = bundle / "predictions"
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.dcm")) == [f"{name}_seg.dcm" for name in answers]
    for name, (number, affine) in answers.items():
        label_map = nibabel.load(out / f"{name}_seg.nii.gz")
        labels = np.asarray(label_map.dataobj)
        assert labels.shape == (14, 18, 16)
        np.testing.assert_allclose(label_map.affine, affine, atol=1e-5)
        assert set(np.unique(labels)) == {0, 1, 2}
        found = highdicom.seg.segread(out / f"{name}_seg.dcm")
        assert [found.get_segment_description(each).SegmentLabel for each in (1, 2)] == CLASSES[1:]
        assert found.SeriesInstanceUID != f"1.2.{number}"
        volume = found.get_volume(combine_segments=True, allow_missing_positions=True)
        indices = np.argwhere(volume.array)
        world = volume.map_indices_to_reference(indices)  # LPS mm
        back = np.linalg.inv(LPS @ affine) @ np.c_[world, np.ones(len(world))].T
        where = tuple(back[:3].round().astype(int))
        np.testing.assert_allclose(back[:3], np.array(where), atol=1e-3)
        np.testing.assert_array_equal(labels[where], volume.array[tuple(indices.T)])
        assert len(indices) == (labels > 0).sum()


def test_each_frame_refers_to_its_slice(archive: Path, tmp_path: Path) -> None:
    import pydicom

    bundle = make_bundle(tmp_path)
    predict(bundle, archive / "P3/oblique")
    found = pydicom.dcmread(bundle / "predictions/oblique_seg.dcm")
    assert (found.PatientID, found.Modality, found.StudyInstanceUID) == ("P3", "SEG", "1.2.3.0")
    assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3"
    places = slices_by_uid(archive / "P3/oblique")
    labels = np.asarray(nibabel.load(bundle / "predictions/oblique_seg.nii.gz").dataobj)
    frames = found.pixel_array
    for frame, pixels in zip(found.PerFrameFunctionalGroupsSequence, frames, strict=True):
        uid = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        np.testing.assert_allclose(place, places[uid], atol=1e-4)
        index = round(float((np.linalg.inv(LPS @ OBLIQUE) @ [*place, 1])[2]))
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_array_equal(pixels.T, labels[:, :, index] == number)
    assert len(frames) == sum((labels == number).any((0, 1)).sum() for number in (1, 2))


def test_a_second_run_skips_and_a_series_is_chosen_by_one_of_its_files(archive: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    for name in ("3_6", "0_6"):
        predict(bundle, archive / "P5" / name)
    assert sorted(path.name for path in (bundle / "predictions").glob("*_seg.*")) == [
        "series_6_seg.dcm",
        "series_6_seg.nii.gz",
    ]
    seen: list[Any] = []
    predict(bundle, archive / "P5", seen.append)
    assert len(seen) > 0
    assert len(list((bundle / "predictions").glob("*_seg.dcm"))) == 2
    seen.clear()
    predict(bundle, archive / "P5", seen.append)
    assert seen == []


def test_without_segmentations(archive: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    predict(bundle, archive / "P1", dicom_seg=False)
    assert [path.name for path in (bundle / "predictions").glob("*_seg.*")] == ["axial_seg.nii.gz"]


def test_label_maps_are_not_lost_for_slices_that_no_segmentation_can_refer_to(
    archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And a second run takes the case for finished."""
    write_series(tmp_path / "scan", scan(1), AXIAL, "1.2.1", change=lambda _, header: delattr(header, "SOPClassUID"))
    bundle = make_bundle(tmp_path)
    predict(bundle, tmp_path / "scan")
    assert "no DICOM segmentation could be written, the label map alone is" in caplog.text
    assert [path.name for path in (bundle / "predictions").glob("*_seg.*")] == ["scan_seg.nii.gz"]
    seen: list[Any] = []
    predict(bundle, tmp_path / "scan", seen.append)
    assert seen == []


def test_predictions_beside_the_slices_are_no_images(archive: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    folder = archive / "P1/axial"
    predict(bundle, folder, output_dir=str(folder))
    seen: list[Any] = []
    predict(bundle, folder, seen.append, output_dir=str(folder))
    assert seen == []
    assert (folder / "axial_seg.dcm").is_file()


def test_segmentations_train_as_the_same_labels_in_nifti(archive: Path, tmp_path: Path) -> None:
    """A tree of series with segmentations, found by itself, against a list of NIfTI files."""
    import pydicom

    for part in ("P2", "P5", "P7"):
        shutil.rmtree(archive / part)
    lines = []
    for number, (place, affine) in enumerate((("P1/axial", AXIAL), ("P3/oblique", OBLIQUE), ("P4/sagittal", SAGITTAL))):
        voxels = read_volume(str(archive / place), [])
        assert voxels is not None
        labels = (voxels[0] > 80).astype(np.uint8) + (voxels[0] > 180).astype(np.uint8)
        files = read_series(str(archive / place)).files
        seg = archive / "segmentations" / f"{number}.dcm"
        seg.parent.mkdir(exist_ok=True)
        write_segmentation(str(seg), labels, affine, files, CLASSES, "test", "1")
        drawn = pydicom.dcmread(seg)
        drawn.Manufacturer = "a person"  # predictions are no truth
        drawn.save_as(seg)
        assert read_segmentation(str(seg)).labels.shape[2] < 16  # only the slices that have something
        for kind, array in (("images", voxels[0]), ("labels", labels)):
            (tmp_path / "nifti" / kind).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, voxels[1]), tmp_path / f"nifti/{kind}/{number}.nii.gz")
        lines.append(f"images/{number}.nii.gz labels/{number}.nii.gz\n")
    (tmp_path / "nifti/train.txt").write_text("".join(lines))
    small = {"n_epochs": 1, "patch_size": [16, 16, 8], "pretrain_path": "", "n_seg_classes": 3, "val_list": ""}
    cases = []
    for name, data, source in (("dicom", archive, ""), ("nifti", tmp_path / "nifti", "train.txt")):
        bundle = make_bundle(tmp_path / name)
        options = {"data_root": str(data), "img_list": source or str(data), "ckpt_dir": str(tmp_path / name / "models")}
        training = workflow(bundle, "train", "train", "patch", **options, **small)
        loading = training.parser.get_parsed_content("train#deterministic_transforms")[:3]
        load = Compose(loading)  # resampling comes after these, and rounds halves by chance
        lists = (training.parser.get_parsed_content(f"{part}#dataset#data") for part in ("train", "validate"))
        items = sorted((item for each in lists for item in each), key=lambda item: item["image"])
        cases.append([load(item) for item in items])
        if name == "dicom":
            training.run_id = "training"
            training.run()
            assert training.parser.get_parsed_content("settings").class_names == CLASSES
            assert (tmp_path / name / "models/model.pt").is_file()
    assert len(cases[0]) == len(cases[1]) == 3
    for one, other in zip(*cases, strict=True):
        for key in ("image", "label"):
            np.testing.assert_array_equal(np.asarray(one[key]), np.asarray(other[key]))
            np.testing.assert_allclose(one[key].affine, other[key].affine, atol=1e-5)
            assert one[key].shape == (1, 14, 18, 16)


def test_a_segmentation_of_another_grid_and_one_whose_image_is_bad(archive: Path, tmp_path: Path) -> None:
    """Each is one problem, in training and in ``med3d check``."""
    voxels = read_volume(str(archive / "P1/axial"), [])
    assert voxels is not None
    labels = (voxels[0] > 80).astype(np.uint8)
    seg = str(tmp_path / "seg.dcm")
    write_segmentation(seg, labels, AXIAL, read_series(str(archive / "P1/axial")).files, CLASSES[:2], "test", "1")
    for image, found, kind in (
        ("P3/oblique", f"{seg}: found labels on a grid of another", "grid"),
        ("P2/coronal", f"{archive}/P2/coronal: found slices at uneven positions", "unreadable"),
    ):
        problems, _ = check_case({"image": str(archive / image), "label": seg}, 2, 1)
        (problem,) = problems
        assert problem.startswith(found)
        with PictureStore() as store:
            record = read_case(Case("training", (str(archive / image),), seg), Options(2), store)
        assert [str(each) for each in record.problems] == problems
        assert [each.kind for each in record.problems] == [kind]
