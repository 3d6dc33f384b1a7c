"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import OBLIQUE, ROOT

from med3d_nets.list_files import volumes_in
from med3d_nets.writing import OutputError, check_writable, whole_files, write_nifti

KILLED = """
import os, signal, sys
from med3d_nets.writing import whole_files
with whole_files(sys.argv[1]) as (temporary,):
    with open(temporary, "w") as file:
        file.write("half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def write(*paths: Path, text: str = "new") -> None:
    with whole_files(*map(str, paths)) as temporaries:
        for temporary in temporaries:
            Path(temporary).write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_there_afterwards_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "x.txt")
    write(tmp_path / "a" / "b" / "x.txt", text="newer")
    assert names(tmp_path / "a" / "b") == ["x.txt"]
    assert (tmp_path / "a/b/x.txt").read_text() == "newer"


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with whole_files(str(path)) as (temporary,):
        Path(temporary).write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text("old")
    with pytest.raises(TypeError):
        write(tmp_path / "a", tmp_path / "b", text=b"no text")  # type: ignore[arg-type]
    assert [(tmp_path / name).read_text() for name in "ab"] == ["old", "old"]
    assert names(tmp_path) == ["a", "b"]


def test_the_last_of_several_is_there_with_all_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in "abc"]
    write(*paths, text="old")
    calls = []

    def end(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == 2:  # as if the process were killed between the files
            raise KeyboardInterrupt
        rename(source, target)

    rename = os.replace
    monkeypatch.setattr("os.replace", end)
    with pytest.raises(KeyboardInterrupt):
        write(*paths)
    assert names(tmp_path) == ["a"]
    assert paths[0].read_text() == "new"


def test_a_killed_process_leaves_no_half_file_and_the_next_one_tidies_up(tmp_path: Path) -> None:
    path = tmp_path / ("long" * 60 + ".nii.gz")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = names(tmp_path)
    assert (tmp_path / left).read_text() == "half"
    assert left.endswith(".nii.gz")  # so that nibabel packs it
    assert volumes_in(str(tmp_path)) == []
    write(path)
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "no space left on the disk while writing {path} (No space left on device); make room"),
        (errno.EROFS, "{path}: cannot be written (Read-only file system); give another --output_dir"),
        (errno.EACCES, "{path}: cannot be written (Permission denied); give another --output_dir"),
    ],
)
def test_errors_say_what_to_do(number: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "x").write_text("old")
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OutputError) as caught:
        write(tmp_path / "x")
    assert str(caught.value).startswith(expected.format(path=tmp_path / "x"))
    with pytest.raises(OutputError) as caught:
        check_writable(str(tmp_path))
    assert str(caught.value).startswith(expected.format(path=tmp_path))
    assert content_of(tmp_path) == {"x": "old"}


def content_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    check_writable(str(tmp_path / "a" / "b"))
    assert names(tmp_path / "a" / "b") == []


@pytest.mark.parametrize("below", ["", "/deep/er"])
def test_a_file_in_place_of_a_folder(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError) as caught:
        check_writable(f"{tmp_path}/file{below}")
    assert f"file{below}: cannot be written ({tmp_path}/file is a file, expected a folder)" in str(caught.value)


def test_nifti(tmp_path: Path) -> None:
    voxels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4, 1)[..., 0]
    write_nifti(str(tmp_path / "x.nii.gz"), voxels, OBLIQUE)
    found = nibabel.load(tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), voxels)
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_allclose(found.get_sform(), OBLIQUE, atol=1e-5)
    np.testing.assert_allclose(found.get_qform(), OBLIQUE, atol=1e-3)
    assert found.header.get_xyzt_units()[0] == "mm"


def test_a_volume_of_one_slice_keeps_its_third_axis(tmp_path: Path) -> None:
    write_nifti(str(tmp_path / "x.nii.gz"), np.ones((5, 4, 1), np.uint8), np.eye(4))
    assert nibabel.load(tmp_path / "x.nii.gz").shape == (5, 4, 1)


def test_bytes_that_stand_for_shares(tmp_path: Path) -> None:
    voxels = np.arange(256, dtype=np.uint8).reshape(4, 4, 4, 4)
    write_nifti(str(tmp_path / "x.nii.gz"), voxels, np.eye(4), slope=1 / 255)
    found = nibabel.load(tmp_path / "x.nii.gz")
    np.testing.assert_allclose(found.get_fdata(), voxels / 255, atol=1e-6)
    np.testing.assert_array_equal(found.dataobj.get_unscaled(), voxels)
