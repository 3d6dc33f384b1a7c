"""Whole networks: agreement with the upstream network, sizes, channels and options."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from published import empty_net, golden_params, redraw, relative_error, run_golden

from med3d_nets.networks import HEADS, SegmentationNet, create_model
from med3d_nets.resnet import DEPTHS
from med3d_nets.variants import VARIANTS
from med3d_nets.weights import inflate_stem, load_strict, map_names


@pytest.mark.parametrize("path", golden_params())
def test_logits_agree_with_upstream(path):
    """Within 1e-5 of the largest logit, at the quarter of the resolution that upstream answers at."""
    run, golden = run_golden(path), np.load(path)
    assert relative_error(run.head, golden["logits"]) < 1e-5
    assert run.whole.shape == (1, 3, 40, 56, 48)


@pytest.mark.parametrize("size", [(9, 15, 21), (1, 1, 1), (8, 8, 8), (17, 32, 5)])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_output_has_the_size_of_the_input(shortcut, size):
    net = empty_net(10, shortcut, 3, in_channels=2)
    load_strict(net, map_names(redraw(10, shortcut, 3, in_channels=2)), "redrawn")
    with torch.no_grad():
        logits = net(torch.rand(2, 2, *size))
    assert logits.shape == (2, 3, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("size", [(21, 16, 11), (40, 32, 48)])
def test_scripted_network_answers_equally(shortcut, size):
    net = empty_net(10, shortcut)
    load_strict(net, map_names(redraw(10, shortcut, 2)), "redrawn")
    x = torch.rand(1, 1, *size)
    with torch.no_grad():
        assert relative_error(torch.jit.script(net)(x), net(x)) < 1e-5


def test_repeated_volume_gives_the_same_features():
    state = redraw(10, "B", 2)
    one, three = empty_net(10, "B"), empty_net(10, "B", in_channels=3)
    load_strict(one, map_names(state), "redrawn")
    load_strict(three, map_names({**state, "conv1.weight": inflate_stem(state["conv1.weight"], 3)}), "redrawn")
    x = torch.rand(1, 1, 24, 20, 16)
    with torch.no_grad():
        for found, expected in zip(three.encoder(x.repeat(1, 3, 1, 1, 1)), one.encoder(x), strict=True):
            assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("row", VARIANTS, ids=lambda row: row.name)
def test_create_model_builds_the_variant(row):
    with torch.device("meta"):
        net = create_model(row.name, 5, 2, model="resnet", model_depth=row.depth, resnet_shortcut=row.shortcut)
    state = net.state_dict()
    assert len(net.encoder.state_dict()) == row.encoder_tensors
    assert any(".downsample." in name for name in state) == (row.shortcut == "B")
    block, counts = DEPTHS[row.depth]
    assert tuple(len(stage) for stage in (net.encoder.layer1, net.encoder.layer2, net.encoder.layer3)) == counts[:3]
    assert isinstance(net.encoder.layer4[0], block)
    assert state["encoder.conv1.weight"].shape == (64, 2, 7, 7, 7)
    assert state["head.6.weight"].shape == (5, 32, 1, 1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "resnet_10_23datasets"}, "no variant 'resnet_10_23datasets'; did you mean 'resnet_10_23dataset'"),
        ({"model": "densenet"}, "model is 'densenet', but resnet_18 has 'resnet'"),
        ({"model_depth": 50}, "model_depth is 50, but resnet_18 has 18"),
        ({"resnet_shortcut": "B"}, "resnet_shortcut is 'B', but resnet_18 has 'A'"),
        ({"n_seg_classes": 1}, "n_seg_classes counts the background too, so it is at least 2, got 1"),
        ({"head": "unet"}, f"head must be one of {', '.join(HEADS)}, got 'unet'"),
    ],
)
def test_create_model_refuses(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        create_model(**{"variant": "resnet_18", **options})


def test_training_changes_every_parameter():
    torch.manual_seed(0)
    net = SegmentationNet(10, "B", 2).train()
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    loss = net(torch.rand(2, 1, 16, 24, 16)).logsumexp(1).square().mean()
    loss.backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    assert [name for name, value in net.named_parameters() if torch.equal(value, before[name])] == []
