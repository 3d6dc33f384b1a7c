"""Predictions written as DICOM segmentations, looked at with pydicom and highdicom, and read back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import OBLIQUE
from other_formats import LPS, write_enhanced, write_series
from test_dicom_seg import SHAPE, on_image, some_labels, whole_series

from med3d_nets import __version__
from med3d_nets.dicom_seg import read_segmentation
from med3d_nets.dicom_seg_writing import write_segmentation
from med3d_nets.quicklook import COLOURS

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

Array = np.ndarray[Any, Any]
NAMES = ["background", "liver", "lung nodule"]
TURNS = {
    "axial": [[1, 0, 0], [0, 1, 0]],
    "sagittal": [[0, 1, 0], [0, 0, -1]],
    "coronal": [[1, 0, 0], [0, 0, -1]],
}


def oriented(name: str) -> Array:
    """Rows and columns in a plane of the patient, and slices along their normal; RAS+ mm."""
    if name == "oblique":
        return OBLIQUE
    along, down = map(np.array, TURNS[name])
    affine = np.eye(4)
    affine[:3, :3] = np.stack([along, down, np.cross(along, down)], axis=1) * [0.8, 0.9, 2.5]
    affine[:3, 3] = [-10.5, 21.25, 30]
    return LPS @ affine


def write(path: Path, files: Sequence[Path], labels: Array, affine: Array = OBLIQUE, **changed: Any) -> Any:
    """Write, and read with pydicom."""
    options: dict[str, Any] = {"class_names": NAMES, "algorithm": "some network", "version": "1.2"}
    write_segmentation(str(path), labels, affine, [str(file) for file in files], **(options | changed))
    return pydicom.dcmread(path)


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    return sorted(write_series(tmp_path / "series", np.zeros(SHAPE, np.int16), OBLIQUE).iterdir())


@pytest.fixture(params=[1, -1], ids=["along the normal", "against it"])
def way(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.mark.parametrize("name", ["axial", "sagittal", "coronal", "oblique"])
def test_every_orientation(tmp_path: Path, name: str, way: int) -> None:
    """Masks are those of the slices they refer to, where these are."""
    affine = oriented(name) @ np.diag([1, 1, way, 1])
    labels = some_labels()
    files = whole_series(tmp_path / "series", affine)
    made = write(tmp_path / "some.dcm", files, labels, affine)
    frames = list(zip(made.PerFrameFunctionalGroupsSequence, made.pixel_array, strict=True))
    shown = set()
    for frame, pixels in frames:
        segment = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        index = int(source.ReferencedSOPInstanceUID.removeprefix("1.2.3.")) - 1
        np.testing.assert_array_equal(pixels, segment == labels[:, :, index].T)
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(place, (LPS @ affine @ [0, 0, index, 1])[:3], atol=1e-6)
        shown.add((index, segment))
    assert len(shown) == len(frames)
    assert shown == {
        (index, segment) for index in range(6) for segment in (1, 2) if (labels[:, :, index] == segment).any()
    }
    np.testing.assert_array_equal(on_image(tmp_path / "some.dcm", affine), labels)


@pytest.mark.parametrize("name", ["axial", "sagittal", "coronal", "oblique"])
def test_highdicom_finds_all_where_it_is(tmp_path: Path, name: str, way: int) -> None:
    affine = oriented(name) @ np.diag([1, 1, way, 1])
    labels = some_labels()
    write(tmp_path / "some.dcm", whole_series(tmp_path / "series", affine), labels, affine)
    found = highdicom.seg.segread(tmp_path / "some.dcm")
    uids = [f"1.2.3.{index + 1}" for index in range(6)]
    options = {"combine_segments": True, "assert_missing_frames_are_empty": True}
    np.testing.assert_array_equal(found.get_pixels_by_source_instance(uids, **options), labels.T)
    volume = found.get_volume(combine_segments=True)
    there = np.argwhere(volume.array)
    to_labels = np.linalg.inv(LPS @ affine) @ volume.affine
    places = there @ to_labels[:3, :3].T + to_labels[:3, 3]
    np.testing.assert_allclose(places, places.round(), atol=1e-4)
    placed = np.zeros_like(labels)
    placed[tuple(places.round().astype(int).T)] = volume.array[tuple(there.T)]
    np.testing.assert_array_equal(placed, labels)


def test_slices_in_any_order(tmp_path: Path, series: list[Path]) -> None:
    mixed = [series[index] for index in (3, 0, 5, 1, 4, 2)]
    made = write(tmp_path / "some.dcm", mixed, some_labels())
    np.testing.assert_array_equal(on_image(tmp_path / "some.dcm"), some_labels())
    for frame in made.PerFrameFunctionalGroupsSequence:
        uid = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        (source,) = [header for header in map(pydicom.dcmread, series) if header.SOPInstanceUID == uid]
        assert frame.PlanePositionSequence[0].ImagePositionPatient == source.ImagePositionPatient


def test_labels_with_axes_the_other_way(tmp_path: Path, series: list[Path]) -> None:
    turn = np.diag([1.0, 1, -1, 1])
    turn[2, 3] = 5
    write(tmp_path / "some.dcm", series, some_labels()[:, :, ::-1], OBLIQUE @ turn)
    np.testing.assert_array_equal(on_image(tmp_path / "some.dcm"), some_labels())


@pytest.mark.parametrize("own_groups", [False, True])
@pytest.mark.parametrize("empty", [False, True])
def test_one_file_of_all_slices(tmp_path: Path, own_groups: bool, empty: bool) -> None:
    """Frames are matched by their places, also where each has its direction and spacing."""
    order = [3, 1, 0, 2, 5, 4]
    image = write_enhanced(tmp_path / "image.dcm", np.zeros(SHAPE, np.int16), OBLIQUE, order)
    if own_groups:
        header = pydicom.dcmread(image)
        (shared,) = header.SharedFunctionalGroupsSequence
        for frame in header.PerFrameFunctionalGroupsSequence:
            frame.update(shared)
        header.SharedFunctionalGroupsSequence = [pydicom.Dataset()]
        header.save_as(image)
    labels = some_labels() * (not empty)
    made = write(tmp_path / "some.dcm", [image], labels)
    np.testing.assert_array_equal(on_image(tmp_path / "some.dcm"), labels)
    for frame, pixels in zip(made.PerFrameFunctionalGroupsSequence, made.pixel_array, strict=True):
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        index = order[source.ReferencedFrameNumber - 1]
        segment = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_array_equal(pixels, segment == labels[:, :, index].T)
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(place, (LPS @ OBLIQUE @ [0, 0, index, 1])[:3], atol=1e-6)


def test_one_file_of_one_slice(tmp_path: Path) -> None:
    """Whose place may be where that of all frames is."""
    image = write_enhanced(tmp_path / "image.dcm", np.zeros(SHAPE, np.int16), OBLIQUE, [2])
    header = pydicom.dcmread(image)
    (frame,) = header.PerFrameFunctionalGroupsSequence
    header.SharedFunctionalGroupsSequence[0].PlanePositionSequence = frame.PlanePositionSequence
    del frame.PlanePositionSequence
    header.save_as(image)
    moved = np.eye(4)
    moved[2, 3] = 2
    write(tmp_path / "some.dcm", [image], some_labels()[:, :, 2:3], OBLIQUE @ moved)
    np.testing.assert_array_equal(on_image(tmp_path / "some.dcm")[:, :, 2], some_labels()[:, :, 2])


def test_an_empty_label_map(tmp_path: Path, series: list[Path]) -> None:
    made = write(tmp_path / "some.dcm", series, np.zeros(SHAPE, np.uint8))
    assert made.NumberOfFrames == 2  # one of each segment
    assert len(made.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 6
    assert [each.SegmentLabel for each in made.SegmentSequence] == NAMES[1:]
    assert not on_image(tmp_path / "some.dcm").any()
    assert not highdicom.seg.segread(tmp_path / "some.dcm").get_volume(combine_segments=True).array.any()


def test_a_class_without_voxels(tmp_path: Path, series: list[Path]) -> None:
    labels = 2 * (some_labels() == 2).astype(np.uint8)
    made = write(tmp_path / "some.dcm", series, labels)
    assert [each.SegmentLabel for each in made.SegmentSequence] == NAMES[1:]
    assert {
        f.SegmentIdentificationSequence[0].ReferencedSegmentNumber for f in made.PerFrameFunctionalGroupsSequence
    } == {2}
    np.testing.assert_array_equal(on_image(tmp_path / "some.dcm"), labels)
    assert read_segmentation(str(tmp_path / "some.dcm")).class_names == NAMES


def test_one_class(tmp_path: Path, series: list[Path]) -> None:
    labels = np.minimum(some_labels(), 1)
    write(tmp_path / "some.dcm", series, labels, class_names=NAMES[:2])
    np.testing.assert_array_equal(on_image(tmp_path / "some.dcm"), labels)


def test_one_slice(tmp_path: Path, series: list[Path]) -> None:
    labels = some_labels()[:, :, 2:3]
    moved = np.eye(4)
    moved[2, 3] = 2
    write(tmp_path / "some.dcm", series[2:3], labels, OBLIQUE @ moved)
    np.testing.assert_array_equal(on_image(tmp_path / "some.dcm")[:, :, 2:3], labels)


def test_many_classes(tmp_path: Path, series: list[Path]) -> None:
    names = ["background", *(f"part {number}" for number in range(1, 301))]
    labels = np.random.RandomState(0).randint(0, 301, SHAPE)
    write(tmp_path / "some.dcm", series, labels, class_names=names)
    found = read_segmentation(str(tmp_path / "some.dcm"))
    assert found.labels.dtype == np.uint16
    assert found.class_names == names
    np.testing.assert_array_equal(on_image(tmp_path / "some.dcm"), labels)


def test_what_segments_are_called(tmp_path: Path, series: list[Path]) -> None:
    names = ["background", "Adrenal_Gland", "left kidney", "nodule", "a\\b\tc", "x" * 70, "", "descending aorta"]
    made = write(tmp_path / "some.dcm", series, some_labels(), class_names=names)
    labels = [each.SegmentLabel for each in made.SegmentSequence]
    assert labels == ["Adrenal_Gland", "left kidney", "nodule", "a/b c", "x" * 64, "class 6", "descending aorta"]
    codes = [
        tuple(
            sequence[0].CodeValue
            for sequence in (each.SegmentedPropertyCategoryCodeSequence, each.SegmentedPropertyTypeCodeSequence)
        )
        for each in made.SegmentSequence
    ]
    tissue = ("85756007", "85756007")
    # Anatomical structure and morphologically abnormal structure; there are two codes of a descending aorta.
    assert codes == [("91723000", "23451007"), tissue, ("49755003", "27925004"), tissue, tissue, tissue, tissue]
    for number, each in enumerate(made.SegmentSequence, 1):
        assert (each.SegmentNumber, each.SegmentAlgorithmType) == (number, "AUTOMATIC")
        colour = highdicom.color.CIELabColor.from_dicom_value(list(each.RecommendedDisplayCIELabValue)).to_rgb(
            clip=True
        )
        wanted = bytes.fromhex(COLOURS[number - 1][1:])
        assert np.abs(np.subtract(colour, list(wanted))).max() <= 1


def test_who_made_it_of_what(tmp_path: Path) -> None:
    files = whole_series(
        tmp_path / "series", PatientName="Some^Body", PatientID="P7", StudyID="S1", StudyDate="20200102", PatientSex="F"
    )
    made = write(tmp_path / "some.dcm", files, some_labels(), series_description="by a network")
    source = pydicom.dcmread(files[0])
    for name in (
        "PatientName",
        "PatientID",
        "PatientSex",
        "StudyID",
        "StudyDate",
        "StudyInstanceUID",
        "FrameOfReferenceUID",
    ):
        assert made[name].value == source[name].value
    assert made.SeriesNumber == source.SeriesNumber + 1000 == 1003
    assert made.SeriesDescription == "by a network"
    assert (made.Modality, made.SegmentationType, made.SoftwareVersions) == ("SEG", "BINARY", __version__)
    (referenced,) = made.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID != made.SeriesInstanceUID
    assert len({made.SeriesInstanceUID, made.SOPInstanceUID, source.SOPInstanceUID}) == 3
    (identification,) = made.SegmentSequence[1].SegmentationAlgorithmIdentificationSequence
    assert (identification.AlgorithmName, identification.AlgorithmVersion) == ("some network", "1.2")
    assert identification.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"


def content(path: Path) -> Any:
    """All but the times of writing."""
    dataset = pydicom.dcmread(path)
    for name in ("InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime"):
        del dataset[name]
    for item in dataset.ContributingEquipmentSequence:
        item.pop("ContributionDateTime", None)
    return dataset


def test_the_same_prediction_is_the_same_object(tmp_path: Path, series: list[Path]) -> None:
    first, again, other = (tmp_path / name for name in ("a.dcm", ".part-b.dcm", "c.dcm"))
    made = write(first, series, some_labels())
    write(again, series, some_labels())
    assert content(first) == content(again)
    assert content(first).file_meta == content(again).file_meta
    changed = some_labels()
    changed[0, 0, 0] = 1
    for labels, options in (
        (changed, {}),
        (some_labels(), {"version": "1.3"}),
        (some_labels(), {"algorithm": "other"}),
    ):
        differs = write(other, series, labels, **options)
        assert differs.SOPInstanceUID != made.SOPInstanceUID
        assert differs.SeriesInstanceUID != made.SeriesInstanceUID
    assert sorted(path.name for path in tmp_path.iterdir()) == [".part-b.dcm", "a.dcm", "c.dcm", "series"]


def test_anonymised_slices(tmp_path: Path) -> None:
    """What is missing, or overwritten with what cannot be, is left empty."""

    def anonymise(_: int, header: Any) -> None:
        del header.PatientName, header.SeriesNumber, header.SliceThickness
        header.PregnancyStatus = 1
        for name, vr, value in (
            ("PatientBirthDate", "DA", "removed"),
            ("PatientSex", "CS", "X"),
            ("StudyTime", "TM", "?"),
        ):
            header.add(pydicom.DataElement(name, vr, value, validation_mode=pydicom.config.IGNORE))

    folder = write_series(tmp_path / "series", np.zeros(SHAPE, np.int16), OBLIQUE, change=anonymise)
    files = sorted(folder.iterdir())
    for file in files:
        status, broken = (b"\x10\x00\xc0\x21" + kind + b"\x02\x00" for kind in (b"US", b"UL"))  # 2 bytes of 4
        assert status in file.read_bytes()
        file.write_bytes(file.read_bytes().replace(status, broken))
    made = write(tmp_path / "some.dcm", files, some_labels())
    np.testing.assert_array_equal(on_image(tmp_path / "some.dcm"), some_labels())
    for name in (
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "PatientID",
        "StudyTime",
        "StudyDate",
        "AccessionNumber",
    ):
        assert made[name].value in ("", None), name
    assert "PregnancyStatus" not in made
    assert made.SeriesNumber == 1000
    assert made.FrameOfReferenceUID
    assert write(tmp_path / "other.dcm", files, some_labels() * 0).FrameOfReferenceUID == made.FrameOfReferenceUID


def test_texts_of_other_alphabets(tmp_path: Path) -> None:
    procedure = pydicom.Dataset()
    procedure.CodeMeaning = "Schädel"
    names = {"PatientName": "Müller^Jörg", "ProcedureCodeSequence": [procedure]}
    files = whole_series(tmp_path / "series", SpecificCharacterSet="ISO_IR 100", **names)
    made = write(tmp_path / "some.dcm", files, some_labels(), class_names=["背景", "肝", "Größe"], algorithm="сеть")
    assert made.PatientName == "Müller^Jörg"
    assert made.ProcedureCodeSequence[0].CodeMeaning == "Schädel"
    assert [each.SegmentLabel for each in made.SegmentSequence] == ["肝", "Größe"]
    assert made.SegmentSequence[0].SegmentAlgorithmName == "сеть"


@pytest.mark.parametrize("told", ["", "0.3", "5"])
def test_slices_at_rounded_positions(tmp_path: Path, told: str) -> None:
    """Those of tenths of mm, and directions that are nearly one, whatever the header says of their distance."""

    def round_off(index: int, header: Any) -> None:
        header.ImageOrientationPatient = [-1, 1e-6 * index, 0, 0, -1, 0]
        header.ImagePositionPatient = [f"{float(mm):.1f}" for mm in header.ImagePositionPatient]
        header.SpacingBetweenSlices = told

    affine = np.diag([0.7, 0.7, 0.625, 1])
    folder = write_series(tmp_path / "series", np.zeros(SHAPE, np.int16), affine, change=round_off)
    labels = some_labels()
    for kept in ([1, 2, 4, 5], [1], [2, 4]):
        part = np.zeros_like(labels)
        part[:, :, kept] = labels[:, :, kept]
        made = write(tmp_path / "some.dcm", sorted(folder.iterdir()), part, affine)
        np.testing.assert_array_equal(on_image(tmp_path / "some.dcm", affine), part)
        (measures,) = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
        assert measures.SpacingBetweenSlices == pytest.approx(0.62)  # from 0.0 to 3.1 mm
