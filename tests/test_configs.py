"""The shipped configs as MONAI reads them."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import BUNDLE
from monai.bundle import ConfigWorkflow

CONFIGS = BUNDLE / "configs"
SMALL = {"n_seg_classes": 3, "input_D": 16, "input_H": 20, "input_W": 16, "pretrain_path": ""}
USED_BY_MONAI = {"imports", "bundle_root", "dataset_dir", "initialize", "run", "training", "evaluating", "inference"}
ALLOWED = {"monai", "torch", "ignite", "med3d_nets", "len", "max"}


def leaves(config: Any) -> list[str]:
    """All strings in a config, keys of ``_target_`` included."""
    if isinstance(config, dict):
        return [leaf for value in config.values() for leaf in leaves(value)]
    if isinstance(config, list):
        return [leaf for value in config for leaf in leaves(value)]
    return [config] if isinstance(config, str) else []


def merged(name: str) -> dict[str, Any]:
    """A config, over ``train.json`` if it is an overlay."""
    config = json.loads((CONFIGS / name).read_text())
    return {**json.loads((CONFIGS / "train.json").read_text()), **config} if name == "evaluate.json" else config


@pytest.mark.parametrize("name", ["train.json", "evaluate.json", "inference.json"])
def test_targets_and_expressions_stay_within_the_allowed_packages(name: str) -> None:
    text = (CONFIGS / name).read_text()
    for target in re.findall(r'"_target_": "([^"]+)"', text):
        assert target.split(".")[0] in ALLOWED, target
    for expression in (leaf[1:] for leaf in leaves(json.loads(text)) if leaf.startswith("$")):
        if expression.startswith("import "):
            assert expression.split()[1].split(".")[0] in ALLOWED
            continue
        tree = ast.parse(
            re.sub(r"@([\w:]+)", lambda match: "ref_" + match[1].replace(":", "_"), expression), mode="eval"
        )
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert {found for found in names if not found.startswith("ref_")} <= ALLOWED, expression


@pytest.mark.parametrize("name", ["train.json", "evaluate.json", "inference.json"])
def test_every_reference_resolves_and_every_id_is_used(name: str) -> None:
    config = merged(name)
    ids = {key.split("::")[0] for key in config}
    references = {match.split("::")[0] for leaf in leaves(config) for match in re.findall(r"@([\w:]+)", leaf)}
    assert references <= ids
    unused = ids - references - USED_BY_MONAI
    if name == "evaluate.json":  # train.json's own ids are its business
        unused &= set(json.loads((CONFIGS / name).read_text()))
    assert not unused


@pytest.mark.parametrize("kind", ["train", "inference"])
def test_monai_finds_all_properties(kind: str, dataset: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "data_root": str(dataset),
        "ckpt_dir": str(tmp_path),
        "output_dir": str(tmp_path / "out"),
    }
    if kind == "train":
        options |= SMALL
    else:
        options["img_list"] = str(dataset / "images")
        write_trained(tmp_path)
    workflow = ConfigWorkflow(
        CONFIGS / f"{kind}.json", logging_file=False, workflow_type=kind, bundle_root=str(BUNDLE), **options
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def write_trained(folder: Path) -> None:
    """A network with random weights and its settings, as training writes them."""
    from med3d_nets import create_model
    from med3d_nets.settings import Settings
    from med3d_nets.weights import write_atomically

    settings = Settings("resnet_10", "medicalnet", "whole", 1, ["background", "one", "two"], [16, 20, 16])
    write_atomically(folder / "model.pt", create_model("resnet_10", 3).state_dict())
    write_atomically(folder / "model.json", settings.to_json())
