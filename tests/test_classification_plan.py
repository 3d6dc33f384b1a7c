"""The planner's rules for classification, on cases made up for each, and what it measures in files."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from classified import volumes
from conftest import OBLIQUE
from test_datalist import message, ramp, save
from test_planning import AIR, GB, MR
from test_planning import made as made_with_classes

from med3d_nets import planning
from med3d_nets.classification import plan as module
from med3d_nets.classification.plan import RegionPlan, measure_regions, plan_classification, plan_regions
from med3d_nets.errors import Med3dError
from med3d_nets.fingerprint import CaseFingerprint, Fingerprint

BYTES = np.arange(256, dtype=np.float32)


def made(
    shape: tuple[int, int, int] = (40, 40, 40),
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    **others: Any,
) -> CaseFingerprint:
    return made_with_classes(shape, spacing, **{"classes": 1, **others})


def plan(*cases: CaseFingerprint, in_channels: int = 1, **options: Any) -> RegionPlan:
    return plan_regions(Fingerprint(cases or (made(),), in_channels), **{"memory_gb": GB, **options})


def test_spacing_is_the_median_of_regions_with_enough_voxels() -> None:
    found = plan(made(spacing=(0.6, 0.7, 1.0)), made(spacing=(0.8, 0.7, 1.5)), made(spacing=(0.7, 0.7, 9.0)))
    assert found.spacing == (0.7, 0.7, 1.5)
    assert found.reasons["spacing"] == "spacing 0.7 x 0.7 x 1.5 mm: median of 3 cases"
    assert plan(made((32, 9, 9))).spacing == (1, 1, 1)
    coarse = plan(*(made((320, 320, 20), (0.6, 0.8, mm)) for mm in [3.0, *[5.0] * 18, 8.0]))
    assert "the 10th percentile along the coarse inferior-superior axis" in coarse.reasons["spacing"]


def test_small_regions_are_refined_alike_along_all_axes() -> None:
    small, large = made((24, 16, 12), (1.0, 1.0, 2.0)), made((80, 60, 40), (1.0, 1.0, 2.0))
    found = plan(small, small, large)
    assert found.spacing == (0.75, 0.75, 1.5)
    expected = "spacing 0.75 x 0.75 x 1.5 mm: median of 3 cases; then finer, for 32 voxels where most have 24"
    assert found.reasons["spacing"] == expected
    assert plan(small, large, large).spacing == (1, 1, 2)
    assert "that of the only case; then finer" in plan(small).reasons["spacing"]
    assert plan(small, spacing=[1, 1, 2]).spacing == (1, 1, 2)
    assert plan(small, input_size=[24, 16, 16]).spacing == (1, 1, 2)  # finer, and a given input would cut
    assert plan(small, input_size=[48, 32, 32]).spacing == (0.75, 0.75, 1.5)


def test_input_holds_all_but_the_largest_regions() -> None:
    usual, large = made((33, 40, 25)), made((90, 80, 70))
    found = plan(*[usual] * 96, *[large] * 4)
    assert found.input_size == (40, 40, 32)  # multiples of 8
    assert "90 % of the cases' extents fit in; compare the cases' median of 33 x 40 x 25" in found.reasons["input_size"]
    assert "of 4 of 100 cases the outer parts are cropped" in found.reasons["input_size"]
    assert plan(*[usual] * 85, *[large] * 15).input_size == (96, 80, 72)
    assert plan(made((40, 40, 3))).input_size == (40, 40, 16)  # two of what the encoder makes one of
    assert plan(made(spacing=(2.0, 1.0, 1.0)), spacing=[1, 1, 1]).input_size == (80, 40, 40)  # 79 voxels


def test_resized_volumes_have_the_median_shape() -> None:
    cases = [*[made((33, 40, 25))] * 8, *[made((90, 80, 70))] * 2]
    found = plan(*cases, keep_size=False)
    assert found.input_size == (40, 40, 32)
    assert "all volumes are resized to it" in found.reasons["input_size"]
    assert plan(*cases).input_size == (96, 80, 72)


@pytest.mark.parametrize(
    ("options", "by"),
    [
        ({"device": "cuda", "memory_gb": 2, "variant": "resnet_50"}, "80% of 2 GB of memory"),
        ({"device": "cuda", "memory_gb": 80}, "a GPU's time"),
        ({"device": "cpu"}, "a CPU's time"),
        ({"device": "cpu", "memory_gb": 1}, "50% of 1 GB of memory"),
    ],
)
def test_whole_volumes_fit_at_a_coarser_spacing(options: dict[str, Any], by: str) -> None:
    found = plan(made((400, 300, 200), (0.8, 0.8, 1.6)), **options)
    assert found.spacing[0] == found.spacing[1] == pytest.approx(found.spacing[2] / 2, rel=1e-4)
    extents = [size * mm for size, mm in zip(found.input_size, found.spacing, strict=True)]
    assert all(extent >= whole for extent, whole in zip(extents, (320, 240, 320), strict=True))
    assert f"then coarser, so that whole volumes fit, limited by {by}" in found.reasons["spacing"]
    assert "cropped" not in found.reasons["input_size"]
    resized = plan(made((400, 300, 200), (0.8, 0.8, 1.6)), **options, keep_size=False)
    assert resized.input_size == found.input_size
    if "time" in by and options["device"] == "cuda":
        assert 0.5 * planning.GPU_VOXELS < 2 * math.prod(found.input_size) <= planning.GPU_VOXELS


LIMITS = [({"device": "cuda", "memory_gb": 80}, "a GPU's time"), ({"device": "cpu"}, "a CPU's time")]


@pytest.mark.parametrize(("options", "by"), LIMITS)
def test_longest_axis_is_shortened_where_the_spacing_is_given(options: dict[str, Any], by: str) -> None:
    found = plan(made((400, 300, 200), (0.8, 0.8, 1.6)), **options, spacing=[0.8, 0.8, 1.6])
    extents = [size * mm for size, mm in zip(found.input_size, found.spacing, strict=True)]
    assert max(extents) - min(extents) <= 8 * 1.6
    assert all(size % 8 == 0 for size in found.input_size)
    assert found.batch_size == 2
    assert f"limited by {by}, the longest axis in mm shortened first" in found.reasons["input_size"]
    assert "of 1 of 1 cases the outer parts are cropped" in found.reasons["input_size"]
    if options["device"] == "cuda":
        assert 0.8 * planning.GPU_VOXELS < 2 * math.prod(found.input_size) <= planning.GPU_VOXELS


def test_checkpointing_makes_room() -> None:
    options = {"variant": "resnet_50", "device": "cuda", "memory_gb": 2}
    plain, saved = (plan(made((300, 300, 300)), **options, activation_checkpointing=value) for value in (False, True))
    assert math.prod(saved.input_size) > 1.5 * math.prod(plain.input_size)


@pytest.mark.parametrize(("device", "sizes"), [("cpu", {40: 8, 64: 4, 88: 2}), ("cuda", {64: 16, 80: 8, 96: 4})])
def test_batch_is_as_large_as_fits(device: str, sizes: dict[int, int]) -> None:
    found = {edge: plan(made((edge, edge, edge)), device=device, memory_gb=80) for edge in sizes}
    assert {edge: each.batch_size for edge, each in found.items()} == sizes
    assert all(each.input_size == (edge, edge, edge) for edge, each in found.items())
    reasons = [each.reasons["batch_size"] for each in found.values()]
    most = max(sizes.values())
    assert f"batch_size {most}: at most {most}; training takes about" in reasons[0]
    assert all("as many as fit; training takes about" in reason for reason in reasons[1:])


def test_values_of_bytes_are_normalised_by_the_training_set() -> None:
    case = made(percentiles=MR, intensities=BYTES)
    found = plan(case, case)
    expected = {"lower": 0, "upper": 255, "mean": 127.5, "std": np.std(np.arange(256))}
    assert found.intensity == pytest.approx(expected, rel=1e-5)
    assert "as in pictures of 8 bits" in found.reasons["intensity"]
    same = plan(made(percentiles=MR, intensities=np.full(9, 7, np.float32)))
    assert same.intensity == {"lower": 0, "upper": 255, "mean": 7, "std": 1}
    for others in (BYTES + 1, BYTES - 1):  # one value is beyond, in one case of two
        assert plan(case, made(percentiles=MR, intensities=others)).intensity is None
    assert plan(case, intensity="mr").intensity is None
    assert plan(case, in_channels=2).intensity is None
    assert plan(case, intensity=[10, 20]).intensity["upper"] == 20


def test_other_intensities_are_as_for_segmentation() -> None:
    clip = plan(*[made(percentiles=AIR)] * 3).intensity
    assert clip == pytest.approx({"lower": -500, "upper": 500, "mean": 0, "std": 291.548}, rel=1e-3, abs=1e-3)
    found = plan(*[made(percentiles=MR)] * 3)
    assert found.intensity is None
    assert "each volume normalised" in found.reasons["intensity"]


def test_flips_need_ten_cases_without_a_direction_or_a_named_side() -> None:
    assert plan(*[made()] * 9).flip_axes == ()
    assert plan(*[made()] * 10).flip_axes == (0, 1, 2)
    tilted = np.zeros((1, 3, 4), np.float32)
    tilted[0, 2] = 1
    found = plan(*[made(slopes=tilted)] * 10)
    assert found.flip_axes == (0, 1)
    assert "not inferior-superior (the image lies the same way" in found.reasons["flip_axes"]
    assert plan(*[made()] * 10, class_names=["left kidney", "right kidney"]).flip_axes == (1, 2)
    assert plan(*[made()] * 10, flip_axes=[2, 0]).flip_axes == (0, 2)


def test_flat_regions_are_turned_in_their_plane() -> None:
    assert not plan(made()).anisotropic
    assert plan(made(spacing=(0.7, 0.7, 2.5))).anisotropic
    assert plan(made((64, 64, 10))).anisotropic


def test_what_is_given_is_taken_and_each_setting_has_a_reason() -> None:
    given = {"spacing": [2, 2, 3.0], "input_size": [20, 30, 44], "batch_size": 7, "intensity": "mr", "flip_axes": [1]}
    found = plan(made((200, 200, 200)), **given)
    expected = {**given, "spacing": (2, 2, 3), "input_size": (20, 30, 44), "intensity": None, "flip_axes": (1,)}
    assert {name: getattr(found, name) for name in given} == expected
    assert all("as given" in found.reasons[name] for name in given)
    assert found.reasons.keys() == asdict(found).keys() - {"reasons"}


def test_too_little_memory_is_an_error_unless_the_batch_is_given(caplog: pytest.LogCaptureFixture) -> None:
    text = r"^a batch of 2 volumes of 16 x 16 x 16 voxels: training takes about .* GB of 0.3 GB, .* --input_size"
    with pytest.raises(Med3dError, match=text):
        plan(memory_gb=0.3)
    with pytest.raises(Med3dError, match=r"^a batch of 2 volumes of 200 x 200 x 100 voxels"):
        plan(memory_gb=1, input_size=[200, 200, 100])
    found = plan(memory_gb=1, input_size=[200, 200, 100], batch_size=3)
    assert (found.input_size, found.batch_size) == ((200, 200, 100), 3)
    assert "a batch of 3 volumes of 200 x 200 x 100 voxels: training takes about" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [("spacing", [1, 0, 1]), ("input_size", [64, 64, 4]), ("batch_size", True), ("flip_axes", [3]), ("memory_gb", -1)],
)
def test_values_that_make_no_sense_are_told_before_files_are_read(name: str, value: object) -> None:
    said = message(plan_classification, [{"image": "none.nii"}], **{name: value})
    assert said.startswith(f"{name} is {value!r}, expected ")
    assert message(plan_regions, Fingerprint((made(),)), **{name: value}) == said
    with pytest.raises(Med3dError, match="no variant 'resnet_11'"):
        plan_classification([{"image": "none.nii"}], variant="resnet_11")


# Files. Axis x of those with OBLIQUE runs to inferior, y to left and z to anterior.

SHAPE = (12, 20, 16)
BOX = (slice(2, 6), slice(5, 15), slice(9, 16))


def write(folder: Path, name: str, start: int = 0) -> dict[str, str]:
    mask = np.zeros(SHAPE, np.uint8)
    mask[BOX] = 1
    image = save(folder / f"{name}.nii.gz", ramp(SHAPE) + start, OBLIQUE)
    return {"image": str(image), "mask": str(save(folder / f"{name}_mask.nii.gz", mask, OBLIQUE))}


def same(one: CaseFingerprint, other: CaseFingerprint) -> bool:
    return all(np.array_equal(value, getattr(other, name)) for name, value in vars(one).items())


def test_regions_of_masks_are_measured_in_ras_order(tmp_path: Path) -> None:
    case = write(tmp_path, "a")
    (found,) = measure_regions([case]).cases
    assert found.spacing == pytest.approx((0.8, 1.1, 2.5), abs=1e-3)
    assert found.shape == found.content == (10, 7, 4)
    assert found.counts == (280,)
    assert np.array_equal(np.sort(found.intensities), ramp(SHAPE)[BOX].ravel())
    assert found.slopes.shape == (1, 3, 4)
    # Values rise along y, to the left, so that the first half to the right is brighter; likewise the others.
    assert (np.sign(found.slopes[0, :, 0]) == [1, -1, 1]).all()
    assert measure_regions([case], margin_mm=2.6).cases[0].shape == (16, 9, 6)
    assert measure_regions([{"image": case["image"]}]).cases[0].shape == (20, 16, 12)
    for path in case.values():
        nibabel.save(nibabel.as_closest_canonical(nibabel.load(path)), path)
    assert same(measure_regions([case]).cases[0], found)


def test_arrays_are_measured_as_they_lie(tmp_path: Path) -> None:
    grey, colour = volumes(3, SHAPE), volumes(2, (*SHAPE, 3))
    np.savez(tmp_path / "a.npz", train_images=grey, val_images=colour)
    found = measure_regions([{"image": f"{tmp_path / 'a.npz'}::train_images::{index}"} for index in (2, 0)])
    assert [case.shape for case in found.cases] == [SHAPE] * 2
    assert [case.spacing for case in found.cases] == [(1, 1, 1)] * 2
    assert np.array_equal(found.cases[0].intensities, grey[2].ravel())
    assert np.array_equal(found.cases[1].intensities, grey[0].ravel())
    several = measure_regions([{"image": f"{tmp_path / 'a.npz'}::val_images::1"}], in_channels=3)
    assert (several.in_channels, several.cases[0].shape) == (3, SHAPE)


def test_values_of_many_cases_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_VALUES", 100)
    cases = [write(tmp_path, str(index)) for index in range(2)]
    assert measure_regions(cases).intensities.size == 100
    assert measure_regions(cases * 10, num_workers=3).intensities.size == 100


def test_processes_share_the_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [write(tmp_path, str(index), index) for index in range(3)]
    alone = measure_regions(cases)
    monkeypatch.setattr(module, "shard", lambda items: items[1::2])
    monkeypatch.setattr(module, "gather", lambda mine: [alone.cases[0], *mine, alone.cases[2]])
    assert all(map(same, measure_regions(cases).cases, alone.cases))


def test_files_give_a_plan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    found = plan_classification([write(tmp_path, str(index)) for index in range(2)], memory_gb=GB, device="cpu")
    assert found.spacing == pytest.approx([mm * 10 / 32 for mm in (0.8, 1.1, 2.5)], abs=1e-3)
    assert found.input_size == (32, 24, 16)
    assert [record.getMessage() for record in caplog.records if "plan: " in record.getMessage()] == [
        f"plan: {reason}" for reason in found.reasons.values()
    ]
    json.dumps(asdict(found))


def test_errors_name_the_file(tmp_path: Path) -> None:
    assert message(measure_regions, []) == "found no training cases; expected at least one"
    case = write(tmp_path, "a")
    empty = save(tmp_path / "empty.nii.gz", np.zeros(SHAPE, np.uint8), OBLIQUE)
    assert message(measure_regions, [case | {"mask": str(empty)}]).startswith(f"{empty}: found no voxel above 0")
    Path(case["image"]).write_bytes(b"nothing")
    assert message(measure_regions, [case]).startswith(f"{case['image']}: found an unreadable file (")
