"""Trained classifiers as they answer: by their ``model.json``, alone and together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from med3d_nets.classification.ensemble import NumberEnsemble, make_classifier
from med3d_nets.classification.settings import ClassifierSettings
from med3d_nets.ensemble import Ensemble
from med3d_nets.errors import Med3dError
from med3d_nets.networks import ClassificationNet


def write(folder: Path, names: list[str], **changes: object) -> str:
    """The settings of a training in a folder of its own."""
    settings = ClassifierSettings(
        "resnet_10", "classification", "region", 1, names, [16, 16, 16], spacing=[1, 1, 1], **changes
    )
    folder.mkdir()
    (folder / "model.json").write_text(settings.to_json())
    return str(folder)


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 1), self.value, dtype=torch.float16)


def test_temperature_divides_logits(tmp_path: Path) -> None:
    network = make_classifier("resnet_10", [write(tmp_path / "a", ["x", "y", "z"], temperature=4.0)])
    assert isinstance(network, ClassificationNet)
    assert (network.scale, network.shift) == (0.25, 0)
    assert network.eval()(torch.rand(1, 1, 16, 16, 16)).shape == (1, 3)


def test_numbers_are_in_the_unit_of_the_targets(tmp_path: Path) -> None:
    target = {"mean": 30.0, "std": 5.0}
    network = make_classifier("resnet_10", [write(tmp_path / "a", ["mL"], task="regression", target=target)])
    assert (network.scale, network.shift) == (5, 30)


def test_folds_answer_together_each_by_its_own_settings(tmp_path: Path) -> None:
    folders = [write(tmp_path / str(n), ["x", "y"], temperature=float(n)) for n in (1, 2)]
    network = make_classifier("resnet_10", folders)
    assert type(network) is Ensemble
    assert [member.scale for member in network.networks] == [1, 0.5]
    targets = [{"mean": 1.0, "std": 2.0}, {"mean": 3.0, "std": 4.0}]
    folders = [write(tmp_path / f"r{n}", ["mL"], task="regression", target=targets[n]) for n in range(2)]
    network = make_classifier("resnet_10", folders)
    assert type(network) is NumberEnsemble
    assert [member.shift for member in network.networks] == [1, 3]


def test_numbers_are_averaged_in_single_precision() -> None:
    found = NumberEnsemble([Constant(2000.0), Constant(2001.0)])(torch.zeros(3, 1, 1, 1, 1))
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == [2000.5] * 3


def test_settings_that_are_not_a_classifier_s(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text('{"format": 1, "variant": "resnet_10"}')
    with pytest.raises(Med3dError, match=r"model\.json: lacks"):
        make_classifier("resnet_10", [str(tmp_path)])
