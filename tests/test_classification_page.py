"""The page, rendered from made-up predictions."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pages import Page, decode

from med3d_nets.classification.calibration import class_probabilities
from med3d_nets.classification.page import CasePrediction, render_classification
from med3d_nets.classification.scores import score_classes, score_numbers
from med3d_nets.report_html import MINUS, NOTHING

TWO, THREE = ["be<nign", "cancer"], ["a", "b", "c"]
SETTINGS = {"variant": "resnet_10", "head": "classification", "temperature": 2.0}


def predictions(names: list[str], count: int = 60, labels: list[int] | None = None) -> list[CasePrediction]:
    random = np.random.RandomState(0)
    truth = labels or [place % len(names) for place in range(count)]
    logits = random.normal(0, 1, (len(truth), len(names))) + np.eye(len(names))[truth]
    return [
        CasePrediction(
            f"/data/c<{index}>&.nii.gz",
            label,
            tuple(row.tolist()),
            tuple(class_probabilities(row).tolist()),
            f"patient {index // 2}",
        )
        for index, (label, row) in enumerate(zip(truth, logits, strict=True))
    ]


def render(
    cases: list[CasePrediction], names: list[str], pictures: Any = None, chosen: Sequence[str] = (), **options: Any
) -> Page:
    known = [case for case in cases if case.label is not None]
    values, labels = [case.probabilities for case in known], [int(case.label or 0) for case in known]
    scores = score_classes(values, labels, names, [case.patient for case in known], **{"resamples": 200, **options})
    return Page(render_classification(cases, scores, names, SETTINGS, pictures, chosen))


def test_two_classes() -> None:
    cases = predictions(TWO)
    found = render(cases, TWO, thresholds=(0.25, 0.5))
    expected = score_classes([case.probabilities for case in cases], [case.label for case in cases], TWO)
    assert found.text("h1") == "Classification: resnet_10, classification head"
    assert found.text("p").startswith("60 cases of 30 patients, 20")
    assert [text for tag, text in found.texts if tag == "b"] == [
        f"{each.value:.3f}" for each in (expected.accuracy, expected.balanced_accuracy, expected.auc)
    ]
    spans = found.text("span")
    assert spans.count("95 % CI 0.") == 3
    assert "be<nign for every case would have 0.500" in spans
    scores, points, confusion, worst, settings, _ = found.tables
    assert scores[0] == ["score", "value", "95 % CI"]
    assert scores[3][:2] == ["AUC", f"{expected.auc.value:.3f}"]
    assert re.fullmatch(r"0\.\d{3} to \d\.\d{3}", scores[3][2])
    assert [row[0] for row in points[1:]] == ["0.25", "0.5"]
    assert points[2][1] == f"{expected.operating_points[0].sensitivity.value:.3f}"
    assert [row[1:] for row in confusion[1:]] == [[str(n) for n in row] for row in expected.confusion.tolist()]
    assert len(worst) == 11
    assert ["temperature", "2.0"] in settings
    assert "percentile bootstrap over the patients, each with all its cases (200 resamples, seed 0)" in found.text("p")
    assert len(found.images) == 3  # curves, reliability and confusion


def test_more_classes() -> None:
    found = render(predictions(THREE), THREE)
    assert "AUC, mean of the classes" in found.text("span")
    each = found.tables[1]
    assert [row[:2] for row in each] == [["class", "cases"], ["a", "20"], ["b", "20"], ["c", "20"]]
    assert "Of the highest probability of each case" in found.text("p")


def test_curves_of_many_classes_are_those_with_the_lowest_auc() -> None:
    names = [f"class {place}" for place in range(9)]
    found = render(predictions(names, 180), names)
    assert "The 7 of 9 classes with the lowest AUC are drawn." in found.text("p")
    table = sorted((float(row[6]), row[0]) for row in found.tables[1][1:])
    drawn = "".join(decode(found.images[0]["src"]).itertext())
    assert [name for _, name in table if f"{name}: AUC" in drawn] == [name for _, name in table[:7]]


def test_calibration_error_is_said() -> None:
    cases = predictions(TWO)
    found = render(cases, TWO)
    error = score_classes([case.probabilities for case in cases], [case.label for case in cases], TWO).reliability.error
    assert found.images[1]["alt"] == f"Reliability diagram. Expected calibration error (ECE): {error:.3f}."
    assert f"ECE {error:.3f}" in "".join(decode(found.images[1]["src"]).itertext())


def test_few_cases_are_said() -> None:
    found = render(predictions(TWO, labels=[0] * 30 + [1] * 5), TWO)
    text = found.text("p")
    assert "Few cases of cancer (5): what is said of them is uncertain." in text
    assert "With fewer than about 20 patients confidence intervals are too narrow." in text
    found = render(predictions(TWO, 80), TWO)
    assert "Few cases" not in found.text("p")
    assert "too narrow" not in found.text("p")


def test_class_without_cases() -> None:
    found = render(predictions(TWO, labels=[1] * 25), TWO)
    assert "No case of be<nign: there is no AUC" in found.text("p")
    assert [text for tag, text in found.texts if tag == "b"][2] == NOTHING
    assert "ROC" not in found.text("h2")
    assert "Sensitivity and specificity" in found.text("h2")


def test_interval_without_width_is_explained() -> None:
    cases = [
        CasePrediction(f"{index}", index % 2, (0.0, 6.0 * (index % 2) - 3), (0.95, 0.05)[:: 1 - 2 * (index % 2)])
        for index in range(30)
    ]
    found = render(cases, TWO)
    assert found.tables[0][1] == ["accuracy", "1.000", "1.000 to 1.000"]
    assert "After n cases without an error, about 3/n of all such cases may still be wrong" in found.text("p")
    assert "3/n" not in render(predictions(TWO, 200), TWO).text("p")


def test_skipped_resamples_are_counted() -> None:
    found = render(predictions(TWO, labels=[0] * 30 + [1] * 2), TWO)
    assert re.search(r"as where a class was not drawn, are left out: [1-9]\d* at most", found.text("p"))
    assert "left out" not in render(predictions(TWO), TWO, resamples=0).text("p")


def test_most_wrong_come_first_with_their_pictures() -> None:
    cases = predictions(TWO)
    unknown = CasePrediction("/data/unknown.nii.gz", None, (0.0, 0.0), (0.5, 0.5))
    order = sorted(cases, key=lambda case: case.probabilities[int(case.label or 0)])[:10]
    values = np.random.RandomState(0).rand(8, 9)
    pictures = {order[place].file: (values, values, 2.0) for place in (1, 3)} | {cases[0].file: (values, values, 1.0)}
    found = render([unknown, *cases], TWO, pictures)
    worst = found.tables[3]
    assert worst[0] == ["no.", "case", "patient", "true class", "its probability", "highest probabilities"]
    assert [row[1] for row in worst[1:]] == [case.file.removeprefix("/data/") for case in order]
    first = order[0]
    label = int(first.label or 0)
    right, wrong = f"{first.probabilities[label]:.3f}", f"{first.probabilities[1 - label]:.3f}"
    likeliest = f"{TWO[1 - label]} {wrong}, {TWO[label]} {right}"
    assert worst[1] == ["1", first.file[6:], first.patient, TWO[label], right, likeliest]
    (shown,) = [image for image in found.images if "image/png" in image["src"]]
    assert shown["alt"] == "Slices of cases 2, 4 of the table, with saliency maps."
    caption = found.text("figcaption")
    assert "Left: the axial slice with the most saliency, as the network saw it. Right: Grad-CAM" in caption
    assert "of the predicted class over it" in caption
    assert "middle slices" not in caption
    plain = render(cases, TWO, {order[0].file: (values, None, 1.0)})
    assert "Axial slices through the middle" in plain.text("figcaption")
    assert "aliency" not in plain.text("figcaption")
    assert "Chosen cases" not in plain.text("h2")


def test_pictures_without_saliency_are_said() -> None:
    """Where nothing speaks for the prediction, the map is empty."""
    cases = predictions(TWO)
    order = sorted(cases, key=lambda case: -case.loss)
    values = np.random.RandomState(0).rand(8, 9)
    pictures = {case.file: (values, 0 * values, 1.0) for case in order[:2]} | {order[2].file: (values, values, 1.0)}
    caption = render(cases, TWO, pictures).text("figcaption")
    assert "Nothing that raises the class was found in cases 1, 2: middle slices, no colours." in caption


def test_chosen_cases_have_their_own_section() -> None:
    cases = predictions(TWO)
    chosen = [cases[7], cases[3]]
    values = np.random.RandomState(0).rand(8, 9)
    pictures = {case.file: (values, values, 1.0) for case in chosen[1:]}
    found = render(cases, TWO, pictures, [case.file for case in chosen])
    titles = [text for tag, text in found.texts if tag == "h2"]
    assert titles[-3:-1] == ["Chosen cases", "The cases it got most wrong"]
    named, worst = found.tables[3:5]
    assert named[0] == worst[0]
    for place, (row, case) in enumerate(zip(named[1:], chosen, strict=True), 1):
        label = int(case.label or 0)
        facts = [str(place), case.file.removeprefix("/data/"), case.patient, TWO[label]]
        assert row[:5] == [*facts, f"{case.probabilities[label]:.3f}"]
    shown = [image["alt"] for image in found.images if "image/png" in image["src"]]
    assert shown[0] == "Slices of case 2 of the table, with saliency maps."


def test_regression() -> None:
    random = np.random.RandomState(0)
    truth = random.normal(50, 10, 40)
    cases = [
        CasePrediction(f"/x/{index}.nii", float(number), (float(number + random.normal(0, 3)),))
        for index, number in enumerate(truth)
    ]
    cases[7] = CasePrediction("/x/7.nii", 40.0, (90.5,))
    scores = score_numbers([case.logits[0] for case in cases], [case.label for case in cases], resamples=100)
    pictures = {"/x/7.nii": (np.eye(4), np.eye(4), 1.0)}
    found = Page(render_classification(cases, scores, ["age <y>"], SETTINGS, pictures, ["/x/2.nii"]))
    assert found.text("h1").startswith("Regression: ")
    assert found.text("p").startswith("40 cases, 20")
    table, chosen, worst, *_ = found.tables
    assert [row[0] for row in table[1:]] == ["MAE", "RMSE", "R²", "Pearson r", "bias", "lower limit", "upper limit"]
    assert table[1][1] == f"{scores.mae.value:.3f}"
    assert table[6][1] == f"{scores.agreement.lower:.3f}".replace("-", MINUS)
    assert worst[:2] == [
        ["no.", "case", "patient", "true age <y>", "predicted", "difference"],
        ["1", "7.nii", "", "40.000", "90.500", "50.500"],
    ]
    assert chosen[0] == worst[0]
    assert chosen[1][:4] == ["1", "2.nii", "", f"{truth[2]:.3f}"]
    assert len(found.images) == 2
    assert "of the predicted number over it" in found.text("figcaption")
    assert "age <y>" in "".join(decode(found.images[0]["src"]).itertext())


@pytest.mark.parametrize(
    ("case", "loss"),
    [
        (CasePrediction("a", 1, (0.0, 1.0), (0.75, 0.25)), math.log(4)),
        (CasePrediction("a", 1, (0.0, -9.0), (1.0, 0.0)), math.inf),
        (CasePrediction("a", 2.5, (4.0,)), 1.5),
        (CasePrediction("a", None, (4.0,)), math.nan),
    ],
)
def test_loss(case: CasePrediction, loss: float) -> None:
    assert case.loss == pytest.approx(loss, nan_ok=True)


def test_single_case() -> None:
    found = render(predictions(TWO, labels=[1]), TWO)
    assert found.text("p").startswith("1 case, 20")
    assert all(row[2] == NOTHING for row in found.tables[0][1:])
