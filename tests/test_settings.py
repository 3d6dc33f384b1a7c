"""``model.json``: written, read, compared; names of classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import monai
import pytest
import torch

import med3d_nets
from med3d_nets.errors import Med3dError
from med3d_nets.settings import ADDED, Settings, check_settings, name_classes, read_settings

BASE = {
    "variant": "resnet_10",
    "head": "medicalnet",
    "recipe": "whole",
    "in_channels": 2,
    "class_names": ["background", "left lung", "Größe"],
    "input_size": [16, 20, 24],
    "fill_empty_with_noise": True,
    "pretrained": {"file": "pretrained.pt", "sha256": "ab", "tensors": 62},
    "spacing": [],
    "intensity": None,
    "flip_axes": [],
    "largest_component": [],
}


def message(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(Med3dError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def write(path: Path, **changes: Any) -> Path:
    """The file of BASE with changes; a value of ... leaves the entry out."""
    content = {**json.loads(Settings(**BASE).to_json()), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))
    return path


def test_round_trip(tmp_path: Path):
    path = tmp_path / "model.json"
    path.write_text(Settings(**BASE).to_json(epoch=3, validation={"val_mean_dice": 0.5}), encoding="utf-8")
    settings = read_settings(path)
    assert settings == Settings(**BASE)
    assert asdict(settings) == BASE
    assert settings.n_seg_classes == 3
    assert read_settings(str(path)) == settings


def test_file_records_versions_and_training():
    content = json.loads(Settings(**BASE).to_json(epoch=3, validation={"val_mean_dice": 0.5}))
    assert (content["format"], content["epoch"], content["validation"]) == (1, 3, {"val_mean_dice": 0.5})
    expected = {"med3d_nets": med3d_nets.__version__, "monai": monai.__version__, "torch": torch.__version__}
    assert content["versions"] == expected


def test_missing_file_says_where_it_comes_from(tmp_path: Path):
    shown = message(read_settings, tmp_path / "model.json")
    assert shown.startswith(f"{tmp_path / 'model.json'}: no such file. Training writes it beside model.pt")
    assert "--ckpt_dir" in shown
    assert "no such file" in message(read_settings, tmp_path)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00", b"PK\x03\x04"])
def test_file_that_is_not_json(content: bytes, tmp_path: Path):
    path = tmp_path / "model.json"
    path.write_bytes(content)
    assert message(read_settings, path).startswith(f"{path}: not JSON (")


@pytest.mark.parametrize(("found", "shown"), [(2, "2"), ("1", "'1'"), (None, "None"), (..., "None")])
def test_other_format(found: Any, shown: str, tmp_path: Path):
    path = write(tmp_path / "model.json", format=found)
    assert message(read_settings, path) == f"{path}: format {shown}, expected 1"


def test_json_that_is_no_dictionary(tmp_path: Path):
    path = tmp_path / "model.json"
    path.write_text("[1]")
    assert message(read_settings, path) == f"{path}: format 'list', expected 1"


@pytest.mark.parametrize("name", ADDED)
def test_settings_of_the_first_version_are_read(name: str, tmp_path: Path):
    assert read_settings(write(tmp_path / "model.json", **{name: ...})) == Settings(**BASE)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"recipe": "slices"}, "recipe is 'slices', expected whole or patch"),
        ({"recipe": "patch"}, "spacing is [], expected 3 numbers of mm for recipe 'patch'"),
        (
            {"recipe": "patch", "spacing": [1, 0, 1]},
            "spacing is [1, 0, 1], expected 3 numbers of mm for recipe 'patch'",
        ),
        ({"spacing": [1, 1, 1]}, "spacing is [1, 1, 1], expected 0 numbers of mm for recipe 'whole'"),
    ],
)
def test_recipe_and_spacing_agree(changes: dict[str, Any], text: str):
    assert message(Settings, **{**BASE, **changes}).startswith(text)


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [
        ("flip_axes", [3], "0 to 2"),
        ("flip_axes", "auto", "0 to 2"),
        ("largest_component", [0], "1 to 2"),
        ("largest_component", [1, 3], "1 to 2"),
        ("largest_component", 1, "1 to 2"),
    ],
)
def test_numbers_of_axes_and_classes(name: str, value: Any, known: str):
    assert message(Settings, **{**BASE, name: value}) == f"{name} is {value!r}, expected a list of numbers from {known}"
    assert getattr(Settings(**{**BASE, name: [1]}), name) == [1]


@pytest.mark.parametrize("name", [field.name for field in fields(Settings) if field.name not in ADDED])
def test_every_setting_must_be_there(name: str, tmp_path: Path):
    path = write(tmp_path / "model.json", **{name: ...})
    assert message(read_settings, path) == f"{path}: lacks {name}"


def test_all_missing_settings_are_named(tmp_path: Path):
    path = write(tmp_path / "model.json", variant=..., input_size=...)
    assert message(read_settings, path) == f"{path}: lacks variant, input_size"


def test_wrong_setting_names_the_file(tmp_path: Path):
    path = write(tmp_path / "model.json", input_size=[16, 0, 24])
    assert message(read_settings, path) == f"{path}: input_H is 0, expected a whole number of voxels, 1 or more"


@pytest.mark.parametrize("value", [0, -1, 1.5, 16.0, "16", None, True])
@pytest.mark.parametrize(("index", "name"), enumerate(["input_D", "input_H", "input_W"]))
def test_input_size_must_be_whole_and_positive(index: int, name: str, value: Any):
    size = [16, 20, 24]
    size[index] = value
    shown = message(Settings, **{**BASE, "input_size": size})
    assert shown == f"{name} is {value!r}, expected a whole number of voxels, 1 or more"


@pytest.mark.parametrize("size", [[], [16, 16], [16, 16, 16, 16], 16, None])
def test_input_size_has_three_numbers(size: Any):
    shown = message(Settings, **{**BASE, "input_size": size})
    assert shown == f"input_size is {size!r}, expected input_D, input_H, input_W"


@pytest.mark.parametrize("size", [(1, 1, 1), [56, 448, 448]])
def test_good_input_sizes(size: Any):
    assert list(Settings(**{**BASE, "input_size": size}).input_size) == list(size)


def test_equal_settings_pass():
    settings = Settings(**BASE)
    check_settings(settings, "model.json", **BASE)
    check_settings(
        settings, "model.json", n_seg_classes=3, input_size=(16, 20, 24), class_names=tuple(BASE["class_names"])
    )
    check_settings(settings, "model.json")


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("variant", "resnet_50", "'resnet_10'"),
        ("n_seg_classes", 2, "3"),
        ("in_channels", 1, "2"),
        ("input_size", [16, 24, 20], "[16, 20, 24]"),
        ("class_names", ["background", "left lung"], "['background', 'left lung', 'Größe']"),
        ("fill_empty_with_noise", False, "True"),
    ],
)
def test_difference_names_both_values(name: str, given: Any, expected: str):
    shown = message(check_settings, Settings(**BASE), "models/model.json", **{name: given})
    assert shown == f"{name} is {given!r}, but models/model.json says {expected}"


def test_all_differences_are_named():
    given = {"variant": "resnet_18", "head": "medicalnet", "n_seg_classes": 5}
    assert message(check_settings, Settings(**BASE), "a.json", **given) == (
        "variant is 'resnet_18', but a.json says 'resnet_10'; n_seg_classes is 5, but a.json says 3"
    )


REGION = {**BASE, "recipe": "patch", "spacing": [1.0, 1.0, 2.5]}
CT = {"lower": -1000.12, "upper": 400.0, "mean": 0.0, "std": 1.0}


@pytest.mark.parametrize(
    ("intensity", "same", "others"),
    [
        (CT, ["auto", "ct", CT, [-1000.1201, 400], (-1000.12, 400)], ["mr", [-1000, 400], [400], ["a", "b"], None, 1]),
        (None, ["auto", "mr", None], ["ct", [-1000, 400], [], CT]),
    ],
)
def test_intensity_may_be_given_as_training_takes_it(intensity: Any, same: list[Any], others: list[Any]):
    settings = Settings(**{**REGION, "intensity": intensity})
    for given in same:
        check_settings(settings, "model.json", intensity=given)
    for given in others:
        assert message(check_settings, settings, "model.json", intensity=given).startswith("intensity is ")


def test_options_that_leave_a_setting_open_agree_with_any():
    settings = Settings(**REGION)
    check_settings(settings, "model.json", spacing=[], input_size=[], class_names=[], intensity="auto")
    for name, value in (("spacing", 1), ("spacing", "auto"), ("input_size", [16]), ("flip_axes", "auto")):
        assert f"{name} is {value!r}, but a says [" in message(check_settings, settings, "a", **{name: value})
    assert "flip_axes is []" in message(check_settings, Settings(**{**REGION, "flip_axes": [0]}), "a", flip_axes=[])


def write_dataset_json(folder: Path, labels: Any) -> str:
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return str(folder)


def test_given_names_are_taken(tmp_path: Path):
    root = write_dataset_json(tmp_path, {"0": "background", "1": "liver"})
    assert name_classes(["background", "lung"], 2, root) == ["background", "lung"]
    assert name_classes((0, 1), 2, root) == ["0", "1"]


def test_wrong_number_of_names():
    shown = message(name_classes, ["background", "lung"], 3)
    assert shown == "class_names has 2 names, expected n_seg_classes=3"


def test_names_from_dataset_json(tmp_path: Path):
    root = write_dataset_json(tmp_path, {"1": "liver", "0": "background", "2": "tumour"})
    assert name_classes([], 3, root) == ["background", "liver", "tumour"]


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "background"},
        {"0": "background", "1": "liver", "2": "tumour", "3": "vessel"},
        {"0": "background", "1": "liver", "3": "tumour"},
        ["background", "liver", "tumour"],
        None,
    ],
)
def test_dataset_json_of_other_classes_is_left_alone(labels: Any, tmp_path: Path):
    assert name_classes([], 3, write_dataset_json(tmp_path, labels)) == ["background", "class 1", "class 2"]


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_default_names(content: str | None, tmp_path: Path):
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    assert name_classes([], 2, str(tmp_path)) == ["background", "class 1"]


@pytest.mark.parametrize("number", [1, 0, -3, 2.0, "2", True, None])
def test_number_of_classes_is_checked(number: Any):
    shown = message(name_classes, [], number)
    assert shown == f"n_seg_classes is {number!r}, expected a whole number above 1 (background included)"
