"""Data lists from sources of other kinds: parts and folds of a table, patients, channels, other formats."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import OBLIQUE
from other_formats import write_metaimage, write_nrrd, write_series
from test_datalist import classes, make_cases, message, only_line, ramp, save
from test_datalist_folds import names_of

from med3d_nets.datalist import (
    first_files,
    load_cases,
    load_datalist,
    load_evaluation_cases,
    load_images,
    output_names,
)
from med3d_nets.fingerprint import count_classes, measure_case

NAMES = "abcdef"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_cases(folder, NAMES)
    return folder


def table(root: Path, **columns: str) -> str:
    """A table of the cases; each letter of a column's text is the value of a case."""
    rows = [["image", "label", *columns]]
    rows += [[f"images/{n}.nii.gz", f"labels/{n}.nii.gz", *v] for n, *v in zip(NAMES, *columns.values(), strict=True)]
    (root / "cases.csv").write_text("\n".join(map(",".join, rows)))
    return "cases.csv"


def load(root: Path, name: str, val_list: str = "", **options: Any) -> list[str]:
    """Names of the training and of the validation cases."""
    lists = load_datalist(root, name, val_list, n_seg_classes=3, **options)
    return ["".join(names_of(lists[part])) for part in ("training", "validation")]


def split(text: str) -> list[str]:
    return [{"t": "train", "v": "val", "x": "test"}[letter] for letter in text]


# Parts, patients and folds


def test_the_parts_of_a_table(root: Path) -> None:
    name = table(root, split=split("ttvvxt"))  # type: ignore[arg-type]
    assert load(root, name) == ["abf", "cd"]
    assert names_of(load_evaluation_cases(root, name, "", n_seg_classes=3)) == ["e"]
    assert names_of(load_images(name, root)) == ["e"]
    parts = [load(root, name, folds=3, fold=fold)[1] for fold in range(3)]
    assert sorted(parts) == ["a", "b", "f"]
    (root / "val.txt").write_text("images/e.nii.gz labels/e.nii.gz\n")
    assert load(root, name, "val.txt") == ["abf", "e"]
    assert names_of(load_evaluation_cases(root, name, "val.txt", n_seg_classes=3)) == ["e"]


@pytest.mark.parametrize("options", [{}, {"seed": 2}, {"val_fraction": 0.5}, {"patient_pattern": r"[a-f]\.nii"}])
def test_without_a_list_an_evaluation_is_of_what_its_training_holds_out(root: Path, options: dict[str, Any]) -> None:
    name = table(root)
    _, held_out = load(root, name, **options)
    assert names_of(load_evaluation_cases(root, name, "", n_seg_classes=3, **options)) == list(held_out)
    assert 0 < len(held_out) < 6
    only_line(message(load_evaluation_cases, root, "typo.csv", "", n_seg_classes=3), "img_list typo.csv: found no such")
    only_line(message(load_evaluation_cases, root, name, "", n_seg_classes=3, folds=2), "val_list: found an empty path")


def test_patients_of_a_table_stay_together(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    name = table(root, patient="112233")
    for seed in range(4):
        training, validation = load(root, name, seed=seed, val_fraction=0.3)
        assert validation in ("ab", "cd", "ef")
        assert set(training) == set(NAMES) - set(validation)
    assert "6 cases of 3 patients: 1, 2, 3" in caplog.text
    assert sorted(load(root, name, folds=3, fold=fold)[1] for fold in range(3)) == ["ab", "cd", "ef"]
    # A pattern is for the cases whose patient is not named.
    some = table(root, patient=["1", "", "", "1", "", ""])  # type: ignore[arg-type]
    parts = [load(root, some, folds=4, fold=fold, patient_pattern=r"images/(\w)")[1] for fold in range(4)]
    assert any({"a", "d"} <= set(part) for part in parts)


def test_a_patient_of_two_parts(root: Path) -> None:
    name = table(root, split=split("ttvvxt"), patient="123145")  # type: ignore[arg-type]
    paths = [str(root / f"images/{case}.nii.gz") for case in "ad"]
    only_line(message(load_datalist, root, name, n_seg_classes=3), "patient '1'", *paths)


def test_networks_of_all_folds_are_evaluated_on_other_patients(root: Path) -> None:
    name = table(root, patient="112233")
    (root / "test.csv").write_text("image,label,patient\nimages/f.nii.gz,labels/f.nii.gz,3\n")
    text = message(load_evaluation_cases, root, name, "test.csv", n_seg_classes=3, folds=3)
    assert "patient '3'" in text
    (root / "test.csv").write_text("image,label,patient\nimages/f.nii.gz,labels/f.nii.gz,4\n")
    assert names_of(load_evaluation_cases(root, name, "test.csv", n_seg_classes=3, folds=3)) == ["f"]


def test_folds_of_a_table(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    name = table(root, fold="021120")
    assert [load(root, name, folds=3, fold=fold)[1] for fold in range(3)] == ["af", "cd", "be"]
    found = load_evaluation_cases(root, name, "", n_seg_classes=3, folds=3, fold=1)
    assert names_of(found) == ["c", "d"]
    load(root, name)
    assert "the folds that it gives its cases count with --folds alone" in caplog.text


@pytest.mark.parametrize(
    ("columns", "folds", "parts"),
    [
        ({"fold": "021120"}, 2, ["cases of fold 0, 1, 2; expected all from 0 to 1, with --folds 2"]),
        ({"fold": "020200"}, 3, ["cases of fold 0, 2; expected all from 0 to 2"]),
        (
            {"fold": "012012", "patient": "112345"},
            3,
            ["found 2 folds of", "images/a.nii.gz", "b.nii.gz, of one patient"],
        ),
        ({"fold": ["0", "1", "2", "", "", "0"]}, 3, ["found no fold of", "images/d.nii.gz", "images/e.nii.gz"]),
    ],
)
def test_folds_of_a_table_that_do_not_fit(root: Path, columns: Any, folds: int, parts: list[str]) -> None:
    text = message(load_datalist, root, table(root, **columns), n_seg_classes=3, folds=folds, fold=0)
    only_line(text, "cases.csv: ", *parts)


# Channels and formats


def write_channels(folder: Path, second: Any = None) -> str:
    """A case of two channels in two formats, with its label in a third."""
    pytest.importorskip("itk")
    save(folder / "one.nii.gz", ramp(), OBLIQUE)
    write_metaimage(folder / "two.mha", ramp() + 1 if second is None else second, OBLIQUE)
    write_nrrd(folder / "label.nrrd", classes(), OBLIQUE)
    (folder / "cases.csv").write_text("image,label\none.nii.gz;two.mha,label.nrrd\n")
    return "cases.csv"


def test_channels_in_several_formats(tmp_path: Path) -> None:
    (case,) = load_cases(tmp_path, write_channels(tmp_path), n_seg_classes=3, in_channels=2)
    assert case["image"] == [str(tmp_path / name) for name in ("one.nii.gz", "two.mha")]
    (image,) = load_images("cases.csv", tmp_path, in_channels=2)
    assert image == {"image": case["image"]}
    assert count_classes([case]) == 3
    found = measure_case(case, 3, in_channels=2)
    save(tmp_path / "both.nii.gz", np.stack([ramp(), ramp() + 1], axis=-1), OBLIQUE)
    save(tmp_path / "label.nii.gz", classes(), OBLIQUE)
    both = {"image": str(tmp_path / "both.nii.gz"), "label": str(tmp_path / "label.nii.gz")}
    expected = measure_case(both, 3, in_channels=2)
    for name, value in vars(expected).items():
        assert np.allclose(getattr(found, name), value, atol=1e-6), name


@pytest.mark.parametrize(
    ("second", "parts"),
    [
        (ramp((6, 7, 9)), ["found spatial shape (6, 7, 9); expected (6, 7, 8), that of its image", "one.nii.gz"]),
        (np.full((6, 7, 8), np.nan, np.float32), ["336 NaN"]),
        (np.ones((6, 7, 8), np.float32), ["found 1 in every voxel"]),
        (ramp((6, 7, 8, 2)), ["found shape (6, 7, 8, 2); expected (x, y, z)"]),
    ],
)
def test_what_is_wrong_with_a_channel(tmp_path: Path, second: Any, parts: list[str]) -> None:
    name = write_channels(tmp_path, second)
    text = message(load_cases, tmp_path, name, n_seg_classes=3, in_channels=2)
    only_line(text, str(tmp_path / "two.mha"), *parts)


def test_channels_on_another_grid(tmp_path: Path) -> None:
    name = write_channels(tmp_path)
    write_metaimage(tmp_path / "two.mha", ramp(), OBLIQUE + 0.1 * np.eye(4, k=3))
    only_line(message(load_cases, tmp_path, name, n_seg_classes=3, in_channels=2), str(tmp_path / "two.mha"), "affine")
    write_channels(tmp_path, ramp((6, 7, 9)))
    case = {
        "image": [str(tmp_path / name) for name in ("one.nii.gz", "two.mha")],
        "label": str(tmp_path / "label.nrrd"),
    }
    assert "two.mha: found shape (7, 9, 6); expected (7, 8, 6), that of" in message(
        measure_case, case, 3, in_channels=2
    )


def test_a_series_and_its_label(tmp_path: Path) -> None:
    pytest.importorskip("itk")
    pytest.importorskip("pydicom")
    write_series(tmp_path / "1.2.3", ramp().astype(np.int16), OBLIQUE)
    save(tmp_path / "label.nii.gz", classes(), OBLIQUE)
    (tmp_path / "train.txt").write_text("1.2.3 label.nii.gz\n")
    cases = load_cases(tmp_path, "train.txt", n_seg_classes=3)
    files = {"image": str(tmp_path / "1.2.3"), "label": str(tmp_path / "label.nii.gz")}
    assert cases == [{**files, "dicom_patient": "study 1.2.3.0"}]
    assert load_images("1.2.3", tmp_path) == load_images(tmp_path / "1.2.3") == [{"image": str(tmp_path / "1.2.3")}]
    found = measure_case(cases[0], 3)
    save(tmp_path / "same.nii.gz", ramp(), OBLIQUE)
    expected = measure_case({"image": str(tmp_path / "same.nii.gz"), "label": cases[0]["label"]}, 3)
    for name, value in vars(expected).items():
        assert np.allclose(getattr(found, name), value, atol=1e-6), name
    (tmp_path / "train.txt").write_text("1.2.3 1.2.3\n")
    text = message(load_cases, tmp_path, "train.txt", n_seg_classes=3)
    only_line(text, "1.2.3: found a folder; expected the file of a label map")
    (tmp_path / "train.txt").write_text("1.2.3 label.nii.gz\n")
    (tmp_path / "1.2.3/IM003").unlink()
    only_line(message(load_cases, tmp_path, "train.txt", n_seg_classes=3), "1.2.3: found slices at uneven positions")


# Names


def test_each_case_is_known_by_one_file(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    series = write_series(tmp_path / "1.2", ramp().astype(np.int16), OBLIQUE)
    cases = [
        {"image": ["a.nii", "b.nii"], "label": "c.nii"},
        {"image": "a.nii"},
        {"image": str(series), "patient": "x"},
        {"image": str(write_metaimage(tmp_path / "a.mhd", ramp(), OBLIQUE))},
        {"image": "x.npz::volumes[1]"},
    ]
    files = ["a.nii", "a.nii", str(tmp_path / "1.2/IM000"), str(tmp_path / "a.raw"), "x.npz::volumes[1]"]
    assert first_files(cases) == [{**case, "image": file} for case, file in zip(cases, files, strict=True)]


def test_names_of_label_maps(tmp_path: Path) -> None:
    (tmp_path / "1.2.3").mkdir()
    images = ["a_0000.nii.gz", "below/a_0000.nii.gz", "1.2.3"]
    cases = [{"image": [str(tmp_path / images[0]), "b"]}, *({"image": str(tmp_path / name)} for name in images[1:])]
    names = output_names(cases, str(tmp_path))
    assert [case["image"] for case in names] == [str(tmp_path / name) for name in [*images[:2], "1.2.3.dcm"]]
    text = message(output_names, [*cases, {"image": str(tmp_path / "below/a_0000.mha")}], str(tmp_path))
    only_line(text, "below/a_0000.mha: found", "below/a_0000.nii.gz too")
