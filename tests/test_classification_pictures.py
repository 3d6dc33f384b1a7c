"""Which cases are shown, and which slices of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from med3d_nets.classification.page import CasePrediction
from med3d_nets.classification.pictures import CasePictures, choose_cases, cut_axial
from med3d_nets.classification.volumes import CropRegiond, LoadVolumed, name_case
from med3d_nets.errors import Med3dError

FOLDER = "/data/images"
CASES = [
    {"image": f"{FOLDER}/a.nii.gz"},
    {"image": f"{FOLDER}/b.nii.gz", "center": [1.0, 2.0, 3.5], "size_mm": 20.0},
    {"image": f"{FOLDER}/b.nii.gz", "center": [9.0, 2.0, 3.5], "size_mm": 20.0},
    {"image": "/data/other/c a.nii.gz", "mask": "/data/masks/m.nii.gz"},
    {"image": "/data/other/a.nii.gz"},
    {"image": "/data/x.npz::test_images::12"},
]
NAMES = [
    f"{FOLDER}/a.nii.gz",
    f"{FOLDER}/b.nii.gz [1 2 3.5, 20 mm]",
    f"{FOLDER}/b.nii.gz [9 2 3.5, 20 mm]",
    "/data/other/c a.nii.gz [../masks/m.nii.gz]",
    "/data/other/a.nii.gz",
    "/data/x.npz::test_images::12",
]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], []),
        ("", []),
        (f"{FOLDER}/a.nii.gz", [0]),
        (["images/a.nii.gz"], [0]),
        (["./images//a.nii.gz"], [0]),
        (["c a.nii.gz", "images/a.nii.gz", "c a.nii.gz"], [3, 0]),
        (["b.nii.gz"], [1, 2]),
        (["b.nii.gz [9 2 3.5, 20 mm]"], [2]),
        (["x.npz::test_images::12"], [5]),
        (("c a.nii.gz [../masks/m.nii.gz]", "other/a.nii.gz"), [3, 4]),
    ],
)
def test_cases_are_chosen_by_their_names(names: Any, expected: list[int]) -> None:
    assert choose_cases(CASES, names) == [NAMES[index] for index in expected]


def test_names_may_be_relative_to_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    image = str(tmp_path / "there" / "a.nii.gz")
    assert choose_cases([{"image": image}], ["../there/a.nii.gz"]) == [image]


@pytest.mark.parametrize("kind", ["whole", "center", "mask"])
def test_names_are_those_of_the_volumes_that_are_read(tmp_path: Path, kind: str) -> None:
    for name in ("a.nii.gz", "m.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(np.ones((9, 9, 9), np.float32), np.eye(4)), tmp_path / name)
    case: dict[str, Any] = {"image": str(tmp_path / "a.nii.gz")}
    case |= {"whole": {}, "center": {"center": [4.0, 4.25, 4.0], "size_mm": 3.0}, "mask": {}}[kind]
    if kind == "mask":
        case["mask"] = str(tmp_path / "m.nii.gz")
    read = CropRegiond("image")(LoadVolumed("image")(case))
    assert choose_cases([case], ["a.nii.gz"]) == [name_case(read["image"])]


def test_names_without_a_case_or_with_several_are_told_together() -> None:
    with pytest.raises(Med3dError) as caught:
        choose_cases(CASES, ["a.nii.gz", "images/z.nii.gz", "ages/a.nii.gz"])
    assert str(caught.value) == (
        f"shown_cases: found 'a.nii.gz' at the end of 2 images, such as {FOLDER}/a.nii.gz and /data/other/a.nii.gz; "
        "expected one: give more of its path; "
        "found no case 'images/z.nii.gz'; expected one of the 6 to evaluate, such as a.nii.gz; "
        "found no case 'ages/a.nii.gz'; expected one of the 6 to evaluate, such as a.nii.gz"
    )


@pytest.mark.parametrize("names", [3, [3], [""], None, {"a": 1}])
def test_option_that_is_no_list_of_names(names: Any) -> None:
    with pytest.raises(Med3dError, match=r"shown_cases is .*, expected images' paths in a list"):
        choose_cases(CASES, names)


def prediction(name: str, loss: float) -> CasePrediction:
    return CasePrediction(name, 0.0, (loss,))


def volume(value: float = 0.0) -> MetaTensor:
    """Axes to the left, the head and the front; each voxel tells its place."""
    affine = torch.tensor([[-2.0, 0, 0, 0], [0, 0, 1.0, 0], [0, 4.0, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    return MetaTensor(torch.arange(60.0).reshape(1, 3, 4, 5) + value, affine=affine)


def test_the_most_wrong_and_the_chosen_are_kept() -> None:
    pictures = CasePictures(2, ["b"])
    for name, loss in {"a": 3.0, "b": 0.5, "c": 1.0, "d": 3.0, "e": 2.0}.items():
        pictures.keep(prediction(name, loss), volume(loss))
    assert set(pictures.kept) == {"a", "b", "d"}
    found = dict(pictures.cut({"a", "b", "c"}))
    assert set(found) == {"a", "b"}
    assert found["a"][0].min() - found["b"][0].min() == 2.5


def test_cases_are_explained_where_they_are_cut() -> None:
    asked: list[float] = []

    def explain(case: Any) -> dict[str, Any]:
        asked.append(float(case["pred"]))
        return {"saliency": case["image"]}

    pictures = CasePictures(2, explain=explain)
    for name, loss in {"a": 1.0, "b": 2.0, "c": 3.0}.items():
        pictures.keep(prediction(name, loss), volume())
    assert asked == []
    ((name, (_, saliency, _)),) = pictures.cut({"c"})
    assert (name, asked) == ("c", [3.0])
    assert saliency is not None


def test_what_is_kept_is_not_a_view_of_its_batch() -> None:
    batch = torch.zeros(8, 1, 3, 4, 5)
    pictures = CasePictures(1)
    pictures.keep(prediction("a", 1.0), MetaTensor(batch)[0])
    batch += 1
    assert not pictures.kept["a"][1].any()


def test_slice_is_axial_and_lies_as_a_radiologist_looks_at_it() -> None:
    picture, saliency, aspect = cut_axial(volume())
    values = volume()[0].numpy()
    # The middle along the second axis; rows from the front, 1 mm high, columns from the patient's right, 2 mm wide.
    assert np.array_equal(picture, values[:, 2].T[::-1])
    assert (saliency, aspect) == (None, 0.5)


@pytest.mark.parametrize("place", [0, 3])
def test_slice_is_where_the_saliency_is(place: int) -> None:
    found = torch.zeros(1, 3, 4, 5)
    found[0, :, place] = 0.4
    found[0, 1, 2, 1] = 1.0  # the highest value, but not the highest sum
    picture, saliency, _ = cut_axial(volume(), found)
    assert np.array_equal(picture, volume()[0].numpy()[:, place].T[::-1])
    assert saliency == pytest.approx(np.full((5, 3), 0.4))


def test_padding_is_not_shown_however_salient() -> None:
    image, found = volume(), torch.zeros(1, 3, 4, 5)
    image[0, :, 3] = -1
    found[0, :, 3] = 1.0
    found[0, :, 1] = 0.1
    picture, saliency, _ = cut_axial(image, found)
    assert np.array_equal(picture, image[0].numpy()[:, 1].T[::-1])
    assert saliency == pytest.approx(np.full((5, 3), 0.1))


def test_empty_saliency_leaves_the_middle() -> None:
    picture, saliency, _ = cut_axial(volume(), torch.zeros(1, 3, 4, 5))
    assert np.array_equal(picture, cut_axial(volume())[0])
    assert saliency is not None
    assert not saliency.any()


def test_affine_without_volume_is_drawn_all_the_same() -> None:
    flat = MetaTensor(torch.rand(2, 3, 4, 5), affine=torch.zeros(4, 4, dtype=torch.float64))
    picture, _, aspect = cut_axial(flat)
    assert (picture.shape, aspect) == ((4, 3), 1.0)
