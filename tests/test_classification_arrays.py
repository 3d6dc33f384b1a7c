"""Volumes in .npz files: references to them, and arrays that are kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classified import volumes
from test_datalist import message

from med3d_nets.classification import arrays
from med3d_nets.classification.arrays import array_names, image_identity, read_array, refer, split_reference


def test_references() -> None:
    for path in ("/data/a.npz", "/data/odd::name.NPZ", r"C:\data\a.npz"):
        assert split_reference(refer(path, "train_images", 12)) == (path, "train_images", 12)
    for path in ("/data/a.npz", "/data/a.nii.gz", "/data/a.nii::x::1", "/data/a.npz::x", "/data/a.npz::x::-1"):
        assert split_reference(path) is None


def test_identity_follows_links(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=volumes(1))
    try:
        (tmp_path / "b.npz").symlink_to(tmp_path / "a.npz")
    except OSError:
        pytest.skip("this file system has no symbolic links")
    first, again, other = (
        image_identity(f"{tmp_path / name}::x::{i}") for name, i in (("a.npz", 1), ("b.npz", 1), ("b.npz", 2))
    )
    assert first == again != other
    assert image_identity(str(tmp_path / "b.npz")) == str((tmp_path / "a.npz").resolve())


def test_arrays_are_read_once_and_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "a.npz")
    np.savez(path, **{f"x{number}": volumes(2) + number for number in range(arrays.KEPT + 1)})
    opened = []
    load = np.load

    def count(*args: Any, **options: Any) -> Any:
        opened.append(args)
        return load(*args, **options)

    monkeypatch.setattr(np, "load", count)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: read_array(path, "x0"), range(8)))
    assert len(opened) == 1
    assert all(array is found[0] for array in found)
    for number in range(1, arrays.KEPT + 1):
        assert read_array(path, f"x{number}")[0, 0, 0, 0] == number
    read_array(path, "x0")
    assert len(opened) == arrays.KEPT + 2
    with pytest.raises(ValueError, match="read-only"):
        found[0][0] = 1


def test_bad_files(tmp_path: Path) -> None:
    path = str(tmp_path / "a.npz")
    assert "no such file" in message(read_array, path, "x")
    np.savez(path, x=volumes(1), objects=np.array([None]))
    assert array_names(path) == ["x", "objects"]
    assert "arrays x, objects; expected y" in message(read_array, path, "y")
    assert "unreadable objects" in message(read_array, path, "objects")
    with open(path, "wb") as file:
        np.save(file, volumes(1))
    assert "single array" in message(array_names, path)
    Path(path).write_bytes(b"junk")
    assert "unreadable file" in message(read_array, path, "x")
