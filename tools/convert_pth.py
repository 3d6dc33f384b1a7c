"""Convert a published MedicalNet checkpoint, or one of the original ``train.py``, for a bundle.

    python tools/convert_pth.py --src resnet_10_23dataset.pth

The file is checked against the published digest and against the network before anything is written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the tool runs from a checkout that is not installed

from med3d_nets import commands, networks, variants, weights  # noqa: E402
from med3d_nets.errors import Med3dError  # noqa: E402
from med3d_nets.variants import Variant  # noqa: E402
from med3d_nets.weights import Architecture  # noqa: E402

HEAD = weights.HEAD_OF_UPSTREAM


@dataclass(frozen=True)
class Source:
    """A checkpoint that was read.

    Attributes:
        path: the file.
        sha256: its digest.
        tensors: its state dict under MedicalNet's names, without ``module.``.
        architecture: what the tensors tell about their network.
    """

    path: Path
    sha256: str
    tensors: dict[str, Tensor]
    architecture: Architecture

    @property
    def fine_tuned(self) -> bool:
        """Whether it has a segmentation head, which no published file has."""
        return any(name.startswith(HEAD) for name in self.tensors)

    @property
    def kind(self) -> str:
        """Depth and shortcut in words."""
        return f"depth {self.architecture.depth} with shortcut {self.architecture.shortcut}"


def convert(
    src: str,
    *,
    variant: str | None = None,
    dst: str | None = None,
    allow_digest_mismatch: bool = False,
    overwrite: bool = False,
) -> None:
    """Write ``pretrained.pt`` and ``pretrained.json`` for a MedicalNet checkpoint and print a report.

    ``pretrained.pt`` is a flat dictionary of tensors under the published names, without ``module.``; the same source
    gives the same bytes.

    Args:
        src: a published ``.pth`` file, or one that the original ``train.py`` saved.
        variant: the variant's name; needed where neither the digest nor the file's name tells it.
        dst: file to write instead of the bundle's ``models/pretrained.pt``.
        allow_digest_mismatch: convert a file that has a variant's name and another digest.
        overwrite: replace an existing file.

    Raises:
        Med3dError: if the file is not readable, not what it is called, does not fit the network, or has no place to
            go. Nothing is written then.
        OSError: if it cannot be written; an existing file is left as it was.
    """
    _check_options({"src": src, "variant": variant, "dst": dst}, has_value=True)
    _check_options({"allow_digest_mismatch": allow_digest_mismatch, "overwrite": overwrite}, has_value=False)
    source = _read(Path(str(src)))
    row = _choose(source, variant)
    digest = _check_digest(source, row, allow_digest_mismatch)
    _check_loads(source, row)
    target = _destination(source, row, dst, overwrite)
    record = _write(source, row, digest, target)
    print(_report(source, row, digest, record, target))


def _check_options(options: Mapping[str, Any], has_value: bool) -> None:
    """Refuse what Fire makes of ``--dst`` alone (True) and of ``--overwrite no`` (a text, which would count as yes)."""
    for name, value in options.items():
        if has_value == isinstance(value, bool):
            found = "stands alone" if has_value else f"got {value!r}"
            raise Med3dError(f"--{name} takes {'a value' if has_value else 'no value'}, but {found}")


def _read(path: Path) -> Source:
    tensors = {_published_name(name): value for name, value in weights.read_tensors(path).items()}
    return Source(path, weights.file_sha256(path), tensors, weights.read_architecture(tensors, path))


def _published_name(name: str) -> str:
    """MedicalNet's name for a tensor, also where the file has the names of this project."""
    if name.startswith("head."):
        return HEAD + name.removeprefix("head.")
    return name.removeprefix("encoder.")


def _choose(source: Source, name: str | None) -> Variant:
    """The variant: by digest, by the name given, by the file's name, by depth and shortcut, in this order."""
    row = next(variants.find_variants(sha256=source.sha256), None)
    if row is not None:
        if name is not None and name != row.name:
            raise Med3dError(f"{source.path}: by its digest this is {row.name}, but --variant says {name}")
    elif name is not None:
        try:
            row = variants.get_variant(name)
        except ValueError as error:
            raise Med3dError(f"--variant: {error}") from error
    elif source.path.stem in variants.list_variants():
        row = variants.get_variant(source.path.stem)
    else:
        return _only_candidate(source)
    if (row.depth, row.shortcut) != (source.architecture.depth, source.architecture.shortcut):
        raise Med3dError(
            f"{source.path}: its tensors are a network of {source.kind}, "
            f"but {row.name} has depth {row.depth} with shortcut {row.shortcut}"
        )
    return row


def _only_candidate(source: Source) -> Variant:
    found = source.architecture
    rows = list(variants.find_variants(depth=found.depth, shortcut=found.shortcut))
    if not rows:
        published = ", ".join(row.name for row in variants.find_variants(depth=found.depth))
        raise Med3dError(
            f"{source.path}: a network of {source.kind}, of which no weights were published; "
            f"published of that depth, with another shortcut: {published}"
        )
    if len(rows) > 1:
        raise Med3dError(
            f"{source.path}: a network of {source.kind}, and neither its digest nor its name tells which variant. "
            f"Name it with --variant, one of: {', '.join(row.name for row in rows)}"
        )
    return rows[0]


def _check_digest(source: Source, row: Variant, allow_mismatch: bool) -> str:
    """``"known"``, ``"unknown"`` or ``"fine-tuned"``; raises Med3dError for a mismatch that is not allowed."""
    if source.sha256 == row.sha256:
        return "known"
    if source.fine_tuned:
        return "fine-tuned"
    if not allow_mismatch:
        raise Med3dError(
            f"{source.path}: not the published {row.filename}. Its SHA-256 is {source.sha256}, the published file's is "
            f"{row.sha256} ({_stated_by(row)}). Get {row.filename} from https://huggingface.co/{row.hub_repo}, "
            "or convert this file all the same with --allow_digest_mismatch"
        )
    return "unknown"


def _check_loads(source: Source, row: Variant) -> None:
    found = source.architecture
    # Only the head has a number of classes; any will do for a file without.
    classes = 2 if found.n_seg_classes is None else found.n_seg_classes
    try:
        with torch.device("meta"):  # random weights, soon overwritten, would take longer than all the rest
            network = networks.create_model(row.name, classes, found.in_channels)
    except ValueError as error:
        raise Med3dError(f"{source.path}: {error}") from error
    upstream = network.to_empty(device="cpu").encoder
    if source.fine_tuned:
        upstream.add_module(HEAD.removesuffix("."), network.head)  # so that messages have the file's names
    weights.load_strict(upstream, source.tensors, source.path)


def _destination(source: Source, row: Variant, dst: str | None, overwrite: bool) -> Path:
    if dst is not None:
        target = Path(str(dst))
    else:
        bundle = ROOT / "bundles" / row.bundle
        if not bundle.is_dir():
            raise Med3dError(f"{bundle}: no such bundle to write to; name another file with --dst")
        target = bundle / "models" / "pretrained.pt"
    if target.is_dir() or target.suffix == ".json":
        raise Med3dError(f"--dst names the file of tensors, such as pretrained.pt, got {target}")
    if target.exists() and target.samefile(source.path):
        raise Med3dError(f"{target}: source and destination are the same file; name another with --dst")
    for path in (target, _sidecar(target)):
        if path.exists() and not overwrite:
            raise Med3dError(f"{path}: exists already; replace it with --overwrite, or name another file with --dst")
    return target


def _sidecar(target: Path) -> Path:
    return target.with_suffix(".json")


def _write(source: Source, row: Variant, digest: str, target: Path) -> dict[str, Any]:
    """Write both files; return the content of the second."""
    # Cloned, since a tensor that is a view would be saved with all of its storage.
    tensors = {
        name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in source.tensors.items()
    }
    weights.write_atomically(target, tensors)
    record = {
        "variant": row.name,
        "source": source.path.name,
        "source_sha256": source.sha256,
        "digest": digest,
        "tensors": len(tensors),
        "values": sum(value.numel() for value in tensors.values()),
        "sha256": weights.file_sha256(target),
    }
    # Second, so that a record that is older than its file is told by the digest in it.
    weights.write_atomically(_sidecar(target), json.dumps(record, indent=2) + "\n")
    return record


def _report(source: Source, row: Variant, digest: str, record: Mapping[str, Any], target: Path) -> str:
    head = sum(name.startswith(HEAD) for name in source.tensors)
    known = {
        "known": f"known, the published {row.filename} ({_stated_by(row)})",
        "unknown": f"unknown (the published {row.filename} has {row.sha256}, {_stated_by(row)})",
        "fine-tuned": "fine-tuned, not a published file",
    }
    lines = {
        "file": source.path,
        "variant": row.name,
        "depth": row.depth,
        "shortcut": row.shortcut,
        "data sets": row.datasets,
        "tensors": f"{len(source.tensors) - head} encoder, {head} head",
        "values": f"{record['values']:,}",
        "sha256": source.sha256,
        "digest": known[digest],
        "written": target,
    }
    width = max(map(len, lines)) + 2
    return "\n".join(f"{name + ':':<{width}}{value}" for name, value in lines.items())


def _stated_by(row: Variant) -> str:
    return f"stated by {row.sha256_sources} source{'' if row.sha256_sources == 1 else 's'}"


def main() -> None:
    """Run :func:`convert` with the options of the command line."""
    commands.run_tool(convert)


if __name__ == "__main__":
    main()
