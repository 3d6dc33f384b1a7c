"""Activation checkpointing: the same training in less memory."""

from __future__ import annotations

import contextlib
import copy
import io

import pytest
import torch
from monai.losses import DiceCELoss
from published import relative_error
from torch import nn
from torch.multiprocessing.spawn import spawn

from med3d_nets import checkpointing
from med3d_nets.checkpointing import checkpoint_activations
from med3d_nets.errors import Med3dError
from med3d_nets.footprint import iteration_cost
from med3d_nets.heads import UNetHead
from med3d_nets.networks import HEADS, SegmentationNet, create_model, freeze_batch_norm
from med3d_nets.resnet import ResNetEncoder

SIZE = (9, 16, 16)


def pair(depth: int, head: str, frozen: list[str]) -> tuple[nn.Module, nn.Module]:
    """A network, and one with the same weights that is checkpointed."""
    torch.manual_seed(0)
    plain = SegmentationNet(depth, "A" if depth == 18 else "B", 3, in_channels=2, head=head)
    other = checkpoint_activations(copy.deepcopy(plain))
    return freeze_batch_norm(plain, frozen).train(), freeze_batch_norm(other, frozen).train()


def train(network: nn.Module, steps: int, half: bool = False) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The last step's gradients, and the state after a few steps."""
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3, fused=True)
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    for _ in range(steps):
        image = torch.rand(2, 2, *SIZE, generator=generator)
        label = torch.randint(0, 3, (2, 1, *SIZE), generator=generator)
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext():
            loss = loss_function(network(image), label)
        loss.backward()
        optimiser.step()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert all(gradient is not None for gradient in gradients)
    return [gradient for gradient in gradients if gradient is not None], network.state_dict()


def assert_equal(plain: tuple[list[torch.Tensor], dict], other: tuple[list[torch.Tensor], dict]) -> None:
    assert plain[1].keys() == other[1].keys()
    assert [name for name, value in plain[1].items() if not torch.equal(value, other[1][name])] == []
    assert all(torch.equal(a, b) for a, b in zip(plain[0], other[0], strict=True))


@pytest.mark.parametrize("frozen", [[], ["encoder"]], ids=["", "frozen"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("depth", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_training_is_the_same_to_the_bit(depth: int, head: str, frozen: list[str]) -> None:
    """Weights, gradients, running statistics and the count of batches."""
    plain, other = pair(depth, head, frozen)
    before = {name: value.clone() for name, value in plain.named_buffers()}
    expected, found = train(plain, 2), train(other, 2)
    assert_equal(expected, found)
    counts = {name: int(value) for name, value in found[1].items() if name.endswith("num_batches_tracked")}
    assert counts == {name: 0 if any(part in name for part in frozen) else 2 for name in counts}
    kept = [name for name, value in other.named_buffers() if torch.equal(value, before[name])]
    assert all(any(part in name for part in frozen) for name in kept)


@pytest.mark.parametrize("frozen", [[], ["encoder"]], ids=["", "frozen"])
@pytest.mark.parametrize("head", HEADS)
def test_mixed_precision_is_the_same_as_far_as_it_is_reproducible(head: str, frozen: list[str]) -> None:
    """Of norms and biases: on some CPUs, torch's bfloat16 gradient of a convolution's weight is another in each run."""
    plain, other = pair(10, head, frozen)
    (expected, before), (found, after) = train(plain, 1, half=True), train(other, 1, half=True)
    vectors = [index for index, gradient in enumerate(expected) if gradient.dim() == 1]
    assert len(vectors) > 20
    assert all(torch.equal(expected[index], found[index]) for index in vectors)
    assert all(torch.equal(before[name], after[name]) for name, _ in plain.named_buffers())


def test_segments_of_several_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, other = pair(50, "unet", ["layer4"])
    monkeypatch.setattr(checkpointing, "MAX_BLOCKS", 2)
    assert_equal(train(plain, 1), train(other, 1))
    blocks: list[nn.Module] = [nn.Identity() for _ in range(23)]
    monkeypatch.setattr(checkpointing, "MAX_BLOCKS", 6)
    portions = list(checkpointing._portions(blocks))
    assert [len(portion) for portion in portions] == [6, 6, 6, 5]
    assert [block for portion in portions for block in portion] == blocks


def test_a_kept_graph_gives_the_gradients_again() -> None:
    _, network = pair(10, "unet", [])
    loss = network(torch.rand(2, 2, *SIZE)).logsumexp(1).mean()
    loss.backward(retain_graph=True)
    first = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    state = copy.deepcopy(network.state_dict())
    loss.backward()
    twice = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert all(torch.allclose(2 * a, b) for a, b in zip(first, twice, strict=True))
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is checkpointed from now on."""
    seen: list[object] = []
    real = checkpointing.checkpoint

    def counted(run: object, *inputs: object, **options: object) -> object:
        seen.append(run)
        return real(run, *inputs, **options)

    monkeypatch.setattr(checkpointing, "checkpoint", counted)
    return seen


@pytest.mark.parametrize("head", HEADS)
def test_only_training_is_changed(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls(monkeypatch)
    plain, other = pair(10, head, [])
    x = torch.rand(2, 2, *SIZE)
    plain.eval(), other.eval()
    assert torch.equal(plain(x), other(x))
    with torch.no_grad():
        assert relative_error(torch.jit.trace(other, x)(x), plain(x)) < 1e-5
        other.train()(x)
    assert seen == []
    assert torch.equal(plain.train()(x), other(x))
    assert len(seen) > 5


def test_a_saved_network_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a copy, and from a file, neither of which shares a weight with the original."""
    _, network = pair(10, "unet", [])
    copied = copy.deepcopy(network)
    file = io.BytesIO()
    torch.save(network, file)
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    expected = train(network, 1)
    seen = calls(monkeypatch)
    for again in (copied, loaded):
        assert_equal(expected, train(again, 1))
        assert seen
        seen.clear()


def test_a_fresh_network_with_its_weights_is_scripted() -> None:
    network = checkpoint_activations(create_model("resnet_10", head="unet")).eval()
    fresh = create_model("resnet_10", head="unet").eval()
    fresh.load_state_dict(network.state_dict())
    x = torch.rand(1, 1, *SIZE)
    with torch.no_grad():
        assert relative_error(torch.jit.script(fresh)(x), network(x)) < 1e-5


def test_switched_off_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls(monkeypatch)
    network = create_model("resnet_10").train()
    assert checkpoint_activations(network, False) is network
    network(torch.rand(2, 1, *SIZE))
    assert seen == []
    assert "forward" not in vars(network.encoder)


def test_twice_is_once(monkeypatch: pytest.MonkeyPatch) -> None:
    once = checkpoint_activations(create_model("resnet_10")).train()
    twice = checkpoint_activations(checkpoint_activations(create_model("resnet_10"))).train()
    seen = calls(monkeypatch)
    once(torch.rand(2, 1, *SIZE))
    n_calls = len(seen)
    twice(torch.rand(2, 1, *SIZE))
    assert len(seen) == 2 * n_calls


def test_the_parts_of_a_network_may_stand_alone() -> None:
    encoder = checkpoint_activations(ResNetEncoder(10)).train()
    features = encoder(torch.rand(2, 1, *SIZE))
    head = checkpoint_activations(UNetHead(encoder.channels, 1, 2)).train()
    head(features, torch.rand(2, 1, *SIZE)).mean().backward()
    assert encoder.conv1.weight.grad is not None


def test_another_network_is_refused() -> None:
    with pytest.raises(Med3dError, match="Linear has none of the modules that it is for: ResNetEncoder, UNetHead"):
        checkpoint_activations(nn.Linear(2, 2))
    network = nn.Linear(2, 2)
    assert checkpoint_activations(network, False) is network


def test_the_convolutions_of_the_decoder_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder's 3 x 3 x 3 convolutions are not computed again; the encoder's are."""
    _, network = pair(10, "unet", [])
    runs: dict[str, int] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(lambda *_, name=name: runs.update({name: runs.get(name, 0) + 1}))
    network(torch.rand(2, 2, *SIZE)).mean().backward()
    once = {name for name, count in runs.items() if count == 1}
    assert {name for name in runs if name.startswith(("head.blocks", "head.bottom"))} <= once
    assert "encoder.layer1.0.conv1" not in once


@pytest.mark.parametrize(("variant", "share"), [("resnet_10", 0.62), ("resnet_50", 0.45)])
def test_memory_is_saved(variant: str, share: float) -> None:
    """Two fifths and more than half of it, for about a quarter more operations."""
    size = (96, 160, 160)
    plain, flop = iteration_cost(variant, size, 2, head="unet")
    saved, more = iteration_cost(variant, size, 2, head="unet", activation_checkpointing=True)
    assert saved < share * plain
    assert 1.1 < more / flop < 1.35


def _process(rank: int, folder: str, checkpointed: bool) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/{checkpointed}", rank=rank, world_size=2)
    plain, other = pair(10, "unet", [])
    network = nn.parallel.DistributedDataParallel(other if checkpointed else plain)
    generator = torch.Generator().manual_seed(rank)
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(2):
        optimiser.zero_grad()
        network(torch.rand(2, 2, *SIZE, generator=generator)).logsumexp(1).mean().backward()
        optimiser.step()
    torch.save(network.module.state_dict(), f"{folder}/{checkpointed}_{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_without(tmp_path) -> None:
    for checkpointed in (False, True):
        spawn(_process, (str(tmp_path), checkpointed), nprocs=2)
    for rank in range(2):
        plain, other = (torch.load(tmp_path / f"{checkpointed}_{rank}.pt") for checkpointed in (False, True))
        assert all(torch.equal(value, other[name]) for name, value in plain.items())
