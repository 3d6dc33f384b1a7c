"""The reports of ``med3d check``, the kinds of lists that it takes, and that training says the same."""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image as images
from pages import Page
from test_check_command import ERRORS, Command, command, data, good_data, moved, spoil, voxels, write  # noqa: F401

from med3d_nets.checking import page, reports
from med3d_nets.checking.cases import Case, Options, read_case
from med3d_nets.checking.examination import Examination, examine
from med3d_nets.checking.lists import Lists, find_cases
from med3d_nets.checking.page import render
from med3d_nets.checking.pictures import PictureStore
from med3d_nets.datalist import load_datalist
from med3d_nets.errors import Med3dError
from med3d_nets.report_html import NOTHING
from med3d_nets.volume_files import Problem

# ruff: noqa: F811  fixtures


@pytest.fixture
def store() -> Any:
    with PictureStore() as made:
        yield made


def examined(data: Path, store: PictureStore, **given: str) -> Examination:
    lists = find_cases(str(data), "segmentation", given, 1, "")
    return examine(lists, Options(3), store)


def decode(source: str) -> np.ndarray[Any, Any]:
    found = re.fullmatch(r"data:image/jpeg;base64,(.+)", source)
    assert found
    return np.asarray(images.imread(io.BytesIO(base64.b64decode(found[1])), format="jpeg"))


# The page


def test_page(data: Path, store: PictureStore) -> None:
    spoil(data / "labels/p04.nii.gz", voxels(7, "uint8"))
    (data / "images/p05.nii.gz").write_bytes(b"")
    spoil(data / "images/p06.nii.gz", lambda a, f: (a * 10, f))
    found = Page(render(examined(data, store), store))
    assert "Check: 2 errors and 1 warning" in found.text("h1")
    assert "12 cases (9 training, 3 validation; patients not known)" in found.text("p")
    assert [row[1] for row in found.tables[0][1:]] == [
        "unreadable or truncated files",
        "label values outside the classes",
        "outliers in intensity",
    ]
    names = [item["alt"].split()[-1] for item in found.images if "Axial" in item["alt"]]
    assert names[:2] == ["p04.nii.gz.", "p06.nii.gz."]
    assert len(names) == 11  # the others follow, but for the one that cannot be read
    assert "no picture" in found.text("div")
    (cases,) = (rows for rows in found.tables if rows[0][0] == "case")
    by_name = {row[0]: row for row in cases[1:]}
    assert len(by_name) == 12
    assert by_name["p05.nii.gz"][1:5] == ["training", "1 error", NOTHING, NOTHING]
    assert by_name["p06.nii.gz"][2:6] == ["1 warning", "16x18x14", "1 1 2", "RAS"]
    assert by_name["p00.nii.gz"][1:3] == ["validation", NOTHING]


def test_pictures_show_slice_and_outline(data: Path, store: PictureStore) -> None:
    found = Page(render(examined(data, store), store))
    picture = decode(next(item["src"] for item in found.images if "Axial" in item["alt"])).astype(int)
    assert picture.shape[0] == 160
    assert picture.shape[1] == pytest.approx(160 * 16 / 18, abs=1)
    colourful = np.ptp(picture, axis=2) > 60
    columns = np.flatnonzero(colourful.any(axis=0))
    assert 100 < colourful.sum() < 3000
    assert columns.min() < 40  # the large organ, at the patient's right
    assert colourful[:, :80].sum() > colourful[:, 80:].sum()


def test_long_pages_are_cut(data: Path, store: PictureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in {"MAX_PICTURES": 2, "OTHERS": 3, "MAX_ROWS": 5, "MAX_POINTS": 4, "MAX_FINDINGS": 1}.items():
        monkeypatch.setattr(page, name, most)
    for number in range(3, 8):
        spoil(data / f"labels/p{number:02d}.nii.gz", moved(np.diag([1, 1, 2, 1])))
        spoil(data / f"labels/p{number:02d}.nii.gz", voxels(9, "uint8"))
    found = Page(render(examined(data, store), store))
    assert sum("Axial" in item["alt"] for item in found.images) == 2 + 3
    for part in ("The first 2 of 5 cases", "The first 5 of 12", "4 of 12 cases are drawn", "and 1 more"):
        assert part in found.text(), part


def test_names_are_escaped(data: Path, store: PictureStore) -> None:
    name = "images/<b>&p05.nii.gz"
    (data / "images/p05.nii.gz").rename(data / name)
    text = (data / "train.txt").read_text().replace("images/p05.nii.gz", name)
    (data / "train.txt").write_text(text)
    assert "<b>&p05.nii.gz" in Page(render(examined(data, store), store)).text("strong")


# JSON and the screen


def test_json(data: Path, command: Command) -> None:
    spoil(data / "labels/p05.nii.gz", voxels(7, "uint8"))
    command(data, "--n_seg_classes", 3)
    content = json.loads((data.parent / "check/check.json").read_text(encoding="utf-8"))
    assert content["summary"]["kinds"] == {"label_values": 1}
    assert content["rules"]["affine_tolerance_mm"] == 0.001
    assert content["findings"] == [
        {
            "severity": "error",
            "kind": "label_values",
            "list": "training",
            "case": "p05.nii.gz",
            "file": str(data / "labels/p05.nii.gz"),
            "found": "label values 7 (1 voxels)",
            "expected": "whole numbers from 0 to 2 (n_seg_classes=3)",
        }
    ]
    case = next(case for case in content["cases"] if case["case"] == "p00.nii.gz")
    assert (case["list"], case["label"]["file"]) == ("validation", str(data / "labels/p00.nii.gz"))
    assert case["label"]["voxels"]["1"] == 5 * 9 * 8
    assert case["label"]["ml"]["1"] == 0.72
    image = case["images"][0]
    assert (image["shape"], image["spacing_ras_mm"], image["size_ras_mm"]) == ([16, 18, 14], [1, 1, 2], [16, 18, 28])
    assert image["min"] < image["0.5 %"] < image["50 %"] < image["99.5 %"] < image["max"]


def test_screen_shows_few_of_many(data: Path, command: Command) -> None:
    for number in range(3, 9):
        (data / f"labels/p{number:02d}.nii.gz").unlink()
    printed = command(data)[1]
    assert printed.count("no such file") == reports.SHOWN == 3
    assert "... and 3 more" in printed


# Training says the same


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_stop_training(data: Path, store: PictureStore, kind: str) -> None:
    folders, change, _ = ERRORS[kind]
    for folder in folders:
        change(data / folder / "p05.nii.gz")
    told = examined(data, store)
    with pytest.raises(Med3dError) as caught:
        load_datalist(data, "train.txt", "val.txt", n_seg_classes=3)
    lines = [f"- {e.file}: found {e.found}; expected {e.expected}" for e in told.findings if e.severity == "error"]
    assert lines
    assert str(caught.value).splitlines()[1:] == lines


# Other lists


def test_classes_of_a_description(data: Path, command: Command) -> None:
    items = [{key: f"{key}s/p{n:02d}.nii.gz" for key in ("image", "label")} for n in range(12)]
    content = {"labels": {"background": 0, "large": 1}, "training": items[:8], "validation": items[8:]}
    (data / "dataset.json").write_text(json.dumps(content))
    status, printed = command(data / "dataset.json")
    assert status == 1
    assert "12 cases (8 training, 4 validation" in printed
    assert "label values 2 (" in printed
    assert "(n_seg_classes=2)" in printed


def test_channels_in_files_of_their_own(data: Path, command: Command) -> None:
    items = []
    for number in range(12):
        names = [f"images/p{number:02d}.nii.gz", f"images/q{number:02d}.nii.gz"]
        spoil_to = data / names[1]
        random = np.random.RandomState(number)
        write(spoil_to, random.normal(5, 1, (16, 18, 14)).astype(np.float32), np.diag([1.0, 1, 2, 1]))
        items.append({"image": names, "label": f"labels/p{number:02d}.nii.gz"})
    spoil(data / "images/q03.nii.gz", voxels(np.nan))
    spoil(data / "images/q04.nii.gz", moved(np.diag([1, 1, 1.5, 1])))
    spoil(data / "images/q05.nii.gz", lambda a, f: (a * 40, f))
    (data / "dataset.json").write_text(json.dumps({"training": items}))
    status, printed = command(data / "dataset.json", "--in_channels", 2)
    assert status == 1
    for part in ("q03.nii.gz: found 1 NaN", "q04.nii.gz: found another spacing", "of channel 2: "):
        assert part in printed, printed


def test_classification(data: Path, command: Command) -> None:
    lines = ["image,label,mask,patient"]
    lines += [f"images/p{n:02d}.nii.gz,{n % 2},labels/p{n:02d}.nii.gz,q{n % 6}" for n in range(12)]
    (data / "cls_train.csv").write_text("\n".join(lines[:10]))
    (data / "cls_val.csv").write_text("\n".join([lines[0], *lines[10:]]))
    spoil(data / "labels/p05.nii.gz", voxels(0, "uint8", ...))
    spoil(data / "labels/p06.nii.gz", lambda a, f: (a[1:], f))
    status, printed = command(data, "--task", "classification")
    assert status == 1
    for part in ("empty masks (1)", "spatial shape (15, 18, 14)", "patients in training and in validation (3)"):
        assert part in printed, printed
    assert "of 6 patients" in printed
    assert "classes for training: 5 of 0, 4 of 1" in printed
    (data / "cls_val.csv").write_text("\n".join([lines[0], *lines[10:]]).replace(",1,", ",3,"))
    printed = command(data, "--task", "classification", "--overwrite", True)[1]
    assert f"{data / 'cls_val.csv'}, line 2 and 1 more: found class '3'; expected one of 0, 1" in printed
    assert "classes for" not in command(data, "--task", "regression", "--overwrite", True)[1]


# Memory


def test_records_are_small_and_memory_is_that_of_the_workers(tmp_path: Path, store: PictureStore) -> None:
    shape = (128, 128, 64)
    size = 2 * int(np.prod(shape))
    label = np.zeros(shape, np.uint8)
    label[40:80, 40:80, 20:40] = 1
    image = np.random.RandomState(0).randint(0, 9, shape).astype(np.int16)
    write(tmp_path / "label.nii", label, np.eye(4))
    write(tmp_path / "image.nii.gz", image, np.eye(4))
    case = Case("training", (str(tmp_path / "image.nii.gz"),), str(tmp_path / "label.nii"))
    record = read_case(case, Options(2), store)
    assert not record.problems
    assert len(pickle.dumps(record)) < 4000
    assert record.picture is not None
    assert len(store.get(record.picture)) < 15_000
    peaks = {}
    for number, workers in ((4, 1), (16, 1), (16, 2)):
        tracemalloc.start()
        examine(Lists([case] * number, [], {}), Options(2), store, num_workers=workers)
        peaks[number, workers] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[4, 1] < 5 * size
    assert peaks[16, 1] < peaks[4, 1] + size / 4
    assert peaks[16, 2] < 2 * 5 * size  # two workers may have their peaks at once, or not


# Problems


def test_problems_are_texts_that_keep_their_kind_between_processes() -> None:
    problem = pickle.loads(pickle.dumps(Problem("a: found b; expected c", "grid")))
    assert problem == "a: found b; expected c"
    assert problem.kind == "grid"
