"""The record of a fold: what it holds out, and that folds which answer together have the same settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import BUNDLE
from test_every_bundle import SMALL, workflow

from med3d_nets.errors import Med3dError, explain
from med3d_nets.fold_records import check_fold, record_fold
from med3d_nets.settings import Settings

SETTINGS = Settings("resnet_10", "unet", "patch", 1, ["a", "b"], [8, 8, 8], spacing=[1.0, 1.0, 2.5])


def message(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(Med3dError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of images, each with its name as its content."""
    folder = tmp_path / "data"
    write(folder, "abcdyz")
    return folder


def write(folder: Path, names: str, content: str = "{}") -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / "images" / f"{name}.nii").write_text(content.format(name))


def case(name: str, root: Path, **known: str) -> dict[str, str]:
    return {"image": f"{root}/images/{name}.nii", "label": f"{root}/labels/{name}.nii", **known}


def cases(names: str, root: Path) -> list[dict[str, str]]:
    return [case(name, root) for name in names]


def test_record_says_what_a_fold_has_not_seen(tmp_path: Path, root: Path) -> None:
    record_fold(str(tmp_path), cases("cd", root), root, 2, 1)
    record = json.loads((tmp_path / "fold_1/fold.json").read_text())
    names = ["images/c.nii", "images/d.nii"]
    assert {name: record[name] for name in ("folds", "fold", "validation", "settings")} == {
        "folds": 2, "fold": 1, "validation": names, "settings": {},
    }  # fmt: skip
    record_fold(str(tmp_path), cases("ab", root), root, 2, 0)
    moved = Path(shutil.copytree(root, tmp_path / "elsewhere"))
    check_fold(str(tmp_path), cases("dc", moved), moved, 2, 1)


def test_cases_that_a_fold_has_seen_are_refused(tmp_path: Path, root: Path) -> None:
    record_fold(str(tmp_path), cases("cd", root), root, 2, 1)
    text = message(check_fold, str(tmp_path), cases("bcd", root), root, 2, 1)
    assert all(
        part in text
        for part in (
            str(tmp_path / "fold_1/fold.json"),
            "fold 1 of 2 with 2",
            "with 3: the two differ in images/b.nii. Give",
        )
    )
    assert "manual_seed and patient_pattern" in text
    assert "no fold" in message(check_fold, str(tmp_path), cases("ab", root), root, 2, 0)


def test_folds_of_two_divisions_are_refused(tmp_path: Path, root: Path) -> None:
    record_fold(str(tmp_path), cases("ab", root), root, 2, 0)
    text = message(record_fold, str(tmp_path), cases("bc", root), root, 2, 1)
    assert all(
        part in text for part in ("fold 0 of 2, with 1 of the cases that fold 1 of 2", "manual_seed", "--ckpt_dir")
    )
    assert "fold 0 of 2, with 0 of" in message(record_fold, str(tmp_path), cases("z", root), root, 3, 1)
    assert not (tmp_path / "fold_1").exists()
    record_fold(str(tmp_path), cases("z", root), root, 3, 0)  # again: this fold's own record is in nobody's way
    (tmp_path / "fold_0/fold.json").write_text("{}")
    text = message(record_fold, str(tmp_path), cases("cd", root), root, 2, 1)
    assert "expected folds, fold and validation" in text


def test_resuming_keeps_the_fold(tmp_path: Path, root: Path) -> None:
    folder = str(tmp_path)
    record_fold(folder, cases("ab", root), root, 2, 0)
    resume = str(tmp_path / "fold_0/checkpoint_epoch=3.pt")
    record_fold(folder, cases("ab", root), root, 2, 0, resume)
    text = message(record_fold, folder, cases("cd", root), root, 2, 1, resume)
    assert "trained as fold 0 of 2" in text
    assert "options give fold 1 of 2" in text
    assert "fold 0 of 2; expected none" in message(record_fold, folder, cases("ab", root), root, 0, -1, resume)
    other = str(tmp_path / "x.pt")
    assert "no fold; expected one" in message(record_fold, folder, cases("ab", root), root, 2, 0, other)
    record_fold(folder, cases("ab", root), root, 0, -1, other)


def test_test_cases_that_the_folds_have_seen_are_a_warning(
    tmp_path: Path, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, part in enumerate(("ab", "cd")):
        record_fold(str(tmp_path), cases(part, root), root, 2, number)
    check_fold(str(tmp_path), cases("yz", root), root, 2)
    assert not caplog.records
    check_fold(str(tmp_path), cases("yc", root), root, 2)
    assert f"{tmp_path}: trained on 1 of the 2 cases to evaluate (images/c.nii): scores are too good" in caplog.text


@pytest.fixture
def trained(tmp_path: Path, root: Path) -> str:
    """The folder of a training without folds."""
    training = [case("a", root, patient="p"), case("b", root, patient="q"), case("b", root, patient="")]
    record_fold(str(tmp_path / "models"), cases("cd", root), root, training=training)
    return str(tmp_path / "models")


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Level and text of what was logged since the last call, without the record's path."""
    found = [(record.levelname, record.getMessage().split("cases.json: ")[1]) for record in caplog.records]
    caplog.clear()
    return found


def test_record_of_a_training_without_folds(trained: str) -> None:
    record = json.loads((Path(trained) / "cases.json").read_text())
    assert record.pop("contents").keys() == {f"images/{name}.nii" for name in "abcd"}
    names = {"training": ["images/a.nii", "images/b.nii"], "validation": ["images/c.nii", "images/d.nii"]}
    assert record == {"folds": 0, "fold": -1, **names, "patients": ["p", "q"]}


def test_cases_that_a_training_has_seen(trained: str, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert check_fold(trained, cases("yz", root), root, allow_seen=False) == []
    assert logged(caplog) == []
    text = message(check_fold, trained, cases("abyc", root), root, allow_seen=False)
    assert text == (
        f"{Path(trained) / 'cases.json'}: trained on 2 of the 4 cases to evaluate (images/a.nii, images/b.nii): "
        "scores would be too good. Evaluate on others, or pass --allow_seen_cases True"
    )
    caveats = check_fold(trained, cases("aby", root), root)
    text = "trained on 2 of the 3 cases to evaluate (images/a.nii, images/b.nii): scores are too good"
    assert (logged(caplog), caveats) == ([("WARNING", text)], [f"The network was {text}."])
    caveats = check_fold(trained, cases("ydc", root), root, allow_seen=False)
    text = "2 of 3 cases are those that the training was validated with, to choose its epoch: scores are too good"
    assert (logged(caplog), caveats) == ([("INFO", text)], [f"{text.replace('of 3', 'of the 3')}."])


def test_patients_that_a_training_has_seen(trained: str, root: Path) -> None:
    other = [case("y", root, patient="q"), case("z", root, patient="r"), case("c", root, patient="")]
    text = message(check_fold, trained, other, root, allow_seen=False)
    assert "trained on cases of patients to evaluate (q): scores" in text
    text = message(check_fold, trained, [*other, case("a", root)], root, allow_seen=False)
    assert "trained on 1 of the 4 cases to evaluate (images/a.nii) and on cases of patients to evaluate (q)" in text
    check_fold(trained, other[1:], root, allow_seen=False)


def test_files_that_lie_elsewhere(trained: str, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file stays what it is, wherever it is moved to; another of its name, in another data set, is none of it."""
    moved = Path(shutil.copytree(root, root.parent / "elsewhere" / "below"))
    for data_root in (moved, moved / "images", moved.parent):
        text = message(check_fold, trained, cases("a", moved), data_root, allow_seen=False)
        assert "trained on 1 of the 1 cases" in text
    write(root.parent / "others", "acy", content="an image of another patient, {}")
    caplog.set_level("INFO")
    caveats = check_fold(trained, cases("acy", root.parent / "others"), root.parent / "others", allow_seen=False)
    text = "cases have the names of cases that it was trained on, but are not known to be the same"
    assert logged(caplog) == [("WARNING", f"1 of 3 {text}: images/a.nii")]
    assert caveats == [f"1 of the 3 {text} (images/a.nii)."]


def test_large_files_are_told_apart_by_their_ends_and_their_middle(tmp_path: Path, root: Path) -> None:
    size = 2**18
    contents = [bytearray(size + (index == 3)) for index in range(4)]
    for index, place in enumerate((0, size // 2, size - 1)):
        contents[index][place] = 1
    for name, content in zip("abcd", contents, strict=True):
        (root / "images" / f"{name}.nii").write_bytes(content)
    record_fold(str(tmp_path), cases("y", root), root, training=cases("abcd", root))
    assert len(set(json.loads((tmp_path / "cases.json").read_text())["contents"].values())) == 5


def test_volumes_of_one_array_are_told_apart(tmp_path: Path, root: Path) -> None:
    first, second, other = (
        {"image": f"{root}/images/a.nii::{place}"} for place in ("train_images::1", "train_images::2", "val_images::1")
    )
    record_fold(str(tmp_path), [other], root, training=[first])
    check_fold(str(tmp_path), [second], root, allow_seen=False)
    text = message(check_fold, str(tmp_path), [second, first], root, allow_seen=False)
    assert "trained on 1 of the 2 cases to evaluate (images/a.nii::train_images::1)" in text


def test_resumed_training_remembers_the_cases_before_the_stop(trained: str, root: Path, tmp_path: Path) -> None:
    for folder in (trained, str(tmp_path / "another")):
        resume = str(Path(trained) / "checkpoint_epoch=3.pt")
        record_fold(folder, cases("d", root), root, 0, -1, resume, training=cases("y", root))
        text = message(check_fold, folder, [*cases("ayz", root)], root, allow_seen=False)
        assert "trained on 2 of the 3 cases to evaluate (images/a.nii, images/y.nii)" in text
        assert "(q)" in message(check_fold, folder, [case("z", root, patient="q")], root, allow_seen=False)


def test_record_of_an_earlier_version(tmp_path: Path, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, names in enumerate((["images/a.nii"], ["images/b.nii"])):
        path = tmp_path / f"fold_{number}" / "fold.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"folds": 2, "fold": number, "validation": names}))
    check_fold(str(tmp_path), cases("ay", root), root, 2, allow_seen=False)
    assert "1 of 2 cases have the names of cases that it was trained on" in caplog.text
    check_fold(str(tmp_path), cases("b", root), root, 2, 1, allow_seen=False)
    record_fold(str(tmp_path), cases("b", root), root, 2, 1, str(tmp_path / "fold_1/a.pt"), SETTINGS, cases("a", root))
    assert json.loads((tmp_path / "fold_1/fold.json").read_text())["training"] == ["images/a.nii"]


def test_network_without_a_record(tmp_path: Path, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    (caveat,) = check_fold(str(tmp_path), cases("ab", root), root, allow_seen=False)
    text = "found no record of a training: its cases may be among those to evaluate"
    assert logged(caplog) == [("INFO", text)]
    assert caveat == f"{tmp_path / 'cases.json'}: {text}."


def test_segmentation_of_cases_that_were_trained_on(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the shipped configs: a warning, as for the networks of folds; of the validation cases, a line of the log."""
    bundle = Path(shutil.copytree(BUNDLE, tmp_path / BUNDLE.name))
    caplog.set_level("INFO")
    data = {"data_root": str(dataset), "report": False}
    training = workflow(bundle, "train", "train", **data, **SMALL, pretrain_path="")
    training.run_id = "training"
    training.run()
    for name, text in (("train", "trained on 6 of the 6 cases to evaluate"), ("val", "2 of 2 cases are those that")):
        output = str(tmp_path / name)
        evaluation = workflow(bundle, "train", "train", "evaluate", **data, val_list=f"{name}.txt", output_dir=output)
        caplog.clear()
        evaluation.run()
        found = [record.getMessage() for record in caplog.records if "cases.json" in record.getMessage()]
        assert [text in line for line in found] == [True]
    other = workflow(bundle, "train", "train", "evaluate", **data, class_names=["a", "b", "c"])
    with pytest.raises((Med3dError, RuntimeError)) as caught:
        other.run()
    assert "class_names is ['a', 'b', 'c'], but" in str(explain(caught.value, {}))


def test_folds_of_other_settings_are_refused_before_they_train(tmp_path: Path, root: Path) -> None:
    record_fold(str(tmp_path), cases("ab", root), root, 2, 0, settings=replace(SETTINGS, pretrained={"file": "a.pt"}))
    other = replace(SETTINGS, input_size=[16, 8, 8])
    text = message(record_fold, str(tmp_path), cases("cd", root), root, 2, 1, settings=other)
    found = tmp_path / "fold_0/fold.json"
    assert f"input_size is [16, 8, 8], but [8, 8, 8] in {found}. Give these" in text
    assert "spacing is" not in text
    assert not (tmp_path / "fold_1").exists()
    record_fold(str(tmp_path), cases("cd", root), root, 2, 1, settings=SETTINGS)


def test_records_without_settings_are_taken(tmp_path: Path, root: Path) -> None:
    record_fold(str(tmp_path), cases("ab", root), root, 2, 0)
    record_fold(str(tmp_path), cases("cd", root), root, 2, 1, settings=SETTINGS)
