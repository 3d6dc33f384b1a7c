"""Volumes, masks and centres that classification cannot use, each with its message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classified import volumes
from test_datalist import SHAPE, ramp, save

from med3d_nets import checks
from med3d_nets.classification import case_checks
from med3d_nets.classification.case_checks import check_volumes, repeated, shared, warn_of_mixture, warn_of_regions

Item = dict[str, Any]


def item(image: Path | str, **others: Any) -> Item:
    return {"image": str(image), "patient": "", **others}


def only_problem(items: list[Item], *parts: str, **options: Any) -> None:
    problems = check_volumes(items, **options)
    assert len(problems) == 1, problems
    for part in (*parts, "found", "expected"):
        assert part in problems[0]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return save(tmp_path / "a.nii.gz", ramp(), np.diag([2.0, 1.0, 1.0, 1.0]))


def mask(tmp_path: Path, shape: tuple[int, ...] = SHAPE, spacing: float = 2.0, value: float = 1) -> str:
    voxels = np.zeros(shape, np.float32)
    voxels[0, 0, 0] = value
    return str(save(tmp_path / "mask.nii.gz", voxels, np.diag([spacing, 1.0, 1.0, 1.0])))


def test_good_cases(tmp_path: Path, image: Path) -> None:
    np.savez(tmp_path / "a.npz", train_images=volumes(2))
    reference = f"{tmp_path / 'a.npz'}::train_images::1"
    inside = {"center": [1.0, 2.0, 3.0], "size_mm": 4.0}
    items = [item(image), item(image, mask=mask(tmp_path)), item(image, **inside), item(reference, **inside)]
    assert check_volumes(items) == check_volumes(items, num_workers=1) == check_volumes([]) == []


def test_each_file_is_read_once(tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []
    read = checks.read_volume

    def count(path: str, *others: Any) -> Any:
        paths.append(path)
        return read(path, *others)

    monkeypatch.setattr(checks, "read_volume", count)
    monkeypatch.setattr(case_checks, "read_volume", count)
    region = {"mask": mask(tmp_path)}
    check_volumes([item(image, **region), item(image, **region), item(image)])
    assert sorted(paths) == [str(image), region["mask"]]


def test_bad_images(tmp_path: Path) -> None:
    only_problem([item(tmp_path / "no.nii")], "no.nii", "no such file")
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"junk")
    only_problem([item(broken)], "unreadable")
    nan = ramp()
    nan[0, 0, :2] = np.nan
    only_problem([item(save(tmp_path / "nan.nii", nan))], "2 NaN")
    only_problem([item(save(tmp_path / "four.nii", ramp((*SHAPE, 2))))], "(6, 7, 8, 2)", "in_channels=1")
    only_problem([item(save(tmp_path / "one.nii", ramp()))], "in_channels=2", in_channels=2)


def test_constant_image_is_a_problem_or_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flat = item(save(tmp_path / "flat.nii", np.full(SHAPE, 7.0)))
    array = volumes(2)
    array[1] = 3
    np.savez(tmp_path / "a.npz", x_images=array)
    stored = item(f"{tmp_path / 'a.npz'}::x_images::1")
    only_problem([flat], "flat.nii", "7 in every voxel")
    only_problem([stored], "a.npz::x_images::1", "3 in every voxel")
    assert not caplog.records
    assert check_volumes([flat, stored], may_be_constant=True) == []
    assert "2 images do not vary" in caplog.text
    assert "flat.nii" in caplog.text


def test_bad_masks(tmp_path: Path, image: Path) -> None:
    only_problem([item(image, mask=str(tmp_path / "no.nii"))], "no.nii", "no such file")
    only_problem([item(image, mask=mask(tmp_path, value=0))], "mask.nii.gz", "no voxel above 0", str(image))
    only_problem([item(image, mask=mask(tmp_path, (6, 7, 9)))], "(6, 7, 9)", "(6, 7, 8)", str(image))
    only_problem([item(image, mask=mask(tmp_path, spacing=2.5))], "affine", "0.5", str(image))
    only_problem([item(image, mask=mask(tmp_path, (*SHAPE, 2)))], "(6, 7, 8, 2)", "a mask")
    only_problem([item(image, mask=mask(tmp_path, value=np.nan))], "1 NaN")


def test_centre_outside(image: Path) -> None:
    inside, outside = ({"center": [x, 0.0, 0.0], "size_mm": 1.0} for x in (10.9, 11.1))
    only_problem([item(image, **inside), item(image, **outside)], str(image), "(11.1, 0.0, 0.0)", "x -1.0 to 11.0")


@pytest.mark.parametrize(
    ("array", "index", "parts"),
    [
        (np.zeros((2, 3, 4)), 0, ("(3, 4)", "(x, y, z)")),
        (np.zeros((2, 3, 4, 5, 2)), 0, ("(3, 4, 5, 2)", "in_channels=1")),
        (np.zeros((2, 3, 0, 5)), 0, ("(2, 3, 0, 5)", "size 0")),
        (np.full((2, 3, 4, 5), "a"), 0, ("<U1", "real numbers")),
        (np.full((2, 3, 4, 5), np.nan), 1, ("::x_images::1", "60 NaN")),
        (np.full((2, 3, 4, 5), 1e39), 1, ("60 infinite",)),
        (volumes(2), 2, ("::x_images::2", "2 volumes")),
    ],
)
def test_bad_arrays(tmp_path: Path, array: np.ndarray, index: int, parts: tuple[str, ...]) -> None:
    np.savez(tmp_path / "a.npz", x_images=array)
    only_problem([item(f"{tmp_path / 'a.npz'}::x_images::{index}")], "a.npz", *parts)


def test_missing_arrays(tmp_path: Path) -> None:
    only_problem([item(f"{tmp_path / 'a.npz'}::x_images::{index}") for index in range(3)], "a.npz", "no such file")
    np.savez(tmp_path / "a.npz", x_images=volumes(2))
    only_problem([item(f"{tmp_path / 'a.npz'}::y_images::0")], "arrays x_images", "y_images")


def test_channels_of_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_images=volumes(2, (*SHAPE, 3)))
    assert check_volumes([item(f"{tmp_path / 'a.npz'}::x_images::0")], in_channels=3) == []


def test_same_image_twice() -> None:
    same = [item("/a.nii", label=0), item("/a.nii", label=1), item("/b.nii", label=1)]
    assert repeated(same) == ["/a.nii: found 2 times in one list; expected once"]
    assert "2 times in one list as bad and benign; expected once" in repeated(same, ["benign", "bad"])[0]
    regions = [
        item("/a.nii"),
        item("/a.nii", mask="/m.nii"),
        item("/a.nii", center=[1.0, 2.0, 3.0], size_mm=4.0),
        item("/a.nii", center=[1.0, 2.0, 4.0], size_mm=4.0),
        item("/x/a.npz::train_images::1"),
        item("/x/a.npz::train_images::2"),
    ]
    assert repeated(regions) == []
    assert len(repeated([*regions, *regions])) == len(regions)


def test_links_are_followed(tmp_path: Path, image: Path) -> None:
    try:
        (tmp_path / "link.nii.gz").symlink_to(image)
    except OSError:
        pytest.skip("this file system has no symbolic links")
    assert len(repeated([item(image), item(tmp_path / "link.nii.gz")])) == 1
    assert len(shared([item(image)], [item(tmp_path / "link.nii.gz")])) == 1


def test_arrays_beside_files_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    files, arrays = [item("/a.nii")], [item("/x/a.npz::train_images::1"), item("/x/a.npz::train_images::2")]
    for items in (files, arrays, []):
        warn_of_mixture(items)
    assert not caplog.records
    warn_of_mixture([*files, *arrays])
    assert "2 volumes of arrays, such as /x/a.npz::train_images::1, whose spacing is taken for 1 mm" in caplog.text


def test_images_and_patients_of_both_lists() -> None:
    training = [item("/a.nii", mask="/m.nii"), item("/b.nii", patient="p"), item("/c.nii", patient="p")]
    assert shared(training, [item("/d.nii"), item("/e.nii", patient="q")]) == []
    problems = shared(training, [item("/a.nii"), item("/d.nii", patient="p"), item("/e.nii", patient="p")])
    assert problems[0] == "/a.nii: found in training and in validation; expected in one of them"
    assert len(problems) == 2
    assert all(part in problems[1] for part in ("'p'", "/c.nii for training and /d.nii for validation"))


def test_regions_that_the_network_does_not_expect_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    whole: Any = {"image": "a.nii.gz"}
    regions: list[Any] = [{"image": "b.nii.gz", "mask": "m.nii.gz"}, {"image": "c.nii.gz", "center": [1, 2, 3]}]
    warn_of_regions(regions, True)
    warn_of_regions([whole], False)
    warn_of_regions([whole, *regions], None)  # trained before this was recorded
    warn_of_mixture(regions)
    assert not caplog.records
    warn_of_regions([whole, *regions], True)
    warn_of_regions([whole, *regions], False)
    warn_of_mixture([whole, *regions])
    first, second, third = (record.getMessage() for record in caplog.records)
    assert first.startswith("1 of 3 cases have no region of interest, but the network was trained on these")
    assert second == "2 of 3 cases have a region of interest, but the network was trained on whole volumes"
    assert third == "found 2 cases with a region of interest and 1 without"
