"""The convolution that skips padding, against the library's in double precision."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from published import relative_error
from torch import nn
from torch.nn import functional as F

from med3d_nets import dilation
from med3d_nets.dilation import MAX_FRACTION, DilatedConv3d, covered_fraction

CASES = [
    ((5, 7, 5), 4, 1),
    ((5, 7, 5), 4, 3),
    ((5, 7, 6), 2, 2),
    ((1, 1, 1), 2, 2),
    ((2, 3, 1), 4, 1),
    ((4, 4, 4), 4, 2),
    ((1, 9, 2), 4, 2),
    ((3, 3, 3), 2, 1),
    ((12, 4, 3), 4, 1),
    ((16, 12, 16), 2, 1),
    ((18, 16, 17), 4, 2),
]


@pytest.fixture
def taken(monkeypatch):
    """Sizes for which padding was skipped, in order."""
    sizes = []
    real = dilation._SkipPadding

    class Spy:
        @staticmethod
        def apply(x, *args):
            sizes.append(tuple(x.shape[2:]))
            return real.apply(x, *args)

    monkeypatch.setattr(dilation, "_SkipPadding", Spy)
    return sizes


@pytest.mark.parametrize(("size", "step", "batch"), CASES)
def test_agrees_with_the_library(size, step, batch, taken):
    torch.manual_seed(0)
    layer = DilatedConv3d(5, 6, step)
    x = torch.randn(batch, 5, *size, requires_grad=True)
    y = layer(x)
    grad = torch.randn_like(y)
    y.backward(grad)

    x64, weight64 = (value.detach().double().requires_grad_() for value in (x, layer.weight))
    expected = F.conv3d(x64, weight64, padding=step, dilation=step)
    expected.backward(grad.double())
    assert relative_error(y, expected) < 1e-5
    assert relative_error(x.grad, x64.grad) < 1e-5
    assert relative_error(layer.weight.grad, weight64.grad) < 1e-5
    assert taken == ([size] if covered_fraction(size, step) <= MAX_FRACTION else [])


def test_both_ways_are_among_the_cases():
    assert {covered_fraction(size, step) <= MAX_FRACTION for size, step, _ in CASES} == {True, False}


@pytest.mark.parametrize(("size", "step"), [((5, 7, 5), 4), ((1, 2, 9), 2), ((3, 3, 3), 4)])
def test_covered_fraction_counts_the_taps_inside(size, step):
    inside = sum(
        all(0 <= p + o < n for p, o, n in zip(position, offsets, size, strict=True))
        for position in itertools.product(*map(range, size))
        for offsets in itertools.product((-step, 0, step), repeat=3)
    )
    assert covered_fraction(size, step) == pytest.approx(inside / (27 * size[0] * size[1] * size[2]))


@pytest.mark.parametrize(
    ("size", "step", "skips"), [((5, 7, 5), 4, True), ((5, 7, 5), 2, True), ((30, 30, 30), 4, False)]
)
def test_skips_padding_where_there_is_much(size, step, skips, taken):
    DilatedConv3d(1, 1, step)(torch.rand(1, 1, *size))
    assert taken == ([size] if skips else [])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_precision_uses_the_library(dtype, taken):
    layer = DilatedConv3d(2, 3, 4).to(dtype)
    x = torch.rand(1, 2, 5, 5, 5, dtype=dtype)
    assert torch.equal(layer(x), F.conv3d(x, layer.weight, padding=4, dilation=4))
    assert taken == []


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_skips_too_and_adds_up_in_single(autocast, taken):
    """To the rounding of operands and result: partial sums of bfloat16 would be off by more."""
    torch.manual_seed(0)
    layer = DilatedConv3d(64, 64, 4)
    x = torch.randn(2, 64, 5, 7, 5).bfloat16()
    weight = layer.weight.detach().bfloat16().float().requires_grad_()
    exact_x = x.float().requires_grad_()
    expected = F.conv3d(exact_x, weight, padding=4, dilation=4)
    grad = torch.randn_like(expected).bfloat16()
    wanted = torch.autograd.grad(expected, (exact_x, weight), grad.float())
    x = (x.float() if autocast else x).requires_grad_()
    if not autocast:
        layer.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x)
    found = torch.autograd.grad(y, (x, layer.weight), grad)
    assert taken == [(5, 7, 5)]
    assert y.dtype == torch.bfloat16
    assert {value.dtype for value in found} == {torch.float32 if autocast else torch.bfloat16}
    for value, exact in zip((y, *found), (expected, *wanted), strict=True):
        assert relative_error(value.float(), exact) < 3e-3


def test_other_weights_than_the_input_are_refused_as_the_library_does():
    with pytest.raises(RuntimeError, match="dtype"):
        DilatedConv3d(2, 3, 4)(torch.rand(1, 2, 5, 5, 5).bfloat16())


def test_double_precision_passes_gradcheck():
    layer = DilatedConv3d(2, 2, 2).double()
    x = torch.rand(1, 2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def test_input_in_any_layout(taken):
    layer = DilatedConv3d(3, 4, 4)
    x = torch.rand(2, 3, 5, 4, 6)
    expected = layer(x)
    assert relative_error(layer(x.contiguous(memory_format=torch.channels_last_3d)), expected) < 1e-6
    assert relative_error(layer(x.transpose(2, 4).contiguous().transpose(2, 4)), expected) < 1e-6
    assert len(taken) == 3


def test_frozen_weight_and_input_without_gradient():
    layer = DilatedConv3d(3, 4, 4)
    x = torch.rand(1, 3, 4, 4, 4)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    layer.weight.requires_grad_(False).grad = None
    layer(x.requires_grad_()).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None


def test_second_derivative_is_refused_and_not_wrong():
    x = torch.rand(1, 2, 4, 4, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(DilatedConv3d(2, 2, 4)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_traced_layer_uses_the_library(taken):
    layer = DilatedConv3d(2, 3, 4)
    x = torch.rand(1, 2, 4, 4, 4)
    traced = torch.jit.trace(layer, x, check_trace=False)
    assert taken == []
    bigger = torch.rand(1, 2, 6, 5, 7)
    assert relative_error(traced(bigger), layer(bigger)) < 1e-5


@pytest.mark.parametrize("assign", [False, True])
def test_loads_the_state_of_an_ordinary_convolution(assign):
    ordinary = nn.Conv3d(3, 4, 3, padding=4, dilation=4, bias=False)
    layer = DilatedConv3d(3, 4, 4)
    assert list(layer.state_dict()) == ["weight"]
    layer.load_state_dict(ordinary.state_dict(), assign=assign)
    x = torch.rand(2, 3, 5, 5, 5)
    assert relative_error(layer(x), ordinary(x)) < 1e-5
    ordinary.load_state_dict(layer.state_dict())
    assert torch.equal(ordinary.weight, layer.weight)


def test_copy_is_independent_and_equal(taken):
    layer = DilatedConv3d(3, 4, 4)
    x = torch.rand(2, 3, 5, 5, 5)
    expected = layer(x).detach()
    copied = copy.deepcopy(layer)
    nn.init.zeros_(layer.weight)
    assert torch.equal(copied(x), expected)
    assert len(taken) == 2


def test_optimiser_steps_like_with_the_library():
    layer = DilatedConv3d(3, 4, 4)
    ordinary = nn.Conv3d(3, 4, 3, padding=4, dilation=4, bias=False)
    ordinary.load_state_dict(layer.state_dict())
    x = torch.rand(2, 3, 5, 5, 5)
    for module in (layer, ordinary):
        optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()
    assert relative_error(layer.weight, ordinary.weight) < 1e-5
