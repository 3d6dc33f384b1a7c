"""``--tracking mlflow``, MONAI's experiment tracking."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

Run = Callable[..., subprocess.CompletedProcess[str]]
SMALL = {"n_seg_classes": 3, "input_D": 16, "input_H": 20, "input_W": 16, "pretrain_path": "", "batch_size": 3}


@pytest.mark.slow  # setting up the data base takes longer than the training
def test_training_is_tracked(bundle_run: Run, dataset: Path, tmp_path: Path) -> None:
    options = {**SMALL, "data_root": dataset, "n_epochs": 2, "ckpt_dir": tmp_path / "m", "output_dir": tmp_path / "out"}
    options |= {"tracking": "mlflow", "experiment_name": "lungs", "run_name": "first"}
    done = bundle_run("training", "configs/train.json", **options)
    assert done.returncode == 0, done.stderr
    client = MlflowClient(f"sqlite:///{tmp_path / 'out' / 'mlruns.db'}")
    experiment = client.get_experiment_by_name("lungs")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == {"first"}
    metrics = {name: value for run in runs for name, value in run.data.metrics.items()}
    assert {"train_loss", "mean_loss", "val_mean_dice", "val_dice_class_1"} <= metrics.keys()
    history = client.get_metric_history(runs[0].info.run_id, "train_loss")
    assert len(history) == 4
