"""Several processes, one GPU each (or on CPUs, for tests): started by ``torchrun``, configured by ``multi_gpu_*.json``.

Ignite, MONAI and torch do the work; here is what a config cannot say, and the errors that a user would meet as a hang.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from ignite import distributed as idist
from monai.data import Dataset, DistributedSampler
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from med3d_nets.errors import Med3dError
from med3d_nets.networks import freeze_batch_norm

__all__ = [
    "check_processes",
    "each_once",
    "gather",
    "gather_shares",
    "parallel",
    "select_device",
    "shard",
    "shuffled",
    "start",
    "stop",
]

T = TypeVar("T")
_parallel: WeakSet[DistributedDataParallel] = WeakSet()


def select_device(no_cuda: bool = False, gpu_id: int | Sequence[int] = 0) -> torch.device:
    """The device of this process for MedicalNet's options of these names: a GPU if there is one, otherwise the CPU.

    Args:
        no_cuda: use the CPU all the same.
        gpu_id: a GPU; or, under ``torchrun``, one for each process of this machine, in their order. Empty: each process
            takes the GPU of its own local rank.

    Raises:
        Med3dError: if there is no such GPU, if there are more or fewer of them than processes, or if ``torchrun``
            started several processes and the config is for one.
    """
    check_processes()
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if no_cuda or not torch.cuda.is_available():
        return torch.device("cpu")
    ids = [gpu_id] if isinstance(gpu_id, int) else list(gpu_id)
    count = torch.cuda.device_count()
    if any(not isinstance(index, int) for index in ids) or len(set(ids)) < len(ids):
        raise Med3dError(f'gpu_id is {gpu_id!r}, expected a number, or different numbers such as "[0,1]"')
    if not ids and local_size > count:
        raise Med3dError(
            f"this machine has {count} GPU{'s' * (count > 1)} for {local_size} processes: "
            f"start torchrun with --nproc_per_node={count}"
        )
    ids = ids or list(range(local_size))
    if len(ids) != local_size:
        raise Med3dError(
            f"gpu_id is {ids}, but this machine runs {local_size} process{'es' * (local_size > 1)}; one GPU needs one: "
            f"torchrun --nproc_per_node={len(ids)} -m monai.bundle run ... with the multi_gpu overlay"
        )
    if wrong := [index for index in ids if not 0 <= index < count]:
        raise Med3dError(f"gpu_id is {wrong[0]}, but this machine has GPUs 0 to {count - 1}")
    return torch.device("cuda", ids[local_rank])


def check_processes() -> None:
    """Refuse to run as one of several processes that do not know of each other.

    Raises:
        Med3dError: if ``torchrun`` started several and the config is for one.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        raise Med3dError(
            "torchrun started several processes, but this config is for one: they would overwrite each other's files. "
            "Add the overlay, such as --config_file \"['configs/train.json','configs/multi_gpu_train.json']\""
        )


def start(no_cuda: bool = False, gpu_id: int | Sequence[int] = ()) -> None:
    """Join the processes that ``torchrun`` started: NCCL between GPUs, gloo between CPUs; only rank 0 logs progress.

    Raises:
        Med3dError: if ``torchrun`` did not start this process, or see :func:`select_device`.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise Med3dError(
            "a multi_gpu config is for processes that torchrun starts: "
            "torchrun --nproc_per_node=N -m monai.bundle run ...; for one GPU, leave that config out"
        )
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() and not no_cuda else "gloo")
    device = select_device(no_cuda, gpu_id)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if dist.get_rank() > 0:
        logging.getLogger().setLevel(logging.WARNING)


def stop() -> None:
    """Leave the other processes, and end gloo's threads: networks of :func:`parallel` cannot be trained any more.

    A thread that still lets go of its last tensor while Python ends aborts the process ("terminate called without an
    active exception"). Threads end with the last reference to their group, and parallel networks have one. So would
    functions of ``torch.distributed.nn.functional``, as default arguments, but for Ignite's importing it earlier.
    """
    if not dist.is_initialized():
        return
    for network in _parallel:
        del network.process_group, network.reducer, network.logger
    _parallel.clear()
    dist.destroy_process_group()


def parallel(network: nn.Module, device: torch.device | str, frozen: Sequence[str] = ()) -> DistributedDataParallel:
    """Wrap a network so that the processes average their gradients.

    On GPUs its batch norms count the batch of all processes (``SyncBatchNorm``); torch has none for CPUs, where each
    process normalises with its own batch and the running statistics are those of rank 0.

    Args:
        network: changed in place: moved, and its batch norms replaced on GPUs.
        device: that of this process.
        frozen: see :func:`~med3d_nets.networks.freeze_batch_norm`.
    """
    device = torch.device(device)
    network = network.to(device)
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    freeze_batch_norm(network, frozen)
    wrapped = DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)
    _parallel.add(wrapped)
    return wrapped


def shuffled(dataset: Dataset, seed: int) -> DistributedSampler:
    """A sampler whose order depends on the seed and the epoch alone, dealt among the processes.

    With ``N`` processes of batch size ``b``, iterations have the same cases as with one of batch size ``N * b``. The
    first cases are dealt twice where the number of cases is no multiple of ``N``.
    """
    return DistributedSampler(dataset, num_replicas=idist.get_world_size(), rank=idist.get_rank(), seed=seed)


def each_once(dataset: Dataset) -> DistributedSampler:
    """A sampler that deals the cases among the processes, each case to one of them, in their order.

    Raises:
        Med3dError: if there are more processes than cases: one without any would keep the others waiting.
    """
    if len(dataset) < idist.get_world_size():
        raise Med3dError(
            f"found {len(dataset)} case{'s' * (len(dataset) > 1)} to evaluate or infer for {idist.get_world_size()} "
            f"processes, expected one each at least: start torchrun with --nproc_per_node={len(dataset)}"
        )
    return DistributedSampler(dataset, even_divisible=False, shuffle=False)


def shard(items: Sequence[T]) -> list[T]:
    """This process's share of the items, every one of them without several processes."""
    return list(items[idist.get_rank() :: idist.get_world_size()])


def gather(items: Sequence[T]) -> list[T]:
    """The items of all processes, in the order that :func:`shard` dealt them."""
    shares = gather_shares(items)
    size = len(shares)
    return [shares[index % size][index // size] for index in range(sum(map(len, shares)))]


def gather_shares(items: Sequence[T]) -> list[list[T]]:
    """The items of each process."""
    shares: list[Any] = [list(items)] * idist.get_world_size()
    if len(shares) > 1:
        dist.all_gather_object(shares, list(items))
    return shares
