"""Targets, losses, orders and mixtures of a classifier's training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from ignite import distributed as idist
from monai.data import Dataset, MetaTensor
from torch import Tensor

from med3d_nets.classification.settings import ClassifierSettings
from med3d_nets.classification.training import (
    BalancedSampler,
    PrepareTargets,
    RestoreNumberd,
    make_loss,
    make_sampler,
    target_scale,
)
from med3d_nets.errors import Med3dError

FACTS = ("resnet_10", "classification", "region", 1)
CLASSES = ClassifierSettings(*FACTS, ["a", "b", "c"], [8, 8, 8], spacing=[1, 1, 1])
TARGET = {"mean": 60.0, "std": 8.0}
NUMBER = ClassifierSettings(*FACTS, ["age"], [8, 8, 8], spacing=[1, 1, 1], task="regression", target=TARGET)


def items(labels: Iterable[float]) -> list[dict[str, Any]]:
    return [{"label": label} for label in labels]


CASES = items([0] * 6 + [1] * 3 + [2])


def test_scale_of_the_numbers_is_that_of_the_training_cases() -> None:
    assert target_scale("regression", items([1.0, 2.0, 3.0, 6.0])) == pytest.approx({"mean": 3, "std": math.sqrt(3.5)})
    years = target_scale("regression", items([2000000.25, 2000000.75]))
    assert years == {"mean": 2000000.5, "std": 0.25}
    assert target_scale("classification", CASES) is None


def test_numbers_must_vary() -> None:
    assert np.std([0.1] * 3) > 0  # as floating point has it
    with pytest.raises(Med3dError, match=r"^found 0.1 as the number of all 3 training cases; expected some that vary$"):
        target_scale("regression", items([0.1] * 3))


LOGITS = torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]])
ONE_HOT = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("given", "weights"),
    [("none", [1, 1, 1]), ("balanced", [10 / 18, 10 / 9, 10 / 3]), ([1, 0, 2.5], [1, 0, 2.5]), ((0, 0, 1), [0, 0, 1])],
)
@pytest.mark.parametrize("smoothing", [0, 0.3])
def test_loss_is_a_weighted_mean_over_the_cases(given: Any, weights: list[float], smoothing: float) -> None:
    loss = make_loss(CLASSES, CASES, given, smoothing)(LOGITS, ONE_HOT)
    targets = ONE_HOT * (1 - smoothing) + smoothing / 3
    expected = -(torch.tensor(weights) * targets * LOGITS.log_softmax(1)).sum(1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_balanced_weights_are_one_on_average_over_the_cases() -> None:
    weights = make_loss(CLASSES, CASES, "balanced").weight
    assert weights[[case["label"] for case in CASES]].mean().item() == pytest.approx(1)
    assert (weights * torch.tensor([6, 3, 1])).tolist() == pytest.approx([10 / 3] * 3)


def test_loss_of_numbers_forgives_outliers() -> None:
    loss = make_loss(NUMBER, items([1.0, 2.0]))
    assert loss(torch.tensor([[0.5], [3.0]]), torch.zeros(2, 1)).item() == pytest.approx((0.125 + 2.5) / 2)


@pytest.mark.parametrize(
    "weights", ["equal", [1, 2], [1, 2, 3, 4], [0, 0, 0], [1, -1, 1], [1, math.nan, 1], [1, math.inf, 1], ["1"] * 3, 3]
)
def test_wrong_class_weights(weights: Any) -> None:
    with pytest.raises(Med3dError, match=r"^class_weights is .*, expected none, balanced or 3 weights for a, b, c$"):
        make_loss(CLASSES, CASES, weights)


@pytest.mark.parametrize("smoothing", [-0.1, 1, True, "some", math.nan])
def test_wrong_smoothing(smoothing: Any) -> None:
    with pytest.raises(Med3dError, match=r"^label_smoothing is .*, expected a share from 0 to below 1$"):
        make_loss(CLASSES, CASES, smoothing=smoothing)


@pytest.mark.parametrize(("weights", "smoothing"), [("balanced", 0.0), ([1.0], 0.0), ("none", 0.1)])
def test_numbers_have_no_classes(weights: Any, smoothing: float) -> None:
    with pytest.raises(Med3dError, match=f"^class_weights is .* and label_smoothing {smoothing}; a regression has no"):
        make_loss(NUMBER, items([1.5, 2.5]), weights, smoothing)


LABELS = [0] * 270 + [1] * 20 + [2] * 10


def draw(seed: int, epoch: int, labels: list[int] = LABELS) -> list[int]:
    sampler = BalancedSampler(Dataset(items(labels)), labels, seed)
    sampler.set_epoch(epoch)
    drawn = list(sampler)
    assert len(drawn) == len(sampler)
    return drawn


def test_classes_are_drawn_equally_often() -> None:
    drawn = [index for epoch in range(20) for index in draw(1, epoch)]
    assert len(drawn) == 20 * 300
    counts = Counter(LABELS[index] for index in drawn)
    assert all(abs(counts[label] - 2000) < 5 * math.sqrt(6000 * 2 / 9) for label in range(3))
    assert set(drawn) == set(range(300))


def test_draw_depends_on_the_seed_and_the_epoch_alone() -> None:
    once = draw(1, 3)
    torch.manual_seed(99)
    assert draw(1, 3) == once
    assert draw(1, 4) != once
    assert draw(2, 3) != once


def test_processes_deal_one_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw(1, 3)
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(idist, "get_rank", lambda rank=rank: rank)
        shares.append(draw(1, 3))
        assert len(draw(1, 3, LABELS[:-1])) == 150  # as many for each
    assert [index for pair in zip(*shares, strict=True) for index in pair] == whole


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_shuffled_order_has_every_case_once(task: str) -> None:
    sampler = make_sampler(Dataset(CASES), CASES, 1, task=task)
    first, second = list(sampler), sampler.set_epoch(1) or list(sampler)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_balanced_order() -> None:
    sampler = make_sampler(Dataset(CASES), CASES, 5, "balanced", "classification")
    assert isinstance(sampler, BalancedSampler)
    sampler.set_epoch(2)
    assert list(sampler) == draw(5, 2, [case["label"] for case in CASES])


@pytest.mark.parametrize(
    ("sampler", "task", "known"),
    [("weighted", "classification", "shuffle or balanced"), ("balanced", "regression", "shuffle")],
)
def test_wrong_order(sampler: str, task: str, known: str) -> None:
    with pytest.raises(Med3dError, match=f"^sampler is '{sampler}', expected {known}$"):
        make_sampler(Dataset(CASES), CASES, 1, sampler, task)


def painted(labels: list[int]) -> dict[str, Tensor]:
    """A batch whose channels say the class, everywhere."""
    one_hot = torch.eye(3)[labels]
    return {"image": one_hot[:, :, None, None, None].expand(-1, -1, 2, 3, 4), "label": torch.tensor(labels)}


def mix(mixup: float, numbers: int, order: int, labels: list[int]) -> tuple[Tensor, Tensor]:
    """Images and targets with these seeds of the weight and of the partners."""
    np.random.seed(numbers)
    torch.manual_seed(order)
    return PrepareTargets(CLASSES, mixup)(painted(labels), "cpu", non_blocking=True)


def test_classes_become_one_hot() -> None:
    images, targets = mix(0, 1, 1, [2, 0])
    assert torch.equal(images, painted([2, 0])["image"])
    assert targets.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert targets.dtype == torch.float32


def test_numbers_are_scaled() -> None:
    numbers = torch.tensor([60.0, 76.0, 52.0], dtype=torch.float64)
    batch = {"image": numbers.float()[:, None, None, None, None], "label": numbers}
    targets = PrepareTargets(NUMBER)(batch)[1]
    assert targets.tolist() == [[0], [2], [-1]]
    assert targets.dtype == torch.float32
    images, mixed = PrepareTargets(NUMBER, 0.4)(batch)
    assert torch.allclose(mixed, (images.flatten(1) - 60) / 8, atol=1e-5)


def test_mixup_mixes_images_and_targets_alike() -> None:
    labels = [0, 1, 2, 0, 1, 2]
    images, targets = mix(0.4, 3, 5, labels)
    np.random.seed(3)
    torch.manual_seed(5)
    weight, other = np.random.beta(0.4, 0.4), torch.randperm(6)
    one_hot = torch.eye(3)[labels]
    expected = weight * one_hot + (1 - weight) * one_hot[other]
    assert 0.01 < weight < 0.99
    assert (expected > 0).sum() > 6  # some are mixed
    assert torch.allclose(targets, expected)
    assert torch.allclose(images, expected[:, :, None, None, None].expand_as(images))


def test_mixup_depends_on_the_seeds_of_the_trainer() -> None:
    labels = [0, 1, 2, 0, 1, 2]
    once = mix(0.4, 3, 5, labels)
    assert all(map(torch.equal, mix(0.4, 3, 5, labels), once))
    assert not torch.equal(mix(0.4, 4, 5, labels)[1], once[1])
    assert not torch.equal(mix(0.4, 3, 6, labels)[1], once[1])


@pytest.mark.parametrize("mixup", [-0.1, True, "0.4", None, math.nan, math.inf])
def test_wrong_mixup(mixup: Any) -> None:
    with pytest.raises(Med3dError, match=r"^mixup is .*, expected a number, 0 or more$"):
        PrepareTargets(CLASSES, mixup)


def test_predicted_numbers_get_their_unit_back() -> None:
    data = {"pred": torch.tensor([1.5]), "label": torch.tensor(3.0)}
    found = RestoreNumberd("pred", TARGET)(data)
    assert found == {"pred": torch.tensor([72.0]), "label": torch.tensor(3.0)}
    assert data["pred"].item() == 1.5
    half = RestoreNumberd("pred", {"mean": 2000.25, "std": 1.0})({"pred": MetaTensor(torch.tensor([0.5]).half())})
    assert half["pred"].item() == 2000.75


def test_logits_stay() -> None:
    logits = torch.tensor([1.5, -2.0])
    assert RestoreNumberd("pred", None)({"pred": logits})["pred"] is logits
