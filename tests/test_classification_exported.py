"""MONAI's exports of classifiers, and the exported files in the network's place."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import subprocess
import sys
from ast import literal_eval
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel
import numpy as np
import onnx
import pytest
import torch
from monai.bundle import ConfigWorkflow
from published import ROOT, relative_error
from trained_classifiers import CLASSES, REGRESSION, settings, write_classifier

from med3d_nets.classification.ensemble import make_classifier
from med3d_nets.classification.settings import ClassifierSettings
from med3d_nets.ensemble import EnsembleCheckpointLoader
from med3d_nets.errors import Med3dError, explain
from med3d_nets.exported import check_exported, load_exported
from med3d_nets.settings import Settings, read_settings

# The words of the bundle's documentation.
FILES = {"meta_file": "configs/classification/metadata.json", "config_file": "configs/classification/inference.json"}
ANY_SIZE = "{'dynamic_axes': {'x': [0,2,3,4]}, 'external_data': False}"
SIZES = [(1, 24, 32, 28), (2, 17, 23, 19), (3, 9, 8, 11), (1, 40, 56, 40), (5, 16, 16, 16), (1, 1, 2, 1)]
TOLERANCE = 1e-4
TASKS: dict[str, dict[str, Any]] = {"classification": {}, "regression": REGRESSION}
SUFFIXES = {"script": ".ts", "trace": ".traced.ts", "command": ".onnx", "dynamic": ".onnx"}

Export = Callable[..., Path]
Infer = Callable[..., list[dict[str, str]]]


def command(path: Path, **options: str) -> None:
    """The documented command line."""
    given = {"filepath": path, **options, "use_trace": "True", "converter_kwargs": ANY_SIZE}
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "onnx_export", "network_def", *words],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


EXPORTERS: dict[str, Callable[..., None]] = {
    "script": lambda path, **options: monai.bundle.ckpt_export("network_def", filepath=path, **options),
    "trace": lambda path, **options: monai.bundle.ckpt_export(
        "network_def", filepath=path, **options, use_trace=True, input_shape=[1, 1, 24, 32, 28]
    ),
    "command": command,
    "dynamic": lambda path, **options: monai.bundle.onnx_export(
        "network_def", filepath=path, **options, use_trace=True, converter_kwargs=literal_eval(ANY_SIZE)
    ),
}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Export]:
    """Export a classifier, once per kind, from a copy of its bundle in a folder with a space in its name."""
    root = tmp_path_factory.mktemp("my bundles")

    @cache
    def bundle(variant: str, task: str) -> Path:
        folder = root / f"{variant}_{task}"
        shutil.copytree(ROOT / "bundles" / f"medicalnet_{variant}" / "configs", folder / "configs")
        write_classifier(folder / "models/classification", variant, **TASKS[task])
        return folder

    @cache
    def call(variant: str, kind: str, task: str) -> Path:
        folder = bundle(variant, task)
        path = folder / "models/classification" / f"model{SUFFIXES[kind]}"
        with contextlib.chdir(folder):
            EXPORTERS[kind](path, ckpt_file="models/classification/model.pt", **FILES)
        return path

    yield lambda variant, kind, task="classification": call(variant, kind, task)
    shutil.rmtree(root)


KINDS = [("classification", "script"), ("classification", "trace"), ("classification", "command")]
KINDS += [("regression", "script"), ("regression", "dynamic")]


@pytest.mark.parametrize(("task", "kind"), KINDS)
def test_an_exported_classifier_answers_as_the_trained_one(task: str, kind: str, export: Export) -> None:
    """Logits by the temperature, numbers in the unit of the target, at any size and in any batch."""
    assert_same_answers(export("resnet_10", kind, task))


@pytest.mark.slow
@pytest.mark.parametrize(("task", "kind"), [("classification", "script"), ("regression", "dynamic")])
@pytest.mark.parametrize("variant", ["resnet_18", "resnet_34", "resnet_50"])
def test_other_variants_too(variant: str, task: str, kind: str, export: Export) -> None:
    assert_same_answers(export(variant, kind, task))


def assert_same_answers(path: Path) -> None:
    network, known = trained(path.parent)
    exported = load_exported(path)
    check_exported(exported, known)
    torch.manual_seed(2)
    errors = []
    for batch, *size in SIZES:
        volume = torch.randn(batch, 1, *size)
        with torch.no_grad():
            expected, found = network(volume), exported(volume)
        assert found.shape == (batch, known.n_outputs)
        assert expected.abs().max() > 0.1
        errors.append(relative_error(found, expected))
        assert errors[-1] < TOLERANCE, (batch, *size)
    print(f"{known.variant} {known.task} {path.suffix}: largest difference {max(errors):.1e}")  # for docs/


def trained(folder: Path) -> tuple[torch.nn.Module, ClassifierSettings]:
    known = read_settings(folder / "model.json", ClassifierSettings)
    network = make_classifier(known.variant, [str(folder)])
    EnsembleCheckpointLoader(network, [str(folder)])(None)
    assert network.scale == pytest.approx(4.0 if known.task == "regression" else 1 / 1.7)
    return network.eval(), known


def test_onnx_is_one_file_with_axes_of_any_size(export: Export) -> None:
    path = export("resnet_10", "command")
    graph = onnx.load(path, load_external_data=False).graph
    image, pred = (tensor.type.tensor_type.shape.dim for tensor in (graph.input[0], graph.output[0]))
    assert (image[1].dim_value, pred[1].dim_value, len(pred)) == (1, len(CLASSES), 2)
    assert all(image[axis].dim_param for axis in (0, 2, 3, 4))
    assert pred[0].dim_param
    assert not list(path.parent.glob("*.data"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("some images")
    for index in range(4):
        array = np.random.RandomState(index).normal(100, 5, (14, 16, 12 + index)).astype(np.float32)
        array[4:9, 3 : 5 + 2 * index, 2:8] += 90
        nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.2, 1.5, 1.0])), folder / f"case_{index}.nii.gz")
    return folder


@pytest.fixture
def infer(images: Path, tmp_path: Path) -> Infer:
    """The rows that the shipped ``inference.json`` writes."""

    def call(folder: Path, **options: Any) -> list[dict[str, str]]:
        workflow = ConfigWorkflow(
            folder / "configs/classification/inference.json", logging_file=False, workflow_type="inference",
            bundle_root=str(folder), img_list=str(images), output_dir=str(tmp_path / "out"), overwrite=True, **options,
        )  # fmt: skip
        workflow.initialize()
        workflow.run()
        with (tmp_path / "out/predictions.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    return call


@pytest.mark.parametrize(("task", "kind"), [KINDS[0], KINDS[2], *KINDS[3:]])
def test_inference_writes_the_same_predictions(
    task: str, kind: str, export: Export, infer: Infer, caplog: pytest.LogCaptureFixture
) -> None:
    path = export("resnet_10", kind, task)
    folder, weights = path.parents[2], path.with_name("model.pt")
    expected, hidden = infer(folder), path.with_name("hidden.pt")
    weights.rename(hidden)  # it is not read
    try:
        found = infer(folder, exported_path=str(path))
    finally:
        hidden.rename(weights)
    assert len(expected) == 4
    assert_same_rows(found, expected)
    assert len({row["predicted size" if task == "regression" else "probability benign"] for row in expected}) == 4
    assert "export them again" not in caplog.text
    os.utime(path, (0, 0))
    infer(folder, exported_path=str(path))
    assert f"{path} is older than {weights}" in caplog.text


def assert_same_rows(found: list[dict[str, str]], expected: list[dict[str, str]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert list(ours) == list(theirs)
        for name, value in theirs.items():
            if name in ("case", "predicted"):
                assert ours[name] == value
            else:
                assert float(ours[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-5)


def test_folds_are_exported_one_by_one(infer: Infer, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(ROOT / "bundles/medicalnet_resnet_10/configs", folder / "configs")
    models = folder / "models/classification"
    for number in range(2):
        write_classifier(models / f"fold_{number}", seed=number)
    first = {"ckpt_file": "models/classification/fold_0/model.pt", **FILES}
    with contextlib.chdir(folder):
        with pytest.raises(Med3dError, match=r"those of an ensemble of 2\. An export is of one network.*--fold"):
            monai.bundle.ckpt_export("network_def", filepath="model.ts", **first, folds=2)
        with pytest.raises(RuntimeError) as caught:
            monai.bundle.ckpt_export("network_def", filepath="model.ts", **first)
        assert "found no model.pt in it but fold 0, 1; expected --folds" in str(explain(caught.value, {}))
        assert not Path("model.ts").exists()
        monai.bundle.ckpt_export("network_def", filepath="model.ts", **first, folds=2, fold=0)
    exported = str(folder / "model.ts")
    assert_same_rows(infer(folder, folds=2, fold=0, exported_path=exported), infer(folder, folds=2, fold=0))
    with pytest.raises(RuntimeError) as caught:
        infer(folder, folds=2, exported_path=exported)
    assert "found one network; expected none with --folds 2, or a --fold too" in str(explain(caught.value, {}))


@pytest.mark.parametrize("kind", ["script", "trace", "command"])
def test_an_exported_classifier_of_other_settings(kind: str, export: Export) -> None:
    network, known = load_exported(export("resnet_10", kind)), settings()
    check_exported(network, known)
    with pytest.raises(Med3dError, match=r"m\.ts: n_outputs is 3, but model\.json says 1\. Export it again"):
        check_exported(network, settings(**REGRESSION), "m.ts")
    with pytest.raises(Med3dError, match=r"in_channels is 1, but model\.json says 4"):
        check_exported(network, replace(known, in_channels=4))
    segmentation = Settings("resnet_10", "medicalnet", "whole", 1, ["background", "one", "two"], [16, 20, 16])
    expected = r"answer is 'one for each volume', but model\.json says 'one for each voxel'\. Export"
    with pytest.raises(Med3dError, match=expected):
        check_exported(network, segmentation)
    if kind != "command":
        with pytest.raises(Med3dError, match=r"depth is 10, but model\.json says 18; shortcut is 'B', but .* says 'A'"):
            check_exported(network, replace(known, variant="resnet_18"))


def test_inference_refuses_an_export_of_another_classifier(export: Export, infer: Infer) -> None:
    other = export("resnet_10", "script", "regression")
    with pytest.raises((Med3dError, RuntimeError)) as caught:
        infer(export("resnet_10", "script").parents[2], exported_path=str(other))
    assert "model.ts: n_outputs is 1, but model.json says 3" in str(explain(caught.value, {}))
