"""What the converter of published files refuses, and the command itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from converter import ALLOW, TOOL, read_report, snapshot
from converter import refused as refused
from converter import root as root
from converter import run as run
from converter import tool as tool
from published import changed, constant_state, write_published, write_train_py

from med3d_nets.weights import file_sha256, read_tensors

# Defective files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer3.0.bn2.running_mean": None}, "1 missing: layer3.0.bn2.running_mean"),
        ({"conv1.weight": None}, "conv1.weight is missing"),
        ({"fc.weight": torch.ones(1)}, "1 not part of the network: fc.weight"),
        ({"bn1.bias": torch.ones(32)}, "1 of another shape: bn1.bias (32,) instead of (64,)"),
        ({"conv1.weight": torch.ones(64, 1, 3, 3, 3)}, "conv1.weight (64, 1, 3, 3, 3) instead of (64, 1, 7, 7, 7)"),
        ({"conv1.weight": torch.ones(7)}, "conv1.weight is of shape (7,)"),
        ({"layer1.1.bn1.bias": torch.ones(1)}, "(2, 1, 1, 1) blocks per stage"),
    ],
)
def test_tensors_that_do_not_fit(refused, root, change, message):
    write_published(root / "resnet_10.pth", changed(constant_state(10, "B"), change))
    assert message in refused("--src", "resnet_10.pth", ALLOW)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_seg.0.bias": None}, "1 missing: conv_seg.0.bias"),
        ({"conv_seg.6.weight": None}, "1 missing: conv_seg.6.weight"),
        ({"conv_seg.7.bias": torch.ones(1)}, "1 not part of the network: conv_seg.7.bias"),
        ({"conv_seg.3.weight": torch.ones(2)}, "1 of another shape: conv_seg.3.weight (2,) instead of (32, 32, 3, 3"),
        ({"conv_seg.6.weight": torch.ones(())}, "1 of another shape: conv_seg.6.weight () instead of (2, 32, 1, 1, 1)"),
        ({"conv_seg.6.weight": torch.ones(1, 32, 1, 1, 1)}, "n_seg_classes counts the background too"),
    ],
)
def test_head_that_does_not_fit(refused, root, change, message):
    write_train_py(root / "resnet_10.pth", changed(constant_state(10, "B", 2), change))
    assert message in refused("--src", "resnet_10.pth")


def test_truncated_file(refused, root):
    path = write_published(root / "resnet_10.pth", constant_state(10, "B"))
    path.write_bytes(path.read_bytes()[:-1000])
    assert "resnet_10.pth: truncated or damaged" in refused("--src", path.name, ALLOW)


def test_no_file(refused):
    assert refused("--src", "resnet_10.pth") == "error: resnet_10.pth: no such file\n"


# Destination


def test_no_bundle(refused, root):
    write_published(root / "resnet_10.pth", constant_state(10, "B"))
    folder = root / "bundles" / "medicalnet_resnet_10"
    folder.rmdir()
    message = refused("--src", "resnet_10.pth", ALLOW)
    assert f"{folder}: no such bundle to write to" in message
    assert "--dst" in message


@pytest.mark.parametrize("existing", ["pretrained.pt", "pretrained.json"])
def test_existing_file(refused, run, root, existing):
    write_published(root / "resnet_10.pth", constant_state(10, "B"))
    folder = root / "bundles" / "medicalnet_resnet_10" / "models"
    folder.mkdir()
    (folder / existing).write_text("old")
    message = refused("--src", "resnet_10.pth", ALLOW)
    assert f"{folder / existing}: exists already" in message
    assert "--overwrite" in message
    assert run("--src", "resnet_10.pth", ALLOW, "--overwrite")[0] == 0
    assert sorted(os.listdir(folder)) == ["pretrained.json", "pretrained.pt"]
    assert len(read_tensors(folder / "pretrained.pt")) == 72


@pytest.mark.parametrize(
    ("dst", "message"),
    [
        ("bundles", "--dst names the file of tensors, such as pretrained.pt, got bundles"),
        ("a.json", "--dst names the file of tensors, such as pretrained.pt, got a.json"),
        ("resnet_10.pth", "resnet_10.pth: source and destination are the same file"),
        ("resnet_10.pth/a.pt", "File exists: 'resnet_10.pth'"),
    ],
)
def test_bad_destination(refused, root, dst, message):
    write_published(root / "resnet_10.pth", constant_state(10, "B"))
    assert message in refused("--src", "resnet_10.pth", ALLOW, "--overwrite", "--dst", dst)


# The command


@pytest.mark.parametrize("wrong", [("--ovewrite",), ("--destination", "a.pt"), ("--dst", "a.pt", "b.pt")])
def test_misspelt_option_is_no_conversion(run, root, wrong):
    write_published(root / "resnet_10.pth", constant_state(10, "B"))
    before = snapshot(root)
    status, _, err = run("--src", "resnet_10.pth", ALLOW, *wrong)
    assert status == 2
    assert "Could not consume arg" in err
    assert snapshot(root) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--overwrite", "no"), "--overwrite takes no value, but got 'no'"),
        ((ALLOW, "a.pt"), "--allow_digest_mismatch takes no value, but got 'a.pt'"),
        (("--dst",), "--dst takes a value, but stands alone"),
        (("--variant", ALLOW), "--variant takes a value, but stands alone"),
    ],
)
def test_option_with_and_without_value(refused, root, arguments, message):
    write_published(root / "resnet_10.pth", constant_state(10, "B"))
    assert refused("--src", "resnet_10.pth", *arguments) == f"error: {message}\n"


def test_error_of_the_program_keeps_its_traceback(tool, run, root, monkeypatch):
    def fail(path):
        raise KeyError(path)

    monkeypatch.setattr(tool.weights, "read_tensors", fail)
    with pytest.raises(KeyError):
        run("--src", "a.pth")


def test_command_converts(tmp_path):
    write_published(tmp_path / "resnet_10.pth", constant_state(10, "B"))
    done = _command(tmp_path, "--src", "resnet_10.pth", "--dst", "out.pt", ALLOW)
    assert (done.returncode, done.stderr) == (0, "")
    assert read_report(done.stdout)["written"] == "out.pt"
    assert len(read_tensors(tmp_path / "out.pt")) == 72
    (tmp_path / "out.pt").unlink()


def test_command_fails(tmp_path):
    source = write_published(tmp_path / "resnet_10.pth", constant_state(10, "B"))
    done = _command(tmp_path, "--src", "resnet_10.pth", "--dst", "out.pt")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        f"error: resnet_10.pth: not the published resnet_10.pth. Its SHA-256 is {file_sha256(source)}"
    )
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["resnet_10.pth"]


def test_command_on_a_full_disk(tmp_path):
    """A limit on the size of files stands for the disk."""
    write_published(tmp_path / "resnet_10.pth", constant_state(10, "B"))
    (tmp_path / "out.pt").write_text("old")
    arguments = ["--src", "resnet_10.pth", "--dst", "out.pt", ALLOW, "--overwrite"]
    code = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)); "
        f"sys.argv = {['convert_pth.py', *arguments]!r}; runpy.run_path({str(TOOL)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: no space left on the disk while writing out.pt (File too large)\n"
    assert (tmp_path / "out.pt").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["out.pt", "resnet_10.pth"]


def _command(folder, *arguments):
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
