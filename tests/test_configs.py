"""The shipped configs: what they may call, that every reference resolves and that no id is unused."""

from __future__ import annotations

import ast
import json
import re
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import BUNDLE, ROOT

from med3d_nets.variants import VARIANTS

CONFIGS = BUNDLE / "configs"
USED_BY_MONAI = {"imports", "bundle_root", "dataset_dir", "initialize", "finalize", "run", "training", "evaluating"}
USED_BY_MONAI |= {"inference", "displayable_configs"}
PACKAGES = {"monai", "torch", "ignite", "med3d_nets"}
BUILTINS = {"len", "max"}
COMBINATIONS = [
    ("train",),
    ("train", "multi_gpu_train"),
    ("train", "patch"),
    ("train", "patch", "multi_gpu_train"),
    ("train", "evaluate"),
    ("train", "evaluate", "multi_gpu_evaluate"),
    ("inference",),
    ("inference", "multi_gpu_inference"),
    ("classification/train",),
    ("classification/train", "multi_gpu_train"),
    ("classification/train", "classification/evaluate"),
    ("classification/train", "classification/evaluate", "multi_gpu_evaluate"),
    ("classification/inference",),
    ("classification/inference", "multi_gpu_inference"),
    ("classification/features",),
    ("classification/features", "multi_gpu_inference"),
]
"""Configs that are used together."""


def leaves(config: Any) -> list[str]:
    """All strings in a config, keys excepted."""
    if isinstance(config, dict):
        return [leaf for value in config.values() for leaf in leaves(value)]
    if isinstance(config, list):
        return [leaf for value in config for leaf in leaves(value)]
    return [config] if isinstance(config, str) else []


def read(*names: str, folder: Path = CONFIGS) -> dict[str, Any]:
    """Configs laid over each other as MONAI does it, ids with ``::`` taken to their place."""
    merged: dict[str, Any] = {}
    for name in names:
        for key, value in json.loads((folder / f"{name}.json").read_text()).items():
            *path, last = key.split("::")
            place = merged
            for part in path:
                place = place[part]  # an overlay changes what is there
            place[last] = value
    return merged


def ids(config: Any, prefix: str = "") -> set[str]:
    """Every id in a config."""
    items = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    found = {f"{prefix}{key}" for key, _ in items}
    return found.union(*(ids(value, f"{prefix}{key}::") for key, value in items))


def references(config: Any) -> set[str]:
    return {match for leaf in leaves(config) for match in re.findall(r"@([\w:]+)", leaf)}


def test_all_configs_are_checked() -> None:
    rendered = {str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.json")}
    rendered -= {"metadata", "classification/metadata"}
    assert rendered == {name for names in COMBINATIONS for name in names}


@pytest.mark.parametrize("variant", [variant.bundle for variant in VARIANTS])
def test_targets_and_expressions_stay_within_the_allowed_packages(variant: str) -> None:
    for path in (ROOT / "bundles" / variant / "configs").rglob("*.json"):
        config = json.loads(path.read_text())
        for target in re.findall(r'"_target_": "([^"]+)"', path.read_text()):
            module, name = target.rsplit(".", 1)
            assert module.split(".")[0] in PACKAGES, target
            assert hasattr(import_module(module), name), target
        for expression in (leaf[1:] for leaf in leaves(config) if leaf.startswith("$")):
            check_expression(expression)


@pytest.mark.parametrize("name", dict.fromkeys(names[0] for names in COMBINATIONS))
def test_every_import_is_used(name: str) -> None:
    """By the config itself, or by one that is laid over it."""
    configs = [read(*names) for names in COMBINATIONS if names[0] == name]
    text = " ".join(leaf for config in configs for leaf in leaves(config) if leaf.startswith("$"))
    for line in read(name)["imports"]:
        module = line.removeprefix("$import ")
        assert f"{module}." in text.replace(line, ""), line


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_every_module_is_imported(names: tuple[str, ...]) -> None:
    """A module that something else happens to import may be missing in another command."""
    expressions = [leaf for leaf in leaves(read(*names)) if leaf.startswith("$")]
    imported = {leaf.removeprefix("$import ") for leaf in expressions if leaf.startswith("$import ")}
    used = {match for leaf in expressions for match in re.findall(r"med3d_nets\.(?:classification\.)?[a-z_]+", leaf)}
    assert used <= imported


def check_expression(expression: str) -> None:
    """It parses, and names nothing but references, the allowed packages and what they really have."""
    if expression.startswith("import "):
        assert expression.split()[1].split(".")[0] in PACKAGES, expression
        import_module(expression.split()[1])
        return
    tree = ast.parse(re.sub(r"@([\w:]+)", lambda match: "ref_" + match[1].replace(":", "_"), expression), mode="eval")
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert {name for name in names if not name.startswith("ref_")} <= PACKAGES | BUILTINS, expression
    for node in ast.walk(tree):
        dotted = ast.unparse(node)
        if isinstance(node, ast.Attribute) and dotted.split(".")[0] in PACKAGES and re.fullmatch(r"[\w.]+", dotted):
            module, name = dotted.rsplit(".", 1)
            owner = import_module(module)
            assert hasattr(owner, name) or import_module(dotted), expression


@pytest.mark.parametrize(
    "bad", ["$os.system('ls')", "$open('x')", "$(lambda: 0)(", "$med3d_nets.runs.nothing_there(1)"]
)
def test_the_check_of_expressions_can_fail(bad: str) -> None:
    with pytest.raises((AssertionError, SyntaxError, ImportError)):
        check_expression(bad[1:])


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_every_reference_resolves_and_every_id_is_used(names: tuple[str, ...]) -> None:
    config = read(*names)
    known = ids(config)
    assert references(config) <= known
    used = {reference.split("::")[0] for reference in references(config)}
    unused = set(config) - used - USED_BY_MONAI
    if len(names) > 1:  # the ids of the config below an overlay are that config's business
        own = {key.split("::")[0] for key in json.loads((CONFIGS / f"{names[-1]}.json").read_text())}
        unused &= own
    unused -= {"train", "validate"} & set(config)  # train::trainer and the like are what runs
    assert not unused


@pytest.mark.parametrize(("below", "above"), [pair for names in COMBINATIONS for pair in pairwise(names)])
def test_an_overlay_restates_only_what_differs(below: str, above: str) -> None:
    names = next(names[: names.index(above)] for names in COMBINATIONS if (below, above) in pairwise(names))
    config = read(*names)
    for key, value in json.loads((CONFIGS / f"{above}.json").read_text()).items():
        place: Any = config
        for part in key.split("::"):
            place = place.get(part) if isinstance(place, dict) else None
        assert place != value, key


def test_bundles_differ_only_where_their_variants_do() -> None:
    for variant in VARIANTS:
        folder = ROOT / "bundles" / variant.bundle / "configs"
        files = [path.relative_to(folder) for path in sorted(folder.rglob("*"))]
        assert files == [path.relative_to(CONFIGS) for path in sorted(CONFIGS.rglob("*"))]
        for path in folder.rglob("*.json"):
            ours, first = (json.loads((place / path.relative_to(folder)).read_text()) for place in (folder, CONFIGS))
            different = {key for key in {*ours, *first} if ours.get(key) != first.get(key)}
            allowed = {"variant", "model_depth", "resnet_shortcut"}
            assert different <= ({"name", "task", "description", "data_source"} if path.stem == "metadata" else allowed)
            if path.stem in ("train", "inference", "features"):
                assert ours["variant"] == variant.name


def write_trained(folder: Path) -> None:
    """A network with random weights and its settings, as training writes them."""
    from med3d_nets import create_model
    from med3d_nets.settings import Settings
    from med3d_nets.weights import write_atomically

    settings = Settings("resnet_10", "medicalnet", "whole", 1, ["background", "one", "two"], [16, 20, 16])
    write_atomically(folder / "model.pt", create_model("resnet_10", 3).state_dict())
    write_atomically(folder / "model.json", settings.to_json())
