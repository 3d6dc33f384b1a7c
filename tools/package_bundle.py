"""Package a bundle's folder, with its weights, as a zip that ``python -m monai.bundle download`` takes.

    python tools/package_bundle.py bundles/medicalnet_resnet_10

The same input gives the same bytes. What is wrong with the folder or its weights is an error before anything is
written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the tool runs from a checkout that is not installed

from med3d_nets import commands, model_card, networks, weights  # noqa: E402
from med3d_nets.errors import Med3dError  # noqa: E402
from med3d_nets.model_card import Pretrained, Trained  # noqa: E402
from med3d_nets.settings import Settings, read_settings  # noqa: E402
from med3d_nets.variants import Variant, get_variant  # noqa: E402

PACKAGED = ("LICENSE", "large_files.yml", "configs/**/*.json", "configs/**/logging.conf", "docs/*")
"""Patterns of the files that are packaged besides the weights."""

CONFIGS = ("configs/metadata.json", "configs/train.json", "configs/inference.json")
REQUIRED = (*CONFIGS, "docs/README.md", "docs/data_license.txt", "LICENSE")

SIZES = ("input_D", "input_H", "input_W")
RECORDED = ("n_seg_classes", "class_names", "in_channels", *SIZES, "fill_empty_with_noise", "head")
DEFAULTS = {
    "configs/train.json": (*RECORDED, "pretrain_path", "new_layer_names"),
    "configs/inference.json": ("n_seg_classes", "in_channels", "head"),
}
"""Top-level ids of the configs that get the recorded settings of trained weights, from which training goes on."""

DATE = (1980, 1, 1, 0, 0, 0)
UNIX = 3
MODE = 0o100644
CHUNK = 1 << 20
KINDS = ("trained", "pretrained")
TEXTS = ("bundle", "weights", "models", "name", "version", "changelog", "dst", "scores")
"""Options that are texts: Fire would read a changelog with a comma as a tuple."""


@dataclass(frozen=True)
class Bundle:
    """A bundle's folder as it was read.

    Attributes:
        folder: the folder.
        files: content of each packaged file by its path in the folder, weights excepted.
        configs: parsed content of those that are JSON.
        variant: the variant that its configs name.
    """

    folder: Path
    files: dict[str, bytes]
    configs: dict[str, dict[str, Any]]
    variant: Variant


def package(
    bundle: str,
    *,
    weights: str | None = None,
    models: str | None = None,
    name: str | None = None,
    version: str | None = None,
    changelog: str | None = None,
    dst: str = "dist",
    scores: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write ``<dst>/<name>_v<version>.zip`` and print a report.

    For trained weights the packaged configs get the recorded settings as their defaults, so that ``monai.bundle.load``
    builds the right network. ``metadata.json`` and ``docs/README.md`` say what the weights are.

    Args:
        bundle: the bundle's folder.
        weights: ``"trained"`` (``model.pt``) or ``"pretrained"`` (``pretrained.pt``); by default trained if they are
            there, otherwise pretrained.
        models: folder of the weights, such as a training's ``ckpt_dir``; by default ``models`` in the bundle.
        name: name of the package; by default the folder's.
        version: version of the package, ``X.Y.Z``; by default that in the metadata.
        changelog: what is new in this version.
        dst: folder to write to.
        scores: ``metrics_summary.csv`` of an evaluation of the trained weights.
        overwrite: replace an existing zip.

    Raises:
        Med3dError: if the folder is no bundle, its weights are missing or do not fit, or the zip is there already.
            Nothing is written then.
        OSError: if it cannot be written; an existing zip is left as it was.
    """
    texts = {"bundle": bundle, "weights": weights, "models": models, "name": name, "version": version}
    _check_options({**texts, "changelog": changelog, "dst": dst, "scores": scores}, overwrite)
    source = _read_bundle(Path(bundle))
    name = _check_name(source.folder.resolve().name if name is None else name)
    metadata = source.configs["configs/metadata.json"]
    version = _check_version(metadata.get("version") if version is None else version)
    target = Path(dst) / f"{name}_v{version}.zip"
    if target.exists() and not overwrite:
        raise Med3dError(f"{target}: exists already; replace it with --overwrite, or give another --version or --dst")
    folder = source.folder / "models" if models is None else Path(models)
    kind = _choose(source, folder, weights, source.folder if models is None else folder)
    found = _read_trained(source, folder, scores) if kind == "trained" else _read_pretrained(source, folder, scores)
    _set_version(source, version, changelog, f"packaged with {kind} weights")
    files = _contents(source, found, name)
    files[f"models/{found.path.stem}.json"] = found.path.with_suffix(".json").read_bytes()
    entries = _write(target, name, files, found)
    print(_report(target, name, version, kind, entries))


def _check_options(texts: Mapping[str, str | None], overwrite: bool) -> None:
    """Refuse what Fire makes of ``--dst`` alone (``"True"``) and of ``--overwrite no`` (a text, counting as yes)."""
    for option, value in texts.items():
        if value in ("", "True"):
            raise Med3dError(f"--{option} takes a value, but {'it is empty' if value == '' else 'stands alone'}")
    if not isinstance(overwrite, bool):
        raise Med3dError(f"--overwrite takes no value, but got {overwrite!r}")
    if texts["weights"] not in (None, *KINDS):
        raise Med3dError(f"--weights is {texts['weights']!r}, expected one of {', '.join(KINDS)}")
    _check_inert("--changelog", texts["changelog"] or "")


def _check_name(name: str) -> str:
    # MONAI takes what stands before the first dot of an archive's name for the folder in it.
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
        raise Med3dError(f"--name is {name!r}, expected letters, digits, _ and - alone: it names a folder and a URL")
    return name


def _check_version(version: Any) -> str:
    if not isinstance(version, str) or not re.fullmatch(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){2}", version):
        raise Med3dError(f"version is {version!r}, expected three whole numbers as in 1.0.2")
    return version


def _check_inert(source: str, text: str) -> None:
    """Refuse a text that MONAI would run or resolve where it stands in a config."""
    if text.startswith(("$", "@", "%")) or re.search("[@%](::|#)", text):
        raise Med3dError(f"{source}: {text!r} would be an expression, a reference or a file to MONAI; reword it")


def _read_bundle(folder: Path) -> Bundle:
    if not folder.is_dir():
        raise Med3dError(f"{folder}: no such folder")
    paths = sorted({path for pattern in PACKAGED for path in folder.glob(pattern) if _is_packaged(path)})
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise Med3dError(f"{folder}: not a bundle's folder, it lacks {', '.join(missing)}")
    for path in paths:
        _check_inside(path, folder, "put the file itself there")
    files = {name: path.read_bytes() for name, path in names.items()}
    configs = {name: _parse(files[name], names[name]) for name in files if name.endswith(".json")}
    said = {str(configs[name].get("variant")) for name in DEFAULTS}
    if len(said) > 1:
        raise Med3dError(f"{folder}: its configs name different variants: {', '.join(sorted(said))}")
    try:
        return Bundle(folder, files, configs, get_variant(said.pop()))
    except ValueError as error:
        raise Med3dError(f"{folder}/configs/train.json: {error}") from error


def _is_packaged(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


def _check_inside(path: Path, folder: Path, advice: str) -> None:
    """Refuse a link that would put a file from elsewhere, of whatever content, into the package."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise Med3dError(f"{path}: a link out of {folder}, to {path.resolve()}; {advice}")


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(content.decode())
    except ValueError as error:
        raise Med3dError(f"{path}: not JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise Med3dError(f"{path}: holds a {type(parsed).__name__}, expected an object")
    return parsed


def _choose(bundle: Bundle, folder: Path, kind: str | None, base: Path) -> str:
    """``"trained"`` or ``"pretrained"``, of which all files are there and really below ``base``."""
    if folder == base and not folder.is_dir():
        raise Med3dError(f"{folder}: no such folder of weights")
    files = {"trained": folder / "model.pt", "pretrained": folder / "pretrained.pt"}
    to_do = {
        "trained": "'python -m monai.bundle run training --config_file configs/train.json' in the bundle's folder "
        "writes it with model.json beside it; if it lies elsewhere, give its folder as --models",
        "pretrained": f"'python tools/download_weights.py {bundle.variant.name}' in the project's folder, or 'python "
        f"tools/convert_pth.py --src {bundle.variant.filename}', writes it with pretrained.json beside it",
    }
    chosen = kind or next((name for name in KINDS if files[name].exists()), None)
    for name in KINDS if chosen is None else (chosen,):
        for path in (files[name], files[name].with_suffix(".json")):
            if chosen is not None and not path.is_file():
                raise Med3dError(f"{path}: no such file, so there are no {name} weights; {to_do[name]}")
            _check_inside(path, base, "give the folder that it lies in as --models")
    if chosen is None:
        both = "; ".join(f"{files[name].name}: {to_do[name]}" for name in KINDS)
        raise Med3dError(f"{folder}: no weights to package, neither model.pt nor pretrained.pt. {both}")
    return chosen


def _read_trained(bundle: Bundle, folder: Path, scores: str | None) -> Trained:
    path = folder / "model.pt"
    sidecar = path.with_suffix(".json")
    settings: Settings = read_settings(sidecar)
    if settings.variant != bundle.variant.name:
        raise Med3dError(f"{sidecar}: variant is {settings.variant!r}, but {bundle.folder} is {bundle.variant.name!r}")
    for name in settings.class_names:
        _check_inert(f"{sidecar}: class_names", str(name))
    tensors = weights.read_checkpoint(path)
    others = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if others:  # a nested file, which monai.bundle.load would pass over without a word
        raise Med3dError(f"{path}: holds the entry {others[0]!r}, expected a flat dictionary of tensors")
    network = _empty(bundle.variant, settings.n_seg_classes, settings.in_channels, settings.head)
    weights.load_strict(network, tensors, path)
    measured = [] if scores is None else model_card.read_scores(scores, settings.class_names)
    record = _parse(sidecar.read_bytes(), sidecar)
    return Trained(path, weights.file_sha256(path), settings, record, measured)


def _read_pretrained(bundle: Bundle, folder: Path, scores: str | None) -> Pretrained:
    path = folder / "pretrained.pt"
    sidecar = path.with_suffix(".json")
    if scores is not None:
        raise Med3dError(f"--scores {scores}: pretrained weights have no trained head, so there is nothing to score")
    if model_card.ADDED + "trained" in str(bundle.configs["configs/metadata.json"].get("description")):
        raise Med3dError(f"{bundle.folder}: its configs are those of trained weights; package the bundle as rendered")
    record = _parse(sidecar.read_bytes(), sidecar)
    found = Pretrained(path, weights.file_sha256(path), bundle.variant.name, record)
    for key, expected in (("variant", found.variant), ("sha256", found.sha256)):
        if record.get(key) != expected:
            raise Med3dError(
                f"{sidecar}: {key} is {record.get(key)!r}, expected {expected!r}; "
                f"convert again: 'python tools/convert_pth.py --src {bundle.variant.filename} --overwrite'"
            )
    tensors = weights.read_tensors(path)
    architecture = weights.read_architecture(tensors, path)
    network = _empty(bundle.variant, architecture.n_seg_classes or 2, architecture.in_channels, networks.HEADS[0])
    fresh = {} if architecture.n_seg_classes else {f"head.{k}": v for k, v in network.head.state_dict().items()}
    weights.load_strict(network, {**fresh, **weights.map_names(tensors)}, path)
    return found


def _empty(variant: Variant, n_seg_classes: int, in_channels: int, head: str) -> networks.SegmentationNet:
    with torch.device("meta"):  # random weights, soon overwritten, would take longer than all the rest
        network = networks.create_model(variant.name, n_seg_classes, in_channels, head)
    return network.to_empty(device="cpu")


def _set_version(bundle: Bundle, version: str, news: str | None, default: str) -> None:
    """Set the version and its line in the changelog, the newest first; without news, a line that is there stays."""
    for path in _metadata(bundle):
        metadata = bundle.configs[path]
        before = metadata.get("changelog", {})
        if not isinstance(before, dict):
            raise Med3dError(f"{bundle.folder}/{path}: changelog is {before!r}, expected an object")
        metadata["version"] = version
        line = news or before.get(version, default)
        metadata["changelog"] = {version: line, **{key: text for key, text in before.items() if key != version}}


def _metadata(bundle: Bundle) -> list[str]:
    """Every metadata.json, that of the bundle's own task first."""
    return sorted((path for path in bundle.configs if path.endswith("/metadata.json")), key=len)


def _contents(bundle: Bundle, found: Pretrained | Trained, name: str) -> dict[str, bytes]:
    """The packaged files but the weights, with what is known of the weights put in."""
    files, folder = dict(bundle.files), bundle.folder
    changed = _metadata(bundle)
    model_card.fill_metadata(bundle.configs[changed[0]], found, folder / changed[0])
    if isinstance(found, Trained):
        changed += DEFAULTS
        known = dataclasses.asdict(found.settings) | {"n_seg_classes": found.settings.n_seg_classes}
        known |= dict(zip(SIZES, found.settings.input_size, strict=True))
        known |= {"pretrain_path": "$@bundle_root + '/models/model.pt'", "new_layer_names": []}
        for path, ids in DEFAULTS.items():
            missing = [key for key in ids if key not in bundle.configs[path]]
            if missing:
                raise Med3dError(f"{folder / path}: lacks {', '.join(missing)} at its top level; render it anew")
            bundle.configs[path].update({key: known[key] for key in ids})
    for path in changed:
        files[path] = (json.dumps(bundle.configs[path], indent=4, ensure_ascii=False) + "\n").encode()
    readme = "docs/README.md"
    try:
        text = files[readme].decode()
    except UnicodeDecodeError as error:
        raise Med3dError(f"{folder / readme}: not UTF-8 ({error})") from error
    for section, content in (("performance", found.performance()), ("weights", found.weights(name))):
        text = text if content is None else model_card.fill_section(text, section, content, folder / readme)
    files[readme] = text.encode()
    return files


def _write(target: Path, name: str, files: Mapping[str, bytes], found: Pretrained | Trained) -> list[str]:
    """Write the zip whole or not at all; the paths in it."""
    weights_name = f"models/{found.path.name}"
    names = sorted([*files, weights_name])
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for path in names:
                    # Stored: weights hardly shrink, and what zlib makes of the rest depends on its version.
                    entry = zipfile.ZipInfo(f"{name}/{path}", DATE)
                    entry.create_system, entry.external_attr = UNIX, MODE << 16
                    if path == weights_name:
                        _copy(archive, entry, found)
                    else:
                        archive.writestr(entry, files[path])
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would hide the file from the group
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    return names


def _copy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, found: Pretrained | Trained) -> None:
    digest = hashlib.sha256()
    entry.file_size = found.path.stat().st_size
    with found.path.open("rb") as source, archive.open(entry, "w") as written:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            written.write(chunk)
    if digest.hexdigest() != found.sha256:
        raise Med3dError(f"{found.path}: changed while it was packaged; is a training still running?")


def _report(target: Path, name: str, version: str, kind: str, entries: list[str]) -> str:
    lines = {
        "package": target,
        "size": f"{target.stat().st_size:,} bytes",
        "sha256": weights.file_sha256(target),
        "weights": kind,
        "entries": f"{len(entries)} below {name}/: {', '.join(entries)}",
    }
    width = max(map(len, lines)) + 2
    shown = [f"{key + ':':<{width}}{value}" for key, value in lines.items()]
    return "\n".join(
        [
            *shown,
            "",
            "Put it on any web server. To fetch it (MONAI checks no digest, and keeps a zip or folder of that name):",
            f"  python -m monai.bundle download --name {name} --url <where you put it>/{target.name} --bundle_dir .",
            "Or share it on the Hugging Face hub (pip install huggingface_hub), from an unpacked copy, not from the",
            "folder that you trained in, since everything in the folder is pushed:",
            f"  python -m zipfile -e '{target}' <folder>",
            f"  python -m monai.bundle push_to_hf_hub --repo <you>/{name} --name {name} --bundle_dir <folder> "
            f"--version {version}",
        ]
    )


def main() -> None:
    """Run :func:`package` with the options of the command line."""
    commands.run_tool(package, TEXTS)


if __name__ == "__main__":
    main()
