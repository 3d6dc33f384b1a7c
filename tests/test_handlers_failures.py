"""Trainings that fail: full disks, losses that are not finite, too little memory; on a small network."""

from __future__ import annotations

import errno
import math
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.handlers import StatsHandler, ValidationHandler
from monai.losses import DiceCELoss
from small_training import EPOCH_LENGTH, Net, Parts, at, checkpoint, numbers
from small_training import one_thread as one_thread
from torch import Tensor, nn

from med3d_nets.errors import Med3dError
from med3d_nets.weights import read_checkpoint


def message(parts: Parts) -> str:
    with pytest.raises(Med3dError) as caught:
        parts.run()
    return str(caught.value)


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
        f"the last good checkpoint is {checkpoint(folder, 1)}; go on from it with --resume_path"
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
    assert shown.endswith(f"; the last good checkpoint is {checkpoint(tmp_path, 1)}; go on from it with --resume_path")


@pytest.mark.parametrize(
    ("where", "epoch", "last"),
    [
        (Events.ITERATION_STARTED(once=2), 1, 0),
        (Events.ITERATION_STARTED(once=EPOCH_LENGTH + 1), 2, 1),
        (Events.EPOCH_COMPLETED(once=2), 2, 2),
    ],
)
def test_ctrl_c_stays_one_and_names_the_checkpoint(where: Any, epoch: int, last: int, tmp_path: Path):
    def stop(engine: Engine) -> None:
        raise KeyboardInterrupt

    parts = Parts(tmp_path, 3)
    at(where, stop, parts)
    with pytest.raises(KeyboardInterrupt) as caught:
        parts.run()
    written = f"the last good checkpoint is {checkpoint(tmp_path, last)}; go on from it with --resume_path"
    expected = written if last else "no checkpoint was written yet"
    assert str(caught.value) == f"interrupted in epoch {epoch}; {expected}"


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
        f"the last good checkpoint is {checkpoint(tmp_path / 'checkpoints', 2)}; go on from it with --resume_path"
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
        f"the last good checkpoint is {checkpoint(tmp_path, 1)}; go on from it with --resume_path"
    )


def test_other_errors_are_passed_on(tmp_path: Path):
    error = RuntimeError("sizes do not fit")
    with pytest.raises(RuntimeError) as caught:
        Parts(tmp_path, net=Net(before=fail_with(error, False))).run()
    assert caught.value is error
