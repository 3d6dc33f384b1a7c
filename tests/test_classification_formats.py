"""Classification reads volumes in every format: what comes of them is what comes of the same volumes in NIfTI."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE
from monai.transforms import Compose
from other_formats import write_metaimage, write_nrrd, write_series
from test_classification_bundle import evaluate, infer, table, train, volume
from test_classification_features import extract
from test_classification_inputs import refusal
from test_datalist import message
from test_dicom import set_header

from med3d_nets.classification.cases import load_images, load_lists
from med3d_nets.classification.volumes import CropRegiond, LoadVolumed, name_case
from med3d_nets.dicom import dicom_files
from med3d_nets.dicom_seg_writing import write_segmentation
from med3d_nets.errors import Med3dError
from med3d_nets.weights import read_tensors

# As single precision has it, which NIfTI stores: to the last digit, grids are the same in all formats.
GRID = np.diag([-1.25, -1.0, 1.5, 1.0])
GRID[:3, 3] = [20.5, -31.0, 7.25]
pytest.importorskip("itk")
pytest.importorskip("pydicom")

FORMATS = (".nii.gz", ".mha", "", ".nrrd", ".mhd", "")  # a folder of one series has no suffix


def whole_numbers(seed: int, edge: int) -> np.ndarray:
    return volume(seed, edge).round().astype(np.int16)


def write(folder: Path, name: str, voxels: np.ndarray) -> Path:
    """A volume in the format of its name's suffix."""
    path = folder / name
    if path.suffix == ".gz":
        nibabel.save(nibabel.Nifti1Image(voxels, GRID), path)
        return path
    kinds = {".mha": write_metaimage, ".mhd": write_metaimage, ".nrrd": write_nrrd}
    if path.suffix in kinds:
        return kinds[path.suffix](path, voxels, GRID)
    return write_series(path, voxels, GRID, uid=name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten volumes of two classes, all in NIfTI and in a format each; eight to train on, each with a mask."""
    folder = tmp_path_factory.mktemp("some cases")
    lines: dict[str, list[str]] = {"nifti": [], "mixed": []}
    for kind in lines:
        (folder / kind).mkdir()
    for index in range(10):
        voxels = whole_numbers(index, 3 + 4 * (index % 2))
        for kind, suffix in (("nifti", ".nii.gz"), ("mixed", FORMATS[index % len(FORMATS)])):
            path = write(folder / kind, f"1.2.{index}{suffix}", voxels)  # as of a UID, in which nothing is a suffix
            lines[kind].append(f"'{path.relative_to(folder)}' {index % 2}\n")
    for kind, found in lines.items():
        (folder / f"{kind}_train.txt").write_text("".join(found[:8]))
        (folder / f"{kind}_val.txt").write_text("".join(found[8:]))
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle with a network for either list."""
    bundles = {}
    for kind in ("nifti", "mixed"):
        folder = tmp_path_factory.mktemp(kind) / BUNDLE.name
        bundles[kind] = Path(shutil.copytree(BUNDLE, folder))
        train(folder, data, img_list=f"{kind}_train.txt", val_list=f"{kind}_val.txt", report=False)
    return bundles


def numbers(rows: list[dict[str, str]]) -> list[list[float]]:
    """The probabilities of each case, in the order of the volumes."""
    rows = sorted(rows, key=lambda row: Path(row["case"]).name)
    return [[float(value) for name, value in row.items() if name.startswith("probability")] for row in rows]


def test_a_training_learns_the_same(trained: dict[str, Path]) -> None:
    weights = [read_tensors(folder / "models/classification/model.pt") for folder in trained.values()]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    settings = [json.loads((folder / "models/classification/model.json").read_text()) for folder in trained.values()]
    assert settings[0] == settings[1]


def test_an_evaluation_knows_the_cases_of_the_training(trained: dict[str, Path], data: Path) -> None:
    bundle = trained["mixed"]
    text = refusal(evaluate, bundle, data, val_list="mixed_train.txt", report=False)
    assert "trained on 8 of the 8 cases to evaluate" in text
    found = []
    for kind in trained:
        evaluate(bundle, data, val_list=f"{kind}_val.txt", overwrite=True, shown_cases=[])
        found.append(numbers(table(bundle / "eval/classification/predictions.csv")))
    assert found[0] == found[1]
    assert "1.2.8" in (bundle / "eval/classification/report/index.html").read_text()


def test_predictions_and_maps_of_a_folder(trained: dict[str, Path], data: Path) -> None:
    bundle = trained["mixed"]
    rows, maps = {}, {}
    for kind in trained:
        rows[kind] = infer(bundle, data / kind, saliency=True, overwrite=True)
        written = sorted((bundle / "predictions/classification").glob("*.nii.gz"))
        assert [path.name for path in written] == [f"1.2.{index}_saliency.nii.gz" for index in range(10)]
        volumes = [nibabel.load(path) for path in written]
        assert all(np.array_equal(found.affine, GRID) for found in volumes)
        maps[kind] = np.stack([found.get_fdata() for found in volumes])
    assert numbers(rows["nifti"]) == numbers(rows["mixed"])
    assert np.array_equal(maps["nifti"], maps["mixed"])
    assert maps["mixed"].any()
    series = str(data / "mixed/1.2.2")
    assert {row["case"] for row in rows["mixed"]} >= {f"{data / 'mixed/1.2.1.mha'}", series}
    assert infer(bundle, Path(series), overwrite=True) == [row for row in rows["mixed"] if row["case"] == series]


def test_features_of_a_list(trained: dict[str, Path], data: Path) -> None:
    bundle = trained["mixed"]
    rows = {}
    for kind in trained:
        output = bundle / f"{kind}.csv"
        ckpt_dir = str(bundle / "models/classification")
        extract(bundle, data_root=str(data), img_list=f"{kind}_train.txt", ckpt_dir=ckpt_dir, output=str(output))
        rows[kind] = [{**row, "case": ""} for row in table(output)]
    assert rows["nifti"] == rows["mixed"]
    assert [row["label"] for row in rows["mixed"]] == ["0", "1"] * 4


@pytest.mark.parametrize("suffix", FORMATS[1:5])
def test_masks_in_every_format(suffix: str, tmp_path: Path) -> None:
    voxels = np.arange(14 * 16 * 12, dtype=np.int16).reshape(14, 16, 12)
    mask = np.zeros_like(voxels)
    mask[2:6, 5:15, 9:11] = 1
    paths = {"image": write(tmp_path, f"image{suffix}", voxels), "mask": write(tmp_path, f"mask{suffix}", mask)}
    (tmp_path / "list.csv").write_text(f"image,mask\nimage{suffix},mask{suffix}\n")
    (item,) = load_images("list.csv", tmp_path)
    assert item == {"patient": "", **{key: str(path) for key, path in paths.items()}}
    found = Compose([LoadVolumed("image"), CropRegiond("image")])(item)["image"]
    np.testing.assert_array_equal(found.as_tensor()[0], voxels[2:6, 5:15, 9:11])
    np.testing.assert_array_equal(found.affine[:3, 3], (GRID @ [2, 5, 9, 1])[:3])
    assert name_case(found) == f"{tmp_path / f'image{suffix}'} [mask{suffix}]"


def test_a_segmentation_as_the_mask(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    voxels = whole_numbers(0, 7)
    mask = np.zeros(voxels.shape, np.uint8)
    mask[2:6, 5:15, 9:11] = 1  # two slices alone are in the file
    series = write(tmp_path, "image", voxels)
    path = tmp_path / "mask.dcm"
    write_segmentation(str(path), mask, GRID, list(dicom_files(str(series))), ["background", "nodule"], "reader", "1")
    (tmp_path / "list.csv").write_text("image,mask\nimage,mask.dcm\n")
    (item,) = load_images("list.csv", tmp_path)
    found = Compose([LoadVolumed("image"), CropRegiond("image")])(item)["image"]
    np.testing.assert_array_equal(found.as_tensor()[0], voxels[2:6, 5:15, 9:11])


def test_problems_name_the_file(tmp_path: Path) -> None:
    folder = write(tmp_path, "series", whole_numbers(0, 3))
    (folder / "IM004").unlink()
    (tmp_path / "half.mha").write_text("ObjectType = Image\n")
    (tmp_path / "list.txt").write_text("series 0\nhalf.mha 1\nnone.nrrd 1\n")
    text = message(load_lists, tmp_path, "list.txt")
    assert f"{folder}: found slices at uneven positions" in text
    assert f"{tmp_path / 'half.mha'}: found" in text
    assert f"{tmp_path / 'none.nrrd'}: found no such file" in text


def test_two_maps_of_one_name_are_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a.mha", "a"):
        write(tmp_path, name, whole_numbers(0, 3))
    (tmp_path / "list.txt").write_text("a\na.mha\n")
    text = refusal(infer, trained["mixed"], tmp_path / "list.txt", saliency=True, data_root=str(tmp_path))
    assert f"{tmp_path / 'a.mha'}: found {tmp_path / 'a'} too" in text


def test_a_file_stands_for_its_series(tmp_path: Path) -> None:
    for number in (1, 2):
        write_series(tmp_path / "both", whole_numbers(number, 3), GRID, f"1.2.{number}", f"S{number}_{{:03}}".format)
    (tmp_path / "list.txt").write_text("both/S1_005 0\nboth/S2_007 1\n")
    first = [str(tmp_path / f"both/S{number}_000") for number in (1, 2)]
    items = load_images("list.txt", tmp_path)
    assert [item["image"] for item in items] == first
    assert load_images(tmp_path / "both/S2_003") == items[1:]
    for number, item in zip((1, 2), items, strict=True):
        found = LoadVolumed("image")(item)["image"]
        np.testing.assert_array_equal(found.as_tensor()[0], whole_numbers(number, 3))
    (tmp_path / "other.txt").write_text("both/S1_008 0\n")
    assert f"{first[0]}: found in training and in validation" in message(load_lists, tmp_path, "list.txt", "other.txt")


def test_patients_of_headers_are_on_one_side(tmp_path: Path) -> None:
    lines = []
    for index in range(6):
        patient = f"P{index % 5}"
        write_series(
            tmp_path / f"{index}", whole_numbers(index, 3), GRID, f"1.2.{index}", change=set_header(PatientID=patient)
        )
        lines.append(f"{index} {index % 2}\n")
    (tmp_path / "train.txt").write_text("".join(lines[:5]))
    (tmp_path / "val.txt").write_text(lines[5])
    found = load_lists(tmp_path, "train.txt", "")
    assert sorted(item["patient"] for part in ("training", "validation") for item in found[part]) == [
        f"P{index}" for index in range(5)
    ]
    with pytest.raises(Med3dError, match="P0"):
        load_lists(tmp_path, "train.txt", "val.txt")
