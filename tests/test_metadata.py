"""Both ``metadata.json`` of every bundle against MONAI's schema and against the bundle itself."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BUNDLE, ROOT
from monai.bundle import verify_metadata, verify_net_in_out
from trained_classifiers import write_classifier

import med3d_nets
from med3d_nets.variants import VARIANTS, Variant

SCHEMA = ROOT / "tests" / "metadata_schema_20240725.json"
EACH = pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in VARIANTS])
EACH_TASK = pytest.mark.parametrize("folder", ["", "classification"])
DEEP = [pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.depth > 18 else []) for row in VARIANTS]
Change = Callable[[dict[str, Any]], object]


def config_of(row: Variant, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "bundles" / row.bundle / "configs" / name).read_text(encoding="utf-8"))
    return content


def metadata_of(row: Variant, folder: str = "") -> dict[str, Any]:
    return config_of(row, f"{folder}/metadata.json".lstrip("/"))


@pytest.fixture
def verify(tmp_path: Path) -> Callable[[Path | dict[str, Any]], None]:
    """``monai.bundle.verify_metadata`` with the schema where MONAI would have downloaded it to."""
    schema = tmp_path / "eval" / "schema.json"
    schema.parent.mkdir()
    shutil.copy(SCHEMA, schema)

    def call(metadata: Path | dict[str, Any]) -> None:
        if isinstance(metadata, dict):
            (tmp_path / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
            metadata = tmp_path / "metadata.json"
        verify_metadata(meta_file=str(metadata), filepath=schema)

    return call


@EACH
@EACH_TASK
def test_metadata_follows_the_schema(
    row: Variant, folder: str, verify: Callable[[Path | dict[str, Any]], None]
) -> None:
    verify(ROOT / "bundles" / row.bundle / "configs" / folder / "metadata.json")
    assert metadata_of(row, folder)["schema"].endswith("/meta_schema_20240725.json")


def output(metadata: dict[str, Any]) -> dict[str, Any]:
    pred: dict[str, Any] = metadata["network_data_format"]["outputs"]["pred"]
    return pred


REQUIRED = [
    *("version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
    *("task", "description", "authors", "copyright", "network_data_format"),
]
PRED_CHANNELS = "outputs::pred::num_channels"
TENSOR = ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"]
BROKEN: dict[str, Change] = {
    **{f"no {name}": lambda metadata, name=name: metadata.pop(name) for name in REQUIRED},
    **{f"output without {name}": lambda metadata, name=name: output(metadata).pop(name) for name in TENSOR},
    "no inputs": lambda metadata: metadata["network_data_format"].pop("inputs"),
    "task is no text": lambda metadata: metadata.update(task=["segmentation"]),
    "num_channels is a text": lambda metadata: output(metadata).update(num_channels="2"),
    "num_channels is a fraction": lambda metadata: output(metadata).update(num_channels=1.5),
    "dtype is no text": lambda metadata: output(metadata).update(dtype=32),
    "spatial_shape is no list": lambda metadata: output(metadata).update(spatial_shape=56),
    "value_range of texts": lambda metadata: output(metadata).update(value_range=["0", "1"]),
    "is_patch_data is a text": lambda metadata: output(metadata).update(is_patch_data="false"),
    "channel_def is a list": lambda metadata: output(metadata).update(channel_def=["background"]),
    "supported_apps is a list": lambda metadata: metadata.update(supported_apps=["monai-label"]),
    "a second network without outputs": lambda metadata: metadata.update(locator_data_format={"inputs": {}}),
    "references are numbers": lambda metadata: metadata.update(references=[1904.00625]),
}


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in BROKEN.items()])
def test_broken_metadata_is_refused(change: Change, verify: Callable[[Path | dict[str, Any]], None]) -> None:
    metadata = metadata_of(VARIANTS[0])
    change(metadata)
    with pytest.raises(ValueError, match="Failed validating"):
        verify(metadata)


@pytest.mark.parametrize(
    "change",
    [
        lambda metadata: metadata.update(supported_apps={"monai-label": ">=0.8"}, our_own_key=1),
        lambda metadata: output(metadata).update(
            spatial_shape=["*", "16*n", "2**p*n"], dtype="long", value_range=[0, 1]
        ),
        lambda metadata: metadata["network_data_format"]["inputs"].update(threshold=0.5),
        lambda metadata: metadata.update(locator_data_format=metadata["network_data_format"]),
    ],
)
def test_what_the_specification_allows_passes(change: Change, verify: Callable[[Path | dict[str, Any]], None]) -> None:
    metadata = metadata_of(VARIANTS[0])
    change(metadata)
    verify(metadata)


def test_the_schema_says_that_it_is_not_the_official_one() -> None:
    assert json.loads(SCHEMA.read_text(encoding="utf-8"))["$comment"].startswith("Not the official file.")


@EACH
@EACH_TASK
def test_metadata_says_what_the_bundle_is(row: Variant, folder: str) -> None:
    metadata = metadata_of(row, folder)
    assert metadata["name"] == f"MedicalNet {row.name}"
    assert metadata["version"] == med3d_nets.__version__
    assert metadata["version"] in metadata["changelog"]
    assert metadata["eval_metrics"] == {}
    assert f"pretrained on {row.datasets} data sets" in metadata["description"]
    assert f"3D ResNet-{row.depth} (shortcut {row.shortcut})" in metadata["description"]


@EACH
def test_metadata_says_what_the_configs_train(row: Variant) -> None:
    metadata, train = metadata_of(row), config_of(row, "train.json")
    image = metadata["network_data_format"]["inputs"]["image"]
    pred = output(metadata)
    assert image["spatial_shape"] == pred["spatial_shape"] == [train[f"input_{axis}"] for axis in "DHW"]
    for tensor, channels in ((image, train["in_channels"]), (pred, train["n_seg_classes"])):
        assert tensor["num_channels"] == channels
        assert list(tensor["channel_def"]) == [str(index) for index in range(channels)]
        assert isinstance(getattr(torch, tensor["dtype"]), torch.dtype)


@pytest.mark.parametrize("row", DEEP)
def test_metadata_says_what_a_classifier_takes_and_answers(row: Variant) -> None:
    """MONAI's own check, at a smaller size than the metadata's."""
    configs = ROOT / "bundles" / row.bundle / "configs" / "classification"
    size, channels = (f"_meta_::network_data_format::{key}" for key in ("inputs::image::spatial_shape", PRED_CHANNELS))
    files = {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "train.json")}
    check = partial(verify_net_in_out, "network_def", device="cpu", **files, **{size: [16, 16, 16]})
    check(labels=["one", "two"])
    check(labels=["a number"], task="regression", **{channels: 1})
    with pytest.raises(ValueError, match="output channel number `3` doesn't match: `2`"):
        check(labels=["one", "two", "three"])


def test_metadata_of_a_classifier_is_that_of_its_trained_network(tmp_path: Path) -> None:
    configs = Path(shutil.copytree(BUNDLE / "configs", tmp_path / "configs")) / "classification"
    write_classifier(tmp_path / "models/classification", class_names=["benign", "malignant"])
    files = {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.json")}
    verify_net_in_out("network_def", device="cpu", bundle_root=str(tmp_path), **files)
    with pytest.raises(ValueError, match="dtype of output data"):
        verify_net_in_out(
            "network_def", device="cpu", bundle_root=str(tmp_path), **files,
            **{"_meta_::network_data_format::outputs::pred::dtype": "float16"},
        )  # fmt: skip


@EACH_TASK
def test_versions_are_those_that_the_tests_run_with(folder: str) -> None:
    metadata = metadata_of(VARIANTS[0], folder)
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    stated = metadata["required_packages_version"]
    assert stated.pop("med3d_nets") == med3d_nets.__version__
    stated |= {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"]}
    stated |= {"numpy": metadata["numpy_version"]}
    assert {name: pins.get(name) for name in stated} == stated


@EACH_TASK
def test_every_package_that_must_be_installed_is_named(folder: str) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    names = set(re.findall(r'^    "([\w-]+)>=', project.split("\ndependencies = [")[1].split("]")[0], re.MULTILINE))
    assert len(names) > 5
    required = set(metadata_of(VARIANTS[0], folder)["required_packages_version"])
    assert required == (names - {"monai", "numpy", "torch"}) | {"med3d_nets"}
