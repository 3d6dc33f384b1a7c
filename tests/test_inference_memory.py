"""The tool that measures an inference."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nibabel
import pytest
from conftest import ROOT, load_tool

from med3d_nets.errors import Med3dError
from med3d_nets.settings import read_settings


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("inference_memory")


def stand_in(monkeypatch: pytest.MonkeyPatch, tool: ModuleType, seen: dict[str, object], extra: int = 0) -> None:
    """In place of the inference, which takes long: look at what was written and write a label map."""

    def run(bundle: Path, options: dict[str, Path]) -> tuple[int, float]:
        image = nibabel.load(options["img_list"])
        seen["image"] = (image.shape, tuple(image.header.get_zooms()), nibabel.aff2axcodes(image.affine))
        seen["dtype"] = image.get_data_dtype()
        seen["settings"] = read_settings(options["ckpt_dir"] / "model.json")
        seen["weights"] = (options["ckpt_dir"] / "model.pt").stat().st_size
        seen["bundle"] = bundle
        options["output_dir"].mkdir()
        shape = (*image.shape[:2], image.shape[2] + extra)
        label = nibabel.Nifti1Image(image.get_fdata()[:, :, :1].repeat(shape[2], 2).astype("uint8"), image.affine)
        nibabel.save(label, options["output_dir"] / "volume_seg.nii.gz")
        return 1_234_000_000, 56.7

    monkeypatch.setattr(tool, "run", run)


def test_what_is_measured(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, object] = {}
    stand_in(monkeypatch, tool, seen)
    words = "--shape 20,30,24 --spacing 0.5,0.5,2 --model_spacing 1,1,1.5 --n_seg_classes 5 --patch_size 16,16,8"
    monkeypatch.setattr(sys, "argv", ["inference_memory.py", *words.split(), "--modality", "MR"])
    tool.main()
    assert seen["image"] == ((20, 30, 24), (0.5, 0.5, 2.0), ("L", "P", "S"))
    assert seen["dtype"] == "int16"
    settings = seen["settings"]
    assert (settings.variant, settings.head, settings.recipe) == ("resnet_10", "unet", "patch")
    assert (settings.spacing, settings.input_size, settings.intensity) == ([1, 1, 1.5], [16, 16, 8], None)
    assert settings.n_seg_classes == 5
    assert seen["weights"] > 4 * 14_000_000
    assert seen["bundle"] == ROOT / "bundles" / "medicalnet_resnet_10"
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert row[:6] == ["| 20 x 30 x 24", "0.5 x 0.5 x 2.0", "1.0 x 1.0 x 1.5", "5", "`resnet_10`", "16 x 16 x 8"]
    assert row[6:8] == ["1.23", "57"]


def test_the_network_has_the_volumes_spacing_by_default(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}
    stand_in(monkeypatch, tool, seen)
    tool.measure(shape=(8, 9, 7), spacing=(0.9, 0.9, 3))
    assert seen["settings"].spacing == [0.9, 0.9, 3]
    assert seen["settings"].intensity == tool.CT


def test_a_label_map_of_another_shape_is_an_error(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, tool, {}, extra=1)
    with pytest.raises(Med3dError, match=r"label map has the shape \(8, 9, 8\), its volume \(8, 9, 7\)"):
        tool.measure(shape=(8, 9, 7))


@pytest.mark.skipif(sys.platform == "win32", reason="has no resource module")
def test_only_the_inference_is_counted(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not this process, which has torch in memory."""
    fake = tmp_path / "monai" / "bundle"
    fake.mkdir(parents=True)
    (tmp_path / "monai" / "__init__.py").touch()
    (fake / "__init__.py").touch()
    (fake / "__main__.py").write_text(
        "import sys; kept = bytearray(b'1') * 150_000_000; print('said'); sys.exit('--fail' in sys.argv)"
    )
    peak, seconds = tool.run(tmp_path, {"n": 1})  # python -m looks in the working directory first
    assert 150e6 < peak < 200e6
    assert 0 < seconds < 60
    with pytest.raises(Med3dError, match="the inference ended with status 1, see above"):
        tool.run(tmp_path, {"fail": True})
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "said\nsaid\n")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (
            "shape",
            "300",
            "error: --shape is 300, expected three whole numbers of voxels above 0, such as --shape 1,1,1",
        ),
        ("shape", "3,4,0.5", "error: --shape is (3, 4, 0.5), expected three whole numbers"),
        ("patch_size", "3,4", "error: --patch_size is (3, 4), expected three whole numbers"),
        ("spacing", "1,1,-1", "error: --spacing is (1, 1, -1), expected three numbers of mm above 0"),
        ("model_spacing", "x", "error: --model_spacing is 'x', expected three numbers of mm"),
        ("n_seg_classes", "1", "error: --n_seg_classes is 1, expected a whole number from 2 to 256"),
        ("modality", "PET", "error: --modality is 'PET', expected CT or MR"),
        ("variant", "resnet_11", "error: --variant: no variant 'resnet_11'"),
    ],
)
def test_options_out_of_range(
    tool: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["inference_memory.py", f"--{option}", value])
    with pytest.raises(SystemExit, match="1"):
        tool.main()
    printed = capsys.readouterr()
    assert printed.err.startswith(message)
    assert printed.out == ""


@pytest.mark.slow
def test_a_small_volume() -> None:
    words = ["--shape", "40,48,30", "--model_spacing", "1,1,1", "--n_seg_classes", "3", "--patch_size", "32,32,16"]
    command = [sys.executable, "tools/inference_memory.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    row = done.stdout.splitlines()[-1]
    assert row.startswith("| 40 x 48 x 30 | 0.8 x 0.8 x 1.0 | 1.0 x 1.0 x 1.0 | 3 | `resnet_10` | 32 x 32 x 16 | ")
    peak, seconds = row.split(" | ")[6:8]
    assert 0.2 < float(peak) < 2
    assert float(seconds) < 120
    assert "%|" in done.stderr  # the bar
