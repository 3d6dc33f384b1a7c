"""MONAI's exports of the shipped bundles, and the exported files in the network's place."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import zipfile
from ast import literal_eval
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import monai.bundle
import nibabel
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from published import ROOT, relative_error
from torch import nn

from med3d_nets import create_model
from med3d_nets.errors import Med3dError, explain
from med3d_nets.exported import OnnxNetwork, check_exported, load_exported
from med3d_nets.networks import SegmentationNet
from med3d_nets.settings import Settings, read_settings
from med3d_nets.weights import load_trained, write_atomically

# The words of the bundle's documentation.
FILES = ["--ckpt_file", "models/model.pt", "--meta_file", "configs/metadata.json"]
FILES += ["--config_file", "configs/inference.json"]
ANY_SIZE = "{'dynamic_axes': {'x': [0,2,3,4]}, 'external_data': False}"
IN_PYTHON = dict(zip([word[2:] for word in FILES[::2]], FILES[1::2], strict=True))
SIZES = [(1, 24, 32, 28), (2, 17, 23, 19), (3, 9, 8, 11), (1, 40, 56, 40), (5, 16, 16, 16), (1, 1, 2, 1)]
TOLERANCE = 1e-4

Export = Callable[[str, str], Path]


def command(path: Path) -> None:
    """The documented command line."""
    words = [sys.executable, "-m", "monai.bundle", "onnx_export", "network_def", "--filepath", str(path), *FILES]
    words += ["--use_trace", "True", "--converter_kwargs", ANY_SIZE]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


EXPORTERS: dict[str, Callable[[Path], None]] = {
    "script": lambda path: monai.bundle.ckpt_export("network_def", filepath=path, **IN_PYTHON),
    "trace": lambda path: monai.bundle.ckpt_export(
        "network_def", filepath=path, **IN_PYTHON, use_trace=True, input_shape=[1, 1, 24, 32, 28]
    ),
    "command": command,
    "dynamic": lambda path: monai.bundle.onnx_export(
        "network_def", filepath=path, **IN_PYTHON, use_trace=True, converter_kwargs=literal_eval(ANY_SIZE)
    ),
    "plain": lambda path: monai.bundle.onnx_export("network_def", filepath=path, **IN_PYTHON),
}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Export]:
    """Export a variant, once per kind, from a copy of its bundle in a folder with a space in its name."""
    root = tmp_path_factory.mktemp("my bundles")

    @cache
    def bundle(variant: str) -> Path:
        folder = Path(shutil.copytree(ROOT / "bundles" / f"medicalnet_{variant}", root / variant))
        shutil.rmtree(folder / "models", ignore_errors=True)
        write_trained(folder / "models", variant)
        return folder

    @cache
    def call(variant: str, kind: str) -> Path:
        folder = bundle(variant)
        path = folder / "models" / {"script": "model.ts", "trace": "traced.ts"}.get(kind, f"{kind}.onnx")
        temporary = folder / "temporary" / kind
        temporary.mkdir(parents=True)
        with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
            patch.setattr("tempfile.tempdir", str(temporary))
            patch.setenv("TMPDIR", str(temporary))
            EXPORTERS[kind](path)
        return path

    yield call
    shutil.rmtree(root)  # pytest would keep a gigabyte


def write_trained(folder: Path, variant: str) -> None:
    """Random weights, with statistics that the batch norms have seen, and their settings, as training writes them."""
    torch.manual_seed(1)
    network = create_model(variant, 3).train()
    with torch.no_grad():
        for _ in range(3):
            network(1.5 * torch.randn(2, 1, 24, 32, 28) + 0.3)
    settings = Settings(variant, "medicalnet", "whole", 1, ["background", "one", "two"], [24, 32, 28])
    write_atomically(folder / "model.pt", network.state_dict())
    write_atomically(folder / "model.json", settings.to_json())


def trained_network(folder: Path) -> SegmentationNet:
    network = create_model(read_settings(folder / "model.json").variant, 3)
    load_trained(network, str(folder / "model.pt"))
    return network.eval()


def assert_same_answers(path: Path, sizes: list[tuple[int, int, int, int]] = SIZES, device: str = "cpu") -> None:
    network, exported = trained_network(path.parent).to(device), load_exported(path, device)
    check_exported(exported, read_settings(path.parent / "model.json"))
    torch.manual_seed(2)
    errors = []
    for batch, *size in sizes:
        volume = torch.randn(batch, 1, *size, device=device)
        with torch.no_grad():
            expected, found = network(volume), exported(volume)
        assert found.device == volume.device
        assert expected.abs().max() > 1e-2, "the logits of a network that answers nothing"
        errors.append(relative_error(found.cpu(), expected.cpu()))
        assert errors[-1] < TOLERANCE, (batch, *size)
    variant = read_settings(path.parent / "model.json").variant
    print(f"{variant} {path.suffix}: largest difference {max(errors):.1e}")  # for docs/sharing.md, with pytest -s


# resnet_10 has shortcut B, resnet_18 has A.
KINDS = [("resnet_10", kind) for kind in ("script", "trace", "command")]
KINDS += [("resnet_18", kind) for kind in ("script", "trace", "dynamic")]


@pytest.mark.parametrize(("variant", "kind"), KINDS)
def test_an_exported_network_answers_as_the_network_at_any_size(variant: str, kind: str, export: Export) -> None:
    assert_same_answers(export(variant, kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["script", "trace", "dynamic"])
@pytest.mark.parametrize("variant", ["resnet_34", "resnet_50"])
def test_deeper_networks_too(variant: str, kind: str, export: Export) -> None:
    assert_same_answers(export(variant, kind))


@pytest.mark.parametrize(("variant", "kind"), [("resnet_10", "command"), ("resnet_18", "dynamic")])
def test_onnx_is_one_file_with_axes_of_any_size(variant: str, kind: str, export: Export) -> None:
    path = export(variant, kind)
    left = [*(path.parent.parent / "temporary" / kind).rglob("*"), *path.parent.glob("*.data")]
    assert not [path for path in left if path.is_file()], "a copy of the weights"
    graph = onnx.load(path, load_external_data=False).graph
    assert all(tensor.data_location == TensorProto.DEFAULT for tensor in graph.initializer)
    for tensor, channels in ((graph.input[0], 1), (graph.output[0], 3)):
        axes = tensor.type.tensor_type.shape.dim
        assert axes[1].dim_value == channels
        assert all(axes[index].dim_param for index in (0, 2, 3, 4))


@pytest.mark.slow
def test_onnx_without_the_options_is_of_the_size_in_the_metadata(export: Export) -> None:
    path = export("resnet_10", "plain")
    network = load_exported(path)
    assert network.input_shape == [1, 1, 56, 448, 448]
    with pytest.raises(Med3dError, match=r"depth 24, exported for 56; height 32, exported for 448.*'dynamic_axes'"):
        check_exported(network, read_settings(path.parent / "model.json"))


@pytest.fixture(scope="module")
def label_maps(export: Export, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], np.ndarray]:
    """Label maps of the shipped ``inference.json``, by the path of the exported file."""
    folder = export("resnet_10", "script").parent.parent

    @cache
    def call(exported_path: str) -> np.ndarray:
        output = tmp_path_factory.mktemp("maps")
        options = {"img_list": str(dataset / "images"), "output_dir": str(output), "exported_path": exported_path}
        workflow = monai.bundle.ConfigWorkflow(
            folder / "configs" / "inference.json", logging_file=False, workflow_type="inference",
            bundle_root=str(folder), **options,
        )  # fmt: skip
        workflow.initialize()
        workflow.run()
        return np.stack([np.asanyarray(nibabel.load(path).dataobj) for path in sorted(output.rglob("*.nii.gz"))])

    return call


@pytest.mark.parametrize("kind", ["script", "command"])
def test_inference_gives_the_same_label_maps(
    kind: str, export: Export, label_maps: Callable[[str], np.ndarray]
) -> None:
    """All but 0.01 % of the voxels: two classes may be as probable as each other."""
    path = export("resnet_10", kind)
    expected, hidden = label_maps(""), path.with_name("hidden.pt")
    path.with_name("model.pt").rename(hidden)  # it is not read
    try:
        found = label_maps(str(path))
    finally:
        hidden.rename(path.with_name("model.pt"))
    assert len(expected) == 8
    assert len(np.unique(expected)) > 1
    assert (found == expected).mean() > 0.9999


def test_inference_with_an_exported_network_that_is_not_there(label_maps: Callable[[str], np.ndarray]) -> None:
    with pytest.raises(RuntimeError) as caught:
        label_maps("models/gone.onnx")
    assert str(explain(caught.value, {})).startswith("models/gone.onnx: no such file; python -m monai.bundle")


def tiny_onnx(path: Path, *shape: int | str, inputs: int = 1) -> Path:
    tensors = [helper.make_tensor_value_info(f"x{index}", TensorProto.FLOAT, list(shape)) for index in range(inputs)]
    pred = helper.make_tensor_value_info("pred", TensorProto.FLOAT, list(shape))
    node = helper.make_node("Identity" if inputs == 1 else "Sum", [tensor.name for tensor in tensors], ["pred"])
    graph = helper.make_graph([node], "tiny", tensors, [pred])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


def test_onnx_takes_what_a_config_gives_it(tmp_path: Path) -> None:
    network = load_exported(tiny_onnx(tmp_path / "tiny.onnx", "n", "c", "d", "h", "w"))
    volume = monai.data.MetaTensor(torch.rand(2, 3, 4, 5, 6, dtype=torch.float64).movedim(4, 2), requires_grad=True)
    answer = network(volume)
    assert isinstance(network, nn.Module)
    assert not network.training
    assert answer.dtype == torch.float32
    assert torch.equal(answer, volume.detach().as_tensor().float())


def test_a_volume_of_another_size_than_exported(tmp_path: Path) -> None:
    network = load_exported(tiny_onnx(tmp_path / "tiny.onnx", 1, 1, 4, "h", "w"))
    assert network(torch.rand(1, 1, 4, 7, 9)).shape == (1, 1, 4, 7, 9)
    expected = r"tiny\.onnx: got a volume of batch 2, exported for 1; depth 5, exported for 4\. .*--converter_kwargs"
    with pytest.raises(Med3dError, match=expected):
        network(torch.rand(2, 1, 5, 7, 9))


def test_onnx_of_another_kind_of_network(tmp_path: Path) -> None:
    with pytest.raises(Med3dError, match=r"its input is x0 \[1, 1, 4, 5\]; expected one of 5 axes, batch, channel,"):
        load_exported(tiny_onnx(tmp_path / "flat.onnx", 1, 1, 4, 5))
    with pytest.raises(Med3dError, match=r"its input is x0 .*, x1 .*; expected one of 5 axes"):
        load_exported(tiny_onnx(tmp_path / "two.onnx", 1, 1, 4, 5, 6, inputs=2))


@pytest.mark.parametrize("name", ["gone.ts", "gone.onnx", "gone.pth"])
def test_a_file_that_is_missing(name: str, tmp_path: Path) -> None:
    with pytest.raises(Med3dError, match=rf"{name}: no such file; python -m monai.bundle ckpt_export"):
        load_exported(tmp_path / name)


def test_a_suffix_that_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "model.engine").write_bytes(b"x")
    with pytest.raises(Med3dError, match=r"the suffix is '.engine', expected .ts or .pt \(TorchScript\) or .onnx"):
        load_exported(tmp_path / "model.engine")


@pytest.mark.parametrize("content", [b"", b"some text", "half"], ids=["empty", "text", "half"])
@pytest.mark.parametrize(("kind", "name"), [("script", "TorchScript"), ("command", "ONNX")])
def test_a_file_that_is_truncated_or_something_else(
    kind: str, name: str, content: bytes | str, export: Export, tmp_path: Path
) -> None:
    source = export("resnet_10", kind)
    bad = tmp_path / f"bad{source.suffix}"
    bad.write_bytes(source.read_bytes()[: source.stat().st_size // 2] if isinstance(content, str) else content)
    with pytest.raises(Med3dError, match=rf"bad\.\w+: not an? {name} file, or truncated"):
        load_exported(bad)


def test_weights_instead_of_torchscript(export: Export) -> None:
    with pytest.raises(Med3dError, match=r"model\.pt: holds weights without a network; .* ckpt_export writes both"):
        load_exported(export("resnet_10", "script").with_name("model.pt"))


def test_torchscript_of_another_kind(tmp_path: Path) -> None:
    path = rewritten(tmp_path, b"torch._convolution", b"torch._no_such_op")
    with pytest.raises(Med3dError, match=r"other\.ts: TorchScript that cannot be loaded \(.*\)"):
        load_exported(path)


def test_a_tensorrt_engine_names_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = b"  engine : __torch__.torch.classes.tensorrt.Engine\n"
    path = rewritten(tmp_path, b"  def forward", engine + b"  def forward")
    if "torch_tensorrt" in sys.modules:
        pytest.skip("torch_tensorrt is imported: the engine's class is known")
    with pytest.raises(Med3dError, match=r"holds a TensorRT engine, which needs an NVIDIA GPU; the device is cpu"):
        load_exported(path)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    monkeypatch.setattr("torch.jit.load", lambda *_, load=torch.jit.load, **__: load(path))  # there is no such device
    with pytest.raises(Med3dError, match=r"holds a TensorRT engine, which needs: pip install torch-tensorrt"):
        load_exported(path, "cuda")


def rewritten(folder: Path, old: bytes, new: bytes) -> Path:
    """A TorchScript file of one convolution, with other code in it."""
    torch.jit.trace(nn.Conv3d(1, 2, 1), torch.rand(1, 1, 2, 2, 2)).save(folder / "one.ts")
    with zipfile.ZipFile(folder / "one.ts") as source, zipfile.ZipFile(folder / "other.ts", "w") as target:
        contents = {name: source.read(name) for name in source.namelist()}
        assert any(old in content for name, content in contents.items() if name.endswith(".py"))
        for name, content in contents.items():
            target.writestr(name, content.replace(old, new) if name.endswith(".py") else content)
    return folder / "other.ts"


def test_onnx_runtime_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(Med3dError, match=r"pip install onnxruntime"):
        load_exported(tiny_onnx(tmp_path / "tiny.onnx", 1, 1, 4, 5, 6))


def test_onnx_runtime_for_cpus_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    network = OnnxNetwork(tiny_onnx(tmp_path / "tiny.onnx", 1, 1, 4, 5, 6), "cuda:1")
    assert "for cuda:1 it needs pip install onnxruntime-gpu" in caplog.text
    assert network.session.get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("kind", ["script", "trace", "command"])
def test_an_exported_network_of_other_settings(kind: str, export: Export) -> None:
    path = export("resnet_10", kind)
    network, settings = load_exported(path), read_settings(path.parent / "model.json")
    with pytest.raises(Med3dError, match=r"m\.ts: n_seg_classes is 3, but model\.json says 2\. Export it again"):
        check_exported(network, replace(settings, class_names=["background", "one"]), "m.ts")
    with pytest.raises(Med3dError, match=r"in_channels is 1, but model\.json says 4"):
        check_exported(network, replace(settings, in_channels=4))
    if kind != "command":
        with pytest.raises(Med3dError, match=r"depth is 10, but model\.json says 18; shortcut is 'B', but .* says 'A'"):
            check_exported(network, replace(settings, variant="resnet_18"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("kind", ["script", "dynamic"])
def test_an_exported_network_on_a_gpu(kind: str, export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cudnn.allow_tf32", False)
    path = export("resnet_18", kind)
    if kind == "dynamic" and "CUDAExecutionProvider" in __import__("onnxruntime").get_available_providers():
        pytest.skip("ONNX Runtime rounds to TF32 on a GPU")
    assert_same_answers(path, device="cuda")


@pytest.mark.slow
@pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("torch_tensorrt") is None, reason="needs a GPU and torch-tensorrt"
)
def test_tensorrt(export: Export) -> None:
    folder = export("resnet_18", "script").parent.parent
    path, size = folder / "models" / "model_trt.ts", [1, 1, 24, 32, 28]
    with contextlib.chdir(folder):
        monai.bundle.trt_export("network_def", filepath=str(path), precision="fp32", input_shape=size, **IN_PYTHON)
    network, volume = trained_network(folder / "models").cuda(), torch.randn(size, device="cuda")
    with torch.no_grad():
        assert relative_error(load_exported(path, "cuda")(volume).cpu(), network(volume).cpu()) < 1e-2
