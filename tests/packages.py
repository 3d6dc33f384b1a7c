"""A bundle as its user leaves it, and what is in a package of it, for ``test_package_bundle*.py``."""

from __future__ import annotations

import csv
import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from conftest import BUNDLE, ROOT
from published import constant_state

from med3d_nets import create_model
from med3d_nets.settings import Settings
from med3d_nets.weights import file_sha256, write_atomically

NAME = "medicalnet_resnet_10"
CLASSES = ["background", "anterior", "posterior | tail"]
VALIDATION = {"val_mean_dice": 0.75, "val_dice_anterior": 0.8, "val_dice_posterior_|_tail": 0.7, "val_none": None}
DIGEST = "2824951eaef30e115929b89bec72342380b08d14792bda1449974ac849e497c0"
SIZE = [16, 20, 16]
RENDERED = sorted(
    path.relative_to(ROOT / "tools" / "templates").as_posix()
    for path in (ROOT / "tools" / "templates").rglob("*")
    if path.is_file()
)


def copy_bundle(folder: Path) -> Path:
    """A copy of the shipped bundle, as rendered."""
    for name in RENDERED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(BUNDLE / name, folder / name)
    return folder


def write_trained(folder: Path, **changes: Any) -> None:
    """A network with random weights and its settings and scores, as training writes them."""
    settings = {"variant": "resnet_10", "head": "medicalnet", "recipe": "whole", "in_channels": 1}
    settings |= {"class_names": CLASSES, "input_size": SIZE, "fill_empty_with_noise": True}
    settings["pretrained"] = {"file": "resnet_10.pth", "sha256": DIGEST, "tensors": 72}
    write_atomically(folder / "model.pt", create_model("resnet_10", 3).state_dict())
    text = Settings(**{**settings, **changes}).to_json(epoch=12, validation=VALIDATION)
    write_atomically(folder / "model.json", text)


def write_pretrained(folder: Path, **changes: Any) -> None:
    """Pretrained weights as the converter writes them."""
    state = {name: value.clone() for name, value in constant_state(10, "B").items()}
    write_atomically(folder / "pretrained.pt", state)
    record = {"variant": "resnet_10", "source": "resnet_10.pth", "source_sha256": DIGEST, "digest": "known"}
    record |= {"tensors": 72, "values": 14361292, "sha256": file_sha256(folder / "pretrained.pt")}
    write_atomically(folder / "pretrained.json", json.dumps({**record, **changes}))


def write_scores(path: Path, *rows: list[Any]) -> Path:
    """A summary of an evaluation."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["metric", "mean", "median", "min", "max", "cases"], *rows])
    return path


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {entry.filename.partition("/")[2]: archive.read(entry) for entry in archive.infolist()}


def section(card: str, name: str) -> str:
    return re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", card, re.DOTALL)[1]
