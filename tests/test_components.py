"""The largest-component clean-up, and the choice of classes that it helps."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import OBLIQUE
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers import MeanDice, from_engine
from monai.transforms import AsDiscrete

from med3d_nets import components
from med3d_nets.components import ComponentChoice, KeepLargestComponentd, smaller_components
from med3d_nets.errors import Med3dError

SHAPE = (9, 12, 10)
NAMES = ["background", "liver", "tumour"]


def label_map(*boxes: tuple[int, tuple[int, int, int], int]) -> np.ndarray:
    """Label map with cubes of ``(class, first voxel, size)``."""
    volume = np.zeros(SHAPE, np.uint8)
    for number, start, size in boxes:
        volume[tuple(slice(first, first + size) for first in start)] = number
    return volume


def clean(volume: np.ndarray, classes: list[int], dtype: torch.dtype = torch.uint8) -> np.ndarray:
    given = torch.from_numpy(volume)[None].to(dtype)
    result = KeepLargestComponentd("pred", classes)({"pred": given})["pred"]
    assert result.dtype == dtype
    assert np.array_equal(given[0].numpy(), volume), "the given volume changed"
    return result[0].numpy()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_smaller_components_become_background(dtype: torch.dtype):
    volume = label_map((1, (0, 0, 0), 3), (1, (5, 5, 5), 2), (1, (8, 11, 9), 1), (2, (5, 0, 0), 2), (2, (0, 9, 0), 1))
    expected = label_map((1, (0, 0, 0), 3), (2, (5, 0, 0), 2), (2, (0, 9, 0), 1))
    assert np.array_equal(clean(volume, [1], dtype), expected)
    expected[0, 9, 0] = 0
    assert np.array_equal(clean(volume, [2, 1], dtype), expected)


def test_corners_connect_and_other_classes_do_not():
    volume = label_map((1, (0, 0, 0), 2), (1, (2, 2, 2), 1), (2, (3, 3, 3), 3), (1, (6, 6, 6), 1))
    assert np.array_equal(clean(volume, [1]), label_map((1, (0, 0, 0), 2), (1, (2, 2, 2), 1), (2, (3, 3, 3), 3)))


def test_largest_is_by_voxels_and_the_first_among_equals():
    volume = label_map((1, (0, 0, 0), 2), (1, (4, 4, 4), 2))
    volume[8, :, 9] = 1  # twelve voxels in a line
    assert np.array_equal(np.argwhere(clean(volume, [1]))[:, 0], np.full(12, 8))
    volume[8] = 0
    assert np.array_equal(clean(volume, [1]), label_map((1, (0, 0, 0), 2)))


@pytest.mark.parametrize("classes", [[], [1], [1, 2, 7]])
def test_nothing_to_remove(classes: list[int]):
    for volume in (label_map(), label_map((1, (2, 3, 4), 3))):
        assert np.array_equal(clean(volume, classes), volume)


def test_random_volume_against_a_flood_fill():
    mask = np.random.RandomState(0).rand(8, 9, 10) < 0.12
    left, parts = {tuple(voxel) for voxel in np.argwhere(mask)}, []
    while left:
        part, queue = set(), [left.pop()]
        while queue:
            voxel = queue.pop()
            part.add(voxel)
            near = {other for other in left if max(abs(a - b) for a, b in zip(voxel, other, strict=True)) == 1}
            left -= near
            queue += near
        parts.append(part)
    largest = max(parts, key=len)
    assert len(parts) > 3
    assert {tuple(voxel) for voxel in np.argwhere(mask & ~smaller_components(mask))} == largest


def test_meta_data_stay():
    volume = label_map((1, (0, 0, 0), 3), (1, (5, 5, 5), 2))
    given = MetaTensor(torch.from_numpy(volume)[None], affine=OBLIQUE, meta={"filename_or_obj": "a.nii.gz"})
    data = {"pred": given, "image": 5}
    result = KeepLargestComponentd("pred", [1])(data)
    assert result["image"] == 5
    assert isinstance(result["pred"], MetaTensor)
    assert result["pred"].meta["filename_or_obj"] == "a.nii.gz"
    assert np.array_equal(result["pred"].affine, OBLIQUE)
    assert int(result["pred"].sum()) == 27
    assert int(given.sum()) == 35
    assert data["pred"] is given


def test_labels_only_the_box_of_the_class(monkeypatch: pytest.MonkeyPatch):
    shapes = []
    monkeypatch.setattr(
        components, "smaller_components", lambda mask: shapes.append(mask.shape) or np.zeros(mask.shape, bool)
    )
    clean(label_map((1, (5, 5, 5), 2), (1, (8, 8, 8), 1), (2, (0, 0, 0), 1)), [1, 2])
    assert shapes == [(4, 4, 4), (1, 1, 1)]


@pytest.mark.parametrize("classes", [[0], [-1], [1.0], [True], "12", 1, None])
def test_wrong_classes_are_refused(classes: Any):
    with pytest.raises(Med3dError, match=r"classes is .*, expected a list of class numbers from 1 on"):
        KeepLargestComponentd("pred", classes)


def test_one_hot_volume_is_refused():
    with pytest.raises(ValueError, match=r"'pred' has the shape \(2, 3, 3, 3\), expected \(1, depth, height, width\)"):
        KeepLargestComponentd("pred", [1])({"pred": torch.zeros(2, 3, 3, 3)})


Case = tuple[np.ndarray, np.ndarray]
TRUTH = label_map((1, (0, 0, 0), 4), (2, (5, 5, 5), 2))
SPECKLED = label_map((1, (0, 0, 0), 4), (1, (8, 11, 9), 1), (2, (5, 5, 5), 2))
"""Class 1 gains by the clean-up, class 2 has nothing to lose."""
SPLIT = label_map((1, (0, 0, 0), 4), (2, (5, 5, 5), 2))
SPLIT[5, 5, 6:8] = SPLIT[6, 6, 5:7] = 0
SPLIT[8, 8, :] = 2  # a false line that is larger than what is left of the true part


def validate(*cases: Case, mode: Any = "auto", choice: ComponentChoice | None = None) -> tuple[ComponentChoice, Engine]:
    """The choice after a validation of these cases of ``(prediction, truth)``."""
    choice = choice or ComponentChoice(NAMES, mode)
    one_hot = AsDiscrete(to_onehot=3)
    engine = Engine(lambda engine, batch: batch)
    MeanDice(include_background=False, output_transform=from_engine(["pred", "label"])).attach(engine, "val_mean_dice")
    choice.attach(engine)
    pairs = [[one_hot(MetaTensor(torch.from_numpy(volume)[None])) for volume in case] for case in cases]
    engine.run([[{"pred": pred, "label": label}] for pred, label in pairs])
    return choice, engine


def dice_with(classes: list[int], *cases: Case) -> float:
    """MONAI's mean Dice of the cases after the transform."""
    cleaned = [(clean(pred, classes), truth) for pred, truth in cases]
    return validate(*cleaned, mode=False)[1].state.metrics["val_mean_dice"]


def test_class_that_gains_is_kept(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    choice, engine = validate((SPECKLED, TRUTH), (TRUTH, TRUTH))
    assert choice.classes == [1]
    assert engine.state.metrics["val_mean_dice"] < 1
    assert engine.state.metrics["val_cleaned_dice"] == 1
    before = (128 / 129 + 1) / 2
    assert [record.getMessage() for record in caplog.records if record.name == "med3d_nets.components"] == [
        f"largest component: liver {before:.4f} -> 1.0000 kept, tumour 1.0000 -> 1.0000 not kept"
    ]


def test_what_was_found_is_a_setting():
    choice, _ = validate((SPECKLED, TRUTH))
    found = choice.found
    assert found == {"largest_component": [1]}
    validate((TRUTH, TRUTH), choice=choice)
    assert choice.found == {"largest_component": []}
    assert found == {"largest_component": [1]}
    assert ComponentChoice(NAMES, [2]).found == {"largest_component": [2]}


def test_class_that_loses_is_not_kept():
    cases = ((SPECKLED, TRUTH), (SPLIT, TRUTH))
    choice, engine = validate(*cases)
    assert choice.classes == [1]
    assert engine.state.metrics["val_cleaned_dice"] == pytest.approx(dice_with([1], *cases), abs=1e-6)
    assert dice_with([1, 2], *cases) < engine.state.metrics["val_cleaned_dice"]


def noisy(seed: int) -> Case:
    """A prediction with noise over a truth."""
    random = np.random.RandomState(seed)
    truth = label_map((1, (0, 0, 0), 4 - seed % 2), (2, (5, 5, 5), seed % 4))
    return np.where(random.rand(*SHAPE) < 0.04, random.randint(0, 3, SHAPE), truth).astype(np.uint8), truth


@pytest.mark.parametrize(("mode", "classes"), [(True, [1, 2]), (False, []), ([2], [2]), ([2, 1], [1, 2]), ([], [])])
def test_given_classes_are_kept_whatever_they_do(mode: Any, classes: list[int], caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    cases = [(SPLIT, TRUTH), *map(noisy, range(5))]  # of seeds 0 and 4 the truth lacks class 2
    choice, engine = validate(*cases, mode=mode)
    assert choice.classes == classes
    assert engine.state.metrics["val_cleaned_dice"] == pytest.approx(dice_with(classes, *cases), abs=1e-6)
    texts = [record.getMessage() for record in caplog.records if record.name == "med3d_nets.components"]
    assert [text.count(" kept") for text in texts[:1]] == ([len(classes)] if classes else [])
    assert not any("not kept" in text for text in texts)


def test_a_rise_in_few_cases_does_not_outvote_losses_in_more():
    """One large gain raises the mean, but two of three cases get worse."""
    truth, parts = label_map((1, (0, 0, 0), 4)), label_map((1, (0, 0, 0), 4), (1, (6, 6, 6), 1))
    false = truth.copy()
    false[4:9:2, 6:] = 1  # three plates, each a little smaller than the true part
    gain, loss = (false, truth), (parts, parts)
    assert validate(gain, loss)[0].classes == [1]
    choice, engine = validate(gain, loss, loss)
    assert choice.classes == []
    assert engine.state.metrics["val_cleaned_dice"] == pytest.approx(engine.state.metrics["val_mean_dice"])
    assert dice_with([1], gain, loss, loss) > engine.state.metrics["val_mean_dice"]


def test_a_rise_below_the_limit_does_not_count(monkeypatch: pytest.MonkeyPatch):
    cases = [(SPECKLED, TRUTH)] + [(TRUTH, TRUTH)] * 3
    rise = (1 - 128 / 129) / 4
    monkeypatch.setattr(components, "LEAST_GAIN", rise * 1.01)
    assert validate(*cases)[0].classes == []
    monkeypatch.setattr(components, "LEAST_GAIN", rise * 0.99)
    assert validate(*cases)[0].classes == [1]


def test_each_validation_is_on_its_own():
    choice, _ = validate((SPECKLED, TRUTH))
    assert choice.classes == [1]
    validate((TRUTH, TRUTH), choice=choice)
    assert choice.classes == []
    assert len(choice.scores) == 1


def test_class_in_no_label_and_no_prediction():
    truth = label_map((1, (0, 0, 0), 4))
    choice, engine = validate((SPECKLED, truth), (truth, truth), (label_map(), truth), (truth, label_map()))
    assert choice.classes == [1]
    assert engine.state.metrics["val_cleaned_dice"] == pytest.approx(2 / 3)
    _, engine = validate((truth, label_map()))
    assert math.isnan(engine.state.metrics["val_cleaned_dice"])


def test_cases_of_other_processes_count(monkeypatch: pytest.MonkeyPatch):
    elsewhere, _ = validate((SPECKLED, TRUTH))
    monkeypatch.setattr(components, "gather_shares", lambda items: [items, elsewhere.scores])
    choice, engine = validate((TRUTH, TRUTH))
    assert choice.classes == [1]
    assert engine.state.metrics["val_cleaned_dice"] == 1


@pytest.mark.parametrize("mode", ["yes", "Auto", None, 1, 0, 0.5, [0], [3], ["1"], [1, 1.0], {1: 2}])
def test_other_modes_are_refused(mode: Any):
    with pytest.raises(Med3dError, match=r"largest_component is .*, expected .*class numbers from 1 to 2"):
        ComponentChoice(NAMES, mode)
