"""What of a case is put into the viewer's page."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import OBLIQUE
from monai.metrics import compute_dice
from viewed import AFFINES, world

from med3d_nets.viewer_volumes import (
    CT_WINDOWS,
    Shown,
    count_classes,
    crop_to_labels,
    dice,
    encode,
    find_window,
    middle,
    read_shown,
    reduce_to,
    store,
)

SHAPE = (12, 16, 8)


def ramp(affine: np.ndarray, axis: int) -> np.ndarray:
    """An image whose values are where its voxels are, in mm."""
    return world(affine, SHAPE)[..., axis].astype(np.float32)


def labelled() -> dict[str, np.ndarray]:
    truth = np.zeros(SHAPE, np.uint8)
    truth[3:6, 4:9, 2:5] = 1
    truth[8:11, 10:12, 5] = 2
    return {"truth": truth, "prediction": np.roll(truth, 1, 1)}


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("axis", range(3))
def test_places_stay_true_when_a_volume_is_cut_or_averaged(name: str, axis: int) -> None:
    affine = AFFINES[name]
    whole = Shown(ramp(affine, axis), affine, labelled(), affine)
    for changed in (crop_to_labels(whole, 2.0), reduce_to(whole, 400), reduce_to(crop_to_labels(whole, 3.0), 100)):
        assert changed.image.shape != SHAPE
        assert changed.notes
        expected = world(changed.affine, changed.image.shape)[..., axis]
        full = tuple(slice(0, length - 1) for length in changed.image.shape)  # the last blocks may lack voxels
        assert changed.image[full] == pytest.approx(expected[full], abs=1e-4)
        assert all(volume.shape == changed.image.shape for volume in changed.labels.values())
        assert changed.file_affine is affine


def test_the_box_has_the_margin_and_stays_within_the_volume() -> None:
    affine = np.diag([1.0, 2.0, 4.0, 1.0])
    labels = {"truth": labelled()["truth"]}
    found = crop_to_labels(Shown(ramp(affine, 0), affine, labels, affine), 4.0)
    assert found.image.shape == (12, 12, 6)
    assert (found.labels["truth"] > 0).sum() == (labels["truth"] > 0).sum()
    assert found.notes == ("The box within 4 mm of truth and prediction: 12 x 12 x 6 of 12 x 16 x 8 voxels.",)
    nothing = crop_to_labels(Shown(ramp(affine, 0), affine, {}, affine), 4.0)
    assert nothing.image.shape == SHAPE
    assert nothing.notes == ("No label here to cut the volume to.",)


def test_blocks_grow_along_the_finest_spacing_and_take_the_class_of_most_voxels() -> None:
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    truth = np.zeros((6, 6, 4), np.uint8)
    truth[0, 0, 0] = truth[2:4, 2:4, 1] = 3
    truth[4, 4, 2] = truth[4, 5, 2] = truth[5, 4, 2] = 2
    truth[4:, :2, 3] = [[1, 2], [2, 2]]
    image = np.arange(truth.size, dtype=np.int16).reshape(truth.shape)
    found = reduce_to(Shown(image, affine, {"truth": truth}, affine), 36)
    assert found.image.shape == (3, 3, 4)
    assert found.notes == (
        "Averaged over blocks of 2 x 2 x 1 voxels, classes by majority: 3 x 3 x 4 of 6 x 6 x 4 voxels.",
    )
    assert found.image.dtype == np.int16
    assert found.image[0, 0, 0] == np.rint(image[:2, :2, 0].mean())
    expected = np.zeros((3, 3, 4), np.uint8)
    expected[1, 1, 1], expected[2, 2, 2], expected[2, 0, 3] = 3, 2, 2
    assert np.array_equal(found.labels["truth"], expected)


def test_a_small_volume_is_left_as_it_is() -> None:
    whole = Shown(ramp(OBLIQUE, 0), OBLIQUE, labelled(), OBLIQUE)
    assert reduce_to(whole, whole.image.size) is whole


@pytest.mark.parametrize(
    ("around", "elsewhere", "name"),
    [(-800, -800, "lung"), (60, -1000, "soft tissue"), (60, -800, "soft tissue"), (700, 30, "bone")],
)
def test_ct_has_the_window_of_what_is_around_the_labels(around: int, elsewhere: int, name: str) -> None:
    image = np.full((40, 40, 40), elsewhere, np.int16)
    image[:5] = -1000
    image[20:36, 20:36, 20:36] = around
    truth = np.zeros(image.shape, np.uint8)
    truth[26:30, 26:30, 26:30] = 1
    found = find_window(Shown(image, np.diag([4.0, 4.0, 4.0, 1.0]), {"truth": truth}, np.eye(4)))
    assert (found.modality, found.name) == ("ct", name)
    assert (found.lower, found.upper) == CT_WINDOWS[name]


def test_mr_has_the_window_of_its_values() -> None:
    image = np.zeros((20, 20, 20), np.float32)
    image[5:15] = np.linspace(100, 900, 4000).reshape(10, 20, 20)
    image[10, 10, 10] = 1e5
    found = find_window(Shown(image, np.eye(4), {}, np.eye(4)))
    assert found.modality == "mr"
    assert found.lower == pytest.approx(104, abs=2)
    assert found.upper == pytest.approx(896, abs=2)
    flat = find_window(Shown(np.full((4, 4, 4), 7.0), np.eye(4), {}, np.eye(4)))
    assert (flat.lower, flat.upper) == (7, 8)
    assert find_window(Shown(image, np.eye(4), {}, np.eye(4)), "ct").name


def test_whole_numbers_are_stored_as_they_are() -> None:
    small = np.arange(256).reshape(4, 8, 8)
    assert store(small, (0, 10))[0].dtype == np.uint8
    for image in (np.array([[[-1024, 3071]]], np.int32), np.array([[[-1024.0, 3071.0]]], np.float32)):
        voxels, slope, intercept = store(image, (0, 10))
        assert (voxels.dtype, slope, intercept) == (np.int16, 1, 0)
        assert np.array_equal(voxels, image)


def test_other_numbers_are_rounded_finer_than_a_grey_level() -> None:
    image = np.random.RandomState(0).normal(0.3, 0.1, SHAPE).astype(np.float32)
    image[0, 0, 0] = 1e9
    voxels, slope, intercept = store(image, (0.1, 0.5))
    assert voxels.dtype == np.int16
    back = voxels * slope + intercept
    assert np.abs(back - image).ravel()[1:].max() <= 0.4 / 1024 / 2 + 1e-6
    assert back[0, 0, 0] == pytest.approx(0.3 + 32 * 0.4, rel=1e-3)


def test_files_are_the_same_bytes_each_time_and_hold_slope_and_intent() -> None:
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    content = encode(voxels, OBLIQUE, 0.25, 3.0)
    assert content == encode(voxels, OBLIQUE, 0.25, 3.0)
    found = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
    assert np.asanyarray(found.dataobj) == pytest.approx(voxels * 0.25 + 3)
    assert found.affine == pytest.approx(OBLIQUE, abs=1e-5)
    assert found.header.get_xyzt_units()[0] == "mm"
    label = nibabel.Nifti1Image.from_bytes(gzip.decompress(encode(voxels, OBLIQUE, label=True)))
    assert label.header.get_intent()[0] == "label"


def test_dice_is_that_of_an_evaluation() -> None:
    labels = labelled()
    labels["prediction"][0, 0, 0] = 3
    counts = count_classes(labels, 5)
    assert counts.sum(1).tolist() == np.bincount(labels["truth"].ravel(), minlength=5).tolist()
    assert counts.sum(0).tolist() == np.bincount(labels["prediction"].ravel(), minlength=5).tolist()
    one_hot = [torch.from_numpy(np.stack([labels[name] == value for value in range(5)])) for name in labels]
    expected = compute_dice(one_hot[1][None], one_hot[0][None], include_background=False)[0].numpy()
    assert dice(counts) == pytest.approx(expected, nan_ok=True)
    assert np.isnan(dice(counts)).tolist() == [False, False, True, True]
    alone = count_classes({"prediction": labels["prediction"]}, 4)
    assert alone.sum(0).tolist() == counts.sum(0)[:4].tolist()


@pytest.mark.parametrize("name", AFFINES)
def test_the_first_slices_meet_the_truth(name: str) -> None:
    affine, labels = AFFINES[name], labelled()
    point = middle(Shown(ramp(affine, 0), affine, labels, affine))
    index = np.rint(nibabel.affines.apply_affine(np.linalg.inv(affine), point)).astype(int)
    assert all((labels["truth"].take(place, axis) > 0).any() for axis, place in enumerate(index))
    predicted = {"truth": np.zeros(SHAPE, np.uint8), "prediction": labels["prediction"]}
    shifted = middle(Shown(ramp(affine, 0), affine, predicted, affine))
    assert np.subtract(shifted, point) == pytest.approx(affine[:3, 1], abs=1e-6)
    centre = middle(Shown(ramp(affine, 0), affine, {}, affine))
    assert centre == pytest.approx(nibabel.affines.apply_affine(affine, [5, 7, 3]))


def test_labels_with_wrong_values_or_without_end_are_problems(tmp_path: Path) -> None:
    image, label = str(tmp_path / "image.nii.gz"), str(tmp_path / "label.nii.gz")
    nibabel.save(nibabel.Nifti1Image(ramp(np.eye(4), 0), np.eye(4)), image)
    for value, said in ((1.5, "the value 1.5"), (-1.0, "the value -1"), (np.nan, "1 NaN and 0 infinite voxels")):
        voxels = np.zeros(SHAPE, np.float32)
        voxels[1, 2, 3] = value
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), label)
        problems: list[str] = []
        assert read_shown([image], {"truth": label}, 0, problems) is None
        assert len(problems) == 1
        assert f"{label}: found {said}" in problems[0]
