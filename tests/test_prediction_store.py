"""What is known of the answers in a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from predicted import CLASSES, content

from med3d_nets.errors import Med3dError
from med3d_nets.prediction_store import PredictionStore
from med3d_nets.settings import Settings

SETTINGS = Settings("resnet_10", "medicalnet", "whole", 1, CLASSES, [6, 7, 8])
STRUCTURES = [{"label": 1, "structure": "one", "volume_ml": 1.0}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images in folders of their own, weights, and answers to the first one."""
    for name in ("in/a/x.nii.gz", "in/b/x.nii.gz", "model.pt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    write(make(tmp_path), str(tmp_path / "in/a/x.nii.gz"))
    return tmp_path


def make(folder: Path, names: tuple[Any, ...] = ("a/x.nii.gz", "b/x.nii.gz"), **changes: Any) -> PredictionStore:
    cases = [
        {
            "image": [str(folder / "in" / each) for each in name]
            if isinstance(name, tuple)
            else str(folder / "in" / name)
        }
        for name in names
    ]
    options = changes.pop("options", {"test_time_flips": False})
    given = {"output_dir": str(folder / "out"), "root": str(folder / "in"), "postfix": "seg", **changes}
    settings = given.pop("settings", SETTINGS)
    return PredictionStore(cases, model_files=[str(folder / "model.pt")], settings=settings, options=options, **given)


def text(words: str) -> Callable[[str], None]:
    return lambda path: Path(path).write_text(words) and None


def write(store: PredictionStore, image: str, words: str = "labels", **others: str) -> None:
    store.write(image, text(words), STRUCTURES, **{name: text(each) for name, each in others.items()})


def images(folder: Path) -> list[str]:
    return [str(folder / "in" / name) for name in ("a/x.nii.gz", "b/x.nii.gz")]


def message(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(Med3dError) as caught:
        call(*arguments)
    return str(caught.value)


def test_names_keep_the_folders(folder: Path) -> None:
    place = make(folder).place(images(folder)[0])
    out = str(folder / "out")
    assert tuple(place) == (
        "a/x",
        f"{out}/a/x_seg.nii.gz",
        f"{out}/a/x_prob.nii.gz",
        "",
        f"{out}/quicklook/a/x.png",
        f"{out}/cases/a/x_seg.json",
    )


def test_finished_is_what_was_written_whole_by_the_same_network_of_the_same_image(folder: Path) -> None:
    store = make(folder)
    assert [store.examine(image, False) for image in images(folder)] == [(True, ""), (False, "")]
    assert store.examine(images(folder)[0], True) == (False, "")  # probabilities are to be added
    write(store, images(folder)[0], probabilities="p")
    assert store.examine(images(folder)[0], True) == (True, "")


def test_a_series_is_finished_with_its_dicom_segmentation(folder: Path) -> None:
    series = folder / "in" / "series"
    series.mkdir()
    (series / "1").write_bytes(bytes(128) + b"DICM")
    store, without = (make(folder, ("series",), dicom_seg=wanted) for wanted in (True, False))
    write(without, str(series))
    assert without.place(str(series)).segmentation == ""
    assert without.examine(str(series), False) == (True, "")
    assert store.examine(str(series), False) == (False, "")  # it is to be added
    write(store, str(series), segmentation="dicom")
    assert store.examine(str(series), False) == (True, "")
    (folder / "out/series_seg.dcm").write_text("other")
    assert "series_seg.dcm: exists already, and is not what was predicted" in store.examine(str(series), False)[1]


def test_the_record_says_what_was_made_of_what(folder: Path) -> None:
    record = json.loads((folder / "out/cases/a/x_seg.json").read_text())
    assert (record["case"], record["image"], record["label_map"]) == ("a/x", images(folder)[0], "a/x_seg.nii.gz")
    assert record["structures"] == STRUCTURES
    assert record["made_with"]["settings"]["class_names"] == CLASSES
    assert json.loads((folder / "out/predictions.json").read_text())["made_with"] == record["made_with"]


def test_a_label_map_without_a_record(folder: Path) -> None:
    (folder / "out/cases/a/x_seg.json").unlink()
    assert "exists already, and no record in" in make(folder).examine(images(folder)[0], False)[1]


@pytest.mark.parametrize("words", ["corrected", "lab"])
def test_a_label_map_that_was_changed_or_cut_since(words: str, folder: Path) -> None:
    (folder / "out/a/x_seg.nii.gz").write_text(words)
    finished, problem = make(folder).examine(images(folder)[0], False)
    assert not finished
    assert (
        problem == f"{folder}/out/a/x_seg.nii.gz: exists already, and is not what was predicted: it was changed since"
    )
    assert make(folder).read_finished() == ([], 1)


def test_probabilities_of_something_else(folder: Path) -> None:
    (folder / "out/b").mkdir()
    (folder / "out/b/x_prob.nii.gz").write_text("mine")
    assert make(folder).examine(images(folder)[1], False) == (False, "")
    assert "b/x_prob.nii.gz: exists already, and no record" in make(folder).examine(images(folder)[1], True)[1]


def test_an_image_of_another_content_or_place(folder: Path) -> None:
    first = Path(images(folder)[0])
    first.rename(first.with_name("old"))
    first.write_text("another image")
    assert f"was made of {first}, not as {first} is now" in make(folder).examine(str(first), False)[1]
    first.write_bytes(first.with_name("old").read_bytes())  # the same again, at another time
    os.utime(first, (1, 1))
    assert make(folder).examine(str(first), False) == (True, "")
    moved = folder / "in" / "moved" / "a"
    moved.mkdir(parents=True)
    first.rename(moved / "x.nii.gz")
    store = make(folder, ("moved/a/x.nii.gz",), root=str(folder / "in" / "moved"))
    assert store.examine(str(moved / "x.nii.gz"), False) == (True, "")


def test_another_network_or_other_options_are_named(folder: Path) -> None:
    assert make(folder).check_record() is None
    changed = make(folder, options={"test_time_flips": True})
    text_of = message(changed.check_record)
    assert f"{folder}/out/predictions.json: the label maps in this folder were made with" in text_of
    assert "test_time_flips False, this run has True; give another --output_dir or pass --overwrite True" in text_of
    settings = replace(SETTINGS, class_names=["background", "left", "two"])
    assert "class_names ['background', 'one', 'two'], this run has" in message(
        make(folder, settings=settings).check_record
    )
    assert make(folder, settings=replace(SETTINGS, pretrained={"file": "x"})).check_record() is None
    (folder / "model.pt").write_text("other weights")
    assert "SHA-256 of the weights ['" in message(make(folder).check_record)
    assert "exists already, and was made with SHA-256" in make(folder).examine(images(folder)[0], False)[1]


def test_a_file_of_another_kind_in_place_of_the_record(folder: Path) -> None:
    (folder / "out/predictions.json").write_text("[]")
    assert "predictions.json: found no record of an inference" in message(make(folder).check_record)


def test_written_again_nothing_of_the_earlier_answers_is_left(folder: Path) -> None:
    store = make(folder)
    write(store, images(folder)[0], probabilities="p", picture="q")
    assert set(content(folder / "out")) == {
        *("predictions.json", "cases/a/x_seg.json", "a/x_seg.nii.gz", "a/x_prob.nii.gz", "quicklook/a/x.png")
    }
    changed = make(folder, options={"test_time_flips": True})
    write(changed, images(folder)[0], words="others")
    assert set(content(folder / "out")) == {"predictions.json", "cases/a/x_seg.json", "a/x_seg.nii.gz"}
    assert changed.check_record() is None
    assert changed.examine(images(folder)[0], False) == (True, "")
    assert (folder / "out/a/x_seg.nii.gz").read_text() == "others"


def test_the_finished_are_those_of_all_runs_of_the_same_network(folder: Path) -> None:
    write(make(folder), images(folder)[1])
    assert [record["case"] for record in make(folder, ("a/x.nii.gz",)).read_finished()[0]] == ["a/x", "b/x"]
    (folder / "out/b/x_seg.nii.gz").unlink()
    records, others = make(folder).read_finished()
    assert ([record["case"] for record in records], others) == (["a/x"], 0)
    assert make(folder, options={}).read_finished() == ([], 1)


def test_answers_in_the_images_own_folder_are_no_images(folder: Path) -> None:
    names = ("a/x.nii.gz", "a/x_prob.nii.gz", "a/x_seg.nii.gz", "b/x.nii.gz")
    assert make(folder, names, output_dir=str(folder / "in")).without_answers() == images(folder)
    assert len(make(folder, names).without_answers()) == 4


def test_an_answer_never_replaces_its_image(folder: Path) -> None:
    store = make(folder, output_dir=str(folder / "in"), postfix="")
    assert message(store.without_answers) == (
        f"{images(folder)[0]}: its label map would replace it; give another --output_dir"
    )


def test_names_that_clash(folder: Path) -> None:
    (folder / "in/a/x.nii").touch()
    assert "whose output would have the same name" in message(make, folder, ("a/x.nii", "a/x.nii.gz"))
    assert "output_postfix is 'prob'" in message(lambda: make(folder, postfix="prob"))


def test_images_of_several_files(folder: Path) -> None:
    """Channels, the slices of a series, and a header with its voxels count as they are together."""
    series = folder / "in" / "1.2.3"
    series.mkdir()
    for name in ("1", "2"):
        (series / name).write_bytes(bytes(128) + b"DICM" + name.encode())
    (folder / "in/h.mhd").write_text("header")
    (folder / "in/h.raw").write_text("voxels")
    store = make(folder, (("a/x.nii.gz", "b/x.nii.gz"), "1.2.3", "h.mhd"))
    for image in store.cases:
        (folder / "out").mkdir(exist_ok=True)
        Path(store.place(image).label_map).unlink(missing_ok=True)
        write(store, image, **({"segmentation": "dicom"} if image == str(series) else {}))
        assert store.examine(image, False) == (True, "")
    assert store.place(str(series)).label_map == str(folder / "out" / "1.2.3_seg.nii.gz")
    for name in ("in/b/x.nii.gz", "in/1.2.3/2", "in/h.raw"):
        path = folder / name
        path.write_bytes(path.read_bytes() + b".")
    assert store.place(str(series)).segmentation == str(folder / "out" / "1.2.3_seg.dcm")
    assert ["was made of" in store.examine(image, False)[1] for image in store.cases] == [True] * 3
