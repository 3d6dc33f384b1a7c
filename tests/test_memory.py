"""The memory that training needs, counted, against the table and against what a CPU really takes."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from conftest import ROOT, load_tool

from med3d_nets.errors import Med3dError
from med3d_nets.variants import VARIANTS, Variant, batch_that_fits

SMALL = (16, 24, 16)

ITERATION = """
import resource, torch
from monai.losses import DiceCELoss
from med3d_nets import create_model, dilation

dilation.MAX_FRACTION = 0.0  # the library's convolutions, which are what is counted
network = create_model("resnet_10").train()
optimiser = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-3)
loss_function = DiceCELoss(to_onehot_y=True, softmax=True)

def iteration(size):
    image, label = torch.rand(1, 1, *size), torch.zeros(1, 1, *size)
    optimiser.zero_grad(set_to_none=False)
    prediction = network(image)
    loss_function(prediction, label).backward()
    optimiser.step()

iteration((32, 32, 32))
iteration((32, 32, 32))
with open("/proc/self/statm") as file:
    before = int(file.read().split()[1]) * resource.getpagesize()
iteration((64, 224, 224))
# Not ru_maxrss, which begins with that of the process that started this one.
with open("/proc/self/status") as file:
    peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
print(peak - before)
"""
"""One iteration, when weights, gradients, momentum and the libraries are in memory already: prints what it adds."""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("memory")


DEEP = [pytest.param(row, marks=pytest.mark.slow, id=row.name) for row in VARIANTS if row.depth > 50]


@pytest.mark.parametrize(
    "row", [*(pytest.param(row, id=row.name) for row in VARIANTS if row.depth <= 50 and row.datasets == 8), *DEEP]
)
def test_the_table_of_variants_is_as_counted(tool: ModuleType, row: Variant) -> None:
    memory = tool.count(row.name)
    assert (row.fixed_mb, row.volume_mb) == (memory.fixed_mb, memory.volume_mb)
    # The README states these bounds.
    assert 0.51 < memory.mixed_mb / memory.volume_mb < 0.66


def test_variants_of_one_depth_need_the_same() -> None:
    needs = {(row.depth, row.fixed_mb, row.volume_mb) for row in VARIANTS}
    assert len(needs) == len({row.depth for row in VARIANTS})


def test_every_part_is_counted(tool: ModuleType) -> None:
    weights, states = 14_361_292 * 4, 3
    peak = tool.peak_bytes("resnet_10", SMALL, 1)
    assert states * weights < peak < (states + 3) * weights
    assert tool.peak_bytes("resnet_10", SMALL, 2) > peak
    assert tool.peak_bytes("resnet_10", (56, 224, 224), 1, n_seg_classes=5) > tool.peak_bytes(
        "resnet_10", (56, 224, 224), 1
    ) + 3 * 4 * (56 * 224 * 224)


@pytest.mark.parametrize(("gpu_gb", "batch"), [(1, 0), (2, 2), (10, 15)])
def test_a_batch_leaves_a_fifth_of_the_gpu(gpu_gb: int, batch: int) -> None:
    assert batch_that_fits(500, 500, gpu_gb) == batch


def test_what_cannot_be_counted_is_an_error(tool: ModuleType) -> None:
    with pytest.raises(Med3dError, match="8 x 8 x 8 voxels cannot be trained on"):
        tool.count("resnet_10", (8, 8, 8))


def test_command_line() -> None:
    command = [sys.executable, "tools/memory.py", "resnet_10", "--input_D", "24", "--input_H", "64", "--input_W", "32"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "24 x 64 x 32 voxels, 2 classes" in done.stdout
    assert done.stdout.count("| `resnet_10` |") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["resnet-10"], "error: no variant 'resnet-10'; did you mean 'resnet_10'?"),
        (
            ["--input_D", "0"],
            "error: --input_D, --input_H and --input_W are numbers of voxels from 1, got (0, 448, 448)",
        ),
        (["resnet_10", "--n_seg_classes", "1"], "error: n_seg_classes counts the background too"),
    ],
)
def test_command_line_errors(
    tool: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["memory.py", *options])
    with pytest.raises(SystemExit, match="1"):
        tool.main()
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_real_iteration_needs_about_what_is_counted(tool: ModuleType) -> None:
    """On a CPU, where the library's work space comes on top."""
    size = (64, 224, 224)
    counted = tool.peak_bytes("resnet_10", size, 2) - tool.peak_bytes("resnet_10", size, 1)
    # Large blocks go back to the system when they are freed, so that the peak is that of live tensors.
    environment = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", ITERATION]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    measured = int(done.stdout)
    assert 0.95 < measured / counted < 1.25, f"measured {measured / 1e6:.0f} MB, counted {counted / 1e6:.0f} MB"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_measuring_needs_a_gpu(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["memory.py", "resnet_10", "--measure"])
    with pytest.raises(SystemExit, match="1"):
        tool.main()
    assert capsys.readouterr() == ("", "error: --measure needs a GPU, and torch finds none\n")
