"""What no DICOM segmentation is written of: an error that names the file, and nothing is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import OBLIQUE
from other_formats import write_enhanced, write_series
from test_dicom_seg import SHAPE, some_labels
from test_dicom_seg_writing import NAMES, write

from med3d_nets.errors import Med3dError

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")


def message(path: Path, *given: Any, **changed: Any) -> str:
    with pytest.raises(Med3dError) as caught:
        write(path, *given, **changed)
    assert not path.exists()
    return str(caught.value)


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    return sorted(write_series(tmp_path / "series", np.zeros(SHAPE, np.int16), OBLIQUE).iterdir())


def test_labels_that_do_not_fit(tmp_path: Path, series: list[Path]) -> None:
    path, labels = tmp_path / "some.dcm", some_labels()
    shifted = OBLIQUE.copy()
    shifted[:3, 3] += 1
    assert message(path, series, labels, shifted).startswith(f"{series[0]}: found labels on a grid of another origin")
    assert "(5, 7, 5) labels to write; expected (5, 7, 6)" in message(path, series, labels[:, :, :5])
    assert "found labels from 0 to 2 to write; expected class numbers from 0 to 1" in message(
        path, series, labels, class_names=NAMES[:2]
    )
    assert "found labels from -1 to" in message(path, series, labels.astype(int) - 1)
    assert "found 1 classes to write; expected 2 to" in message(path, series, labels * 0, class_names=NAMES[:1])


def test_slices_that_are_no_series(tmp_path: Path, series: list[Path]) -> None:
    path, labels = tmp_path / "some.dcm", some_labels()
    gap = message(path, [*series[:2], *series[3:]], labels[:, :, :5])
    assert "found frames at uneven positions, 1.1, 2.2 mm" in gap
    assert "expected one distance between all" in gap

    def other(**values: Any) -> str:
        header = pydicom.dcmread(series[0])
        header.update(values)
        header.save_as(tmp_path / "changed.dcm")
        return message(path, [*series[1:], tmp_path / "changed.dcm"], labels)

    assert re.search(r"changed.dcm: found Rows 9; expected 7, that of .*IM001", other(Rows=9))
    assert "found SeriesInstanceUID 1.5; expected 1.2.3" in other(SeriesInstanceUID="1.5")
    assert "found frames of PixelSpacing" in other(PixelSpacing=[1, 1])
    assert "found frames of ImageOrientationPatient" in other(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])


@pytest.mark.parametrize("name", ["ImagePositionPatient", "SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "Rows"])
def test_slices_without_what_is_referred_to(tmp_path: Path, name: str) -> None:
    def forget(_: int, header: Any) -> None:
        delattr(header, name)

    folder = write_series(tmp_path / "series", np.zeros(SHAPE, np.int16), OBLIQUE, change=forget)
    text = message(tmp_path / "some.dcm", sorted(folder.iterdir()), some_labels())
    assert text.startswith(f"{folder}/IM000: found files that no segmentation can refer to (AttributeError: ")
    assert name in text


def test_files_of_frames(tmp_path: Path) -> None:
    images = [
        write_enhanced(tmp_path / f"{name}.dcm", np.zeros(SHAPE, np.int16), OBLIQUE, range(6)) for name in ("a", "b")
    ]
    text = message(tmp_path / "some.dcm", images, some_labels())
    assert text.startswith(f"{images[0]}: found 2 files with frames; expected one, or a file for each slice")
    twice = write_enhanced(tmp_path / "twice.dcm", np.zeros(SHAPE, np.int16), OBLIQUE, [0, 1, 1, 2])
    assert "uneven positions, 0, 1.1 mm" in message(tmp_path / "some.dcm", [twice], some_labels())


def test_files_that_cannot_be_read(tmp_path: Path, series: list[Path]) -> None:
    series[0].write_bytes(bytes(1000))
    text = message(tmp_path / "some.dcm", series, some_labels())
    assert text.startswith(f"{series[0]}: found an unreadable file (InvalidDicomError")


def test_a_folder_that_is_missing(tmp_path: Path, series: list[Path]) -> None:
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "none" / "some.dcm", series, some_labels())


@pytest.mark.parametrize("package", ["pydicom", "highdicom"])
def test_without_a_package(tmp_path: Path, series: list[Path], monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    text = message(tmp_path / "some.dcm", series, some_labels())
    assert text.startswith(f"{series[0]}: found no writer of segmentations; expected pydicom and highdicom, by pip")
