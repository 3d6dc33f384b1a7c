"""The weights of a package: found, read whole and compared with their settings, before anything is written."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from med3d_nets.classification.model_card import Classifier, read_metrics
from med3d_nets.classification.settings import ClassifierSettings
from med3d_nets.ensemble import read_ensemble_settings
from med3d_nets.errors import Med3dError
from med3d_nets.folds import RECORD, fold_folders, fold_numbers
from med3d_nets.model_card import ADDED, PRETRAINED, Pretrained, Score, Trained, Weights, read_scores
from med3d_nets.networks import HEADS, ClassificationNet, SegmentationNet, create_classifier, create_model
from med3d_nets.packaging import Bundle, check_inert, check_inside, parse_object
from med3d_nets.settings import Settings, read_settings
from med3d_nets.weights import (
    file_sha256,
    load_strict,
    map_names,
    read_architecture,
    read_checkpoint,
    read_tensors,
)

__all__ = ["KINDS", "find_weights"]

logger = logging.getLogger(__name__)

KINDS = ("trained", "pretrained")
CLASSIFIER = "classification"
"""Folder of a classifier, in that of the weights."""
METRICS = "eval/classification/metrics.json"
"""File, in the bundle's folder, that the evaluation of a classifier writes."""


def find_weights(
    bundle: Bundle,
    kind: str | None = None,
    models: Path | None = None,
    classifier: Path | None = None,
    scores: Path | None = None,
    metrics: Path | None = None,
) -> list[Weights]:
    """The weights to package: what was trained, segmentation first; or the pretrained encoder alone.

    Args:
        bundle: what they are of.
        kind: one of :data:`KINDS`; None: trained weights if there are some, otherwise pretrained ones.
        models: folder of the weights; None: ``models`` in the bundle.
        classifier: folder of a classifier's ``model.pt``, or of its folds' folders; None: ``classification`` in the
            folder of the weights, if there is one.
        scores: ``metrics_summary.csv`` of an evaluation of the segmentation.
        metrics: ``metrics.json`` of one of the classifier; None: that in the bundle's ``eval``, if the classifier is
            the bundle's own.

    Raises:
        Med3dError: if there are none; or if a file is missing, damaged, does not fit, or is a link to elsewhere.
    """
    folder = bundle.folder / "models" if models is None else models
    base = bundle.folder if models is None else models
    for given in (models, classifier):
        if given is not None and not given.is_dir():
            raise Med3dError(f"{given}: no such folder of weights")
    place = (folder / CLASSIFIER, base) if classifier is None else (classifier, classifier)
    networks = [] if kind == "pretrained" else _find_classifier(*place)
    if not networks and kind != "pretrained":
        _refuse(f"{place[0]} has no classifier, neither model.pt nor fold_0/model.pt", None, metrics, classifier)
    kind = _choose(bundle, folder, kind, bool(networks))
    segmentation = folder / "model.pt"
    if kind == "pretrained":
        _refuse("these are the pretrained weights, which nobody has trained", scores, metrics, classifier)
        return [_read_pretrained(bundle, _check_files(folder / "pretrained.pt", base))]
    if not segmentation.exists():
        _refuse(f"{segmentation}: no such file; scores of a classifier are --metrics", scores)
    found: list[Weights] = []
    if segmentation.exists():
        found.append(_read_trained(bundle, _check_files(segmentation, base), scores))
    if networks:
        own = bundle.folder / METRICS
        if metrics is None and models is None and classifier is None and own.exists():
            metrics = own
        found.append(_read_classifier(bundle, networks, metrics))
    return found


def _refuse(reason: str, scores: Path | None, metrics: Path | None = None, classifier: Path | None = None) -> None:
    """Refuse options that are given of what there is not."""
    for option, path in (("scores", scores), ("metrics", metrics), ("classifier", classifier)):
        if path is not None:
            raise Med3dError(f"--{option} {path}: {reason}")


def _choose(bundle: Bundle, folder: Path, kind: str | None, classifies: bool) -> str:
    """``"trained"`` or ``"pretrained"``, of which there are some."""
    train = "python -m monai.bundle run training --config_file configs"
    to_do = {
        "trained": f"'{train}/train.json' in the bundle's folder writes it with model.json beside it, and "
        f"'{train}/classification/train.json' one in {CLASSIFIER}; if it lies elsewhere, give its folder as --models, "
        "or --classifier",
        "pretrained": f"'med3d get {bundle.variant.name}' in the project's folder, or 'python "
        f"tools/convert_pth.py --src {bundle.variant.filename}', writes it with pretrained.json beside it",
    }
    files = {"trained": "model.pt", "pretrained": "pretrained.pt"}
    there = {name: (folder / file).exists() for name, file in files.items()}
    there["trained"] |= classifies
    chosen = kind or next((name for name in KINDS if there[name]), None)
    if chosen is None:
        both = "; ".join(f"{files[name]}: {to_do[name]}" for name in KINDS)
        raise Med3dError(f"{folder}: no weights to package, neither model.pt nor pretrained.pt. {both}")
    if not there[chosen]:
        raise Med3dError(f"{folder / files[chosen]}: no such file, so there are no {chosen} weights; {to_do[chosen]}")
    return chosen


def _check_files(path: Path, base: Path) -> Path:
    """A file of weights, if it and its record are there and really below ``base``."""
    for each in (path, path.with_suffix(".json")):
        if not each.is_file():
            raise Med3dError(f"{each}: no such file; training, or tools/convert_pth.py, writes it beside {path.name}")
        check_inside(each, base, "give the folder that it lies in as --models, or --classifier")
    return path


def _find_classifier(folder: Path, base: Path) -> list[Path]:
    """The files of a classifier's networks: ``model.pt``, or those of all folds; none where there are neither."""
    if (folder / "model.pt").exists():
        return [_check_files(folder / "model.pt", base)]
    if not list(folder.glob("fold_*/model.pt")):
        return []
    numbers = fold_numbers(str(folder))
    record = folder / f"fold_{numbers[0]}" / RECORD
    known = parse_object(record.read_bytes(), record).get("folds") if record.is_file() else None
    folds = known if isinstance(known, int) else numbers[-1] + 1
    return [_check_files(Path(each) / "model.pt", base) for each in fold_folders(str(folder), folds)]


def _read_trained(bundle: Bundle, path: Path, scores: Path | None) -> Trained:
    settings: Settings = read_settings(path.with_suffix(".json"))
    if settings.head == CLASSIFIER:
        raise Med3dError(f"{path}: of a classifier; give its folder as --classifier")
    measured = [] if scores is None else read_scores(scores, settings.class_names)
    return _read_network(bundle, path, settings, measured)


def _read_classifier(bundle: Bundle, paths: Sequence[Path], metrics: Path | None) -> Classifier:
    settings = read_ensemble_settings([str(path.parent) for path in paths], ClassifierSettings)
    networks = [
        _read_network(bundle, path, read_settings(path.with_suffix(".json"), ClassifierSettings)) for path in paths
    ]
    if metrics is None:
        return Classifier(networks)
    scores = read_metrics(metrics, settings)
    if newer := [path for path in paths if path.stat().st_mtime > metrics.stat().st_mtime]:
        logger.warning("%s is older than %s: if that was trained anew since, evaluate it again", metrics, newer[0])
    return Classifier(networks, scores)


def _read_network(bundle: Bundle, path: Path, settings: Settings, scores: Sequence[Score] = ()) -> Trained:
    """A network whose every tensor fits what its settings say."""
    sidecar = path.with_suffix(".json")
    if settings.variant != bundle.variant.name:
        raise Med3dError(f"{sidecar}: variant is {settings.variant!r}, but {bundle.folder} is {bundle.variant.name!r}")
    for name in settings.class_names:
        check_inert(f"{sidecar}: class_names", str(name))
    tensors = read_checkpoint(path)
    others = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if others:  # a nested file, which monai.bundle.load would pass over without a word
        raise Med3dError(f"{path}: holds the entry {others[0]!r}, expected a flat dictionary of tensors")
    load_strict(_empty(bundle, settings.n_seg_classes, settings.in_channels, settings.head), tensors, path)
    return Trained(path, file_sha256(path), settings, parse_object(sidecar.read_bytes(), sidecar), scores)


def _read_pretrained(bundle: Bundle, path: Path) -> Pretrained:
    sidecar = path.with_suffix(".json")
    for name in bundle.metadata:
        _, added, summary = str(bundle.configs[name].get("description")).partition(ADDED)
        if added and not summary.startswith(PRETRAINED):
            raise Med3dError(
                f"{bundle.folder}: its configs are those of trained weights; package the bundle as rendered"
            )
    record = parse_object(sidecar.read_bytes(), sidecar)
    found = Pretrained(path, file_sha256(path), bundle.variant.name, record)
    for key, expected in (("variant", found.variant), ("sha256", found.sha256)):
        if record.get(key) != expected:
            raise Med3dError(
                f"{sidecar}: {key} is {record.get(key)!r}, expected {expected!r}; "
                f"convert again: 'python tools/convert_pth.py --src {bundle.variant.filename} --overwrite'"
            )
    tensors = read_tensors(path)
    architecture = read_architecture(tensors, path)
    network = _empty(bundle, architecture.n_seg_classes or 2, architecture.in_channels, HEADS[0])
    head = {} if architecture.n_seg_classes else {f"head.{k}": v for k, v in network.head.state_dict().items()}
    load_strict(network, {**head, **map_names(tensors)}, path)
    return found


def _empty(bundle: Bundle, n_classes: int, in_channels: int, head: str) -> SegmentationNet | ClassificationNet:
    name = bundle.variant.name
    with torch.device("meta"):  # random weights, soon overwritten, would take longer than all the rest
        if head == CLASSIFIER:
            return create_classifier(name, n_classes, in_channels).to_empty(device="cpu")
        return create_model(name, n_classes, in_channels, head).to_empty(device="cpu")
