"""What is measured in training cases: independent of the files' axes, and bounded however many there are."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from conftest import OBLIQUE
from monai.transforms import Compose, CropForeground, EnsureChannelFirst, LoadImage, Orientation, Spacing

from med3d_nets import fingerprint
from med3d_nets.errors import Med3dError
from med3d_nets.fingerprint import (
    CaseFingerprint,
    Fingerprint,
    count_classes,
    measure_case,
    measure_cases,
    measure_image,
)
from med3d_nets.transforms import not_background

Array = np.ndarray[Any, Any]
SHAPE = (12, 15, 9)


def volumes(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> tuple[Array, Array]:
    """An image with an empty margin, and a label with two classes of different sizes."""
    random = np.random.RandomState(seed)
    image, label = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    image[2:, 1:-1, :-2] = random.normal(100, 20, (shape[0] - 2, shape[1] - 2, shape[2] - 2))
    label[3:7, 4:9, 2:4] = 1
    label[8:10, 10:12, 5:7] = 2
    return image, label


def save(folder: Path, name: str, image: Array, label: Array, affine: Array) -> dict[str, str]:
    case = {key: str(folder / f"{name}_{key}.nii.gz") for key in ("image", "label")}
    for key, array in (("image", image), ("label", label)):
        nibabel.save(nibabel.Nifti1Image(array, affine), case[key])
    return case


def same(one: CaseFingerprint, other: CaseFingerprint) -> bool:
    return all(np.array_equal(value, getattr(other, name)) for name, value in vars(one).items())


def test_the_order_of_axes_in_the_file_makes_no_difference(tmp_path: Path) -> None:
    image, label = volumes()
    affine = np.diag([0.7, 1.1, 2.5, 1])
    affine[:3, 3] = 5, -7, 11
    expected = measure_case(save(tmp_path, "ras", image, label, affine), 3)
    assert expected.shape == SHAPE
    assert expected.spacing == (0.7, 1.1, 2.5)
    assert expected.content == (10, 13, 7)
    assert expected.counts == (12 * 15 * 9 - 48, 40, 8)
    for order, signs in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        orientation = np.column_stack([order, signs])
        turned = [nibabel.apply_orientation(array, orientation) for array in (image, label)]
        moved = affine @ nibabel.orientations.inv_ornt_aff(orientation, SHAPE)
        assert same(measure_case(save(tmp_path, "turned", *turned, moved), 3), expected), (order, signs)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 2.5, 1.1), (0.37, 0.61, 3.0)])
def test_shapes_are_those_that_monai_makes(tmp_path: Path, spacing: tuple[float, float, float]) -> None:
    image, label = volumes()
    case = save(tmp_path, "oblique", image, label, OBLIQUE)
    measured = measure_cases([case], 3)
    turn = Compose([LoadImage(image_only=True), EnsureChannelFirst(), Orientation("RAS", labels=None)])
    resample = Spacing(spacing)
    turned = turn(case["image"])
    assert measured.cases[0].shape == tuple(turned.shape[1:])
    assert measured.cases[0].spacing == pytest.approx(turned.pixdim.tolist())
    assert measured.shapes_at(spacing)[0].tolist() == list(resample(turned).shape[1:])
    cropped = CropForeground(not_background, allow_smaller=False)(turned)
    assert measured.cases[0].content == tuple(cropped.shape[1:])
    assert measured.shapes_at(spacing, content=True)[0].tolist() == list(resample(cropped).shape[1:])


def test_volumes_are_in_millilitres(tmp_path: Path) -> None:
    case = save(tmp_path, "one", *volumes(), np.diag([1, 2, 5, 1]))
    assert measure_cases([case], 3).volumes[0, 1:].tolist() == [0.4, 0.08]


def test_a_scaled_file_of_four_axes_is_read_in_its_unit(tmp_path: Path) -> None:
    image, label = volumes()
    case = save(tmp_path, "one", image, label, np.eye(4))
    volume = nibabel.Nifti1Image((image[..., None] + 1024).astype(np.int16), np.eye(4))
    volume.header.set_slope_inter(1, -1024)
    nibabel.save(volume, case["image"])
    found = measure_case(case, 3)
    assert found.intensities == pytest.approx(image[label > 0], abs=1)
    assert found.content == (10, 13, 7)


def test_intensities_of_many_cases_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "MAX_VALUES", 100)
    cases = [save(tmp_path, str(index), *volumes(index), np.eye(4)) for index in range(2)]
    few, many = measure_cases(cases[:1], 3), measure_cases(cases * 10, 3)
    assert few.intensities.size == 48  # all of them
    assert many.intensities.size == 20 * (100 // 20)
    assert set(many.cases[0].intensities) <= set(few.intensities)


def test_each_thread_holds_one_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = save(tmp_path, "one", *volumes(), np.eye(4))
    result, now, most, lock = measure_case(case, 3), 0, 0, threading.Lock()

    def slow(*_: object) -> CaseFingerprint:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.002)
        with lock:
            now -= 1
        return result

    monkeypatch.setattr(fingerprint, "measure_case", slow)
    assert len(measure_cases([case] * 60, 3, num_workers=3).cases) == 60
    assert 1 < most <= 3


def slopes(*rows: Any) -> Fingerprint:
    """Cases with these differences between left and right, of an image and one class."""
    empty = np.zeros(0, np.float32)
    made = []
    for image, label in rows:
        array = np.zeros((2, 3, 4), np.float32)
        array[0, 0], array[1, 0] = image, label
        made.append(CaseFingerprint((8, 8, 8), (1, 1, 1), (8, 8, 8), (400, 112), (0, 1, 2), empty, array))
    return Fingerprint(tuple(made))


def test_a_direction_is_what_the_cases_agree_on() -> None:
    random = np.random.RandomState(0)
    noise = [(random.normal(0, 1, 4), random.normal(0, 1, 4)) for _ in range(40)]
    share, _ = slopes(*noise).direction(0)
    assert share < 0.1
    share, where = slopes(*((image, 3 + label) for image, label in noise)).direction(0)
    assert (share > 0.8, where) == (True, 1)
    share, where = slopes(*((image - 3, label) for image, label in noise)).direction(0)
    assert (share > 0.8, where) == (True, 0)
    halves = [(image, label + (3 if index % 2 else -3)) for index, (image, label) in enumerate(noise)]
    assert slopes(*halves).direction(0)[0] < 0.1  # left in half of the cases, right in the others
    assert slopes(*halves).direction(1) == (0, 0)  # nothing there at all
    assert slopes(noise[0]).direction(0) == (0, 0)  # one case agrees with itself alone


def test_directions_are_seen_in_files(tmp_path: Path) -> None:
    cases = []
    for index in range(4):
        image, label = volumes(index)
        flip = index % 2 == 1
        cases.append(
            save(tmp_path, str(index), *(array[::-1] if flip else array for array in (image, label)), np.eye(4))
        )
    measured = measure_cases(cases, 3)
    assert measured.direction(0)[0] < 0.05
    assert measured.direction(1)[0] > 0.9
    assert measured.direction(2)[0] > 0.9


def test_the_number_of_classes_is_that_of_the_labels(tmp_path: Path) -> None:
    image, label = volumes()
    case = save(tmp_path, "one", image, label, np.eye(4))
    assert count_classes([case]) == 3
    assert count_classes([save(tmp_path, "gap", image, (label == 2) * np.uint8(2), np.eye(4))]) == 3
    with pytest.raises(Med3dError, match=r"label values 0, 255; .* --n_seg_classes \(256 for these\)"):
        count_classes([save(tmp_path, "mask", image, (label > 0) * np.uint8(255), np.eye(4))])
    with pytest.raises(Med3dError, match="no foreground in the labels of 1 training cases"):
        count_classes([save(tmp_path, "empty", image, label * 0, np.eye(4))])


def test_an_image_alone_is_measured_as_with_its_label(tmp_path: Path) -> None:
    image, label = volumes()
    with_label = measure_case(save(tmp_path, "one", image, label, np.diag([0.7, 1.1, 2.5, 1])), 3)
    found = measure_image(image[..., None], (0.7, 1.1, 2.5), image[label > 0])
    for name in ("shape", "spacing", "content", "percentiles", "intensities"):
        assert np.array_equal(getattr(found, name), getattr(with_label, name)), name
    assert found.counts == (12 * 15 * 9,)
    assert np.array_equal(found.slopes, with_label.slopes[:1])
    assert Fingerprint((found,) * 2).direction(2) == (pytest.approx(1), 0)


def test_an_image_keeps_values_that_are_evenly_drawn() -> None:
    image = np.arange(2 * 3 * 4 * 2).reshape(2, 3, 4, 2)
    found = measure_image(image, (1, 1, 1), image, max_values=4)
    assert found.intensities.tolist() == [0, 15, 31, 47]
    assert found.intensities.dtype == np.float32
    assert found.shape == (2, 3, 4)
    assert found.percentiles[1] == 23.5  # of both channels
    assert measure_image(image, (1, 1, 1), image).intensities.tolist() == list(range(48))
    flat = measure_image(np.full((2, 3, 4, 1), 7), (1, 1, 1), np.empty(0))
    assert flat.intensities.size == 0
    assert not flat.slopes.any()


def test_errors_name_the_file(tmp_path: Path) -> None:
    image, label = volumes()
    case = save(tmp_path, "one", image, label, np.eye(4))
    with pytest.raises(Med3dError, match=r"one_label.nii.gz: found label values 0 to 2; expected 0 to 1"):
        measure_cases([case], 2)
    with pytest.raises(Med3dError, match=r"one_image.nii.gz: found shape \(12, 15, 9\); expected in_channels=2"):
        measure_cases([case], 3, in_channels=2)
    with pytest.raises(Med3dError, match="no foreground in the labels of 1 training cases"):
        measure_cases([save(tmp_path, "empty", image, label * 0, np.eye(4))], 3)
    with pytest.raises(Med3dError, match="found no training cases"):
        measure_cases([], 3)
    shorter = save(tmp_path, "short", image, label[1:], np.eye(4))
    with pytest.raises(Med3dError, match=r"short_label.nii.gz: found shape \(11, 15, 9\); expected \(12, 15, 9\)"):
        measure_cases([shorter], 3)
    Path(case["image"]).write_bytes(b"nothing")
    with pytest.raises(Med3dError, match=r"one_image.nii.gz: found an unreadable file"):
        measure_cases([case], 3)
