"""A bundle as a client of federated learning, ``monai.fl.client.MonaiAlgo``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BUNDLE
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, ModelType, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from test_configs import write_trained

from med3d_nets import create_model
from med3d_nets.errors import Med3dError
from med3d_nets.weights import read_tensors

SMALL = {"n_seg_classes": 3, "input_D": 16, "input_H": 20, "input_W": 16, "batch_size": 3, "pretrain_path": ""}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site's copy of the bundle."""
    return Path(shutil.copytree(BUNDLE, tmp_path / "site 1" / BUNDLE.name))


def client(site: Path, dataset: Path, config: Any = "default", **evaluation: Any) -> MonaiAlgo:
    """A client below the folder that the server names."""
    options = {"data_root": str(dataset), **SMALL}
    algo = MonaiAlgo(
        bundle_root=site.name,
        train_kwargs={**options, "overwrite": True},
        eval_kwargs={"data_root": str(dataset), **evaluation},
        config_evaluate_filename=config,
    )
    algo.initialize(extra={ExtraItems.CLIENT_NAME: "site-1", ExtraItems.APP_ROOT: str(site.parent)})
    return algo


def global_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    return create_model("resnet_10", 3).state_dict()


def test_a_round_from_a_trained_bundle(site: Path, dataset: Path) -> None:
    """With a ``model.json``, evaluation is ``evaluate.json``; the server's weights are used, not the file's."""
    write_trained(site / "models")
    algo = client(site, dataset)
    weights = global_weights()
    first = algo.evaluate(ExchangeObject(weights=weights)).metrics
    assert {"val_mean_dice", "val_hd95"} <= first.keys()
    for name, value in algo.evaluator.network.state_dict().items():
        torch.testing.assert_close(value, weights[name])
    algo.train(ExchangeObject(weights=weights))
    assert algo.trainer.state.epoch == 1
    update = algo.get_weights()
    assert update.weight_type == WeightType.WEIGHT_DIFF
    assert update.weights.keys() == weights.keys()
    assert update.weights["head.6.weight"].abs().max() > 0
    assert update.statistics["num_executed_iterations"] == 2
    algo.train(ExchangeObject(weights={name: weights[name] + update.weights[name] for name in weights}))
    assert algo.trainer.state.epoch == 2
    best = algo.get_weights(extra={ExtraItems.MODEL_TYPE: ModelType.BEST_MODEL})
    assert best.weights.keys() == weights.keys()
    algo.finalize()


def test_a_round_from_scratch(site: Path, dataset: Path) -> None:
    """Without ``model.json``, evaluation is the training's own validation."""
    algo = client(site, dataset, "configs/train.json", **SMALL, overwrite=True)
    weights = global_weights()
    algo.train(ExchangeObject(weights=weights))
    metrics = algo.evaluate(ExchangeObject(weights=weights)).metrics
    assert {"val_mean_dice", "val_dice_class_1"} <= metrics.keys()
    assert read_tensors(site / "models" / "model.pt").keys() == weights.keys()
    algo.finalize()


def test_an_earlier_training_is_not_overwritten(site: Path, dataset: Path) -> None:
    write_trained(site / "models")
    before = (site / "models" / "model.pt").read_bytes()
    algo = client(site, dataset)
    algo.train_workflow.parser["overwrite"] = False
    algo.train_workflow.initialize()
    algo.trainer = algo.train_workflow.trainer
    with pytest.raises(Med3dError, match="an earlier training wrote it"):
        algo.train(ExchangeObject(weights=global_weights()))
    assert (site / "models" / "model.pt").read_bytes() == before
