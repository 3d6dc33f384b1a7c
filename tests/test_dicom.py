"""Folders of DICOM files: which series are in one, and what a path of a folder or of a file stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import OBLIQUE
from other_formats import write_enhanced, write_series
from test_dicom_series import hounsfield

from med3d_nets.datalist import output_names
from med3d_nets.dicom import (
    dicom_files,
    is_dicom,
    is_dicom_file,
    is_series,
    name_series,
    scan,
    series_files,
    series_in,
    series_path,
)
from med3d_nets.dicom_folders import images_in
from med3d_nets.dicom_series import read_series
from med3d_nets.errors import Med3dError
from med3d_nets.list_files import volumes_in

pytest.importorskip("pydicom")


def set_header(**values: Any) -> Any:
    """For :func:`write_series`: attributes of each slice."""

    def change(_: int, header: Any) -> None:
        for name, value in values.items():
            setattr(header, name, value)

    return change


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two series, a scout, a report and a text in one folder; slices lie among each other."""
    folder = tmp_path / "mixed"
    write_series(folder, hounsfield(), OBLIQUE, "1.2.5", "{}b".format, set_header(SeriesNumber=5))
    write_series(folder, hounsfield((4, 5, 7)), OBLIQUE, "1.2.4", "{}a".format, set_header(SeriesNumber=4))
    scout = set_header(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesNumber=1)
    write_series(folder, hounsfield((3, 4, 2)), OBLIQUE, "1.2.1", "{}s".format, scout)
    write_series(folder, hounsfield((3, 4, 1)), OBLIQUE, "1.2.8", "r{}".format, set_header(Modality="SR"))
    (folder / "README").write_text("text")
    return folder


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    series = write_series(tmp_path / "series", hounsfield(), OBLIQUE)
    (series / "LICENSE.txt").write_text("text")
    (series / "._IM000").write_bytes(bytes(128) + b"DICM")
    (series / "below").mkdir()
    assert len(list(dicom_files(str(series)))) == len(read_series(str(series)).files) == 6
    assert (is_series(str(series)), is_series(str(tmp_path)), is_series(str(series / "below"))) == (True, False, False)
    names = ("IM000", "LICENSE.txt", "below", "x")
    assert [is_dicom_file(str(series / name)) for name in names] == [True, False, False, False]
    assert [is_dicom(str(series / name)) for name in ("", *names)] == [True, True, False, False, False]


def test_a_folder_of_one_series_stands_for_it(tmp_path: Path) -> None:
    series = write_series(tmp_path / "series", hounsfield(), OBLIQUE)
    assert series_in(str(series)) == [str(series)]
    assert [series_path(str(series / name)) for name in ("IM000", "IM004")] == [str(series)] * 2
    assert series_path(str(series)) == str(series)
    assert series_path(str(tmp_path / "scan.nii.gz")) == str(tmp_path / "scan.nii.gz")
    assert volumes_in(str(tmp_path)) == [str(series)] == images_in(str(series), [])


def test_of_several_series_a_file_stands_for_each(mixed: Path) -> None:
    paths = [str(mixed / "0a"), str(mixed / "0b")]
    assert series_in(str(mixed)) == paths == volumes_in(str(mixed.parent)) == images_in(str(mixed), [])
    assert [series_path(str(mixed / name)) for name in ("3a", "5b")] == paths
    assert [name_series(path) for path in paths] == ["series_4", "series_5"]
    assert [read_series(path).shape for path in paths] == [(4, 5, 7), (3, 4, 6)]
    assert [Path(path).name for path in series_files(paths[1])] == [f"{index}b" for index in range(6)]
    names = output_names([{"image": path} for path in paths], str(mixed))
    assert [Path(item["image"]).name for item in names] == ["series_4.dcm", "series_5.dcm"]


def test_several_series_are_named_with_a_file_to_choose_by(mixed: Path) -> None:
    with pytest.raises(Med3dError) as caught:
        read_series(str(mixed))
    text = str(caught.value)
    assert text.startswith(f"{mixed}: found 2 DICOM series: 1.2.4 (CT, 4, chest, 7 files); 1.2.5 (CT, 5, chest, 6")
    assert text.endswith(f"expected one a folder, or the path of a file of the one that is meant, such as {mixed}/0a")


def test_scouts_are_a_volume_where_nothing_else_is(tmp_path: Path) -> None:
    localizer = set_header(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert series_in(str(write_series(tmp_path, hounsfield(), OBLIQUE, change=localizer))) == [str(tmp_path)]


def test_films_without_a_place_are_no_series(mixed: Path) -> None:
    def turn_into_film(_: int, header: Any) -> None:
        header.NumberOfFrames = "4"
        header.SeriesNumber, header.Modality = 9, "US"
        del header.ImagePositionPatient

    write_series(mixed, hounsfield((3, 4, 1)), OBLIQUE, "1.2.11", "f{}".format, turn_into_film)
    write_enhanced(mixed / "frames", hounsfield(), OBLIQUE, range(6))
    assert series_in(str(mixed)) == [str(mixed / name) for name in ("0a", "0b", "frames")]


def test_a_scout_beside_one_series_is_no_choice(mixed: Path) -> None:
    for path in mixed.glob("*b"):
        path.unlink()
    assert series_in(str(mixed)) == [str(mixed)]
    assert read_series(str(mixed)).shape == (4, 5, 7)
    assert [Path(path).name for path in series_files(str(mixed))] == [f"{index}a" for index in range(7)]


def test_a_slice_missing_in_a_folder_of_several_series(mixed: Path) -> None:
    (mixed / "3a").unlink()
    with pytest.raises(Med3dError, match=rf"^{mixed}/0a: found slices at uneven positions, .* mm from 2a at .* to 4a "):
        read_series(str(mixed / "0a"))
    assert read_series(str(mixed / "0b")).shape == (3, 4, 6)


def test_series_that_share_a_number_are_named_by_their_uid(tmp_path: Path) -> None:
    for uid in ("1.2.4", "1.2.5"):
        write_series(tmp_path, hounsfield(), OBLIQUE, uid, f"{uid}_{{}}".format)
    paths = series_in(str(tmp_path))
    assert [name_series(path) for path in paths] == ["series_1.2.4", "series_1.2.5"]
    names = output_names([{"image": path} for path in paths], str(tmp_path))
    assert [Path(item["image"]).name for item in names] == ["series_1.2.4.dcm", "series_1.2.5.dcm"]


def test_folders_without_images(tmp_path: Path, mixed: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_series(tmp_path / "report", hounsfield((3, 4, 1)), OBLIQUE, change=set_header(Modality="SR"))
    for folder, found in (("empty", ""), ("report", r", but 1.2.3 \(SR, 3, chest, 1 files\)")):
        with pytest.raises(Med3dError, match=rf"{folder}: found no DICOM series of images{found}; expected one"):
            read_series(str(tmp_path / folder))
    assert series_in(str(tmp_path / "report")) == []
    with pytest.raises(Med3dError, match="r0: found no image, but SR; expected a file of a series of images"):
        read_series(str(mixed / "r0"))


def test_damaged_headers_are_named(tmp_path: Path) -> None:
    write_series(tmp_path, hounsfield(), OBLIQUE)
    path = tmp_path / "IM002"
    whole = path.read_bytes()
    for content in (whole[:132], whole[:137], whole[:400], whole[:150] + b"\xff" * 90):
        path.write_bytes(content)
        with pytest.raises(Med3dError, match=rf"^{path}: found .* header.*; expected a whole DICOM file"):
            scan(str(tmp_path))
    assert series_in(str(tmp_path)) == [str(tmp_path)]
    assert series_path(str(tmp_path / "IM000")) == str(tmp_path / "IM000")


@pytest.mark.parametrize("name", ["IM006", "IM006.dcm", "1.2.840.7", "last.IMA"])
@pytest.mark.parametrize("content", [b"", b"\0" * 100, None])
def test_slices_that_are_no_dicom_any_more(tmp_path: Path, name: str, content: bytes | None) -> None:
    """At an end of the stack, positions would not tell."""
    write_series(tmp_path, hounsfield(), OBLIQUE)
    if content is None:
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    else:
        (tmp_path / name).write_bytes(content)
    if content and not name.lower().endswith((".dcm", ".ima")):
        assert len(read_series(str(tmp_path)).files) == 6  # what is in files of other names, nobody knows
        return
    with pytest.raises(Med3dError, match=rf"^{tmp_path}/{name}: found an empty file, a broken link, or no DICOM in it"):
        read_series(str(tmp_path))


def test_objects_with_the_uid_of_a_series_are_no_part_of_it(mixed: Path) -> None:
    write_series(mixed, hounsfield((3, 4, 1)), OBLIQUE, "1.2.5", "0_state".format, set_header(Modality="PR"))
    assert sorted(series_in(str(mixed))) == [str(mixed / "0a"), str(mixed / "0b")]
    assert read_series(str(mixed / "0b")).shape == (3, 4, 6)


def test_a_folder_is_looked_at_once(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = series_in(str(mixed))
    store_names = [name_series(path) for path in paths]
    monkeypatch.setattr("pydicom.dcmread", lambda *_, **__: pytest.fail("it reads a header again"))
    assert [name_series(path) for path in paths] == store_names
    assert [len(read_series(path).files) for path in paths] == [7, 6]


def test_a_directory_of_a_medium_is_left_alone(tmp_path: Path) -> None:
    def turn_into_directory(_: int, header: Any) -> None:
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
        del header.SeriesInstanceUID

    write_series(tmp_path, hounsfield(), OBLIQUE)
    write_series(tmp_path, hounsfield((3, 4, 1)), OBLIQUE, name="DICOMDIR".format, change=turn_into_directory)
    assert series_in(str(tmp_path)) == [str(tmp_path)]
    assert len(read_series(str(tmp_path)).files) == 6


def test_files_that_change_are_read_again(tmp_path: Path) -> None:
    write_series(tmp_path, hounsfield(), OBLIQUE)
    assert list(scan(str(tmp_path))) == ["1.2.3"]
    write_series(tmp_path, hounsfield((3, 4, 7)), OBLIQUE, "1.2.77")
    assert list(scan(str(tmp_path))) == ["1.2.77"]
