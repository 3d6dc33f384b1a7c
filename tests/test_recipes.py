"""The ``patch`` recipe: the shipped JSON, and what it calls."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE
from monai.inferers import SimpleInferer
from test_every_bundle import workflow

from med3d_nets.errors import Med3dError
from med3d_nets.recipes import FlipInferer, make_inferer, rotate_range
from med3d_nets.report_page import TrainingPage
from med3d_nets.settings import Settings, read_settings
from med3d_nets.streaming import PatchInferer

PATCH = Settings("resnet_10", "unet", "patch", 1, ["background", "one"], [16, 16, 8], spacing=[1, 1, 3])


def test_each_recipe_has_its_inferer() -> None:
    whole = replace(PATCH, recipe="whole", spacing=[])
    assert type(make_inferer(whole)) is SimpleInferer
    inferer = make_inferer(PATCH, 0.25)
    assert type(inferer) is PatchInferer
    assert (inferer.patch_size, inferer.overlap, inferer.flip_axes) == ((16, 16, 8), 0.25, [])


def test_a_region_is_answered_once_or_by_its_mirror_images_too() -> None:
    region = replace(PATCH, head="classification", recipe="region", flip_axes=[0, 2])
    assert type(make_inferer(region)) is SimpleInferer
    inferer = make_inferer(region, flips=True)
    volume = torch.arange(12.0).reshape(1, 1, 2, 2, 3)
    # The first voxel's value: of the volume itself, mirrored along the first axis, the last one, and both.
    assert inferer(volume, lambda x: x[:, :, 0, 0, 0]) == (0 + 6 + 2 + 8) / 4


def test_mirror_images_are_all_combinations_of_the_axes() -> None:
    assert sorted(FlipInferer([0, 1, 2]).flips) == [(), (2,), (2, 3), (2, 3, 4), (2, 4), (3,), (3, 4), (4,)]


@pytest.mark.parametrize(("flips", "axes"), [(False, []), (True, [0, 2]), ([2], [2]), ([], [])])
def test_flips_are_those_of_the_training(flips: bool | list[int], axes: list[int]) -> None:
    assert make_inferer(replace(PATCH, flip_axes=[0, 2]), flips=flips).flip_axes == axes


@pytest.mark.parametrize(("trained", "flips"), [([], True), ([0], [1]), ([0, 2], [0, 1])])
def test_flips_that_training_did_not_make(trained: list[int], flips: bool | list[int]) -> None:
    with pytest.raises(Med3dError, match=r"test_time_flips is .*, but training flipped volumes along"):
        make_inferer(replace(PATCH, flip_axes=trained), flips=flips)


def test_a_flat_patch_is_turned_within_its_plane() -> None:
    assert rotate_range(True, (64, 64, 16), 0.3) == [0, 0, 0.3]
    assert rotate_range(True, (16, 64, 64), 0.3) == [0.3, 0, 0]
    assert rotate_range(False, (64, 64, 16), 0.3) == [0.3, 0.3, 0.3]


@pytest.mark.parametrize(
    ("n_seg_classes", "options", "soft"), [(3, {}, True), (6, {}, False), (3, {"soft_labels": False}, False)]
)
def test_turned_labels_are_shares_of_each_class(
    n_seg_classes: int, options: dict[str, Any], soft: bool, dataset: Path, tmp_path: Path
) -> None:
    """What is turned in from outside belongs to no class. Many classes are kept as numbers, which is faster."""
    given = {"data_root": str(dataset), "n_seg_classes": n_seg_classes, "pretrain_path": "", "patch_size": [16, 16, 16]}
    places = {"ckpt_dir": str(tmp_path), "output_dir": str(tmp_path), "manual_seed": 3, **options}
    training = workflow(BUNDLE, "train", "train", "patch", **given, **places)
    data = training.parser.get_parsed_content("train::dataset")
    loss = training.parser.get_parsed_content("loss")
    patches = [data[index][0] for index in range(len(data))]
    labels = torch.stack([patch["label"] for patch in patches])
    assert patches[0]["image"].shape == (1, 16, 16, 16)
    assert torch.isfinite(loss(torch.randn(len(data), n_seg_classes, 16, 16, 16), labels))
    if not soft:
        assert labels.shape[1] == 1
        assert set(labels.unique().tolist()) <= {0, 1, 2}
        return
    assert labels.shape[1] == n_seg_classes
    total = labels.sum(dim=1)
    assert 0 <= total.min() < 0.01
    assert total.max() == pytest.approx(1, abs=1e-4)
    assert ((labels > 0.1) & (labels < 0.9)).any()


def test_patches_from_training_to_the_label_map(dataset: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUNDLE, tmp_path / "my bundles" / BUNDLE.name))
    data = {"data_root": str(dataset), "n_seg_classes": 3}
    sizes = {"patch_size": [16, 16, 8], "window_size": [16, 24, 16]}
    training = workflow(folder, "train", "train", "patch", **data, **sizes, pretrain_path="", n_epochs=1)
    assert training.check_properties() == []
    training.run_id = "training"
    training.run()
    settings = read_settings(folder / "models" / "model.json")
    assert (settings.recipe, settings.head, list(settings.input_size)) == ("patch", "unet", [16, 24, 16])
    (page,) = (each for each in training.parser.get_parsed_content("train::handlers") if isinstance(each, TrainingPage))
    assert page.best is training.parser.get_parsed_content("best")
    assert training.parser.get_parsed_content("train::dataset")[0][0]["image"].shape == (1, 16, 16, 8)
    np.testing.assert_allclose(settings.spacing, [0.8, 1.1, 2.5], atol=0.01)  # turned to RAS

    evaluation = workflow(folder, "train", "train", "evaluate", data_root=str(dataset))
    evaluation.run()
    scores = json.loads((folder / "models" / "model.json").read_text())["validation"]
    assert evaluation.evaluator.state.metrics["val_mean_dice"] == pytest.approx(scores["val_cleaned_dice"], abs=1e-5)

    image = dataset / "images" / "case_0.nii.gz"
    inference = workflow(folder, "inference", "inference", data_root=str(dataset), img_list=str(image))
    assert inference.check_properties() == []
    inference.run()
    answer, scan = nibabel.load(folder / "predictions" / "case_0_seg.nii.gz"), nibabel.load(image)
    assert answer.shape == scan.shape
    np.testing.assert_array_equal(answer.affine, scan.affine)
