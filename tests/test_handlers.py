"""The handlers, on a small network and a few small volumes."""

from __future__ import annotations

import csv
import errno
import json
import logging
import math
import os
import random
import re
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, MeanDice, StatsHandler, ValidationHandler, from_engine
from monai.losses import DiceCELoss
from monai.transforms import AsDiscreted, Compose, RandGaussianNoised
from torch import Tensor, nn

from med3d_nets.errors import Med3dError
from med3d_nets.handlers import (
    BestModelSaver,
    CaseReport,
    DiceReport,
    EpochReport,
    EpochSeed,
    FailureReport,
    ResumableSaver,
)
from med3d_nets.settings import Settings, read_settings
from med3d_nets.weights import load_strict, read_checkpoint, read_tensors

CLASSES = ["background", "left lung", "nodule"]
SETTINGS = Settings("resnet_10", "medicalnet", "whole", 1, CLASSES, [6, 7, 8])
SIZES = {"batch_size": 2, "input_D": 6, "input_H": 7, "input_W": 8}
N_CASES, EPOCH_LENGTH = 5, 3
FILES = "checkpoint_epoch=*.pt"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Waiting for threads would take longer than what they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Net(nn.Sequential):
    """A network that calls ``before`` ahead of each pass, with weights that do not depend on earlier tests."""

    def __init__(self, seed: int = 0, width: int = 4, before: Callable[[nn.Module], None] = lambda net: None) -> None:
        torch.manual_seed(seed)
        super().__init__(nn.Conv3d(1, width, 3, padding=1), nn.Dropout(0.2), nn.ReLU(), nn.Conv3d(width, 3, 1))
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        self.before(self)
        return super().forward(x)


def cases() -> list[dict[str, Tensor]]:
    """Volumes whose brightness tells the class."""
    found = []
    for seed in range(N_CASES):
        label = torch.from_numpy(np.random.RandomState(seed).randint(0, 3, (1, 6, 7, 8)))
        found.append({"image": label.float() - 1, "label": label})
    return found


class Parts:
    """A training with the handlers in the order of ``train.json``."""

    def __init__(self, folder: Path, n_epochs: int = 4, resume_path: str = "", **changes: Any) -> None:
        folder = str(folder)
        self.net = changes.get("net") or Net()
        groups = [
            {"params": self.net[0].parameters(), "lr": 0.1, "name": "new layers"},
            {"params": self.net[3].parameters(), "lr": 0.025, "name": "other layers"},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 3, 0.1)
        self.best = BestModelSaver(self.net, folder, changes.get("settings", SETTINGS))
        self.dataset = Dataset(cases(), Compose([RandGaussianNoised("image", prob=1.0, std=0.3)]))
        self.evaluator = make_evaluator(self.net, self.best)
        objects = {"model": self.net, "optimizer": self.optimizer, "lr_scheduler": self.scheduler, "best": self.best}
        handlers = [
            FailureReport(folder, SIZES),
            EpochSeed(changes.get("seed", 1), self.dataset),
            EpochReport(self.optimizer, len(self.dataset)),
            StatsHandler(name="tests.training", output_transform=lambda output: output["loss"], epoch_log=False),
            LrScheduleHandler(self.scheduler, print_lr=False),
            ValidationHandler(interval=1, validator=self.evaluator),
            ResumableSaver(folder, objects, changes.get("interval", 1), resume_path),
        ]
        without = changes.get("without", ())
        self.trainer = SupervisedTrainer(
            max_epochs=n_epochs,
            device=torch.device("cpu"),
            train_data_loader=DataLoader(self.dataset, batch_size=2, shuffle=True),
            network=self.net,
            loss_function=changes.get("loss", DiceCELoss(to_onehot_y=True, softmax=True)),
            optimizer=self.optimizer,
            train_handlers=[handler for handler in handlers if not isinstance(handler, without)],
            decollate=False,
            amp=changes.get("amp", False),
        )

    def run(self) -> Parts:
        self.trainer.run()
        return self


def make_evaluator(net: nn.Module, *handlers: Any) -> SupervisedEvaluator:
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(cases()[:2]), batch_size=1),
        network=net,
        postprocessing=AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=3),
        key_val_metric={"val_mean_dice": MeanDice(False, output_transform=from_engine(["pred", "label"]))},
        val_handlers=[DiceReport(CLASSES), *handlers],
    )


def numbers(folder: Path) -> list[int]:
    """Epochs of the checkpoints in a folder."""
    return sorted(int(re.search(r"=(\d+)\.pt$", path.name)[1]) for path in folder.glob(FILES))


def checkpoint(folder: Path, epoch: int) -> str:
    return str(folder / f"checkpoint_epoch={epoch}.pt")


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    """Equal bit for bit, at any depth."""
    assert type(one) is type(other), where
    if isinstance(one, Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for name in one:
            assert_equal(one[name], other[name], f"{where}/{name}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}/{index}")
    else:
        assert one == other, where


def at(event: Any, action: Callable[[Engine], None], parts: Parts) -> Parts:
    parts.trainer.add_event_handler(event, action)
    return parts


def message(parts: Parts) -> str:
    with pytest.raises(Med3dError) as caught:
        parts.run()
    return str(caught.value)


def draw_epochs(seed: int, n_epochs: int, first: int = 0, disturb: bool = False) -> list[list[Any]]:
    """What every source of randomness gives in each epoch."""
    dataset = Dataset([{"image": torch.zeros(1, 2, 2, 2)}], Compose([RandGaussianNoised("image", prob=1.0)]))
    drawn: list[list[Any]] = []

    def step(engine: Engine, batch: Any) -> None:
        noise = float(dataset[0]["image"].flatten()[0])
        drawn.append([noise, float(torch.rand(())), float(np.random.rand()), random.random()])
        if disturb:
            torch.rand(3), np.random.rand(3), random.random(), dataset[0]

    engine = Engine(step)
    EpochSeed(seed, dataset).attach(engine)
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
    assert content.keys() == {"model", "optimizer", "lr_scheduler", "best", "trainer"}
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


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    Parts(whole).run()
    run_interrupted(broken)
    for epoch in (3, 4):
        assert_equal(read_checkpoint(checkpoint(broken, epoch)), read_checkpoint(checkpoint(whole, epoch)))
    assert_equal(read_checkpoint(broken / "model.pt"), read_checkpoint(whole / "model.pt"))
    assert (broken / "model.json").read_text() == (whole / "model.json").read_text()


@pytest.mark.parametrize("changes", [{"seed": 2}, {"without": (EpochSeed,)}])
def test_equality_of_resumed_trainings_needs_the_seed(changes: dict[str, Any], tmp_path: Path):
    """The test above tells different trainings apart."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    Parts(whole).run()
    run_interrupted(broken, **changes)
    found, expected = (read_tensors(checkpoint(folder, 4)) for folder in (broken, whole))
    assert not torch.equal(found["0.weight"], expected["0.weight"])


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


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fill_disk(monkeypatch: pytest.MonkeyPatch, keep: dict[str, bytes], folder: Path) -> Callable[[Engine], None]:
    """From the second epoch on, writing stops half way."""

    def save(content: Any, file: Any, **options: Any) -> None:
        file.write(b"PK\x03\x04half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def action(engine: Engine) -> None:
        if engine.state.epoch == 2:
            keep.update(contents(folder))
            monkeypatch.setattr(torch, "save", save)

    return action


@pytest.mark.parametrize("name", ["models", "my checkpoints"])
@pytest.mark.parametrize("improves", [False, True])
def test_full_disk_keeps_the_earlier_files(improves: bool, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The resumable checkpoint fails to be written, or before it the best model."""
    folder, keep = tmp_path / name, {}
    parts = Parts(folder, 3)
    at(Events.EPOCH_STARTED, fill_disk(monkeypatch, keep, folder), parts)
    value = -math.inf if improves else 2.0
    parts.trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: setattr(parts.best, "best", value))
    parts.best.best = None
    if not improves:  # the first epoch's model is written all the same
        parts.trainer.add_event_handler(Events.EPOCH_STARTED(once=1), lambda engine: setattr(parts.best, "best", None))
    shown = message(parts)
    monkeypatch.undo()
    assert keep.keys() == {"model.pt", "model.json", "checkpoint_epoch=1.pt"}
    assert contents(folder) == keep
    read_checkpoint(checkpoint(folder, 1))
    where = f" while writing {folder / 'model.pt'}" if improves else ""
    assert shown == (
        f"no space left on the disk{where} ({os.strerror(errno.ENOSPC)}); "
        f"the last good checkpoint is {checkpoint(folder, 1)}"
    )


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_write_that_the_system_refuses(tmp_path: Path):
    """A limit on the size of files stops PyTorch's own writer, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    parts = Parts(tmp_path, 3, net=Net(width=2000), without=(ValidationHandler, StatsHandler))
    at(Events.EPOCH_STARTED(once=2), lambda engine: limit_files(100_000), parts)
    try:
        shown = message(parts)
    finally:
        limit_files(before)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_epoch=1.pt"]
    read_checkpoint(checkpoint(tmp_path, 1))
    assert shown.startswith("no space left on the disk (")
    assert shown.endswith(f"; the last good checkpoint is {checkpoint(tmp_path, 1)}")


class SpoiltLoss(DiceCELoss):
    """A loss that is ``value`` from the given call on."""

    def __init__(self, value: float, first: int) -> None:
        super().__init__(to_onehot_y=True, softmax=True)
        self.value, self.left = value, first

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        self.left -= 1
        loss = super().forward(input, target)
        return loss if self.left > 0 else loss + self.value


@pytest.mark.parametrize(("value", "name"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_loss_that_is_not_finite(value: float, name: str, tmp_path: Path):
    shown = message(Parts(tmp_path / "checkpoints", loss=SpoiltLoss(value, 2 * EPOCH_LENGTH + 2)))
    assert shown == (
        f"the loss is {name} at epoch 3, iteration 8: lower learning_rate, or check the data for extreme intensities; "
        f"the last good checkpoint is {checkpoint(tmp_path / 'checkpoints', 2)}"
    )
    assert numbers(tmp_path / "checkpoints") == [1, 2]


def test_failure_before_the_first_checkpoint(tmp_path: Path):
    shown = message(Parts(tmp_path, loss=SpoiltLoss(math.nan, 1)))
    assert shown.startswith("the loss is nan at epoch 1, iteration 1: ")
    assert shown.endswith("; no checkpoint was written yet")


def fail_with(error: BaseException, validating: bool) -> Callable[[nn.Module], None]:
    """Raise in the second epoch's training, or in its validation."""
    passes = {True: 0, False: 0}

    def before(net: nn.Module) -> None:
        passes[net.training] += 1
        if net.training != validating and passes[net.training] > (2 if validating else EPOCH_LENGTH):
            raise error

    return before


@pytest.mark.parametrize("validating", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
    ids=["gpu", "cpu"],
)
def test_out_of_memory_names_the_sizes(error: BaseException, validating: bool, tmp_path: Path):
    shown = message(Parts(tmp_path, net=Net(before=fail_with(error, validating))))
    assert shown == (
        f"out of memory ({str(error).splitlines()[0]}). "
        "Lower batch_size, then input_D, then input_H, then input_W, by half; "
        "now: batch_size=2, input_D=6, input_H=7, input_W=8; "
        f"the last good checkpoint is {checkpoint(tmp_path, 1)}"
    )


def test_other_errors_are_passed_on(tmp_path: Path):
    error = RuntimeError("sizes do not fit")
    with pytest.raises(RuntimeError) as caught:
        Parts(tmp_path, net=Net(before=fail_with(error, False))).run()
    assert caught.value is error


def logged(caplog: pytest.LogCaptureFixture, start: str) -> list[str]:
    """Messages of the handlers that start like this."""
    found = [record.getMessage() for record in caplog.records if record.name == "med3d_nets.handlers"]
    return [text for text in found if text.startswith(start)]


def test_epoch_report(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    losses: list[float] = []
    parts = Parts(tmp_path)
    at(Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output["loss"].item()), parts).run()
    texts = logged(caplog, "epoch ")
    assert len(texts) == 4
    for epoch, text in enumerate(texts, 1):
        found = re.fullmatch(
            r"epoch (\d)/4: (\d+\.\d) s, (\d+\.\d) volumes/s, mean loss (\d\.\d{4}), "
            r"learning rates: new layers (\S+), other layers (\S+)",
            text,
        )
        assert found, text
        mean = np.mean(losses[(epoch - 1) * EPOCH_LENGTH : epoch * EPOCH_LENGTH])
        assert (int(found[1]), float(found[4])) == (epoch, pytest.approx(mean, abs=1e-4))
        factor = 0.1 if epoch > 3 else 1
        assert [float(found[5]), float(found[6])] == pytest.approx([0.1 * factor, 0.025 * factor])
    assert parts.trainer.state.metrics["mean_loss"] == pytest.approx(np.mean(losses[-EPOCH_LENGTH:]))


def test_epoch_report_measures_time(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    clock = iter([100.0, 104.0, 200.0, 202.5])
    monkeypatch.setattr("med3d_nets.handlers.time.perf_counter", lambda: next(clock))
    engine = Engine(lambda engine, batch: {"loss": torch.tensor(float(batch))})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.125)
    report = EpochReport(optimizer, 10)
    engine.add_event_handler(Events.EPOCH_STARTED, report.start)
    engine.add_event_handler(Events.ITERATION_COMPLETED, report.collect)
    engine.add_event_handler(Events.EPOCH_COMPLETED, report)
    monkeypatch.setattr("ignite.engine.engine.time.time", lambda: 0.0)
    engine.run([1, 2, 6], max_epochs=2)
    assert logged(caplog, "epoch ") == [
        "epoch 1/2: 4.0 s, 2.5 volumes/s, mean loss 3.0000, learning rates: all 0.125",
        "epoch 2/2: 2.5 s, 4.0 volumes/s, mean loss 3.0000, learning rates: all 0.125",
    ]
    assert engine.state.metrics == {"volumes_per_second": 4.0, "mean_loss": 3.0}


def run_report(report: Any, names: list[list[str]], **details: list[list[float]]) -> Engine:
    """An engine after one epoch over images of these names, with these metrics per case and class."""
    engine = Engine(lambda engine, batch: None)
    engine.state.metric_details = {name: torch.tensor(values) for name, values in details.items()}
    engine.state.metrics = {name: 0.4375 for name in details}
    report.attach(engine)
    batches = [[{"image": MetaTensor(torch.zeros(1), meta={"filename_or_obj": name})} for name in b] for b in names]
    engine.run(batches)
    return engine


def test_dice_report_leaves_absent_classes_out(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    values = [[0.5, math.nan, math.nan], [0.25, 0.75, math.nan], [0.75, 0.25, math.nan], [0.0, math.nan, math.nan]]
    engine = run_report(DiceReport([*CLASSES, "airways"]), [["a"]], val_mean_dice=values)
    metrics = engine.state.metrics
    assert metrics["val_dice_left_lung"] == 0.375
    assert metrics["val_dice_nodule"] == 0.5
    assert math.isnan(metrics["val_dice_airways"])
    assert metrics["val_mean_dice"] == 0.4375
    assert all(type(value) is float for value in metrics.values())
    (text,) = logged(caplog, "validation Dice")
    assert text == "validation Dice: left lung 0.3750, nodule 0.5000, airways nan; mean 0.4375"


def test_dice_report_agrees_with_the_metric(tmp_path: Path):
    parts = Parts(tmp_path, 1).run()
    metrics = parts.evaluator.state.metrics
    details = parts.evaluator.state.metric_details["val_mean_dice"].numpy()
    assert details.shape == (2, 2)
    assert [metrics["val_dice_left_lung"], metrics["val_dice_nodule"]] == pytest.approx(details.mean(0).tolist())
    assert metrics["val_mean_dice"] == pytest.approx(details.mean())
    record = json.loads((tmp_path / "model.json").read_text())
    assert record["epoch"] == 1
    assert record["validation"] == {name: value for name, value in metrics.items() if isinstance(value, float)}
    assert record["validation"].keys() >= {"val_mean_dice", "val_dice_left_lung", "val_dice_nodule"}


METRICS = {"val_mean_dice": "Dice", "val_hd95": "HD95 [mm]"}
NAMES = [["/data/a b.nii.gz", "/data/c.nii.gz"], ["/data/sub, 1/d.nii.gz"]]
DICE = [[0.5, math.nan], [0.25, 1.0], [0.9, 0.5]]
HD95 = [[1.5, math.nan], [2.0, math.inf], [4.0, 0.0]]


def report_cases(folder: Path, overwrite: bool = False) -> None:
    run_report(CaseReport(str(folder), CLASSES, overwrite, METRICS), NAMES, val_mean_dice=DICE, val_hd95=HD95)


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_case_report_writes_cases_and_classes(tmp_path: Path):
    report_cases(tmp_path / "new" / "folder")
    columns = ["Dice left lung", "Dice nodule", "HD95 [mm] left lung", "HD95 [mm] nodule"]
    assert read_csv(tmp_path / "new" / "folder" / "metrics.csv") == [
        ["case", *columns],
        ["/data/a b.nii.gz", "0.5000", "nan", "1.5000", "nan"],
        ["/data/c.nii.gz", "0.2500", "1.0000", "2.0000", "inf"],
        ["/data/sub, 1/d.nii.gz", "0.9000", "0.5000", "4.0000", "0.0000"],
    ]
    assert read_csv(tmp_path / "new" / "folder" / "metrics_summary.csv") == [
        ["metric", "mean", "median", "min", "max", "cases"],
        [columns[0], "0.5500", "0.5000", "0.2500", "0.9000", "3"],
        [columns[1], "0.7500", "0.7500", "0.5000", "1.0000", "2"],
        [columns[2], "2.5000", "2.0000", "1.5000", "4.0000", "3"],
        [columns[3], "inf", "inf", "0.0000", "inf", "2"],
    ]


def test_case_report_logs_a_table(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    report_cases(tmp_path)
    (text,) = logged(caplog, "\n")
    lines = text.splitlines()[1:]
    assert [re.split(r"\s{2,}", line) for line in lines[:2]] == [
        ["case", "Dice left lung", "Dice nodule", "HD95 [mm] left lung", "HD95 [mm] nodule"],
        ["-" * 10, "-" * 14, "-" * 11, "-" * 19, "-" * 16],
    ]
    assert [re.split(r"\s{2,}", line) for line in lines[2:6]] == [
        ["a b.nii.gz", "0.5000", "nan", "1.5000", "nan"],
        ["c.nii.gz", "0.2500", "1.0000", "2.0000", "inf"],
        ["d.nii.gz", "0.9000", "0.5000", "4.0000", "0.0000"],
        ["mean", "0.5500", "0.7500", "2.5000", "inf"],
    ]
    assert len({len(line) for line in lines[:6]}) == 1
    assert lines[6] == f"written: {tmp_path / 'metrics.csv'}, {tmp_path / 'metrics_summary.csv'}"


def test_class_in_no_case(tmp_path: Path):
    values = [[0.5, math.nan]]
    run_report(CaseReport(str(tmp_path), CLASSES, False, {"dice": "Dice"}), [["a"]], dice=values)
    assert read_csv(tmp_path / "metrics_summary.csv")[2] == ["Dice nodule", "nan", "nan", "nan", "nan", "0"]


@pytest.mark.parametrize("name", ["metrics.csv", "metrics_summary.csv"])
def test_case_report_does_not_overwrite(name: str, tmp_path: Path):
    (tmp_path / name).write_text("kept")
    with pytest.raises(Med3dError) as caught:
        CaseReport(str(tmp_path), CLASSES, False, METRICS)
    assert str(caught.value) == (
        f"{tmp_path / name}: exists already; give another --output_dir or pass --overwrite True"
    )
    assert (tmp_path / name).read_text() == "kept"
    report_cases(tmp_path, overwrite=True)
    assert "kept" not in (tmp_path / name).read_text()


def test_case_report_needs_a_row_per_case(tmp_path: Path):
    with pytest.raises(ValueError, match="zip"):
        run_report(CaseReport(str(tmp_path), CLASSES, False, {"dice": "Dice"}), NAMES, dice=DICE[:2])
