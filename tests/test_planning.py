"""The planner's rules, on cases made up for each."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from conftest import write_case

from med3d_nets import planning
from med3d_nets.errors import Med3dError
from med3d_nets.fingerprint import CaseFingerprint, Fingerprint
from med3d_nets.planning import Plan, make_plan, plan_training

AIR, SOFT, MR = (-1000.0, -800.0, 400.0), (-110.0, 40.0, 250.0), (0.0, 300.0, 900.0)
GB = 16.0


def made(
    shape: tuple[int, int, int] = (36, 50, 40),
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    percentiles: tuple[float, float, float] = MR,
    classes: int = 2,
    **others: Any,
) -> CaseFingerprint:
    """A case without any direction."""
    counts = (math.prod(shape) - 10 * (classes - 1), *[10] * (classes - 1))
    values = np.linspace(-500, 500, 101, dtype=np.float32)
    measured = {"shape": shape, "spacing": spacing, "content": shape, "counts": counts, "percentiles": percentiles}
    measured |= {"intensities": values, "slopes": np.zeros((classes, 3, 4), np.float32)}
    return CaseFingerprint(**{**measured, **others})


def plan(*cases: CaseFingerprint, in_channels: int = 1, **options: Any) -> Plan:
    return make_plan(Fingerprint(cases or (made(),), in_channels), **{"memory_gb": GB, **options})


def test_patches_are_a_little_less_than_small_crops_and_windows_hold_them() -> None:
    shapes = [(31, 40, 26), (33, 45, 30), *[(35, 50, 36)] * 6, (38, 53, 42), (43, 58, 47)]
    found = plan(*map(made, shapes))
    assert found.orientation == "RAS"
    assert found.spacing == (1, 1, 1)
    assert (found.patch_size, found.window_size) == ((32, 48, 32), (40, 56, 40))
    assert found.batch_size == 2
    on_a_gpu = plan(*map(made, shapes), device="cuda")
    assert replace(on_a_gpu, reasons={}) == replace(found, reasons={})
    assert found.intensity is None
    assert not found.anisotropic
    assert "or a little less, fit; compare the cases' median of 35 x 50 x 36" in found.reasons["patch_size"]
    assert "the median crop as a whole" in found.reasons["window_size"]


@pytest.mark.parametrize(
    ("length", "patch", "window"), [(1, 8, 8), (9, 8, 16), (12, 16, 16), (16, 16, 16), (31, 32, 32), (30, 24, 32)]
)
def test_a_patch_loses_a_fifth_of_an_axis_at_most(length: int, patch: int, window: int) -> None:
    found = plan(made((64, 64, length)))
    assert (found.patch_size, found.window_size) == ((64, 64, patch), (64, 64, window))


def test_flat_structures_of_few_slices() -> None:
    slices = [(2, 2.5), (4, 2.5), (6, 1.25), (6, 1.25), (7, 1.25), (8, 1.25), (12, 0.625), (16, 0.5), (60, 1.0)]
    found = plan(*(made((44, 44, n), (0.7, 0.7, mm), AIR) for n, mm in slices))
    assert found.spacing == (0.7, 0.7, 1.25)  # not coarse enough to be made finer than the median
    assert (found.patch_size, found.window_size) == ((40, 40, 8), (48, 48, 8))
    assert found.anisotropic
    assert "the patch has more than 3 times the voxels" in found.reasons["anisotropic"]


def test_the_empty_margin_does_not_count() -> None:
    found = plan(made((200, 200, 200), content=(33, 40, 17)))
    assert (found.patch_size, found.window_size) == ((32, 40, 16), (40, 40, 24))


def test_the_coarse_axis_is_made_finer() -> None:
    millimetres = [3.0, *[5.0] * 18, 8.0]
    found = plan(*(made((320, 320, 20), (0.6, 0.8, mm)) for mm in millimetres))
    assert found.spacing == (0.6, 0.8, 5.0)  # the 10th percentile
    finer = plan(*(made((320, 320, 20), (0.6, 0.8, mm)) for mm in [0.5, 0.5, 0.5, 5.0, 5.0, 5.0, 5.0]))
    assert finer.spacing == (0.6, 0.8, 0.8)  # but not finer than the other axes
    assert "10th percentile along the coarse inferior-superior axis" in finer.reasons["spacing"]
    assert found.anisotropic
    assert "3 times as long" in found.reasons["anisotropic"]
    many = plan(*(made((100, 100, 90), (0.6, 0.8, mm)) for mm in [0.5, 0.5, 0.5, 5.0, 5.0, 5.0, 5.0]))
    assert many.spacing == (0.6, 0.8, 5.0)  # with as many voxels along it, it is no stack of slices


def test_memory_shrinks_the_patch_to_a_cube_in_millimetres() -> None:
    large = made((512, 512, 200), (0.8, 0.8, 1.6))
    sizes = []
    for memory in (2, 4, 80):
        found = plan(large, device="cuda", memory_gb=memory)
        sizes.append(math.prod(found.patch_size))
        assert found.batch_size == 2
        assert all(size % 8 == 0 for size in found.patch_size)
        extents = [size * mm for size, mm in zip(found.patch_size, found.spacing, strict=True)]
        assert max(extents) - min(extents) <= 8 * 1.6
        by = "a GPU's time" if memory == 80 else f"limited by 80% of {memory} GB of memory"
        assert by in found.reasons["patch_size"]
        assert found.window_size == found.patch_size
    assert sizes[0] < sizes[1] < sizes[2] <= planning.GPU_VOXELS / 2


def test_a_cpu_is_given_less_and_deeper_networks_still_less() -> None:
    large = made((512, 512, 300))
    sizes = [math.prod(plan(large, variant=name).patch_size) for name in ("resnet_10", "resnet_50")]
    assert math.prod(plan(large, device="cuda", memory_gb=80).patch_size) > sizes[0] > sizes[1]
    assert "a CPU's time" in plan(large).reasons["patch_size"]


def test_checkpointing_makes_room_for_a_larger_patch() -> None:
    large = made((512, 512, 200))
    options = {"variant": "resnet_50", "device": "cuda", "memory_gb": 4}
    plain, saved = (plan(large, **options, activation_checkpointing=value) for value in (False, True))
    assert math.prod(saved.patch_size) > 1.5 * math.prod(plain.patch_size)


def test_too_little_memory_is_an_error() -> None:
    with pytest.raises(
        Med3dError, match=r"patches of 16 x 16 x 16 voxels in batches of 2 need .* GB of 0.3 GB.*--memory"
    ):
        plan(memory_gb=0.3)


def test_a_given_patch_is_taken_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    found = plan(patch_size=[200, 200, 100], memory_gb=1)
    assert (found.patch_size, found.batch_size) == ((200, 200, 100), 2)
    assert "patches of 200 x 200 x 100 voxels in batches of 2 need" in caplog.text


def test_what_is_given_is_taken() -> None:
    large = made((512, 512, 300))
    found = plan(
        large, spacing=[2, 2, 3.0], patch_size=[64, 60, 20], batch_size=7, intensity=[-100, 100], flip_axes=[2]
    )
    assert (found.spacing, found.patch_size, found.batch_size) == ((2, 2, 3), (64, 60, 20), 7)
    assert found.flip_axes == (2,)
    values = np.clip(np.linspace(-500, 500, 101), -100, 100)
    expected = {"lower": -100, "upper": 100, "mean": 0, "std": values.std()}
    assert found.intensity == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for name in ("spacing", "patch_size", "batch_size", "intensity", "flip_axes"):
        assert "as given" in found.reasons[name]
    assert math.prod(plan(large, batch_size=1).patch_size) > math.prod(plan(large, batch_size=8).patch_size)
    assert plan(large, spacing=[8, 8, 8]).patch_size == (64, 64, 32)  # of 65 x 65 x 38 voxels


def test_a_given_window_and_patch() -> None:
    """A patch is the window too; a window alone leaves the patch to the planner."""
    both = plan(patch_size=[16, 24, 32], window_size=[40, 40, 48])
    assert (both.patch_size, both.window_size) == ((16, 24, 32), (40, 40, 48))
    patch = plan(patch_size=[16, 24, 32])
    assert patch.window_size == (16, 24, 32)
    assert "as the patch" in patch.reasons["window_size"]
    window = plan(window_size=[80, 80, 80])
    assert (window.window_size, window.patch_size) == ((80, 80, 80), plan().patch_size)
    assert "as given" in window.reasons["window_size"]


def test_ct_is_told_by_air_or_fat() -> None:
    clip = plan(*[made(percentiles=AIR)] * 6, *[made(percentiles=SOFT)] * 4).intensity
    assert clip == pytest.approx({"lower": -500, "upper": 500, "mean": 0, "std": 291.548}, rel=1e-3, abs=1e-3)
    soft = plan(*[made(percentiles=SOFT)] * 10)
    assert soft.intensity is not None
    assert "10 of 10 volumes have fat or air" in soft.reasons["intensity"]
    for others in (MR, (-3.0, -0.2, 4.0), (-4096.0, 0.0, 4096.0)):  # MR as it is, standardised, and of phases
        found = plan(*[made(percentiles=others)] * 10)
        assert found.intensity is None, others
        assert "each volume normalised over its non-zero voxels" in found.reasons["intensity"]
    assert plan(made(percentiles=AIR), intensity="mr").intensity is None
    assert plan(made(percentiles=MR), intensity="ct").intensity is not None
    assert plan(made(percentiles=AIR), in_channels=2).intensity is None


def test_a_foreground_of_one_value_is_not_divided_by_zero() -> None:
    metal = made(percentiles=AIR, intensities=np.full(5, 3000, np.float32))
    assert plan(metal).intensity == {"lower": 3000, "upper": 3000, "mean": 3000, "std": 1}


def test_flips_need_cases_without_a_common_direction() -> None:
    assert plan(*[made()] * 9).flip_axes == ()
    assert plan(*[made()] * 10).flip_axes == (0, 1, 2)
    tilted = np.zeros((2, 3, 4), np.float32)
    tilted[1, 1] = 1
    found = plan(*[made(slopes=tilted)] * 10)
    assert found.flip_axes == (0, 2)
    assert (
        "not posterior-anterior (class 1 lies the same way in most cases, agreement 1.00)" in found.reasons["flip_axes"]
    )
    assert plan(*[made((36, 50, 1))] * 10).flip_axes == (0, 1)  # nothing to flip in one slice


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("Left kidney", (1, 2)),
        ("kidney_R", (1, 2)),
        ("anterior", (0, 2)),
        ("lung upper lobe", (0, 1)),
        ("L1", (0, 1, 2)),
    ],
)
def test_flips_heed_the_names_of_classes(name: str, allowed: tuple[int, ...]) -> None:
    assert plan(*[made()] * 10, class_names=["background", name]).flip_axes == allowed


def test_a_class_that_no_case_has() -> None:
    found = plan(*[made(classes=3, counts=(71990, 10, 0))] * 10)
    assert found.flip_axes == (0, 1, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("spacing", [1, 1]),
        ("spacing", [1, 0, 1]),
        ("spacing", "1,1,1"),
        ("patch_size", [64, 64, 4]),
        ("window_size", [64, 64, 4]),
        ("patch_size", [64.0, 64, 64]),
        ("batch_size", -1),
        ("batch_size", True),
        ("intensity", "pet"),
        ("intensity", [400, -1000]),
        ("memory_gb", -2),
        ("flip_axes", [3]),
        ("flip_axes", "none"),
    ],
)
def test_values_that_make_no_sense_are_told_before_files_are_read(name: str, value: object) -> None:
    with pytest.raises(Med3dError, match=f"^{name} is .*, expected "):
        plan_training([{"image": "none.nii", "label": "none.nii"}], **{name: value})


def test_ct_needs_one_channel() -> None:
    with pytest.raises(Med3dError, match="intensity is 'ct', but images have 2 channels"):
        plan_training([], in_channels=2, intensity="ct")


def pairs(folder: Path, n: int) -> list[dict[str, str]]:
    lines = [write_case(folder, str(index), index).split() for index in range(n)]
    return [{"image": str(folder / image), "label": str(folder / label)} for image, label in lines]


def test_files_give_the_same_plan_in_every_run_and_orientation(tmp_path: Path) -> None:
    cases = pairs(tmp_path, 3)
    found = plan_training(cases, 3, memory_gb=GB, device="cpu")
    # Axis x of the file runs to inferior, y to left and z to anterior.
    assert found.spacing == pytest.approx((0.8, 1.1, 2.5), abs=1e-3)
    assert (found.patch_size, found.window_size) == ((16, 16, 16), (24, 16, 16))
    assert json.loads(json.dumps(asdict(found)))["batch_size"] == 2
    assert plan_training(cases, 3, memory_gb=GB, device="cpu", num_workers=3) == found
    for path in (path for case in cases for path in case.values()):
        nibabel.save(nibabel.as_closest_canonical(nibabel.load(path)), path)
    assert plan_training(cases, 3, memory_gb=GB, device="cpu") == found


def test_one_case_is_enough(tmp_path: Path) -> None:
    found = plan_training(pairs(tmp_path, 1), 3, head="medicalnet")
    assert "that of the only case" in found.reasons["spacing"]
    assert found.flip_axes == ()
