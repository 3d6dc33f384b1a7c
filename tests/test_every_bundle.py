"""Each of the eleven bundles, on volumes of a few voxels: train, evaluate, infer, as MONAI's workflows."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import ROOT
from monai.bundle import ConfigWorkflow, ckpt_export, create_workflow, verify_metadata, verify_net_in_out
from published import redraw, relative_error, write_published
from torch import nn

from med3d_nets.variants import VARIANTS, Variant
from med3d_nets.weights import read_tensors

SCHEMA = Path(__file__).with_name("metadata_schema_20240725.json")
SMALL = {"n_seg_classes": 3, "input_D": 16, "input_H": 16, "input_W": 16, "batch_size": 6, "n_epochs": 1}
EACH = [
    pytest.param(
        variant,
        id=variant.name,
        marks=[pytest.mark.slow] if variant.depth > 18 else [],
    )
    for variant in VARIANTS
]


def workflow(folder: Path, kind: str, *configs: str, **options: Any) -> ConfigWorkflow:
    files = [str(folder / "configs" / f"{name}.json") for name in configs]
    found = ConfigWorkflow(
        config_file=files, workflow_type=kind, logging_file=False, bundle_root=str(folder), **options
    )
    found.initialize()
    return found


@pytest.mark.parametrize("variant", EACH)
def test_bundle_trains_evaluates_and_infers(variant: Variant, dataset: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / "bundles" / variant.bundle, tmp_path / "my bundles" / variant.bundle))
    published = write_published(tmp_path / variant.filename, redraw(variant.depth, variant.shortcut))
    data = {"data_root": str(dataset)}

    training = workflow(folder, "train", "train", **data, **SMALL, pretrain_path=str(published))
    assert training.check_properties() == []
    training.run_id = "training"
    training.run()
    assert training.trainer.state.iteration == 1
    weights = read_tensors(folder / "models" / "model.pt")
    assert sum(name.startswith("encoder.") for name in weights) == variant.encoder_tensors
    settings = json.loads((folder / "models" / "model.json").read_text())
    assert settings["variant"] == variant.name
    assert settings["pretrained"]["tensors"] == variant.encoder_tensors
    del training

    evaluation = workflow(folder, "train", "train", "evaluate", **data)
    assert evaluation.check_properties() == []
    evaluation.run()
    with (folder / "eval" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    dice = np.mean([[float(row[f"Dice class {index}"]) for index in (1, 2)] for row in rows])
    assert dice == pytest.approx(settings["validation"]["val_mean_dice"], abs=1e-4)
    del evaluation

    image = dataset / "images" / "case_0.nii.gz"
    inference = workflow(folder, "inference", "inference", **data, img_list=str(image))
    assert inference.check_properties() == []
    inference.run()
    answer, scan = nibabel.load(folder / "predictions" / "case_0_seg.nii.gz"), nibabel.load(image)
    assert answer.shape == scan.shape
    np.testing.assert_array_equal(answer.affine, scan.affine)
    for name, value in inference.network_def.state_dict().items():
        assert torch.equal(value, weights[name]), name
    check_as_the_model_zoo(folder, inference.network_def)


def check_as_the_model_zoo(folder: Path, network: nn.Module) -> None:
    """The checks of the model zoo's ``ci/verify_bundle.py``, with a ``model.pt`` made by training."""
    for name in ("configs/metadata.json", "LICENSE", "models/model.pt", "configs/inference.json", "large_files.yml"):
        assert (folder / name).is_file()
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    shutil.copy(SCHEMA, folder / "eval" / "schema.json")  # where MONAI would download it to
    verify_metadata(meta_file=str(folder / "configs/metadata.json"), filepath=str(folder / "eval/schema.json"))
    config, meta = str(folder / "configs/inference.json"), str(folder / "configs/metadata.json")
    options = {"config_file": config, "meta_file": meta, "bundle_root": str(folder)}
    channels, shape = "_meta_::network_data_format::outputs::pred::num_channels", "inputs::image::spatial_shape"
    tensors = {channels: SMALL["n_seg_classes"], f"_meta_::network_data_format::{shape}": [16] * 3}
    verify_net_in_out("network_def", **options, **tensors)
    exported = folder / "models" / "verify_model.ts"
    ckpt_export("network_def", filepath=str(exported), ckpt_file=str(folder / "models/model.pt"), **options)
    volume = torch.rand(1, 1, 17, 12, 20)
    with torch.no_grad():
        expected, found = network.eval()(volume), torch.jit.load(exported).eval()(volume)
    assert relative_error(found, expected) < 1e-4


@pytest.mark.parametrize("variant", EACH)
def test_metadata_tells_what_goes_in_and_comes_out(variant: Variant) -> None:
    """MONAI's check, at a smaller size than the metadata's."""
    configs = ROOT / "bundles" / variant.bundle / "configs"
    key = "_meta_::network_data_format::inputs::image::spatial_shape"
    options = {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "train.json"), key: [16] * 3}
    verify_net_in_out("network_def", **options)
    with pytest.raises(ValueError, match="output channel number"):
        verify_net_in_out("network_def", **options, n_seg_classes=4)


def test_workflow_by_monai_s_own_function(dataset: Path, tmp_path: Path) -> None:
    folder = ROOT / "bundles" / VARIANTS[0].bundle
    options = {"data_root": str(dataset), "pretrain_path": "", "ckpt_dir": str(tmp_path), **SMALL}
    options |= {"output_dir": str(tmp_path / "out")}
    found = create_workflow(
        config_file=str(folder / "configs" / "train.json"), workflow_type="train", logging_file=False, **options
    )
    assert found.get_workflow_type() == "train"
    assert found.check_properties() == []
    assert found.version == json.loads((folder / "configs" / "metadata.json").read_text())["version"]
