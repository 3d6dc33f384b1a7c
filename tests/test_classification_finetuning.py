"""What of a pretrained encoder learns, and when."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from classified import write_images, write_text
from conftest import BUNDLE
from ignite import distributed as idist
from ignite.engine import Engine, Events
from published import redraw, write_published
from small_training import assert_equal
from test_every_bundle import workflow
from torch import nn

from med3d_nets.classification.finetuning import GradualUnfreezing, check_pretrained, freeze_encoder
from med3d_nets.errors import Med3dError
from med3d_nets.networks import ClassificationNet, create_classifier
from med3d_nets.runs import layer_rates
from med3d_nets.weights import read_checkpoint

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
    ("finetune", "parts"),
    [("full", STEM | LAYERS), ("frozen", set()), ("gradual", set())],
    ids=["full", "frozen", "gradual"],
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


def run_epochs(
    network: ClassificationNet,
    n_epochs: int,
    first: int = 0,
    share: float = 0.5,
    optimizer: torch.optim.Optimizer | None = None,
) -> list[set[str]]:
    """What learns in each epoch."""
    found = []
    engine = Engine(lambda engine, batch: found.append(learning(network)))
    GradualUnfreezing(network, optimizer or torch.optim.AdamW(network.parameters()), n_epochs, share).attach(engine)
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
    GradualUnfreezing(network, torch.optim.AdamW(network.parameters()), 6).attach(engine)
    engine.run([0], max_epochs=3)
    late = {"layer3", "layer4"}
    assert changed == [(set(), {"head"}), (late, {"head", *late}), ({*LAYERS}, {"head", *LAYERS})]


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_the_plan_is_told(network: ClassificationNet, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "med3d_nets.classification.finetuning")
    run_epochs(freeze_encoder(network, "gradual"), 12)
    plan, first, *_, last = messages(caplog)
    assert plan == (
        "unfreezing: the head learns; layer4 from epoch 2 on; layer3 from epoch 3 on; layer2 from epoch 4 on; "
        "layer1 from epoch 5 on; conv1, bn1 from epoch 6 on"
    )
    assert first == "epoch 2: layer4 learns from here on"
    assert last == "epoch 6: conv1, bn1 learn from here on"
    caplog.clear()
    run_epochs(freeze_encoder(network, "gradual"), 1)
    assert messages(caplog) == ["unfreezing: the head learns; not layer4, layer3, layer2, layer1, conv1, bn1"]


def step(network: ClassificationNet, optimizer: torch.optim.Optimizer) -> None:
    nn.functional.cross_entropy(network(torch.rand(2, 1, 16, 16, 16)), torch.tensor([0, 1])).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_what_has_learned_goes_on_when_epochs_are_added(
    network: ClassificationNet, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 10 epochs, three stages learn in the fourth; of 40, a single one would in the fifth."""
    caplog.set_level("INFO", "med3d_nets.classification.finetuning")
    optimizer = torch.optim.AdamW(network.parameters())
    freeze_encoder(network, "gradual")
    for stage in ("layer4", "layer3", "layer2"):
        network.encoder.get_submodule(stage).requires_grad_(True)
    step(network, optimizer)
    restored = torch.optim.AdamW(network.parameters())
    restored.load_state_dict(optimizer.state_dict())
    found = run_epochs(freeze_encoder(network, "gradual"), 40, first=4, optimizer=restored)
    assert found == [*[ORDER[3]] * 10, *[ORDER[4]] * 3, *[ORDER[5]] * 23]
    plan = "layer4, layer3, layer2 learn already; layer1 from epoch 15 on; conv1, bn1 from epoch 18 on"
    assert messages(caplog)[0] == f"unfreezing: {plan}"


@pytest.mark.parametrize("fused", [True, False])
def test_weight_decay_leaves_what_is_frozen_alone(network: ClassificationNet, fused: bool) -> None:
    freeze_encoder(network, "gradual").train()
    groups = layer_rates(network, ["head"], 0.1, from_scratch=False)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.5, fused=fused)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in network.parameters()}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for _ in range(2):
        step(network, optimizer)
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"head.linear.weight", "head.linear.bias"}
    network.encoder.layer4.requires_grad_(True)
    step(network, optimizer)
    assert not torch.equal(network.encoder.layer4[0].conv1.weight, before["encoder.layer4.0.conv1.weight"])


def test_resumed_gradual_training_ends_as_one_that_never_stopped(tmp_path: Path) -> None:
    """Of four epochs by the shipped config, three stages follow in the second and the others in the third."""
    write_images(tmp_path, [f"case_{index}" for index in range(6)])
    labels = {f"case_{index}": index % 2 for index in range(6)}
    published = write_published(tmp_path / "resnet_10.pth", redraw(10, "B"))
    options = {
        "data_root": str(tmp_path),
        "img_list": write_text(tmp_path, dict(list(labels.items())[:4])),
        "val_list": write_text(tmp_path, dict(list(labels.items())[4:]), "val.txt"),
        "pretrain_path": str(published),
        "finetune": "gradual",
        "n_epochs": 4,
        "save_intervals": 2,
        "batch_size": 2,
        "input_size": [16, 16, 16],
        "spacing": [1, 1, 1],
        "report": False,
    }
    results = []
    for folder, stop in ((tmp_path / "whole", 4), (tmp_path / "halves", 2), (tmp_path / "halves", 4)):
        bundle = Path(shutil.copytree(BUNDLE, folder, dirs_exist_ok=True))
        stopped = folder / "models" / "classification" / "checkpoint_epoch=2.pt"
        training = workflow(
            bundle, "train", "classification/train", **options, resume_path=str(stopped) if stopped.exists() else ""
        )
        training.run_id = "training"
        trainer = training.parser.get_parsed_content("train::trainer")
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=stop), lambda engine: engine.terminate())
        training.run()
        results.append(read_checkpoint(stopped.with_name(f"checkpoint_epoch={stop}.pt")))
    whole, _, halves = results
    for name in ("model", "optimizer", "average", "best", "lr_scheduler"):
        assert_equal(whole[name], halves[name], name)


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
