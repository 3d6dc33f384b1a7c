"""The page of an evaluation, rendered from made-up cases."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel
import numpy as np
import torch
from pages import Page, decode

from med3d_nets.evaluation_page import MAX_CLASSES, Case, Pick, render_evaluation
from med3d_nets.report_html import MINUS, NOTHING
from med3d_nets.report_slices import cut_class

NAN, INF = math.nan, math.inf
CLASSES = ["left lung", "no<dule"]
SHAPE = (8, 9, 10)
SETTINGS = {"variant": "resnet_10", "head": "unet"}


def case(name: str, predicted: tuple[float, ...], reference: tuple[float, ...]) -> Case:
    return Case(name, SHAPE, np.eye(4), predicted, reference)


CASES = [
    case("/data/a<b>.nii.gz", (1.0, 0.0), (2.0, 0.0)),
    case("/data/c.nii.gz", (3.0, 0.5), (3.0, 0.25)),
    case("/data/d.nii.gz", (4.0, 0.0), (3.0, 1.0)),
    case("/data/e.nii.gz", (5.0, 2.0), (5.0, 0.0)),
]
SCORES = {
    "Dice": np.array([[0.5, NAN], [1.0, 0.75], [0.75, 0.0], [1.0, NAN]]),
    "HD95 [mm]": np.array([[2.0, NAN], [0.0, 1.5], [1.0, INF], [0.0, INF]]),
}


def pick(name: str, index: int, count: int = 2) -> Pick:
    volume = torch.zeros(SHAPE, dtype=torch.bool)
    volume[2:5, 3:6, 4:7] = True
    return Pick(name, index, tuple(cut_class(volume, volume, np.eye(4)) for _ in range(count)))


def test_summary_of_every_metric_and_class() -> None:
    found = Page(render_evaluation(CASES, SCORES, CLASSES, SETTINGS))
    assert found.text("h1") == "Evaluation: resnet_10, unet head"
    scores, detection, agreement, cases, settings, _ = found.tables
    header = ["metric", "class", "cases", "mean", "95 % CI", "median", "95 % CI", "min", "max", "infinite", "left out"]
    assert scores[0] == header
    rows = {(row[0], row[1]): row[2:] for row in scores[1:]}
    assert len(rows) == 6
    dice = rows["Dice", "left lung"]
    assert (dice[:2], dice[3], dice[5:]) == (["4", "0.812"], "0.875", ["0.500", "1.000", "0", "0"])
    assert rows["Dice", "no<dule"][:2] == ["2", "0.375"]
    assert rows["Dice", "no<dule"][-1] == "2"
    assert rows["HD95 [mm]", "no<dule"][:2] == ["3", "∞"]
    assert rows["HD95 [mm]", "no<dule"][-2:] == ["2", "1"]
    assert rows["Dice", "mean of the classes"][1] == "0.688"  # of 0.5, 0.875, 0.375 and 1
    assert detection[1:] == [["left lung", "4", "0", "0", "0"], ["no<dule", "1", "1", "1", "1"]]
    assert ["head", "unet"] in settings
    assert agreement[1][:3] == ["left lung", "4", "0"]
    assert agreement[2][:3] == ["no<dule", "3", "1"]
    assert "no<dule 0.5" not in found.text("b")
    assert cases[1] == ["a<b>.nii.gz", "left lung", "0.500", "2.00", "2.00", "1.00", f"{MINUS}1.00", f"{MINUS}50.0"]
    assert cases[2] == ["a<b>.nii.gz", "no<dule", NOTHING, NOTHING, "0", "0", "0", NOTHING]
    assert cases[6] == ["d.nii.gz", "no<dule", "0.000", "∞", "1.00", "0", f"{MINUS}1.00", f"{MINUS}100.0"]
    assert cases[8] == ["e.nii.gz", "no<dule", NOTHING, "∞", "0", "2.00", "+2.00", NOTHING]


def test_method_and_doubts_are_said() -> None:
    text = Page(render_evaluation(CASES, SCORES, CLASSES, SETTINGS, missing=["Surface Dice"])).text("p")
    assert "percentile bootstrap over the cases (2000 resamples, seed 0)" in text
    assert "fewer than about 20 cases such intervals are too narrow" in text
    assert "only one of prediction and reference has the class" in text
    assert "Lancet 1986;327:307-310" in text
    assert "Not computed by this evaluation: Surface Dice." in text
    many = [case(f"/data/{index}", (1.0,), (1.5,)) for index in range(20)]
    text = Page(render_evaluation(many, {"Dice": np.full((20, 1), 0.5)}, ["lung"], SETTINGS)).text("p")
    for absent in ("too narrow", "Infinite", "Left out: the metric", "Not computed"):
        assert absent not in text


def test_cases_of_a_patient_count_together() -> None:
    """Four alike of each of five patients: by case, the interval would be half as wide."""
    scores = {"Dice": np.repeat([0.2, 0.4, 0.5, 0.7, 0.9], 4)[:, None]}

    def interval(patients: list[str], caveats: tuple[str, ...] = ()) -> tuple[float, str]:
        cases = [Case(str(index), SHAPE, np.eye(4), (1.0,), (1.5,), name) for index, name in enumerate(patients)]
        found = Page(render_evaluation(cases, scores, ["lung"], SETTINGS, caveats=caveats))
        low, high = map(float, found.tables[0][1][4].split(" to "))
        return high - low, found.text("p")

    alone, text = interval([""] * 20, caveats=("3 of the 20 <cases> are known.", "Mind that."))
    assert text.startswith("20 cases, ")
    assert "3 of the 20 <cases> are known. Mind that." in text
    assert "independent" not in text
    together, text = interval([f"patient {index // 4}" for index in range(20)])
    assert text.startswith("20 cases of 5 patients, ")
    assert "bootstrap over the patients" in text
    assert "fewer than about 20 patients such intervals" in text
    assert "They take cases of one patient for independent." in text
    assert together > 1.7 * alone
    twice = [Case(str(index), SHAPE, np.eye(4), (1.0,), (1.5,), "one") for index in range(2)]
    page = render_evaluation(twice, {"Dice": np.array([[0.5], [0.75]])}, ["lung"], SETTINGS)
    assert "2 cases of 1 patient, " in Page(page).text("p")
    assert "95 % CI" not in page.split("Scores</h2>")[0]


def test_bland_altman_leaves_out_what_is_in_neither() -> None:
    (row,) = Page(render_evaluation(CASES, SCORES, CLASSES, SETTINGS)).tables[2][2:]
    # Differences 0.25, -1 and 2.
    assert row[3:5] == ["0.417", "0.833"]
    assert row[5].splitlines()[0] == "+0.417"
    assert row[6] == "1.51"


def test_one_case_and_class_in_none() -> None:
    scores = {"Dice": np.array([[0.5, NAN]])}
    found = Page(render_evaluation(CASES[:1], scores, CLASSES, SETTINGS, [pick("only case", 0)]))
    assert found.text("p").startswith("1 case,")
    assert [row[2:5] for row in found.tables[0][1:3]] == [["1", "0.500", NOTHING], ["0", NOTHING, NOTHING]]
    assert found.tables[2][1:] == [["left lung", "1", "0", "2.00", "1.00", f"{MINUS}1.00", NOTHING, NOTHING, NOTHING]]
    assert "Only case in pictures" in found.text("h2")
    nothing = [case("a", (0.0,), (0.0,))]
    found = Page(render_evaluation(nothing, {"Dice": np.array([[NAN]])}, ["lung"], SETTINGS))
    assert "Volumes" not in found.text("h2")


def test_pictures(tmp_path: Path) -> None:
    path = tmp_path / "e&f.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.random.RandomState(0).rand(*SHAPE).astype(np.float32), np.eye(4)), path)
    cases = [*CASES[:3], case(str(path), (5.0, 2.0), (5.0, 0.0))]
    found = Page(render_evaluation(cases, SCORES, CLASSES, SETTINGS, [pick("best", 3), pick("worst", 0)]))
    assert "Best and worst in pictures" in found.text("h2")
    assert "Best: e&f.nii.gz, mean Dice 1.000" in found.text("h3")
    pictures = [image for image in found.images if image["src"].startswith("data:image/png")]
    assert len(pictures) == 4
    assert all(decode(image["src"]).std() > 0 for image in found.images if "png" in image["src"])
    assert f"no<dule: Dice {NOTHING}, HD95 [mm] ∞; reference 0 mL, prediction 2.00 mL" in pictures[1]["alt"]
    # The other image is not there; its outlines are.
    assert found.text("p").count("could not be read for this page") == 1
    assert "e&f.nii.gz (best)" in found.text("th")


def test_classes_with_the_lowest_scores_are_drawn() -> None:
    count = MAX_CLASSES + 2
    names = [f"class {index}" for index in range(count)]
    scores = {"Dice": np.array([[0.9, 0.8, 0.1, NAN, 0.3, 0.2]])}
    many = [case("a", (1.0,) * count, (1.0,) * count)]
    found = Page(render_evaluation(many, scores, names, SETTINGS, [pick("best", 0, count)]))
    shown = [text for tag, text in found.texts if tag == "b" and text.startswith("class")]
    assert shown == ["class 2", "class 3", "class 4", "class 5"]
    assert "The 4 of 6 classes with the lowest Dice are shown." in found.text("p")
