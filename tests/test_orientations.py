"""The shipped inference of the ``patch`` recipe: label maps lie on their files' own grids, however the axes run."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE
from nibabel import orientations
from test_every_bundle import workflow
from torch import Tensor, nn

from med3d_nets.settings import Settings

ORIENTATIONS = [
    np.array([[axis, flip] for axis, flip in zip(order, flips, strict=True)])
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
SPACING = (0.8, 1.1, 2.5)
SHAPE = (26, 22, 13)
INTENSITY = {"lower": 0.0, "upper": 100.0, "mean": 50.0, "std": 1.0}


class Threshold(nn.Module):
    """Answers class 1 above the mean intensity, class 2 far above; the others are background."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([-x, x, 3 * x - 60], dim=1)


def volume() -> tuple[np.ndarray, np.ndarray]:
    """Intensities that are no mirror image or turn of themselves, and their labels."""
    z, y, x = np.indices(SHAPE)
    labels = ((x > 3) & (y > 5) & (z < 17) & (x + y < 25)).astype(np.uint8)
    labels[6:11, 9:14, 5:9] = 2
    return np.choose(labels, [10, 70, 95]).astype(np.int16), labels


def oblique(spacing: tuple[float, ...]) -> np.ndarray:
    """An affine with turned axes, and shifts that binary fractions do not hold."""
    a, b = 0.2, -0.15
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag(spacing)
    affine[:3, 3] = [-87.3, 41.7, 1203.1]
    return affine


def predict(tmp_path: Path, spacing: tuple[float, ...], images: list[nibabel.Nifti1Image]) -> list[nibabel.Nifti1Image]:
    """Label maps of the images by the shipped config, the network's grid of the spacing given."""
    folder = Path(shutil.copytree(BUNDLE, tmp_path / BUNDLE.name))
    names = ["background", "one", "two"]
    settings = Settings("resnet_10", "unet", "patch", 1, names, [16, 16, 8], spacing=list(spacing), intensity=INTENSITY)
    (folder / "models").mkdir(exist_ok=True)
    (folder / "models" / "model.json").write_text(settings.to_json())
    scans = tmp_path / "scans"
    scans.mkdir()
    for index, image in enumerate(images):
        nibabel.save(image, scans / f"{index:02}.nii.gz")
    options = {"handlers": [], "network": Threshold(), "quicklook": False}
    found = workflow(folder, "inference", "inference", img_list=str(scans), **options)
    found.run()
    return [nibabel.load(folder / "predictions" / f"{index:02}_seg.nii.gz") for index in range(len(images))]


def test_the_48_orientations_are_different() -> None:
    codes = {"".join(orientations.ornt2axcodes(orientation)) for orientation in ORIENTATIONS}
    assert len(codes) == len(ORIENTATIONS) == 48


@pytest.mark.parametrize("affine", [np.diag([*SPACING, 1.0]), oblique(SPACING)], ids=["straight", "oblique"])
def test_every_orientation_on_the_spacing_of_the_training(affine: np.ndarray, tmp_path: Path) -> None:
    """Each voxel of each label map is that of its own image."""
    intensities, labels = volume()
    scan = nibabel.Nifti1Image(intensities, affine)
    truth = nibabel.Nifti1Image(labels, affine)
    scans = [scan.as_reoriented(orientation) for orientation in ORIENTATIONS]
    for found, orientation, given in zip(predict(tmp_path, SPACING, scans), ORIENTATIONS, scans, strict=True):
        expected = np.asarray(truth.as_reoriented(orientation).dataobj)
        np.testing.assert_array_equal(np.asarray(found.dataobj), expected)
        assert found.affine.tobytes() == stored(given).tobytes()
        assert found.get_data_dtype() == np.uint8


@pytest.mark.parametrize("spacing", [(1.0, 0.9, 1.7), (0.7, 1.6, 2.5)], ids=["finer", "coarser"])
def test_every_orientation_on_another_spacing(spacing: tuple[float, ...], tmp_path: Path) -> None:
    """Interpolation blurs the borders, by as much in every orientation; the grid is the file's all the same."""
    affine = oblique(SPACING)
    intensities, labels = volume()
    scan = nibabel.Nifti1Image(intensities, affine)
    scans = [scan.as_reoriented(orientation) for orientation in ORIENTATIONS]
    for found, orientation, given in zip(predict(tmp_path, spacing, scans), ORIENTATIONS, scans, strict=True):
        expected = np.asarray(nibabel.Nifti1Image(labels, affine).as_reoriented(orientation).dataobj)
        answer = np.asarray(found.dataobj)
        overlap = 2 * np.count_nonzero((answer > 0) & (expected > 0))
        dice = overlap / (np.count_nonzero(answer) + np.count_nonzero(expected))
        assert dice > 0.9
        assert found.affine.tobytes() == stored(given).tobytes()


def stored(image: nibabel.Nifti1Image) -> np.ndarray:
    """The affine that a file of the image gives back: its header has single precision."""
    return nibabel.Nifti1Image.from_bytes(image.to_bytes()).affine
