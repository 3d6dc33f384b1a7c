"""The transforms of the ``whole`` recipe, and the way of a prediction back to its file's grid."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE, OBLIQUE
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import (
    AsDiscreted,
    Compose,
    CropForeground,
    CropForegroundd,
    EnsureChannelFirstd,
    LoadImaged,
    Resized,
)

from med3d_nets.settings import Settings
from med3d_nets.transforms import FillEmptyWithNoised, RandCropAroundForegroundd, RestoreGridd, not_background

SHAPE = (21, 30, 17)
BOX = ((8, 13), (3, 10), (12, 16))  # of odd and even extents; along height and width its margin meets an edge
CHAIN_SHAPE = (26, 44, 35)
INPUT_SIZE = (24, 36, 40)


def boxed(shape: tuple[int, ...] = SHAPE, box: tuple[tuple[int, int], ...] = BOX, value: float = 1.0) -> torch.Tensor:
    """A volume of zeros with a box of one value."""
    volume = torch.zeros(1, *shape)
    volume[(0, *(slice(*side) for side in box))] = value
    return volume


def numbered(shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    """A volume in which every voxel tells its place."""
    return torch.arange(math.prod(shape), dtype=torch.float32).reshape(1, *shape)


def crop_case(crop: RandCropAroundForegroundd, box: tuple[tuple[int, int], ...] = BOX) -> dict[str, Any]:
    return crop({"image": MetaTensor(numbered()), "label": MetaTensor(boxed(box=box)), "name": "case"})


def limits(image: torch.Tensor) -> list[tuple[int, int]]:
    """Start and end of a crop of :func:`numbered`, per axis."""
    first, last = (np.unravel_index(int(image.flatten()[index]), SHAPE) for index in (0, -1))
    return [(int(low), int(high) + 1) for low, high in zip(first, last, strict=True)]


def dice(found: np.ndarray, expected: np.ndarray, value: int) -> float:
    found, expected = found == value, expected == value
    return float(2 * (found & expected).sum() / (found.sum() + expected.sum()))


def test_background_is_the_value_of_the_first_voxel():
    volume = boxed(value=5.0) - 1000
    assert torch.equal(not_background(volume), boxed() > 0)
    volume[0, 20, 29, 16] = 0  # another value in another corner is not background
    assert not_background(volume).sum() == (boxed() > 0).sum() + 1


def test_each_channel_has_its_own_background():
    volume = torch.cat([boxed(value=2.0), 7 - boxed()])
    assert torch.equal(not_background(volume), torch.cat([boxed(), boxed()]) > 0)
    volume[1] = 7.0
    assert torch.equal(not_background(volume), torch.cat([boxed(), torch.zeros(1, *SHAPE)]) > 0)


def test_constant_volume_has_no_background():
    assert not_background(torch.full((2, 3, 4, 5), 3.0)).all()
    assert CropForeground(select_fn=not_background)(torch.full((1, 3, 4, 5), 3.0)).shape == (1, 3, 4, 5)


@pytest.mark.parametrize("box", [BOX, ((0, 21), (14, 15), (5, 6)), ((18, 21), (0, 3), (16, 17))])
def test_crop_keeps_half_of_the_extent_on_each_side(box: tuple[tuple[int, int], ...]):
    crop = RandCropAroundForegroundd(["image", "label"])
    drawn = []
    for seed in range(200):
        case = crop_case(crop.set_random_state(seed), box)
        drawn.append(limits(case["image"]))
        assert case["label"].sum() == boxed(box=box).sum()
        for (start, end), (first, last), size in zip(drawn[-1], box, SHAPE, strict=True):
            half = (last - first) / 2
            assert 0 <= start <= max(0, first - half)
            assert min(size, last + half) <= end <= size
    for axis, ((first, last), size) in enumerate(zip(box, SHAPE, strict=True)):
        half = (last - first) / 2
        starts, ends = ({limit[axis][side] for limit in drawn} for side in (0, 1))
        assert starts == set(range(math.ceil(first - half))) or starts == {0}
        assert ends == set(range(math.floor(last + half) + 1, size + 1)) or ends == {size}


def test_crop_is_the_same_for_image_and_label():
    crop = RandCropAroundForegroundd(["image", "label"]).set_random_state(3)
    case = crop_case(crop)
    window = tuple(slice(*limit) for limit in limits(case["image"]))
    assert case["image"].shape[1:] != SHAPE
    assert torch.equal(case["image"].as_tensor(), numbered()[(0, *window)][None])
    assert torch.equal(case["label"].as_tensor(), boxed()[(0, *window)][None])
    assert case["image"].affine[:3, 3].tolist() == [window[axis].start for axis in range(3)]
    assert case["name"] == "case"


def test_crop_depends_on_the_random_state_alone():
    crop = RandCropAroundForegroundd(["image", "label"])
    once, again = ([limits(crop_case(crop)["image"]) for _ in range(5)] for _ in (crop.set_random_state(7),) * 2)
    assert once != again  # the state went on
    crop.set_random_state(7)
    assert [limits(crop_case(crop)["image"]) for _ in range(5)] == once
    assert len({str(limit) for limit in once}) > 1


def test_empty_label_leaves_the_volume_whole():
    image, label = MetaTensor(numbered()), MetaTensor(torch.zeros(1, *SHAPE))
    case = RandCropAroundForegroundd(["image", "label"])({"image": image, "label": label})
    assert case["image"] is image
    assert case["label"] is label


def fill(volume: torch.Tensor) -> torch.Tensor:
    return FillEmptyWithNoised("image")({"image": volume})["image"]


def test_only_zeros_are_filled():
    volume = boxed((40, 30, 30), ((3, 20), (2, 9), (4, 8)), 2.5)
    filled, before = fill(volume), volume.clone()
    assert torch.equal(volume, before)
    assert torch.equal(filled[volume != 0], volume[volume != 0])
    noise = filled[volume == 0]
    assert (noise != 0).all()
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    assert len(noise.unique()) > 0.99 * len(noise)
    assert filled.dtype == volume.dtype


def test_noise_depends_on_the_volume_alone():
    one, other = boxed(), boxed(value=2.0)
    first = fill(one)
    np.random.seed(0)
    torch.manual_seed(0)
    assert torch.equal(fill(one.clone()), first)
    empty = (one == 0) & (other == 0)
    assert not torch.isclose(fill(other)[empty], first[empty]).any(dim=0).all()
    assert abs(float(np.corrcoef(fill(other)[empty], first[empty])[0, 1])) < 0.05


def test_filling_keeps_what_inverting_needs():
    volume = CropForegroundd("image", "image")({"image": MetaTensor(boxed(), affine=torch.as_tensor(OBLIQUE))})["image"]
    volume[0, 0, 0, 0] = 0
    filled = fill(volume)
    assert isinstance(filled, MetaTensor)
    assert torch.equal(filled.affine, volume.affine)
    assert len(filled.applied_operations) == len(volume.applied_operations) == 1


def restore(pred_shape: tuple[int, ...]) -> dict[str, Any]:
    meta = {"original_affine": OBLIQUE, "spatial_shape": np.array(SHAPE), "filename_or_obj": "a.nii.gz"}
    image = MetaTensor(torch.zeros(1, 2, 2, 2), affine=torch.eye(4), meta=meta)
    pred = MetaTensor(torch.rand(pred_shape), affine=torch.as_tensor(OBLIQUE) + 1e-9)
    return {"before": pred, **RestoreGridd("pred")({"image": image, "pred": pred})}


def test_restored_affine_is_exact():
    case = restore((1, *SHAPE))
    assert not np.array_equal(case["before"].affine.numpy(), OBLIQUE)
    assert np.array_equal(case["pred"].affine.numpy(), OBLIQUE)
    assert torch.equal(case["pred"].as_tensor(), case["before"].as_tensor())
    assert case["pred"].meta["filename_or_obj"] == "a.nii.gz"
    assert torch.equal(case["image"].affine, torch.eye(4, dtype=torch.float64))


def test_restoring_another_shape_is_refused():
    with pytest.raises(RuntimeError, match=r"'pred' has the shape \(21, 30, 16\), its image \(21, 30, 17\)"):
        restore((1, 21, 30, 16))


def ellipsoid(center: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    steps = [(np.arange(n) - c) / r for n, c, r in zip(CHAIN_SHAPE, center, radii, strict=True)]
    return sum(step**2 for step in np.meshgrid(*steps, indexing="ij")) <= 1


@pytest.fixture(scope="module")
def oblique_case(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of an image with margins of background of different widths, and of its label map."""
    folder = tmp_path_factory.mktemp("oblique")
    label = np.zeros(CHAIN_SHAPE, np.uint8)
    label[ellipsoid((9, 16, 14), (6, 9, 8))] = 1
    label[ellipsoid((18, 30, 23), (5, 8, 7))] = 2
    image = np.zeros(CHAIN_SHAPE, np.float32)
    inside = (slice(2, 25), slice(5, 42), slice(4, 32))
    image[inside] = (np.random.RandomState(0).normal(100, 5, CHAIN_SHAPE) + 60.0 * label)[inside]
    paths = {name: folder / f"{name}.nii.gz" for name in ("image", "label")}
    for name, volume in (("image", image), ("label", label)):
        nibabel.save(nibabel.Nifti1Image(volume, OBLIQUE), paths[name])
    return paths


def inference_steps(paths: dict[str, Path], folder: Path, fill_empty_with_noise: bool) -> tuple[Compose, Compose]:
    """What the shipped ``inference.json`` does before and after the network."""
    settings = Settings("resnet_10", "medicalnet", "whole", 1, ["background", "a", "b"], INPUT_SIZE)
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.json"))
    parser["ckpt_dir"], parser["output_dir"] = str(folder), str(folder / "out")
    parser["img_list"] = [str(paths["image"])]
    record = {"fill_empty_with_noise": fill_empty_with_noise}
    (folder / "model.json").write_text(settings.to_json(**record))
    after = Compose([parser.get_parsed_content("postprocessing"), parser.get_parsed_content("saver")])
    return parser.get_parsed_content("preprocessing"), after


def logits_of_label(paths: dict[str, Path]) -> MetaTensor:
    """What a perfect network would answer: the label map through the image's spatial steps."""
    both = ["image", "label"]
    steps = Compose(
        [
            LoadImaged(both),
            EnsureChannelFirstd(both),
            CropForegroundd(both, source_key="image", select_fn=not_background),
            AsDiscreted("label", to_onehot=3),
            Resized("label", spatial_size=INPUT_SIZE, mode="trilinear"),
        ]
    )
    return MetaTensor(20 * steps(dict(paths))["label"].as_tensor())


@pytest.mark.parametrize("fill_empty_with_noise", [False, True])
def test_prediction_returns_to_the_grid_of_its_file(
    oblique_case: dict[str, Path], tmp_path: Path, fill_empty_with_noise: bool
):
    before, after = inference_steps(oblique_case, tmp_path, fill_empty_with_noise)
    image = before({"image": str(oblique_case["image"])})["image"]
    assert image.shape == (1, *INPUT_SIZE)
    pred = after({"image": image, "pred": logits_of_label(oblique_case)})["pred"]

    label = nibabel.load(oblique_case["label"])
    expected = np.asarray(label.dataobj)
    assert pred.shape == (1, *CHAIN_SHAPE)
    assert np.array_equal(pred.affine.numpy(), label.affine)
    saved = nibabel.load(tmp_path / "out" / "image_seg.nii.gz")
    found = np.asarray(saved.dataobj)
    assert found.shape == CHAIN_SHAPE
    assert found.dtype == np.uint8
    assert np.array_equal(saved.affine, label.affine)
    assert np.array_equal(found, pred.numpy()[0])
    for value in (1, 2):
        assert dice(found, expected, value) > 0.9
        for axis in range(3):  # the label map is no mirror image of itself
            assert dice(np.flip(expected, axis), expected, value) < 0.9
