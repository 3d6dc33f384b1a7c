"""What of a pretrained encoder learns, and when."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite import distributed as idist
from ignite.engine import Engine
from torch import nn

from med3d_nets.classification.finetuning import GradualUnfreezing, check_pretrained, freeze_encoder
from med3d_nets.errors import Med3dError
from med3d_nets.networks import ClassificationNet, create_classifier

STEM, LAYERS = {"conv1", "bn1"}, {f"layer{number}" for number in (1, 2, 3, 4)}


@pytest.fixture
def network() -> ClassificationNet:
    torch.manual_seed(0)
    return create_classifier("resnet_10", 2)


def learning(network: ClassificationNet) -> set[str]:
    """Children of the encoder all of whose parameters learn; the others' must not."""
    learns: dict[str, set[bool]] = {}
    for name, parameter in network.encoder.named_parameters():
        learns.setdefault(name.split(".")[0], set()).add(parameter.requires_grad)
    assert all(len(found) == 1 for found in learns.values())
    return {name for name, found in learns.items() if found == {True}}


def train_step(network: ClassificationNet) -> tuple[set[str], set[str]]:
    """Parts whose batch norms' statistics, and whose weights, an iteration as MONAI's trainer's changes."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    nn.functional.cross_entropy(network(torch.rand(2, 1, 16, 16, 16)), torch.tensor([0, 1])).backward()
    optimizer.step()
    optimizer.zero_grad()
    changed = [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])]
    statistics = {name for name in changed if "running_" in name or "num_batches" in name}
    parts = [{name.removeprefix("encoder.").split(".")[0] for name in each} for each in (statistics, changed)]
    return parts[0], parts[1]


@pytest.mark.parametrize(
    ("finetune", "parts"), [("full", STEM | LAYERS), ("frozen", set()), ("gradual", set())], ids=str
)
def test_parts_that_learn_from_the_start(network: ClassificationNet, finetune: str, parts: set[str]) -> None:
    assert freeze_encoder(network, finetune) is network
    assert learning(network) == parts
    statistics, weights = train_step(network)
    assert statistics == {"bn1", *LAYERS} & parts
    assert weights == parts | {"head"}


def test_frozen_batch_norms_use_the_statistics_that_they_keep(network: ClassificationNet) -> None:
    freeze_encoder(network, "frozen")
    x = torch.rand(2, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(network.train().forward_features(x), network.eval().forward_features(x))


def test_frozen_batch_norms_stay_so_where_several_gpus_replace_them(network: ClassificationNet) -> None:
    freeze_encoder(network, "frozen")
    nn.SyncBatchNorm.convert_sync_batchnorm(network)
    assert isinstance(network.encoder.bn1, nn.SyncBatchNorm)
    assert train_step(network) == (set(), {"head"})


def run_epochs(network: ClassificationNet, n_epochs: int, first: int = 0, share: float = 0.5) -> list[set[str]]:
    """What learns in each epoch."""
    found = []
    engine = Engine(lambda engine, batch: found.append(learning(network)))
    GradualUnfreezing(network, n_epochs, share).attach(engine)
    engine.state.epoch_length, engine.state.iteration, engine.state.epoch = 1, first, first
    engine.state.max_epochs = n_epochs
    engine.run([0], max_epochs=n_epochs)
    return found


ORDER = [set(), {"layer4"}, {"layer4", "layer3"}, {"layer4", "layer3", "layer2"}, LAYERS, LAYERS | STEM]


@pytest.mark.parametrize(
    ("n_epochs", "share", "starts"),
    [
        (12, 0.5, [2, 3, 4, 5, 6]),
        (100, 0.5, [10, 18, 26, 35, 43]),
        (12, 1.0, [3, 5, 7, 9, 11]),
        (4, 0.5, [2, 2, 2, 3, 3]),
        (1, 0.5, []),
    ],
)
def test_stages_start_to_learn_one_after_the_other(
    network: ClassificationNet, n_epochs: int, share: float, starts: list[int]
) -> None:
    freeze_encoder(network, "gradual")
    found = run_epochs(network, n_epochs, share=share)
    assert found == [ORDER[sum(start <= epoch for start in starts)] for epoch in range(1, n_epochs + 1)]


def test_statistics_of_a_stage_move_as_it_learns(network: ClassificationNet) -> None:
    freeze_encoder(network, "gradual")
    changed: list[tuple[set[str], set[str]]] = []
    engine = Engine(lambda engine, batch: changed.append(train_step(network)))
    GradualUnfreezing(network, 6).attach(engine)
    engine.run([0], max_epochs=3)
    late = {"layer3", "layer4"}
    assert changed == [(set(), {"head"}), (late, {"head", *late}), ({*LAYERS}, {"head", *LAYERS})]


def test_resumed_training_has_what_it_had(network: ClassificationNet, caplog: pytest.LogCaptureFixture) -> None:
    freeze_encoder(network, "gradual")
    with caplog.at_level("INFO", "med3d_nets.classification.finetuning"):
        assert run_epochs(network, 12, first=3) == [*ORDER[3:], *[ORDER[-1]] * 6]
    assert [record.getMessage() for record in caplog.records] == [
        "epoch 4: layer4 learns from here on",
        "epoch 4: layer3 learns from here on",
        "epoch 4: layer2 learns from here on",
        "epoch 5: layer1 learns from here on",
        "epoch 6: conv1, bn1 learns from here on",
    ]


def test_gradual_is_for_one_process(network: ClassificationNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    for finetune in ("full", "frozen"):
        freeze_encoder(network, finetune)
    with pytest.raises(Med3dError, match="finetune is 'gradual', expected 'full' or 'frozen' with several processes"):
        freeze_encoder(network, "gradual")


@pytest.mark.parametrize("word", ["none", "", None, ["full"]])
def test_unknown_word(network: ClassificationNet, word: Any) -> None:
    with pytest.raises(Med3dError, match=r"^finetune is .*, expected one of full, gradual, frozen$"):
        freeze_encoder(network, word)
    assert learning(network) == STEM | LAYERS


@pytest.mark.parametrize(("finetune", "pretrained"), [("full", False), ("frozen", True), ("gradual", True)])
def test_random_encoders_must_learn(finetune: str, pretrained: bool) -> None:
    check_pretrained(finetune, pretrained)
    if finetune != "full":
        with pytest.raises(Med3dError, match="without pretrained weights, expected 'full'"):
            check_pretrained(finetune, False)
