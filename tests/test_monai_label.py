"""What MONAI Label's bundle app does with a bundle, step by step.

MONAI Label is not installed here. Its documentation asks for the keys that ``monailabel/tasks/infer/bundle.py`` and
``monailabel/tasks/train/bundle.py`` read; the steps below are those of these two modules.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE
from monai.bundle import ConfigItem, ConfigParser
from monai.data import decollate_batch
from test_configs import write_trained

SMALL = {"n_seg_classes": 3, "input_D": 16, "input_H": 20, "input_W": 16, "batch_size": 3, "learning_rate": 1e-5}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The app's ``model`` folder has a trained bundle in it."""
    folder = Path(shutil.copytree(BUNDLE, tmp_path / "my app" / "model" / BUNDLE.name))
    write_trained(folder / "models")
    return folder


def read_config(folder: Path, name: str) -> ConfigParser:
    config = ConfigParser()
    config.read_config(folder / "configs" / name)
    config.config["bundle_root"] = str(folder)
    return config


def test_metadata_names_inputs_outputs_and_labels() -> None:
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    inputs, outputs = (metadata["network_data_format"][key] for key in ("inputs", "outputs"))
    assert next(iter(inputs)) == "image"
    assert next(iter(outputs)) == "pred"
    assert len(inputs["image"]["spatial_shape"]) == 3
    labels = {name.lower(): int(index) for index, name in outputs["pred"]["channel_def"].items()}
    assert sorted(labels.values()) == list(range(outputs["pred"]["num_channels"]))
    assert labels["background"] == 0
    assert metadata["description"]
    assert metadata["version"]


def test_inference_of_one_image(model: Path, dataset: Path) -> None:
    """Without data in the bundle's folder and without its ``initialize``."""
    config = read_config(model, "inference.json")
    network = config.get_parsed_content("network_def", instantiate=True)
    network.load_state_dict(torch.load(model / "models" / "model.pt", weights_only=True), strict=True)
    config.config["device"] = "cpu"
    if config.ref_resolver.items.get("device"):
        config.ref_resolver.items["device"] = ConfigItem(config="cpu", id="device")
    before = config.get_parsed_content("preprocessing", instantiate=True).transforms
    inferer = config.get_parsed_content("inferer", instantiate=True)
    after = config.get_parsed_content("postprocessing", instantiate=True).transforms
    data: dict[str, Any] = {"image": str(dataset / "images" / "case_0.nii.gz")}
    for transform in before:
        data = transform(data)
    with torch.no_grad():
        data["pred"] = decollate_batch(inferer(data["image"][None], network.eval()))[0]
    for transform in after:
        data = transform(data)
    reference = nibabel.load(dataset / "images" / "case_0.nii.gz")
    assert tuple(data["pred"].shape) == (1, *reference.shape)
    np.testing.assert_array_equal(data["pred"].meta["affine"], reference.affine)
    assert set(np.unique(data["pred"].numpy())) <= {0, 1, 2}


def overrides(model: Path, dataset: Path, **others: Any) -> dict[str, Any]:
    """What a request to train becomes, with ``pretrained`` on."""
    lines = [line.split() for line in (dataset / "train.txt").read_text().splitlines()]
    cases = [{"image": str(dataset / image), "label": str(dataset / label)} for image, label in lines]
    handlers = read_config(model, "train.json").get("train#handlers", [])
    assert not [handler for handler in handlers if handler.get("_target_") == "CheckpointLoader"]
    path = str(model / "models" / "model.pt")
    loader = {"_target_": "CheckpointLoader", "load_path": path, "load_dict": {"model": "$@network"}, "strict": False}
    handlers.insert(0, loader)
    return {
        "bundle_root": str(model),
        "train#trainer#max_epochs": 1,
        "train#dataset#data": cases[:4],
        "device": "cpu",
        "train#handlers": handlers,
        "validate#dataset#data": cases[4:],
        **others,
    }


def train(model: Path, **options: Any) -> None:
    monai.bundle.run(
        run_id="run",
        init_id=None,
        final_id=None,
        meta_file=str(model / "configs" / "metadata.json"),
        config_file=str(model / "configs" / "train.json"),
        logging_file=False,  # it would set up the test runner's own logging
        pretrain_path=str(model / "models" / "model.pt"),  # as in a packaged bundle
        **SMALL,
        **options,
    )


def test_training_goes_on_from_the_model(model: Path, dataset: Path) -> None:
    """The box that the panel shows for ``displayable_configs`` is ticked: the model may be replaced."""
    panel = read_config(model, "train.json").get_parsed_content("displayable_configs", instantiate=True)
    assert panel == {"overwrite": False}
    before = torch.load(model / "models" / "model.pt", weights_only=True)
    train(model, **overrides(model, dataset, displayable_configs={"overwrite": True}))
    after = torch.load(model / "models" / "model.pt", weights_only=True)
    assert after.keys() == before.keys()
    changes = [float((after[name] - before[name]).abs().max()) for name in before if name.endswith("conv1.weight")]
    assert all(0 < change < 0.1 for change in changes), changes
    assert json.loads((model / "models" / "model.json").read_text())["epoch"] == 1


def test_training_replaces_nothing_unasked(model: Path, dataset: Path) -> None:
    before = (model / "models" / "model.pt").read_bytes()
    with pytest.raises(Exception, match="Failed to evaluate") as caught:
        train(model, **overrides(model, dataset))
    assert "an earlier training wrote" in str(caught.value.__cause__)
    assert (model / "models" / "model.pt").read_bytes() == before
