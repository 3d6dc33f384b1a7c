"""``train``, ``evaluate``, ``predict`` and ``features``: short forms of ``python -m monai.bundle run``.

They choose config files, the bundle and the lists, with absolute paths, so that what else is given is relative to where
the user stands; the rest of the words goes on to MONAI's command, which checks it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from med3d_nets.cli.bundles import check_task, config_option, config_values, find_bundle
from med3d_nets.cli.handed_on import check_handed_on, given_options
from med3d_nets.cli.lists import evaluation_options, existing, training_options
from med3d_nets.cli.process import run_monai
from med3d_nets.cli.words import hint, own_names
from med3d_nets.errors import Med3dError

__all__ = ["evaluate", "features", "predict", "train"]

RECIPES = ("patch", "whole")
IMAGES = (".nii", ".nii.gz")

_log = logging.getLogger(__name__)


def train(
    data: str,
    *,
    task: str = "segmentation",
    recipe: str = "",
    variant: str = "",
    bundle: str = "",
    dry_run: bool = False,
    others: Sequence[str] = (),
) -> None:
    """Train a bundle on your cases: print MONAI's command, and run it.

    Examples:
        med3d train /data/Task04_Hippocampus --n_epochs 50
        med3d train /data/scans --recipe whole --n_seg_classes 3 --input_D 40 --input_H 56 --input_W 40
        med3d train lists/nodules.csv --task classification --variant resnet_18 --pretrain_path ''

    Options of the bundle's configs are handed on to MONAI's command. Most used, for every task:
        --n_epochs 50, --batch_size 4, --learning_rate 1e-4
        --pretrain_path ''                  from scratch, or another file of weights
        --ckpt_dir DIR, --output_dir DIR    where weights and pages go; by default into the bundle
        --overwrite True                    replace those of an earlier training
        --resume_path FILE                  go on from a checkpoint
        --folds 5, --fold 0                 cross-validation
        --no_cuda True                      on the CPU
    Of a segmentation, besides:
        --n_seg_classes 3                   with the background
        --patch_size "[64,64,32]", --spacing "[1,1,2.5]" of the recipe "patch"
        --input_D, --input_H, --input_W of the recipe "whole"
    Of a classification: --finetune frozen, --class_weights balanced, --input_size "[40,56,40]"

    The others are in docs/training.md and docs/classification.md, and at the top of the bundle's configs/train.json,
    configs/patch.json and configs/classification/train.json.

    Args:
        data: folder with train.txt (and val.txt), train.csv, dataset.json or imagesTr and labelsTr, or a list in the
            folder that its paths start from.
        task: segmentation, classification or regression.
        recipe: of a segmentation: patch (the default), planned from the cases, or whole, as MedicalNet's.
        variant: one of med3d list, whose bundle in the project is trained; the default is resnet_10.
        bundle: folder of another bundle; in a bundle's folder, that one is the default.
        dry_run: print the command without running it.
        others: handed on.

    Raises:
        Med3dError: for a word that cannot be.
        SystemExit: with the status of MONAI's command.
    """
    check_task(task)
    segments = task == "segmentation"
    if recipe and not segments:
        raise Med3dError(f"--recipe {recipe} is for segmentation; expected no recipe with --task {task}")
    if recipe and recipe not in RECIPES:
        raise Med3dError(f"no recipe '{recipe}'; {hint(recipe, RECIPES)}")
    names = ["train.json"] if segments else ["classification/train.json"]
    if segments and recipe != "whole":
        names.append("patch.json")
        if not recipe:
            _log.info("recipe: patch (the default; --recipe whole is MedicalNet's)")
    folder = find_bundle(variant, bundle)
    options = training_options(data, task, given_options(others))
    if task == "regression":
        options["task"] = task
    _run(train, "training", folder, names, options, others, dry_run)


def evaluate(
    data: str,
    *,
    task: str = "segmentation",
    variant: str = "",
    bundle: str = "",
    dry_run: bool = False,
    others: Sequence[str] = (),
) -> None:
    """Score a trained network on labelled cases: print MONAI's command, and run it.

    Examples:
        med3d evaluate /data/Task04_Hippocampus --output_dir scores
        med3d evaluate /data/nodules/cls_test.txt --task classification

    Options of the bundle's configs are handed on to MONAI's command. Most used:
        --ckpt_dir DIR            where the training put its weights, if not into the bundle
        --output_dir DIR          where tables and the page go; by default into the bundle
        --overwrite True          replace those of an earlier evaluation
        --folds 5, --fold 0       what a fold has not seen; --img_list and --patient_pattern as in training
        --test_time_flips True    of a segmentation trained with flips
        --no_cuda True            on the CPU

    The others are in docs/inference.md and at the top of the bundle's configs/evaluate.json, configs/train.json and
    their like in configs/classification.

    Args:
        data: folder with test.txt, val.txt or labelled cases for either in train.csv, dataset.json or labelsTs, or a
            list in the folder that its paths start from; otherwise, those that the training held out are scored.
        task: segmentation, classification or regression.
        variant: one of med3d list, whose bundle in the project was trained; the default is resnet_10.
        bundle: folder of another bundle; in a bundle's folder, that one is the default.
        dry_run: print the command without running it.
        others: handed on.

    Raises:
        Med3dError: for a word that cannot be.
        SystemExit: with the status of MONAI's command.
    """
    check_task(task)
    names = _configs(task, "train.json", "evaluate.json")
    folder = find_bundle(variant, bundle)
    options = evaluation_options(data, task, given_options(others))
    _run(evaluate, "evaluating", folder, names, options, others, dry_run)


def predict(
    *inputs: str,
    task: str = "segmentation",
    variant: str = "",
    bundle: str = "",
    dry_run: bool = False,
    others: Sequence[str] = (),
) -> None:
    """Predict label maps, classes or numbers of new volumes: print MONAI's command, and run it.

    Examples:
        med3d predict scan.nii.gz --output_dir answers
        med3d predict "/data/new scans" --variant resnet_50
        med3d predict list.csv --task classification --saliency True

    Options of the bundle's configs are handed on to MONAI's command. Most used:
        --ckpt_dir DIR            where the training put its weights, if not into the bundle
        --output_dir DIR          where the answers go; by default into the bundle's folder predictions
        --overwrite True          replace earlier answers
        --folds 5                 all networks of a cross-validation together
        --test_time_flips True    of a segmentation trained with flips
        --exported_path FILE      an exported network
        --no_cuda True            on the CPU

    The others are in docs/inference.md and at the top of the bundle's configs/inference.json and
    configs/classification/inference.json.

    Args:
        inputs: NIfTI files, a folder of them, or a list.
        task: segmentation, classification or regression.
        variant: one of med3d list, whose bundle in the project was trained; the default is resnet_10.
        bundle: folder of another bundle; in a bundle's folder, that one is the default.
        dry_run: print the command without running it.
        others: handed on.

    Raises:
        Med3dError: for a word that cannot be.
        SystemExit: with the status of MONAI's command.
    """
    check_task(task)
    given = given_options(others)
    options = _input_options(inputs, given)
    folder = find_bundle(variant, bundle)
    if "output_dir" not in given:
        place = folder / "predictions" / ("" if task == "segmentation" else "classification")
        _log.info("answers go to %s; --output_dir names another folder", place)
    _run(predict, "inference", folder, _configs(task, "inference.json"), options, others, dry_run)


def features(
    *inputs: str, variant: str = "", bundle: str = "", dry_run: bool = False, others: Sequence[str] = ()
) -> None:
    """Write a table of the encoder's features of each volume: print MONAI's command, and run it.

    Examples:
        med3d features /data/scans --variant resnet_50 --output features.csv
        med3d features nodules.csv --ckpt_dir "my runs/models"

    Options of the bundle's config are handed on to MONAI's command. Most used:
        --output FILE           the table; by default features/features.csv in the bundle
        --ckpt_dir DIR          a trained classifier's encoder instead of the pretrained one
        --pretrain_path FILE    other weights
        --spacing "[1,1,1]", --input_size "[40,56,40]"
        --overwrite True        replace an earlier table

    The others are in docs/classification.md and at the top of the bundle's configs/classification/features.json.

    Args:
        inputs: NIfTI files, a folder of them, or a list.
        variant: one of med3d list, whose bundle in the project is used; the default is resnet_10.
        bundle: folder of another bundle; in a bundle's folder, that one is the default.
        dry_run: print the command without running it.
        others: handed on.

    Raises:
        Med3dError: for a word that cannot be.
        SystemExit: with the status of MONAI's command.
    """
    options = _input_options(inputs, given_options(others))
    folder = find_bundle(variant, bundle)
    _run(features, "features", folder, ["classification/features.json"], options, others, dry_run)


def _configs(task: str, *names: str) -> list[str]:
    return [name if task == "segmentation" else f"classification/{name}" for name in names]


def _run(
    command: Callable[..., None],
    run_id: str,
    folder: Path,
    names: Sequence[str],
    options: Mapping[str, str],
    others: Sequence[str],
    dry_run: bool,
) -> None:
    """Print and run what MONAI shall do with config files of a bundle."""
    configs = config_option(folder, names)
    check_handed_on(others, own_names(command), config_values(folder, names))
    words = ["run", run_id, "--config_file", configs, "--bundle_root", str(folder)]
    words += [word for name, value in options.items() for word in (f"--{name}", value)]
    run_monai([*words, *others], dry_run)


def _input_options(inputs: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """Options for images: a list's paths are relative to its folder."""
    if not inputs or "img_list" in given:
        found = "--img_list" if inputs or given.get("img_list") else "none"
        raise Med3dError(f"inputs: found {found}; expected NIfTI files, a folder of them or a list, before the options")
    paths = []
    for text in inputs:
        file, mark, rest = text.partition("::")  # file.npz::images::3, a volume in an array
        paths.append(str(existing(file)) + mark + rest)
    if len(paths) > 1:
        return {"img_list": json.dumps(paths, ensure_ascii=False)}
    alone = os.path.isdir(paths[0]) or paths[0].lower().endswith(IMAGES) or "::" in paths[0]
    folder = {} if alone or "data_root" in given else {"data_root": os.path.dirname(paths[0])}
    return {**folder, "img_list": paths[0]}
