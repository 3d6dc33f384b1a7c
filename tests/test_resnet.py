"""The encoder: agreement with the upstream network, sizes, counts and shortcuts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from published import golden_params, redraw, relative_error, run_golden, upstream_shapes
from torch import nn

from med3d_nets.resnet import DEPTHS, STRIDES, BasicBlock, Bottleneck, ResNetEncoder, ZeroPadShortcut
from med3d_nets.variants import VARIANTS


@pytest.fixture(scope="module", params=["A", "B"])
def encoder(request):
    net = ResNetEncoder(10, request.param)
    net.load_state_dict(redraw(10, request.param))
    return net.eval()


@pytest.mark.parametrize("path", golden_params())
def test_stages_agree_with_upstream(path):
    """Means per channel within 1e-5 of the largest mean of the stage."""
    run, golden = run_golden(path), np.load(path)
    for number in (1, 2, 3, 4):
        assert run.shapes[number - 1] == tuple(golden[f"layer{number}_shape"])
        assert relative_error(run.means[number - 1], golden[f"layer{number}_mean"]) < 1e-5
    assert (run.n_tensors, run.n_values) == (golden["n_tensors"], golden["n_values"])


@pytest.mark.parametrize("row", VARIANTS, ids=lambda row: row.name)
def test_counts_of_the_table(row):
    state = upstream_shapes(row.depth, row.shortcut)
    assert len(state) == row.encoder_tensors
    assert sum(value.numel() for value in state.values()) == row.encoder_values


@pytest.mark.parametrize("depth", DEPTHS)
def test_depth_counts_the_layers(depth):
    with torch.device("meta"):
        net = ResNetEncoder(depth)
    convolutions = [name for name, m in net.named_modules() if isinstance(m, nn.Conv3d) and "downsample" not in name]
    assert len(convolutions) == depth - 1  # the last layer of a ResNet is the classifier


@pytest.mark.parametrize("size", [(1, 1, 1), (7, 8, 9), (24, 17, 33)])
def test_sizes_are_rounded_up(encoder, size):
    with torch.no_grad():
        features = encoder(torch.rand(2, 1, *size))
    for stage, channels, stride in zip(features, encoder.channels, STRIDES, strict=True):
        assert stage.shape == (2, channels, *(-(-length // stride) for length in size))


def test_stages_3_and_4_dilate_instead_of_striding():
    net = ResNetEncoder(18, "A")
    found = [
        {(m.stride[0], m.dilation[0]) for m in stage.modules() if isinstance(m, nn.Conv3d)}
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4)
    ]
    assert found == [{(1, 1)}, {(2, 1), (1, 1)}, {(1, 2)}, {(1, 4)}]


def test_zero_pad_shortcut_takes_every_other_voxel():
    x = torch.rand(2, 3, 5, 4, 1)
    y = ZeroPadShortcut(7, 2)(x)
    assert y.shape == (2, 7, 3, 2, 1)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2, ::2])
    assert not y[:, 3:].any()


@pytest.mark.parametrize(("block", "stride"), [(BasicBlock, 2), (BasicBlock, 1), (Bottleneck, 2)])
def test_gradient_passes_through_shortcut_a(block, stride):
    """With a silent branch the block is its shortcut, so that the gradient is 1 wherever the shortcut reads."""
    net = block(3, 8, stride, downsample=ZeroPadShortcut(8 * block.expansion, stride)).eval()
    _silence(net)
    x = (torch.rand(1, 3, 6, 5, 4) + 0.1).requires_grad_()
    net(x).sum().backward()
    expected = torch.zeros_like(x)
    expected[:, :, ::stride, ::stride, ::stride] = 1
    assert torch.equal(x.grad, expected)


def test_gradient_reaches_the_stem_through_shortcuts_alone():
    net = ResNetEncoder(10, "A").train()
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in stage:
            _silence(block)
    x = torch.rand(2, 1, 16, 16, 16, requires_grad=True)
    net(x)[-1].square().sum().backward()
    assert net.conv1.weight.grad.abs().max() > 0
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize("size", [(20, 24, 16), (40, 33, 65)])
def test_scripted_network_answers_equally(encoder, size):
    """The smaller size takes the convolution that skips padding, which the scripted network does without."""
    x = torch.rand(1, 1, *size)
    scripted = torch.jit.script(encoder)
    with torch.no_grad():
        for found, expected in zip(scripted(x), encoder(x), strict=True):
            assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_fresh_weights_are_kaiming_normal_by_fan_out(block):
    torch.manual_seed(0)
    net = ResNetEncoder(10 if block is BasicBlock else 50)
    weight = net.layer4[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (512 * 27)) ** 0.5, rel=0.01)


@pytest.mark.parametrize("depth", [11, "10", 0, None])
def test_unknown_depth(depth):
    with pytest.raises(ValueError, match=r"depth must be one of 10, 18, 34, 50, 101, 152, 200, got "):
        ResNetEncoder(depth)


@pytest.mark.parametrize("shortcut", ["C", "a", None])
def test_unknown_shortcut(shortcut):
    with pytest.raises(ValueError, match="shortcut must be 'A' or 'B', got "):
        ResNetEncoder(10, shortcut)


def _silence(block: nn.Module) -> None:
    last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
