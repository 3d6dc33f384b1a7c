"""Slices through a class, in the radiologist's orientation whatever that of the file."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import inv_ornt_aff

from med3d_nets.report_slices import PLANES, Cut, cut_class, read_pictures

RAS = np.diag([2.0, 0.5, 3.0, 1.0])
SHAPE = (9, 14, 7)


def volumes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, prediction and reference, ``(right, front, head)``, without any symmetry."""
    reference = np.zeros(SHAPE, bool)
    reference[2:5, 3:10, 1:4] = True
    reference[5, 8, 3] = True
    prediction = np.roll(reference, 1, 1)
    return np.arange(reference.size, dtype=np.float32).reshape(SHAPE), prediction, reference


def cut(prediction: np.ndarray, reference: np.ndarray, affine: np.ndarray) -> tuple[Cut, ...]:
    return cut_class(torch.from_numpy(prediction.copy()), torch.from_numpy(reference.copy()), affine)


def test_planes_look_as_radiologists_do() -> None:
    _, prediction, reference = volumes()
    axial, coronal, sagittal = cut(prediction, reference, RAS)
    assert [PLANES[part.plane][0] for part in (axial, coronal, sagittal)] == ["axial", "coronal", "sagittal"]
    assert (axial.index, coronal.index, sagittal.index) == (2, 6, 3)
    assert (axial.shape, coronal.shape, sagittal.shape) == ((14, 9), (7, 9), (7, 14))
    assert (axial.spacing, coronal.spacing, sagittal.spacing) == ((0.5, 2.0), (3.0, 2.0), (3.0, 0.5))
    found = axial.masks()
    # Rows from the front (high) to the back, columns from the patient's right (high) to the left.
    assert np.array_equal(found[0], prediction[::-1, ::-1, 2].T)
    assert np.array_equal(found[1], reference[::-1, ::-1, 2].T)
    assert np.array_equal(coronal.masks()[1], reference[::-1, 6, ::-1].T)
    assert np.array_equal(sagittal.masks()[1], reference[3, ::-1, ::-1].T)
    assert [PLANES[plane][1] for plane in (2, 1, 0)] == ["RLAP", "RLSI", "APSI"]


@pytest.mark.parametrize("order", permutations(range(3)))
def test_orientation_of_the_file_does_not_matter(order: tuple[int, ...], tmp_path: Path) -> None:
    image, prediction, reference = volumes()
    expected = cut(prediction, reference, RAS)
    tilt = np.eye(4)
    tilt[:2, :2] = [[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]
    planes = (image[::-1, ::-1, 2].T, image[::-1, 6, ::-1].T, image[3, ::-1, ::-1].T)
    for flips in product([1, -1], repeat=3):
        turn = np.stack([order, flips], 1)
        affine = tilt @ RAS @ inv_ornt_aff(turn, SHAPE)
        turned = [nibabel.apply_orientation(volume, turn) for volume in (image, prediction, reference)]
        found = cut(turned[1], turned[2], affine)
        for one, other in zip(found, expected, strict=True):
            assert (one.plane, one.shape, one.bits) == (other.plane, other.shape, other.bits)
            assert one.spacing == pytest.approx(other.spacing)
        path = tmp_path / f"{flips}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(turned[0], affine), path)
        for picture, plane in zip(read_pictures(str(path), turned[0].shape, affine, found), planes, strict=True):
            assert np.array_equal(picture, plane)


def test_every_slice_meets_a_class_in_parts() -> None:
    reference = np.zeros((20, 20, 20), bool)
    reference[1, 1, 1] = reference[18, 18, 17] = True
    found = cut(np.zeros_like(reference), reference, np.eye(4))
    assert all(part.masks()[1].any() for part in found)
    assert not any(part.masks()[0].any() for part in found)


def test_class_that_is_in_one_or_in_neither() -> None:
    nothing, one = np.zeros((4, 5, 6), bool), np.zeros((4, 5, 6), bool)
    one[2, 3, 4] = True
    assert cut(nothing, nothing, np.eye(4)) == ()
    assert [part.index for part in cut(one, nothing, np.eye(4))] == [4, 3, 2]


def test_slices_are_small() -> None:
    reference = np.zeros((20, 256, 256), bool)
    reference[5:15, 60:200, 60:200] = True
    assert sum(len(part.bits) for part in cut(reference, reference, np.eye(4))) < 2000


def test_affine_without_volume() -> None:
    _, prediction, reference = volumes()
    assert [part.shape for part in cut(prediction, reference, np.zeros((4, 4)))] == [(14, 9), (7, 9), (7, 14)]


def test_image_of_another_shape(tmp_path: Path) -> None:
    path = tmp_path / "image.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)), path)
    with pytest.raises(ValueError, match=r"shape \(4, 5, 6\), its label map \(4, 5, 7\)"):
        read_pictures(str(path), (4, 5, 7), np.eye(4), [])
