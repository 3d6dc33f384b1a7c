"""Streamed prediction against MONAI's own way, which holds everything."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import OBLIQUE
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    Spacingd,
)
from scipy.spatial.transform import Rotation
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from med3d_nets.errors import Med3dError
from med3d_nets.footprint import LiveTensors
from med3d_nets.streaming import PatchInferer, match_grids
from med3d_nets.transforms import RestoreGridd, not_background

SPACING = (1.0, 1.2, 2.0)
PATCH = (8, 10, 6)


class Network(nn.Module):
    """Random weights, so that no flip or turn of the volume leaves the answer as it was."""

    def __init__(self, n_channels: int = 1, n_classes: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.conv = nn.Conv3d(n_channels, n_classes, 3, padding=1)

    def forward(self, volume: Tensor) -> Tensor:
        return 5 * self.conv(volume)


def make_affine(random: np.random.RandomState, spacing: Sequence[float], oblique: bool) -> np.ndarray:
    """Axes permuted and flipped at random and, where ``oblique``, turned by up to 0.3 radians about each axis."""
    directions = np.eye(3)[random.permutation(3)] * random.choice([-1, 1], 3)
    if oblique:
        directions = Rotation.from_euler("xyz", random.uniform(-0.3, 0.3, 3)).as_matrix() @ directions
    affine = np.eye(4)
    affine[:3, :3] = directions * np.asarray(spacing)
    affine[:3, 3] = random.uniform(-90, 90, 3)
    return affine


def write_volume(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), affine), path)
    return path


def blobs(random: np.random.RandomState, shape: Sequence[int], border: bool) -> np.ndarray:
    """Smooth noise, with a border of background where ``border``."""
    noise = torch.as_tensor(random.standard_normal((1, 1, *(size // 3 + 2 for size in shape))))
    volume = nn.functional.interpolate(noise, tuple(shape), mode="trilinear")[0, 0].numpy()
    if border:
        mask = np.zeros(shape, bool)
        mask[3:-2, 2:-4, 1:-2] = True
        volume[~mask] = 0
    return volume


def preprocessing(spacing: Sequence[float] = SPACING) -> Compose:
    return Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=spacing, mode="bilinear", dtype=torch.float32),
            CropForegroundd("image", source_key="image", select_fn=not_background),
        ]
    )


def load(path: Path, steps: Compose, key: str = "image") -> Any:
    return next(iter(DataLoader(Dataset([{key: str(path)}], steps), batch_size=1)))[key]


def plainly(volume: Any, network: Callable[[Tensor], Tensor], steps: Compose, patch: Sequence[int] = PATCH) -> Tensor:
    """The label map as ``SlidingWindowInferer`` and the inverted preprocessing make it, ``(1, *shape of the file)``."""
    pred = SlidingWindowInferer(patch, overlap=0.5, mode="gaussian")(volume, network)
    after = Compose(
        [
            Activationsd("pred", softmax=True),
            Invertd("pred", transform=steps, orig_keys="image", nearest_interp=False),
            AsDiscreted("pred", argmax=True),
            RestoreGridd("pred", orig_key="image"),
        ]
    )
    return after(decollate_batch({"image": volume, "pred": pred})[0])["pred"]


def inside(volume: Any, shape: Sequence[int], margin: float) -> np.ndarray:
    """The file's voxels that are no more than ``margin`` voxels beyond the outermost centres of the network's grid."""
    matrix = np.linalg.solve(volume.affine[0].numpy(), volume.meta["original_affine"][0].numpy())
    voxels = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), -1)
    positions = voxels @ matrix[:3, :3].T + matrix[:3, 3]
    return np.all((positions >= -margin) & (positions <= np.asarray(volume.shape[2:]) - 1 + margin), axis=-1)


@pytest.mark.parametrize("border", [False, True])
@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize(
    "spacing",
    [(1.0, 1.2, 2.0), (2.3, 0.7, 1.1), (0.6, 0.7, 0.8), (1.9, 2.1, 4.5)],
    ids=["near", "mixed", "fine", "coarse"],
)
def test_as_monai_does_it(tmp_path: Path, spacing: Sequence[float], oblique: bool, border: bool) -> None:
    random = np.random.RandomState(int(10 * sum(spacing)) + 2 * oblique + border)
    shape = (21, 24, 19)
    path = write_volume(tmp_path / "a.nii", blobs(random, shape, border), make_affine(random, spacing, oblique))
    steps, network = preprocessing(), Network()
    volume = load(path, steps)
    expected = plainly(volume, network, steps)[0].numpy()
    found = PatchInferer(PATCH)(volume, network)
    assert found.shape == (1, 1, *shape)
    labels = found[0, 0].numpy()
    assert len(np.unique(expected)) == 3
    # Beyond the outermost centres MONAI fades out into nothing, up to a voxel away.
    same = (labels == expected)[inside(volume, shape, 1e-3)]
    assert same.mean() > 0.9995, f"{(~same).sum()} of {same.size} differ"
    assert not labels[~inside(volume, shape, 0.51)].any()
    np.testing.assert_array_equal(found.affine[0].numpy(), nibabel.load(path).affine)


@pytest.mark.parametrize("patch", [(8, 10, 6), (30, 7, 4), (12, 12, 40), (64, 64, 64), (7, 9, 5)])
def test_exactly_the_same_without_resampling(tmp_path: Path, patch: Sequence[int]) -> None:
    random = np.random.RandomState(sum(patch))
    path = write_volume(
        tmp_path / "a.nii.gz", blobs(random, (21, 24, 19), True), make_affine(random, (2, 1, 1.2), True)
    )
    steps, network = preprocessing((-1, -1, -1)), Network()
    volume = load(path, steps)
    assert tuple(volume.shape[2:]) != (21, 24, 19)  # cropped
    expected = plainly(volume, network, steps, patch)
    found = PatchInferer(patch)(volume, network)
    np.testing.assert_array_equal(found[0].numpy(), expected.numpy())
    assert len(np.unique(expected.numpy())) == 3


@pytest.mark.parametrize(("permutation", "flips"), itertools.product(itertools.permutations(range(3)), range(8)))
def test_lands_on_the_files_own_grid(tmp_path: Path, permutation: Sequence[int], flips: int) -> None:
    """Whatever the order and direction of the file's axes: the same scene, the same labels."""
    random = np.random.RandomState(1)
    array = blobs(random, (9, 13, 11), True).astype(np.float32)
    affine = OBLIQUE.copy()
    affine[:3, 3] += 0.1 * random.standard_normal(3)
    change = np.eye(4)[:, [*permutation, 3]]
    turned = array.transpose(permutation)
    for axis in range(3):
        if flips >> axis & 1:
            turned = np.flip(turned, axis)
            step = np.eye(4)
            step[axis, axis], step[axis, 3] = -1, turned.shape[axis] - 1
            change = change @ step
    affine = (affine @ change).astype(np.float32)  # as a NIfTI file holds it
    path = write_volume(tmp_path / "a.nii", turned, affine)
    volume = load(path, preprocessing((-1, -1, -1)))
    found = PatchInferer(PATCH)(volume, lambda window: torch.cat([-window, window, window * 0 + 0.3], 1))
    scene = np.where(array > 0.3, 1, np.where(array >= -0.3, 2, 0))
    scene[array == 0] = 0  # cropped away
    for axis in range(3):
        if flips >> axis & 1:
            found = found.flip(2 + axis)
    labels = found[0, 0].numpy().transpose(np.argsort(permutation))
    np.testing.assert_array_equal(labels, scene)
    np.testing.assert_array_equal(found.affine[0].numpy(), nibabel.load(path).affine)
    np.testing.assert_array_equal(found.affine[0].numpy(), affine.astype(np.float64))


@pytest.mark.parametrize("shape", [(1, 24, 19), (21, 1, 19), (21, 24, 1), (1, 1, 17), (1, 1, 1), (2, 3, 2)])
@pytest.mark.parametrize("spacing", [SPACING, (-1, -1, -1)], ids=["resampled", "kept"])
def test_thin_volumes(tmp_path: Path, shape: Sequence[int], spacing: Sequence[float]) -> None:
    random = np.random.RandomState(3)
    path = write_volume(tmp_path / "a.nii", blobs(random, shape, False), make_affine(random, (0.9, 1.7, 2.6), False))
    steps, network = preprocessing(spacing), Network()
    volume = load(path, steps)
    expected = plainly(volume, network, steps)
    found = PatchInferer(PATCH)(volume, network)
    assert found.shape == (1, 1, *shape)
    counts = inside(volume, shape, 1e-3)
    np.testing.assert_array_equal(found[0, 0].numpy()[counts], expected[0].numpy()[counts])


def test_several_channels(tmp_path: Path) -> None:
    random = np.random.RandomState(3)
    image = np.stack([blobs(random, (21, 24, 19), True) for _ in range(2)], -1)
    path = write_volume(tmp_path / "a.nii.gz", image, make_affine(random, (1.0, 2.0, 1.2), True))
    steps, network = preprocessing(), Network(n_channels=2)
    volume = load(path, steps)
    assert volume.shape[1] == 2
    expected = plainly(volume, network, steps)[0].numpy()
    labels = PatchInferer(PATCH)(volume, network)[0, 0].numpy()
    assert (labels == expected)[inside(volume, (21, 24, 19), 1e-3)].mean() > 0.9995


def test_a_position_is_interpolated_by_hand() -> None:
    """Planes 0, 1, 2 of the network at 0, 1, 2 mm; voxels of the file every 0.7 mm, backwards from 2.4 mm on."""
    network_affine, file_affine = np.eye(4), np.diag([-0.7, 1, 1, 1])
    file_affine[0, 3] = 2.4
    axes = match_grids(network_affine, (3, 1, 1), file_affine, (6, 1, 1))
    assert axes[0].inside == slice(0, 5)  # the last, at -1.1 mm, was cropped away; at 2.4 and -0.4 mm the border counts
    found = axes[0].resample(torch.tensor([[0.0], [10.0], [40.0]]), 0)[:, 0]
    torch.testing.assert_close(found, torch.tensor([40.0, 10 + 0.7 * 30, 10.0, 3.0, 0.0]))
    assert axes[0].by_plane() == {
        2: [(0, 0), (1, pytest.approx(0.7))],
        1: [(2, 0), (3, pytest.approx(0.3))],
        0: [(4, 0)],
    }


def test_rounding_of_an_affine_is_not_interpolated() -> None:
    affine = OBLIQUE @ np.array([[0, -1, 0, 30], [1, 0, 0, -2], [0, 0, 1, 0.0], [0, 0, 0, 1]])
    axes = match_grids(OBLIQUE, (31, 20, 9), affine.astype(np.float32).astype(np.float64), (22, 31, 9))
    assert [axis.file_axis for axis in axes] == [1, 0, 2]
    assert not any(axis.weight.any() for axis in axes)
    assert axes[0].low.tolist() == list(range(30, -1, -1))
    assert axes[1].inside == slice(2, 22)
    assert axes[1].low.tolist() == list(range(20))


def grid(volume: Tensor, affine: np.ndarray | None = None, **meta: Any) -> MetaTensor:
    """A batch of one, on the grid of a file unless ``meta`` says otherwise."""
    affine = np.eye(4) if affine is None else affine
    meta = {"original_affine": affine, "spatial_shape": np.asarray(volume.shape[1:]), **meta}
    return next(iter(DataLoader([MetaTensor(volume, affine=torch.as_tensor(affine), meta=meta)], batch_size=1)))


class Sizes(TorchDispatchMode):
    """Remembers the largest tensor that an operator made, in bytes."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf.untyped_storage().nbytes() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.largest = max(self.largest, *made, 0)
        return result


@pytest.mark.parametrize(("shape", "axis"), [((144, 24, 24), 0), ((24, 24, 144), 2)])
@pytest.mark.parametrize("zoom", [1.0, 0.9])
def test_memory_is_that_of_a_slab(shape: tuple[int, int, int], axis: int, zoom: float) -> None:
    n_classes, patch = 14, (12, 12, 12)
    everything = n_classes * int(np.prod(shape)) * 4
    slab = everything * patch[axis] // shape[axis]
    file_affine = np.diag([zoom, zoom, zoom, 1])
    volume = grid(torch.rand(1, *shape), original_affine=file_affine)
    weights = torch.linspace(-1, 1, n_classes).view(-1, 1, 1, 1)
    live = LiveTensors()
    with live:
        labels = PatchInferer(patch)(volume, lambda window: window * weights)
    assert slab < live.peak < 2 * slab + volume.nbytes + labels.nbytes < 0.3 * everything
    with Sizes() as sizes:
        PatchInferer(patch)(volume, lambda window: window * weights)
    assert sizes.largest == slab


def test_flips_are_averaged() -> None:
    network, volume = Network(), torch.rand(1, 1, 11, 12, 13)
    flips = [(), (2,), (4,), (2, 4)]
    expected = sum(network(volume.flip(dims)).flip(dims) for dims in flips) / 4
    seen: list[Tensor] = []

    def spy(window: Tensor) -> Tensor:
        seen.append(window)
        return network(window)

    found = PatchInferer((11, 12, 13), flip_axes=[2, 0])(volume, spy)
    assert len(seen) == 4
    torch.testing.assert_close(found.as_tensor()[:, 0].long(), expected.argmax(1))
    assert (found[:, 0] != network(volume).argmax(1)).any()
    inferer = PatchInferer((11, 12, 13), flip_axes=[2, 0])
    torch.testing.assert_close(inferer._logits(volume, network), expected)


def test_windows_in_batches() -> None:
    volume, network, sizes = torch.rand(1, 1, 20, 21, 22), Network(), []

    def spy(window: Tensor, shift: float, scale: float = 1.0) -> Tensor:
        sizes.append(window.shape[0])
        return network(window) * scale + shift

    expected = PatchInferer(PATCH)(volume, network)
    found = PatchInferer(PATCH, batch_size=7)(volume, spy, 0.5, scale=2.0)
    assert set(sizes[:-1]) == {7}
    assert torch.equal(found.as_tensor(), expected.as_tensor())


def test_progress_is_one_bar(capsys: pytest.CaptureFixture[str]) -> None:
    volume = torch.rand(1, 1, 16, 10, 6)  # three windows
    PatchInferer(PATCH)(volume, Network())
    assert capsys.readouterr() == ("", "")
    PatchInferer(PATCH, progress=True)(volume, Network())
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "3/3" in printed.err
    assert printed.err.count("\n") == 1


def test_half_precision_is_summed_in_single() -> None:
    """Of logits near 2000, where half precision steps by one, the weighted mean is as exact as of small ones."""
    volume = torch.rand(1, 1, 20, 21, 22)
    found = PatchInferer(PATCH)(volume, lambda window: torch.cat([window * 0 + 2000, window * 0 + 2001], 1).half())
    assert bool((found == 1).all())


def test_the_result_is_a_batch_without_history(tmp_path: Path) -> None:
    random = np.random.RandomState(3)
    path = write_volume(tmp_path / "a.nii.gz", blobs(random, (9, 8, 7), True), make_affine(random, (1, 2, 3), True))
    volume, network = load(path, preprocessing()), Network()
    gradients = []

    def spy(window: Tensor) -> Tensor:
        gradients.append((logits := network(window)).requires_grad)
        return logits

    batch = PatchInferer(PATCH)(volume, spy)
    assert set(gradients) == {False}
    assert (batch.dtype, batch.device.type, batch.requires_grad) == (torch.uint8, "cpu", False)
    answer = decollate_batch(batch)[0]
    assert answer.shape == (1, 9, 8, 7)
    assert answer.applied_operations == []
    assert answer.meta["filename_or_obj"] == str(path)
    np.testing.assert_array_equal(answer.affine.numpy(), nibabel.load(path).affine)

    single = decollate_batch(volume)[0][None]  # as MONAI Label calls it
    assert not single.is_batch
    again = PatchInferer(PATCH)(single, network)
    for other in (again[0], decollate_batch(again)[0]):
        assert torch.equal(other.as_tensor(), answer.as_tensor())
        np.testing.assert_array_equal(other.affine.numpy(), nibabel.load(path).affine)


def test_a_batch_of_files(tmp_path: Path) -> None:
    random, network = np.random.RandomState(3), Network()
    affine = make_affine(random, (1.0, 1.3, 2.0), True)
    paths = [write_volume(tmp_path / f"{n}.nii", blobs(random, (9, 12, 10), False), affine) for n in range(2)]
    batch = next(iter(DataLoader(Dataset([{"image": str(path)} for path in paths], preprocessing()), batch_size=2)))
    found = PatchInferer(PATCH)(batch["image"], network)
    alone = [PatchInferer(PATCH)(load(path, preprocessing()), network) for path in paths]
    assert torch.equal(found.as_tensor(), torch.cat([label.as_tensor() for label in alone]))
    assert not torch.equal(*(label.as_tensor() for label in alone))
    batch["image"].meta["spatial_shape"] = torch.tensor([[9, 12, 10], [9, 12, 11]])
    with pytest.raises(Med3dError, match=r"files of the shapes \(9, 12, 10\), \(9, 12, 11\), expected one shape"):
        PatchInferer(PATCH)(batch["image"], network)


def test_sheared_files_take_the_nearest_labels(caplog: pytest.LogCaptureFixture) -> None:
    """A network that answers with the intensity's sign: the file's voxels see that of the voxel nearest to them."""
    sheared = np.eye(4)
    sheared[0, 1] = 0.01
    volume = torch.randn(1, 8, 9, 6)
    PatchInferer(PATCH)(grid(volume, original_affine=sheared), Network())  # 0.08 voxels, at most
    assert not caplog.records
    sheared[0, 1] = 0.3
    shape = (7, 9, 6)
    given = grid(volume, original_affine=sheared, spatial_shape=np.array(shape), filename_or_obj="scan.nii")
    found = PatchInferer(PATCH)(given, lambda patch: torch.cat([-patch, patch], 1))[0, 0]
    assert "scan.nii: the axes of the file stray by 2.4 voxels" in caplog.text
    expected = torch.zeros(shape)
    for x, y, z in np.ndindex(shape):
        if (nearest := round(x + 0.3 * y)) < 8:
            expected[x, y, z] = float(volume[0, nearest, y, z] > 0)
    assert torch.equal(found.as_tensor().float(), expected)
    np.testing.assert_array_equal(found.affine.squeeze(), sheared)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": [8, 8]}, r"patch_size is \[8, 8\], expected three"),
        ({"patch_size": [8, 8, 0]}, r"patch_size is \[8, 8, 0\]"),
        ({"overlap": 1.0}, "overlap is 1.0, expected a share"),
        ({"batch_size": 0}, "batch_size is 0, expected"),
        ({"flip_axes": [0, 3]}, r"flip_axes is \[0, 3\], expected"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Med3dError, match=message):
        PatchInferer(**{"patch_size": PATCH, **options})
