"""MedicalNet's pretrained 3D ResNets as MONAI bundles."""

from med3d_nets.errors import Med3dError
from med3d_nets.networks import SegmentationNet, create_model
from med3d_nets.variants import get_variant, list_variants

__version__ = "0.1.0"

__all__ = ["Med3dError", "SegmentationNet", "__version__", "create_model", "get_variant", "list_variants"]
