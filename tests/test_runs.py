"""What a run decides before it starts: learning rates, data sets, and that it overwrites nothing."""

from __future__ import annotations

import os
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import OBLIQUE, write_case
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    Invertd,
    Lambda,
    LoadImaged,
    NormalizeIntensityd,
    RandGaussianNoised,
    Resized,
)
from torch import nn

from med3d_nets.errors import Med3dError
from med3d_nets.networks import SegmentationNet
from med3d_nets.runs import cached_dataset, check_files, check_free, check_outputs, check_resumed, layer_rates
from med3d_nets.settings import Settings
from med3d_nets.transforms import FillEmptyWithNoised, RestoreGridd, not_background

SETTINGS = Settings("resnet_10", "medicalnet", "whole", 1, ["background", "lung"], [16, 20, 24])


def message(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(Med3dError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.device("meta"):
        return SegmentationNet(10, "B", 2)


def names_in(group: dict[str, Any], net: nn.Module) -> set[str]:
    wanted = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in net.named_parameters() if id(parameter) in wanted}


def assert_each_once(groups: list[dict[str, Any]], net: nn.Module) -> None:
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(parameter) for parameter in net.parameters())
    torch.optim.SGD(groups, lr=5.0)  # which refuses a parameter in two groups


@pytest.mark.parametrize("new_layer_names", [["head"], "head", ["head.0", "head"]])
def test_head_learns_a_hundred_times_faster(new_layer_names: Any, net: nn.Module):
    groups = layer_rates(net, new_layer_names, 0.001, from_scratch=False)
    assert [group["name"] for group in groups] == ["new layers", "other layers"]
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.001])
    assert names_in(groups[0], net) == {name for name, _ in net.named_parameters() if name.startswith("head.")}
    assert_each_once(groups, net)


def test_names_are_parts_of_parameter_names(net: nn.Module):
    groups = layer_rates(net, ["layer4.0.conv1", "head.6"], 0.01, from_scratch=False)
    assert names_in(groups[0], net) == {"encoder.layer4.0.conv1.weight", "head.6.weight"}
    assert_each_once(groups, net)


def test_from_scratch_every_layer_is_new(net: nn.Module):
    (group,) = layer_rates(net, ["head"], 0.001, from_scratch=True)
    assert (group["name"], group["lr"]) == ("new layers", pytest.approx(0.1))
    assert_each_once([group], net)


def test_no_new_layers(net: nn.Module):
    (group,) = layer_rates(net, [], 0.001, from_scratch=False)
    assert (group["name"], group["lr"]) == ("other layers", 0.001)
    assert_each_once([group], net)


@pytest.mark.parametrize("from_scratch", [False, True])
def test_unknown_layer_is_refused(from_scratch: bool, net: nn.Module):
    shown = message(layer_rates, net, ["head", "conv_seg"], 0.001, from_scratch)
    assert shown.startswith("new_layer_names: no parameter contains 'conv_seg'; the layers are encoder.bn1, ")
    assert "head.6" in shown


@pytest.fixture
def cases(tmp_path: Path) -> list[dict[str, str]]:
    names = ["a", "b"]
    for seed, name in enumerate(names):
        write_case(tmp_path / "data", name, seed)
    folder = tmp_path / "data"
    return [{kind: str(folder / f"{kind}s" / f"{name}.nii.gz") for kind in ("image", "label")} for name in names]


def steps(size: tuple[int, ...] = (16, 20, 16), noise: bool = False) -> Compose:
    """The validation's steps, and a random one if asked for."""
    return Compose(
        [
            LoadImaged(["image", "label"]),
            EnsureChannelFirstd(["image", "label"]),
            CropForegroundd("image", source_key="image", select_fn=not_background),
            NormalizeIntensityd("image", nonzero=True, channel_wise=True),
            Resized("image", spatial_size=size, mode="trilinear"),
            FillEmptyWithNoised("image"),
            *([RandGaussianNoised("image", prob=1.0, std=0.1, sample_std=False)] if noise else []),
        ]
    )


@pytest.mark.parametrize("cached", ["", "cache"])
def test_files_are_read_once(cached: str, cases: list[dict[str, str]], tmp_path: Path):
    folder = cached and str(tmp_path / cached)
    plain = Dataset(cases, steps())
    expected = [plain[index]["image"] for index in range(2)]
    data = cached_dataset(cases, steps(), folder)
    first = [data[index]["image"] for index in range(2)]
    shutil.rmtree(tmp_path / "data")
    again = [data[index]["image"] for index in range(2)]
    for found in (first, again):
        assert all(torch.equal(one.as_tensor(), other.as_tensor()) for one, other in zip(found, expected, strict=True))
    assert len(list(tmp_path.rglob("*.pt"))) == (2 if cached else 0)


def test_a_case_that_fails_leaves_no_thread_at_work():
    """A process that ends with its error while a thread is inside PyTorch aborts, and its exit status says so."""
    at_work = threading.Event()
    ended = []

    def step(case: dict[str, str]) -> dict[str, str]:
        if case["name"] == "bad":
            assert at_work.wait(10)
            raise OSError("bad")
        at_work.set()
        time.sleep(0.2)
        ended.append(case["name"])
        return case

    data = cached_dataset([], Compose([Lambda(step)]))
    data.num_workers = 2
    with pytest.raises(RuntimeError) as caught:
        data.set_data([{"name": "bad"}, {"name": "slow"}])
    assert "bad" in str(caught.value.__cause__)
    assert ended == ["slow"]


@pytest.mark.parametrize("cached", ["", "cache"])
def test_random_steps_depend_on_the_epoch_and_the_case(cached: str, cases: list[dict[str, str]], tmp_path: Path):
    data = cached_dataset(cases, steps(noise=True), cached and str(tmp_path / cached))
    first, again = (data[0]["image"].as_tensor() for _ in range(2))
    data[1], data[0]
    data.epoch_seed = 5
    later = data[0]["image"].as_tensor()
    assert torch.equal(first, again)
    assert 0.01 < float((first - later).std()) < 0.5
    other = cached_dataset(cases[:1] * 2, steps(noise=True))
    assert not torch.equal(other[0]["image"].as_tensor(), other[1]["image"].as_tensor())


def test_random_steps_do_not_depend_on_the_loader_processes(cases: list[dict[str, str]]):
    data = cached_dataset(cases, steps(noise=True))
    drawn = [
        torch.stack([batch["image"].as_tensor()[0] for batch in DataLoader(data, num_workers=workers)])
        for workers in (0, 2)
    ]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("cached", ["", "cache"])
def test_cached_volume_can_be_inverted(cached: str, cases: list[dict[str, str]], tmp_path: Path):
    """Also by a run that builds its transforms anew and has nothing but the cache."""
    folder = cached and str(tmp_path / cached)
    plain = Dataset(cases, steps())
    fresh = plain[0]
    data = cached_dataset(cases, steps(), folder)
    assert data[0]["image"].shape == (1, 16, 20, 16)
    if cached:
        shutil.rmtree(tmp_path / "data")
        data = cached_dataset(cases, steps(), folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Corrupt cache file")
        image = data[0]["image"]
    assert isinstance(image, MetaTensor)
    assert torch.equal(image.affine, fresh["image"].affine)
    assert len(image.applied_operations) == len(fresh["image"].applied_operations) == 2
    assert torch.equal(data[0]["label"].affine, fresh["label"].affine)
    assert image.meta["filename_or_obj"] == cases[0]["image"]

    found, expected = inverted(data, data.transform), inverted([fresh], plain.transform)
    assert found.shape == (1, 14, 18, 16)
    assert torch.equal(found.as_tensor(), expected.as_tensor())
    assert found.as_tensor()[:, 0].count_nonzero() == 0  # what was cropped is padded again
    assert np.allclose(found.affine, OBLIQUE, atol=1e-6)


def inverted(data: Any, transform: Compose) -> MetaTensor:
    """The first volume, through a loader as a run does, back on its file's grid."""
    item = decollate_batch(next(iter(DataLoader(data, batch_size=1))))[0]
    pred = MetaTensor(item["image"].as_tensor().clone())
    back = Invertd("pred", transform, "image", nearest_interp=False)({**item, "pred": pred})
    return RestoreGridd("pred")(back)["pred"]


def test_cache_tells_other_steps_and_cases_apart(cases: list[dict[str, str]], tmp_path: Path):
    folder = str(tmp_path / "cache")
    one = cached_dataset(cases, steps(), folder)[0]["image"]
    other = cached_dataset(cases, steps(size=(8, 10, 12)), folder)[0]["image"]
    third = cached_dataset(cases, steps(), folder)[1]["image"]
    assert (one.shape, other.shape) == ((1, 16, 20, 16), (1, 8, 10, 12))
    assert not torch.equal(one, third)
    assert len(list((tmp_path / "cache").iterdir())) == 3


def write_checkpoint(path: Path, leave_out: str = "", iteration: int = 6, **settings: Any) -> str:
    """A resumable checkpoint as far as it is looked at: two epochs of three iterations."""
    names = SETTINGS.__dataclass_fields__
    content = {
        "model": {"weight": torch.zeros(1)},
        "optimizer": {},
        "lr_scheduler": {},
        "average": {},
        "trainer": {"iteration": iteration, "epoch_length": 3, "max_epochs": 10},
        "best": {"best": 0.5, "settings": {**{name: getattr(SETTINGS, name) for name in names}, **settings}},
    }
    torch.save({name: value for name, value in content.items() if name != leave_out}, path)
    return str(path)


def files_problem(folder: Path, pretrain_path: str = "", resume_path: str = "") -> str:
    return message(check_files, str(folder), pretrain_path, "resnet_10", resume_path, overwrite=False)


@pytest.mark.parametrize("names", [["model.pt"], ["checkpoint_epoch=10.pt", "checkpoint_epoch=9.pt"]])
def test_earlier_training_is_not_overwritten(names: list[str], tmp_path: Path):
    check_files(str(tmp_path), "", "resnet_10", "", overwrite=False)
    for age, name in enumerate(names):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    shown = files_problem(tmp_path)
    assert shown.startswith(f"an earlier training wrote {', '.join(str(tmp_path / name) for name in names)}; ")
    assert "--ckpt_dir" in shown
    assert "--overwrite True" in shown
    resume = f"go on from it with --resume_path '{tmp_path / names[0]}', "
    assert shown.count(resume) == shown.count("--resume_path") == (names != ["model.pt"])
    check_files(str(tmp_path), "", "resnet_10", "", overwrite=True)


def test_other_files_are_not_in_the_way(tmp_path: Path):
    for name in ("pretrained.pt", "pretrained.json", "notes.txt"):
        (tmp_path / name).touch()
    check_files(str(tmp_path), str(tmp_path / "pretrained.pt"), "resnet_10", "", overwrite=False)
    check_files(str(tmp_path / "new"), "", "resnet_10", "", overwrite=False)
    assert not (tmp_path / "new").exists()


def test_missing_files_are_told(tmp_path: Path):
    assert files_problem(tmp_path, "no.pt").startswith("no.pt: no pretrained weights there. Get them with 'med3d get")
    shown = files_problem(tmp_path, "no.pt", "gone.pt")
    assert shown == "gone.pt: no such file; expected a checkpoint_epoch=*.pt of an earlier training"


def test_resuming_goes_on_in_the_same_folder(tmp_path: Path):
    (tmp_path / "model.pt").touch()
    path = write_checkpoint(tmp_path / "checkpoint_epoch=2.pt")
    check_files(str(tmp_path), "no.pt", "resnet_10", path, overwrite=False)
    check_resumed(SETTINGS, path, 3)
    check_resumed(SETTINGS, "", 3)


@pytest.mark.parametrize("name", ["model", "optimizer", "lr_scheduler", "average", "trainer", "best"])
def test_resuming_needs_everything(name: str, tmp_path: Path):
    path = write_checkpoint(tmp_path / "a.pt", leave_out=name)
    shown = message(check_resumed, SETTINGS, path, 3)
    assert shown.startswith(f"{path}: not a resumable checkpoint, it lacks {name}; expected a checkpoint_epoch=*.pt")


def test_resuming_from_plain_weights(tmp_path: Path):
    path = str(tmp_path / "model.pt")
    torch.save({"weight": torch.zeros(1)}, path)
    shown = message(check_resumed, SETTINGS, path, 3)
    assert "it lacks model, optimizer, lr_scheduler, average, trainer, best;" in shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("variant", "resnet_18"),
        ("head", "other"),
        ("in_channels", 2),
        ("class_names", ["background", "left", "right"]),
        ("input_size", [16, 20, 32]),
        ("fill_empty_with_noise", True),
    ],
)
def test_resuming_with_other_settings(name: str, value: Any, tmp_path: Path):
    path = write_checkpoint(tmp_path / "a.pt", **{name: value})
    shown = message(check_resumed, SETTINGS, path, 3)
    assert shown == f"{name} is {getattr(SETTINGS, name)!r}, but {path} says {value!r}"


def test_resuming_without_the_pretrained_weights(tmp_path: Path):
    """A resumed run reads none, so that their record is no difference."""
    path = write_checkpoint(tmp_path / "a.pt", pretrained={"file": "pretrained.pt"}, input_size=(16, 20, 24))
    check_resumed(SETTINGS, path, 3)


@pytest.mark.parametrize("n_epochs", [1, 2])
def test_resuming_a_finished_training(n_epochs: int, tmp_path: Path):
    path = write_checkpoint(tmp_path / "a.pt")
    shown = message(check_resumed, SETTINGS, path, n_epochs)
    assert (
        shown == f"{path}: the training is complete, with 2 epochs; to go on, raise n_epochs above that, got {n_epochs}"
    )


def test_files_in_the_way_are_named(tmp_path: Path):
    paths = [tmp_path / name for name in ("a.csv", "b.json", "c.html")]
    check_free(paths, overwrite=False)
    paths[0].touch()
    hint = "give another --output_dir or pass --overwrite True"
    assert message(check_free, paths, overwrite=False) == f"{paths[0]}: exists already; {hint}"
    paths[2].mkdir()
    assert message(check_free, map(str, paths), overwrite=False) == f"{paths[0]}, {paths[2]}: exist already; {hint}"
    check_free(paths, overwrite=True)


def test_label_maps_are_not_overwritten(tmp_path: Path):
    names = ("one/a.nii.gz", "two/a.nii.gz", "b.nii")
    cases = [{"image": str(tmp_path / "in" / name)} for name in names]
    where = str(tmp_path / "out"), str(tmp_path / "in"), "seg"
    check_outputs(cases, *where, overwrite=False)
    assert not (tmp_path / "out").exists()
    for name in ("a_seg.nii.gz", "one/a.nii.gz", "one/a_other.nii.gz"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).touch()
    check_outputs(cases, *where, overwrite=False)
    for name in ("b_seg.nii.gz", "two/a_seg.nii.gz"):
        path = tmp_path / "out" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        shown = message(check_outputs, cases, *where, overwrite=False)
        assert shown == f"{path}: exists already; give another --output_dir or pass --overwrite True"
    check_outputs(cases, *where, overwrite=True)
