"""Synthetic chest CT phantoms with lung labels and, if wanted, nodules: for demonstrations and tests.

Everything here is SYNTHETIC: shapes drawn from formulas and a seeded random generator, no patient's data. The phantoms
have what keeps lungs from being trivial to segment (noise, vessels, hila, an airway as dark as the lungs, varied pose
and spacing), but a network that is trained on them knows nothing about patients.

Arrays have the shape (depth, height, width): depth runs from the feet to the head, height from front to back and width
from the patient's right to the left (codes ``S``, ``P``, ``L``). World coordinates are NIfTI's RAS+ in mm: x grows to
the patient's right. "Body coordinates" below are the same axes in mm, before the pose of the body is applied.

    python -m med3d_nets.phantom --folder data/phantom --n_train 16 --n_val 4 --n_test 1
"""

from __future__ import annotations

import gzip
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from med3d_nets.errors import Med3dError, explain_errors

__all__ = ["LABELS", "Nodule", "Phantom", "make_phantom", "write_dataset"]

LABELS = {0: "background", 1: "left lung", 2: "right lung"}
"""Meaning of the values of a phantom's label array; vessels and nodules inside a lung belong to the lung."""

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Matrix = NDArray[np.float64]

_AXES = np.array([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])  # columns: world directions of the array's axes
_HILUM = np.array([40.0, -10.0, -2.0])  # of the right lung, body coordinates in mm; the left one is mirrored
# Trachea and main bronchi as :func:`_tubes`: air outside the lungs, so not to be labelled.
_AIRWAY = np.array(
    [(2, -10, 18, 2, -14, 140, 8, 9), (2, -10, 18, 40, -10, -2, 7, 5), (2, -10, 18, -40, -10, -2, 6.5, 5)], dtype=float
)
_SMALLEST = 16  # voxels along an axis that still show a chest
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Nodule:
    """A lung nodule; lengths in mm, the centre in world coordinates (RAS+)."""

    centre_mm: tuple[float, float, float]
    diameter_mm: float  # of the sphere of the same volume
    spiculated: bool  # spikes radiate from it (class 1), or it is smooth (class 0)


@dataclass(frozen=True)
class Phantom:
    """A synthetic chest CT; image (HU) and label (see :data:`LABELS`) have the shape (depth, height, width)."""

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: Matrix  # 4 x 4, from voxel indices to world coordinates (RAS+) in mm, exact in single precision
    nodules: tuple[Nodule, ...]


@dataclass(frozen=True)
class _Grid:
    """Voxel centres in body coordinates (mm), each (depth, height, width), and the matrices between the spaces."""

    x: Array
    y: Array
    z: Array
    affine: Matrix
    body_from_index: Matrix


def make_phantom(seed: int, nodules: int = 0, shape: tuple[int, int, int] | None = None) -> Phantom:
    """Make one phantom; the same arguments give the same bytes (with the same numpy and scipy).

    Args:
        seed: 0 or more.
        nodules: how many to place, smooth and spiculated in turn; away from them the image does not depend on it.
        shape: (depth, height, width) in voxels; drawn about (48, 96, 96) if None. Spacing is chosen so that the chest
            fits: about 5 to 8 mm between slices and 3 to 4 mm within them at the usual shape.

    Raises:
        Med3dError: an argument is out of range, or the lungs have no room for that many nodules.
    """
    _check_count("seed", seed, 0)
    _check_count("nodules", nodules, 0)
    if shape is not None and (len(shape) != 3 or min(shape) < _SMALLEST):
        raise Med3dError(f"shape is {shape}; pass three sizes (depth, height, width) of at least {_SMALLEST} voxels")
    # A stream for each purpose, so that drawing more from one leaves the others as they were.
    pose, anatomy, tree, texture, lesions = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(5))
    grid = _make_grid(pose, shape)
    image, label = _paint_chest(grid, anatomy)
    lung = label > 0
    fine = ndimage.gaussian_filter(texture.standard_normal(grid.x.shape, dtype=np.float32), 1.0)
    # Lungs are denser towards the back, where the patient lies, and never uniform.
    parenchyma = anatomy.uniform(-840, -800) - 0.35 * grid.y + 35 * _smooth_field(grid.x.shape, anatomy) + 120 * fine
    image = np.where(lung, parenchyma, image + 40 * fine * (image > -500)).astype(np.float32)
    image += lung * _tubes(grid, _vessel_tree(tree)) * (np.float32(anatomy.uniform(-10, 40)) - image)
    placed = _place_nodules(image, lung, grid.affine, nodules, lesions)
    image = ndimage.gaussian_filter(image, (0.35, 0.55, 0.55))  # partial volume and the scanner's point spread
    image += anatomy.uniform(18, 40) * texture.standard_normal(grid.x.shape, dtype=np.float32)
    return Phantom(np.rint(image.clip(-1024, 3071)).astype(np.int16), label, grid.affine, tuple(placed))


def _make_grid(rng: np.random.Generator, shape: tuple[int, int, int] | None) -> _Grid:
    """Draw shape, spacing, a slightly oblique affine and the body's pose."""
    drawn = rng.integers((44, 90, 90), (53, 101, 101))
    size = np.array(drawn if shape is None else shape)
    across, along = rng.uniform(330, 375), rng.uniform(270, 345)  # field of view, mm
    in_plane = max(across / size[2], 0.75 * across / size[1])
    affine = np.eye(4)
    affine[:3, :3] = _small_rotation(rng, 4) @ _AXES * [along / size[0], in_plane, in_plane]
    isocentre = rng.uniform(-60, 60, 3)
    affine[:3, 3] = isocentre - affine[:3, :3] @ ((size - 1) / 2)
    affine = affine.astype(np.float32).astype(np.float64)  # what a NIfTI header keeps
    world_from_body = np.eye(4)
    world_from_body[:3, :3] = _small_rotation(rng, 4) * rng.uniform(0.92, 1.04) * rng.uniform(0.98, 1.02, 3)
    world_from_body[:3, 3] = isocentre + rng.uniform(-7, 7, 3)
    matrix = np.linalg.inv(world_from_body) @ affine
    depth, height, width = np.ogrid[: size[0], : size[1], : size[2]]
    x, y, z = ((a * depth + b * height + c * width + d).astype(np.float32) for a, b, c, d in matrix[:3])
    return _Grid(x, y, z, affine, matrix)


def _small_rotation(rng: np.random.Generator, degrees: float) -> Matrix:
    return np.asarray(Rotation.from_euler("xyz", rng.uniform(-degrees, degrees, 3), degrees=True).as_matrix())


def _smooth_field(shape: tuple[int, ...], rng: np.random.Generator, order: int = 6) -> Array:
    """A random field of low frequencies, (depth, height, width), mean near 0 and standard deviation about 1."""
    bases = [np.cos(np.pi * np.outer((np.arange(length) + 0.5) / length, np.arange(order))) for length in shape]
    field = np.einsum("abc,ia,jb,kc->ijk", rng.standard_normal((order,) * 3), *bases, optimize=True)
    return np.asarray(field / field.std(), dtype=np.float32)


def _paint_chest(grid: _Grid, rng: np.random.Generator) -> tuple[Array, NDArray[np.uint8]]:
    """The chest without the lungs' contents, HU, and the label, both (depth, height, width)."""
    warp = _smooth_field(grid.x.shape, rng, 5)
    fatty = _smooth_field(grid.x.shape, rng, 8)
    torso = ((abs(grid.x) / 150) ** 2.4 + (abs(grid.y) / 110) ** 2.4) ** (1 / 2.4) * (1 + 0.008 * warp)
    image = np.full(grid.x.shape, -1000, dtype=np.float32)
    image[torso < 1] = rng.uniform(-115, -85)
    image[torso < rng.uniform(0.9, 0.94)] = rng.uniform(35, 50)
    narrowing = 1 - 0.32 * (((grid.z + 10) / 115).clip(0, 1.2)) ** 2  # of the rib cage, towards the neck
    cage = np.hypot(grid.x / 122, (grid.y - 2) / 86) / narrowing * (1 - 0.012 * warp)
    heart = ((grid.x + rng.uniform(14, 26)) / 54) ** 2 + ((grid.y - 26) / 40) ** 2 + ((grid.z + 42) / 50) ** 2
    spine = np.hypot(grid.x / 20, (grid.y + 66) / 19)
    middle = np.hypot((grid.x + 3) / rng.uniform(26, 34), (grid.y - 2) / 78) / narrowing
    pleural = (cage < 0.99) & (heart > 1.1) & (spine > 1.25) & (middle > 1) & (abs(grid.x + 3) > 7)
    label = _lungs(grid, rng, warp, pleural)
    image[(cage < 0.97) & (fatty > 0.6) & (grid.z > -70)] = -90  # mediastinal fat
    image[(grid.x > -15) & (cage < 0.98) & (grid.z < -20)] = 58  # liver, where no lung covers it
    image[heart < 1] = rng.uniform(40, 50)
    image[np.hypot(grid.x + 20, grid.y + 38) < 13] = 45  # descending aorta
    _paint_bones(image, grid, cage, spine, rng)
    image += (label == 0) * _tubes(grid, _AIRWAY) * (-960 - image)
    return image, label


def _lungs(grid: _Grid, rng: np.random.Generator, warp: Array, pleural: Mask) -> NDArray[np.uint8]:
    """The label, (depth, height, width): what ``pleural`` leaves between diaphragm and apex, less the hila."""
    label = np.zeros(grid.x.shape, dtype=np.uint8)
    for value, side, dome in ((1, -1.0, rng.uniform(-62, -48)), (2, 1.0, rng.uniform(-52, -36))):
        aside = (grid.x * side - 62) / 62
        floor = dome - 40 * (aside**2 + ((grid.y - 8) / 75) ** 2) + 3 * warp
        roof = rng.uniform(92, 100) - 28 * (((grid.x * side - 46) / 36) ** 2 + ((grid.y + 12) / 46) ** 2)
        hilum = ((grid.x * side - 36) / 17) ** 2 + ((grid.y + 10) / 20) ** 2 + ((grid.z + 2) / 24) ** 2
        inside = pleural & (grid.x * side > 0) & (grid.z > floor) & (grid.z > -108) & (grid.z < roof) & (hilum > 1)
        parts, count = ndimage.label(inside)
        if count > 1:  # slivers cut off by the heart
            inside = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
        label[inside] = value
    return label


def _paint_bones(image: Array, grid: _Grid, cage: Array, spine: Array, rng: np.random.Generator) -> None:
    """Ribs, sternum and spine, 300 to 700 HU, in place."""
    pitch, phase = rng.uniform(23, 27), rng.uniform(0, 1)
    wave = np.cos(2 * np.pi * ((grid.z + 0.45 * grid.y) / pitch + phase))  # ribs descend towards the front
    ribs = (cage > 1.03) & (cage < 1.12) & (wave > 0.15) & (abs(grid.z) < 112) & (abs(grid.x) > 14)
    image[ribs & ((grid.y < 55) | (abs(grid.x) > 45))] = rng.uniform(420, 600)  # in front, cartilage instead
    image[(abs(grid.x) < 16) & (abs(grid.y - 90) < 6) & (grid.z > -50) & (grid.z < 75)] = 350
    disc = np.cos(2 * np.pi * (grid.z / pitch + phase)) > 0.8
    image[spine < 1.1] = np.where(disc, 100, np.where(spine > 0.85, 600, 330))[spine < 1.1]
    arch = np.hypot(grid.x, grid.y + 90)
    image[(arch < 13) & ~disc] = 450
    image[(abs(grid.x) > 10) & (abs(grid.x) < 34) & (abs(grid.y + 84) < 5) & (wave > 0)] = 400  # transverse processes
    image[arch < 7] = 20  # spinal canal


def _vessel_tree(rng: np.random.Generator) -> Matrix:
    """Vessels that branch from both hila, as tubes in body coordinates: thinner and shorter with each generation."""
    upward = [(0.6, 0.8, 0.3), (0.6, -0.8, 0.2), (0.5, 0.3, 1), (0.4, -0.3, 1)]
    trunks = np.array([(1, 0, 0.1), *upward, (0.6, 0.3, -1), (0.5, -0.6, -1)])
    tubes = []
    for side in (-1.0, 1.0):
        mirror = np.array([side, 1, 1])
        direction, start = trunks * mirror, np.tile(_HILUM * mirror, (len(trunks), 1))
        radius, length = rng.uniform(4.5, 7, len(trunks)), rng.uniform(30, 40, len(trunks))
        for _ in range(6):
            direction = direction + 0.35 * rng.standard_normal(direction.shape)
            direction = direction / np.linalg.norm(direction, axis=1, keepdims=True)
            end = start + direction * length[:, None]
            tubes.append(np.column_stack([start, end, radius, radius * 0.8]))
            # Children leave to opposite sides of their parent, with Murray's law for the radii.
            sideways = np.cross(direction, rng.standard_normal(direction.shape))
            sideways *= 0.65 / np.linalg.norm(sideways, axis=1, keepdims=True)
            direction = np.concatenate([direction + sideways, direction - sideways])
            start, radius, length = np.tile(end, (2, 1)), np.tile(radius * 0.76, 2), np.tile(length * 0.8, 2)
            length = length * rng.uniform(0.75, 1.2, len(length))
    return np.concatenate(tubes)


def _tubes(grid: _Grid, tubes: Matrix) -> Array:
    """How much of each voxel tapering tubes cover, 0 to 1, (depth, height, width).

    ``tubes`` is (n, 8): start and end in body coordinates, radius at the start and at the end, all mm.
    """
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    blur = float(spacing[1:].mean())
    index_from_body = np.linalg.inv(grid.body_from_index)
    ends = np.stack([tubes[:, :3], tubes[:, 3:6]]) @ index_from_body[:3, :3].T + index_from_body[:3, 3]
    margin = (tubes[:, 6:].max(1, keepdims=True) + blur) / spacing
    low = np.floor(ends.min(0) - margin).astype(int).clip(0)
    high = np.ceil(ends.max(0) + margin).astype(int).clip(0) + 1
    covered = np.zeros(grid.x.shape, dtype=np.float32)
    for tube, first, last in zip(tubes.astype(np.float32), low, high, strict=True):
        box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        offset = np.stack([grid.x[box], grid.y[box], grid.z[box]], -1) - tube[:3]
        axis = tube[3:6] - tube[:3]
        share = (offset @ axis / (axis @ axis)).clip(0, 1)
        distance = np.linalg.norm(offset - share[..., None] * axis, axis=-1)
        radius = tube[6] + share * (tube[7] - tube[6])
        # A vessel thinner than a voxel fills only part of it.
        part = (0.5 + (radius - distance) / blur).clip(0, 1) * np.minimum(1, 1.6 * radius / blur)
        np.maximum(covered[box], part, out=covered[box])
    return covered


def _place_nodules(image: Array, lung: Mask, affine: Matrix, count: int, rng: np.random.Generator) -> list[Nodule]:
    """Draw nodules into ``image`` (HU, in place), clear of each other and of the lungs' surface."""
    if not count:
        return []
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    room = ndimage.distance_transform_edt(lung, sampling=spacing)[lung]
    points = np.argwhere(lung) @ affine[:3, :3].T + affine[:3, 3]
    values = image[lung]
    first = int(rng.integers(2))
    placed: list[Nodule] = []
    for number in range(count):
        radius = rng.uniform(5, 12)
        free = np.flatnonzero(room > 1.2 * radius)
        if not free.size:
            raise Med3dError(f"the lungs have room for {number} of {count} nodules; pass a smaller nodules=")
        x, y, z = points[rng.choice(free)] + affine[:3, :3] @ rng.uniform(-0.4, 0.4, 3)
        nodule = Nodule((float(x), float(y), float(z)), 2 * radius, bool((number + first) % 2))
        away = np.linalg.norm(points - (x, y, z), axis=1)
        near = away < 2.2 * radius + spacing[1]
        cover = _nodule_cover(points[near], nodule, rng, float(spacing[1:].mean()))
        values[near] += cover * (np.float32(rng.uniform(20, 60)) - values[near])
        room = np.minimum(room, away - 1.6 * radius)  # later ones keep clear of this one
        placed.append(nodule)
    image[lung] = values
    return placed


def _nodule_cover(points: Matrix, nodule: Nodule, rng: np.random.Generator, blur: float) -> Array:
    """How much of a nodule there is at ``points`` ((n, 3), world mm), 0 to 1, over an edge ``blur`` mm wide."""
    spikes, height, sharpness = (16, 1.3, 30.0) if nodule.spiculated else (5, 0.12, 2.0)
    # A Fibonacci spiral spreads directions evenly; the turn makes every nodule's own.
    turn = Rotation.from_quat(rng.standard_normal(4)).as_matrix()
    heights = height * rng.uniform(0.6, 1, spikes)

    def shape(direction: Matrix) -> Matrix:
        alignment = direction @ (_directions(spikes) @ turn).T
        return np.asarray(1 + np.exp(sharpness * (alignment - 1)) @ heights)

    unit = np.cbrt((shape(_directions(2000)) ** 3).mean())  # so that the volume is the sphere's
    offset = points - np.array(nodule.centre_mm)
    distance = np.linalg.norm(offset, axis=1)
    surface = nodule.diameter_mm / 2 * shape(offset / np.maximum(distance, 1e-6)[:, None]) / unit
    return np.asarray((0.5 + (surface - distance) / blur).clip(0, 1), dtype=np.float32)


def _directions(count: int) -> Matrix:
    """``count`` unit vectors spread evenly over the sphere, (count, 3)."""
    steps = np.arange(count) + 0.5
    polar, azimuth = np.arccos(1 - 2 * steps / count), np.pi * (1 + 5**0.5) * steps
    return np.stack([np.cos(azimuth) * np.sin(polar), np.sin(azimuth) * np.sin(polar), np.cos(polar)], axis=1)


def write_dataset(
    folder: str | Path,
    n_train: int = 16,
    n_val: int = 4,
    n_test: int = 1,
    seed: int = 2019,
    nodules: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write phantoms in the layout of the Medical Segmentation Decathlon; the same seed gives the same bytes.

    Beside the volumes there are the lists ``train.txt``, ``val.txt`` and ``test.txt`` (image and label on each line),
    ``dataset.json`` and, with nodules, ``nodules.csv`` (centre in RAS+ mm). Validation cases are in ``imagesTr`` too.

    Args:
        folder: where to; made if missing, and returned.
        n_train, n_val, n_test: cases of each kind, 1 or more.
        seed: 0 or more.
        nodules: how many in each case.
        overwrite: replace files that are there; others stay.

    Raises:
        Med3dError: an argument is out of range, or a file is there already and ``overwrite`` is off.
    """
    for option, count in (("n_train", n_train), ("n_val", n_val), ("n_test", n_test)):
        _check_count(option, count, 1)
    _check_count("seed", seed, 0)
    _check_count("nodules", nodules, 0)
    root = Path(folder)
    ends = ["Tr"] * (n_train + n_val) + ["Ts"] * n_test
    names = [f"{end}/phantom_{number:03d}.nii.gz" for number, end in enumerate(ends)]
    pairs = [(f"images{name}", f"labels{name}") for name in names]
    listed = {"train": pairs[:n_train], "val": pairs[n_train:-n_test], "test": pairs[-n_test:]}
    texts = {f"{split}.txt": "".join(f"{a} {b}\n" for a, b in cases) for split, cases in listed.items()}
    texts["dataset.json"] = _describe(pairs[:-n_test], pairs[-n_test:])
    _check_free(root, [*(name for pair in pairs for name in pair), *texts, "nodules.csv"], overwrite)
    table = ["image,x_mm,y_mm,z_mm,diameter_mm,class\n"]
    for number, (image, label) in enumerate(pairs):
        phantom = make_phantom(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]), nodules)
        _write_volume(root / image, phantom.image, phantom.affine)
        _write_volume(root / label, phantom.label, phantom.affine)
        for nodule in phantom.nodules:
            numbers = ",".join(f"{value:.3f}" for value in (*nodule.centre_mm, nodule.diameter_mm))
            table.append(f"{image},{numbers},{int(nodule.spiculated)}\n")
        _logger.info("wrote %s, %d of %d", root / image, number + 1, len(pairs))
    (root / "nodules.csv").unlink(missing_ok=True)  # of an earlier data set
    if nodules:
        texts["nodules.csv"] = "".join(table)
    for name, text in texts.items():
        (root / name).write_text(text, encoding="utf-8", newline="\n")
    return root


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise Med3dError(f"{name} is {value!r}; pass a whole number of at least {least}")


def _check_free(root: Path, names: list[str], overwrite: bool) -> None:
    if root.exists() and not root.is_dir():
        raise Med3dError(f"{root} is not a folder; pass another folder=")
    for name in names:
        if not overwrite and (root / name).exists():
            raise Med3dError(f"{root / name} is there already; pass another folder=, or overwrite=True to replace it")


def _describe(training: list[tuple[str, str]], test: list[tuple[str, str]]) -> str:
    """The text of the Decathlon's ``dataset.json``."""
    content = {
        "name": "Chest phantom",
        "description": "SYNTHETIC chest CT phantoms, in HU, with lung labels: made by a program, no patient's data",
        "licence": "CC0-1.0",
        "modality": {"0": "CT"},
        "labels": {str(value): name for value, name in LABELS.items()},
        "training": [{"image": f"./{image}", "label": f"./{label}"} for image, label in training],
        "test": [f"./{image}" for image, _ in test],
    }
    return json.dumps(content, indent=2) + "\n"


def _write_volume(path: Path, array: NDArray[Any], affine: Matrix) -> None:
    nifti: Any = nib.Nifti1Image  # nibabel is not typed
    volume = nifti(array, affine)
    volume.header.set_xyzt_units("mm")
    volume.set_qform(affine, code=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Compressed here: a time stamp in the gzip header would make every writing differ.
    path.write_bytes(gzip.compress(volume.to_bytes(), compresslevel=6, mtime=0))


def main() -> None:
    """Write a data set from the command line; the options are :func:`write_dataset`'s."""
    import fire

    explain_errors()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    fire.Fire(write_dataset)


if __name__ == "__main__":
    main()
