"""What a packaged bundle says of its classifier: a network alone, or those of all folds, which answer together."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from med3d_nets.classification.settings import ClassifierSettings
from med3d_nets.errors import Med3dError
from med3d_nets.model_card import Trained, fill_metadata, is_number, table
from med3d_nets.packaging import File

__all__ = ["Classifier", "fill_classifier", "read_metrics"]

FOLDER = "models/classification"
NAMES = {"auc": "AUC", "mae": "MAE", "rmse": "RMSE", "r2": "R2", "pearson": "Pearson r"}
"""How scores are called that are not called by words."""
PLAIN = ("average_precision", "log_loss", "brier")
"""Scores in ``metrics.json`` without an interval."""


@dataclass(frozen=True)
class Classifier:
    """A classifier, or a regression, as its user trained it.

    Attributes:
        networks: one, or that of each fold in order; their settings are :class:`ClassifierSettings`.
        scores: content of the ``metrics.json`` of an evaluation, may be empty.
    """

    networks: Sequence[Trained]
    scores: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> ClassifierSettings:
        """Those of the first network; folds agree but for what each found out."""
        return _settings(self.networks[0])

    @property
    def folds(self) -> int:
        """Number of folds; 0: one network alone."""
        return len(self.networks) if len(self.networks) > 1 else 0

    @property
    def labels(self) -> list[str]:
        """Names of the networks; one alone has none."""
        return [f"fold {number}" for number in range(self.folds)] or [""]

    @property
    def files(self) -> dict[str, File]:
        """Each file, by its path in the package."""
        folders = [f"{FOLDER}/fold_{number}" for number in range(self.folds)] or [FOLDER]
        pairs = zip(folders, self.networks, strict=True)
        return {f"{folder}/model.pt": (network.path, network.sha256) for folder, network in pairs}

    @property
    def eval_metrics(self) -> dict[str, float]:
        """All measured figures by name."""
        found: dict[str, float] = {}
        for label, network in zip(self.labels, self.networks, strict=True):
            found |= {f"{label}: {name}" if label else name: value for name, value in network.validation.items()}
        return found | {f"evaluation: {name} of {self._cases()}": value for name, value, _ in self._measured()}

    def summary(self) -> str:
        """The weights in half a sentence."""
        regression, names = self.settings.task == "regression", ", ".join(self.settings.class_names)
        kind, answer = ("a regression", f"predicting {names}") if regression else ("a classifier", f"classes {names}")
        together = f" of {self.folds} networks" if self.folds else ""
        return f"{kind}{together} trained from {self.networks[0].start}, {answer}"

    def performance(self) -> str:
        """The section on scores, with what is known of how they were measured."""
        parts = [f"{self._title()}:\n"]
        if any(network.validation for network in self.networks):
            epochs = [f"after epoch {network.epoch}" for network in self.networks]
            names = dict.fromkeys(name for network in self.networks for name in network.validation)
            rows = [[name, *(_figure(network, name) for network in self.networks)] for name in names]
            parts += [
                f"Validation during the training, {', '.join(dict.fromkeys(epochs))}:\n",
                table(["score", *(label or "value" for label in self.labels)], rows),
                "These scores chose the weights: of all epochs the one with the best was kept. A classifier's\n"
                "temperature was fitted to the same cases. So expect less on volumes without a part in the training.\n",
            ]
        if rows := [[name, f"{value:.4f}", interval] for name, value, interval in self._measured()]:
            parts += [
                f"Evaluation on {self._cases()}, as whoever packaged this measured it (`metrics.json`):\n",
                table(["score", "value", "95 % interval"], rows),
                "Which cases these were, and whether they had a part in the training, is not recorded.\n",
            ]
            if caveats := self.scores.get("caveats"):
                parts += [table(["what a reader of these scores must know"], [[text] for text in caveats])]
        return "\n".join(parts if len(parts) > 1 else [*parts, "No score is recorded for it.\n"])

    def weights(self, package: str) -> str:
        """The section on weights, see :class:`~med3d_nets.model_card.Weights`."""
        settings = self.settings
        temperatures = [f"a temperature of {each.temperature:.3g}" for each in map(_settings, self.networks)]
        paths = [f"`{path}`" for path in self.files]
        rows = {
            "files": f"{', '.join(paths)}: the whole network, with its settings in `model.json`",
            "SHA-256": self._each(f"`{network.sha256}`" for network in self.networks),
            "variant": f"`{settings.variant}`",
            **settings_rows(settings),
            **({} if settings.task == "regression" else {"logits divided by": self._each(temperatures)}),
            "epoch": self._each(network.epoch for network in self.networks),
            "trained from": self._each(network.start for network in self.networks),
            "trained with": self._each(network.versions for network in self.networks),
        }
        together = f" It answers with the mean of its {self.folds} networks." if self.folds else ""
        lines = [
            f"{self._title()}.{together}\n",
            table(("", ""), rows.items()),
            f"In the folder `{package}`:\n",
            "    python -m monai.bundle run inference --config_file configs/classification/inference.json \\\n"
            "        --img_list FILE_FOLDER_OR_LIST\n",
            "Training starts from these weights with the same settings, unless `--pretrain_path`, `--class_names` and\n"
            "the others name yours:\n",
            "    python -m monai.bundle run training --config_file configs/classification/train.json \\\n"
            "        --data_root DATA --ckpt_dir NEW_FOLDER\n",
        ]
        return "\n".join(lines)

    def licence(self) -> str:
        """What is known of the terms."""
        return max((network.licence() for network in self.networks), key=len)  # derived from MedicalNet's, if one is

    def _title(self) -> str:
        return f"The {'regression' if self.settings.task == 'regression' else 'classifier'} in `{FOLDER}`"

    def _cases(self) -> str:
        cases, patients = self.scores.get("n"), self.scores.get("patients")
        return f"{cases} case{'' if cases == 1 else 's'} of {patients} patient{'' if patients == 1 else 's'}"

    def _measured(self) -> list[tuple[str, float, str]]:
        """Name, value and interval of each score of the evaluation that is a number."""
        found: dict[str, Any] = {name: value for name, value in self.scores.items() if isinstance(value, Mapping)}
        for point in self.scores.get("operating_points") or ():
            at = f"at {point['threshold']:g}"
            found |= {f"{name} {at}": point[name] for name in ("sensitivity", "specificity")}
        found |= {name: {"value": self.scores.get(name)} for name in PLAIN}
        found["calibration error"] = {"value": (self.scores.get("reliability") or {}).get("error")}
        rows = []
        for name, each in found.items():
            if is_number(each.get("value")):
                ends = [end for end in each.get("interval") or () if is_number(end)]
                interval = " to ".join(f"{end:.4f}" for end in ends) if len(ends) == 2 else ""
                rows.append((NAMES.get(name, name.replace("_", " ")), float(each["value"]), interval))
        return rows

    def _each(self, texts: Iterable[str]) -> str:
        """What each network has, once if it is the same of all."""
        named = dict(zip(self.labels, texts, strict=True))
        if len(set(named.values())) == 1:
            return next(iter(named.values()))
        return ", ".join(f"{label} {text}" for label, text in named.items())


def settings_rows(settings: ClassifierSettings) -> dict[str, str]:
    """What a classifier's settings say of its input and its answer, for a table."""
    size = "kept in mm, padded or cropped" if settings.keep_size else "resized to it, whatever their size in mm"
    known = settings.intensity
    intensity = f"clipped to {known['lower']:g} to {known['upper']:g}" if known else "each volume by its own"
    rows = {
        "task": settings.task,
        "input channels": str(settings.in_channels),
        "input size": " x ".join(map(str, settings.input_size)) + " voxels",
        "volumes": size,
        "spacing": " x ".join(f"{mm:g}" for mm in settings.spacing) + " mm, left-right first",
        "margin around a region": f"{settings.margin_mm:g} mm",
        "intensities": intensity,
    }
    if settings.task == "regression":
        return rows | {"answer": f"{settings.class_names[0]}, in the unit of the training's list"}
    classes = ", ".join(f"{index} {name}" for index, name in enumerate(settings.class_names))
    return rows | {"classes": classes}


def _settings(network: Trained) -> ClassifierSettings:
    assert isinstance(network.settings, ClassifierSettings)
    return network.settings


def _figure(network: Trained, name: str) -> str:
    value = network.validation.get(name)
    return "" if value is None else f"{value:.4f}"


def fill_classifier(metadata: dict[str, Any], classifier: Classifier, source: str | os.PathLike[str]) -> None:
    """Put what is known of a classifier into the content of its own ``metadata.json``.

    Raises:
        Med3dError: see :func:`~med3d_nets.model_card.fill_metadata`.
    """
    fill_metadata(metadata, classifier, source)
    regression = classifier.settings.task == "regression"
    kind = ("number", "regression") if regression else ("probabilities", "classification")
    pred = metadata["network_data_format"]["outputs"]["pred"]
    pred["type"], pred["format"] = kind


def read_metrics(path: str | os.PathLike[str], settings: ClassifierSettings) -> dict[str, Any]:
    """The ``metrics.json`` of an evaluation of a classifier.

    Args:
        path: the file.
        settings: of the classifier.

    Raises:
        Med3dError: if the file is missing, or no such record, or that of another task or of other classes.
    """
    path = Path(path)
    if not path.is_file():
        raise Med3dError(f"{path}: no such file; the evaluation of a classifier writes metrics.json")
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Med3dError(f"{path}: not JSON ({error})") from error
    expected = {"task": settings.task, "class_names": list(settings.class_names)}
    if not isinstance(scores, dict) or not {*expected, "n", "patients"} <= set(scores):
        raise Med3dError(f"{path}: not the scores of a classifier, expected task, class_names, n and patients in it")
    wrong = [
        f"{name} is {scores[name]!r}, but the classifier has {value!r}"
        for name, value in expected.items()
        if scores[name] != value
    ]
    if wrong:
        raise Med3dError(f"{path}: {'; '.join(wrong)}: of another network?")
    return scores
