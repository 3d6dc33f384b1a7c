"""Networks that ``ckpt_export``, ``onnx_export`` or ``trt_export`` of MONAI wrote, in place of those they were made of.

MONAI writes these files and reads TorchScript; it has nothing that runs an ONNX file where a config wants a network.
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from med3d_nets.errors import Med3dError
from med3d_nets.settings import Settings
from med3d_nets.variants import get_variant
from med3d_nets.weights import read_architecture

__all__ = ["OnnxNetwork", "check_exported", "load_exported", "warn_if_older"]

logger = logging.getLogger(__name__)

AXES = ("batch", "channel", "depth", "height", "width")
ANSWERS = (("batch", "class", "depth", "height", "width"), ("batch", "class"))
"""Axes of an output: of a segmentation, and of a classification or regression."""
LINEAR = "head.linear.weight"
"""The tensor that a classifier has and a segmentation does not."""


class OnnxNetwork(nn.Module):
    """An ONNX file that ONNX Runtime runs, as a network without parameters.

    Volumes pass through the memory of the CPU. On a GPU it needs ``onnxruntime-gpu``; without it, it says so and
    computes on the CPU.

    Args:
        path: the file, with one input of five axes and one output, of five or, of a classifier, of two.
        device: where to compute.

    Raises:
        Med3dError: if ONNX Runtime is not installed or cannot read the file, or if it is another kind of network.
    """

    def __init__(self, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise Med3dError(f"{path}: needs ONNX Runtime, install it by: pip install onnxruntime") from error
        self.path = str(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # its own choice is every core, whatever torch was told
        providers = _providers(torch.device(device), onnxruntime.get_available_providers())
        try:
            session = onnxruntime.InferenceSession(self.path, options, providers=providers)
        except Exception as error:  # its exceptions have no base of their own
            raise Med3dError(f"{path}: not an ONNX file, or truncated ({_first_line(error)})") from error
        self.session: Any = session
        self.input_shape = self._shape_of("input", session.get_inputs(), AXES)
        self.output_shape = self._shape_of("output", session.get_outputs(), *ANSWERS)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, channel, depth, height, width)`` to ``(batch, class, depth, height, width)``, in float32.

        A classifier's answer is ``(batch, class)``.

        Raises:
            Med3dError: if the file was exported for another shape.
        """
        self.check_shape(x.shape)
        image = x.detach().to("cpu", torch.float32).contiguous().numpy()
        (pred,) = self.session.run(None, {self.session.get_inputs()[0].name: image})
        return torch.from_numpy(pred).to(x.device)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Compare a volume's shape with the axes that are fixed in the file.

        Raises:
            Med3dError: naming both values of each axis that differs, and what to do.
        """
        wrong = [
            f"{axis} {found}, exported for {fixed}"
            for axis, fixed, found in zip(AXES, self.input_shape, shape, strict=True)
            if isinstance(fixed, int) and fixed != found
        ]
        if wrong:
            raise Med3dError(
                f"{self.path}: got a volume of {'; '.join(wrong)}. For any size, export it with "
                "--use_trace True --converter_kwargs \"{'dynamic_axes': {'x': [0,2,3,4]}, 'external_data': False}\""
            )

    def _shape_of(self, kind: str, tensors: Sequence[Any], *expected: Sequence[str]) -> list[int | str | None]:
        if len(tensors) != 1 or len(tensors[0].shape) not in map(len, expected):
            found = ", ".join(f"{tensor.name} {tensor.shape}" for tensor in tensors)
            wanted = " or of ".join(f"{len(axes)} axes, {', '.join(axes)}" for axes in expected)
            raise Med3dError(f"{self.path}: its {kind} is {found}; expected one of {wanted}")
        return list(tensors[0].shape)


def load_exported(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> nn.Module:
    """Load an exported network, by the suffix of its file.

    Args:
        path: TorchScript (``.ts`` or ``.pt``), with a TensorRT engine in it or not, or ``.onnx``.
        device: where it will compute.

    Returns:
        A network in evaluation mode that maps ``(batch, channel, depth, height, width)`` to logits
        ``(batch, class, depth, height, width)``, or to a classifier's answer ``(batch, class)``.

    Raises:
        Med3dError: if the file is missing, of another kind, truncated, or needs what is not installed.
    """
    path, device = Path(path), torch.device(device)
    if not path.is_file():
        raise Med3dError(f"{path}: no such file; python -m monai.bundle ckpt_export or onnx_export writes one")
    if path.suffix == ".onnx":
        return OnnxNetwork(path, device).eval()
    if path.suffix in (".ts", ".pt"):
        return _load_torchscript(path, device).eval()
    raise Med3dError(f"{path}: the suffix is {path.suffix!r}, expected .ts or .pt (TorchScript) or .onnx")


def check_exported(network: nn.Module, settings: Settings, source: str = "the exported network") -> None:
    """Compare a network with the settings of the trained network that it should have been exported from.

    An ONNX file tells channels, classes, whether it segments or classifies, and fixed sizes; TorchScript tells depth
    and shortcut besides. A TensorRT engine tells nothing: it is taken as it is.

    Args:
        network: from :func:`load_exported`.
        settings: those of ``model.json``, of a segmentation or a classifier.
        source: where the network was read, for the message.

    Raises:
        Med3dError: naming both values of what differs.
    """
    row, classifies = get_variant(settings.variant), settings.head == "classification"
    outputs = "n_outputs" if classifies else "n_seg_classes"
    expected: dict[str, Any] = {"in_channels": settings.in_channels, outputs: settings.n_seg_classes}
    expected |= {"depth": row.depth, "shortcut": row.shortcut, "answer": _answer(classifies)}
    found: dict[str, Any] = {}
    if isinstance(network, OnnxNetwork):
        answer = _answer(len(network.output_shape) == 2)
        found = {"in_channels": network.input_shape[1], outputs: network.output_shape[1], "answer": answer}
    elif state := network.state_dict():
        known = read_architecture(state, source)
        count = state[LINEAR].shape[0] if LINEAR in state else known.n_seg_classes
        found = {"in_channels": known.in_channels, outputs: count, "depth": known.depth, "shortcut": known.shortcut}
        found["answer"] = _answer(LINEAR in state)
    wrong = [
        f"{name} is {value!r}, but model.json says {expected[name]!r}"
        for name, value in found.items()
        if value != expected[name] and (name not in ("in_channels", outputs) or isinstance(value, int))
    ]  # a name of an ONNX file's axis stands for any size
    if wrong:
        raise Med3dError(f"{source}: {'; '.join(wrong)}. Export it again from this model.pt")
    if isinstance(network, OnnxNetwork):
        network.check_shape((1, settings.in_channels, *settings.input_size))


def _answer(classifies: bool) -> str:
    return "one for each volume" if classifies else "one for each voxel"


def warn_if_older(path: str | os.PathLike[str], weights: str | os.PathLike[str]) -> None:
    """Log a warning if an exported file is older than the trained weights beside which it is used.

    The exported file does not tell which weights it was made of, so its date has to.
    """
    path, weights = Path(path), Path(weights)
    if weights.is_file() and path.stat().st_mtime < weights.stat().st_mtime:
        logger.warning("%s is older than %s: if they were trained anew since, export them again", path, weights)


def _load_torchscript(path: Path, device: torch.device) -> torch.jit.ScriptModule:
    if not zipfile.is_zipfile(path):
        raise Med3dError(f"{path}: not a TorchScript file, or truncated")
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise Med3dError(f"{path}: holds weights without a network; python -m monai.bundle ckpt_export writes both")
    try:
        return torch.jit.load(path, map_location=device)
    except RuntimeError as error:
        if "classes.tensorrt." not in str(error):
            raise Med3dError(f"{path}: TorchScript that cannot be loaded ({_first_line(error)})") from error
    if device.type != "cuda":
        raise Med3dError(f"{path}: holds a TensorRT engine, which needs an NVIDIA GPU; the device is {device}")
    try:
        import torch_tensorrt  # noqa: F401 - importing it makes the engine's class known
    except ImportError as error:
        raise Med3dError(f"{path}: holds a TensorRT engine, which needs: pip install torch-tensorrt") from error
    return torch.jit.load(path, map_location=device)


def _providers(device: torch.device, available: Sequence[str]) -> list[str | tuple[str, dict[str, Any]]]:
    cpu = "CPUExecutionProvider"
    if device.type != "cuda":
        return [cpu]
    if "CUDAExecutionProvider" not in available:
        logger.warning("ONNX Runtime computes on the CPU: for %s it needs pip install onnxruntime-gpu", device)
        return [cpu]
    return [("CUDAExecutionProvider", {"device_id": device.index or 0}), cpu]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
