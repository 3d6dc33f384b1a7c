"""Reading, naming and writing of weights; damaged and foreign files."""

from __future__ import annotations

import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from published import ROOT, changed, constant_state, relative_error, write_published, write_train_py

from med3d_nets import weights
from med3d_nets.errors import Med3dError
from med3d_nets.weights import (
    Architecture,
    inflate_stem,
    map_names,
    read_architecture,
    read_checkpoint,
    read_tensors,
    write_atomically,
)

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


class RunsCode:
    """Pickles to a call that makes a file, so that a test can tell whether it was made."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


# Reading


@FORMATS
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_read_tensors_takes_off_the_prefix(tmp_path, zipped, prefix):
    state = constant_state(10, "B")
    path = tmp_path / "any.pth"
    torch.save({"state_dict": {prefix + n: v for n, v in state.items()}}, path, _use_new_zipfile_serialization=zipped)
    found = read_tensors(path)
    assert list(found) == list(state)
    assert all(torch.equal(found[name], value) for name, value in state.items())


@FORMATS
def test_read_tensors_of_train_py(tmp_path, zipped):
    state = constant_state(10, "B", 4)
    path = write_train_py(tmp_path / "x_epoch_12.pth.tar", state, _use_new_zipfile_serialization=zipped)
    assert {"ecpoch", "batch_id", "optimizer"} < set(read_checkpoint(path))
    assert list(read_tensors(path)) == list(state)
    assert read_architecture(read_tensors(path), path) == Architecture(10, "B", 1, 4)


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_read_tensors_finds_the_state_dict(tmp_path, key):
    state = {"conv1.weight": torch.ones(2)}
    torch.save(state if key is None else {"epoch": 3, key: state}, tmp_path / "a.pt")
    assert torch.equal(read_tensors(tmp_path / "a.pt")["conv1.weight"], torch.ones(2))


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": {}}, {"state_dict": {"a": 1.0}}])
def test_read_tensors_without_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(Med3dError, match=r"a\.pt: no state dict in it"):
        read_tensors(tmp_path / "a.pt")


@pytest.mark.parametrize("content", [torch.ones(2), [torch.ones(2)], 3])
def test_read_checkpoint_of_something_else(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(Med3dError, match=rf"a\.pt: holds a {type(content).__name__}, expected a dictionary"):
        read_checkpoint(tmp_path / "a.pt")


@FORMATS
def test_truncated_file(tmp_path, zipped):
    """Cut anywhere, from the first byte to the last but one."""
    path = write_published(
        tmp_path / "whole.pth", {"conv1.weight": torch.rand(64, 99)}, _use_new_zipfile_serialization=zipped
    )
    whole = path.read_bytes()
    cut = tmp_path / "cut.pth"
    size = len(whole)
    for length in sorted({1, 2, 3, 4, 5, 20, 100, *range(200, size, size // 40), size - 100, size - 21, size - 1}):
        cut.write_bytes(whole[:length])
        with pytest.raises(Med3dError, match=r"cut\.pth: (truncated or damaged|damaged|not a PyTorch checkpoint)"):
            read_tensors(cut)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"<!doctype html>", b"PK"])
def test_file_of_another_kind(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(Med3dError, match=r"a\.pth: not a PyTorch checkpoint, its first bytes are b") as caught:
        read_tensors(tmp_path / "a.pth")
    assert repr(content[:4]) in str(caught.value)


@pytest.mark.parametrize("name", ["none.pth", "."])
def test_no_file(tmp_path, name):
    with pytest.raises(Med3dError, match="no such file"):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle 0", "pickle 2", "pickle 4"])
def test_code_in_a_file_does_not_run(tmp_path, kind):
    path, marker = tmp_path / "a.pth", tmp_path / "ran"
    content = {"state_dict": {"conv1.weight": torch.ones(2)}, "epoch": RunsCode(marker)}
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps(content["epoch"], protocol=int(kind[-1])))
        expected = r"holds the Python object posix\.mkdir|damaged|not a PyTorch checkpoint"
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
        expected = r"holds the Python object posix\.mkdir, which is not loaded"
    with pytest.raises(Med3dError, match=expected):
        read_tensors(path)
    assert not marker.exists()
    if kind != "zip" and kind != "legacy":
        pickle.loads(path.read_bytes())  # the file does run code where it is let
        assert marker.exists()


# Names and architecture


def test_map_names():
    names = ["conv1.weight", "bn1.bias", "layer4.0.conv1.weight", "conv_seg.0.bias", "head.6.weight", "fc.weight"]
    value = torch.ones(1)
    mapped = map_names(dict.fromkeys(names, value))
    assert list(mapped) == [
        "encoder.conv1.weight",
        "encoder.bn1.bias",
        "encoder.layer4.0.conv1.weight",
        "head.0.bias",
        "head.6.weight",
        "fc.weight",
    ]
    assert map_names(mapped) == mapped


@pytest.mark.parametrize("depth", [10, 18, 34, 50, 101, 152, 200])
@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("classes", [None, 7])
def test_read_architecture(depth, shortcut, classes):
    state = constant_state(depth, shortcut, classes, in_channels=2)
    assert read_architecture(state, "state") == Architecture(depth, shortcut, 2, classes)
    assert read_architecture(map_names(state), "state") == Architecture(depth, shortcut, 2, classes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer1.1.conv1.weight": torch.ones(1)}, r"not a MedicalNet ResNet: \(2, 1, 1, 1\) blocks per stage, first"),
        ({"layer1.0.conv3.weight": torch.ones(1)}, r"\(1, 1, 1, 1\) blocks per stage of bottlenecks"),
        ({"conv1.weight": None}, r"conv1\.weight is missing"),
        ({"conv1.weight": torch.ones(64)}, r"conv1\.weight is of shape \(64,\)"),
    ],
)
def test_read_architecture_of_something_else(change, message):
    with pytest.raises(Med3dError, match=f"^file: .*{message}"):
        read_architecture(changed(constant_state(10, "B"), change), "file")


def test_inflate_stem():
    weight = torch.rand(64, 1, 7, 7, 7)
    assert inflate_stem(weight, 1) is weight
    inflated = inflate_stem(weight, 3)
    assert inflated.shape == (64, 3, 7, 7, 7)
    assert relative_error(inflated.sum(1, keepdim=True), weight) < 1e-6
    with pytest.raises(Med3dError, match="the weights are for 3 input channels, the network has 2"):
        inflate_stem(inflated, 2)


# Writing


def test_write_atomically(tmp_path):
    path = tmp_path / "new" / "folder" / "a.pt"
    umask = os.umask(0o027)
    try:
        write_atomically(path, {"a": torch.arange(3)})
    finally:
        os.umask(umask)
    assert torch.equal(torch.load(path)["a"], torch.arange(3))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    write_atomically(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    assert os.listdir(path.parent) == ["a.pt"]


def test_same_tensors_give_the_same_bytes(tmp_path):
    for name in ("a.pt", "b.pt"):
        write_atomically(tmp_path / name, {"x": torch.arange(1000.0), "y": torch.ones((), dtype=torch.int64)})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


@pytest.mark.parametrize("content", [{"a": torch.ones(9), "f": lambda: None}, "\ud800"], ids=["pickle", "encode"])
@pytest.mark.parametrize("old", ["old", None])
def test_failed_write_keeps_the_old_file(tmp_path, content, old):
    path = tmp_path / "a.pt"
    if old is not None:
        path.write_text(old)
    with pytest.raises((pickle.PicklingError, AttributeError, UnicodeEncodeError)):
        write_atomically(path, content)
    assert os.listdir(tmp_path) == ([] if old is None else ["a.pt"])
    assert old is None or path.read_text() == old


def test_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    def interrupt(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    path = tmp_path / "a.pt"
    path.write_text("old")
    monkeypatch.setattr(weights.torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, {})
    assert os.listdir(tmp_path) == ["a.pt"]
    assert path.read_text() == "old"


def test_write_over_a_folder(tmp_path):
    (tmp_path / "a.pt").mkdir()
    with pytest.raises(OSError, match=r"a\.pt"):
        write_atomically(tmp_path / "a.pt", "text")
    assert os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("content", ["{'a': torch.zeros(1_000_000)}", "'x' * 1_000_000"], ids=["tensors", "text"])
def test_write_beyond_what_the_disk_takes(tmp_path, content):
    path = tmp_path / "a.pt"
    path.write_text("old")
    code = f"""
import resource, sys, torch
from med3d_nets.errors import explain
from med3d_nets.weights import write_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_atomically(sys.argv[1], {content})
except OSError as error:
    print(type(explain(error, {{}})).__name__, explain(error, {{}}))
"""
    shown = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert shown == f"Med3dError no space left on the disk while writing {path} (File too large)\n"
    assert os.listdir(tmp_path) == ["a.pt"]
    assert path.read_text() == "old"
