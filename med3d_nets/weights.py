"""Reading, naming and loading of weights. Nothing here loads a part of a checkpoint in silence."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from med3d_nets.errors import Med3dError
from med3d_nets.resnet import DEPTHS, Bottleneck
from med3d_nets.variants import get_variant

__all__ = [
    "Architecture",
    "check_pretrained_file",
    "file_sha256",
    "inflate_stem",
    "load_pretrained",
    "load_strict",
    "load_trained",
    "map_names",
    "read_architecture",
    "read_checkpoint",
    "read_tensors",
    "write_atomically",
]

logger = logging.getLogger(__name__)

HEAD_OF_UPSTREAM = "conv_seg."
ENCODER_NAME = re.compile(r"(conv1|bn1|layer[1-4])\.")
SHOWN = 5


@dataclass(frozen=True)
class Architecture:
    """What the names and shapes of a state dict tell about its network.

    Attributes:
        depth: depth of the ResNet.
        shortcut: ``"A"`` or ``"B"``.
        in_channels: channels of the input volume.
        n_seg_classes: classes of the segmentation head, or None where the file holds the encoder alone.
    """

    depth: int
    shortcut: str
    in_channels: int
    n_seg_classes: int | None


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: str | os.PathLike[str], content: Any) -> None:
    """Write ``content`` so that ``path`` is, at every moment, the old file or the new one, whole.

    Args:
        path: where to write; the folder is made.
        content: a ``str`` is written as UTF-8, anything else by ``torch.save``.

    Raises:
        OSError: if it cannot be written, a full disk for example; the old file is left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            if isinstance(content, str):
                file.write(content.encode())
            else:
                torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would hide the file from the group
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        disk = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save covers it by one of its own
        if isinstance(disk, OSError) and disk.filename is None:
            disk.filename = str(path)
            raise disk from None
        raise


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The dictionary in a checkpoint file, unpickled with ``weights_only=True``.

    Raises:
        Med3dError: if the file is missing, no checkpoint, damaged, or holds anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise Med3dError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(4)
    if not start.startswith((b"PK\x03\x04", b"\x80")):
        raise Med3dError(f"{path}: not a PyTorch checkpoint, its first bytes are {start!r}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global:?) ([\w.]+)", str(error))
        if found:
            raise Med3dError(
                f"{path}: holds the Python object {found[1]}, which is not loaded: it could run code. "
                "Expected tensors and plain values alone"
            ) from error
        raise Med3dError(f"{path}: damaged, or not a PyTorch checkpoint ({_first_line(error)})") from error
    except Exception as error:  # torch raises whatever its reader trips over
        raise Med3dError(f"{path}: truncated or damaged ({type(error).__name__}: {_first_line(error)})") from error
    if not isinstance(content, dict):
        raise Med3dError(f"{path}: holds a {type(content).__name__}, expected a dictionary of tensors")
    return content


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, without the prefix of ``DataParallel``.

    Takes a flat dictionary of tensors, the published ``{"state_dict": ...}``, what the original ``train.py`` saves and
    a resumable checkpoint of ours (``{"model": ...}``).

    Raises:
        Med3dError: see :func:`read_checkpoint`; also if no state dict is found.
    """
    content = read_checkpoint(path)
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        raise Med3dError(f"{path}: no state dict in it, found the entries {_some(content)}")
    return {name.removeprefix("module."): value for name, value in content.items()}


def map_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of :class:`~med3d_nets.networks.SegmentationNet` for the names of MedicalNet.

    Upstream's encoder goes below ``encoder.`` and its ``conv_seg`` becomes ``head``; other names stay.
    """
    mapped = {}
    for name, value in state.items():
        if name.startswith(HEAD_OF_UPSTREAM):
            name = "head." + name.removeprefix(HEAD_OF_UPSTREAM)
        elif ENCODER_NAME.match(name):
            name = "encoder." + name
        mapped[name] = value
    return mapped


def read_architecture(state: Mapping[str, Tensor], source: str | os.PathLike[str]) -> Architecture:
    """Depth, shortcut and channels, read off the names and shapes of a state dict of ours or of upstream.

    Args:
        state: the tensors.
        source: where they come from, for the message.

    Raises:
        Med3dError: if they are not a MedicalNet.
    """
    state = map_names(state)
    blocks = {(int(m[1]), int(m[2])) for name in state if (m := re.match(r"encoder\.layer(\d)\.(\d+)\.", name))}
    counts = tuple(sum(stage == number for stage, _ in blocks) for number in (1, 2, 3, 4))
    bottleneck = any(re.match(r"encoder\.layer\d\.\d+\.conv3\.", name) for name in state)
    depths = [d for d, (block, n) in DEPTHS.items() if n == counts and (block is Bottleneck) == bottleneck]
    stem = state.get("encoder.conv1.weight")
    if not depths:
        raise Med3dError(
            f"{source}: not a MedicalNet ResNet: {counts} blocks per stage"
            f"{' of bottlenecks' if bottleneck else ''}, first tensors {_some(state)}"
        )
    if stem is None or stem.dim() != 5:
        found = "is missing" if stem is None else f"is of shape {tuple(stem.shape)}"
        raise Med3dError(f"{source}: conv1.weight {found}, expected (64, channels, 7, 7, 7)")
    shortcut = "B" if any(".downsample." in name for name in state) else "A"
    last = state.get("head.6.weight", state.get("head.classifier.weight"))
    return Architecture(depths[0], shortcut, stem.shape[1], last.shape[0] if last is not None and last.dim() else None)


def inflate_stem(weight: Tensor, in_channels: int) -> Tensor:
    """Spread the first convolution's weights over more input channels, by repeating and dividing.

    A volume repeated in every channel gives the same features as before (Carreira and Zisserman, arXiv:1705.07750,
    inflate along time in this way).

    Args:
        weight: ``(out_channels, 1, depth, height, width)``.
        in_channels: channels wanted.

    Raises:
        Med3dError: if the weights have another number of channels already, neither 1 nor the one wanted.
    """
    if weight.shape[1] == in_channels:
        return weight
    if weight.shape[1] != 1:
        raise Med3dError(f"the weights are for {weight.shape[1]} input channels, the network has {in_channels}")
    return weight.repeat(1, in_channels, 1, 1, 1) / in_channels


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str | os.PathLike[str]) -> None:
    """Load all of ``state`` into ``module``, or nothing.

    Raises:
        Med3dError: naming the tensors that are missing, left over or of another shape.
    """
    expected = module.state_dict()
    missing = [name for name in expected if name not in state]
    extra = [name for name in state if name not in expected]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    found = (("missing", missing), ("not part of the network", extra), ("of another shape", shapes))
    problems = [f"{len(names)} {what}: {_some(names)}" for what, names in found if names]
    if problems:
        raise Med3dError(f"{source}: the tensors do not fit the network; {'; '.join(problems)}")
    module.load_state_dict(dict(state))


def check_pretrained_file(path: str, variant: str) -> None:
    """Refuse pretrained weights that are not there.

    Args:
        path: as for :func:`load_pretrained`; empty for none.
        variant: the network's variant, for the message.

    Raises:
        Med3dError: with the ways to get them, or to do without.
    """
    if path and not os.path.isfile(path):
        row = get_variant(variant)
        raise Med3dError(
            f"{path}: no pretrained weights there. Get them with 'med3d get {row.name}'; or give a MedicalNet file, "
            f"such as {row.filename} from https://huggingface.co/{row.hub_repo}, as --pretrain_path; "
            "or train from scratch with --pretrain_path ''"
        )


def load_pretrained(network: nn.Module, path: str, variant: str, resume_path: str = "") -> dict[str, Any] | None:
    """Load pretrained weights into a network and log what was loaded and what stays fresh.

    Args:
        network: a :class:`~med3d_nets.networks.SegmentationNet`.
        path: ``models/pretrained.pt``, a published ``.pth`` or a checkpoint of the original ``train.py``; empty for
            none.
        variant: the network's variant, for the message.
        resume_path: checkpoint whose weights will replace them, so that they are not read; empty for none.

    Returns:
        ``{"file", "sha256", "tensors"}``, or None if ``path`` is empty. The digest is the published file's where
        ``pretrained.json``, which the converter writes, tells it.

    Raises:
        Med3dError: if the file is missing or does not fit; the network is then as it was.
    """
    if resume_path:
        logger.info("going on from %s", resume_path)
        return None
    if not path:
        logger.info("no pretrained weights: training from scratch")
        return None
    check_pretrained_file(path, variant)
    state = map_names(read_tensors(path))
    expected = network.state_dict()
    _check_architecture(state, expected, path)
    stem = "encoder.conv1.weight"
    state[stem] = inflate_stem(state[stem], expected[stem].shape[1])
    head = {name: value for name, value in state.items() if name.startswith("head.")}
    if any(name not in expected or expected[name].shape != value.shape for name, value in head.items()):
        logger.info("%s: its head does not fit this network and is left out: %s", path, ", ".join(head))
        state = {name: value for name, value in state.items() if name not in head}
        head = {}
    fresh = [name for name in expected if name.startswith("head.")] if not head else []
    load_strict(network, {**state, **{name: expected[name] for name in fresh}}, path)
    logger.info("%s: loaded %d tensors; fresh: %s", path, len(state), f"the head ({len(fresh)})" if fresh else "none")
    return {"file": os.path.basename(path), "sha256": _published_sha256(path), "tensors": len(state)}


def load_trained(network: nn.Module, path: str) -> None:
    """Load trained weights, ``models/model.pt``, whole.

    Raises:
        Med3dError: if the file is missing, damaged or does not fit.
    """
    load_strict(network, map_names(read_tensors(path)), path)
    logger.info("%s: loaded", path)


def _check_architecture(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: str) -> None:
    found, wanted = read_architecture(state, path), read_architecture(expected, "the network")
    for name in ("depth", "shortcut"):
        have, want = asdict(found)[name], asdict(wanted)[name]
        if have != want:
            raise Med3dError(f"{path}: weights of {name} {have}, but the network has {name} {want}")


def _published_sha256(path: str) -> str:
    digest = file_sha256(path)
    sidecar = Path(path).with_suffix(".json")
    if sidecar.is_file():
        try:
            record = json.loads(sidecar.read_text())
        except ValueError:
            return digest
        if isinstance(record, dict) and record.get("sha256") == digest:
            return str(record.get("source_sha256", digest))
    return digest


def _some(names: Any) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
