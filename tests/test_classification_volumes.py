"""Volumes are read as MONAI reads them, cropped to their region, and maps of them land on the file's grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from classified import ADRENAL, LIDC, volumes
from conftest import OBLIQUE
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged, Resized
from test_datalist import message, ramp, save

from med3d_nets.classification.cases import load_lists
from med3d_nets.classification.volumes import CropRegiond, LoadVolumed, name_case
from med3d_nets.transforms import RestoreGridd

SHAPE = (12, 20, 16)
BOX = (slice(2, 6), slice(5, 15), slice(9, 16))


def world(*voxel: float) -> list[float]:
    return (OBLIQUE[:3, :3] @ np.array(voxel) + OBLIQUE[:3, 3]).tolist()


def voxels_of(volume: MetaTensor) -> np.ndarray:
    return volume.as_tensor().numpy()


def test_parts_of_one_image_have_names_of_their_own(item: dict[str, Any]) -> None:
    read = Compose([LoadVolumed("image"), CropRegiond("image")])
    whole, center = {"image": item["image"]}, {"center": world(4, 10, 12), "size_mm": 5.0}
    place = " ".join(f"{value:g}" for value in center["center"])
    expected = {"": whole, " [m.nii]": item, f" [{place}, 5 mm]": {**whole, **center}}
    assert {name_case(read(each)["image"]): None for each in expected.values()} == {
        f"{item['image']}{name}": None for name in expected
    }


@pytest.fixture
def item(tmp_path: Path) -> dict[str, Any]:
    mask = np.zeros(SHAPE, np.uint8)
    mask[BOX] = 3
    paths = {
        "image": save(tmp_path / "a.nii.gz", ramp(SHAPE), OBLIQUE),
        "mask": save(tmp_path / "m.nii", mask, OBLIQUE),
    }
    return {key: str(path) for key, path in paths.items()}


@pytest.mark.parametrize("channels", [(), (1,), (2,)])
def test_files_are_read_as_monai_reads_them(tmp_path: Path, channels: tuple[int, ...]) -> None:
    path = save(tmp_path / "a.nii.gz", ramp((*SHAPE, *channels)).astype(np.int16), OBLIQUE)
    found = LoadVolumed("image")({"image": str(path), "label": 1})
    expected = Compose([LoadImaged("image"), EnsureChannelFirstd("image")])({"image": str(path)})["image"]
    assert found["label"] == 1
    assert found["image"].shape == (*(channels or (1,)), *SHAPE)
    assert found["image"].dtype == torch.float32
    assert torch.equal(found["image"].as_tensor(), expected.as_tensor())
    assert torch.equal(found["image"].affine, expected.affine)
    assert found["image"].meta["filename_or_obj"] == str(path)


def test_arrays(tmp_path: Path) -> None:
    grey, colour = volumes(3, SHAPE), volumes(2, (*SHAPE, 3))
    np.savez(tmp_path / "a.npz", train_images=grey, val_images=colour)
    reference = f"{tmp_path / 'a.npz'}::train_images::2"
    image = LoadVolumed("image")({"image": reference})["image"]
    assert image.shape == (1, *SHAPE)
    assert image.dtype == torch.float32
    assert np.array_equal(voxels_of(image)[0], grey[2])
    assert torch.equal(image.affine, torch.eye(4, dtype=torch.float64))
    assert image.meta["filename_or_obj"] == reference
    image.zero_()
    assert grey[2].any()
    again, other = (
        LoadVolumed("image")({"image": f"{tmp_path / 'a.npz'}::{k}"})["image"]
        for k in ("train_images::2", "val_images::1")
    )
    assert np.array_equal(voxels_of(again)[0], grey[2])
    assert np.array_equal(voxels_of(other), np.moveaxis(colour[1], -1, 0))


def test_loader_with_workers_batches_both_kinds(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_images=volumes(3, SHAPE))
    paths = [f"{tmp_path / 'a.npz'}::train_images::{index}" for index in range(3)]
    paths.append(str(save(tmp_path / "a.nii.gz", ramp(SHAPE))))
    data = Dataset([{"image": path} for path in paths], LoadVolumed("image"))
    batch = next(iter(DataLoader(data, batch_size=4, num_workers=1)))["image"]
    assert batch.shape == (4, 1, *SHAPE)
    assert list(batch.meta["filename_or_obj"]) == paths


def test_crop_to_a_mask(item: dict[str, Any]) -> None:
    image = Compose([LoadVolumed("image"), CropRegiond("image")])(item)["image"]
    assert np.array_equal(voxels_of(image)[0], ramp(SHAPE)[BOX])
    assert np.allclose(image.affine[:3, 3], world(2, 5, 9))
    wider = Compose([LoadVolumed("image"), CropRegiond("image", margin_mm=2.6)])(item)["image"]
    assert np.array_equal(voxels_of(wider)[0], ramp(SHAPE)[1:7, 2:18, 7:16])


def test_crop_around_a_centre(item: dict[str, Any]) -> None:
    del item["mask"]
    item |= {"center": world(4.5, 10.6, 1), "size_mm": 5.0}
    image = Compose([LoadVolumed("image"), CropRegiond("image")])(item)["image"]
    assert np.array_equal(voxels_of(image)[0], ramp(SHAPE)[4:6, 8:14, 0:4])
    assert np.allclose(image.affine[:3, 3], world(4, 8, 0))
    wider = Compose([LoadVolumed("image"), CropRegiond("image", margin_mm=2.6)])(item)["image"]
    assert np.array_equal(voxels_of(wider)[0], ramp(SHAPE)[3:7, 5:18, 0:6])


def test_without_region_nothing_changes(item: dict[str, Any]) -> None:
    image = Compose([LoadVolumed("image"), CropRegiond("image", margin_mm=3.0)])({"image": item["image"]})["image"]
    assert np.array_equal(voxels_of(image)[0], ramp(SHAPE))
    assert np.allclose(image.affine, OBLIQUE)


@pytest.mark.parametrize("region", ["mask", "center", "none"])
def test_inverted_map_lands_on_the_grid_of_the_file(item: dict[str, Any], region: str) -> None:
    if region != "mask":
        del item["mask"]
    if region == "center":
        item |= {"center": world(4, 10, 12), "size_mm": 6.0}
    steps = Compose([LoadVolumed("image"), CropRegiond("image", 1.0), Resized("image", (8, 8, 8), mode="nearest")])
    prepared = steps(item)
    prepared["pred"] = MetaTensor(torch.ones(1, 8, 8, 8))
    invert = Compose([Invertd("pred", steps, "image", nearest_interp=True), RestoreGridd("pred")])
    found = invert(prepared)["pred"]
    cropped = Compose([LoadVolumed("image"), CropRegiond("image", 1.0)])(item)["image"]
    assert found.shape == (1, *SHAPE)
    assert np.allclose(found.affine, nibabel.load(item["image"]).affine)
    expected = np.isin(ramp(SHAPE), voxels_of(cropped))
    assert np.array_equal(voxels_of(found)[0] > 0, expected)
    assert expected.all() == (region == "none")


def crop_message(item: dict[str, Any]) -> str:
    return message(CropRegiond("image"), LoadVolumed("image")(item))


def test_regions_that_cannot_be_cropped_to(tmp_path: Path, item: dict[str, Any]) -> None:
    away = {"image": item["image"], "center": world(4, 10, 16), "size_mm": 3.0}
    assert all(
        part in crop_message(away) for part in (item["image"], "voxel (4.0, 10.0, 16.0) of (12, 20, 16)", "spans")
    )
    assert "no such file" in crop_message(item | {"mask": str(tmp_path / "no.nii")})
    empty = save(tmp_path / "empty.nii", np.zeros(SHAPE, np.uint8), OBLIQUE)
    assert "no voxel above 0" in crop_message(item | {"mask": str(empty)})
    moved = save(tmp_path / "moved.nii", np.ones(SHAPE, np.uint8))
    assert "affine" in crop_message(item | {"mask": str(moved)})
    small = save(tmp_path / "small.nii", np.ones((3, 3, 3), np.uint8), OBLIQUE)
    assert "spatial shape" in crop_message(item | {"mask": str(small)})


@pytest.mark.skipif(not LIDC.is_dir(), reason="../shared/data/LIDC_nodules is absent")
def test_lung_nodules_are_cropped_to_their_masks() -> None:
    items = load_lists(LIDC, "nodules.csv")["validation"][:5]
    for item in items:
        image = Compose([LoadVolumed("image"), CropRegiond("image")])(item)["image"]
        extent = [axis.max() - axis.min() + 1 for axis in np.nonzero(nibabel.load(item["mask"]).get_fdata())]
        assert list(image.shape[1:]) == extent


@pytest.mark.skipif(not ADRENAL.is_file(), reason="../shared/data/AdrenalMNIST3D is absent")
def test_adrenal_glands_load() -> None:
    image = LoadVolumed("image")({"image": f"{ADRENAL}::val_images::97"})["image"]
    assert image.shape == (1, 28, 28, 28)
    assert set(image.unique().tolist()) == {0.0, 255.0}
