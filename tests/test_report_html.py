"""The pieces of a page."""

from __future__ import annotations

import math

import pytest
from pages import Page

from med3d_nets.report_html import (
    MINUS,
    NOTHING,
    cards,
    details,
    figure,
    flatten,
    interval,
    note,
    number,
    page,
    section,
    settings_section,
    settings_title,
    table,
    volume,
)
from med3d_nets.settings import Settings

EVIL = "a<b>&\"'</td><script src=http://x>"
PICTURE = "data:image/png;base64,AAAA"


def test_everything_that_is_text_is_escaped() -> None:
    parts = [
        cards([(EVIL, EVIL, [EVIL])]),
        note(EVIL),
        table([EVIL, EVIL], [[EVIL, EVIL]]),
        figure(PICTURE, EVIL),
        details(EVIL, note(EVIL)),
        settings_section({"variant": EVIL, EVIL: {EVIL: EVIL}}),
    ]
    text = page(EVIL, EVIL, section(EVIL, *parts))
    assert "<script" not in text
    assert "<b>&" not in text
    found = Page(text)
    assert found.text("h1") == found.text("title") == EVIL
    assert found.tables[0] == [[EVIL, EVIL], [EVIL, EVIL]]
    assert found.images == [{"alt": EVIL, "src": PICTURE}]


def test_page_is_read_again_only_if_wanted() -> None:
    assert 'http-equiv="refresh" content="30"' in page("a", "b", refresh=30)
    assert "refresh" not in page("a", "b")


def test_sections_without_content_are_left_out() -> None:
    assert section("title", "", "") == note() == note("", "") == ""
    assert Page(page("a", "b", "", section("c", ""))).text("h2") == ""


def test_table_merges_what_repeats() -> None:
    text = table(["case", "n"], [["a", "1"], ["a", "2"], ["b", "3"], ["a", "4"]])
    assert text.count("rowspan") == 1
    assert Page(page("", "", text)).tables == [[["case", "n"], ["a", "1"], ["a", "2"], ["b", "3"], ["a", "4"]]]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.12345, "0.123"), (-1.5, f"{MINUS}1.500"), (math.nan, NOTHING), (math.inf, "∞"), (-math.inf, f"{MINUS}∞")],
)
def test_numbers(value: float, expected: str) -> None:
    assert number(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, "0"), (0.01234, "0.012"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234"), (math.nan, NOTHING)],
)
def test_volumes(value: float, expected: str) -> None:
    assert volume(value) == expected


def test_signs_and_intervals() -> None:
    assert (volume(2, sign=True), volume(-2, sign=True), volume(0, sign=True)) == ("+2.00", f"{MINUS}2.00", "0")
    assert interval((0.5, math.inf), 1) == "0.5 to ∞"
    assert interval((math.nan, math.nan)) == NOTHING


def test_settings_are_shown_whole() -> None:
    settings = Settings(
        "resnet_10", "medicalnet", "whole", 1, ["background", "lung"], [8, 9, 10], pretrained={"tensors": 3}
    )
    assert settings_title(settings) == "resnet_10, medicalnet head, whole recipe"
    names, versions = Page(page("", "", settings_section(settings))).tables
    assert ["pretrained.tensors", "3"] in names
    assert ["class_names", '["background", "lung"]'] in names
    assert {row[0] for row in names} > {"variant", "head", "recipe", "in_channels", "input_size"}
    assert versions[0] == ["package", "version"]
    assert {row[0] for row in versions} >= {"med3d_nets", "monai", "torch", "numpy", "python"}
    assert flatten({"a": {}, "b": None}) == [("a", "{}"), ("b", "null")]


def test_versions_of_the_training_stand_beside_those_of_the_page() -> None:
    content = {"variant": "resnet_10", "versions": {"monai": "1.2.3"}}
    names, versions = Page(page("", "", settings_section(content))).tables
    assert names == [["setting", "value"], ["variant", "resnet_10"]]
    assert next(row for row in versions if row[0] == "monai")[2] == "1.2.3"
    assert content["versions"] == {"monai": "1.2.3"}
