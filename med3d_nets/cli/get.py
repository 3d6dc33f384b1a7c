"""``med3d get`` and ``tools/download_weights.py``: fetch published weights and import them into their bundles.

Every file is checked against the published digest; a broken download goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import io
import json
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from med3d_nets import download, errors, variants, weights
from med3d_nets.cli.bundles import ROOT
from med3d_nets.errors import Med3dError
from med3d_nets.variants import Variant

__all__ = ["Options", "get", "get_weights"]

ALL = "all"

Convert = Callable[..., None]


@dataclass(frozen=True)
class Options:
    """What is to be done with each variant; see :func:`get`."""

    source: str = ""
    no_convert: bool = False
    keep_pth: bool = False
    overwrite: bool = False


def get(
    *variants: str, source: str = "", no_convert: bool = False, keep_pth: bool = False, overwrite: bool = False
) -> None:
    """Fetch the published files of variants and write each bundle's models/pretrained.pt, where training finds it.

    Examples:
        med3d get resnet_10 resnet_50_23dataset
        med3d get all --source /mnt/medicalnet

    Files come from Tencent's pages on the Hugging Face hub and are checked against their published digests. A broken
    download goes on where it stopped. The fetched .pth is removed once it is converted; one that was there stays.

    Args:
        variants: names from med3d list, or all.
        source: address of a web server, or a folder, to get the files from.
        no_convert: fetch alone; the .pth stays in the bundle's models.
        keep_pth: keep the .pth beside pretrained.pt.
        overwrite: replace files that are not the published ones, or were not made from them.

    Raises:
        Med3dError: see :func:`get_weights`.
    """
    # It lies beside the bundles that it writes to, as one of the tools that work in a checkout.
    convert = runpy.run_path(str(ROOT / "tools" / "convert_pth.py"))["convert"]
    get_weights(variants, ROOT / "bundles", Options(source, no_convert, keep_pth, overwrite), convert)


def get_weights(names: Sequence[Any], bundles: Path, options: Options, convert: Convert) -> None:
    """Fetch and import the published files of variants.

    Args:
        names: of variants, or ``all``.
        bundles: folder of the bundles.
        options: what to do with each.
        convert: of ``tools/convert_pth.py``.

    Raises:
        Med3dError: before anything is fetched, if a name or the source is not known; at the end, naming each variant
            that failed and why.
    """
    rows = _choose(names, bundles)
    download.check_source(options.source)
    failures = []
    for row in rows:
        try:
            print(f"{row.name}: {_get(row, bundles / row.bundle / 'models', options, convert)}", flush=True)
        except Exception as error:
            shown = _shown(error)
            if shown is None:
                raise
            failures.append(f"{row.name}: {shown}")
            print(f"{row.name}: failed", flush=True)
    if failures:
        raise Med3dError("\n  ".join([f"{len(failures)} of {len(rows)} variants failed:", *failures]))


def _choose(names: Sequence[Any], bundles: Path) -> list[Variant]:
    """The variants that are named, each once; all problems in one error, before anything is fetched."""
    if not names:
        raise Med3dError(f"name the variants to fetch, or {ALL}. Known are: {', '.join(variants.list_variants())}")
    rows, problems = [], []
    for name in dict.fromkeys(map(str, names)):
        try:
            rows += list(variants.VARIANTS) if name == ALL else [variants.get_variant(name)]
        except ValueError as error:
            problems.append(str(error))
    rows = list(dict.fromkeys(rows))
    folders = [bundles / row.bundle for row in rows]
    problems += [f"{folder}: no such bundle" for folder in folders if not folder.is_dir()]
    if problems:
        raise Med3dError("; ".join(problems))
    return rows


def _get(row: Variant, models: Path, options: Options, convert: Convert) -> str:
    """Fetch and import one variant; what was done, in a few words."""
    pretrained = models / "pretrained.pt"
    converted = _is_converted(row, pretrained)
    if converted and not (options.no_convert or options.keep_pth):
        return f"{pretrained} is there already, from the published {row.filename}"
    if not (converted or options.no_convert or options.overwrite):
        _check_absent(row, pretrained)
    file = models / row.filename
    existed = file.exists()
    download.fetch(row, file.parent, options.source, overwrite=options.overwrite)
    size = f"{file.stat().st_size / 1e6:,.0f} MB"
    got = f"{file} ({size}) {'was there already' if existed else 'fetched'}, its digest is the published one"
    if options.no_convert:
        return got
    if not converted:
        with contextlib.redirect_stdout(io.StringIO()):  # its report is for a file of unknown origin
            convert(str(file), variant=row.name, dst=str(pretrained), overwrite=options.overwrite)
        got += f"; converted to {pretrained.name}"
    if not (existed or options.keep_pth):
        file.unlink()
        got += f"; {file.name} removed"
    return got


def _is_converted(row: Variant, pretrained: Path) -> bool:
    """Whether ``pretrained.pt`` is whole and, by its record, made from the published file."""
    try:
        record = json.loads(pretrained.with_suffix(".json").read_text())
        written, origin = record["sha256"], record["source_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(origin == row.sha256 and pretrained.is_file() and weights.file_sha256(pretrained) == written)


def _check_absent(row: Variant, pretrained: Path) -> None:
    """Refuse, before the download, to replace what is there."""
    for path in (pretrained, pretrained.with_suffix(".json")):
        if path.exists():
            raise Med3dError(
                f"{path}: exists already and was not made from the published {row.filename}, or is damaged; "
                "replace it with --overwrite, or fetch alone with --no_convert"
            )


def _shown(error: Exception) -> Exception | None:
    """What to show of an error that the user can mend."""
    return errors.explain(error, {}) or (error if isinstance(error, OSError) else None)
