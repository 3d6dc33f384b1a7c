"""The handlers, on a small network and a few small volumes."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.transforms import Compose, RandGaussianNoised, RandSpatialCropd
from small_training import (
    CLASSES,
    EPOCH_LENGTH,
    SETTINGS,
    Net,
    Parts,
    assert_equal,
    at,
    checkpoint,
    numbers,
)
from small_training import one_thread as one_thread
from torch import Tensor

from med3d_nets.classification.settings import ClassifierSettings
from med3d_nets.distributed import shuffled
from med3d_nets.errors import Med3dError
from med3d_nets.handlers import BestModelSaver, CleanEnd, EpochSeed, ResumableSaver
from med3d_nets.runs import cached_dataset
from med3d_nets.settings import Settings, read_settings
from med3d_nets.weights import load_strict, read_checkpoint, read_tensors


def draw_epochs(seed: int, n_epochs: int, first: int = 0, disturb: bool = False) -> list[list[Any]]:
    """What every source of randomness gives in each epoch."""
    dataset = cached_dataset([{"image": torch.zeros(1, 2, 2, 2)}], Compose([RandGaussianNoised("image", prob=1.0)]))
    drawn: list[list[Any]] = []

    def step(engine: Engine, batch: Any) -> None:
        noise = float(dataset[0]["image"].flatten()[0])
        drawn.append([noise, float(torch.rand(())), float(np.random.rand()), random.random()])
        if disturb:
            torch.rand(3), np.random.rand(3), random.random(), dataset[0]

    engine = Engine(step)
    EpochSeed(seed, dataset, shuffled(dataset, seed)).attach(engine)
    engine.state.epoch_length, engine.state.iteration, engine.state.epoch = 1, first, first
    engine.state.max_epochs = n_epochs
    engine.run([0], max_epochs=n_epochs)
    return drawn


def test_epochs_are_reproducible():
    once = draw_epochs(1, 3)
    torch.manual_seed(99)
    assert draw_epochs(1, 3, disturb=True) == once
    assert all(len({epoch[source] for epoch in once}) == 3 for source in range(4))
    other = draw_epochs(2, 3)
    assert not {number for epoch in once for number in epoch} & {number for epoch in other for number in epoch}


def test_epoch_does_not_depend_on_earlier_ones():
    assert draw_epochs(1, 3, first=2) == draw_epochs(1, 3)[2:]


def test_large_seeds_are_taken():
    assert len(draw_epochs(2**40, 1)) == 1


def augmented_epochs(n_epochs: int, share: float, first: int = 0, num_workers: int = 0) -> list[bool]:
    """Whether each epoch's volumes were augmented."""
    noise = RandGaussianNoised("image", prob=1.0)
    crop = RandSpatialCropd("image", 2, random_size=False)
    dataset = cached_dataset([{"image": torch.zeros(1, 4, 4, 4)}] * 2, Compose([crop, noise]))
    found: list[set[bool]] = []

    def step(engine: Engine, batch: Any) -> None:
        assert batch["image"].shape[1:] == (1, 2, 2, 2)
        if engine.state.iteration % 2:
            found.append(set())
        found[-1].add(bool(batch["image"].any()))

    engine = Engine(step)
    CleanEnd([crop, noise], n_epochs, share).attach(engine)
    engine.state.iteration, engine.state.epoch, engine.state.epoch_length = 2 * first, first, 2
    engine.state.max_epochs = n_epochs
    engine.run(DataLoader(dataset, num_workers=num_workers), max_epochs=n_epochs)
    assert all(len(each) == 1 for each in found)
    return [each.pop() for each in found]


@pytest.mark.parametrize(
    ("n_epochs", "share", "n_clean"), [(4, 0, 0), (4, 0.1, 0), (5, 0.1, 0), (6, 0.1, 1), (4, 0.5, 2), (3, 1, 3)]
)
def test_last_epochs_are_not_augmented(n_epochs: int, share: float, n_clean: int, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "med3d_nets.handlers")
    expected = [True] * (n_epochs - n_clean) + [False] * n_clean
    assert augmented_epochs(n_epochs, share) == expected
    told = [f"no augmentation from here on: epochs left {n_clean}"] if n_clean else []
    assert [record.getMessage() for record in caplog.records if record.name == "med3d_nets.handlers"] == told


def test_clean_end_of_a_resumed_training_and_in_loader_processes():
    assert augmented_epochs(4, 0.5, first=3) == [False]
    assert augmented_epochs(4, 0.5, first=1) == [True, False, False]
    assert augmented_epochs(3, 0.3, num_workers=2) == [True, True, False]


@pytest.mark.parametrize("share", [-0.1, 1.5, "0.1", None, True])
def test_share_of_a_clean_end(share: Any):
    with pytest.raises(Med3dError, match=r"clean_end is .*, expected a share of the training from 0 \(none\) to 1"):
        CleanEnd([], 4, share)


def run_best(best: BestModelSaver, values: Sequence[float], **others: Any) -> list[bool]:
    """Whether each validation saved."""
    saved = []
    for epoch, value in enumerate(values, 1):
        engine = Engine(lambda engine, batch: None)
        engine.state.key_metric_name = "val_mean_dice"
        engine.state.metrics = {"val_mean_dice": value, **others}
        with torch.no_grad():
            best.network[3].bias.fill_(epoch)
        best.path.unlink(missing_ok=True)
        best.attach(engine)
        engine.state.epoch = epoch
        engine.fire_event(Events.EPOCH_COMPLETED)
        saved.append(best.path.exists())
    return saved


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, 0.3, 0.3, 0.2, 0.31], [True, True, False, False, True]),
        ([math.nan, 0.2, math.nan, 0.1, 0.3], [True, True, False, False, True]),
        ([math.nan, math.nan, 0.0], [True, True, True]),
        ([0.0, 0.0], [True, False]),
        ([-1.0, -0.5], [True, True]),
    ],
)
def test_best_is_saved_on_improvement_alone(values: list[float], expected: list[bool], tmp_path: Path):
    assert run_best(BestModelSaver(Net(), str(tmp_path), SETTINGS), values) == expected


def test_of_equals_the_one_with_the_lower_loss_is_saved(tmp_path: Path):
    best = BestModelSaver(Net(), str(tmp_path), SETTINGS, tie_breaker="val_loss")
    scores = [(0.9, 0.5), (0.9, 0.6), (0.9, 0.4), (0.8, 0.1), (1.0, 0.9)]
    saved = [run_best(best, [score], val_loss=loss)[0] for score, loss in scores]
    assert saved == [True, False, True, False, True]
    assert best.state_dict()["best_tie"] == 0.9


def test_best_model_is_flat_and_its_settings_are_beside_it(tmp_path: Path):
    best = BestModelSaver(Net(), str(tmp_path / "new"), SETTINGS)
    assert run_best(best, [0.1, 0.7], val_dice_nodule=0.25, epochs=3) == [True, True]
    path = tmp_path / "new" / "model.pt"
    content = torch.load(path, weights_only=True)
    assert content.keys() == best.network.state_dict().keys()
    assert all(type(value) is Tensor for value in content.values())
    assert (content["3.bias"] == 2).all()
    load_strict(Net(seed=5), read_tensors(path), path)
    assert read_settings(path.with_suffix(".json")) == SETTINGS
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["epoch"] == 2
    assert record["validation"] == {"val_mean_dice": 0.7, "val_dice_nodule": 0.25}
    assert sorted(path.parent.iterdir()) == [path.with_suffix(".json"), path]


def test_best_that_is_not_beaten_stays(tmp_path: Path):
    best = BestModelSaver(Net(), str(tmp_path), SETTINGS)
    run_best(best, [0.5])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    engine = Engine(lambda engine, batch: None)
    engine.state.key_metric_name, engine.state.metrics = "val_mean_dice", {"val_mean_dice": 0.4}
    best(engine)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_state_of_the_best_makes_a_round_trip(tmp_path: Path):
    trained = Settings("resnet_10", "medicalnet", "whole", 1, CLASSES, [6, 7, 8], pretrained={"file": "a.pt"})
    one = BestModelSaver(Net(), str(tmp_path / "one"), trained)
    assert one.state_dict()["best"] is None
    run_best(one, [0.5])
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other = BestModelSaver(Net(), str(tmp_path / "other"), SETTINGS)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.state_dict() == one.state_dict()
    assert other.settings == trained
    assert run_best(other, [0.5, 0.6]) == [False, True]
    assert read_settings(tmp_path / "other" / "model.json") == trained


class Found:
    """Stands in for a handler that finds settings out."""

    def __init__(self, **found: Any) -> None:
        self.found = found


def test_settings_that_were_found_out_are_saved_with_the_best(tmp_path: Path):
    """Those of the best epoch, in the file and in the state, of the kind that they were."""
    facts = ("resnet_10", "classification", "region", 1, ["a", "b"], [6, 7, 8])
    given = ClassifierSettings(*facts, spacing=[1, 1, 1], margin_mm=2.5)
    one, other = Found(temperature=1.0), Found(dropout=0.25)
    best = BestModelSaver(Net(), str(tmp_path / "one"), given, found_out=[one, other])
    for temperature, value in ((1.5, 0.5), (2.0, 0.7), (3.0, 0.6)):
        one.found = {"temperature": temperature}
        run_best(best, [value])
    expected = replace(given, temperature=2.0, dropout=0.25)
    assert best.settings == expected
    assert read_settings(tmp_path / "one" / "model.json", ClassifierSettings) == expected
    torch.save(best.state_dict(), tmp_path / "state.pt")
    resumed = BestModelSaver(Net(), str(tmp_path / "two"), given, found_out=[one])
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.settings == expected
    one.found = {"temperature": 4.0}
    assert run_best(resumed, [0.7, 0.8]) == [False, True]
    saved = read_settings(tmp_path / "two" / "model.json", ClassifierSettings)
    assert saved == replace(expected, temperature=4.0)


@pytest.mark.parametrize(
    ("interval", "n_epochs", "expected"),
    [(1, 1, [[1]]), (1, 4, [[1], [1, 2], [2, 3], [3, 4]]), (2, 5, [[], [2], [2], [2, 4], [4, 5]]), (9, 2, [[], [2]])],
)
def test_checkpoints_at_the_interval_and_the_end(
    interval: int, n_epochs: int, expected: list[list[int]], tmp_path: Path
):
    found = []
    parts = Parts(tmp_path, n_epochs, interval=interval)
    at(Events.EPOCH_STARTED, lambda engine: found.append(numbers(tmp_path)), parts).run()
    assert [*found[1:], numbers(tmp_path)] == expected


@pytest.mark.parametrize("interval", [0, -1])
def test_interval_is_checked(interval: int, tmp_path: Path):
    with pytest.raises(Med3dError, match=f"save_intervals is {interval}, expected a number of epochs, 1 or more"):
        ResumableSaver(str(tmp_path), {"model": Net()}, interval)


def test_checkpoint_holds_the_training_in_plain_values(tmp_path: Path):
    parts = Parts(tmp_path, 2).run()
    content = read_checkpoint(checkpoint(tmp_path, 2))
    assert content.keys() == {"model", "optimizer", "lr_scheduler", "average", "best", "trainer"}
    assert (content["trainer"]["iteration"], content["trainer"]["epoch_length"]) == (2 * EPOCH_LENGTH, EPOCH_LENGTH)
    assert_equal(read_tensors(checkpoint(tmp_path, 2)), dict(parts.net.state_dict()))
    assert os.stat(checkpoint(tmp_path, 2)).st_mode & 0o444 == 0o444


def test_resuming_restores_everything(tmp_path: Path):
    done = Parts(tmp_path, 2).run()
    state = {}

    def look(engine: Engine) -> None:
        state.setdefault("epoch", engine.state.epoch)
        state.setdefault("momentum", [value["momentum_buffer"].clone() for value in parts.optimizer.state.values()])
        state.setdefault("weights", {name: value.clone() for name, value in parts.net.state_dict().items()})
        state.setdefault("scheduler", parts.scheduler.last_epoch)
        state.setdefault("best", parts.best.best)

    parts = Parts(tmp_path, 3, checkpoint(tmp_path, 2), net=Net(seed=7))
    at(Events.EPOCH_STARTED, look, parts).run()
    assert state["epoch"] == 3
    assert state["scheduler"] == 2
    assert state["best"] == done.best.best > 0
    assert_equal(state["momentum"], [value["momentum_buffer"] for value in done.optimizer.state.values()])
    assert_equal(state["weights"], dict(done.net.state_dict()))
    assert parts.trainer.state.iteration == 3 * EPOCH_LENGTH
    assert [group["lr"] for group in parts.optimizer.param_groups] == pytest.approx([0.01, 0.0025])


def interrupt(engine: Engine) -> None:
    if engine.state.iteration == 2 * EPOCH_LENGTH + 2:  # in the middle of the third epoch
        raise KeyboardInterrupt


def run_interrupted(folder: Path, **changes: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        at(Events.ITERATION_STARTED, interrupt, Parts(folder, **changes)).run()
    assert numbers(folder) == [1, 2]
    torch.manual_seed(12345)
    np.random.seed(12345)
    Parts(folder, resume_path=checkpoint(folder, 2), **{**changes, "net": Net(seed=7)}).run()


@pytest.mark.parametrize("average", [0, 0.5])
def test_interrupted_and_resumed_equals_uninterrupted(average: float, tmp_path: Path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    Parts(whole, average=average).run()
    run_interrupted(broken, average=average)
    for epoch in (3, 4):
        assert_equal(read_checkpoint(checkpoint(broken, epoch)), read_checkpoint(checkpoint(whole, epoch)))
    assert_equal(read_checkpoint(broken / "model.pt"), read_checkpoint(whole / "model.pt"))
    assert (broken / "model.json").read_text() == (whole / "model.json").read_text()
    trained, saved = (read_tensors(whole / name)["0.weight"] for name in ("checkpoint_epoch=4.pt", "model.pt"))
    assert torch.equal(trained, saved) == (not average)


@pytest.mark.parametrize("changes", [{"seed": 2}, {"without": (EpochSeed,)}])
def test_equality_of_resumed_trainings_needs_the_seed(changes: dict[str, Any], tmp_path: Path):
    """The test above tells different trainings apart."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    Parts(whole).run()
    run_interrupted(broken, **changes)
    found, expected = (read_tensors(checkpoint(folder, 4)) for folder in (broken, whole))
    assert not torch.equal(found["0.weight"], expected["0.weight"])


def test_resuming_with_another_schedule_follows_it(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The first two epochs of four were planned as all; the rates then go on as if four had been."""
    rates: list[float] = []
    first = Parts(tmp_path / "a", n_epochs=2)
    first.scheduler.step_size = 1
    first.run()
    parts = Parts(tmp_path / "b", n_epochs=5, resume_path=checkpoint(tmp_path / "a", 2))
    at(Events.EPOCH_STARTED, lambda engine: rates.append(parts.optimizer.param_groups[0]["lr"]), parts).run()
    assert rates == pytest.approx([0.1, 0.01, 0.01])
    assert "with step_size 1; going on with 3" in caplog.text


class Scaler:
    """Stands in for the scaler of a training in half precision, which needs a GPU."""

    def __init__(self) -> None:
        self.steps = 0

    def scale(self, loss: Tensor) -> Tensor:
        return loss

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()

    def update(self) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


@pytest.fixture
def half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda.amp, "GradScaler", Scaler)


@pytest.mark.usefixtures("half_precision")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("before", "after", "steps"), [(True, True, 9), (False, True, 3), (True, False, None)])
def test_gradient_scaler_is_resumed(before: bool, after: bool, steps: int | None, tmp_path: Path):
    """Also where the earlier part ran on a CPU, which has none."""
    Parts(tmp_path, 2, amp=before).run()
    assert ("scaler" in read_checkpoint(checkpoint(tmp_path, 2))) == before
    Parts(tmp_path, 3, checkpoint(tmp_path, 2), amp=after).run()
    content = read_checkpoint(checkpoint(tmp_path, 3))
    assert content.get("scaler") == (steps and {"steps": steps})
