"""What a packaged bundle says of its weights: the model card in ``docs/README.md`` and ``metadata.json``."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from med3d_nets.errors import Med3dError
from med3d_nets.packaging import File
from med3d_nets.settings import Settings
from med3d_nets.variants import get_variant

__all__ = [
    "ADDED",
    "PRETRAINED",
    "Pretrained",
    "Score",
    "Trained",
    "Weights",
    "describe",
    "fill_metadata",
    "fill_section",
    "is_number",
    "performance_section",
    "read_scores",
    "table",
    "weights_section",
]

SUMMARY_COLUMNS = ("metric", "mean", "cases")
"""Columns of ``metrics_summary.csv`` that are read; evaluation writes others too."""

ADDED = "; packaged weights: "
"""What stands between a bundle's own description and the sentence about its weights."""

PRETRAINED = "MedicalNet's pretrained encoder alone"
"""How that sentence begins for pretrained weights."""


class Weights(Protocol):
    """What a package holds, and says of it.

    Attributes:
        settings: of trained weights.
        eval_metrics: all measured figures by name.
        files: each file, with its digest, by its path in the package; a JSON file of the same name goes with it.
    """

    @property
    def settings(self) -> Settings | None: ...

    @property
    def eval_metrics(self) -> dict[str, float]: ...

    @property
    def files(self) -> dict[str, File]: ...

    def summary(self) -> str:
        """The weights in half a sentence."""

    def performance(self) -> str | None:
        """Their part of the section on scores; None: the bundle's own stays."""

    def weights(self, package: str) -> str:
        """Their part of the section on weights; ``package`` is the name of the package, for a command."""

    def licence(self) -> str:
        """Their terms, for the end of that section."""


@dataclass(frozen=True)
class Score:
    """One line of ``metrics_summary.csv``: the mean of a metric over the cases that have the structure."""

    metric: str
    mean: float
    cases: int

    @property
    def label(self) -> str:
        """Name of the score where it stands alone."""
        return f"evaluation: {self.metric}, mean of {self.cases} case{'' if self.cases == 1 else 's'}"


@dataclass(frozen=True)
class Pretrained:
    """The encoder as MedicalNet learnt it, ``models/pretrained.pt``.

    Attributes:
        path: the file.
        sha256: its digest.
        variant: name of the variant.
        record: content of ``pretrained.json``, which the converter writes.
    """

    path: Path
    sha256: str
    variant: str
    record: Mapping[str, Any]

    @property
    def settings(self) -> None:
        """None: nothing was trained here."""

    @property
    def eval_metrics(self) -> dict[str, float]:
        """None: an encoder without a head has no score."""
        return {}

    @property
    def files(self) -> dict[str, File]:
        """The file, by its path in the package."""
        return {"models/pretrained.pt": (self.path, self.sha256)}

    def summary(self) -> str:
        """The weights in half a sentence."""
        return f"{PRETRAINED}, {_origin(self.variant, self._published)}"

    def performance(self) -> None:
        """None: what was published of these weights stays."""

    def weights(self, package: str) -> str:
        """The section on weights, see :class:`Weights`."""
        rows = {
            "file": "`models/pretrained.pt`: the encoder, a flat dictionary of tensors under MedicalNet's names",
            "SHA-256": f"`{self.sha256}`",
            "variant": f"`{self.variant}`",
            "tensors, values": f"{self.record.get('tensors')}, {self.record.get('values')}",
            "converted from": _origin(self.variant, self._published),
        }
        lines = [
            table(("", ""), rows.items()),
            "Training starts from this file by default. In Python, with a fresh head:\n",
            "    monai.bundle.load(\n"
            f'        "{package}", bundle_dir=..., model_file="models/pretrained.pt",\n'
            '        copy_model_args={"dst_prefix": "encoder."}, net_override={"n_seg_classes": ...},\n'
            "    )\n",
        ]
        return "\n".join(lines)

    def licence(self) -> str:
        """Tencent's terms."""
        return (
            "The weights: MIT licence, copyright (C) 2019 THL A29 Limited, a Tencent company; whoever passes them on\n"
            "passes on the notice in `data_license.txt`. The bundle's other files: Apache-2.0, see `LICENSE`.\n"
        )

    @property
    def _published(self) -> dict[str, Any]:
        return {"file": self.record.get("source"), "sha256": self.record.get("source_sha256")}


@dataclass(frozen=True)
class Trained:
    """A whole network as its user trained it, such as ``models/model.pt``.

    Attributes:
        path: the file.
        sha256: its digest.
        settings: those in ``model.json``.
        record: content of ``model.json``.
        scores: what an evaluation measured, may be empty.
    """

    path: Path
    sha256: str
    settings: Settings
    record: Mapping[str, Any]
    scores: Sequence[Score] = field(default=())

    @property
    def variant(self) -> str:
        """Name of the variant."""
        return self.settings.variant

    @property
    def validation(self) -> dict[str, float]:
        """The validation's scores of the epoch that was kept, as far as they are numbers."""
        scores = self.record.get("validation")
        return {str(name): value for name, value in scores.items() if is_number(value)} if scores else {}

    @property
    def eval_metrics(self) -> dict[str, float]:
        """All measured figures by name."""
        return {**self.validation, **{score.label: score.mean for score in self.scores}}

    @property
    def files(self) -> dict[str, File]:
        """The file, by its path in the package."""
        return {"models/model.pt": (self.path, self.sha256)}

    def summary(self) -> str:
        """The weights in half a sentence."""
        return f"trained from {self.start}, classes {', '.join(self.settings.class_names)}"

    def performance(self) -> str:
        """The section on scores, with what is known of how they were measured."""
        parts = []
        if self.validation:
            epoch = self.record.get("epoch")
            parts += [
                f"Validation during the training{'' if epoch is None else f', after epoch {epoch}'}:\n",
                table(("score", "value"), {name: f"{value:.4f}" for name, value in self.validation.items()}.items()),
                "These scores chose the weights: of all epochs the one with the best was kept. So expect less on\n"
                "scans that had no part in the training. Which cases they were measured on is not recorded.\n",
            ]
        if self.scores:
            rows = [(score.metric, f"{score.mean:.4f}", str(score.cases)) for score in self.scores]
            parts += [
                "Evaluation, as whoever packaged this measured it (`metrics_summary.csv`):\n",
                table(("metric", "mean", "cases"), rows),
                "Which cases these were, and whether they had a part in the training, is not recorded.\n",
            ]
        return "\n".join(parts) or "No score is recorded for the packaged weights.\n"

    def weights(self, package: str) -> str:
        """The section on weights, see :class:`Weights`."""
        settings = self.settings
        classes = ", ".join(f"{index} {name}" for index, name in enumerate(settings.class_names))
        rows = {
            "file": "`models/model.pt`: the whole network, a flat dictionary of tensors; settings in `model.json`",
            "SHA-256": f"`{self.sha256}`",
            "variant": f"`{settings.variant}`",
            "head": settings.head,
            "recipe": settings.recipe,
            "input channels": str(settings.in_channels),
            "classes": classes,
            "input_D x input_H x input_W": " x ".join(map(str, settings.input_size)) + " voxels",
            "empty voxels filled with noise": "yes" if settings.fill_empty_with_noise else "no",
            "epoch": self.epoch,
            "trained from": self.start,
            "trained with": self.versions,
        }
        lines = [
            table(("", ""), rows.items()),
            "The configs have these settings as defaults. In Python:\n",
            f'    monai.bundle.load("{package}", bundle_dir=..., workflow_type="inference")\n',
            "Training starts from these weights, unless `--pretrain_path` names others:\n",
            "    python -m monai.bundle run training --config_file configs/train.json --data_root DATA \\\n"
            "        --ckpt_dir NEW_FOLDER\n",
        ]
        return "\n".join(lines)

    def licence(self) -> str:
        """What is known of the terms."""
        text = "The bundle's files: Apache-2.0, see `LICENSE`. The terms for these weights, and for the data behind\n"
        text += "them, are for whoever trained and packaged them to state.\n"
        if self.settings.pretrained is not None:
            text += (
                "\nThey derive from MedicalNet's pretrained weights: MIT licence, copyright (C) 2019 THL A29 Limited,\n"
                "a Tencent company; whoever passes them on passes on the notice in `data_license.txt`.\n"
            )
        return text

    @property
    def epoch(self) -> str:
        """The epoch that was kept."""
        return str(self.record.get("epoch", "not recorded"))

    @property
    def versions(self) -> str:
        """The versions that it was trained with."""
        versions = self.record.get("versions") or {}
        return ", ".join(f"{name} {version}" for name, version in versions.items()) or "not recorded"

    @property
    def start(self) -> str:
        """What the training started from."""
        pretrained = self.settings.pretrained
        return "random weights" if pretrained is None else _origin(self.settings.variant, pretrained)


def fill_section(text: str, name: str, content: str, source: str | os.PathLike[str]) -> str:
    """Replace what stands between the markers ``<!-- name -->`` and ``<!-- /name -->``; the markers stay.

    Raises:
        Med3dError: if the text does not have the pair exactly once.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    found = len(pattern.findall(text))
    if found != 1:
        raise Med3dError(
            f"{source}: has {found or 'no'} section{'s' if found > 1 else ''} between <!-- {name} --> and "
            f"<!-- /{name} -->, expected one, to put the model card's text there"
        )
    return pattern.sub(lambda match: match[1] + content + match[2], text)


def performance_section(parts: Sequence[Weights]) -> str | None:
    """The section on the scores of all that a package holds; None: the bundle's own stays."""
    texts = [part.performance() for part in parts]
    return "\n".join(text for text in texts if text is not None) or None


def weights_section(parts: Sequence[Weights], package: str) -> str:
    """The section on the weights of a package with this name."""
    licences = dict.fromkeys(part.licence() for part in parts)
    return "\n".join([*(part.weights(package) for part in parts), *licences])


def describe(metadata: dict[str, Any], parts: Sequence[Weights]) -> None:
    """Say in the description of a ``metadata.json`` what a package holds."""
    summaries = "; ".join(part.summary() for part in parts)
    metadata["description"] = str(metadata.get("description", "")).split(ADDED)[0] + ADDED + summaries


def fill_metadata(metadata: dict[str, Any], weights: Weights, source: str | os.PathLike[str]) -> None:
    """Put what is known of the weights into the content of ``metadata.json``.

    Raises:
        Med3dError: if the content lacks the description of the network's input ``image`` or output ``pred``.
    """
    describe(metadata, [weights])
    metadata["eval_metrics"] = weights.eval_metrics
    settings = weights.settings
    if settings is None:
        return
    try:
        image = metadata["network_data_format"]["inputs"]["image"]
        pred = metadata["network_data_format"]["outputs"]["pred"]
        image["num_channels"], pred["num_channels"] = settings.in_channels, settings.n_seg_classes
        image["spatial_shape"] = list(settings.input_size)
        pred["spatial_shape"] = [] if settings.head == "classification" else list(settings.input_size)
        channels = range(settings.in_channels)
        image["channel_def"] = {str(n): "image" if len(channels) == 1 else f"image channel {n}" for n in channels}
        pred["channel_def"] = {str(index): name for index, name in enumerate(settings.class_names)}
    except (KeyError, TypeError) as error:
        raise Med3dError(f"{source}: lacks network_data_format with inputs.image and outputs.pred") from error
    if settings.in_channels > 1 and "image_classes" in metadata:
        several = f"volume of {settings.in_channels} channels"
        metadata["image_classes"] = str(metadata["image_classes"]).replace("single channel volume", several)


def read_scores(path: str | os.PathLike[str], class_names: Sequence[str]) -> list[Score]:
    """The means in a ``metrics_summary.csv``, without those that no case had.

    Args:
        path: the file, which evaluation writes.
        class_names: names of the network's classes, background first.

    Raises:
        Med3dError: if the file is missing, no such table, or speaks of classes that the network does not have.
    """
    path = Path(path)
    if not path.is_file():
        raise Med3dError(f"{path}: no such file; evaluation writes metrics_summary.csv into its --output_dir")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        scores = [Score(*(row[name] for name in SUMMARY_COLUMNS)) for row in rows]  # type: ignore[arg-type]
        scores = [Score(score.metric, float(score.mean), int(score.cases)) for score in scores]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        columns = ", ".join(SUMMARY_COLUMNS)
        raise Med3dError(f"{path}: not a metrics_summary.csv with the columns {columns} ({error!r})") from error
    names = list(class_names)[1:]
    unknown = [score.metric for score in scores if not score.metric.endswith(tuple(f" {name}" for name in names))]
    if unknown or not scores:
        found = f"has the metrics {', '.join(unknown)}" if unknown else "has no metric"
        raise Med3dError(f"{path}: {found}, expected some of the classes {', '.join(names)}: of another network?")
    return [score for score in scores if score.cases > 0 and math.isfinite(score.mean)]


def _origin(variant: str, pretrained: Mapping[str, Any]) -> str:
    row = get_variant(variant)
    known = "the published file" if pretrained.get("sha256") == row.sha256 else f"not the published {row.filename}"
    return f"{pretrained.get('file')} (SHA-256 {pretrained.get('sha256')}, {known})"


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown, whatever is in its cells."""
    lines = [header, ["---"] * len(header), *([_cell(text) for text in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    """Text that cannot end a cell, a line or a comment of the Markdown around it: class names are free text."""
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|")
