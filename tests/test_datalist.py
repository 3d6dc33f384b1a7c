"""Data lists: layouts that load, and the message for each kind of bad input."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from med3d_nets import list_files
from med3d_nets.datalist import check_cases, common_folder, load_cases, load_datalist, load_images, read_img_list
from med3d_nets.errors import Med3dError

SHAPE = (6, 7, 8)
HIPPOCAMPUS = Path(__file__).parents[1] / ".." / "shared" / "data" / "Task04_Hippocampus"
Array = np.ndarray[Any, Any]


def save(path: Path, voxels: Array, affine: Array | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine)  # type: ignore[no-untyped-call]
    nib.save(image, path)
    return path


def ramp(shape: tuple[int, ...] = SHAPE) -> Array:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def classes(shape: tuple[int, ...] = SHAPE, dtype: str = "uint8") -> Array:
    return (np.arange(np.prod(shape)) % 3).reshape(shape).astype(dtype)


def make_cases(root: Path, names: Iterable[str]) -> None:
    for name in names:
        save(root / f"images/{name}.nii.gz", ramp())
        save(root / f"labels/{name}.nii.gz", classes())


def write_list(root: Path, names: Iterable[str], to: str = "train.txt") -> str:
    (root / to).write_text("".join(f"images/{n}.nii.gz labels/{n}.nii.gz\n" for n in names), encoding="utf-8")
    return to


def message(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(Med3dError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def case_message(tmp_path: Path, **kwargs: Any) -> str:
    """The message for the one case "a" after a test has spoilt it."""
    return message(load_cases, tmp_path, write_list(tmp_path, "a"), n_seg_classes=3, **kwargs)


def only_line(text: str, *parts: str) -> None:
    lines = text.splitlines()
    assert lines[0] == "the data list has 1 problem:", text
    assert len(lines) == 2
    assert lines[1].startswith("- ")
    for part in (*parts, "found", "expected"):
        assert part in lines[1]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_cases(tmp_path, "abcde")
    return tmp_path


# Layouts


def test_two_text_lists(root: Path) -> None:
    lists = load_datalist(root, write_list(root, "abc"), write_list(root, "de", "val.txt"), n_seg_classes=3)
    assert [len(lists[name]) for name in ("training", "validation", "planning")] == [3, 2, 3]
    assert lists["training"][0] == {k: str(root / f"{k}s/a.nii.gz") for k in ("image", "label")}


@pytest.mark.parametrize("val_list", ["", None])
def test_hold_out_is_reproducible_and_disjoint(
    root: Path, val_list: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = load_datalist(root, write_list(root, "abcde"), val_list, n_seg_classes=3, val_fraction=0.4)
    again = load_datalist(root, write_list(root, "edcba"), val_list, n_seg_classes=3, val_fraction=0.4)
    assert first == again
    assert "holding out 2 of 5 cases" in caplog.text
    images = [case["image"] for name in ("training", "validation") for case in first[name]]
    assert first["planning"] == first["training"]
    assert len(first["validation"]) == 2
    assert len(set(images)) == len(images) == 5


def test_hold_out_depends_on_the_seed_and_keeps_one_of_each(root: Path) -> None:
    drawn = {
        load_datalist(root, write_list(root, "abcde"), n_seg_classes=3, seed=seed)["validation"][0]["image"]
        for seed in range(6)
    }
    assert len(drawn) > 1
    for fraction in (0.01, 0.99):
        lists = load_datalist(root, write_list(root, "ab"), n_seg_classes=3, val_fraction=fraction)
        assert [len(lists[name]) for name in ("training", "validation")] == [1, 1]


def test_hold_out_of_a_single_case(root: Path) -> None:
    only_line(message(load_datalist, root, write_list(root, "a"), n_seg_classes=3), "train.txt", "1 case", "at least 2")


def decathlon(root: Path, **sections: Any) -> str:
    (root / "dataset.json").write_text(json.dumps(sections), encoding="utf-8")
    return str(root / "dataset.json")


def items(names: Iterable[str], *keys: str) -> list[dict[str, str]]:
    return [{key: f"./{key}s/{name}.nii.gz" for key in keys or ("image", "label")} for name in names]


def test_decathlon_validation_section(root: Path) -> None:
    path = decathlon(root, training=items("abc"), validation=items("de"))
    lists = load_datalist("", path, n_seg_classes=3)
    assert [Path(case["image"]).name[0] for case in lists["validation"]] == ["d", "e"]
    assert len(load_cases("", path, section="validation", n_seg_classes=3)) == 2
    assert len(load_datalist("", path, path, n_seg_classes=3)["validation"]) == 2


def test_decathlon_validation_without_labels_is_held_out(root: Path) -> None:
    path = decathlon(root, training=items("abc"), validation=items("de", "image"))
    lists = load_datalist("", path, n_seg_classes=3)
    assert Path(lists["validation"][0]["image"]).name[0] in "abc"


def test_decathlon_paths_fall_back_to_data_root(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = decathlon(tmp_path_factory.mktemp("elsewhere"), training=items("ab"))
    assert load_cases(root, path, n_seg_classes=3)[0]["label"] == str(root / "labels/a.nii.gz")
    assert "elsewhere" in message(load_cases, "", path, n_seg_classes=3)


def test_list_in_the_working_directory_and_absolute_paths(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    write_list(here, "ab")
    assert len(load_cases(root, "train.txt", n_seg_classes=3)) == 2
    (here / "absolute.txt").write_text(f"'{root / 'images/a.nii.gz'}' '{root / 'labels/a.nii.gz'}'\n")
    assert len(load_cases("", "absolute.txt", n_seg_classes=3)) == 1
    monkeypatch.chdir(root)
    assert os.path.isabs(load_cases("", write_list(root, "a"), n_seg_classes=3)[0]["image"])


@pytest.mark.parametrize("channels", [1, 2])
def test_channels_last_images_load(root: Path, channels: int) -> None:
    save(root / "images/a.nii.gz", ramp((*SHAPE, channels)))
    save(root / "labels/a.nii.gz", classes((*SHAPE, 1)))
    assert load_cases(root, write_list(root, "a"), n_seg_classes=3, in_channels=channels)


def test_whole_numbers_of_a_float_label_load(root: Path) -> None:
    save(root / "labels/a.nii.gz", classes(dtype="float64") * (1 + 1e-12))
    assert load_cases(root, write_list(root, "a"), n_seg_classes=3)


# Text lists


def test_read_img_list(tmp_path: Path) -> None:
    lines = [
        "# a comment",
        "",
        "  a.nii\t \tb.nii  # more",
        "\"my a.nii\" 'my b.nii'",
        r"C:\data\new.nii D:\t\b.nii",
        "O'Brien#1.nii it's.nii",
        "\u00e4\u00a0b.nii '#c.nii'",
    ]
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    expected = [
        ["a.nii", "b.nii"],
        ["my a.nii", "my b.nii"],
        [r"C:\data\new.nii", r"D:\t\b.nii"],
        ["O'Brien#1.nii", "it's.nii"],
        ["\u00e4\u00a0b.nii", "#c.nii"],
    ]
    assert read_img_list(path) == expected
    path.write_text("\n".join(lines), encoding="utf-8")
    assert read_img_list(path) == expected


def test_bad_lines_are_named_with_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text('a b\nmy a.nii b.nii\n\nalone.nii\n\'open.nii b.nii\n"a"b c\n')
    lines = message(read_img_list, path).splitlines()
    assert lines[0] == "the data list has 4 problems:"
    assert all(str(path) in line and "expected 'image label'" in line for line in lines[1:])
    for line, parts in zip(
        lines[1:], [("line 2", "3 fields", "quotes"), ("line 4", "1 field "), ("line 5",), ("line 6",)], strict=True
    ):
        assert all(part in line for part in parts)
    assert "quotes" not in lines[2]


def test_list_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a b\n", encoding="utf-16")
    only_line(message(read_img_list, tmp_path / "list.txt"), "list.txt", "UTF-8")


def test_list_that_is_a_folder(root: Path) -> None:
    only_line(message(load_cases, root, "images", n_seg_classes=3), str(root / "images"))


def test_missing_list_names_both_places(root: Path) -> None:
    text = message(load_cases, root, "no.txt", n_seg_classes=3)
    only_line(text, str(root / "no.txt"), os.path.abspath("no.txt"), "img_list")
    only_line(message(load_cases, root, "", n_seg_classes=3), "img_list", "empty path")


def test_missing_data_root_is_one_problem(root: Path) -> None:
    path = root / write_list(root, "abcde")
    only_line(message(load_cases, root / "typo", path, n_seg_classes=3), str(root / "typo"), "data_root")


@pytest.mark.parametrize("content", ["", "# nothing\n\n"])
def test_empty_list(tmp_path: Path, content: str) -> None:
    (tmp_path / "train.txt").write_text(content)
    only_line(message(load_cases, tmp_path, "train.txt", n_seg_classes=3), "train.txt", "no cases")


# Decathlon files


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("{", ("JSONDecodeError",)),
        ("[]", ("list", "object")),
        ('{"test": []}', ("found test", "'training'")),
        ('{"training": 3}', ("no list",)),
        ('{"training": []}', ("no cases",)),
        ('{"training": ["a.nii"]}', ("training[0]", '"a.nii"', '"label"')),
        ('{"training": [{"image": ["a", "b"], "label": "c"}]}', ("training[0]", '["a", "b"]')),
    ],
)
def test_bad_decathlon_file(tmp_path: Path, content: str, parts: tuple[str, ...]) -> None:
    (tmp_path / "dataset.json").write_text(content)
    only_line(message(load_datalist, tmp_path, "dataset.json", n_seg_classes=3), "dataset.json", *parts)


# Lists as a whole


def test_same_case_twice(root: Path) -> None:
    text = message(load_cases, root, write_list(root, "aba"), n_seg_classes=3)
    only_line(text, str(root / "images/a.nii.gz"), "2 times", "once")


def test_same_image_in_training_and_validation(root: Path) -> None:
    (root / "images/e.nii.gz").unlink()
    try:
        (root / "images/e.nii.gz").symlink_to(root / "images/a.nii.gz")
    except OSError:
        pytest.skip("this file system has no symbolic links")
    text = message(load_datalist, root, write_list(root, "ab"), write_list(root, "e", "val.txt"), n_seg_classes=3)
    only_line(text, str(root / "images/e.nii.gz"), "in training and in validation")


def test_all_problems_come_in_one_message(root: Path) -> None:
    (root / "images/a.nii.gz").unlink()
    save(root / "images/b.nii.gz", np.zeros(SHAPE, np.float32))
    save(root / "labels/b.nii.gz", ramp((6, 7, 9)), np.diag([2, 1, 1, 1]))
    (root / "train.txt").write_text((root / write_list(root, "aabc")).read_text() + "lonely.nii\n")
    write_list(root, "c", "val.txt")
    lines = message(load_datalist, root, "train.txt", "val.txt", n_seg_classes=3).splitlines()
    wanted = ["1 field", "no such file", "no such file", "every voxel", "label values", "spatial shape", "affine"]
    wanted += ["2 times", "in training and in validation"]
    assert lines[0] == f"the data list has {len(wanted)} problems:"
    assert all(part in line for part, line in zip(wanted, lines[1:], strict=True))


def test_long_messages_are_cut(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("".join(f"{n}.nii x{n}.nii\n" for n in range(40)))
    lines = message(load_cases, tmp_path, "train.txt", n_seg_classes=3).splitlines()
    assert lines[0] == "the data list has 80 problems:"
    assert len(lines) == list_files.MAX_LINES + 2
    assert lines[-1] == "... and 30 more"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"n_seg_classes": 1}, "n_seg_classes"),
        ({"n_seg_classes": 2.0}, "n_seg_classes"),
        ({"n_seg_classes": True}, "n_seg_classes"),
        ({"n_seg_classes": 2, "in_channels": 0}, "in_channels"),
        ({"n_seg_classes": 2, "val_fraction": 1.0}, "val_fraction"),
    ],
)
def test_bad_options(options: dict[str, Any], name: str) -> None:
    only_line(message(load_datalist, "", "list.txt", **options), name, repr(options[name]))


def test_check_cases_returns_problems_for_any_number_of_threads(root: Path) -> None:
    cases = load_cases(root, write_list(root, "abc"), n_seg_classes=3, num_workers=2)
    assert check_cases(cases, 3) == []
    assert len(check_cases(cases, 2)) == len(check_cases(cases, 2, num_workers=1)) == 3


# Inference


def names_of(cases: list[dict[str, str]]) -> str:
    assert all(list(case) == ["image"] and os.path.isabs(case["image"]) for case in cases)
    return "".join(Path(case["image"]).name[0] for case in cases)


def test_load_images_of_every_source(root: Path) -> None:
    save(root / "images/b.nii", ramp())
    for hidden in ("._a.nii.gz", ".x.nii"):
        (root / "images" / hidden).write_bytes(b"junk")
    (root / "images/notes.txt").write_text("junk")
    assert names_of(load_images(root / "images/a.nii.gz")) == "a"
    assert names_of(load_images("images", root)) == "abbcde"
    assert names_of(load_images(["images/c.nii.gz", str(root / "images/a.nii.gz")], root)) == "ca"
    (root / "list.txt").write_text("images/a.nii.gz\nimages/b.nii.gz labels/absent.nii.gz\n")
    assert names_of(load_images("list.txt", root)) == "ab"
    path = decathlon(root, training=items("ab"), test=["./images/c.nii.gz", {"image": "images/d.nii.gz"}])
    assert names_of(load_images(path)) == "cd"
    assert names_of(load_images(decathlon(root, training=items("ab"), test=[]))) == "ab"


def test_load_images_problems(root: Path) -> None:
    (root / "none").mkdir()
    only_line(message(load_images, root / "none"), str(root / "none"), "no images", ".nii.gz")
    only_line(message(load_images, []), "source")
    only_line(message(load_images, "no.nii", root), str(root / "no.nii"), os.path.abspath("no.nii"))
    (root / "list.txt").write_text("a b c\n")
    only_line(message(load_images, "list.txt", root), "line 1", "'image' or 'image label'")
    save(root / "images/b.nii.gz", np.full(SHAPE, np.nan, np.float32))
    text = message(load_images, ["images/a.nii.gz", "images/b.nii.gz", "images/a.nii.gz", "x.nii"], root)
    assert [part in text for part in ("3 problems", "336 NaN", "2 times", "x.nii")] == [True] * 4
    only_line(message(load_images, "images/a.nii.gz", root, in_channels=2), "(x, y, z, 2)")


def test_common_folder(tmp_path: Path) -> None:
    paths = [tmp_path / "p/one/ct.nii", tmp_path / "p/two/ct.nii"]
    assert common_folder([{"image": str(path)} for path in paths]) == str(tmp_path / "p")
    assert common_folder([{"image": str(paths[0])}]) == str(tmp_path / "p/one")
    assert common_folder([{"label": "x.nii"}], "label") == os.getcwd()
    assert "expected" in message(common_folder, [])


# Real data


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="no Task04_Hippocampus in ../shared/data")
def test_hippocampus() -> None:
    lists = load_datalist(HIPPOCAMPUS, "train.txt", "val.txt", n_seg_classes=3)
    assert [len(lists[name]) for name in ("training", "validation", "planning")] == [166, 42, 166]
    lists = load_datalist("", HIPPOCAMPUS / "dataset.json", n_seg_classes=3)
    assert [len(lists[name]) for name in ("training", "validation", "planning")] == [166, 42, 166]
    assert len(load_images(HIPPOCAMPUS / "dataset.json")) == 208
