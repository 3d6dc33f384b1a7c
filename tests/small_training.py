"""A training of seconds, with the handlers in the order of ``train.json``, for their tests."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, MeanDice, StatsHandler, ValidationHandler, from_engine
from monai.losses import DiceCELoss
from monai.transforms import AsDiscreted, Compose, RandGaussianNoised
from torch import Tensor, nn

from med3d_nets.averaging import WeightAverage
from med3d_nets.distributed import shuffled
from med3d_nets.handlers import BestModelSaver, EpochSeed, FailureReport, ResumableSaver
from med3d_nets.reports import DiceReport, EpochReport
from med3d_nets.runs import cached_dataset
from med3d_nets.settings import Settings

CLASSES = ["background", "left lung", "nodule"]
SETTINGS = Settings("resnet_10", "medicalnet", "whole", 1, CLASSES, [6, 7, 8])
SIZES = {"batch_size": 2, "input_D": 6, "input_H": 7, "input_W": 8}
N_CASES, EPOCH_LENGTH = 5, 3
FILES = "checkpoint_epoch=*.pt"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Waiting for threads would take longer than what they compute; for modules that import this."""
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
        self.average = WeightAverage(self.net, n_epochs * EPOCH_LENGTH, changes.get("average", 0))
        self.best = BestModelSaver(self.average.network, folder, changes.get("settings", SETTINGS))
        self.dataset = cached_dataset(cases(), Compose([RandGaussianNoised("image", prob=1.0, std=0.3)]))
        self.sampler = shuffled(self.dataset, 1)
        self.evaluator = make_evaluator(self.average.network, self.best)
        objects = {"model": self.net, "optimizer": self.optimizer, "lr_scheduler": self.scheduler}
        objects |= {"average": self.average, "best": self.best}
        handlers = [
            FailureReport(folder, SIZES),
            EpochSeed(changes.get("seed", 1), self.dataset, self.sampler),
            EpochReport(self.optimizer, len(self.dataset)),
            StatsHandler(name="tests.training", output_transform=from_engine(["loss"], first=True), epoch_log=False),
            LrScheduleHandler(self.scheduler, print_lr=False),
            self.average,
            ValidationHandler(interval=1, validator=self.evaluator),
            ResumableSaver(folder, objects, changes.get("interval", 1), resume_path),
        ]
        without = changes.get("without", ())
        self.trainer = SupervisedTrainer(
            max_epochs=n_epochs,
            device=torch.device("cpu"),
            train_data_loader=DataLoader(self.dataset, batch_size=2, sampler=self.sampler),
            network=self.net,
            loss_function=changes.get("loss", DiceCELoss(to_onehot_y=True, softmax=True)),
            optimizer=self.optimizer,
            train_handlers=[handler for handler in handlers if not isinstance(handler, without)],
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
