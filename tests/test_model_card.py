from __future__ import annotations

import re
from pathlib import Path

import pytest

from med3d_nets.errors import Med3dError
from med3d_nets.model_card import Score, Trained, fill_metadata, fill_section, read_scores
from med3d_nets.settings import Settings

NAMES = ["background", "anterior", "posterior"]
HEADER = "metric,mean,median,min,max,cases\n"


def test_scores_are_read_without_those_that_no_case_had(tmp_path: Path) -> None:
    path = tmp_path / "summary.csv"
    path.write_text(HEADER + "Dice anterior,0.5,0.5,0.5,0.5,1\nHD95 [mm] posterior,nan,nan,nan,nan,0\n")
    scores = read_scores(path, NAMES)
    assert scores == [Score("Dice anterior", 0.5, 1)]
    assert scores[0].label == "evaluation: Dice anterior, mean of 1 case"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            HEADER + "Dice liver,0.9,0.9,0.9,0.9,3\n",
            "has the metrics Dice liver, expected some of the classes anterior",
        ),
        ("a,b\n1,2\n", "not a metrics_summary.csv with the columns metric, mean, cases"),
        ("metric,mean,cases\nDice anterior,good,3\n", "could not convert string to float: 'good'"),
        ("metric,mean,cases\nDice anterior\n", "not a metrics_summary.csv"),
        (HEADER, "has no metric"),
    ],
)
def test_scores_of_another_network_or_form_are_refused(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "summary.csv"
    path.write_text(text)
    with pytest.raises(Med3dError, match=re.escape(f"{path}: ") + ".*" + re.escape(expected)):
        read_scores(path, NAMES)


def test_missing_scores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Med3dError, match=r"none\.csv: no such file; evaluation writes"):
        read_scores(tmp_path / "none.csv", NAMES)


def test_a_section_is_replaced_between_its_markers_alone() -> None:
    text = "a\n<!-- weights -->\nold\n<!-- /weights -->\nb <!-- performance -->\n"
    filled = fill_section(text, "weights", r"new \1" + "\n", "README.md")
    assert filled == "a\n<!-- weights -->\nnew \\1\n<!-- /weights -->\nb <!-- performance -->\n"
    assert fill_section(filled, "weights", "old\n", "README.md") == text


@pytest.mark.parametrize(("times", "found"), [(0, "has no section between"), (2, "has 2 sections between")])
def test_a_section_must_be_there_once(times: int, found: str) -> None:
    with pytest.raises(Med3dError, match=f"README.md: {found} <!-- weights -->"):
        fill_section("<!-- weights -->\n<!-- /weights -->\n" * times, "weights", "", "README.md")


def trained(**changes: object) -> Trained:
    settings = {"variant": "resnet_10", "head": "medicalnet", "recipe": "whole", "in_channels": 1}
    settings |= {"class_names": NAMES, "input_size": [8, 9, 10], **changes}
    return Trained(Path("model.pt"), "ab", Settings(**settings), {"validation": {"val_mean_dice": None}})


def test_text_of_the_users_cannot_break_the_card() -> None:
    card = trained(class_names=["background", "a | b\n<!-- /weights -->"]).weights("name")
    assert "| classes | 0 background, 1 a \\| b &lt;!-- /weights --> |" in card


def test_weights_of_another_file_are_not_called_published() -> None:
    card = trained(pretrained={"file": "mine.pt", "sha256": "cd", "tensors": 72}).weights("name")
    assert "mine.pt (SHA-256 cd, not the published resnet_10.pth)" in card


def test_a_score_that_is_no_number_is_no_score() -> None:
    assert trained().eval_metrics == {}
    assert trained().performance() == "No score is recorded for the packaged weights.\n"


def test_metadata_is_described_once_however_often_it_is_filled() -> None:
    tensor = {"num_channels": 9, "spatial_shape": [], "channel_def": {}}
    data = {"inputs": {"image": dict(tensor)}, "outputs": {"pred": dict(tensor)}}
    metadata = {"description": "A network", "eval_metrics": {"invented": 1.0}, "network_data_format": data}
    for _ in range(2):
        fill_metadata(metadata, trained(), "metadata.json")
    assert metadata["description"].count("packaged weights: trained from random weights") == 1
    assert metadata["eval_metrics"] == {}
    assert data["outputs"]["pred"]["spatial_shape"] == [8, 9, 10]
    with pytest.raises(Med3dError, match=r"metadata\.json: lacks network_data_format"):
        fill_metadata({}, trained(), "metadata.json")
