"""Several processes: the unit tests pretend, the others start two with ``torchrun`` on the CPU (gloo)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE
from ignite import distributed as idist
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import distributed as dist

from med3d_nets import distributed
from med3d_nets.distributed import each_once, gather, gather_shares, select_device, shard, shuffled, start
from med3d_nets.errors import Med3dError
from med3d_nets.weights import read_checkpoint

Run = Callable[..., subprocess.CompletedProcess[str]]
TRAIN = "['configs/train.json','configs/multi_gpu_train.json']"
EVALUATE = ["configs/train.json", "configs/evaluate.json"]
SMALL = {"n_seg_classes": 3, "input_D": 16, "input_H": 20, "input_W": 16, "pretrain_path": "", "n_epochs": 3}
SMALL |= {"no_cuda": True}
FROZEN = {"freeze_batch_norm": "['encoder','head']", "learning_rate": 1e-5}


def message(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(Med3dError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def pretend(monkeypatch: pytest.MonkeyPatch, gpus: int, rank: int = 0, processes: int = 1) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(dist, "is_initialized", lambda: processes > 1)
    monkeypatch.setattr(idist, "get_world_size", lambda: processes)
    monkeypatch.setattr(idist, "get_rank", lambda: rank)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))


@pytest.mark.parametrize("gpu_id", [0, 7, [0, 1]])
def test_without_gpu_the_cpu_is_taken(gpu_id: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, gpus=0)
    assert select_device(gpu_id=gpu_id) == torch.device("cpu")


@pytest.mark.parametrize(("gpu_id", "index"), [(0, 0), (1, 1), ([1], 1), ((0,), 0), ([], 0)])
def test_gpu_is_taken_if_wanted(gpu_id: Any, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, gpus=2)
    assert select_device(gpu_id=gpu_id) == torch.device("cuda", index)
    assert select_device(no_cuda=True, gpu_id=gpu_id) == torch.device("cpu")


@pytest.mark.parametrize("gpu_id", [2, -1, [5]])
def test_unknown_gpu_is_refused(gpu_id: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, gpus=2)
    number = gpu_id[0] if isinstance(gpu_id, list) else gpu_id
    assert message(select_device, gpu_id=gpu_id) == f"gpu_id is {number}, but this machine has GPUs 0 to 1"


@pytest.mark.parametrize(("gpu_id", "indices"), [([], [0, 1]), ([3, 1], [3, 1])])
def test_each_process_takes_a_gpu(gpu_id: list[int], indices: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, index in enumerate(indices):
        pretend(monkeypatch, gpus=4, rank=rank, processes=2)
        assert select_device(gpu_id=gpu_id) == torch.device("cuda", index)


@pytest.mark.parametrize(("gpu_id", "processes"), [([0, 1], 1), (0, 2), ([0, 1, 2], 2)])
def test_each_gpu_needs_a_process(gpu_id: Any, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, gpus=4, processes=processes)
    text = message(select_device, gpu_id=gpu_id)
    count = 1 if gpu_id == 0 else len(gpu_id)
    assert f"this machine runs {processes} process" in text
    assert f"torchrun --nproc_per_node={count} " in text


@pytest.mark.parametrize("gpu_id", [[1, 1], "0,1", ["0"]])
def test_gpus_are_different_numbers(gpu_id: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, gpus=4, processes=2)
    assert "expected a number, or different numbers" in message(select_device, gpu_id=gpu_id)


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, gpus=1, processes=2)
    assert message(select_device, gpu_id=[]).endswith("1 GPU for 2 processes: start torchrun with --nproc_per_node=1")


def test_start_needs_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert "torchrun --nproc_per_node=N" in message(start)


def test_processes_that_do_not_know_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for call in (select_device, distributed.check_processes):
        assert "multi_gpu_train.json" in message(call)


@pytest.mark.parametrize(("cases", "processes"), [(8, 2), (7, 2), (9, 3), (5, 1)])
def test_processes_share_the_batches_of_one(cases: int, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Iteration by iteration the same cases; the order depends on seed and epoch."""
    batch = 2
    pretend(monkeypatch, gpus=0)
    whole = shuffled(range(cases), seed=3)
    shares = []
    for rank in range(processes):
        pretend(monkeypatch, gpus=0, rank=rank, processes=processes)
        shares.append(shuffled(range(cases), seed=3))
    orders = []
    for epoch in (1, 2):
        for sampler in (whole, *shares):
            sampler.set_epoch(epoch)
        order, dealt = list(whole), [list(sampler) for sampler in shares]
        assert sorted(order) == list(range(cases))
        assert {len(share) for share in dealt} == {-(-cases // processes)}
        for first in range(0, cases // processes, batch):
            together = {case for share in dealt for case in share[first : first + batch]}
            assert together >= set(order[first * processes : (first + batch) * processes])
        orders.append(order)
    assert orders[0] != orders[1]


def test_each_case_is_dealt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    dealt = []
    for rank in range(3):
        pretend(monkeypatch, gpus=0, rank=rank, processes=3)
        monkeypatch.setattr(dist, "get_world_size", lambda *_: 3)
        monkeypatch.setattr(dist, "get_rank", lambda *_, rank=rank: rank)
        dealt.append(list(each_once(range(7))))
        assert dealt[-1] == shard(range(7))
    assert sorted(case for share in dealt for case in share) == list(range(7))
    assert message(each_once, range(2)).endswith("start torchrun with --nproc_per_node=2")
    monkeypatch.setattr(dist, "all_gather_object", lambda shares, _: shares.__setitem__(slice(None), dealt))
    assert gather(dealt[-1]) == list(range(7))
    assert gather_shares(dealt[-1]) == dealt


def test_one_process_has_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shard("abc") == gather("abc") == list("abc")


# Two processes, the shipped JSON.


@pytest.fixture(scope="module")
def one_and_two(dataset: Path, bundle_run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Folders of a training by one process and of the same by two, and what the two printed."""
    one, two = tmp_path_factory.mktemp("one process"), tmp_path_factory.mktemp("two processes")
    options = {**SMALL, **FROZEN, "data_root": dataset, "save_intervals": 1}
    for folder, config, processes in ((one, "configs/train.json", 1), (two, TRAIN, 2)):
        done = bundle_run("training", config, processes=processes, batch_size=4 // processes, **options,
                          ckpt_dir=folder / "models", output_dir=folder / "eval")  # fmt: skip
        assert done.returncode == 0, done.stderr
    return one, two, done.stdout


def losses(folder: Path) -> list[float]:
    events = EventAccumulator(str(folder / "eval"))
    events.Reload()
    return [event.value for event in events.Scalars("mean_loss")]


def test_two_processes_have_the_loss_curve_of_one(one_and_two: tuple[Path, Path, str]) -> None:
    one, two, _ = one_and_two
    assert len(losses(one)) == 3
    assert losses(two) == pytest.approx(losses(one), rel=1e-6)
    assert losses(one)[0] - losses(one)[2] > 0.05  # it learns: equality is no accident of a standstill
    last, other = (read_checkpoint(folder / "models" / "checkpoint_epoch=3.pt")["model"] for folder in (one, two))
    assert last.keys() == other.keys()
    for name, value in last.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)


def test_rank_0_alone_writes(one_and_two: tuple[Path, Path, str]) -> None:
    one, two, printed = one_and_two
    names = [{path.name for path in (folder / "models").iterdir()} for folder in (one, two)]
    assert names[0] == names[1]
    assert len(list((two / "eval").iterdir())) == len(list((one / "eval").iterdir()))
    for text in ("epoch 3/3", "Iter: 2/2 -- train_loss", "checking the files of 6 cases"):
        assert printed.count(text) == (3 if "Iter" in text else 1), text


THREADS = """
import os, sys, torch
from pathlib import Path
from torch import distributed as dist, nn
from med3d_nets.distributed import gather, parallel, start, stop

def threads():
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return sum("gloo" in name for name in names)

start(no_cuda=True)
network = parallel(nn.Linear(8, 8), "cpu")
network(torch.ones(2, 8)).sum().backward()
sys.setswitchinterval(1000)  # other threads get Python's lock late, as on a busy machine
for _ in range(100):
    gather([1, 2])
assert threads() > 0
stop()
assert threads() == 0
"""


def test_no_thread_is_left_to_abort_the_process() -> None:
    """Gloo's threads, which need Python to let go of a tensor, end before Python does."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    done = subprocess.run(
        [*torchrun, sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_resume_what_two_began(
    one_and_two: tuple[Path, Path, str], dataset: Path, bundle_run: Run, tmp_path: Path
) -> None:
    """And one that would go through a part of the cases is refused."""
    checkpoint = one_and_two[1] / "models" / "checkpoint_epoch=2.pt"
    options = {**SMALL, **FROZEN, "data_root": dataset, "resume_path": checkpoint, "batch_size": 2}
    options |= {"ckpt_dir": tmp_path / "m", "output_dir": tmp_path / "out"}
    refused = bundle_run("training", "configs/train.json", **options)
    assert refused.returncode == 1
    assert "its epochs have 2 iterations, but this run's have 3" in refused.stderr
    done = bundle_run("training", TRAIN, processes=2, **options)
    assert done.returncode == 0, done.stderr
    whole, resumed = (
        read_checkpoint(folder / "checkpoint_epoch=3.pt")["model"]
        for folder in (one_and_two[1] / "models", tmp_path / "m")
    )
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")
def test_two_gpus_normalise_with_the_batch_of_both(dataset: Path, bundle_run: Run, tmp_path: Path) -> None:
    """In training mode, thanks to ``SyncBatchNorm``; in single precision, so that the curves can agree."""
    options = {**SMALL, "no_cuda": False, "amp": False, "learning_rate": 1e-5, "data_root": dataset}
    for config, processes in (("configs/train.json", 1), (TRAIN, 2)):
        folder = tmp_path / str(processes)
        done = bundle_run("training", config, processes=processes, batch_size=4 // processes, **options,
                          ckpt_dir=folder / "models", output_dir=folder / "eval")  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-3)


@pytest.fixture(scope="module")
def uneven(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of three cases, for two processes."""
    path = tmp_path_factory.mktemp("lists") / "three.txt"
    lines = (dataset / "train.txt").read_text().splitlines()[:1] + (dataset / "val.txt").read_text().splitlines()
    path.write_text("\n".join(f'"{dataset / image}" "{dataset / label}"' for image, label in map(str.split, lines)))
    return path


@pytest.mark.slow
def test_two_processes_evaluate_each_case_once(
    one_and_two: tuple[Path, Path, str], uneven: Path, bundle_run: Run, tmp_path: Path
) -> None:
    models = one_and_two[0] / "models"
    tables = []
    for processes in (1, 2):
        config = str(EVALUATE + ["configs/multi_gpu_evaluate.json"] * (processes - 1))
        options = {"data_root": uneven.parent, "val_list": uneven, "ckpt_dir": models, "no_cuda": True}
        done = bundle_run("evaluating", config, processes=processes, **options, output_dir=tmp_path / str(processes))
        assert done.returncode == 0, done.stderr
        tables.append([(tmp_path / str(processes) / f"metrics{kind}.csv").read_text() for kind in ("", "_summary")])
    assert tables[0][0].count("\n") == 4
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_two_processes_infer_each_volume_once(
    one_and_two: tuple[Path, Path, str], uneven: Path, bundle_run: Run, tmp_path: Path
) -> None:
    models = one_and_two[0] / "models"
    for processes in (1, 2):
        config = str(["configs/inference.json"] + ["configs/multi_gpu_inference.json"] * (processes - 1))
        done = bundle_run("inference", config, processes=processes, no_cuda=True, img_list=uneven,
                          ckpt_dir=models, output_dir=tmp_path / str(processes))  # fmt: skip
        assert done.returncode == 0, done.stderr
    names = [sorted(path.name for path in (tmp_path / str(n)).glob("*.nii.gz")) for n in (1, 2)]
    assert names[0] == names[1]
    assert len(names[0]) == 3
    for name in names[0]:
        one, two = (np.asanyarray(nibabel.load(tmp_path / str(n) / name).dataobj) for n in (1, 2))
        np.testing.assert_array_equal(one, two)


@pytest.mark.slow
def test_error_of_all_processes_is_shown_once(bundle_run: Run, dataset: Path, tmp_path: Path) -> None:
    options = {**SMALL, "n_seg_classes": 2, "data_root": dataset, "ckpt_dir": tmp_path / "m", "output_dir": tmp_path}
    done = bundle_run("training", TRAIN, processes=2, **options)
    assert done.returncode == 1
    assert done.stderr.count("error: the data list has 8 problems") == 1
    assert "on rank" not in done.stderr
    assert not (tmp_path / "m").exists()


def test_torchrun_without_the_overlay(bundle_run: Run, dataset: Path, tmp_path: Path) -> None:
    options = {**SMALL, "data_root": dataset, "ckpt_dir": tmp_path / "m", "output_dir": tmp_path}
    done = bundle_run("training", "configs/train.json", processes=2, **options)
    assert done.returncode == 1
    assert done.stderr.count("error: torchrun started several processes, but this config is for one") == 1
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_full_disk_of_rank_0_ends_the_job(bundle_run: Run, dataset: Path, tmp_path: Path) -> None:
    options = {**SMALL, "data_root": dataset, "ckpt_dir": tmp_path / "m", "output_dir": tmp_path}
    done = bundle_run("training", TRAIN, "prlimit", "--fsize=30000000", processes=2, **options)
    assert done.returncode == 1
    assert done.stderr.count("no space left on the disk while writing") == 1
    assert "no checkpoint was written yet" in done.stderr


@pytest.mark.slow
def test_killed_process_ends_the_job(dataset: Path, tmp_path: Path) -> None:
    options = {**SMALL, "n_epochs": 10_000, "data_root": dataset, "ckpt_dir": tmp_path / "m", "output_dir": tmp_path}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, "-m", "monai.bundle", "run", "training", "--config_file", TRAIN, *words]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    output = (tmp_path / "output").open("w+")
    job = subprocess.Popen(command, cwd=BUNDLE, env=environment, stdout=output, stderr=output)
    try:
        wait_for(lambda: "epoch 1/10000" in (tmp_path / "output").read_text(), job)
        workers = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        os.kill(int(workers[-1]), signal.SIGKILL)
        assert job.wait(timeout=60) == 1
    finally:
        job.kill()
        output.close()
    assert "Signal 9 (SIGKILL)" in (tmp_path / "output").read_text()
    assert not any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers)


def wait_for(condition: Callable[[], bool], job: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert job.poll() is None, "the job ended"
        assert time.monotonic() < deadline
        time.sleep(0.2)
