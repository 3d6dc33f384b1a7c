"""The viewer's page in a real browser: it loads, shows slices the right way round, and takes keys, mouse and touch."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from matplotlib import image as pictures
from numpy.typing import NDArray
from viewed import AFFINES, SIDES, write_sides

from med3d_nets.report_plots import PREDICTION, REFERENCE
from med3d_nets.viewer import view

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
WebDriverWait = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait

pytestmark = pytest.mark.slow

NAMES = ("oblique", "flipped")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--no-first-run", "--window-size=900,600", "--disable-dev-shm-usage"),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),  # WebGL without a GPU
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
SIDES_OF_THE_WORLD = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}
"""By plane, the world's axes whose upper ends are at the left and at the top of the picture."""

Pixels = NDArray[np.float32]


class Opened:
    """A page in a browser.

    Attributes:
        browser: that shows it.
        files: of its cases, by name.
    """

    def __init__(self, browser: Any, files: dict[str, dict[str, Path]]) -> None:
        self.browser = browser
        self.files = files

    def wait(self, index: int) -> None:
        """Until a case is shown."""
        WebDriverWait(self.browser, 120).until(
            lambda browser: browser.execute_script("return document.body.dataset.ready") == str(index)
        )

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.browser).send_keys(*keys).perform()

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return str(self.find(selector).text)

    def pixels(self) -> Pixels:
        """Of the canvas, from 0 to 255, ``(row, column, colour)``, without the labels over it."""
        self.browser.execute_script("document.querySelector('#labels').hidden = true")
        shot = self.find("#canvas").screenshot_as_png
        self.browser.execute_script("document.querySelector('#labels').hidden = false")
        return np.asarray(pictures.imread(io.BytesIO(shot), format="png"), np.float32)[..., :3] * 255

    def place(self) -> tuple[NDArray[np.float64], tuple[int, ...], float]:
        """Where the crosshair is, in mm and in the file's voxels, and the image's value there."""
        numbers = r"(-?[\d.]+)"
        found = re.fullmatch(
            rf"R {numbers} +A {numbers} +S {numbers} mm · voxel (\d+), (\d+), (\d+)", self.text("#place")
        )
        assert found
        value = float(self.text("#value").split(" ")[0])
        return np.array([float(text) for text in found.groups()[:3]]), tuple(map(int, found.groups()[3:])), value


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """A page with an oblique and a flipped volume, loaded from a file; the crosshair is hidden."""
    chrome = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not chrome or not driver:
        pytest.skip("needs Chromium and its driver (Debian: chromium, chromium-driver)")
    folder = tmp_path_factory.mktemp("viewer")
    files = {name: write_sides(folder, name) for name in NAMES}
    listed = folder / "list.txt"
    listed.write_text("".join(f"images/{name}.nii.gz labels/{name}.nii.gz\n" for name in NAMES))
    options = {"window": [0, 300], "class_names": ["background", "ball"]}
    view(str(folder / "predictions"), images=str(listed), out=str(folder / "page.html"), **options)
    settings = webdriver.ChromeOptions()
    settings.binary_location = chrome
    settings.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        settings.add_argument(flag)
    browser = webdriver.Chrome(options=settings, service=webdriver.ChromeService(driver))
    try:
        browser.get((folder / "page.html").as_uri())
        page = Opened(browser, files)
        page.wait(0)
        page.press("c")
        yield page
    finally:
        browser.quit()


@pytest.fixture(autouse=True)
def as_at_the_start(opened: Opened) -> Iterator[None]:
    """Three planes of the first case, with the truth's contour and the prediction filled."""
    yield
    for layer, key, kind in (("truth", "t", "contour"), ("prediction", "p", "fill")):
        opened.press(key * (opened.find(f"#{layer} .visible").get_attribute("aria-pressed") == "false"))
        opened.press(key.upper() * (opened.find(f"#{layer}").get_attribute("data-kind") != kind))
    if opened.find("#case").get_attribute("value") != "0":
        opened.press("[")
        opened.wait(0)
    opened.press("4", "r")


def differ(one: Pixels, other: Pixels) -> bool:
    return one.shape != other.shape or bool((np.abs(one - other).max(-1) > 8).sum() > 50)


def test_it_loads_from_the_file_alone(opened: Opened) -> None:
    assert opened.text("h1") == "predictions: 2 cases"
    assert not opened.find("#message").is_displayed()
    loaded = opened.browser.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert [address for address in loaded if not address.startswith(("data:", "blob:"))] == []
    assert [entry["message"] for entry in opened.browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_it_shows_slices(opened: Opened) -> None:
    first = opened.pixels()
    assert first.std() > 20
    assert (first.max(-1) > 20).mean() > 0.2
    at = opened.text("#slice-title")
    opened.press("k", Keys.ARROW_UP)
    assert opened.text("#slice-title") != at
    assert differ(opened.pixels(), first)
    opened.press("j", Keys.ARROW_DOWN)
    assert opened.text("#slice-title") == at
    assert not differ(opened.pixels(), first)


@pytest.mark.parametrize(("key", "layer"), [("t", "truth"), ("p", "prediction")])
def test_overlays_can_be_hidden_and_drawn_in_another_way(opened: Opened, key: str, layer: str) -> None:
    first = opened.pixels()
    opened.press(key)
    hidden = opened.pixels()
    assert differ(hidden, first)
    opened.find(f"#{layer} .visible").click()
    assert not differ(opened.pixels(), first)
    opened.press(key.upper())
    assert differ(opened.pixels(), first)
    assert differ(opened.pixels(), hidden)
    opened.press(key.upper())
    assert not differ(opened.pixels(), first)


def near(pixels: Pixels, colour: str) -> int:
    """How many pixels have about a colour, ``#rrggbb``."""
    wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return int((np.abs(pixels - wanted).max(-1) < 30).sum())


def test_contours_have_the_colours_of_the_legend(opened: Opened) -> None:
    opened.press("P")
    both = opened.pixels()
    assert near(both, REFERENCE) > 100
    assert near(both, PREDICTION) > 100
    opened.press("t")
    assert near(opened.pixels(), REFERENCE) < 20


def test_both_can_be_contours_and_the_opacity_is_that_of_what_is_filled(opened: Opened) -> None:
    opened.press("P")
    contours = opened.pixels()
    opened.press("+", "+")
    assert not differ(opened.pixels(), contours)
    opened.press("P")
    filled = opened.pixels()
    opened.press("-", "-")
    assert differ(opened.pixels(), filled)
    opened.press("t", "p")
    plain = opened.pixels()
    assert np.ptp(plain, axis=-1).max() < 8, "an image without overlays is grey"
    opened.press("t", "p")
    assert np.ptp(opened.pixels(), axis=-1).max() > 60


@pytest.mark.parametrize("index", range(len(NAMES)))
@pytest.mark.parametrize(("key", "plane"), [("1", "axial"), ("2", "coronal"), ("3", "sagittal")])
def test_slices_are_the_right_way_round(opened: Opened, index: int, key: str, plane: str) -> None:
    opened.press(*"]" * index)
    opened.wait(index)
    opened.press(key, "t", "p")
    grey = opened.pixels().mean(-1)
    letters = [label.text for label in opened.browser.find_elements("css selector", "#labels span")]
    opened.press("t", "p")
    assert letters[:4] == list({"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}[plane])
    rows, columns = (np.flatnonzero((grey > 15).any(axis)) for axis in (1, 0))
    picture = grey[rows[0] : rows[-1], columns[0] : columns[-1]]
    height, width = picture.shape
    quarters = {(y, x): picture[a, b].mean() for y, a in cut(height).items() for x, b in cut(width).items()}
    left, top = (SIDES[axis] / 300 * 255 for axis in SIDES_OF_THE_WORLD[plane])
    for end in (0, 1):
        assert quarters[end, 0] - quarters[end, 1] == pytest.approx(left, abs=12)
        assert quarters[0, end] - quarters[1, end] == pytest.approx(top, abs=12)


def cut(length: int) -> dict[int, slice]:
    """The outer thirds of an axis."""
    return {0: slice(0, length // 3), 1: slice(-(length // 3), None)}


@pytest.mark.parametrize("index", range(len(NAMES)))
def test_places_are_those_of_the_affine(opened: Opened, index: int) -> None:
    opened.press(*"]" * index)
    opened.wait(index)
    name = NAMES[index]
    voxels = np.asanyarray(nibabel.load(opened.files[name]["image"]).dataobj)
    seen = set()
    for keys in (["1", "k", "k", "k"], ["2", "j", "j"], ["3", Keys.PAGE_UP]):
        opened.press(*keys)
        mm, voxel, value = opened.place()
        assert nibabel.affines.apply_affine(AFFINES[name], voxel) == pytest.approx(mm, abs=0.06)
        assert value == voxels[voxel]
        seen.add(voxel)
    assert len(seen) == 3
    assert "truth: " in opened.text("#value")


def test_a_case_is_chosen_from_the_list(opened: Opened) -> None:
    first = opened.pixels()
    options = [option.text for option in opened.browser.find_elements("css selector", "#case option")]
    assert [text.split(",")[0] for text in options] == list(NAMES)
    opened.find("#case option:nth-child(2)").click()
    opened.wait(1)
    assert differ(opened.pixels(), first)
    dice = float(opened.text("#legend td:nth-child(2)"))
    assert f"mean Dice {dice:.3f}" in options[1]


def test_a_window_is_chosen(opened: Opened) -> None:
    first = opened.pixels()
    opened.find("#windows button:nth-child(2)").click()
    assert differ(opened.pixels(), first)
    opened.press("r")
    assert not differ(opened.pixels(), first)


def test_the_zoom_keeps_the_crosshair(opened: Opened) -> None:
    first, at = opened.pixels(), opened.text("#place")
    opened.press("z", "z")
    assert float(opened.find("#zoom").get_attribute("value")) == pytest.approx(1.55, abs=0.03)
    assert differ(opened.pixels(), first)
    assert opened.text("#place") == at
    opened.press("Z", "Z")
    assert not differ(opened.pixels(), first)


def test_the_wheel_and_dragging_are_niivues(opened: Opened) -> None:
    opened.press("1")
    at, window = opened.text("#slice-title"), opened.text("#window-values")
    canvas = opened.find("#canvas")
    wheel = webdriver.common.actions.wheel_input.ScrollOrigin.from_element(canvas)
    webdriver.ActionChains(opened.browser).scroll_from_origin(wheel, 0, 120).perform()
    assert opened.text("#slice-title") != at
    mouse = webdriver.common.actions.action_builder.ActionBuilder(opened.browser)
    mouse.pointer_action.move_to(canvas).pointer_down(button=2).move_by(30, 40).pointer_up(button=2)
    mouse.perform()
    assert opened.text("#window-values") != window


def test_help_lists_the_keys(opened: Opened) -> None:
    opened.press("?")
    assert opened.find("#help").is_displayed()
    assert "next slice" in opened.text("#help")
    opened.press("t")
    assert opened.find("#truth .visible").get_attribute("aria-pressed") == "true", "keys wait until it is closed"
    opened.press(Keys.ESCAPE)
    assert not opened.find("#help").is_displayed()


def test_a_tap_moves_the_crosshair(opened: Opened) -> None:
    opened.press("1")
    before, *_ = opened.place()
    box = opened.find("#canvas").rect
    point = {"x": box["x"] + box["width"] * 0.4, "y": box["y"] + box["height"] * 0.4}
    for kind, points in (("touchStart", [point]), ("touchEnd", [])):
        opened.browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    WebDriverWait(opened.browser, 10).until(lambda _: not np.allclose(opened.place()[0], before))
    after, *_ = opened.place()
    assert after[0] > before[0], "left on the screen is the patient's right"
    assert after[1] > before[1]
