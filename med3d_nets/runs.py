"""What a run decides before it starts: learning rates, data sets, and that it overwrites nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite import distributed as idist
from monai.data import CacheDataset, Dataset, PersistentDataset
from monai.data.utils import create_file_basename, pickle_hashing, set_rnd
from monai.optimizers import generate_param_groups
from monai.utils import TraceKeys
from torch import nn

from med3d_nets.errors import Med3dError
from med3d_nets.settings import FOUND_OUT, Settings, check_settings
from med3d_nets.weights import check_pretrained_file, read_checkpoint

__all__ = [
    "cached_dataset",
    "check_files",
    "check_free",
    "check_outputs",
    "check_resumed",
    "check_share",
    "layer_rates",
    "resumable_checkpoints",
]

logger = logging.getLogger(__name__)

RESUMABLE = ("model", "optimizer", "lr_scheduler", "average", "trainer", "best")
"""What a checkpoint to resume from holds."""

NEW_LAYER_FACTOR = 100
"""Upstream trains new layers at this many times the encoder's learning rate."""


def layer_rates(
    network: nn.Module,
    new_layer_names: Sequence[str],
    learning_rate: float,
    from_scratch: bool,
    factor: float = NEW_LAYER_FACTOR,
) -> list[dict[str, Any]]:
    """Parameter groups for the optimiser: new layers learn at a multiple of the rate of the others.

    Args:
        network: the network.
        new_layer_names: parts of parameter names, as upstream's option of that name.
        learning_rate: rate of the layers that are not new.
        from_scratch: whether there are no pretrained weights, so that every layer is new.
        factor: the multiple; 100 as upstream.

    Raises:
        Med3dError: if a name matches no parameter.
    """
    names = [new_layer_names] if isinstance(new_layer_names, str) else list(new_layer_names)
    network = getattr(network, "module", network)  # within DistributedDataParallel
    parameters = [name for name, _ in network.named_parameters()]
    for name in names:
        if not any(name in parameter for parameter in parameters):
            layers = sorted({".".join(parameter.split(".")[:2]) for parameter in parameters})
            raise Med3dError(f"new_layer_names: no parameter contains '{name}'; the layers are {', '.join(layers)}")
    if from_scratch:
        names = [""]  # part of every name
    groups: list[dict[str, Any]] = generate_param_groups(
        network,
        layer_matches=[lambda named: any(name in named[0] for name in names)],
        match_types=["filter"],
        lr_values=[learning_rate * factor],
    )
    groups[1]["lr"] = learning_rate
    for group, name in zip(groups, ("new layers", "other layers"), strict=True):
        group.update(params=list(group["params"]), name=name)
    return [group for group in groups if group["params"]]


def cached_dataset(data: list[dict[str, Any]], transform: Any, cache_dir: str = "") -> Dataset:
    """A data set that runs the deterministic steps of ``transform`` once per case.

    Args:
        data: cases.
        transform: composed transforms.
        cache_dir: folder to keep the results in, for data larger than memory (``PersistentDataset``; delete the folder
            when a file's content changes); empty to keep them in memory (``CacheDataset``).
    """
    if cache_dir:
        return _DiskCache(data, transform, cache_dir, hash_transform=pickle_hashing, track_meta=True)
    return _MemoryCache(data, transform, num_workers=os.cpu_count(), progress=False)


class _SeededItems(Dataset):
    """A data set whose random transforms depend on the seed of the epoch and on the case alone.

    MONAI draws them in the order in which a process meets its cases, so that the number of loader processes, or of
    GPUs, would change the training.
    """

    epoch_seed = 0

    def _transform(self, index: int) -> Any:
        set_rnd(self.transform, (self.epoch_seed * 7919 + index) % 2**31)
        return super()._transform(index)


class _MemoryCache(_SeededItems, CacheDataset):
    """MONAI's ``CacheDataset``, which waits for its threads when one of them fails.

    MONAI leaves them running: a process that ends on the error then aborts in the middle of their work.
    """

    def _fill_cache(self, indices: Any = None) -> list[Any]:
        indices = range(self.cache_num) if indices is None else list(indices)
        with ThreadPoolExecutor(self.num_workers or 1) as pool:
            return list(pool.map(self._load_cache_item, indices))


class _DiskCache(_SeededItems, PersistentDataset):
    """MONAI's, able to read what it wrote.

    PyTorch's safe loading refuses the arrays of a NIfTI file's header and the names in the record of the transforms;
    MONAI then deletes the file and computes the volume anew, every time. Nothing allowed here runs code.
    """

    def _cachecheck(self, item_transformed: Any) -> Any:
        reconstruct: Any = np.empty(0).__reduce__()[0]
        dtypes = {type(np.dtype(code)) for code in "?SU" + np.typecodes["AllInteger"] + np.typecodes["AllFloat"]}
        with torch.serialization.safe_globals([TraceKeys, np.ndarray, np.dtype, reconstruct, *dtypes]):
            return super()._cachecheck(item_transformed)


def check_share(name: str, share: Any) -> None:
    """Refuse what is no share of a training.

    Raises:
        Med3dError: naming the option.
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise Med3dError(f"{name} is {share!r}, expected a share of the training from 0 (none) to 1")


def resumable_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints in a folder that a training can go on from, the newest last."""
    return sorted(Path(folder).glob("checkpoint_epoch=*.pt"), key=os.path.getmtime)


def check_files(ckpt_dir: str, pretrain_path: str, variant: str, resume_path: str, overwrite: bool) -> None:
    """Look for the files that a training needs, and for those in its way, before it reads the data.

    Args:
        ckpt_dir: folder that training writes to.
        pretrain_path: pretrained weights, or empty.
        variant: the network's variant, for the message.
        resume_path: resumable checkpoint, which replaces pretrained weights, or empty.
        overwrite: whether the user asked for it.

    Raises:
        Med3dError: naming the file that is missing, or those of an earlier training.
    """
    if resume_path:
        if not os.path.isfile(resume_path):
            raise Med3dError(f"{resume_path}: no such file; expected a checkpoint_epoch=*.pt of an earlier training")
        return
    checkpoints = resumable_checkpoints(ckpt_dir)
    written = [str(path) for path in (Path(ckpt_dir) / "model.pt", *reversed(checkpoints)) if path.exists()]
    if written and not overwrite:
        resume = f"go on from it with --resume_path '{checkpoints[-1]}', " if checkpoints else ""
        raise Med3dError(
            f"an earlier training wrote {', '.join(written[:3])}; {resume}give another --ckpt_dir, "
            "or pass --overwrite True"
        )
    check_pretrained_file(pretrain_path, variant)


def check_resumed(settings: Settings, resume_path: str, n_epochs: int) -> None:
    """Refuse to resume from what does not fit.

    Args:
        settings: those of this run.
        resume_path: resumable checkpoint, or empty.
        n_epochs: epochs in all.

    Raises:
        Med3dError: naming what the checkpoint lacks, or what differs between it and this run.
    """
    if not resume_path:
        return
    content = read_checkpoint(resume_path)
    missing = [name for name in RESUMABLE if name not in content]
    if missing:
        raise Med3dError(
            f"{resume_path}: not a resumable checkpoint, it lacks {', '.join(missing)}; "
            f"expected a checkpoint_epoch=*.pt of an earlier training"
        )
    known = content["best"]["settings"]  # an earlier version's lacks some
    found = type(settings)(**known)
    given = [field.name for field in fields(settings) if field.name in known and field.name not in FOUND_OUT]
    check_settings(found, resume_path, **{name: getattr(settings, name) for name in given})
    trainer = content["trainer"]
    done = trainer["iteration"] // trainer["epoch_length"]
    if done >= n_epochs:
        raise Med3dError(
            f"{resume_path}: the training is complete, with {done} epochs; "
            f"to go on, raise n_epochs above that, got {n_epochs}"
        )


def check_free(paths: Iterable[str | os.PathLike[str]], overwrite: bool) -> None:
    """Refuse to write over files of an earlier run.

    Args:
        paths: that this run will write.
        overwrite: whether the user asked for it.

    Raises:
        Med3dError: naming the files in the way.
    """
    there = [os.fspath(path) for path in paths if os.path.exists(path)]
    if there and not overwrite:
        verb = "exists" if len(there) == 1 else "exist"
        raise Med3dError(f"{', '.join(there)}: {verb} already; give another --output_dir or pass --overwrite True")


def check_outputs(cases: list[dict[str, Any]], output_dir: str, root: str, postfix: str, overwrite: bool) -> None:
    """Refuse to write over label maps of an earlier run.

    Args:
        cases: items with the path of an ``image``.
        output_dir: folder of the label maps.
        root: folder below which the images' relative paths are kept.
        postfix: what is appended to the images' names.
        overwrite: whether the user asked for it.

    Raises:
        Med3dError: naming the first file in the way.
    """
    for case in cases:
        base = create_file_basename(postfix, case["image"], output_dir, root, separate_folder=False, makedirs=False)
        check_free([f"{base}.nii.gz"], overwrite)
    idist.barrier()  # no process may write before each has checked
