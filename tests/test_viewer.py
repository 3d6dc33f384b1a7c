"""The viewer's page, without a browser: what is in the file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from conftest import write_case
from viewed import AFFINES, Viewed, write_sides

from med3d_nets.errors import Med3dError
from med3d_nets.viewer import view, write_view
from med3d_nets.viewer_cases import ViewCase


def voxels(path: Path) -> np.ndarray[Any, Any]:
    return np.asanyarray(nibabel.load(path).dataobj)


def noise(folder: Path, names: str, side: int) -> list[ViewCase]:
    """Images that do not compress."""
    random = np.random.RandomState(0)
    cases = []
    for name in names:
        path = folder / f"{name}.nii.gz"
        nibabel.save(
            nibabel.Nifti1Image(random.randint(0, 2**12, (side, side, side)).astype(np.int16), np.eye(4)), path
        )
        cases.append(ViewCase(name, str(path)))
    return cases


@pytest.mark.parametrize("name", AFFINES)
def test_volumes_and_affines_are_those_of_the_files(name: str, tmp_path: Path) -> None:
    files = write_sides(tmp_path, name)
    out = tmp_path / "page.html"
    view(str(files["image"]), label=str(files["truth"]), prediction=str(files["prediction"]), out=str(out))
    page = Viewed(out)
    assert set(page.volumes) == {"image-0", "truth-0", "prediction-0"}
    for kind, path in files.items():
        found = page.volumes[f"{kind}-0"]
        assert np.array_equal(np.asanyarray(found.dataobj), voxels(path))
        assert found.affine == pytest.approx(AFFINES[name], abs=1e-5)
        assert found.header.get_intent()[0] == ("none" if kind == "image" else "label")
    (case,) = page.data["cases"]
    assert case["name"] == name
    index = np.array(case["toVoxel"]) @ np.array([*case["start"], 1.0])
    assert voxels(files["truth"])[tuple(np.rint(index[:3]).astype(int))] == 1
    assert case["notes"] == []
    assert case["dice"][0] == pytest.approx(2 * 0.4, abs=0.2)


def test_the_page_needs_no_other_file_and_no_network(tmp_path: Path) -> None:
    files = write_sides(tmp_path, "oblique")
    out = tmp_path / "page.html"
    view(str(files["image"]), label=str(files["truth"]), out=str(out))
    page = Viewed(out)
    loading = {"src", "href", "srcset", "action", "background", "data"}
    assert not [(tag, found) for tag, found in page.tags if loading & set(found)]
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    style = re.search(r"<style>(.*?)</style>", page.text, re.DOTALL)
    assert style
    assert not re.search(r"url\(|@import", style[1])
    policy = next(found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy")
    assert policy
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert "globalThis.niivue = { DRAG_MODE: DRAG_MODE, Niivue: " in page.text
    assert "BSD 2-Clause License" in page.text
    assert "Copyright (c) 2015 RII-UTHSCSA" in page.text


def test_numbers_are_those_of_the_files(tmp_path: Path) -> None:
    write_case(tmp_path, "case", 1)
    image, label = tmp_path / "images" / "case.nii.gz", tmp_path / "labels" / "case.nii.gz"
    truth = nibabel.load(label)
    predicted = np.asanyarray(truth.dataobj).copy()
    predicted[:, :, ::2][predicted[:, :, ::2] == 2] = 0
    nibabel.save(nibabel.Nifti1Image(predicted, truth.affine), tmp_path / "answer.nii.gz")
    names = ["background", "box", "</script><b>"]
    out = tmp_path / "page.html"
    options = {"label": str(label), "prediction": str(tmp_path / "answer.nii.gz"), "class_names": names}
    view(str(image), **options, out=str(out), window=[-5, 400.5])
    page = Viewed(out)
    (case,) = page.data["cases"]
    assert [each["name"] for each in page.data["classes"]] == names[1:]
    assert "</script><b>" not in page.text
    boxes = [(voxels(label) == value).sum() for value in (1, 2)]
    kept = (predicted == 2).sum()
    assert case["dice"] == pytest.approx([1, 2 * kept / (boxes[1] + kept)])
    millilitres = 2.5 * 0.8 * 1.1 / 1000
    assert case["truthVolumes"] == pytest.approx([count * millilitres for count in boxes], rel=1e-3)
    assert case["predictionVolumes"][1] == pytest.approx(kept * millilitres, rel=1e-3)
    assert case["window"] == [-5, 400.5]
    assert case["windows"]["given"] == [-5, 400.5]
    shown = np.asanyarray(page.volumes["image-0"].dataobj)
    assert np.abs(shown - voxels(image)).max() <= 405.5 / 1024 / 2 + 1e-3
    assert case["notes"] == ["Intensities are rounded to 0.396."]


def test_a_run_has_all_cases_and_goes_into_its_folder(dataset: Path, tmp_path: Path) -> None:
    for name in ("case_6", "case_7"):
        label = nibabel.load(dataset / "labels" / f"{name}.nii.gz")
        nibabel.save(label, tmp_path / f"{name}_seg.nii.gz")
    view(str(tmp_path), images=str(dataset / "val.txt"))
    page = Viewed(tmp_path / "view.html")
    assert [case["title"] for case in page.data["cases"]] == [f"case_{n}, mean Dice 1.000" for n in (6, 7)]
    assert len(page.volumes) == 6
    assert [each["name"] for each in page.data["classes"]] == ["class 1", "class 2"]
    assert f"<h1>{tmp_path.name}: 2 cases</h1>" in page.text


def test_one_class_alone_has_two_colours(tmp_path: Path) -> None:
    files = write_sides(tmp_path, "straight")
    view(str(files["image"]), label=str(files["truth"]), out=str(tmp_path / "one.html"))
    (one,) = Viewed(tmp_path / "one.html").data["classes"]
    assert one["truth"] != one["prediction"]
    view(str(files["image"]), class_names=["background", "a", "b"], out=str(tmp_path / "two.html"))
    classes = Viewed(tmp_path / "two.html").data["classes"]
    assert all(each["truth"] == each["prediction"] for each in classes)
    assert classes[0]["truth"] != classes[1]["truth"]


def test_cases_are_chosen_in_order(dataset: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "page.html")
    view(str(dataset / "train.txt"), cases=["case_3", "case_1"], out=out)
    assert [case["name"] for case in Viewed(tmp_path / "page.html").data["cases"]] == ["case_3", "case_1"]
    view(str(dataset / "train.txt"), cases="case_2", out=out, overwrite=True)  # type: ignore[arg-type]
    assert [case["name"] for case in Viewed(tmp_path / "page.html").data["cases"]] == ["case_2"]
    with pytest.raises(Med3dError, match=r"(?s)no case 'case_11'; did you mean 'case_1'\?.*no case 'x'"):
        view(str(dataset / "train.txt"), cases=["case_11", "x"], out=str(tmp_path / "other.html"))


def test_the_page_stays_below_its_limit(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert write_view(out, noise(tmp_path, "a", 110), limit_mb=5) == 1
    assert 3e6 < out.stat().st_size < 5e6
    (case,) = Viewed(out).data["cases"]
    shown = "Averaged over blocks of 2 x 1 x 1 voxels, classes by majority: 55 x 110 x 110 of 110 x 110 x 110 voxels."
    assert case["notes"] == [shown]


def test_cases_without_room_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "page.html"
    caplog.set_level("INFO")
    cases = noise(tmp_path, "abcdef", 60)
    assert write_view(out, cases, limit_mb=5) == 5
    page = Viewed(out)
    assert page.data["note"] == "Left out: 1 of 6 cases; --limit_mb makes room, --cases chooses."
    assert "Left out: 1 of 6 cases" in caplog.text
    assert out.stat().st_size < 5e6
    assert write_view(out, cases, limit_mb=50, overwrite=True) == 6
    assert Viewed(out).data["note"] == ""


def test_the_lowest_dice_of_an_evaluation_comes_first(dataset: Path, tmp_path: Path) -> None:
    scores = {"case_0": 0.9, "case_1": 0.5, "case_2": 0.7}
    cases = [ViewCase(name, str(dataset / "images" / f"{name}.nii.gz"), dice={"a": d}) for name, d in scores.items()]
    write_view(tmp_path / "page.html", cases, ["background", "a"])
    found = Viewed(tmp_path / "page.html").data["cases"]
    assert [(case["name"], case["dice"]) for case in found] == [("case_1", [0.5]), ("case_2", [0.7]), ("case_0", [0.9])]


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    files = write_sides(tmp_path, "straight")
    view(str(files["image"]))
    page = tmp_path / "images" / "straight_view.html"
    first = page.read_bytes()
    with pytest.raises(Med3dError, match=r"straight_view.html: exists already; replace it with --overwrite True"):
        view(str(files["image"]), label=str(files["truth"]))
    assert page.read_bytes() == first
    view(str(files["image"]), label=str(files["truth"]), overwrite=True)
    assert Viewed(page).data["cases"][0]["labels"] == ["truth"]
    assert sorted(path.name for path in page.parent.iterdir()) == ["straight.nii.gz", "straight_view.html"]


def test_all_problems_of_files_come_at_once(tmp_path: Path) -> None:
    files = write_sides(tmp_path, "straight")
    affine = AFFINES["straight"]
    high, other = tmp_path / "high.nii.gz", tmp_path / "other.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.full((20, 24, 16), 300, np.int16), affine), high)
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 24, 15), np.uint8), affine), other)
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image")
    cases = [
        ViewCase("one", str(files["image"]), str(high), str(other)),
        ViewCase("two", str(broken)),
        ViewCase("three", str(files["image"]), str(files["truth"])),
    ]
    with pytest.raises(Med3dError) as caught:
        write_view(tmp_path / "page.html", cases)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[0] == f"{high}: found the value 300 in a label map; expected whole numbers from 0 to 255, the classes"
    assert lines[1].startswith(f"{other}: found spatial shape (20, 24, 15); expected (20, 24, 16)")
    assert lines[2].startswith(f"{broken}: found an unreadable file")
    assert not (tmp_path / "page.html").exists()


def test_channels(tmp_path: Path) -> None:
    image = np.random.RandomState(0).randint(0, 200, (6, 7, 8, 2)).astype(np.int16)
    path = tmp_path / "image.nii.gz"
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), path)
    view(str(path), channel=1)
    found = Viewed(tmp_path / "image_view.html").volumes["image-0"]
    assert np.array_equal(np.asanyarray(found.dataobj), image[..., 1])
    with pytest.raises(Med3dError, match=r"found shape \(6, 7, 8, 2\); expected .* with a channel 2"):
        view(str(path), channel=2, overwrite=True)


def test_all_options_that_do_not_fit_are_told(tmp_path: Path) -> None:
    files = write_sides(tmp_path, "straight")
    wrong: dict[str, Any] = {"channel": -1, "modality": "pet", "window": [3, 1], "margin": "x", "limit_mb": 1}
    with pytest.raises(Med3dError) as caught:
        view(str(files["image"]), **wrong)
    lines = str(caught.value).splitlines()
    assert [line.split()[0] for line in lines] == [f"--{name}" for name in wrong]
    assert lines[2] == '--window is [3, 1], expected two numbers, the lower one first, such as "[-160,240]"'
