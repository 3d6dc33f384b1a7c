"""Maps of where a classifier looked: Grad-CAM's, of the class that was predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import OBLIQUE
from monai.data import MetaTensor
from torch import Tensor, nn

from med3d_nets.classification.ensemble import NumberEnsemble
from med3d_nets.classification.saliency import Saliencyd, check_maps
from med3d_nets.ensemble import Ensemble
from med3d_nets.errors import Med3dError
from med3d_nets.networks import ClassificationNet, create_classifier

SIZE = (24, 20, 16)


def made(seed: int) -> ClassificationNet:
    """A network whose classes are each told by a few channels."""
    torch.manual_seed(seed)
    network = create_classifier("resnet_10", 3).eval()
    network.head.linear.weight.data = torch.rand(3, 512).pow(50)
    return network


@pytest.fixture(scope="module")
def networks() -> list[ClassificationNet]:
    return [made(seed) for seed in range(2)]


@pytest.fixture
def image() -> MetaTensor:
    torch.manual_seed(9)
    return MetaTensor(torch.rand(1, *SIZE), affine=OBLIQUE, meta={"filename_or_obj": "a.nii.gz"})


def explain(network: nn.Module, image: Tensor, index: int, **options: Any) -> Tensor:
    """The map where class ``index`` was predicted, computed as an evaluator does, without gradients."""
    with torch.no_grad():
        found = Saliencyd("image", network, "cpu", **options)({"image": image, "pred": torch.eye(3)[index]})
    return found["saliency"]


def grad_cam(network: ClassificationNet, image: Tensor, index: int) -> Tensor:
    """Grad-CAM from its formula: for a mean and a linear layer, the gradient's mean is the layer's weight."""
    with torch.no_grad():
        stage = network.encoder(image.as_tensor()[None])[-1]
        weights = network.head.linear.weight[index]
        coarse = (weights[:, None, None, None] * stage[0]).sum(0).relu()[None, None]
        found = nn.functional.interpolate(coarse, SIZE, mode="trilinear", align_corners=False)[0]
    return found / found.max()


def test_map_is_that_of_the_formula_and_of_the_class(networks: list[ClassificationNet], image: MetaTensor) -> None:
    maps = [explain(networks[0], image, index) for index in range(3)]
    for index, found in enumerate(maps):
        assert found.shape == (1, *SIZE)
        assert found.min() >= 0
        assert found.max() == pytest.approx(1)
        assert torch.allclose(found.as_tensor(), grad_cam(networks[0], image, index), atol=1e-5)
    assert (maps[0] - maps[1]).abs().max() > 0.2


def test_map_lies_where_the_volume_does(networks: list[ClassificationNet], image: MetaTensor) -> None:
    found = explain(networks[0], image, 0)
    assert np.allclose(found.affine, OBLIQUE)
    assert found.meta["filename_or_obj"] == "a.nii.gz"
    found.meta["filename_or_obj"] = "b"
    assert image.meta["filename_or_obj"] == "a.nii.gz"
    assert not image.requires_grad
    plain = explain(networks[0], image.as_tensor(), 0)
    assert torch.equal(plain.as_tensor(), found.as_tensor())


def test_other_entries_stay_and_keys_can_be_named(networks: list[ClassificationNet], image: MetaTensor) -> None:
    data = {"volume": image, "answer": torch.tensor([0.0, 2.0, 1.0]), "label": 1}
    found = Saliencyd("volume", networks[0], "cpu", "answer", "map")(data)
    assert found.keys() == {*data, "map"}
    assert all(found[name] is value for name, value in data.items())
    assert torch.allclose(found["map"].as_tensor(), grad_cam(networks[0], image, 1), atol=1e-5)


def test_nothing_that_speaks_for_the_class_is_an_empty_map(image: MetaTensor) -> None:
    network = made(0)
    nn.init.constant_(network.head.linear.weight, -1.0)
    assert not explain(network, image, 2).any()


def test_network_stays_as_it_was(image: MetaTensor) -> None:
    network = made(0)
    x = image.as_tensor()[None].repeat(2, 1, 1, 1, 1)
    with torch.no_grad():
        before = network(x)
    for training in (True, False):
        network.train(training)
        explain(network, image, 0)
        assert all(module.training == training for module in network.modules())
    assert all(value.requires_grad and value.grad is None for value in network.parameters())
    with torch.no_grad():
        assert torch.equal(network(x), before)
    network.train()(x).square().sum().backward()
    assert all(value.grad is not None for value in network.parameters())


def test_network_that_does_not_learn_is_explained_too(networks: list[ClassificationNet], image: MetaTensor) -> None:
    frozen = made(0).requires_grad_(False)
    assert torch.allclose(explain(frozen, image, 1), explain(networks[0], image, 1))
    assert not any(value.requires_grad for value in frozen.parameters())


def test_ensemble_has_the_mean_of_its_members(networks: list[ClassificationNet], image: MetaTensor) -> None:
    found = explain(Ensemble(networks), image, 2)
    alone = [explain(network, image, 2) for network in networks]
    assert torch.allclose(found, (alone[0] + alone[1]) / 2)
    assert not torch.allclose(alone[0], alone[1], atol=0.1)


def test_of_a_regression_the_number_is_explained(image: MetaTensor) -> None:
    members = []
    for seed in range(2):
        torch.manual_seed(seed)
        members.append(create_classifier("resnet_10", 1).eval())
        members[-1].head.linear.weight.data = torch.rand(1, 512).pow(50)
    found = Saliencyd("image", NumberEnsemble(members), "cpu")({"image": image, "pred": torch.tensor([-7.0])})
    expected = torch.stack([grad_cam(each, image, 0) for each in members]).mean(dim=0)
    assert torch.allclose(found["saliency"].as_tensor(), expected, atol=1e-5)


def test_calibrated_networks_look_where_they_looked(networks: list[ClassificationNet], image: MetaTensor) -> None:
    members = [made(0), made(1)]
    for member, temperature in zip(members, (0.5, 4.0), strict=True):
        member.scale = 1 / temperature
    assert torch.allclose(explain(members[0], image, 1), explain(networks[0], image, 1))
    assert torch.allclose(explain(Ensemble(members), image, 1), explain(Ensemble(networks), image, 1))


REFUSED = [
    ("/d/a.npz::test_images::3", "", "a.npz::test_images::3: found an array"),
    ("/d/a.nii", "models/model.onnx", "model.onnx: an exported network"),
    ("/d/a.nii", "", "a_saliency.nii.gz: exists already"),
]


@pytest.mark.parametrize(("image_path", "exported", "said"), REFUSED, ids=["array", "exported", "there already"])
def test_maps_that_cannot_be(image_path: str, exported: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a_saliency.nii.gz").touch()
    with pytest.raises(Med3dError) as caught:
        check_maps([{"image": image_path}], str(tmp_path), "/d", False, exported)
    assert said in str(caught.value)
    check_maps([{"image": "/d/b.nii"}], str(tmp_path), "/d", False)
    with pytest.raises(Med3dError, match=r"b\.nii: found 2 regions"):
        check_maps([{"image": "/d/b.nii"}] * 2, str(tmp_path), "/d", False)
    check_maps([{"image": "/d/a.nii"}], str(tmp_path), "/d", True)
