"""What an iteration is counted to need, and the memory that is found for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import load_tool
from torch import nn

from med3d_nets import footprint
from med3d_nets.errors import Med3dError
from med3d_nets.footprint import Cost, LiveTensors, find_memory_gb, iteration_cost, training_cost
from med3d_nets.networks import HEADS, create_classifier, create_model


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("head", [*HEADS, "classification"])
def test_memory_and_operations_grow_with_the_voxels(head: str, checkpointed: bool) -> None:
    cost = training_cost("resnet_10", 3, 2, head, checkpointed)
    n_bytes, flop = iteration_cost(
        "resnet_10", (80, 64, 96), 3, 3, 2, head, activation_checkpointing=checkpointed, adamw=True
    )
    n_voxels = 3 * 80 * 64 * 96
    assert cost.n_bytes(n_voxels) == pytest.approx(n_bytes, rel=0.02)
    assert cost.voxel_flop * n_voxels == pytest.approx(flop, rel=0.02)
    assert cost.n_voxels(cost.n_bytes(n_voxels)) == pytest.approx(n_voxels, rel=1e-3)
    assert cost.n_voxels(cost.fixed_bytes / 2) == 0


def test_checkpointing_takes_less_for_each_voxel_and_computes_more() -> None:
    plain, saved = (training_cost("resnet_50", head="unet", activation_checkpointing=value) for value in (False, True))
    assert saved.fixed_bytes == pytest.approx(plain.fixed_bytes, rel=0.02)
    assert saved.voxel_bytes < 0.45 * plain.voxel_bytes
    assert 1.2 < saved.voxel_flop / plain.voxel_flop < 1.4


def test_a_classifier_needs_its_encoder_alone() -> None:
    costs = {head: training_cost("resnet_10", head=head) for head in (*HEADS, "classification")}
    assert all(costs["classification"].voxel_bytes < costs[head].voxel_bytes for head in HEADS)
    assert all(costs["classification"].voxel_flop < costs[head].voxel_flop for head in HEADS)
    with torch.device("meta"):
        weights = sum(parameter.nbytes for parameter in create_classifier("resnet_10", 2).parameters())
    few, many = (iteration_cost("resnet_10", (64, 64, 64), 2, n, head="classification")[0] for n in (2, 1002))
    assert many - few == pytest.approx(3 * 1000 * 513 * 4, rel=0.02)  # the layer, its gradient and momentum
    assert 5 * weights < costs["classification"].fixed_bytes < 6 * weights  # as AdamW and the average have them


def test_adamw_has_a_second_state_and_the_average_is_a_copy() -> None:
    with torch.device("meta"):
        weights = sum(parameter.nbytes for parameter in create_model("resnet_10", head="unet").parameters())
    sgd, adamw = (iteration_cost("resnet_10", (64, 64, 64), 2, head="unet", adamw=value)[0] for value in (False, True))
    assert adamw - sgd == 2 * weights


@pytest.mark.parametrize("checkpointed", [False, True])
def test_mixed_precision_is_that_of_autocast(checkpointed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in 16 bits, also where they are computed again; group norms and the loss in 32."""
    seen: dict[str, set[torch.dtype]] = {}

    def note(module: nn.Module, _: Any, result: Any) -> None:
        if isinstance(result, torch.Tensor):
            seen.setdefault(type(module).__name__, set()).add(result.dtype)

    def watched(build: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
        made = build(*args, **kwargs)
        for module in made.modules():
            module.register_forward_hook(note)
        return made

    for name in ("create_model", "DiceCELoss"):
        monkeypatch.setattr(footprint, name, functools.partial(watched, getattr(footprint, name)))
    iteration_cost("resnet_10", (48, 64, 64), 2, half=True, head="unet", activation_checkpointing=checkpointed)
    kinds = {"Conv3d": torch.float16, "DilatedConv3d": torch.float16, "BatchNorm3d": torch.float16}
    kinds |= {"GroupNorm": torch.float32, "SegmentationNet": torch.float16, "CrossEntropyLoss": torch.float32}
    assert {name: seen[name] for name in kinds} == {name: {dtype} for name, dtype in kinds.items()}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("half", [False, True])
def test_a_gpu_takes_what_is_counted(half: bool) -> None:
    tool = load_tool("memory")
    size = (32, 160, 160)
    counted = iteration_cost("resnet_18", size, 1, half=half)[0]
    assert tool.measure("resnet_18", size, 2, half, torch.device("cuda")) == pytest.approx(counted, rel=0.25)


def test_unknown_names_are_told() -> None:
    with pytest.raises(Med3dError, match="no variant 'resnet_11'"):
        training_cost("resnet_11")
    with pytest.raises(Med3dError, match="head must be one of"):
        training_cost("resnet_10", head="feet")


def test_the_machine_is_shared_by_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = find_memory_gb("cpu")
    assert 0.1 < whole < 1e5
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert find_memory_gb("cpu") == pytest.approx(whole / 4)


def test_a_gpu_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 24 * 10**9

    monkeypatch.setattr(footprint.torch.cuda, "get_device_properties", lambda device: Properties)
    assert find_memory_gb("cuda:0") == 24


def test_cost_is_a_line() -> None:
    cost = Cost(1000, 10.0, 5.0)
    assert cost.n_bytes(50) == 1500
    assert cost.n_voxels(1505) == 50


def test_live_tensors_are_counted_once_and_until_they_are_freed() -> None:
    live = LiveTensors()
    with live:
        first = torch.zeros(100, device="meta")
        view = first[:50].view(5, 10)  # no bytes of its own
        assert live.peak == 400
        del first
        torch.zeros(10, device="meta")  # the view keeps the hundred alive
        assert live.peak == 440
        del view
        torch.zeros(105, device="meta")
        assert live.peak == 440
