"""The handlers, driven by plain engines and by a small training."""

from __future__ import annotations

import json
import logging
import math
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from pages import Page, decode
from small_training import CLASSES, SETTINGS, Parts, at

from med3d_nets import report_page
from med3d_nets.errors import Med3dError
from med3d_nets.handlers import BestModelSaver, ResumableSaver
from med3d_nets.report_html import NOTHING
from med3d_nets.report_page import EvaluationPage, TrainingPage, check_training_page

AFFINE = np.diag([-2.0, 1.0, 2.5, 1.0])  # 5 cubic millimetres a voxel
SHAPE = (8, 10, 6)
MILLILITRES = 0.005


def one_hot(*boxes: tuple[slice, ...] | None) -> MetaTensor:
    volume = torch.zeros(3, *SHAPE)
    for channel, box in enumerate(boxes, 1):
        if box:
            volume[(channel, *box)] = 1
    volume[0] = 1 - volume[1:].amax(0)
    return MetaTensor(volume, affine=torch.from_numpy(AFFINE))


BOX, SMALL = np.s_[2:6, 2:6, 1:4], np.s_[6:8, 7:9, 4:6]


def batch(folder: Path, name: str, prediction: MetaTensor, reference: MetaTensor) -> dict[str, Any]:
    """One case, its image written."""
    path = folder / name
    if not path.exists():
        voxels = np.random.RandomState(len(name)).rand(*SHAPE).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), path)
    meta = {"filename_or_obj": str(path), "original_affine": AFFINE}
    return {"image": MetaTensor(torch.zeros(1, 3, 3, 3), meta=meta), "pred": prediction, "label": reference}


@pytest.fixture
def items(tmp_path: Path) -> list[dict[str, Any]]:
    """Four cases; the third lacks the second class, the fourth has it in the prediction alone."""
    truth = one_hot(BOX, SMALL)
    return [
        batch(tmp_path, "a<b>&c.nii.gz", truth, truth),
        batch(tmp_path, "bad.nii.gz", one_hot(np.s_[0:2, 2:6, 1:4], None), truth),
        batch(tmp_path, "lack.nii.gz", one_hot(np.s_[2:5, 2:6, 1:4], None), one_hot(BOX, None)),
        batch(tmp_path, "false.nii.gz", truth, one_hot(BOX, None)),
    ]


DICE = [[1.0, 1.0], [0.0, 0.0], [0.8, math.nan], [1.0, math.nan]]
HD95 = [[0.0, 0.0], [4.0, math.inf], [2.0, math.nan], [0.0, math.inf]]


def evaluate(handler: Any, items: list[dict[str, Any]], size: int = 2, **details: Any) -> Engine:
    """An engine that has been through the cases as a MONAI evaluator would, ``size`` cases an iteration."""

    def step(engine: Engine, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{name: case[name] for name in ("pred", "label")} for case in cases]

    engine = Engine(step)
    engine.state.metric_details = {
        name: torch.tensor(rows) for name, rows in (details or {"val_mean_dice": DICE, "val_hd95": HD95}).items()
    }
    handler.attach(engine)
    engine.run([items[start : start + size] for start in range(0, len(items), size)])
    return engine


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_evaluation_page(items: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    items[0]["patient"] = items[2]["dicom_patient"] = "somebody"
    page = EvaluationPage(str(tmp_path / "new"), CLASSES, SETTINGS, caveats=["Seen in training."])
    evaluate(page, items)
    path = tmp_path / "new" / "report" / "index.html"
    assert [file.name for file in path.parent.iterdir()] == ["index.html"]
    found = read(path)
    assert found.text("h1") == "Evaluation: resnet_10, medicalnet head, whole recipe"
    cases = found.tables[3]
    assert cases[1][:6] == ["a<b>&c.nii.gz (best)", "left lung", "1.000", "0.00", "0.240", "0.240"]
    assert cases[2][4:6] == ["0.040", "0.040"]
    assert cases[5][:6] == ["lack.nii.gz", "left lung", "0.800", "2.00", "0.240", "0.180"]
    assert cases[6][1:6] == ["nodule", NOTHING, NOTHING, "0", "0"]
    assert cases[8][1:6] == ["nodule", NOTHING, "∞", "0", "0.040"]
    assert [cases[3][0], cases[7][0]] == ["bad.nii.gz (worst)", "false.nii.gz (median)"]
    assert "Best, median and worst in pictures" in found.text("h2")
    pictures = [decode(image["src"]) for image in found.images if "png" in image["src"]]
    assert len(pictures) == 6  # two classes of three cases
    assert all(picture.std() > 0.05 for picture in pictures)
    assert "could not be read" not in found.text("p")
    texts = [record.getMessage() for record in caplog.records if record.name == "med3d_nets.report_page"]
    assert texts == ["not on the page, as the evaluator does not compute it: Surface Dice", f"written: {path}"]
    assert "Not computed by this evaluation: Surface Dice." in found.text("p")
    assert found.text("p").startswith("4 cases of 3 patients, ")
    assert "Seen in training." in found.text("p")


def test_evaluator_may_run_again(items: list[dict[str, Any]], tmp_path: Path) -> None:
    page = EvaluationPage(str(tmp_path), CLASSES, SETTINGS, {"val_mean_dice": "Dice"}, n_pictures=0)
    evaluate(page, items)
    evaluate(page, items[:1], val_mean_dice=DICE[:1])
    assert [row[0] for row in read(page.path).tables[3][1:]] == ["a<b>&c.nii.gz"] * 2


def test_without_pictures(items: list[dict[str, Any]], tmp_path: Path) -> None:
    page = EvaluationPage(str(tmp_path), CLASSES, SETTINGS, {"val_mean_dice": "Dice"}, n_pictures=0)
    evaluate(page, items, size=1)
    assert page.cuts == [((), ())] * 4
    assert not [image for image in read(page.path).images if "png" in image["src"]]


def test_label_without_affine_has_that_of_the_image(items: list[dict[str, Any]], tmp_path: Path) -> None:
    plain = [{**item, "label": item["label"].as_tensor()} for item in items]
    page = EvaluationPage(str(tmp_path), CLASSES, SETTINGS, n_pictures=0)
    evaluate(page, plain)
    assert page.cases[0].reference == pytest.approx((48 * MILLILITRES, 8 * MILLILITRES))


def test_image_that_is_gone(items: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bad.nii.gz").unlink()
    page = EvaluationPage(str(tmp_path), CLASSES, SETTINGS)
    evaluate(page, items)
    found = read(page.path)
    assert found.text("p").count("could not be read for this page") == 1
    assert len([image for image in found.images if "png" in image["src"]]) == 6
    assert "bad.nii.gz: cannot be drawn" in caplog.text


def test_pages_do_not_overwrite(items: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "report" / "index.html"
    path.parent.mkdir()
    path.write_text("kept")
    with pytest.raises(Med3dError) as caught:
        evaluate(EvaluationPage(str(tmp_path), CLASSES, SETTINGS), items)
    assert str(caught.value) == f"{path}: exists already; give another --output_dir or pass --overwrite True"
    assert path.read_text() == "kept"
    evaluate(EvaluationPage(str(tmp_path), CLASSES, SETTINGS, overwrite=True, n_pictures=0), items)
    assert "Evaluation" in read(path).text("h1")
    engine, optimizer = Engine(lambda engine, batch: None), torch.optim.SGD([torch.zeros(1)])
    path.with_name("training.html").write_text("kept")
    best = BestModelSaver(torch.nn.Linear(1, 1), str(tmp_path), SETTINGS)
    TrainingPage(str(tmp_path), CLASSES, best, optimizer, engine).attach(engine)
    with pytest.raises(Med3dError, match=r"training\.html: exists already"):
        engine.run([0])


def test_page_that_fails_leaves_the_old_one(items: list[dict[str, Any]], tmp_path: Path) -> None:
    page = EvaluationPage(str(tmp_path), CLASSES, SETTINGS, n_pictures=0)
    evaluate(page, items)
    before = page.path.read_bytes()
    with pytest.raises(
        Med3dError, match="none of the metrics val_mean_dice, val_hd95, val_surface_dice; its own: other"
    ):
        evaluate(page, items, other=DICE)
    assert page.path.read_bytes() == before
    assert [file.name for file in page.path.parent.iterdir()] == ["index.html"]


@pytest.mark.parametrize("wrong", [-1, 2.5, True, "3"])
def test_wrong_number_of_pictures(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(Med3dError, match=r"n_pictures is .*, expected a whole number of cases, 0 or more"):
        EvaluationPage(str(tmp_path), CLASSES, SETTINGS, n_pictures=wrong)


def test_processes_share_the_cases(
    items: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads stand for two processes: the first has cases 0 and 2, the second 1 and 3."""
    alone = EvaluationPage(str(tmp_path / "one"), CLASSES, SETTINGS)
    evaluate(alone, items)
    place, meeting, table = threading.local(), threading.Barrier(2, timeout=60), [[], []]

    def gather_shares(mine: list[Any]) -> list[list[Any]]:
        table[place.rank] = list(mine)
        meeting.wait()
        found = list(table)
        meeting.wait()
        return found

    monkeypatch.setattr(report_page, "gather_shares", gather_shares)
    monkeypatch.setattr(report_page.idist, "get_rank", lambda: getattr(place, "rank", 0))
    gathered = [0, 2, 1, 3]  # the order in which the metrics have them
    details = {"val_mean_dice": [DICE[index] for index in gathered], "val_hd95": [HD95[index] for index in gathered]}
    pages = [EvaluationPage(str(tmp_path / "two" / str(rank)), CLASSES, SETTINGS) for rank in range(2)]
    failed: list[BaseException] = []

    def run(rank: int) -> None:
        place.rank = rank
        try:
            evaluate(pages[rank], items[rank::2], size=1, **details)
        except BaseException as error:
            failed.append(error)
            meeting.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert not pages[1].path.exists()
    one, two = read(alone.path), read(pages[0].path)
    assert two.tables == one.tables
    assert two.images == one.images


# Training.


def with_page(parts: Parts, folder: Path, **options: Any) -> TrainingPage:
    """Put the page among a training's handlers: after the validation, before what saves."""
    page = TrainingPage(str(folder), CLASSES, parts.best, parts.optimizer, parts.evaluator, str(folder), **options)
    handlers = parts.trainer._event_handlers[Events.EPOCH_COMPLETED]
    page.attach(parts.trainer)
    saver = next(n for n, each in enumerate(handlers) if isinstance(getattr(each[0], "__self__", None), ResumableSaver))
    handlers.insert(saver, handlers.pop())
    return page


def test_training_page_after_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_page, "PAUSE", 0)
    parts = Parts(tmp_path, n_epochs=3)
    page = with_page(parts, tmp_path)
    seen: list[Page] = []
    at(Events.EPOCH_COMPLETED, lambda engine: seen.append(read(page.path)), parts).run()
    assert [each.text("p").split(", 2")[0] for each in seen] == [f"running, epoch {n} of 3" for n in (1, 2, 3)]
    found = read(page.path)
    assert found.text("p").startswith("finished, epoch 3 of 3")
    assert "refresh" not in page.path.read_text()
    assert f"saved as {tmp_path / 'model.pt'}" in found.text("span")
    last = page.records[-1]
    assert last["loss"] == parts.trainer.state.metrics["mean_loss"]
    assert last["volumes_per_second"] == parts.trainer.state.metrics["volumes_per_second"]
    assert last["validation"] == {
        name: parts.evaluator.state.metrics[name] for name in ("val_mean_dice", "val_dice_left_lung", "val_dice_nodule")
    }
    assert [record["rates"] for record in page.records] == [{"new layers": 0.1, "other layers": 0.025}] * 3
    assert len(found.tables[0]) == 4


def test_training_page_has_the_settings_that_were_found_out(tmp_path: Path) -> None:
    parts = Parts(tmp_path, n_epochs=1, settings=replace(SETTINGS, recipe="patch", head="unet", spacing=[1, 1, 1]))
    parts.best.found_out = [SimpleNamespace(found={"largest_component": [2]})]
    page = with_page(parts, tmp_path)
    parts.run()
    saved = json.loads((tmp_path / "model.json").read_text())
    rows = [row for table in read(page.path).tables for row in table if row[0] == "largest_component"]
    assert rows == [["largest_component", str(saved["largest_component"])]] == [["largest_component", "[2]"]]


def test_training_page_of_other_scores(tmp_path: Path) -> None:
    parts = Parts(tmp_path, n_epochs=2)
    scores = {"nodules": "val_dice_nodule", "all": "val_mean_dice"}
    page = with_page(parts, tmp_path, metric="val_dice_nodule", scores=scores)
    parts.run()
    found = read(page.path)
    assert found.tables[0][0][2:4] == ["nodules", "all"]
    best = max(page.records, key=lambda record: record["validation"]["val_dice_nodule"])
    assert f"Best validation nodules, epoch {best['epoch']}" in found.text("span")


def test_rates_are_those_that_the_epoch_had(tmp_path: Path) -> None:
    parts = Parts(tmp_path, n_epochs=4)
    page = with_page(parts, tmp_path)
    parts.run()
    assert [record["rates"]["new layers"] for record in page.records] == pytest.approx([0.1, 0.1, 0.1, 0.01])


def test_short_epochs_are_drawn_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_page, "PAUSE", 1e6)
    parts = Parts(tmp_path, n_epochs=3)
    page = with_page(parts, tmp_path)
    seen: list[str] = []
    at(Events.EPOCH_COMPLETED, lambda engine: seen.append(read(page.path).text("p")[:18]), parts).run()
    assert seen == ["running, epoch 1 o"] * 3
    assert read(page.path).text("p").startswith("finished, epoch 3 of 3")


def test_epochs_without_validation(tmp_path: Path) -> None:
    parts = Parts(tmp_path, n_epochs=2, without=())
    page = with_page(parts, tmp_path)
    at(Events.EPOCH_STARTED, lambda engine: setattr(parts.evaluator, "run", lambda *_: None), parts)
    parts.evaluator.state.metrics = {"val_mean_dice": 0.5}
    parts.run()
    assert [record["validation"] for record in page.records] == [{}, {}]


def test_resumed_training_goes_on_with_the_curves(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "parts", n_epochs=2)
    page = with_page(parts, tmp_path / "parts")
    parts.run()
    record = json.loads(page.path.with_suffix(".json").read_text())
    known = record["epochs"]
    assert record == {"weights": str(tmp_path / "parts" / "model.pt"), "epochs": page.records}
    assert [record["epoch"] for record in known] == [1, 2]

    engine, evaluator = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    page = TrainingPage(str(tmp_path / "parts"), CLASSES, parts.best, parts.optimizer, evaluator, resume=True)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: engine.state.metrics.update(mean_loss=0.25))
    page.attach(engine)
    engine.state.epoch, engine.state.max_epochs = 1, 3
    engine.state.epoch_length, engine.state.iteration = 1, 1
    engine.run([0], max_epochs=3)
    assert [record["epoch"] for record in page.records] == [1, 2, 3]
    assert page.records[0] == known[0]
    assert [record["loss"] for record in page.records[1:]] == [0.25, 0.25]  # epoch 2 was trained again
    assert [row[0].split()[0] for row in read(page.path).tables[0][1:]] == ["1", "2", "3"]


def test_page_of_a_training_without_weights_is_replaced(tmp_path: Path) -> None:
    parts = Parts(tmp_path, n_epochs=1)
    page = with_page(parts, tmp_path)
    parts.run()
    with pytest.raises(Med3dError, match=r"training\.html: exists already; give another --output_dir"):
        check_training_page(tmp_path, overwrite=False)
    check_training_page(tmp_path, overwrite=True)
    Path(page.weights).unlink()
    check_training_page(tmp_path, overwrite=False)
    page.path.with_suffix(".json").unlink()
    with pytest.raises(Med3dError, match="exists already"):
        check_training_page(tmp_path, overwrite=False)


def test_resumed_training_may_write_elsewhere(tmp_path: Path) -> None:
    parts = Parts(tmp_path, n_epochs=2)
    page = with_page(parts, tmp_path / "new", resume=True)
    parts.run()
    assert [record["epoch"] for record in page.records] == [1, 2]
