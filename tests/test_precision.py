"""Mixed precision on a CPU."""

from __future__ import annotations

import pytest
import torch
from conftest import BUNDLE
from monai.bundle import ConfigParser
from torch import Tensor, nn

from med3d_nets import create_model, dilation, precision
from med3d_nets.precision import MIN_DEPTH, MixedPrecisionInferer


@pytest.mark.parametrize("instructions", [True, False])
def test_a_cpu_needs_instructions_for_it(instructions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    assert precision.is_faster("cpu") is precision.is_faster(torch.device("cpu")) is instructions
    assert precision.is_faster("cuda")
    assert not precision.is_faster("meta")


def test_the_network_computes_in_half_and_answers_in_single() -> None:
    layer = nn.Conv3d(1, 2, 3)
    seen: list[torch.dtype] = []
    layer.register_forward_hook(lambda module, inputs, answer: seen.append(answer.dtype))
    image = torch.rand(2, 1, MIN_DEPTH, 4, 4)
    exact, mixed = (MixedPrecisionInferer(enabled)(image, layer) for enabled in (False, True))
    assert seen == [torch.float32, torch.bfloat16]
    assert exact.dtype == mixed.dtype == torch.float32
    assert torch.equal(exact, layer(image))
    assert not torch.equal(mixed, exact)
    torch.testing.assert_close(mixed, exact, rtol=0.02, atol=0.02)
    assert not torch.is_autocast_enabled("cpu")


def test_arguments_reach_the_network() -> None:
    image = torch.ones(1, 1, MIN_DEPTH, 1, 1)
    assert MixedPrecisionInferer(True)(image, lambda x, y, z: x + y * z, 2, z=3).unique() == 7


def gradients(enabled: bool, size: tuple[int, int, int] = (24, 32, 24)) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    network = create_model("resnet_10", n_seg_classes=2, head="unet").train()
    image, label = torch.randn(2, 1, *size), torch.randint(0, 2, (2, *size))
    for n_numbers in (2**exponent for exponent in range(4, 21)):
        torch.full((n_numbers,), torch.nan)  # what is freed here is what a gradient that is not written would show
    logits = MixedPrecisionInferer(enabled)(image, network)
    nn.functional.cross_entropy(logits, label).backward()
    return logits.detach(), {name: value.grad for name, value in network.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(
    ("size", "single"), [((8, 32, 24), True), ((16, 32, 24), True), ((17, 32, 24), False), ((40, 16, 16), False)]
)
def test_gradients_of_flat_volumes_are_written(size: tuple[int, int, int], single: bool) -> None:
    """In bfloat16, and at a depth of 2 at any resolution, torch 2.13.0 leaves a part of them as memory was."""
    _, exact = gradients(enabled=False, size=size)
    _, found = gradients(enabled=True, size=size)
    errors = {name: relative_error(value, exact[name]) for name, value in found.items()}
    assert all(error < (1e-6 if single else 0.4) for error in errors.values())
    assert (max(errors.values()) > 0.01) is not single


def test_a_cpu_s_precision_is_named_by_the_depth_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for instructions, mixed in ((True, "mixed precision"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda value=instructions: value)
        assert precision.name_precision("cpu", MIN_DEPTH) == mixed
        assert precision.name_precision("cpu", MIN_DEPTH - 1) == "float32"
        assert precision.name_precision("cuda", 8) == "mixed precision"


def test_gradients_are_near_those_of_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """As near as with the library's convolutions alone; in float32, as the optimiser has them."""
    exact_logits, exact = gradients(enabled=False)
    mixed_logits, mixed = gradients(enabled=True)
    monkeypatch.setattr(dilation, "MAX_FRACTION", 0.0)  # padding is not skipped
    library_logits, library = gradients(enabled=True)
    assert 0 < relative_error(mixed_logits, exact_logits) < 1.1 * relative_error(library_logits, exact_logits) < 0.02
    assert exact.keys() == mixed.keys()
    assert {value.dtype for value in mixed.values()} == {torch.float32}
    of_mixed, of_library, of_exact = (torch.cat([value.flatten() for value in each.values()])
                                      for each in (mixed, library, exact))  # fmt: skip
    assert relative_error(of_mixed, of_exact) < 1.1 * relative_error(of_library, of_exact)
    for name, value in exact.items():
        assert nn.functional.cosine_similarity(mixed[name].flatten(), value.flatten(), dim=0) > 0.95, name


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def parsed(recipe: str, **options: object) -> list[object]:
    """What the shipped JSON has in mixed precision on this CPU: the network, the trainer's own, the evaluator's own."""
    parser = ConfigParser()
    parser.read_config([BUNDLE / "configs" / name for name in ("train.json", "patch.json")[: 1 + (recipe == "patch")]])
    parser.update({"bundle_root": str(BUNDLE), "no_cuda": True, **options})
    inferer = parser.get_parsed_content("train::inferer")
    return [inferer.enabled, *(parser.get_parsed_content(f"{part}::amp") for part in ENGINES)]


ENGINES = ("train::trainer", "validate::evaluator")


@pytest.mark.parametrize("instructions", [True, False])
def test_the_recipes_on_a_cpu(instructions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation is in single precision, and so is the whole recipe, which is upstream's."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    assert parsed("whole") == [False, False, False]
    assert parsed("whole", amp=True) == [True, False, False]
    assert parsed("patch") == [instructions, False, False]
    assert parsed("patch", amp=False) == [False, False, False]
