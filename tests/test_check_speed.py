"""The tool that measures ``med3d check``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import pytest
from conftest import ROOT, load_tool

from med3d_nets.errors import Med3dError


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("check_speed")


def test_volumes_pack_as_those_of_a_scanner(tool: ModuleType, tmp_path: Path) -> None:
    shape = (70, 64, 40)
    sizes = [tool.write_case(tmp_path, number, shape) for number in (0, 1)]
    lines = (tmp_path / "train.txt").read_text().splitlines()
    assert lines == [f"image_{number:04}.nii.gz label_{number:04}.nii.gz" for number in (0, 1)]
    image, label = (nibabel.load(tmp_path / name) for name in lines[1].split())
    assert image.shape == label.shape == shape
    assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
    assert nibabel.aff2axcodes(image.affine) == nibabel.aff2axcodes(label.affine) == ("L", "P", "S")
    assert np.unique(label.dataobj).tolist() == [0, 1, 2]
    voxels, labels = np.asarray(image.dataobj), np.asarray(label.dataobj)
    assert voxels[labels > 0].mean() < -500 < voxels[labels == 0].max()
    bits = np.array(sizes) * 8 / voxels.size
    assert (bits > 6).all()
    assert (bits < 12).all()
    assert sizes[0] != sizes[1]


def test_what_is_printed(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: dict[str, object] = {}

    def run(folder: Path, num_workers: int) -> tuple[float, int, float, float]:
        seen.update(lines=len((folder / "train.txt").read_text().splitlines()), num_workers=num_workers)
        return 4.0, 765_000_000, 12.0, 9.0

    monkeypatch.setattr(tool, "run", run)
    words = "--volumes 3 --shape 20,18,16 --num_workers 2"
    monkeypatch.setattr(sys, "argv", ["check_speed.py", *words.split()])
    tool.main()
    assert seen == {"lines": 3, "num_workers": 2}
    *_, row = capsys.readouterr().out.splitlines()
    cells = row.strip("| ").split(" | ")
    assert cells[:2] == ["3", "20 x 18 x 16"]
    assert cells[3:8] == [str(tool.cores()), "45", "0.77", "12", "9"]
    assert "numpy" in cells[8]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"volumes": 0}, "--volumes is 0, expected a whole number of at least 1"),
        ({"volumes": "few"}, "--volumes is 'few', expected"),
        ({"shape": (512, 512)}, r"--shape is \(512, 512\), expected three whole numbers"),
        ({"shape": (512, 512, 0.5)}, "expected three whole numbers above 0"),
    ],
)
def test_options_that_cannot_be(tool: ModuleType, options: dict[str, object], said: str) -> None:
    with pytest.raises(Med3dError, match=said):
        tool.measure(**options)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no resource module")
def test_the_check_itself_is_measured() -> None:
    command = [sys.executable, "tools/check_speed.py", "--volumes", "2", "--shape", "64,64,32"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cells = done.stdout.splitlines()[-1].strip("| ").split(" | ")
    assert float(cells[4]) > 1
    assert 0.2 < float(cells[5]) < 2
    assert "2 cases (2 training" in done.stderr
    done = subprocess.run([*command, "--num_workers", "-1"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the check ended with status 2, see above" in done.stderr
