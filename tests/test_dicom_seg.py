"""DICOM segmentations of every type, read as label maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import OBLIQUE
from other_formats import LPS, write_series

from med3d_nets.dicom_seg import is_segmentation, place_on_grid, read_segmentation
from med3d_nets.errors import Med3dError

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

Array = np.ndarray[Any, Any]
SHAPE = (5, 7, 6)
"""Of 35 pixels a slice, so that frames of bits begin within a byte."""


def some_labels(classes: int = 3) -> Array:
    """With empty slices at both ends and within."""
    labels = np.random.RandomState(0).randint(0, classes, SHAPE).astype(np.uint8)
    labels[:, :, [0, 3]] = 0
    labels[:, :, 4] = labels[:, :, 4] == 1  # of the first class only
    return labels


def whole_series(folder: Path, affine: Array = OBLIQUE, **changed: Any) -> list[Path]:
    """Files of a series with all that highdicom asks for, in the order of their slices."""

    def complete(_: int, header: Any) -> None:
        for name in ("PatientBirthDate", "PatientSex", "AccessionNumber"):
            setattr(header, name, "")
        for name in ("StudyID", "StudyDate", "StudyTime"):
            setattr(header, name, "")
        header.FrameOfReferenceUID, header.PatientID = "1.2.3.4", "7"
        for name, value in changed.items():
            setattr(header, name, value)

    write_series(folder, np.zeros(SHAPE, np.int16), affine, change=complete)
    return sorted(folder.iterdir())


def describe(number: int, label: str) -> Any:
    tissue = pydicom.sr.codedict.codes.SCT.Tissue
    return highdicom.seg.SegmentDescription(number, label, tissue, tissue, "MANUAL")


def write_segments(
    path: Path,
    files: Sequence[Path],
    pixels: Array,
    kind: str = "BINARY",
    names: dict[int, str] | None = None,
    change: Callable[[Any], None] = lambda dataset: None,
    **options: Any,
) -> Path:
    """A segmentation by highdicom.

    Args:
        pixels: labels ``(x, y, z)``, or ``(x, y, z, segment)``.
        change: called with the data set before it is written.
    """
    segments = [describe(number, name) for number, name in (names or {1: "one", 2: "two"}).items()]
    order = (2, 1, 0, 3)[: pixels.ndim]
    made = highdicom.seg.Segmentation(
        [pydicom.dcmread(file, stop_before_pixels=True) for file in files],
        np.ascontiguousarray(pixels.transpose(order)),
        kind,
        segments,
        series_instance_uid="1.2.7",
        series_number=7,
        sop_instance_uid="1.2.7.1",
        instance_number=1,
        manufacturer="somebody",
        manufacturer_model_name="something",
        software_versions="1",
        device_serial_number="1",
        **options,
    )
    path.parent.mkdir(exist_ok=True)
    change(made)
    made.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    return whole_series(tmp_path / "series")


def on_image(path: Path, affine: Array = OBLIQUE) -> Array:
    found = read_segmentation(str(path))
    return place_on_grid(str(path), found.labels, found.affine, SHAPE, affine)


def message(path: Path) -> str:
    with pytest.raises(Med3dError) as caught:
        read_segmentation(str(path))
    assert str(caught.value).startswith(f"{path}: found ")
    assert "; expected " in str(caught.value)
    return str(caught.value)


def test_binary(tmp_path: Path, series: list[Path]) -> None:
    path = write_segments(tmp_path / "some.dcm", series, some_labels())
    found = read_segmentation(str(path))
    np.testing.assert_array_equal(found.labels, some_labels()[:, :, 1:])
    assert found.labels.dtype == np.uint8
    np.testing.assert_allclose(found.affine[:3, :3], OBLIQUE[:3, :3], atol=1e-6)
    np.testing.assert_allclose(found.affine[:, 3], OBLIQUE @ [0, 0, 1, 1], atol=1e-6)
    assert found.class_names == ["background", "one", "two"]
    assert found.series_uid == "1.2.3"


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"])
def test_fractions_from_a_half_on(tmp_path: Path, series: list[Path], syntax: str) -> None:
    shares = np.random.RandomState(1).choice([0, 0.1, 0.49, 0.51, 0.7, 1], (*SHAPE, 2))
    shares[..., 1] = np.minimum(shares[..., 1], 1 - shares[..., 0])  # not both above a half
    path = write_segments(tmp_path / "some.dcm", series, shares, "FRACTIONAL", transfer_syntax_uid=syntax)
    np.testing.assert_array_equal(on_image(path), (shares > 0.5) @ [1, 2])


def test_exactly_a_half(tmp_path: Path, series: list[Path]) -> None:
    shares = np.full((*SHAPE, 1), 0.5)
    for most, expected in ((200, 1), (201, 0)):  # 0.5 of 201 is stored as 100
        options = {"names": {1: "one"}, "max_fractional_value": most}
        path = write_segments(tmp_path / f"{most}.dcm", series, shares, "FRACTIONAL", **options)
        assert (on_image(path) == expected).all()


@pytest.mark.parametrize(("last", "kind"), [(7, np.uint8), (300, np.uint16)])
def test_label_map(tmp_path: Path, series: list[Path], last: int, kind: type) -> None:
    labels = np.array([0, 2, last], np.uint16)[some_labels()]
    path = write_segments(tmp_path / "some.dcm", series, labels, "LABELMAP", {2: "two", last: "last"})
    found = read_segmentation(str(path))
    assert is_segmentation(str(path))
    assert found.labels.dtype == kind
    np.testing.assert_array_equal(on_image(path), labels)
    assert found.class_names[:4] == ["background", "class 1", "two", "class 3"]
    assert len(found.class_names) == last + 1
    assert found.class_names[last] == "last"


def test_a_label_map_with_another_background(tmp_path: Path, series: list[Path]) -> None:
    def fill(dataset: Any) -> None:
        dataset.PixelPaddingValue = 9
        dataset.PixelData = dataset.PixelData.replace(b"\0", b"\x09")

    path = write_segments(tmp_path / "some.dcm", series, some_labels(), "LABELMAP", change=fill)
    np.testing.assert_array_equal(on_image(path), some_labels())


@pytest.mark.parametrize("kept", [[1], [5, 2], [0, 1, 4]])
def test_frames_of_some_slices_in_any_order(tmp_path: Path, series: list[Path], kept: list[int]) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, :, kept] = np.random.RandomState(2).randint(1, 3, (5, 7, len(kept)))
    path = write_segments(tmp_path / "some.dcm", series, labels)
    found = read_segmentation(str(path))
    assert found.labels.shape == (5, 7, max(kept) - min(kept) + 1)
    np.testing.assert_array_equal(on_image(path), labels)


def test_one_segment(tmp_path: Path, series: list[Path]) -> None:
    """Its number is that of all frames."""
    labels = np.minimum(some_labels(), 1)
    path = write_segments(tmp_path / "some.dcm", series, labels, names={1: "one"})
    assert "SegmentIdentificationSequence" in pydicom.dcmread(path).SharedFunctionalGroupsSequence[0]
    np.testing.assert_array_equal(on_image(path), labels)


def test_a_lax_file(tmp_path: Path, series: list[Path]) -> None:
    """Of what highdicom asks for, much is of no use here."""

    def thin(dataset: Any) -> None:
        for name in ("FrameOfReferenceUID", "ReferencedSeriesSequence", "DimensionIndexSequence", "SegmentsOverlap"):
            delattr(dataset, name)
        for segment in dataset.SegmentSequence:
            del segment.SegmentedPropertyTypeCodeSequence, segment.SegmentLabel

    path = write_segments(tmp_path / "some.dcm", series, some_labels(), change=thin)
    np.testing.assert_array_equal(on_image(path), some_labels())
    found = read_segmentation(str(path))
    assert found.class_names == ["background", "class 1", "class 2"]
    assert found.series_uid == ""


def test_overlaps_are_named(tmp_path: Path, series: list[Path]) -> None:
    masks = np.zeros((*SHAPE, 3), np.uint8)
    masks[:4, 2:4, 2:4, 0] = 1
    masks[3:, 2:3, 2:, 1] = 1
    masks[0, 3, 3, 2] = 1
    path = write_segments(tmp_path / "some.dcm", series, masks, names={1: "one", 2: "two", 3: "three"})
    text = message(path)
    assert "segments that overlap, 1 (one) and 2 (two) share 2 voxels; 1 (one) and 3 (three) share 1 voxels; ex" in text


def test_frames_that_are_there_twice(tmp_path: Path, series: list[Path]) -> None:
    def repeat(dataset: Any) -> None:
        frames = dataset.PerFrameFunctionalGroupsSequence
        frames[1].PlanePositionSequence = frames[0].PlanePositionSequence

    def number(dataset: Any) -> None:
        repeat(dataset)
        dataset.PerFrameFunctionalGroupsSequence[1].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 2

    path = write_segments(tmp_path / "some.dcm", series, np.minimum(some_labels(), 1), change=repeat)
    assert "found frames 1 and 2 of segment 1 at one place; expected one frame there" in message(path)
    path = write_segments(tmp_path / "map.dcm", series, some_labels(), "LABELMAP", change=repeat)
    assert "found frames 1 and 2 at one place" in message(path)
    path = write_segments(tmp_path / "other.dcm", series, np.minimum(some_labels(), 1), change=number)
    assert "1 (one) and 2 (two) share" in message(path)


def test_uneven_frames(tmp_path: Path, series: list[Path]) -> None:
    def shift(dataset: Any) -> None:
        place = dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0]
        place.ImagePositionPatient = list(LPS[:3, :3] @ (OBLIQUE @ [0, 0, 4.3, 1])[:3])

    path = write_segments(tmp_path / "some.dcm", series, np.minimum(some_labels(), 1), change=shift)
    assert "found frames at uneven positions, 0.77, 1.1, 2.53 mm from one to the next" in message(path)


def test_frames_of_several_directions(tmp_path: Path, series: list[Path]) -> None:
    def turn(dataset: Any) -> None:
        own = highdicom.PlaneOrientationSequence("PATIENT", [1, 0, 0, 0, 1, 0])
        dataset.PerFrameFunctionalGroupsSequence[2].PlaneOrientationSequence = own

    path = write_segments(tmp_path / "some.dcm", series, some_labels(), change=turn)
    assert "found frames of ImageOrientationPatient [0.0, 0.0, -1.0," in message(path)
    assert "and [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]; expected one" in message(path)


def test_segments_that_are_not_described(tmp_path: Path, series: list[Path]) -> None:
    def forget(dataset: Any) -> None:
        dataset.SegmentSequence = list(dataset.SegmentSequence)[:-1]

    path = write_segments(tmp_path / "some.dcm", series, some_labels(), change=forget)
    assert "found frames of segments [2]; expected segments that it describes" in message(path)
    path = write_segments(tmp_path / "map.dcm", series, some_labels(), "LABELMAP", change=forget)
    assert "found values [2]; expected numbers of segments that it describes" in message(path)


def test_missing_groups(tmp_path: Path, series: list[Path]) -> None:
    def forget(dataset: Any) -> None:
        del dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence

    path = write_segments(tmp_path / "some.dcm", series, some_labels(), change=forget)
    assert "found no PlanePositionSequence; expected one for each frame" in message(path)


def test_tiles(tmp_path: Path, series: list[Path]) -> None:
    path = write_segments(
        tmp_path / "some.dcm", series, some_labels(), change=lambda made: setattr(made, "TotalPixelMatrixColumns", 9)
    )
    assert "found tiles of a slide; expected slices of a volume" in message(path)


def test_a_grid_that_is_too_large(tmp_path: Path, series: list[Path]) -> None:
    def throw(dataset: Any) -> None:
        place = dataset.PerFrameFunctionalGroupsSequence[-1].PlanePositionSequence[0]
        place.ImagePositionPatient = list(LPS[:3, :3] @ (OBLIQUE @ [0, 0, 1e8, 1])[:3])

    path = write_segments(tmp_path / "some.dcm", series, np.minimum(some_labels(), 1), change=throw)
    assert "expected at most 2147483648 voxels" in message(path)


def test_every_truncated_file_is_refused(tmp_path: Path, series: list[Path]) -> None:
    path = write_segments(tmp_path / "some.dcm", series, some_labels())
    content = path.read_bytes()
    for length in (*range(140, len(content), 97), len(content) - 2):  # a byte more is of no frame
        path.write_bytes(content[:length])
        message(path)


def test_other_files(tmp_path: Path, series: list[Path]) -> None:
    assert "found SOPClassUID 1.2.840.10008.5.1.4.1.1.2; expected that of a segmentation" in message(series[0])
    assert "found 0 DICOM segmentations; expected one" in message(series[0].parent)
    text = tmp_path / "some.nii"
    text.write_bytes(bytes(1000))
    assert "found an unreadable file (InvalidDicomError" in message(text)
    assert "(FileNotFoundError" in message(tmp_path / "none.dcm")


def test_folders(tmp_path: Path, series: list[Path]) -> None:
    folder = tmp_path / "folder"
    path = write_segments(folder / "some.dcm", series, some_labels())
    (folder / "notes.txt").write_text("text")
    np.testing.assert_array_equal(on_image(folder), some_labels())
    (folder / "other.dcm").write_bytes(path.read_bytes())
    assert is_segmentation(str(folder))
    assert "found 2 DICOM segmentations: other.dcm, some.dcm; expected one, or the path of one" in message(folder)
    (folder / "sorted last.dcm").write_bytes(series[0].read_bytes())
    assert not is_segmentation(str(folder))


def test_what_is_a_segmentation(tmp_path: Path, series: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    empty, text = tmp_path / "empty", tmp_path / "some.nii.gz"
    empty.mkdir()
    text.write_bytes(b"\x1f\x8b" + bytes(100))
    short = tmp_path / "short.dcm"
    short.write_bytes(bytes(128) + b"DICM")
    for path in (series[0], series[0].parent, empty, text, short, tmp_path / "none"):
        assert not is_segmentation(str(path))


def test_without_pydicom(tmp_path: Path, series: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_segments(tmp_path / "some.dcm", series, some_labels())
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    assert is_segmentation(str(path))
    assert r"expected pydicom and highdicom, by pip install 'med3d-nets[formats]'" in message(path)


def test_a_directory_beside_a_segmentation(tmp_path: Path, series: list[Path]) -> None:
    folder = tmp_path / "disc"
    write_segments(folder / "some.dcm", series, some_labels())
    listing = pydicom.Dataset()
    listing.file_meta = pydicom.dataset.FileMetaDataset()
    listing.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    listing.file_meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    listing.file_meta.MediaStorageSOPInstanceUID = "1.2.8"
    listing.save_as(folder / "DICOMDIR", enforce_file_format=True)
    assert is_segmentation(str(folder))
    np.testing.assert_array_equal(on_image(folder), some_labels())
