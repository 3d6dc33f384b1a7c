"""A table of embeddings, one for each volume of a list, for scikit-learn and the like.

An embedding is the mean of the encoder's last stage over all positions
(:meth:`~med3d_nets.networks.ClassificationNet.forward_features`), of the published encoder or of a classifier trained
here. Embeddings can be compared only where weights and preprocessing are the same, so that both are written beside the
table, and a later run can be told to use that preprocessing again.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch import nn

from med3d_nets.checks import reason
from med3d_nets.classification.plan import measure_regions, plan_regions
from med3d_nets.classification.settings import ClassifierSettings
from med3d_nets.classification.volumes import name_case
from med3d_nets.distributed import gather
from med3d_nets.errors import Med3dError
from med3d_nets.folds import fold_numbers
from med3d_nets.networks import ClassificationNet, create_classifier
from med3d_nets.planning_options import check_given
from med3d_nets.settings import check_settings, read_settings, versions
from med3d_nets.variants import get_variant
from med3d_nets.weights import load_pretrained

__all__ = [
    "FeatureSettings",
    "FeatureTable",
    "check_options",
    "check_output",
    "check_weights",
    "load_encoder",
    "make_encoder",
    "plan_settings",
    "read_known",
]

FORMATS = (".csv", ".parquet")
PREPARATION = ("in_channels", "keep_size", "margin_mm", "spacing", "input_size", "intensity")
"""Settings that a trained classifier has too, and options of the same names."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureSettings:
    """How volumes are prepared for the encoder.

    Attributes:
        in_channels: channels of the images.
        keep_size, margin_mm: as in :class:`~med3d_nets.classification.settings.ClassifierSettings`.
        spacing: mm along the RAS axes.
        input_size: voxels along the RAS axes of what the encoder sees.
        intensity: ``lower`` and ``upper`` bounds, ``mean`` and ``std``; None: each volume is normalised by its own.
        regions: whether a classifier that they are from was trained on regions of interest; None: not known.
        reasons: sentences on where the others are from.

    Raises:
        Med3dError: if a value makes no sense.
    """

    in_channels: int
    keep_size: bool
    margin_mm: float
    spacing: Sequence[float]
    input_size: Sequence[int]
    intensity: Mapping[str, float] | None
    regions: bool | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_values(self.in_channels, self.keep_size, self.margin_mm)
        for name, value in (("spacing", self.spacing), ("input_size", self.input_size)):
            if not value:
                raise Med3dError(f"{name} is {value!r}, expected a number for each axis")
        known = self.intensity
        if known is not None and (not isinstance(known, Mapping) or set(known) != {"lower", "upper", "mean", "std"}):
            raise Med3dError(f"intensity is {known!r}, expected lower, upper, mean and std, or None")
        window = "mr" if known is None else [known["lower"], known["upper"]]
        check_given(self.spacing, self.input_size, 0, window, 0, in_channels=self.in_channels, size_name="input_size")

    @property
    def empty_value(self) -> float:
        """What a normalised volume is padded with: the lowest intensity, or 0 where each is normalised by its own."""
        known = self.intensity
        return (known["lower"] - known["mean"]) / known["std"] if known else 0.0


def _check_values(in_channels: Any, keep_size: Any, margin_mm: Any) -> None:
    problems = []
    if not isinstance(in_channels, int) or isinstance(in_channels, bool) or in_channels < 1:
        problems.append(f"in_channels is {in_channels!r}, expected a whole number of at least 1")
    if not isinstance(keep_size, bool):
        problems.append(f"keep_size is {keep_size!r}, expected True or False")
    number = isinstance(margin_mm, (int, float)) and not isinstance(margin_mm, bool)
    if not number or not 0 <= margin_mm < math.inf:
        problems.append(f"margin_mm is {margin_mm!r}, expected a number of mm, 0 or more")
    if problems:
        raise Med3dError("; ".join(problems))


def read_known(variant: str, ckpt_dir: str = "", settings_path: str = "") -> FeatureSettings | None:
    """The preprocessing that a classifier was trained with, or that an earlier table was made with.

    Args:
        variant: of the network.
        ckpt_dir: folder of a classifier trained here, or "".
        settings_path: ``features.json`` beside an earlier table, or ""; it is followed where both are given.

    Returns:
        None if neither is given.

    Raises:
        Med3dError: if a file is missing or wrong, or the classifier is of another variant; or if there is one for each
            fold, whose embeddings cannot be compared.
    """
    known = _read_classifier(variant, ckpt_dir) if ckpt_dir else None
    return _read_table_settings(settings_path) if settings_path else known


def _read_classifier(variant: str, ckpt_dir: str) -> FeatureSettings:
    path = os.path.join(ckpt_dir, "model.json")
    if not os.path.isfile(path) and (numbers := fold_numbers(ckpt_dir)):
        found = f"found no model.json in it but fold {', '.join(map(str, numbers))}"
        one = os.path.join(ckpt_dir, f"fold_{numbers[0]}")
        raise Med3dError(
            f"{ckpt_dir}: {found}; expected one network, such as --ckpt_dir {one}: embeddings of several differ"
        )
    settings = read_settings(path, ClassifierSettings)
    check_settings(settings, path, variant=variant)
    prepared = {name: getattr(settings, name) for name in (*PREPARATION, "regions")}
    return FeatureSettings(**prepared, reasons={"settings": f"those that the classifier in {ckpt_dir} learnt with"})


def _read_table_settings(path: str) -> FeatureSettings:
    try:
        return FeatureSettings(**_read_json(path)["settings"])
    except Med3dError as error:
        raise Med3dError(f"{path}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected = "the features.json that an earlier run wrote beside its table"
        raise Med3dError(f"{path}: found no settings ({reason(error)}); expected {expected}") from error


def _read_json(path: str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def check_options(known: FeatureSettings | None, source: str, **given: Any) -> None:
    """Check the options of the preprocessing before volumes are read.

    Args:
        known: from :func:`read_known`.
        source: where it was read, for the message.
        given: the options of :func:`plan_settings`.

    Raises:
        Med3dError: naming each that differs from what is known, or makes no sense where nothing is.
    """
    if known is None:
        _check_values(given["in_channels"], given["keep_size"], given["margin_mm"])
        sizes = given["spacing"], given["input_size"]
        check_given(*sizes, 0, given["intensity"], 0, in_channels=given["in_channels"], size_name="input_size")
        return
    wrong = [
        f"{name} is {value!r}, but {source} says {getattr(known, name)!r}"
        for name, value in given.items()
        if value != getattr(known, name)
    ]
    if wrong:
        raise Med3dError("; ".join(wrong))


def plan_settings(
    cases: Sequence[Mapping[str, Any]],
    variant: str,
    device: torch.device | str = "cpu",
    *,
    in_channels: int = 1,
    keep_size: bool = True,
    margin_mm: float = 0.0,
    spacing: Sequence[float] = (),
    input_size: Sequence[int] = (),
    intensity: str | Sequence[float] = "auto",
) -> FeatureSettings:
    """Plan the preprocessing from the volumes themselves, as if to train on them.

    The rules are those of :func:`~med3d_nets.classification.plan.plan_regions`; what it says of training alone is left
    out, but for the size of the input, which is limited by what training would need.

    Args:
        cases: items of :func:`~med3d_nets.classification.cases.load_images`.
        variant, device: of the network.
        in_channels, keep_size, margin_mm, spacing, input_size, intensity: as for
            :func:`~med3d_nets.classification.plan.plan_classification`.

    Raises:
        Med3dError: if a value given makes no sense, or a file cannot be read.
    """
    fingerprint = measure_regions(cases, in_channels, margin_mm)
    # A batch size that is given makes an input that training has no memory for a warning and not an error.
    plan = plan_regions(fingerprint, (), variant, device, keep_size, spacing, input_size, 1, intensity)
    reasons = {name: plan.reasons[name] for name in ("spacing", "input_size", "intensity")}
    for text in reasons.values():
        logger.info("plan: %s", text)
    return FeatureSettings(
        in_channels, keep_size, margin_mm, plan.spacing, plan.input_size, plan.intensity, reasons=reasons
    )


def make_encoder(variant: str, in_channels: int = 1) -> ClassificationNet:
    """A network with fresh weights that answers with embeddings: its head passes them on.

    Args:
        variant, in_channels: as for :func:`~med3d_nets.networks.create_classifier`.

    Returns:
        Maps ``(batch, in_channels, depth, height, width)`` to ``(batch, channels)``, in float32.

    Raises:
        Med3dError: for an unknown variant.
    """
    network = create_classifier(variant, in_channels=in_channels)
    network.head = nn.Identity()  # type: ignore[assignment]
    return network


def load_encoder(network: nn.Module, variant: str, ckpt_dir: str = "", pretrain_path: str = "") -> dict[str, Any]:
    """Load the encoder of a classifier trained here, or the published one, whole.

    Args:
        network: from :func:`make_encoder`.
        variant: of the network.
        ckpt_dir: folder of the classifier; "": the published encoder.
        pretrain_path: of the published encoder, as for :func:`~med3d_nets.weights.load_pretrained`.

    Returns:
        ``{"variant", "file", "sha256", "tensors"}``.

    Raises:
        Med3dError: if the file is missing or does not fit.
    """
    path = os.path.join(ckpt_dir, "model.pt") if ckpt_dir else pretrain_path
    if not os.path.isfile(path) and ckpt_dir:
        command = "python -m monai.bundle run training --config_file configs/classification/train.json"
        raise Med3dError(f"{path}: found no such file; expected the weights of a classifier, made by {command}")
    if not os.path.isfile(path):
        row = get_variant(variant)
        raise Med3dError(
            f"pretrain_path is {path!r}, where there is no file; expected pretrained weights. Get them with "
            f"'med3d get {row.name}'; or give a MedicalNet file, such as {row.filename} from "
            f"https://huggingface.co/{row.hub_repo}, as --pretrain_path; or the folder of a classifier trained here "
            "as --ckpt_dir"
        )
    return {"variant": variant, **(load_pretrained(network, path, variant) or {})}


def check_weights(weights: Mapping[str, Any], settings_path: str) -> None:
    """Refuse to go on with an earlier table's settings and other weights than its own.

    Args:
        weights: from :func:`load_encoder`.
        settings_path: ``features.json`` beside the earlier table, or "".

    Raises:
        Med3dError: naming both files of weights.
    """
    earlier = _read_json(settings_path).get("weights") if settings_path else None
    if earlier and earlier.get("sha256") != weights["sha256"]:
        ours, theirs = (
            f"{each.get('variant')}, {each.get('file')} of SHA-256 {str(each.get('sha256'))[:16]}…"
            for each in (weights, earlier)
        )
        raise Med3dError(
            f"{settings_path}: found weights {theirs}; expected {ours}: embeddings of different weights cannot be "
            "compared. Give the same --pretrain_path or --ckpt_dir, or for the settings alone a copy without 'weights'"
        )


def check_output(output: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Check that a table can be written, before any work.

    Args:
        output: path of the table.
        overwrite: whether to replace the files of an earlier run.

    Raises:
        Med3dError: if the suffix is none of :data:`FORMATS`, a package is missing, or the table or the file of its
            settings exists.
    """
    table = Path(output)
    suffix = table.suffix.lower()
    if suffix not in FORMATS:
        raise Med3dError(f"output is {os.fspath(output)!r}, expected a file name that ends in {' or '.join(FORMATS)}")
    if suffix == ".parquet":
        for package in ("pandas", "pyarrow"):
            try:
                import_module(package)
            except ImportError as error:
                raise Med3dError(
                    f"output is {os.fspath(output)!r}, but {package} is not installed ({error}): "
                    "pip install pandas pyarrow, or choose .csv"
                ) from error
    for path in (table, table.with_suffix(".json")):
        if path.is_dir() or (path.exists() and not overwrite):
            raise Med3dError(f"{path}: exists already; give another --output or pass --overwrite True")


class FeatureTable:
    """Writes a table of embeddings, a row a case in the order given, and beside it a JSON of how they were made.

    Columns are ``case``, ``patient`` and ``label`` where any case has one, and ``feature_0`` and so on. The evaluator's
    ``state.batch`` and ``state.output`` are lists, an item a case; several processes deal the cases as
    :func:`~med3d_nets.distributed.each_once` does.

    Args:
        output: path of the table, ``.csv`` or ``.parquet``, see :func:`check_output`; what is there is replaced.
        settings: how volumes were prepared.
        weights: from :func:`load_encoder`.
    """

    def __init__(self, output: str | os.PathLike[str], settings: FeatureSettings, weights: Mapping[str, Any]) -> None:
        self.path = Path(output)
        self.record = {"settings": asdict(settings), "weights": dict(weights), "versions": versions()}
        self.rows: list[tuple[str, str, str, NDArray[np.float32]]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda _: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def collect(self, engine: Engine) -> None:
        """Take the embeddings of an iteration, each ``(channels,)``."""
        state: Any = engine.state
        for given, found in zip(state.batch, state.output, strict=True):
            embedding = torch.as_tensor(found["pred"]).detach().float().cpu().numpy()
            self.rows.append((name_case(given["image"]), given["patient"], given["label"], embedding))

    def __call__(self, engine: Engine) -> None:
        """Write the table and its record."""
        rows = gather(self.rows)
        if idist.get_rank() > 0:
            return
        *columns, embeddings = zip(*rows, strict=True)
        texts = dict(zip(("case", "patient", "label"), columns, strict=True))
        features = np.stack(embeddings)
        self._write({name: column for name, column in texts.items() if any(column)}, features)
        logger.info("%d cases of %d features each\nwritten: %s", *features.shape, self.path)

    def _write(self, texts: Mapping[str, Sequence[str]], features: NDArray[np.float32]) -> None:
        """Write both files elsewhere, then put them in place, so that they are whole or not there."""
        names = [f"feature_{index}" for index in range(features.shape[1])]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.path.parent, prefix=f".{self.path.name}.") as folder:
            table = Path(folder, self.path.name)
            record = table.with_suffix(".json")
            record.write_text(json.dumps(self.record, indent=4) + "\n", encoding="utf-8")
            write = _write_csv if table.suffix.lower() == ".csv" else _write_parquet
            write(table, texts, names, features)
            for path in (record, table):  # where there is a table, there is its record
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
                os.replace(path, self.path.parent / path.name)


def _write_csv(
    path: Path, texts: Mapping[str, Sequence[str]], names: Sequence[str], features: NDArray[np.float32]
) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*texts, *names])
        for words, values in zip(zip(*texts.values(), strict=True), features, strict=True):
            writer.writerow([*words, *(f"{value:.9g}" for value in values)])  # 9 digits tell every float32


def _write_parquet(
    path: Path, texts: Mapping[str, Sequence[str]], names: Sequence[str], features: NDArray[np.float32]
) -> None:
    import pandas as pd  # an extra

    frames = [pd.DataFrame(texts), pd.DataFrame(features, columns=names)]
    pd.concat(frames, axis="columns").to_parquet(path, engine="pyarrow", index=False)
