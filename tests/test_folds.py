"""Folds: how cases are divided, where each fold's network lies, and what keeps divisions apart."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
import pytest
from monai.bundle import ConfigParser
from monai.data.utils import partition_dataset

from med3d_nets.datalist import read_img_list
from med3d_nets.errors import Med3dError
from med3d_nets.folds import (
    divide,
    fold_folder,
    fold_folders,
    fold_problems,
    group_cases,
    hold_out,
    name_patients,
    shared_patients,
    sort_cases,
)

LIDC = Path(__file__).parents[1] / ".." / "shared" / "data" / "LIDC_nodules"
PATTERN = r"LIDC-IDRI-\d+"
Cases = list[dict[str, str]]


def message(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(Med3dError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def case(name: str, label: str = "", root: str = "/data") -> dict[str, str]:
    """A case that need not exist."""
    return {"image": f"{root}/images/{name}.nii", "label": f"{root}/labels/{label or name}.nii"}


def cases_of(sizes: list[int]) -> Cases:
    """As many cases of each patient."""
    return [case(f"p{patient}_{index}") for patient, size in enumerate(sizes) for index in range(size)]


def groups_of(cases: Cases, pattern: str = "") -> list[Cases]:
    problems: list[str] = []
    groups = group_cases(cases, "/data", pattern, problems)
    assert problems == []
    return groups


def images(cases: Cases) -> list[str]:
    return [Path(case["image"]).stem for case in cases]


# Dividing


@pytest.mark.parametrize(("n_cases", "folds"), [(5, 5), (11, 5), (12, 4), (7, 2), (208, 5)])
def test_parts_are_disjoint_complete_and_balanced(n_cases: int, folds: int) -> None:
    cases = cases_of([1] * n_cases)
    parts = divide(groups_of(cases), folds, 1)
    assert len(parts) == folds
    assert sorted(images([case for part in parts for case in part])) == sorted(images(cases))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_division_depends_on_the_cases_and_the_seed_alone() -> None:
    cases = cases_of([1, 2, 3, 1, 1, 2, 5, 1])
    expected = divide(groups_of(cases, r"p\d+"), 3, 4)
    for seed in range(5):
        shuffled = random.Random(seed).sample(cases, len(cases))
        assert divide(groups_of(shuffled, r"p\d+"), 3, 4) == expected
    assert divide(groups_of(cases, r"p\d+"), 3, 5) != expected


@pytest.mark.slow
def test_division_is_the_same_in_other_processes() -> None:
    program = (
        "from med3d_nets.folds import *; c = [{'image': f'/d/p{n % 7}_{n}', 'label': f'/d/{n}'} for n in range(30)];"
        "print(divide(group_cases(c, '/d', r'p\\d', []), 4, 1))"
    )
    found = set()
    for seed in ("0", "1"):
        command = [sys.executable, "-c", program]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        found.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1


def test_single_cases_are_divided_as_monai_does() -> None:
    cases = sort_cases(cases_of([1] * 23))
    expected = partition_dataset(cases, num_partitions=4, shuffle=True, seed=9)
    assert divide(groups_of(cases), 4, 9) == [sort_cases(part) for part in expected]


@pytest.mark.parametrize("seed", range(5))
def test_patients_stay_together_in_parts_of_like_size(seed: int) -> None:
    sizes = [1 + (7 * patient + seed) % 6 for patient in range(20)]
    parts = divide(groups_of(cases_of(sizes), r"p\d+_"), 4, seed)
    patients = [{name.split("_")[0] for name in images(part)} for part in parts]
    assert Counter(patient for part in patients for patient in part) == {f"p{number}": 1 for number in range(20)}
    assert sum(map(len, parts)) == sum(sizes)
    assert max(map(len, parts)) - min(map(len, parts)) <= max(sizes)


def test_one_large_patient_fills_a_part_alone() -> None:
    parts = divide(groups_of(cases_of([9, 1, 1, 1]), r"p\d+"), 2, 1)
    assert sorted(map(len, parts)) == [3, 9]


def test_hold_out_takes_whole_patients(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for seed in range(5):
        training, validation = hold_out(groups_of(cases_of([3] * 10), r"p\d+"), 0.2, seed)
        assert (len(training), len(validation)) == (24, 6)
        assert not {name.split("_")[0] for name in images(training)} & {n.split("_")[0] for n in images(validation)}
    assert "holding out 6 of 30 cases" in caplog.text
    assert "30 cases of 10 patients: p0, p1, p2 and 7 more" in caplog.text


def test_hold_out_of_single_cases_is_as_before() -> None:
    cases = sort_cases(cases_of([1] * 9))
    assert hold_out(groups_of(cases), 0.2, 3) == tuple(partition_dataset(cases, ratios=[7, 2], shuffle=True, seed=3))


@pytest.mark.skipif(not LIDC.is_dir(), reason="no LIDC_nodules in ../shared/data")
def test_nodules_of_one_patient_stay_together() -> None:
    rows = read_img_list(LIDC / "seg_train.txt")
    cases = [{"image": str(LIDC / image), "label": str(LIDC / label)} for image, label in rows]
    problems: list[str] = []
    groups = group_cases(cases, LIDC, PATTERN, problems)
    assert (problems, len(groups), max(map(len, groups))) == ([], 353, 8)
    parts = divide(groups, 5, 1)
    assert sorted(map(len, parts)) == [127, 128, 128, 128, 128]
    assert sum(len({name[:14] for name in images(part)}) for part in parts) == 353
    assert len(group_cases(cases, LIDC, "", problems)) == 639  # without the pattern, a patient would be on both sides


# Grouping


def test_cases_that_share_a_file_are_a_group() -> None:
    groups = groups_of([case("t1", "a"), case("b"), case("t2", "a"), case("c")])
    assert [images(group) for group in groups] == [["b"], ["c"], ["t1", "t2"]]


def test_groups_join_through_files_and_patients() -> None:
    groups = groups_of([case("p1_a"), case("p1_b", "x"), case("p2_c", "x"), case("p2_d"), case("p3_e")], r"p\d")
    assert [images(group) for group in groups] == [["p1_a", "p1_b", "p2_c", "p2_d"], ["p3_e"]]


def test_links_lead_to_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.nii").write_text("")
    try:
        (tmp_path / "labels/b.nii").symlink_to(tmp_path / "labels/a.nii")
    except OSError:
        pytest.skip("this file system has no symbolic links")
    assert len(groups_of([case(name, root=str(tmp_path)) for name in "abc"])) == 2


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (PATTERN, ["LIDC-IDRI-0001", "LIDC-IDRI-0001", "LIDC-IDRI-0002"]),
        (r"LIDC-IDRI-(\d+)_", ["0001", "0001", "0002"]),
        (r"_R_(?P<nodule>\d)", ["1", "2", "1"]),
        ("^images/(?:LIDC)-[A-Z]+-....", ["images/LIDC-IDRI-0001"] * 2 + ["images/LIDC-IDRI-0002"]),
        (r"\d+", ["0001", "0001", "0002"]),  # not the 2024 of the data's folder
    ],
)
def test_names_of_patients(pattern: str, expected: list[str]) -> None:
    root = "/data/2024"
    cases = [case(f"LIDC-IDRI-{name}", root=root) for name in ("0001_R_1", "0001_R_2", "0002_R_1")]
    problems: list[str] = []
    assert name_patients(cases, root, pattern, problems) == expected
    assert problems == []


@pytest.mark.parametrize("pattern", [r"q\d", "x*", "p(q)?", "()p1"])
def test_paths_without_a_patient(pattern: str) -> None:
    problems: list[str] = []
    group_cases([case(f"p{number}") for number in range(5)], "/data", pattern, problems)
    (problem,) = problems
    where = "found nothing in 5 of 5 paths, images/p0.nii, images/p1.nii, images/p2.nii and 2 more"
    assert problem.startswith(f"patient_pattern {pattern!r}: {where}; expected")


def test_patients_on_both_sides_are_named_with_a_file_of_each() -> None:
    problems: list[str] = []
    found = shared_patients(
        [case("p1_a"), case("p2_b")], [case("p2_c"), case("p2_d"), case("p3_e")], "/data", r"p\d", problems
    )
    (line,) = found
    assert all(part in line for part in ("'p2'", "/data/images/p2_b.nii", "/data/images/p2_c.nii"))
    assert problems == []


# Options


@pytest.mark.parametrize(
    ("folds", "fold", "part"),
    [
        (1, 0, "folds: found 1; expected a whole number of at least 2"),
        (-5, 0, "folds: found -5"),
        (2.0, 0, "folds: found 2.0"),
        (True, 0, "folds: found True"),
        ("5", 0, "folds: found '5'"),
        (5, 1.0, "fold: found 1.0"),
        (5, -1, "--folds 5 needs --fold, 0 to 4: one training each"),
        (5, 5, "fold: found 5; expected 0 to 4"),
        (5, -2, "fold: found -2; expected 0 to 4"),
        (0, 2, "fold: found 2 without folds; expected"),
    ],
)
def test_options_that_contradict_each_other(folds: Any, fold: Any, part: str) -> None:
    (problem,) = fold_problems(folds, fold, choose=True)
    assert part in problem
    if "needs" not in part:
        assert part in message(fold_folder, "models", folds, fold)
        assert part in message(fold_folders, "models", folds, fold)


def test_options_that_fit() -> None:
    fitting = [(0, -1), (2, 0), (5, 4)]
    assert [fold_problems(*options, PATTERN, choose=True) for options in fitting] == [[], [], []]
    assert fold_problems(5, -1) == []


@pytest.mark.parametrize(("pattern", "part"), [("(", "missing ), unterminated"), (["ab"], "['ab']"), (12, "found 12")])
def test_patterns_that_are_none(pattern: Any, part: str) -> None:
    (problem,) = fold_problems(0, -1, pattern)
    assert problem.startswith("patient_pattern: found ")
    assert part in problem


@pytest.mark.parametrize("pattern", [PATTERN, r"case_(\d+)_", r"(?<=/)[^/_]+", "^(.*?)_"])
def test_patterns_survive_the_command_line_and_the_config(pattern: str) -> None:
    assert fire.parser.DefaultParseValue(pattern) == pattern
    parser = ConfigParser({"pattern": pattern, "copy": "@pattern", "same": f"$@copy == {pattern!r}"})
    assert parser.get_parsed_content("same") is True


# Folders


def trained(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in ("model.pt", "model.json"):
            (folder / name / file).write_text("")
    return folder


def test_folder_of_a_fold() -> None:
    assert fold_folder("./models") == "./models"
    assert fold_folder("models", 5, 2) == os.path.join("models", "fold_2")
    assert fold_folder("models", 5) == "models"


def test_folders_of_the_networks(tmp_path: Path) -> None:
    folder = str(trained(tmp_path, "fold_0", "fold_1", "fold_2"))
    every = [os.path.join(folder, f"fold_{number}") for number in range(3)]
    assert fold_folders(folder, 3) == every
    assert fold_folders(folder, 3, 1) == every[1:2]
    assert fold_folders(str(tmp_path / "absent")) == [str(tmp_path / "absent")]  # who reads says what is missing
    assert fold_folders(str(trained(tmp_path, "")), 0) == [str(tmp_path)]


def test_missing_networks_are_named_with_their_commands(tmp_path: Path) -> None:
    trained(tmp_path, "fold_0", "fold_1")
    (tmp_path / "fold_1/model.json").unlink()
    lines = message(fold_folders, str(tmp_path), 3).splitlines()
    wanted = [
        ("fold_1: found no model.json;", "--folds 3 --fold 1,"),
        ("fold_2: found no model.json and no model.pt;", "--fold 2,"),
    ]
    for line, parts in zip(lines, wanted, strict=True):
        assert line.startswith(str(tmp_path))
        assert all(part in line for part in (*parts, "run training --config_file configs/train.json"))
    assert "fold_2" in message(fold_folders, str(tmp_path), 3, 2)
    assert fold_folders(str(tmp_path), 3, 0) == [str(tmp_path / "fold_0")]


def test_another_number_of_folds_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, *(f"fold_{number}" for number in range(5)))
    text = message(fold_folders, str(tmp_path), 3)
    assert all(part in text for part in ("found fold 3, 4 too", "none above 2", "--folds"))


def test_folds_are_not_taken_for_one_network(tmp_path: Path) -> None:
    trained(tmp_path, "fold_0", "fold_1")
    text = message(fold_folders, str(tmp_path))
    assert all(part in text for part in ("no model.pt", "fold 0, 1", "--folds"))


def test_one_exported_network_is_no_ensemble(tmp_path: Path) -> None:
    folder = str(trained(tmp_path, "fold_0", "fold_1"))
    assert "model.ts: found one network" in message(fold_folders, folder, 2, -1, "model.ts")
    assert len(fold_folders(folder, 2, 1, "model.ts")) == 1
