"""Tables of embeddings: by the shipped JSON on synthetic volumes, and what is refused before any work."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from classified import write_csv, write_images, write_npz
from conftest import BUNDLE, ROOT
from ignite.engine import Engine
from monai.data import MetaTensor
from published import redraw, write_published
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_datalist import message
from test_every_bundle import workflow

from med3d_nets.classification import features as module
from med3d_nets.classification.cases import load_images
from med3d_nets.classification.features import (
    FeatureSettings,
    FeatureTable,
    check_options,
    check_output,
    check_weights,
    load_encoder,
    make_encoder,
    plan_settings,
    read_known,
)
from med3d_nets.classification.plan import plan_classification
from med3d_nets.classification.settings import ClassifierSettings
from med3d_nets.errors import Med3dError, explain
from med3d_nets.networks import ClassificationNet, create_classifier
from med3d_nets.resnet import ResNetEncoder
from med3d_nets.variants import VARIANTS, Variant
from med3d_nets.weights import file_sha256, load_strict, write_atomically

SHAPE = (14, 16, 12)
GRID = {"spacing": [1.0, 1.2, 1.5], "input_size": [16, 16, 16]}
KNOWN = FeatureSettings(1, True, 0, [1.0, 1.2, 1.5], [16, 16, 16], None)
WEIGHTS = {"variant": "resnet_10", "file": "model.pt", "sha256": "1" * 64, "tensors": 72}
Run = Callable[..., CompletedProcess[str]]


def volume(index: int) -> np.ndarray:
    """A volume of the given case: a small or a large cube that is brighter than the rest."""
    array = np.random.RandomState(index).normal(100, 5, SHAPE).astype(np.float32)
    edge = 7 if index % 2 else 3
    array[4 : 4 + edge, 5 : 5 + edge, 3 : 3 + edge] += 300
    return array


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve volumes of six patients and two classes, one not known, in a folder whose name has a space."""
    folder = tmp_path_factory.mktemp("some cases")
    rows = ["image,label,patient"]
    for index in range(12):
        nibabel.save(nibabel.Nifti1Image(volume(index), np.diag([1.0, 1.2, 1.5, 1.0])), folder / f"c{index}.nii.gz")
        rows.append(f"c{index}.nii.gz,{'large' if index % 2 else 'small'},p{index // 2}")
    write_csv(folder, *rows, to="list.csv")
    write_csv(folder, "image", "c3.nii.gz", "c1.nii.gz", to="later.csv")
    return folder


@pytest.fixture(scope="module")
def bundle(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with pretrained weights and the table of the twelve volumes."""
    folder = Path(shutil.copytree(BUNDLE, tmp_path_factory.mktemp("my bundles") / BUNDLE.name))
    (folder / "models").mkdir(exist_ok=True)
    write_published(folder / "models" / "pretrained.pt", redraw(10, "B"))
    extract(folder, data_root=str(cases), img_list="list.csv", **GRID)
    return folder


def extract(folder: Path, **options: Any) -> Any:
    run = workflow(folder, "inference", "classification/features", **options)
    assert run.check_properties() == []
    run.run()
    return run


def embeddings(table: pd.DataFrame) -> np.ndarray:
    return table.filter(regex=r"^feature_\d+$").to_numpy(np.float32)


def prepare(array: np.ndarray) -> torch.Tensor:
    """Normalised and padded by hand, at the grid of the files: ``(1, 1, 16, 16, 16)``."""
    return torch.from_numpy(np.pad((array - array.mean()) / array.std(), [(1, 1), (0, 0), (2, 2)]))[None, None]


def by_hand(network: torch.nn.Module, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return network.eval()(x)[-1].mean((2, 3, 4)).numpy()[0]


# The shipped JSON


def test_table_of_the_published_encoder(bundle: Path, cases: Path) -> None:
    table = pd.read_csv(bundle / "features" / "features.csv")
    assert list(table) == ["case", "patient", "label", *(f"feature_{index}" for index in range(512))]
    assert table["case"].tolist() == [str(cases / f"c{index}.nii.gz") for index in range(12)]
    assert table["patient"].tolist() == [f"p{index // 2}" for index in range(12)]
    assert table["label"].tolist() == ["small", "large"] * 6
    encoder = ResNetEncoder(10, "B")
    load_strict(encoder, redraw(10, "B"), "redrawn")
    expected = np.stack([by_hand(encoder, prepare(volume(index))) for index in range(12)])
    np.testing.assert_allclose(embeddings(table), expected, rtol=1e-4, atol=1e-6)
    record = json.loads((bundle / "features" / "features.json").read_text())
    assert {name: record["settings"][name] for name in GRID} == GRID
    assert "as given" in record["settings"]["reasons"]["spacing"]
    sha256 = file_sha256(bundle / "models" / "pretrained.pt")
    assert record["weights"] == {"variant": "resnet_10", "file": "pretrained.pt", "sha256": sha256, "tensors": 72}
    assert set(record["versions"]) == {"med3d_nets", "monai", "torch"}
    assert len(list((bundle / "features").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS[1:], ids=lambda variant: variant.name)
def test_every_variant(variant: Variant, cases: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / "bundles" / variant.bundle, tmp_path / variant.bundle))
    published = write_published(tmp_path / variant.filename, redraw(variant.depth, variant.shortcut))
    extract(folder, data_root=str(cases), img_list="later.csv", pretrain_path=str(published), **GRID)
    encoder = ResNetEncoder(variant.depth, variant.shortcut)
    load_strict(encoder, redraw(variant.depth, variant.shortcut), "redrawn")
    found = embeddings(pd.read_csv(folder / "features" / "features.csv"))[0]
    np.testing.assert_allclose(found, by_hand(encoder, prepare(volume(3))), rtol=1e-3, atol=1e-5)


def test_earlier_settings_give_the_same_rows(bundle: Path, cases: Path, tmp_path: Path) -> None:
    options = {"data_root": str(cases), "img_list": "later.csv", "output": str(tmp_path / "later.csv")}
    extract(bundle, **options, settings_path=str(bundle / "features" / "features.json"))
    first, later = (pd.read_csv(path, dtype=str) for path in (bundle / "features/features.csv", options["output"]))
    assert list(later)[:2] == ["case", "feature_0"]  # nobody told patients or labels
    assert later.equals(first.loc[[3, 1], later.columns].reset_index(drop=True))
    assert (tmp_path / "later.json").read_text() == (bundle / "features/features.json").read_text()


def test_batches_and_loader_processes(bundle: Path, cases: Path, tmp_path: Path) -> None:
    options = {"data_root": str(cases), "img_list": "list.csv", "output": str(tmp_path / "a.parquet"), **GRID}
    extract(bundle, **options, batch_size=5, num_workers=1)
    table, first = pd.read_parquet(tmp_path / "a.parquet"), pd.read_csv(bundle / "features" / "features.csv")
    assert set(table.dtypes[3:]) == {np.dtype(np.float32)}
    assert table.iloc[:, :3].astype(str).equals(first.iloc[:, :3].astype(str))
    np.testing.assert_allclose(embeddings(table), embeddings(first), rtol=1e-4, atol=1e-5)


def test_example_of_the_readme(bundle: Path) -> None:
    table = pd.read_csv(bundle / "features" / "features.csv")
    x = table.filter(like="feature_")
    model = make_pipeline(StandardScaler(), LogisticRegression())
    folds = StratifiedGroupKFold(5)
    scores = cross_val_score(model, x, table["label"], groups=table["patient"], cv=folds, scoring="roc_auc")
    assert scores.mean() == 1  # a small and a large cube


def write_classifier(folder: Path, **changes: Any) -> ClassificationNet:
    network = create_classifier("resnet_10", 2)
    write_atomically(folder / "model.pt", network.state_dict())
    given = {"intensity": {"lower": 90.0, "upper": 300.0, "mean": 120.0, "std": 40.0}, **GRID, **changes}
    settings = ClassifierSettings("resnet_10", "classification", "region", 1, ["a", "b"], **given)
    write_atomically(folder / "model.json", settings.to_json())
    return network


def test_table_of_a_classifier_trained_here(
    bundle: Path, cases: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = write_classifier(tmp_path, regions=True)
    options = {"data_root": str(cases), "ckpt_dir": str(tmp_path), "output": str(tmp_path / "features.csv")}
    extract(bundle, **options, img_list="later.csv")
    assert "2 of 2 cases have no region of interest, but the network was trained on these" in caplog.text
    x = torch.from_numpy(np.pad((volume(3).clip(90, 300) - 120) / 40, [(1, 1), (0, 0), (2, 2)], constant_values=-0.75))
    expected = by_hand(network.encoder, x[None, None].float())
    np.testing.assert_allclose(embeddings(pd.read_csv(options["output"]))[0], expected, rtol=1e-4, atol=1e-6)
    record = json.loads((tmp_path / "features.json").read_text())
    assert record["weights"]["sha256"] == file_sha256(tmp_path / "model.pt")
    assert record["settings"]["intensity"]["upper"] == 300
    assert record["settings"]["regions"] is True
    # The same settings with the published encoder: rows that cannot be compared.
    options |= {"ckpt_dir": "", "settings_path": str(tmp_path / "features.json"), "output": str(tmp_path / "new.csv")}
    with pytest.raises((Med3dError, RuntimeError)) as caught:
        extract(bundle, **options, img_list="later.csv")
    assert "embeddings of different weights" in str(explain(caught.value, {}))
    assert not (tmp_path / "new.csv").exists()


def test_regions_sections_and_channels(bundle: Path, tmp_path: Path) -> None:
    write_images(tmp_path, ["a"])
    nibabel.save(nibabel.Nifti1Image(np.ones((6, 7, 8), np.uint8), np.eye(4)), tmp_path / "m.nii.gz")
    lines = ["image,mask,x,y,z,size_mm,class", "a.nii.gz,m.nii.gz,,,,,7.0", "a.nii.gz,,3,3,4,5,"]
    write_csv(tmp_path, *lines, to="list.csv")
    write_npz(tmp_path, train=[1, 0], test=[1, 0, 1])
    nibabel.save(nibabel.Nifti1Image(np.random.rand(8, 8, 8, 2).astype(np.float32), np.eye(4)), tmp_path / "b.nii.gz")

    def table(source: str, **options: Any) -> pd.DataFrame:
        output = str(tmp_path / "features.csv")
        extract(bundle, data_root=str(tmp_path), img_list=source, output=output, overwrite=True, **options)
        return pd.read_csv(output, dtype={"label": str}, keep_default_na=False)

    found = table("list.csv")
    assert [case.rsplit("/", 1)[1] for case in found["case"]] == ["a.nii.gz [m.nii.gz]", "a.nii.gz [3 3 4, 5 mm]"]
    assert found["label"].tolist() == ["7", ""]
    assert not np.allclose(*embeddings(found))
    found = table("data.npz", section="train")
    assert found["label"].tolist() == ["1", "0"]
    assert found["case"].str.endswith("::train_images::0").tolist() == [True, False]
    assert list(table("b.nii.gz", in_channels=2))[:2] == ["case", "feature_0"]


@pytest.mark.slow
def test_two_processes_make_the_table_of_one(bundle: Path, cases: Path, bundle_run: Run, tmp_path: Path) -> None:
    options = {"data_root": cases, "img_list": "list.csv", "pretrain_path": bundle / "models/pretrained.pt"}
    config = str(["configs/classification/features.json", "configs/multi_gpu_inference.json"])
    done = bundle_run("features", config, processes=2, no_cuda=True, output=tmp_path / "features.csv", **options)
    assert done.returncode == 0, done.stderr
    extract(bundle, **{name: str(value) for name, value in options.items()}, output=str(tmp_path / "one.csv"))
    for suffix in ("csv", "json"):
        assert (tmp_path / f"features.{suffix}").read_text() == (tmp_path / f"one.{suffix}").read_text()


def test_missing_weights_are_one_clear_error(cases: Path, bundle_run: Run, tmp_path: Path) -> None:
    options = {"data_root": cases, "pretrain_path": tmp_path / "none.pt", "output": tmp_path / "features.csv"}
    done = bundle_run("features", "configs/classification/features.json", **options)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "'med3d get resnet_10'" in done.stderr
    assert "checking" not in done.stdout  # no volume was read


# Settings and weights


def test_plan_is_that_of_a_training(cases: Path) -> None:
    items = load_images("list.csv", cases)
    found = plan_settings(items, "resnet_10", keep_size=False, margin_mm=2)
    training = plan_classification(items, keep_size=False, margin_mm=2)
    assert (found.keep_size, found.margin_mm, found.in_channels) == (False, 2, 1)
    for name, reason in found.reasons.items():
        assert (getattr(found, name), reason) == (getattr(training, name), training.reasons[name])
    assert list(found.reasons) == ["spacing", "input_size", "intensity"]
    assert plan_settings(items, "resnet_10", intensity="ct").empty_value < 0
    assert found.empty_value == 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"in_channels": 0}, "in_channels is 0"),
        ({"keep_size": "no", "margin_mm": -1}, "keep_size is 'no', expected True or False; margin_mm is -1"),
        ({"margin_mm": float("nan")}, "margin_mm is nan"),
        ({"spacing": []}, "spacing is []"),
        ({"input_size": [16, 16]}, "input_size is [16, 16]"),
        ({"intensity": {"lower": 0}}, "intensity is {'lower': 0}"),
        ({"intensity": "ct"}, "intensity is 'ct'"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    path = tmp_path / "features.json"
    path.write_text(json.dumps({"settings": {**asdict(KNOWN), **changes}}))
    assert f"{path}: {expected}" in message(read_known, "resnet_10", settings_path=str(path))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"settings": {"spacing": [1, 1, 1]}}'])
def test_settings_of_something_else(text: str, tmp_path: Path) -> None:
    path = tmp_path / "features.json"
    path.write_text(text)
    assert "found no settings" in message(read_known, "resnet_10", settings_path=str(path))
    assert "No such file" in message(read_known, "resnet_10", settings_path=str(tmp_path / "no.json"))


def test_settings_of_a_classifier(tmp_path: Path) -> None:
    assert read_known("resnet_10") is None
    write_classifier(tmp_path / "fold_1", keep_size=False, margin_mm=3)
    expected = f"but fold 1; expected one network, such as --ckpt_dir {tmp_path / 'fold_1'}"
    assert expected in message(read_known, "resnet_10", str(tmp_path))
    found = read_known("resnet_10", str(tmp_path / "fold_1"))
    assert (found.keep_size, found.margin_mm, found.spacing) == (False, 3, GRID["spacing"])
    assert "variant is 'resnet_18'" in message(read_known, "resnet_18", str(tmp_path / "fold_1"))
    assert "no such file" in message(read_known, "resnet_10", str(tmp_path / "none"))


def test_options_that_contradict_what_is_known() -> None:
    given = {name: getattr(KNOWN, name) for name in module.PREPARATION}
    check_options(KNOWN, "features.json", **given)
    text = message(check_options, KNOWN, "features.json", **{**given, "margin_mm": 4, "intensity": "ct"})
    assert text == "margin_mm is 4, but features.json says 0; intensity is 'ct', but features.json says None"
    planned = {**given, "spacing": [], "input_size": [], "intensity": "auto"}
    check_options(None, "", **planned)
    assert "spacing is [1]" in message(check_options, None, "", **{**planned, "spacing": [1]})
    assert "margin_mm is -2" in message(check_options, None, "", **{**planned, "margin_mm": -2})


def test_missing_weights(tmp_path: Path) -> None:
    network = make_encoder("resnet_10")
    for path in ("", str(tmp_path / "pretrained.pt")):
        text = message(load_encoder, network, "resnet_10", pretrain_path=path)
        for part in (repr(path), "'med3d get resnet_10'", "--pretrain_path", "--ckpt_dir"):
            assert part in text
    assert f"{tmp_path / 'model.pt'}: found no such file" in message(load_encoder, network, "resnet_10", str(tmp_path))


def test_weights_of_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "features.json"
    path.write_text(json.dumps({"weights": WEIGHTS}))
    check_weights(WEIGHTS, str(path))
    check_weights(WEIGHTS, "")
    other = {**WEIGHTS, "file": "pretrained.pt", "sha256": "2" * 64}
    text = message(check_weights, other, str(path))
    assert "found weights resnet_10, model.pt of SHA-256 1111" in text
    assert "expected resnet_10, pretrained.pt of SHA-256 2222" in text
    path.write_text("{}")
    check_weights(other, str(path))


# The file


def test_output_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ends in .csv or .parquet" in message(check_output, tmp_path / "features.xlsx")
    for name in ("features.csv", "features.json"):
        (tmp_path / name).write_text("")
        assert f"{name}: exists already" in message(check_output, tmp_path / "features.csv")
        check_output(tmp_path / "features.csv", overwrite=True)
        (tmp_path / name).unlink()
    (tmp_path / "a.csv").mkdir()
    assert "a.csv: exists already" in message(check_output, tmp_path / "a.csv", overwrite=True)
    check_output(tmp_path / "features.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pyarrow is not installed" in message(check_output, tmp_path / "features.parquet")
    check_output(tmp_path / "features.csv")


def collected(output: Path) -> FeatureTable:
    table = FeatureTable(output, KNOWN, WEIGHTS)
    engine = Engine(lambda *_: None)
    image = MetaTensor(torch.zeros(1, 1), meta={"filename_or_obj": "a.nii"})
    engine.state.batch = [{"image": image, "patient": "", "label": "1"}]
    engine.state.output = [{"pred": torch.tensor([1 / 3, 1e-20, -2.0])}]
    table.collect(engine)
    return table


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_numbers_are_read_as_they_were(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"a.{suffix}"
    collected(path)(Engine(lambda *_: None))
    table = pd.read_csv(path) if suffix == "csv" else pd.read_parquet(path)
    assert list(table) == ["case", "label", "feature_0", "feature_1", "feature_2"]
    np.testing.assert_array_equal(embeddings(table)[0], np.array([1 / 3, 1e-20, -2], np.float32))


def test_a_failure_leaves_the_files_of_an_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.csv", "a.json"):
        (tmp_path / name).write_text("earlier")

    def fail(path: Path, *_: Any) -> None:
        path.write_text("half")
        raise OSError("full")

    monkeypatch.setattr(module, "_write_csv", fail)
    with pytest.raises(OSError, match="full"):
        collected(tmp_path / "a.csv")(Engine(lambda *_: None))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.csv": "earlier", "a.json": "earlier"}
