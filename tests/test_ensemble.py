"""Ensembles: the mean of probabilities, each member's own weights, and settings that agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.fl.client.monai_algo import disable_ckpt_loaders
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from med3d_nets.ensemble import Ensemble, EnsembleCheckpointLoader, make_network, read_ensemble_settings
from med3d_nets.errors import Med3dError
from med3d_nets.networks import SegmentationNet
from med3d_nets.settings import OF_A_FOLD, Settings

CT = {"lower": -1000.0, "upper": 400.0, "mean": -300.0, "std": 250.0}
SETTINGS = Settings("resnet_10", "unet", "patch", 1, ["background", "lung", "nodule"], [16, 24, 32], spacing=[2, 1, 1])
CHANGES: dict[str, Any] = {
    "variant": "resnet_18",
    "head": "medicalnet",
    "recipe": "whole",
    "in_channels": 2,
    "class_names": ["background", "nodule", "lung"],
    "input_size": [16, 24, 40],
    "fill_empty_with_noise": True,
    "spacing": [2, 1, 1.5],
    "intensity": CT,
    "flip_axes": [0],
}


def message(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(Med3dError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


class Constant(nn.Module):
    """Answers the same logits everywhere, in a given precision."""

    def __init__(self, logits: Sequence[float], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits, dtype=dtype).view(1, -1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits + 0 * x.to(self.logits.dtype)


def convolution(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Conv3d(1, 3, 3, padding=1)


def saved(folder: Path, network: nn.Module) -> str:
    folder.mkdir(parents=True)
    torch.save(network.state_dict(), folder / "model.pt")
    return str(folder)


def written(folder: Path, settings: Settings) -> str:
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(settings.to_json(epoch=1), encoding="utf-8")
    return str(folder)


def evaluate(network: nn.Module, x: Tensor, *handlers: Any) -> Tensor:
    loader = DataLoader(Dataset([{"image": x[0]}]), batch_size=1)
    device = torch.device("cpu")
    evaluator = SupervisedEvaluator(device=device, val_data_loader=loader, network=network, val_handlers=handlers)
    evaluator.run()
    return evaluator.state.output[0]["pred"][None]


# The mean


@pytest.mark.parametrize("number", [1, 2, 5])
def test_softmax_of_the_answer_is_the_mean_of_probabilities(number: int) -> None:
    members = [convolution(seed) for seed in range(number)]
    x = 20 * torch.randn(2, 1, 4, 5, 6)
    answer = Ensemble(members)(x)
    mean = torch.stack([member(x).double().softmax(1) for member in members]).mean(0)
    torch.testing.assert_close(answer.exp().double(), mean, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(answer.softmax(1).double(), mean, rtol=1e-5, atol=1e-7)


def test_mean_is_not_of_logits() -> None:
    # One sure member against two that lean to the other side: the mean of logits would follow the first.
    members = [[20.0, 0.0], [0.0, 3.0], [0.0, 3.0]]
    assert torch.tensor(members).mean(0).argmax() == 0
    answer = Ensemble([Constant(logits) for logits in members])(torch.zeros(1, 1, 2, 2, 2))
    assert (answer.argmax(1) == 1).all()
    assert answer[0, 1, 0, 0, 0].exp().item() == pytest.approx(2 / 3 / (1 + math.exp(-3)), abs=1e-6)


def test_order_of_the_members_does_not_matter() -> None:
    members = [convolution(seed) for seed in range(4)]
    x = torch.randn(1, 1, 4, 4, 4)
    torch.testing.assert_close(Ensemble(members)(x), Ensemble(members[::-1])(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_stay_finite(dtype: torch.dtype) -> None:
    members = [Constant([6e4, 0.0, -6e4], dtype), Constant([6e4, 0.0, -6e4], dtype), Constant([0.0, 100.0, 0.0], dtype)]
    answer = Ensemble(members)(torch.zeros(1, 1, 1, 1, 1))[0, :, 0, 0, 0]
    assert answer.dtype == torch.float32
    assert answer.isfinite().all()
    assert answer.exp().tolist() == pytest.approx([2 / 3, 1 / 3, 0])


def test_probabilities_too_small_for_float32_keep_their_order() -> None:
    members = [Constant([0.0, -200.0, -300.0]), Constant([0.0, -210.0, -290.0])]
    answer = Ensemble(members)(torch.zeros(1, 1, 1, 1, 1))[0, :, 0, 0, 0]
    assert answer[1:].tolist() == pytest.approx([-200 - math.log(2), -290 - math.log(2)], abs=1e-3)


def test_scripts_and_slides() -> None:
    ensemble = Ensemble([convolution(seed) for seed in range(2)]).eval()
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(ensemble)(x), ensemble(x))
        one = SlidingWindowInferer([8, 8, 8], overlap=0)(x, ensemble)
        torch.testing.assert_close(one, ensemble(x))


def test_an_ensemble_of_none() -> None:
    assert "at least one" in message(Ensemble, [])


# Making and loading


def test_one_network_is_alone_and_several_differ() -> None:
    one = make_network("resnet_10", 3, 2, "unet", 1)
    assert isinstance(one, SegmentationNet)
    several = make_network("resnet_10", 3, 2, "unet", 3, model="resnet", model_depth=10, resnet_shortcut="B")
    assert isinstance(several, Ensemble)
    assert [type(member) for member in several.networks] == [SegmentationNet] * 3
    assert all(member.state_dict().keys() == one.state_dict().keys() for member in several.networks)
    stems = [member.state_dict()["encoder.conv1.weight"] for member in several.networks]
    assert stems[0].shape[1] == 2
    assert not torch.equal(stems[0], stems[1])


def test_options_are_checked() -> None:
    assert "model_depth is 18" in message(make_network, "resnet_10", n_networks=2, model_depth=18)
    for number in (0, -1, True, 2.0):
        assert f"n_networks is {number!r}" in message(make_network, "resnet_10", n_networks=number)


def test_each_member_gets_its_own_weights(tmp_path: Path) -> None:
    trained = [convolution(seed) for seed in range(3)]
    folders = [saved(tmp_path / f"fold_{number}", network) for number, network in enumerate(trained)]
    ensemble = Ensemble([convolution(seed) for seed in (7, 8, 9)])
    x = torch.randn(1, 1, 4, 5, 6)
    answer = evaluate(ensemble, x, EnsembleCheckpointLoader(ensemble, folders))
    for member, network in zip(ensemble.networks, trained, strict=True):
        assert all(torch.equal(value, network.state_dict()[name]) for name, value in member.state_dict().items())
    expected = torch.stack([network(x).softmax(1) for network in trained]).mean(0)
    torch.testing.assert_close(answer.softmax(1), expected)


def test_one_network_is_loaded_alone(tmp_path: Path) -> None:
    folder = saved(tmp_path / "models", convolution(0))
    x = torch.randn(1, 1, 4, 5, 6)
    network = convolution(1)
    assert torch.equal(evaluate(network, x, EnsembleCheckpointLoader(network, [folder])), convolution(0)(x))


def test_weights_that_do_not_fit_name_their_file(tmp_path: Path) -> None:
    folders = [saved(tmp_path / "fold_0", convolution(0)), saved(tmp_path / "fold_1", nn.Conv3d(1, 4, 3))]
    ensemble = Ensemble([convolution(1), convolution(2)])
    text = message(EnsembleCheckpointLoader(ensemble, folders), None)
    assert text.startswith(str(tmp_path / "fold_1/model.pt"))
    assert "of another shape" in text
    (tmp_path / "fold_1/model.pt").unlink()
    assert "fold_1/model.pt: no such file" in message(EnsembleCheckpointLoader(ensemble, folders), None)
    assert "ensemble of 2, expected one for each of a, b, c" in message(
        EnsembleCheckpointLoader, ensemble, ["a", "b", "c"]
    )
    assert "ensemble of 1" in message(EnsembleCheckpointLoader, ensemble.networks[0], folders)


def test_federated_learning_disables_the_loader() -> None:
    name = f"{EnsembleCheckpointLoader.__module__}.{EnsembleCheckpointLoader.__name__}"
    parser = ConfigParser({"validate": {"handlers": [{"_target_": name}]}})
    disable_ckpt_loaders(parser)
    assert parser.get("validate::handlers#0")["_disabled_"] is True


# Settings


def test_settings_that_agree(tmp_path: Path) -> None:
    others = [replace(SETTINGS, pretrained={"sha256": digest}) for digest in "abc"]
    folders = [written(tmp_path / f"fold_{number}", settings) for number, settings in enumerate(others)]
    assert read_ensemble_settings(folders) == others[0]
    assert read_ensemble_settings(folders[2:]) == others[2]


def test_changes_cover_every_setting() -> None:
    assert {*CHANGES} == {field.name for field in fields(Settings)} - {*OF_A_FOLD}


@pytest.mark.parametrize("name", CHANGES)
def test_settings_that_differ_are_named_with_files_and_values(name: str, tmp_path: Path) -> None:
    other = replace(SETTINGS, **{name: CHANGES[name]}, **({"spacing": []} if name == "recipe" else {}))
    folders = [written(tmp_path / f"fold_{n}", settings) for n, settings in enumerate((SETTINGS, SETTINGS, other))]
    text = message(read_ensemble_settings, folders)
    paths = [str(tmp_path / f"fold_{number}/model.json") for number in (2, 0)]
    values = [repr(getattr(settings, name)) for settings in (other, SETTINGS)]
    assert f"{name} is {values[0]} in {paths[0]}, but {values[1]} in {paths[1]}" in text
    assert "fold_1" not in text


def test_missing_settings_name_their_file(tmp_path: Path) -> None:
    folders = [written(tmp_path / "fold_0", SETTINGS), str(tmp_path / "fold_1")]
    assert message(read_ensemble_settings, folders).startswith(str(tmp_path / "fold_1/model.json"))


@pytest.mark.parametrize(
    ("votes", "kept"),
    [
        ([[1], [1], [1]], [1]),
        ([[1, 2], [2], [1, 2]], [1, 2]),
        ([[2, 1], [2], []], [2]),
        ([[], [], [1]], []),
        ([[1], []], []),  # half is not more than half
        ([[2, 2], [], []], []),
        ([[2]], [2]),
    ],
)
def test_largest_component_goes_by_majority(votes: list[list[int]], kept: list[int], tmp_path: Path) -> None:
    settings = [replace(SETTINGS, largest_component=vote) for vote in votes]
    folders = [written(tmp_path / f"fold_{number}", each) for number, each in enumerate(settings)]
    assert read_ensemble_settings(folders) == replace(SETTINGS, largest_component=kept)
