"""Synthetic chest phantoms: what is in them, where it lies, and how a data set is written."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from med3d_nets.errors import Med3dError
from med3d_nets.phantom import Nodule, Phantom, _nodule_cover, make_phantom, write_dataset

SEEDS = (0, 1, 2)
LEFT, RIGHT = 1, 2


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [make_phantom(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def with_nodules() -> Phantom:
    return make_phantom(3, nodules=4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "phantom", n_train=2, n_val=1, n_test=1, seed=5, nodules=2)


def spacing(phantom: Phantom) -> np.ndarray:
    return np.linalg.norm(phantom.affine[:3, :3], axis=0)


def world(phantom: Phantom, mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask) @ phantom.affine[:3, :3].T + phantom.affine[:3, 3]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def surface_to_volume(nodule: Nodule, seed: int) -> tuple[float, float]:
    """Area of the voxels' faces over volume (1/mm), and volume (mm3), on a grid of 0.5 mm."""
    axis = np.arange(-1.15 * nodule.diameter_mm, 1.15 * nodule.diameter_mm, 0.5)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    cover = _nodule_cover(points, nodule, np.random.default_rng(seed), 0.5)
    mask = cover.reshape((len(axis),) * 3) > 0.5
    faces = sum(np.diff(mask, axis=dimension).sum() for dimension in range(3))
    return faces * 0.25 / (mask.sum() * 0.125), mask.sum() * 0.125


def test_same_seed_same_bytes() -> None:
    one, again = (make_phantom(3, nodules=2, shape=(32, 64, 64)) for _ in range(2))
    assert again.image.tobytes() == one.image.tobytes()
    assert again.label.tobytes() == one.label.tobytes()
    assert again.affine.tobytes() == one.affine.tobytes()
    assert again.nodules == one.nodules


def test_seeds_differ_in_everything() -> None:
    one, other = (make_phantom(seed, shape=(24, 48, 48)) for seed in (0, 1))
    assert not np.array_equal(one.image, other.image)
    assert not np.array_equal(one.label, other.label)
    assert not np.array_equal(one.affine, other.affine)


def test_types_and_shapes(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        depth, height, width = phantom.image.shape
        assert phantom.label.shape == phantom.image.shape
        assert 44 <= depth <= 52
        assert 90 <= height <= 100
        assert 90 <= width <= 100
        assert (phantom.image.dtype, phantom.label.dtype) == (np.int16, np.uint8)
        assert set(np.unique(phantom.label)) == {0, LEFT, RIGHT}
    assert len({phantom.image.shape for phantom in phantoms}) > 1
    assert make_phantom(0, shape=(20, 40, 44)).image.shape == (20, 40, 44)


def test_hounsfield_units(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        image, label = phantom.image, phantom.label
        assert image.min() >= -1024
        for side in (LEFT, RIGHT):
            assert -820 < image[label == side].mean() < -680
            assert np.percentile(image[label == side], 99) > -350, "vessels stand out"
        assert -1010 < image[:, :6, :6].mean() < -980, "air around the body"
        tissue = image[(label == 0) & (image > -300) & (image < 250)]
        assert 10 < np.median(tissue) < 70
        assert 400 < np.percentile(image, 99.9) < 800, "bone"
        assert image[:, :6, :6].std() > 10, "noise"


def test_background_holds_air_like_the_lungs(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        air, _ = ndimage.label((phantom.image < -600) & (phantom.label == 0))
        outside = air[0, 0, 0]
        assert ((air > 0) & (air != outside)).sum() > 50, "an airway"


def test_left_lung_lies_on_the_patients_left(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        assert nib.aff2axcodes(phantom.affine) == ("S", "P", "L")
        # RAS+: x grows to the patient's right.
        left, right = (world(phantom, phantom.label == side)[:, 0].mean() for side in (LEFT, RIGHT))
        assert left < right - 80


def test_spine_is_at_the_back(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        lungs = world(phantom, phantom.label > 0)
        bone = world(phantom, phantom.image > 250)
        central = bone[abs(bone[:, 0] - lungs[:, 0].mean()) < 15]
        assert np.median(central[:, 1]) < lungs[:, 1].mean() - 30, "y grows to the front"


def test_spacing_is_anisotropic_and_varies(phantoms: list[Phantom]) -> None:
    spacings = np.array([spacing(phantom) for phantom in phantoms])
    assert ((spacings[:, 0] > 4) & (spacings[:, 0] < 8)).all()
    assert ((spacings[:, 1:] > 3) & (spacings[:, 1:] < 4.2)).all()
    assert (spacings[:, 0] > 1.1 * spacings[:, 1]).all()
    assert len(np.unique(spacings.round(3), axis=0)) == len(SEEDS)


def test_affine_is_oblique_without_shear(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        directions = phantom.affine[:3, :3] / spacing(phantom)
        np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-5)
        assert 0.99 < abs(directions).max(axis=0).min() < 1


def test_each_lung_is_one_piece_of_plausible_volume(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        for side in (LEFT, RIGHT):
            lung = phantom.label == side
            assert ndimage.label(lung)[1] == 1
            assert 0.5e6 < lung.sum() * spacing(phantom).prod() < 4e6
            border = np.ones(lung.shape, dtype=bool)
            border[1:-1, 1:-1, 1:-1] = False
            assert not (lung & border).any(), "the field of view holds the whole lung"


def test_nodules_lie_in_the_lungs(with_nodules: Phantom) -> None:
    assert sorted(nodule.spiculated for nodule in with_nodules.nodules) == [False, False, True, True]
    inverse = np.linalg.inv(with_nodules.affine)
    plain = make_phantom(3)
    np.testing.assert_array_equal(plain.label, with_nodules.label)
    difference = with_nodules.image.astype(int) - plain.image
    for nodule in with_nodules.nodules:
        assert 8 < nodule.diameter_mm < 26
        index = tuple(np.rint(inverse[:3, :3] @ nodule.centre_mm + inverse[:3, 3]).astype(int))
        assert with_nodules.label[index] in (LEFT, RIGHT)
        assert with_nodules.image[index] > -500
    far = np.ones(difference.shape, dtype=bool).reshape(-1)
    centres = np.array([nodule.centre_mm for nodule in with_nodules.nodules])
    points = world(with_nodules, np.ones(difference.shape, dtype=bool))
    for centre, nodule in zip(centres, with_nodules.nodules, strict=True):
        far &= np.linalg.norm(points - centre, axis=1) > 1.2 * nodule.diameter_mm + 16
    assert not difference.reshape(-1)[far].any(), "nothing but the nodules changes"


def test_both_classes_come_first() -> None:
    assert {make_phantom(seed, 1, (24, 48, 48)).nodules[0].spiculated for seed in range(6)} == {False, True}


@pytest.mark.parametrize("diameter", [10.0, 16.0])
def test_spiculated_nodules_have_more_surface(diameter: float) -> None:
    sphere = np.pi / 6 * diameter**3
    for seed in range(2):
        smooth, volume = surface_to_volume(Nodule((0, 0, 0), diameter, False), seed)
        spiky, spiky_volume = surface_to_volume(Nodule((0, 0, 0), diameter, True), seed)
        assert spiky > 1.25 * smooth
        assert volume == pytest.approx(sphere, rel=0.05)
        assert spiky_volume == pytest.approx(sphere, rel=0.1)


@pytest.mark.parametrize("arguments", [{"seed": -1}, {"seed": 0.5}, {"seed": 0, "nodules": -1}])
def test_bad_numbers_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(Med3dError, match="pass a whole number"):
        make_phantom(**arguments)


@pytest.mark.parametrize("shape", [(8, 96, 96), (48, 96)])
def test_bad_shapes_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(Med3dError, match="depth, height, width"):
        make_phantom(0, shape=shape)


def test_too_many_nodules_are_refused() -> None:
    with pytest.raises(Med3dError, match=r"room for .* of 5000 nodules"):
        make_phantom(0, nodules=5000, shape=(24, 48, 48))


def test_dataset_lists_and_files(dataset: Path) -> None:
    lists = {name: (dataset / f"{name}.txt").read_text().splitlines() for name in ("train", "val", "test")}
    assert lists == {
        "train": [f"imagesTr/phantom_00{n}.nii.gz labelsTr/phantom_00{n}.nii.gz" for n in (0, 1)],
        "val": ["imagesTr/phantom_002.nii.gz labelsTr/phantom_002.nii.gz"],
        "test": ["imagesTs/phantom_003.nii.gz labelsTs/phantom_003.nii.gz"],
    }
    for line in (line for lines in lists.values() for line in lines):
        image, label = (nib.load(dataset / name) for name in line.split())
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)
        assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
        assert image.header.get_xyzt_units()[0] == "mm"
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
        assert set(np.unique(label.dataobj)) == {0, LEFT, RIGHT}


def test_written_volume_is_the_phantom(dataset: Path) -> None:
    seed = int(np.random.SeedSequence([5, 1]).generate_state(1)[0])
    phantom = make_phantom(seed, nodules=2)
    image = nib.load(dataset / "imagesTr/phantom_001.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), phantom.image)
    np.testing.assert_array_equal(image.affine, phantom.affine)


def test_dataset_json(dataset: Path) -> None:
    content = json.loads((dataset / "dataset.json").read_text())
    assert {"name", "description", "licence", "modality", "labels", "training", "test"} <= set(content)
    assert "SYNTHETIC" in content["description"]
    assert content["modality"] == {"0": "CT"}
    assert content["labels"] == {"0": "background", "1": "left lung", "2": "right lung"}
    assert len(content["training"]) == 3
    assert content["test"] == ["./imagesTs/phantom_003.nii.gz"]
    assert all((dataset / name).is_file() for case in content["training"] for name in case.values())


def test_nodules_csv(dataset: Path) -> None:
    with (dataset / "nodules.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert {row["class"] for row in rows} == {"0", "1"}
    for row in rows:
        image = nib.load(dataset / row["image"])
        label = nib.load(dataset / row["image"].replace("images", "labels"))
        centre = [float(row[f"{axis}_mm"]) for axis in "xyz"]
        index = np.rint(nib.affines.apply_affine(np.linalg.inv(image.affine), centre)).astype(int)
        assert label.dataobj[tuple(index)] in (LEFT, RIGHT)


def test_second_write_is_refused_and_harmless(dataset: Path) -> None:
    before = contents(dataset)
    with pytest.raises(Med3dError, match=r"phantom_000\.nii\.gz is there already; .*overwrite=True"):
        write_dataset(dataset, n_train=1, n_val=1, n_test=1, seed=6)
    assert contents(dataset) == before


@pytest.mark.parametrize("name", ["val.txt", "dataset.json", "nodules.csv"])
def test_any_file_in_the_way_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(Med3dError, match=name):
        write_dataset(tmp_path, n_train=1, n_val=1, n_test=1)
    assert contents(tmp_path) == {name: b"mine"}


def test_overwriting_gives_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {"n_train": 1, "n_val": 1, "n_test": 1, "seed": 7}
    first = contents(write_dataset(str(tmp_path), **arguments))
    (tmp_path / "nodules.csv").write_text("of an earlier data set")
    (tmp_path / "notes.txt").write_text("mine")
    second = contents(write_dataset(tmp_path, overwrite=True, **arguments))
    assert second.pop("notes.txt") == b"mine"
    assert second == first
    assert "nodules.csv" not in first
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["n_train", "n_val", "n_test"])
def test_counts_must_be_positive(tmp_path: Path, name: str) -> None:
    with pytest.raises(Med3dError, match=f"{name} is 0"):
        write_dataset(tmp_path / "new", **{name: 0})
    assert not (tmp_path / "new").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Med3dError, match="not a folder"):
        write_dataset(tmp_path / "file")
