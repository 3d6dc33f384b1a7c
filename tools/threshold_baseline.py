"""Score the simplest segmentation there is, a threshold, as a baseline for a network's results.

    python tools/threshold_baseline.py --data_root /data/nodules --img_list val.txt --lower -400

Cases and scores are those of a bundle's ``evaluate.json``: each label map on its own grid, the foreground alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from monai.handlers import MeanDice, from_engine
from monai.transforms import AsDiscreted, Compose, EnsureChannelFirstd, LoadImaged
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the tool runs from a checkout that is not installed

from med3d_nets import commands  # noqa: E402
from med3d_nets.components import KeepLargestComponentd  # noqa: E402
from med3d_nets.datalist import load_cases  # noqa: E402
from med3d_nets.errors import Med3dError  # noqa: E402
from med3d_nets.metrics import HausdorffDistance95, SurfaceDice  # noqa: E402
from med3d_nets.reports import CaseReport  # noqa: E402
from med3d_nets.statistics import Interval, case_means, summarise  # noqa: E402
from med3d_nets.transforms import PlaceSegmentationd  # noqa: E402
from med3d_nets.volume_reader import VolumeReader  # noqa: E402


def baseline(
    data_root: str = ".",
    img_list: str = "val.txt",
    *,
    lower: float | None = None,
    upper: float | None = None,
    largest_component: bool = True,
    n_seg_classes: int = 2,
    tolerance: float = 1.0,
    num_workers: int = 0,
    output_dir: str = "",
    overwrite: bool = False,
) -> None:
    """Print Dice, the 95 % Hausdorff distance and surface Dice of voxels whose value lies between two bounds.

    Args:
        data_root: folder that the list's paths are relative to.
        img_list: list of the cases, as evaluation takes it.
        lower: foreground lies above this value, in the images' unit (HU in CT).
        upper: foreground lies below this value.
        largest_component: whether to keep the largest connected component of the foreground alone.
        n_seg_classes: classes of the labels, background included; a threshold can tell two.
        tolerance: of the surface Dice, in mm.
        num_workers: processes that load cases.
        output_dir: folder to write metrics.csv and metrics_summary.csv to; by default nothing is written.
        overwrite: whether to replace those files.

    Raises:
        Med3dError: for data or options that do not fit.
    """
    _check_bounds(lower, upper, tolerance)
    _check_options(n_seg_classes, {"largest_component": largest_component, "overwrite": overwrite})
    pair = from_engine(["pred", "label"])
    metrics = {
        "Dice": MeanDice(include_background=False, output_transform=pair),
        "HD95 [mm]": HausdorffDistance95(pair),
        f"Surface Dice ({tolerance:g} mm)": SurfaceDice(pair, tolerance),
    }
    columns = {name: name for name in metrics}
    report = CaseReport(str(output_dir), ["background", "foreground"], overwrite, columns) if output_dir else None
    cases = load_cases(data_root, img_list, n_seg_classes=n_seg_classes, num_workers=num_workers)

    below, above = -math.inf if lower is None else lower, math.inf if upper is None else upper
    engine = Engine(lambda engine, batch: [segment(case, below, above, largest_component) for case in batch])
    for name, metric in metrics.items():
        metric.attach(engine, name)
    if report is not None:
        report.attach(engine)
    run(engine, cases, num_workers)

    bounds = [f"{word} {value:g}" for word, value in (("above", lower), ("below", upper)) if value is not None]
    kept = ", largest component" if largest_component else ""
    state: Any = engine.state
    print(f"{len(cases)} cases, foreground: {' and '.join(bounds)}{kept}")
    print(describe({name: state.metric_details[name] for name in metrics}))
    if report is not None:
        print(f"written: {', '.join(map(str, report.paths))}")


def run(engine: Engine, cases: Sequence[Mapping[str, str]], num_workers: int) -> None:
    """Run an engine over the cases, each a batch that is a list of one, with a progress bar."""
    keys = ["image", "label"]
    load = Compose([LoadImaged(keys, VolumeReader), EnsureChannelFirstd(keys), PlaceSegmentationd("label")])
    loader = DataLoader(Dataset(cases, load), batch_size=1, num_workers=num_workers, collate_fn=list)
    engine.run(tqdm(loader, desc="cases", leave=False), epoch_length=len(cases))


def segment(case: Mapping[str, MetaTensor], lower: float, upper: float, largest_component: bool) -> dict[Hashable, Any]:
    """Prediction and label of a case as one-hot ``(2, depth, height, width)``, on the image's grid.

    Args:
        case: ``image`` and ``label``, ``(1, depth, height, width)``.
        lower, upper: bounds of the foreground's values, themselves background.
        largest_component: whether to keep that alone.
    """
    image = case["image"]
    found: dict[Hashable, Any] = {
        "pred": ((image > lower) & (image < upper)).to(torch.uint8),
        "label": case["label"],
    }
    cleaned = KeepLargestComponentd("pred", [1] if largest_component else [])(found)
    return dict(AsDiscreted(["pred", "label"], to_onehot=2)(cleaned))


def describe(scores: Mapping[str, torch.Tensor]) -> str:
    """A table of the scores, each ``(case, class)``, with 95 % bootstrap intervals over the cases."""
    rows = [["", "mean (95 % interval)", "median (95 % interval)", "lowest", "highest", "cases"]]
    for name, values in scores.items():
        found = summarise(case_means(values.numpy()))
        infinite = f", {found.infinite} infinite" if found.infinite else ""
        rows.append(
            [
                *(name, _with_interval(found.mean, found.mean_interval)),
                *(_with_interval(found.median, found.median_interval), f"{found.lowest:.4f}", f"{found.highest:.4f}"),
                f"{found.n}{infinite}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _with_interval(value: float, interval: Interval) -> str:
    return f"{value:.4f} ({interval[0]:.4f} to {interval[1]:.4f})"


def _check_bounds(lower: Any, upper: Any, tolerance: Any) -> None:
    if lower is None and upper is None:
        raise Med3dError("no threshold: give --lower, such as --lower -400, or --upper, or both")
    for name, value in (("lower", lower), ("upper", upper), ("tolerance", tolerance)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value)):
            raise Med3dError(f"--{name} is {value!r}, expected a number")
    if lower is not None and upper is not None and not lower < upper:
        raise Med3dError(f"--lower is {lower:g}, expected less than --upper, which is {upper:g}")


def _check_options(n_seg_classes: Any, flags: Mapping[str, Any]) -> None:
    if n_seg_classes != 2:
        raise Med3dError(
            f"--n_seg_classes is {n_seg_classes!r}, expected 2: a threshold tells one foreground class from background"
        )
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise Med3dError(f"--{name} is {value!r}, expected True or False")


def main() -> None:
    """Run :func:`baseline` with the options of the command line."""
    commands.run_tool(baseline)


if __name__ == "__main__":
    main()
