"""What lists of all kinds share; the rest is tested with data lists."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_datalist import message

from med3d_nets.dicom_folders import images_in
from med3d_nets.list_files import MAX_LINES, find_path, no_folder, raise_for, read_rows, short_names


def test_rows_have_the_numbers_of_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("# comment\n\na.nii 1\n'my b.nii' two words\nc.nii 'two words'\n")
    problems: list[str] = []
    rows = read_rows(str(path), [["image", "class"]], problems, "a .csv")
    assert rows == [(3, ["a.nii", "1"]), (5, ["c.nii", "two words"])]
    assert len(problems) == 1
    assert all(part in problems[0] for part in ("line 4", "3 fields", "expected 'image class'"))


def test_file_that_is_no_text(tmp_path: Path) -> None:
    problems: list[str] = []
    assert read_rows(str(tmp_path), [["image"]], problems, "a .csv file") == []
    assert len(problems) == 1
    assert "expected a list in UTF-8, a .csv file" in problems[0]


def test_folder_of_the_paths(tmp_path: Path) -> None:
    problems: list[str] = []
    missing = str(tmp_path / "no")
    assert not no_folder(str(tmp_path), ["a"], problems)
    assert not no_folder(missing, [str(tmp_path / "a")], problems)
    assert problems == []
    assert no_folder(missing, ["a", "b"], problems)
    assert len(problems) == 1


def test_images_in_a_folder(tmp_path: Path) -> None:
    for name in ("b.nii", "a.NII.gz", "._a.nii", "notes.txt"):
        (tmp_path / name).touch()
    assert images_in(str(tmp_path), []) == [str(tmp_path / "a.NII.gz"), str(tmp_path / "b.nii")]


def test_paths_are_found_below_data_root_first(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    (here / "a.txt").touch()
    assert find_path("img_list", "a.txt", tmp_path, []) == str(here / "a.txt")
    (tmp_path / "a.txt").touch()
    assert find_path("img_list", "a.txt", tmp_path, []) == str(tmp_path / "a.txt")


def test_one_error_for_all_problems() -> None:
    raise_for([])
    assert message(raise_for, ["a"]).splitlines() == ["the data list has 1 problem:", "- a"]
    assert message(raise_for, ["a"] * (MAX_LINES + 2)).endswith("... and 2 more")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["/data/x/a.nii", "/data/y/b.nii"], ["a.nii", "b.nii"]),
        (["/data/x/a.nii", "/data/y/a.nii"], ["x/a.nii", "y/a.nii"]),
        (["/data/a.nii", "b/a.nii"], ["/data/a.nii", "b/a.nii"]),
        (["x/a.nii", "y/a.nii"], ["x/a.nii", "y/a.nii"]),
        ([], []),
    ],
)
def test_names_stay_apart(files: list[str], expected: list[str]) -> None:
    assert short_names(files) == expected
