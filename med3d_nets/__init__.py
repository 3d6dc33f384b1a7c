"""MedicalNet's pretrained 3D ResNets as MONAI bundles."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from med3d_nets.errors import Med3dError
from med3d_nets.variants import get_variant, list_variants

if TYPE_CHECKING:
    from med3d_nets.networks import SegmentationNet, create_model

__version__ = "0.1.0"

__all__ = ["Med3dError", "SegmentationNet", "__version__", "create_model", "get_variant", "list_variants"]

_NETWORKS = ("SegmentationNet", "create_model")
"""Names that are imported when they are used, so that a command line that needs no network starts without torch."""


def __getattr__(name: str) -> Any:
    if name in _NETWORKS:
        return getattr(importlib.import_module("med3d_nets.networks"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
