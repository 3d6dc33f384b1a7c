"""The whole way on synthetic data: make it, train, evaluate, infer, and draw what came out.

``make demo`` runs it. Everything is done by the commands that one would use on one's own scans; they are printed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import nibabel
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from med3d_nets.phantom import write_dataset

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / "bundles" / "medicalnet_resnet_10"
SIZE = {"input_D": 32, "input_H": 64, "input_W": 64}
CLASSES = {1: ("left lung", "tab:orange"), 2: ("right lung", "tab:cyan")}


def run(run_id: str, config: str, **options: object) -> None:
    """Run a bundle's command in the bundle's folder, its output shown.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    words = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = ["python", "-m", "monai.bundle", "run", run_id, "--config_file", config, *words]
    print(f"\n$ cd {os.path.relpath(BUNDLE)} && {shlex.join(command)}\n", flush=True)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, *command[1:]], cwd=BUNDLE, env=environment, check=True)


def curve(folder: Path, tag: str) -> tuple[list[int], list[float]]:
    """Steps and values of a scalar, from the TensorBoard files in a folder.

    Raises:
        KeyError: if no file has it.
    """
    points: dict[int, float] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(file))
        events.Reload()
        if tag in events.Tags()["scalars"]:
            points.update({event.step: event.value for event in events.Scalars(tag)})
    if not points:
        raise KeyError(f"{folder}: no scalar {tag}")
    return list(points), list(points.values())


def read(path: Path) -> NDArray[Any]:
    """Voxels of a NIfTI file."""
    return np.asanyarray(nibabel.Nifti1Image.from_filename(path).dataobj)


def draw(folder: Path, image: Path, truth: Path, prediction: Path, picture: Path) -> None:
    """Image, truth and prediction of one volume side by side, above the curves of loss and Dice."""
    volume, label, answer = (
        np.asanyarray(nibabel.Nifti1Image.from_filename(path).dataobj) for path in (image, truth, prediction)
    )
    index = int((label > 0).sum((1, 2)).argmax())
    figure = plt.figure(figsize=(12, 8), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(1.15, 1))
    titles = (f"{image.name.split('.')[0]}, slice {index}", "truth", "prediction")
    for axes, title, mask in zip(
        figure.add_subfigure(grid[0]).subplots(1, 3), titles, (None, label, answer), strict=True
    ):
        axes.imshow(volume[index], cmap="gray", vmin=-1000, vmax=400)
        if mask is not None:
            overlay = np.ma.masked_equal(mask[index], 0)
            colours = matplotlib.colors.ListedColormap([colour for _, colour in CLASSES.values()])
            axes.imshow(overlay, cmap=colours, vmin=1, vmax=2, alpha=0.5, interpolation="nearest")
        axes.set_title(title)
        axes.axis("off")
    losses, dices = figure.add_subfigure(grid[1]).subplots(1, 2)
    loss = (*curve(folder / "eval", "train_loss"), "training loss", "tab:blue")
    plot(losses, [loss], "iteration", "Dice + cross-entropy")
    tags = {name: f"val_dice_{name.replace(' ', '_')}" for name, _ in CLASSES.values()}
    lines = [(*curve(folder / "eval", tags[name]), name, colour) for name, colour in CLASSES.values()]
    plot(dices, lines, "epoch", "validation Dice")
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def plot(axes: Axes, lines: list[tuple[list[int], list[float], str, str]], x: str, y: str) -> None:
    """Draw curves with a legend."""
    for steps, values, name, colour in lines:
        axes.plot(steps, values, label=name, color=colour, marker="." if len(steps) < 40 else None)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.legend()


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "demo", help="where everything goes; overwritten")
    parser.add_argument("--n_epochs", type=int, default=30)
    parser.add_argument("--n_train", type=int, default=16)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    data = folder / "data"
    print(f"making synthetic chest CT in {data} ...", flush=True)
    write_dataset(data, n_train=arguments.n_train, n_val=4, n_test=1, overwrite=True)

    places = {"ckpt_dir": folder / "models", "overwrite": True}
    training = {**SIZE, "n_seg_classes": 3, "batch_size": 4, "n_epochs": arguments.n_epochs, "pretrain_path": ""}
    for old in (folder / "eval").glob("events.out.tfevents.*"):
        old.unlink()
    run("training", "configs/train.json", data_root=data, **training, output_dir=folder / "eval", **places)
    both = "['configs/train.json','configs/evaluate.json']"
    run("evaluating", both, data_root=data, output_dir=folder / "eval", **places)
    unseen = data / "imagesTs" / sorted(os.listdir(data / "imagesTs"))[0]
    run("inference", "configs/inference.json", img_list=unseen, output_dir=folder / "predictions", **places)

    prediction = folder / "predictions" / unseen.name.replace(".nii.gz", "_seg.nii.gz")
    picture = folder / "demo.png"
    draw(folder, unseen, data / "labelsTs" / unseen.name, prediction, picture)
    print(
        f"""
Done, on synthetic data and from random weights (no pretrained weights were used).

  picture        {picture}
  label map      {prediction}
  Dice, HD95     {folder / "eval" / "metrics.csv"}
  network        {folder / "models" / "model.pt"}, with its settings in model.json
  curves         tensorboard --logdir {folder / "eval"}

Next, with your own scans:
  1. list them: one 'image label' pair a line in train.txt and val.txt, paths below one folder (--data_root)
  2. get MedicalNet's weights: med3d get resnet_10
  3. run the training command above with your --data_root, --n_seg_classes and input_D, input_H, input_W,
     without --pretrain_path ''; README.md explains each step
"""
    )


if __name__ == "__main__":
    main()
