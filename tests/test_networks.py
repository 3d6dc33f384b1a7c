"""Whole networks: agreement with the upstream network, sizes, channels and options."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from published import empty_net, golden_params, redraw, relative_error, run_golden, write_published

from med3d_nets.errors import Med3dError
from med3d_nets.networks import (
    HEADS,
    ClassificationNet,
    SegmentationNet,
    create_classifier,
    create_model,
    freeze_batch_norm,
)
from med3d_nets.resnet import DEPTHS
from med3d_nets.variants import VARIANTS
from med3d_nets.weights import inflate_stem, load_pretrained, load_strict, map_names


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


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("size", [(9, 15, 21), (1, 1, 1), (16, 8, 8)])
def test_classifier_answers_at_any_size_and_scripts(shortcut, size):
    torch.manual_seed(0)
    net = ClassificationNet(10, shortcut, 4, in_channels=2).eval()
    x = torch.rand(2, 2, *size)
    with torch.no_grad():
        logits, features = net(x), net.forward_features(x)
        assert logits.shape == (2, 4)
        assert torch.allclose(features, net.encoder(x)[-1].flatten(2).mean(2), atol=1e-6)
        assert torch.equal(logits, net.head.linear(features))
        assert relative_error(torch.jit.script(net)(x), logits) < 1e-5


def test_answers_are_scaled_outside_of_training():
    net, x = ClassificationNet(10, "B", 2).eval(), torch.rand(2, 1, 16, 16, 16)
    with torch.no_grad():
        plain = net(x)
        net.scale, net.shift = 0.5, 3.0
        assert torch.allclose(net(x), plain / 2 + 3)
        assert torch.allclose(torch.jit.script(net)(x), plain / 2 + 3, atol=1e-5)
        training = net.train()(x)
        assert torch.allclose(training, net.head.linear(net.eval().train().forward_features(x)), atol=1e-5)
    assert not {"scale", "shift"} & net.state_dict().keys()


@pytest.mark.parametrize(("variant", "channels"), [("resnet_34", 512), ("resnet_50", 2048)])
def test_embedding_has_the_channels_of_the_last_stage(variant, channels):
    with torch.device("meta"):
        net = create_classifier(variant, 1)
        x = torch.empty(3, 1, 16, 16, 16)
    assert net.forward_features(x).shape == (3, channels)
    assert net(x).shape == (3, 1)


@pytest.mark.parametrize("row", VARIANTS, ids=lambda row: row.name)
def test_classifier_has_the_encoder_of_the_variant(row):
    options = {"model": "resnet", "model_depth": row.depth, "resnet_shortcut": row.shortcut}
    with torch.device("meta"):
        net, other = create_classifier(row.name, 5, 2, **options), create_model(row.name, in_channels=2)
    found, expected = (
        {name: value.shape for name, value in each.encoder.state_dict().items()} for each in (net, other)
    )
    assert found == expected
    assert [name for name in net.state_dict() if not name.startswith("encoder.")] == [
        "head.linear.weight",
        "head.linear.bias",
    ]
    assert net.head.linear.out_features == 5


def test_dropout_is_for_training_alone():
    torch.manual_seed(0)
    net = create_classifier("resnet_10", 2, dropout=0.5).eval()
    pooled = torch.ones(4, 512)
    assert torch.equal(net.head(pooled), net.head.linear(pooled))
    assert net.train().head(pooled).unique(dim=0).shape[0] == 4
    assert create_classifier("resnet_10").train().head(pooled).unique(dim=0).shape[0] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "resnet_11"}, "no variant 'resnet_11'"),
        ({"model_depth": 50}, "model_depth is 50, but resnet_18 has 18"),
        ({"resnet_shortcut": "B"}, "resnet_shortcut is 'B', but resnet_18 has 'A'"),
        ({"n_outputs": 0}, "n_outputs is 0, expected the number of classes, or 1 for a number"),
        ({"dropout": 1}, "dropout is 1, expected a share from 0 to below 1"),
        ({"dropout": -0.1}, "dropout is -0.1, expected a share from 0 to below 1"),
    ],
)
def test_create_classifier_refuses(options, message):
    with pytest.raises(Med3dError, match=f"^{message}"):
        create_classifier(**{"variant": "resnet_18", **options})


def test_training_changes_every_parameter_of_a_classifier():
    torch.manual_seed(0)
    net = ClassificationNet(10, "B", 2).train()
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    torch.nn.functional.cross_entropy(net(torch.rand(2, 1, 16, 24, 16)), torch.tensor([0, 1])).backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    assert [name for name, value in net.named_parameters() if torch.equal(value, before[name])] == []


def test_classifier_takes_pretrained_weights_without_their_head(tmp_path, caplog):
    state = redraw(10, "B", 3)
    path = write_published(tmp_path / "a.pth", state)
    net = create_classifier("resnet_10", 3)
    head = {name: value.clone() for name, value in net.head.state_dict().items()}
    with caplog.at_level("INFO"):
        record = load_pretrained(net, str(path), "resnet_10")
    encoder = {name: value for name, value in state.items() if not name.startswith("conv_seg.")}
    assert record["tensors"] == len(encoder)
    assert net.encoder.state_dict().keys() == encoder.keys()
    assert all(torch.equal(value, encoder[name]) for name, value in net.encoder.state_dict().items())
    assert all(torch.equal(value, head[name]) for name, value in net.head.state_dict().items())
    names = ", ".join(f"head.{name.removeprefix('conv_seg.')}" for name in state if name not in encoder)
    assert f"its head does not fit this network and is left out: {names}" in caplog.text
    assert f"loaded {len(encoder)} tensors; fresh: the head (2)" in caplog.text
