"""Fetch published weights and import them into their bundles, as ``med3d get`` does.

    python tools/download_weights.py resnet_10 resnet_50_23dataset
    python tools/download_weights.py all --source /mnt/medicalnet

Every file is checked against the published digest; a broken download goes on where it stopped. Proxies are those that
the environment names (``http_proxy``, ``https_proxy``, ``no_proxy``).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the tool runs from a checkout that is not installed

import convert_pth  # noqa: E402

from med3d_nets import commands, download  # noqa: E402
from med3d_nets.cli.get import Options, get_weights  # noqa: E402
from med3d_nets.errors import Med3dError  # noqa: E402

__all__ = ["convert_pth", "download", "download_weights"]


def download_weights(
    *names: str, source: str = "", no_convert: bool = False, keep_pth: bool = False, overwrite: bool = False
) -> None:
    """Fetch the published files of variants and write each bundle's ``models/pretrained.pt``.

    The fetched ``.pth`` is removed once it is converted, since ``pretrained.pt`` has all of its tensors and
    ``pretrained.json`` its digest, and together they would take the disk twice; a ``.pth`` that was there before stays.

    Args:
        names: variants, or ``all``.
        source: another host's address or a folder to get the files from, instead of the Hugging Face hub; the files
            lie there side by side, or in ``TencentMedicalNet/MedicalNet-Resnet<depth>/resolve/main/``.
        no_convert: fetch alone; the ``.pth`` stays in the bundle's ``models``.
        keep_pth: keep the ``.pth`` beside ``pretrained.pt``.
        overwrite: replace files that are not the published ones, or were not made from them.

    Raises:
        Med3dError: for an option with a value too many or too few; see :func:`~med3d_nets.cli.get.get_weights`.
    """
    _check_flags(no_convert=no_convert, keep_pth=keep_pth, overwrite=overwrite)
    if isinstance(source, bool):
        raise Med3dError("--source takes an address or a folder, but stands alone")
    options = Options(str(source), no_convert, keep_pth, overwrite)
    get_weights(names, ROOT / "bundles", options, convert_pth.convert)


def _check_flags(**flags: Any) -> None:
    """Refuse what Fire makes of ``--overwrite resnet_10``: a text, which would count as yes and hide a variant."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise Med3dError(f"--{name} takes no value, but got {value!r}; name the variants before the options")


def main() -> None:
    """Run :func:`download_weights` with the options of the command line."""
    commands.run_tool(download_weights)


if __name__ == "__main__":
    main()
