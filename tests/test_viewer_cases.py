"""Which files belong to the cases that a user names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import OBLIQUE
from other_formats import write_series
from test_dicom import set_header
from test_dicom_series import hounsfield

from med3d_nets.errors import Med3dError
from med3d_nets.prediction_store import PredictionStore
from med3d_nets.settings import Settings
from med3d_nets.viewer_cases import ViewCase, find_cases


def touch(folder: Path, *names: str) -> list[str]:
    """Empty files: nothing is read here."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [str(folder / name) for name in names]


def test_an_image_with_its_files(tmp_path: Path) -> None:
    image, label, other = touch(tmp_path, "scan.nii.gz", "truth.nii", "p.nii.gz")
    assert find_cases(image) == ([ViewCase("scan", image)], [])
    assert find_cases(image, label=label, prediction=other)[0] == [ViewCase("scan", image, label, other)]


def test_predictions_and_a_folder_of_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = touch(tmp_path / "images", "a.nii.gz", "b.nii", "c.nii.gz")
    predictions = touch(tmp_path / "out", "a_seg.nii.gz", "b_seg.nii.gz", "z_seg.nii.gz")
    labels = touch(tmp_path / "labels", "b.nii.gz", "c.nii.gz")
    caplog.set_level("INFO")
    found, names = find_cases(str(tmp_path / "out"), images=str(tmp_path / "images"), label=str(tmp_path / "labels"))
    assert names == []
    assert found == [
        ViewCase("a", images[0], "", predictions[0]),
        ViewCase("b", images[1], labels[0], predictions[1]),
    ]
    assert "1 of 3 label maps are left out, as their images are not here" in caplog.text


def test_predictions_beside_their_images(tmp_path: Path) -> None:
    image, prediction = touch(tmp_path, "a.nii.gz", "a_answer.nii.gz")
    touch(tmp_path, "._a.nii.gz", "notes.txt")
    assert find_cases(str(tmp_path), postfix="answer")[0] == [ViewCase("a", image, "", prediction)]


def test_folders_tell_files_of_one_name_apart(tmp_path: Path) -> None:
    images = touch(tmp_path / "data", "p1/scan.nii.gz", "p2/scan.nii.gz", "p3/scan.nii.gz")
    predictions = touch(tmp_path / "out", "p1/scan_seg.nii.gz", "p3/scan_seg.nii.gz")
    found, _ = find_cases(str(tmp_path / "out"), images=str(tmp_path / "data"))
    assert [(case.image, case.prediction) for case in found] == [
        (images[0], predictions[0]),
        (images[2], predictions[1]),
    ]
    assert [case.name for case in found] == ["p1/scan", "p3/scan"]


def test_it_is_told_where_files_are_not_clear(tmp_path: Path) -> None:
    images = touch(tmp_path / "data", "one/a.nii.gz", "two/a.nii.gz")
    (prediction,) = touch(tmp_path / "out", "a_seg.nii.gz")
    with pytest.raises(Med3dError) as caught:
        find_cases(str(tmp_path / "out"), images=str(tmp_path / "data"))
    assert str(caught.value) == f"{prediction}: found 2 images of its name, expected one: {', '.join(images)}"
    labels = touch(tmp_path / "truths", "x/a.nii.gz", "y/a.nii.gz")
    with pytest.raises(Med3dError, match=f"{images[0]}: found {labels[0]} and {labels[1]} for it, expected one label"):
        find_cases(images[0], label=str(tmp_path / "truths"))


def test_lists_have_their_truths(tmp_path: Path) -> None:
    data = tmp_path / "data"
    images = touch(data / "images", "a.nii.gz", "b.nii.gz")
    truths = touch(data / "labels", "a.nii.gz", "b.nii.gz")
    (prediction,) = touch(tmp_path / "out", "b_seg.nii.gz")
    listed = data / "val.txt"
    listed.write_text("images/a.nii.gz labels/a.nii.gz\nimages/b.nii.gz labels/b.nii.gz\n")
    cases = [ViewCase(name, *files) for name, *files in zip("ab", images, truths, strict=True)]
    assert find_cases(str(listed)) == (cases, [])
    moved = tmp_path / "val.txt"
    listed.rename(moved)
    assert find_cases(str(moved), data_root=str(data))[0] == cases
    (found,), _ = find_cases(str(tmp_path / "out"), images=str(moved), data_root=str(data))
    assert (found.image, found.truth, found.prediction) == (images[1], truths[1], prediction)
    moved.write_text("images/a.nii.gz\n")
    assert find_cases(str(moved), data_root=str(data))[0] == [ViewCase("a", images[0])]
    (data / "dataset.json").write_text('{"labels": {"0": "background", "1": "liver"}}')
    assert find_cases(str(moved), data_root=str(data))[1] == ["background", "liver"]
    moved.write_text("a b c\n")
    with pytest.raises(Med3dError, match=r"val.txt, line 1: found 3 fields"):
        find_cases(str(moved), data_root=str(data))


def test_data_sets_are_read_as_training_reads_them(tmp_path: Path) -> None:
    names = ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "imagesTs/b_0000.nii.gz", "imagesTs/b_0001.nii.gz"]
    images = touch(tmp_path, *names)
    (label,) = touch(tmp_path, "labelsTr/a.nii.gz")
    first, second = find_cases(str(tmp_path))[0]
    assert (first.image, first.truth) == (images[:2], label)
    assert (second.image, second.truth) == (images[2:], "")


def test_an_inference_tells_its_images(tmp_path: Path) -> None:
    images = touch(tmp_path, "p1/scan.nii.gz", "p2/scan.nii.gz", "p3/scan.nii.gz")
    settings = Settings("resnet_10", "medicalnet", "whole", 1, ["background", "liver"], [6, 7, 8])
    out = str(tmp_path / "out")
    store = PredictionStore([{"image": each} for each in images], out, str(tmp_path), [], settings, {}, "answer")
    for image in images[:2]:
        store.write(image, lambda path: Path(path).touch(), [])
    cases, names = find_cases(out, postfix="answer")
    assert names == ["background", "liver"]
    assert [(case.name, case.image, case.prediction) for case in cases] == [
        (f"{name}/scan", f"{tmp_path}/{name}/scan.nii.gz", f"{out}/{name}/scan_answer.nii.gz") for name in ("p1", "p2")
    ]
    assert find_cases(out)[0] == cases, "whatever the label maps' names"
    Path(images[1]).rename(tmp_path / "moved.nii.gz")
    with pytest.raises(Med3dError, match=f"{images[1]}: found no such file; name the folder where it is now, by --im"):
        find_cases(out)
    next(Path(out, "cases").rglob("*.json")).write_text("{}")
    with pytest.raises(Med3dError, match=r"found no record of an inference \(KeyError: 'image'\); name its --images"):
        find_cases(out)


def test_a_series_is_one_image(tmp_path: Path) -> None:
    series = tmp_path / "scans" / "series"
    series.mkdir(parents=True)
    (series / "1.dcm").write_bytes(bytes(128) + b"DICM")
    (prediction,) = touch(tmp_path / "out", "series_seg.nii.gz")
    expected = [ViewCase("series", str(series), "", prediction)]
    assert find_cases(str(series), prediction=prediction)[0] == expected
    assert find_cases(str(tmp_path / "out"), images=str(tmp_path / "scans"))[0] == expected


def test_series_of_one_folder_are_known_by_their_number(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    scans = tmp_path / "scans"
    for number in (4, 5):
        change = set_header(SeriesNumber=number)
        write_series(scans, hounsfield(), OBLIQUE, f"1.2.{number}", f"{number}_{{}}".format, change)
    names = ("series_4_seg.nii.gz", "series_5_seg.nii.gz")
    predictions = touch(tmp_path / "out", *names)
    touch(tmp_path / "out", "series_4_seg.dcm")
    found, _ = find_cases(str(tmp_path / "out"), images=str(scans))
    assert [(case.image, case.prediction) for case in found] == [
        (str(scans / f"{number}_0"), prediction) for number, prediction in zip((4, 5), predictions, strict=True)
    ]


def test_a_decathlon_list_names_the_classes(tmp_path: Path) -> None:
    content = {
        "labels": {"0": "background", "1": "anterior"},
        "training": [{"image": "./images/a.nii.gz", "label": "./labels/a.nii.gz"}],
        "test": ["./test/b.nii.gz"],
    }
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(content))
    cases, names = find_cases(str(path))
    assert names == ["background", "anterior"]
    assert [(case.name, Path(case.image).name, bool(case.truth)) for case in cases] == [
        ("a", "a.nii.gz", True),
        ("b", "b.nii.gz", False),
    ]
    path.write_text("[1]")
    with pytest.raises(Med3dError, match=r"dataset.json: found a list at its top; expected an object with 'training'"):
        find_cases(str(path))


def test_an_evaluation_needs_predictions(tmp_path: Path) -> None:
    image, prediction = touch(tmp_path, "data/a.nii.gz", "out/a_seg.nii.gz")
    folder = tmp_path / "eval"
    folder.mkdir()
    (folder / "metrics.csv").write_text(f"case,Dice liver,Dice tumour,HD95 [mm] liver\n{image},0.9,nan,2.5\n")
    with pytest.raises(Med3dError, match=r"keeps no label maps.*--output_dir predictions.*--prediction predictions"):
        find_cases(str(folder))
    (case,), names = find_cases(str(folder), prediction=str(tmp_path / "out"))
    assert names == ["background", "liver", "tumour"]
    assert (case.name, case.image, case.prediction) == ("a", image, prediction)
    assert case.dice["liver"] == 0.9
    assert list(case.dice) == ["liver", "tumour"]
    (folder / "metrics.csv").write_text("name,score\na,b\n")
    with pytest.raises(Med3dError, match=r"metrics.csv: found no table of cases .*, as an evaluation writes it"):
        find_cases(str(folder), prediction=str(tmp_path / "out"))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    image, *_ = touch(tmp_path / "images", "a.nii.gz", "b.nii.gz")
    (other,) = touch(tmp_path / "labels", "z.nii.gz")
    folder = str(tmp_path / "images")
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((f"{folder}/c.nii.gz", {}), "c.nii.gz: no such file or folder"),
        ((folder, {"label": "none"}), "--label none: no such file or folder"),
        ((folder, {"label": other}), r"--label .*z.nii.gz: found a file for 2 images; expected a folder"),
        ((folder, {"label": str(tmp_path / "labels")}), r"labels: found no label for any of 2 images, such as .*a.nii"),
        ((folder, {"images": folder}), r"--images .*: goes with a folder of predictions, such as x_seg.nii.gz, alone"),
        ((str(tmp_path / "empty"), {}), r"empty: found no images; expected volumes, predictions such as"),
    ):
        with pytest.raises(Med3dError, match=message):
            find_cases(arguments[0], **arguments[1])
    assert len(find_cases(folder)[0]) == 2
    assert find_cases(image)[0][0].image == image
