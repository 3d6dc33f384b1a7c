"""``metadata.json`` of every bundle against MONAI's schema and against the bundle itself."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from monai.bundle import verify_metadata

import med3d_nets
from med3d_nets.variants import VARIANTS, Variant

SCHEMA = ROOT / "tests" / "metadata_schema_20240725.json"
EACH = pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in VARIANTS])
Change = Callable[[dict[str, Any]], object]


def metadata_of(row: Variant) -> dict[str, Any]:
    path = ROOT / "bundles" / row.bundle / "configs" / "metadata.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


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
def test_metadata_follows_the_schema(row: Variant, verify: Callable[[Path | dict[str, Any]], None]) -> None:
    verify(ROOT / "bundles" / row.bundle / "configs" / "metadata.json")
    assert metadata_of(row)["schema"].endswith("/meta_schema_20240725.json")


def output(metadata: dict[str, Any]) -> dict[str, Any]:
    pred: dict[str, Any] = metadata["network_data_format"]["outputs"]["pred"]
    return pred


REQUIRED = [
    *("version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
    *("task", "description", "authors", "copyright", "network_data_format"),
]
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
def test_metadata_says_what_the_bundle_is(row: Variant) -> None:
    metadata = metadata_of(row)
    assert metadata["name"] == f"MedicalNet {row.name}"
    assert metadata["version"] == med3d_nets.__version__
    assert metadata["version"] in metadata["changelog"]
    assert metadata["eval_metrics"] == {}
    assert f"pretrained on {row.datasets} data sets" in metadata["description"]
    train = json.loads((ROOT / "bundles" / row.bundle / "configs" / "train.json").read_text(encoding="utf-8"))
    image = metadata["network_data_format"]["inputs"]["image"]
    pred = output(metadata)
    assert image["spatial_shape"] == pred["spatial_shape"] == [train[f"input_{axis}"] for axis in "DHW"]
    for tensor, channels in ((image, train["in_channels"]), (pred, train["n_seg_classes"])):
        assert tensor["num_channels"] == channels
        assert list(tensor["channel_def"]) == [str(index) for index in range(channels)]
        assert isinstance(getattr(torch, tensor["dtype"]), torch.dtype)


def test_versions_are_those_that_the_tests_run_with() -> None:
    metadata = metadata_of(VARIANTS[0])
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    stated = metadata["required_packages_version"]
    assert stated.pop("med3d_nets") == med3d_nets.__version__
    stated |= {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"]}
    stated |= {"numpy": metadata["numpy_version"]}
    assert {name: pins.get(name) for name in stated} == stated


def test_every_package_that_must_be_installed_is_named() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    names = set(re.findall(r'^    "([\w-]+)>=', project.split("\ndependencies = [")[1].split("]")[0], re.MULTILINE))
    assert len(names) > 5
    required = set(metadata_of(VARIANTS[0])["required_packages_version"])
    assert required == (names - {"monai", "numpy", "torch"}) | {"med3d_nets"}
