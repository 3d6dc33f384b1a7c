"""Small synthetic data and the shipped bundle, shared by the tests."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / "bundles" / "medicalnet_resnet_10"

# An oblique affine with anisotropic spacing, flipped and permuted axes: neither RAS nor LPS.
TURN = np.array([[0.0, -0.995, 0.0998], [0.0, 0.0998, 0.995], [-1.0, 0.0, 0.0]])
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = TURN @ np.diag([2.5, 0.8, 1.1])
OBLIQUE[:3, 3] = [11.25, -83.5, 40.125]


def write_case(folder: Path, name: str, seed: int, shape: tuple[int, int, int] = (14, 18, 16)) -> str:
    """Write an image and a label map with two boxes that are brighter than the rest; its line of an ``img_list``."""
    random = np.random.RandomState(seed)
    label = np.zeros(shape, np.uint8)
    start = random.randint(2, 4, 3)
    label[start[0] : start[0] + 5, start[1] : start[1] + 6, start[2] : start[2] + 5] = 1
    label[start[0] + 6 : start[0] + 9, start[1] + 6 : start[1] + 12, start[2] + 5 : start[2] + 9] = 2
    image = random.normal(100, 5, shape) + 60.0 * label
    image[0] = 0
    for kind, array in (("images", image.astype(np.float32)), ("labels", label)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, OBLIQUE), folder / kind / f"{name}.nii.gz")
    return f"images/{name}.nii.gz labels/{name}.nii.gz\n"


def load_tool(name: str) -> ModuleType:
    """A script of ``tools/``, as a module."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks for its own types
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, with a space in its name, of six training and two validation cases with three classes."""
    folder = tmp_path_factory.mktemp("some data")
    lines = [write_case(folder, f"case_{index}", index) for index in range(8)]
    (folder / "train.txt").write_text("".join(lines[:6]))
    (folder / "val.txt").write_text("".join(lines[6:]))
    return folder


@pytest.fixture(scope="session")
def bundle_run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python -m monai.bundle run`` in the bundle's folder, as a user does."""

    def call(
        run_id: str, config: str, *prefix: str, processes: int = 1, **options: object
    ) -> subprocess.CompletedProcess[str]:
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        python = [sys.executable, *(torchrun if processes > 1 else [])]
        command = [*prefix, *python, "-m", "monai.bundle", "run", run_id, "--config_file", config, *words]
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        return subprocess.run(
            command, cwd=BUNDLE, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    return call
