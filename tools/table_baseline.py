"""Score a classification by known numbers alone, such as the diameter: what a network must beat.

    python tools/table_baseline.py --data_root /data/nodules --img_list cls_train.txt --val_list cls_val.txt \
        --table nodules.csv --columns "['diameter_mm']" --mean_intensity True

    python tools/table_baseline.py --data_root /data/nodules ... --columns "['diameter_mm']" \
        --predictions bundles/medicalnet_resnet_10/eval/classification/predictions.csv

A logistic regression on standardised numbers (scikit-learn's, with its defaults) is fitted to one list and scored on
the other, with the scores and intervals of a bundle's ``evaluate.json``. Of a network's predictions for the same cases
it tells how far they follow the order of each number: near 1, the network has learnt little else.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the tool runs from a checkout that is not installed

from med3d_nets import commands  # noqa: E402
from med3d_nets.checks import check_grid, read_volume  # noqa: E402
from med3d_nets.classification.cases import load_lists  # noqa: E402
from med3d_nets.classification.reports import score_rows  # noqa: E402
from med3d_nets.classification.scores import score_classes  # noqa: E402
from med3d_nets.dicom import series_path  # noqa: E402
from med3d_nets.errors import Med3dError  # noqa: E402
from med3d_nets.list_files import find_path, raise_for, read_csv_lines  # noqa: E402
from med3d_nets.reports import text_table  # noqa: E402

MEAN = "mean intensity"

Numbers = dict[str, list[float]]


def baseline(
    data_root: str = ".",
    img_list: str = "train.txt",
    val_list: str = "val.txt",
    *,
    table: str = "",
    columns: Sequence[str] = (),
    mean_intensity: bool = False,
    class_names: Sequence[str] = (),
    patient_pattern: str = "",
    predictions: str = "",
) -> None:
    """Print accuracy, balanced accuracy and AUC of a logistic regression on numbers of each case.

    Args:
        data_root: folder that the paths are relative to.
        img_list: list of the cases to fit to, as training takes it.
        val_list: list of the cases to score.
        table: CSV file with a column image, the columns asked for and, for the intensity, a column mask.
        columns: names of columns with numbers.
        mean_intensity: whether to use the image's mean within the mask (HU in CT) too.
        class_names: as for training.
        patient_pattern: as for training; intervals resample patients.
        predictions: predictions.csv of a network's evaluation on val_list, to compare with each number.

    Raises:
        Med3dError: for data or options that do not fit.
    """
    columns = [columns] if isinstance(columns, str) else list(columns)
    if not table or not (columns or mean_intensity):
        raise Med3dError("no numbers: give --table, and --columns such as \"['diameter_mm']\" or --mean_intensity True")
    needed = [*columns, *(["mask"] if mean_intensity else [])]
    rows = read_rows(table, data_root, needed)
    cases = load_lists(data_root, img_list, val_list, class_names=class_names, patient_pattern=patient_pattern)
    names, numbers = cases["class_names"], [*columns, *([MEAN] if mean_intensity else [])]
    train, test = (measure(cases[part], rows, columns, mean_intensity) for part in ("training", "validation"))
    labels, truth = ([case["label"] for case in cases[part]] for part in ("training", "validation"))
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(train, labels)
    probabilities = model.predict_proba(test)
    scores = score_classes(probabilities, truth, names, [case["patient"] for case in cases["validation"]])
    print(f"logistic regression on {', '.join(numbers)}: fitted to {len(labels)} cases, scored on {len(truth)}")
    print(f"of {scores.patients} patients, as far as these are known; 95 % intervals from {scores.resamples} resamples")
    print(text_table(["score", "value", "95 % interval"], score_rows(scores)))
    if predictions:
        answers = read_predictions(predictions, cases["validation"], names[-1])
        for name, values in zip(numbers, test.T, strict=True):
            print(
                f"rank correlation of {name} with the probability of {names[-1]}: {spearmanr(values, answers)[0]:.3f}"
            )


def read_rows(table: str, data_root: str, needed: Sequence[str]) -> dict[str, dict[str, str]]:
    """The rows of a CSV file by the absolute path of their image; its masks' paths become absolute too.

    Raises:
        Med3dError: if the file or a column is missing, the file is no table, or an image is there twice.
    """
    problems: list[str] = []
    path = find_path("table", table, data_root, problems)
    raise_for(problems)
    assert path is not None
    rows: dict[str, dict[str, str]] = {}
    for number, row in _read_columns(path, ["image", *needed]):
        image = series_path(os.path.abspath(os.path.join(data_root, row["image"])))  # as lists have it
        if image in rows:
            problems.append(f"{path}, line {number}: found {image} a second time; expected it once")
        rows[image] = row
        if row.get("mask"):
            row["mask"] = os.path.abspath(os.path.join(data_root, row["mask"]))
    raise_for(problems)
    return rows


def _read_columns(path: str, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Number and values, by column, of each line of a CSV file; the names of columns are as they stand in it."""
    problems: list[str] = []
    lines = read_csv_lines(path, problems)
    raise_for(problems)
    header = lines[0][1]
    if missing := [name for name in needed if name not in header]:
        raise Med3dError(f"{path}: found the columns {', '.join(header)}; expected {', '.join(missing)} too")
    wrong = [(number, len(line)) for number, line in lines if len(line) != len(header)]
    raise_for([f"{path}, line {number}: found {count} values; expected {len(header)}" for number, count in wrong])
    return [(number, dict(zip(header, line, strict=True))) for number, line in lines[1:]]


def read_predictions(path: str, cases: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The probability of a class that a network's ``predictions.csv`` has for each case, by the image's path.

    Raises:
        Med3dError: if the file, the class or a case is missing.
    """
    if not os.path.isfile(path):
        raise Med3dError(f"predictions: found no file {path!r}; expected the predictions.csv of an evaluation")
    column = f"probability {name}"
    rows = _read_columns(path, ["case", column])
    problems: list[str] = []
    # A region stands behind its image.
    known = {row["case"].split(" [")[0]: _number(row[column], column, row["case"], problems) for _, row in rows}
    raise_for(problems)
    if missing := [case["image"] for case in cases if case["image"] not in known]:
        raise Med3dError(f"{path}: found no row for {missing[0]}; expected one for each of the {len(cases)} cases")
    return [known[case["image"]] for case in cases]


def measure(
    cases: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Mapping[str, str]],
    columns: Sequence[str],
    mean_intensity: bool,
) -> NDArray[np.float64]:
    """The numbers of each case, ``(case, number)``.

    Raises:
        Med3dError: with every problem found.
    """
    problems: list[str] = []
    found = []
    for case in tqdm(cases, "measuring cases", leave=False, disable=None if mean_intensity else True):
        row = rows.get(case["image"])
        if row is None:
            problems.append(f"{case['image']}: found no row of the table for it; expected one")
            continue
        numbers = [_number(row[name], name, case["image"], problems) for name in columns]
        if mean_intensity:
            numbers.append(_mean_within(case["image"], row["mask"], problems))
        found.append(numbers)
    raise_for(problems)
    return np.array(found, np.float64)


def _number(text: str, column: str, image: str, problems: list[str]) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        problems.append(f"{image}: found {text!r} in the column {column}; expected a number")
    return value


def _mean_within(image: str, mask: str, problems: list[str]) -> float:
    """The image's mean where its mask is above 0; NaN, and a problem, where that cannot be told."""
    if not mask:
        problems.append(f"{image}: found no mask in the table; expected a file for --mean_intensity True")
        return math.nan
    volume, region_of = read_volume(image, problems), read_volume(mask, problems, image)
    if volume is None or region_of is None:
        return math.nan
    (values, affine), (region, mask_affine) = volume, region_of
    before = len(problems)
    check_grid(mask, (region.shape[:3], mask_affine), image, (values.shape[:3], affine), problems)
    if len(problems) > before:
        return math.nan
    inside = region.reshape(values.shape[:3]) > 0
    if not inside.any():
        problems.append(f"{mask}: found no voxel above 0; expected some, the region of {image}")
        return math.nan
    return float(values[inside].mean())


def main() -> None:
    """Run :func:`baseline` with the options of the command line."""
    commands.run_tool(baseline, texts=("patient_pattern", "predictions"))


if __name__ == "__main__":
    main()
