"""Whole networks: agreement with the upstream network, sizes, channels and options."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from published import empty_net, golden_params, redraw, relative_error, run_golden

from med3d_nets.networks import HEADS, SegmentationNet, create_model, freeze_batch_norm
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
        ({"head": "fpn"}, f"head must be one of {', '.join(HEADS)}, got 'fpn'"),
    ],
)
def test_create_model_refuses(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        create_model(**{"variant": "resnet_18", **options})


@pytest.mark.parametrize("head", HEADS)
def test_training_changes_every_parameter(head):
    torch.manual_seed(0)
    net = SegmentationNet(10, "B", 2, head=head).train()
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    loss = net(torch.rand(2, 1, 16, 24, 16)).logsumexp(1).square().mean()
    loss.backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    assert [name for name, value in net.named_parameters() if torch.equal(value, before[name])] == []


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("size", [(9, 15, 21), (1, 1, 1), (3, 64, 40), (16, 16, 16)])
def test_unet_answers_at_any_size_and_scripts(shortcut, size):
    torch.manual_seed(0)
    net = SegmentationNet(10, shortcut, 4, in_channels=2, head="unet").eval()
    x = torch.rand(2, 2, *size)
    with torch.no_grad():
        logits = net(x)
        assert logits.shape == (2, 4, *size)
        assert logits.isfinite().all()
        assert relative_error(torch.jit.script(net)(x), logits) < 1e-5


def test_unet_sees_every_stage_and_the_input():
    """A change of any of them alone changes the answer at full resolution."""
    torch.manual_seed(0)
    net = SegmentationNet(10, "B", 2, head="unet").eval()
    x = torch.rand(1, 1, 24, 24, 24)
    with torch.no_grad():
        features = net.encoder(x)
        logits = net.head(features, x)
        for index in range(5):
            changed = [feature + (place == index) * torch.rand_like(feature) for place, feature in enumerate(features)]
            assert relative_error(net.head(changed, x), logits) > 1e-3
        bright = x.clone()
        bright[0, 0, 12, 12, 12] += 5
        difference = (net.head(features, bright) - logits).abs().amax(1)[0]
    assert difference[12, 12, 12] > 10 * difference[:8].mean()  # sharp, to the voxel


def test_unet_keeps_the_encoder():
    state = redraw(10, "B", 2)
    one, other = SegmentationNet(10, "B", 2).eval(), SegmentationNet(10, "B", 2, head="unet").eval()
    for net in (one, other):
        load_strict(net.encoder, {name: value for name, value in state.items() if "conv_seg" not in name}, "redrawn")
    x = torch.rand(1, 1, 16, 24, 16)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(one.encoder(x), other.encoder(x), strict=True))


def test_frozen_batch_norms_keep_their_statistics_while_training():
    net = freeze_batch_norm(SegmentationNet(10, "B", 2), ["encoder.layer1", "head"]).train()
    before = {name: value.clone() for name, value in net.named_buffers() if name.endswith("running_mean")}
    net(torch.rand(2, 1, 16, 16, 16)).mean().backward()
    kept = {name for name, value in net.named_buffers() if name in before and torch.equal(value, before[name])}
    assert kept == {name for name in before if name.startswith(("encoder.layer1", "head"))}
    assert net.encoder.layer1[0].bn1.weight.grad is not None
    with pytest.raises(ValueError, match="no batch norm is called 'neck'; they lie in encoder, head"):
        freeze_batch_norm(net, ["neck"])
