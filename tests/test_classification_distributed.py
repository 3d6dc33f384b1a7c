"""Classification by two processes that ``torchrun`` starts on the CPU (gloo), with the bundle's multi_gpu overlays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from test_classification_bundle import table, volume
from test_distributed import losses
from trained_classifiers import REGRESSION, write_classifier

from med3d_nets.weights import read_checkpoint

Run = Callable[..., CompletedProcess[str]]
FOLDER = "configs/classification"
TRAIN = [f"{FOLDER}/train.json", "configs/multi_gpu_train.json"]
EVALUATE = [f"{FOLDER}/train.json", f"{FOLDER}/evaluate.json", "configs/multi_gpu_evaluate.json"]
INFER = [f"{FOLDER}/inference.json", "configs/multi_gpu_inference.json"]
SMALL: dict[str, Any] = {"n_epochs": 2, "input_size": [16, 16, 16], "spacing": [1, 1, 1], "no_cuda": True}
SMALL |= {"pretrain_path": "", "save_intervals": 1, "val_list": "val.txt"}
# What differs from process to process is left out: the statistics of batch norms, and dropout's draws.
SAME = {"freeze_batch_norm": "['encoder']", "dropout": 0}
N_TRAINING, N_VALIDATION = 8, 11


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small and large structures; the validation list, of an odd number, has a few under the other's name."""
    folder = tmp_path_factory.mktemp("some cases")
    lines, numbers = [], ["image,target"]
    for index in range(N_TRAINING + N_VALIDATION):
        large = index % 2
        name = f"case_{index}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(volume(index, 3 + 4 * large), np.diag([1.0, 1.2, 1.5, 1.0])), folder / name)
        wrong = index in (9, 12, 14, 17)
        lines.append(f"{name} {'large' if large != wrong else 'small'}\n")
        numbers.append(f"{name},{3.5 + 4 * large + index / 10}")
    (folder / "train.txt").write_text("".join(lines[:N_TRAINING]))
    (folder / "val.txt").write_text("".join(reversed(lines[N_TRAINING:])))  # the list's order is not that of the names
    (folder / "numbers.csv").write_text("\n".join(numbers))
    return folder


@pytest.fixture(scope="module")
def both(bundle_run: Run) -> Callable[..., CompletedProcess[str]]:
    """Run by one process, without the overlay, and by two, into the folders ``1`` and ``2`` of another."""

    def call(run_id: str, configs: list[str], folder: Path, batch_size: int = 0, **options: Any) -> Any:
        for processes in (1, 2):
            files = str(configs if processes > 1 else configs[:-1])
            given = {"batch_size": batch_size // processes} if batch_size else {}
            given |= {"output_dir": folder / str(processes) / "eval"}
            given |= {} if "ckpt_dir" in options else {"ckpt_dir": folder / str(processes) / "models"}
            done = bundle_run(run_id, files, processes=processes, **options, **given)
            assert done.returncode == 0, done.stderr
        return done

    return call


@pytest.fixture(scope="module")
def trainings(cases: Path, both: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Folders of a training by one process and of the same by two, and what the two printed."""
    folder = tmp_path_factory.mktemp("trainings")
    done = both("training", TRAIN, folder, batch_size=4, **SMALL, **SAME, data_root=cases)
    return folder / "1", folder / "2", done.stdout


def test_two_processes_train_as_one(trainings: tuple[Path, Path, str]) -> None:
    one, two, _ = trainings
    assert len(losses(one)) == 2
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert abs(losses(one)[0] - losses(one)[1]) > 1e-3  # it learns: equality is no accident of a standstill
    for part in ("model", "average"):
        first, second = (read_checkpoint(folder / "models/checkpoint_epoch=2.pt")[part] for folder in (one, two))
        assert first.keys() == second.keys()
        for name, value in first.items():
            # AdamW makes whole steps of gradients near 0, so that rounding shows in single weights.
            assert torch.dist(second[name].double(), value.double()) <= 1e-4 * value.double().norm(), name


def test_two_processes_validate_and_calibrate_as_one(trainings: tuple[Path, Path, str]) -> None:
    """All of an odd number of cases: a temperature would be 1 with half as many."""
    one, two = (json.loads((folder / "models/model.json").read_text()) for folder in trainings[:2])
    assert one.pop("temperature") == pytest.approx(two.pop("temperature"), rel=1e-3)
    first, second = one.pop("validation"), two.pop("validation")
    assert first == pytest.approx(second, rel=1e-4)
    assert one == two
    assert 0 < first["val_auc"] < 1


def test_rank_0_alone_writes(trainings: tuple[Path, Path, str]) -> None:
    one, two, printed = trainings
    for part in ("models", "eval"):
        names = [sorted(path.name.split(".tfevents")[0] for path in (folder / part).iterdir()) for folder in (one, two)]
        assert names[0] == names[1]
    assert printed.count("epoch 2/2") == 1
    assert printed.count("best so far") == printed.count("saved") > 0


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_two_processes_evaluate_each_case_once(task: str, cases: Path, both: Run, tmp_path: Path) -> None:
    changes = REGRESSION if task == "regression" else {"class_names": ["large", "small"]}
    write_classifier(tmp_path / "models", **changes)
    name = "numbers.csv" if task == "regression" else "val.txt"
    both("evaluating", EVALUATE, tmp_path, data_root=cases, val_list=name, ckpt_dir=tmp_path / "models", no_cuda=True)
    one, two = (tmp_path / number / "eval" for number in "12")
    for file in ("predictions.csv", "metrics.json"):
        assert (one / file).read_bytes() == (two / file).read_bytes()
    assert (two / "report/index.html").is_file()
    assert_in_order(two / "predictions.csv", cases / name)


@pytest.mark.slow
def test_two_processes_predict_each_case_once(cases: Path, both: Run, tmp_path: Path) -> None:
    """By an ensemble, with maps."""
    folds = tmp_path / "models"
    for number in range(2):
        write_classifier(folds / f"fold_{number}", seed=number, class_names=["large", "small"])
    options = {"ckpt_dir": folds, "folds": 2, "saliency": True, "no_cuda": True}
    both("inference", INFER, tmp_path, img_list=cases / "val.txt", data_root=cases, **options)
    one, two = (tmp_path / number / "eval" for number in "12")
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    assert len(names) == 1 + N_VALIDATION
    assert (one / "predictions.csv").read_bytes() == (two / "predictions.csv").read_bytes()
    assert_in_order(two / "predictions.csv", cases / "val.txt")


def assert_in_order(predictions: Path, given: Path) -> None:
    text = given.read_text()
    names = [line.split("," if given.suffix == ".csv" else " ")[0] for line in text.splitlines()]
    assert [Path(row["case"]).name for row in table(predictions)] == [name for name in names if name != "image"]


@pytest.mark.slow
def test_two_processes_train_the_head_alone(cases: Path, bundle_run: Run, tmp_path: Path) -> None:
    """With all that is dealt or drawn: classes equally often, weights of classes, mixup; and a planned batch."""
    write_classifier(tmp_path / "before", class_names=["large", "small"])
    options = {**SMALL, "pretrain_path": tmp_path / "before/model.pt", "finetune": "frozen", "sampler": "balanced"}
    options |= {"class_weights": "balanced", "mixup": 0.4, "label_smoothing": 0.1, "average_weights": 0}
    options |= {"data_root": cases, "ckpt_dir": tmp_path / "models", "output_dir": tmp_path / "eval"}
    done = bundle_run("training", str(TRAIN), processes=2, **options)
    assert done.returncode == 0, done.stderr
    before, after = (read_checkpoint(tmp_path / name / "model.pt") for name in ("before", "models"))
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {"head.linear.weight", "head.linear.bias"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"finetune": "gradual"}, "finetune is 'gradual', expected 'full' or 'frozen' with several processes"),
        ({"val_list": "bad.txt"}, "bad.txt"),
    ],
    ids=["gradual", "list"],
)
def test_error_of_all_processes_is_shown_once(
    changes: dict[str, str], said: str, cases: Path, bundle_run: Run, tmp_path: Path
) -> None:
    write_classifier(tmp_path / "before")
    options = {**SMALL, "pretrain_path": tmp_path / "before/model.pt", "data_root": cases, **changes}
    options |= {"ckpt_dir": tmp_path / "m", "output_dir": tmp_path}
    done = bundle_run("training", str(TRAIN), processes=2, **options)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("error: ") == 1
    assert not (tmp_path / "m").exists()
