"""From training to the report as a user types it, with blanks in all paths; each command is a process of its own."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import pytest
from test_cli import as_module

SMALL = ["--n_seg_classes", "3", "--input_D", "16", "--input_H", "20", "--input_W", "16"]
SMALL += ["--batch_size", "3", "--n_epochs", "1", "--no_cuda", "True"]


@pytest.mark.slow
def test_the_whole_way(dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "my data").symlink_to(dataset)
    places = ["--ckpt_dir", "my models", "--output_dir", "my eval"]
    words = ["train", "my data", "--recipe", "whole", *SMALL, "--pretrain_path", "", *places]
    done = as_module(*words, folder=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("python -m monai.bundle run training ") or "/python" in done.stdout.split()[0]
    assert (folder / "my models" / "model.pt").is_file()

    done = as_module(*words, folder=folder)
    assert done.returncode == 1, "nothing is overwritten unasked"
    assert "an earlier training wrote" in done.stderr

    done = as_module("evaluate", "my data", *places, "--no_cuda", "True", folder=folder)
    assert done.returncode == 0, done.stderr
    with (folder / "my eval" / "metrics.csv").open() as file:
        assert [Path(row["case"]).name for row in csv.DictReader(file)] == ["case_6.nii.gz", "case_7.nii.gz"]

    done = as_module("export", *places[:2], folder=folder)
    assert done.returncode == 0, done.stderr
    image = Path("my data", "images", "case_1.nii.gz")
    exported = ["--exported_path", "my models/model.ts", "--ckpt_dir", "my models", "--output_dir", "my answers"]
    done = as_module("predict", str(image), *exported, "--no_cuda", "True", folder=folder)
    assert done.returncode == 0, done.stderr
    answer = nibabel.load(folder / "my answers" / "case_1_seg.nii.gz")
    assert answer.shape == nibabel.load(folder / image).shape

    done = as_module("report", "my eval", folder=folder)
    assert done.returncode == 0, done.stderr
    assert [Path(line).name for line in done.stdout.splitlines()[::2]] == ["index.html", "training.html"]
    assert "Dice class 1" in done.stdout
