"""Fetch published weights and import them into their bundles.

    python tools/download_weights.py resnet_10 resnet_50_23dataset
    python tools/download_weights.py all --source /mnt/medicalnet

Every file is checked against the published digest; a broken download goes on where it stopped. Proxies are those that
the environment names (``http_proxy``, ``https_proxy``, ``no_proxy``).
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the tool runs from a checkout that is not installed

import convert_pth  # noqa: E402

from med3d_nets import commands, download, errors, variants, weights  # noqa: E402
from med3d_nets.errors import Med3dError  # noqa: E402
from med3d_nets.variants import Variant  # noqa: E402

ALL = "all"


@dataclass(frozen=True)
class Options:
    """What is to be done with each variant; see :func:`download_weights`."""

    source: str
    no_convert: bool
    keep_pth: bool
    overwrite: bool


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
        Med3dError: before anything is fetched, if a name or the source is not known; at the end, naming each variant
            that failed and why.
    """
    _check_flags(no_convert=no_convert, keep_pth=keep_pth, overwrite=overwrite)
    if isinstance(source, bool):
        raise Med3dError("--source takes an address or a folder, but stands alone")
    rows = _choose(names)
    options = Options(str(source), no_convert, keep_pth, overwrite)
    download.check_source(options.source)
    failures = []
    for row in rows:
        try:
            print(f"{row.name}: {_get(row, options)}", flush=True)
        except Exception as error:
            shown = _shown(error)
            if shown is None:
                raise
            failures.append(f"{row.name}: {shown}")
            print(f"{row.name}: failed", flush=True)
    if failures:
        raise Med3dError("\n  ".join([f"{len(failures)} of {len(rows)} variants failed:", *failures]))


def _check_flags(**flags: Any) -> None:
    """Refuse what Fire makes of ``--overwrite resnet_10``: a text, which would count as yes and hide a variant."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise Med3dError(f"--{name} takes no value, but got {value!r}; name the variants before the options")


def _choose(names: tuple[Any, ...]) -> list[Variant]:
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
    problems += [f"{_models(row).parent}: no such bundle" for row in rows if not _models(row).parent.is_dir()]
    if problems:
        raise Med3dError("; ".join(problems))
    return rows


def _get(row: Variant, options: Options) -> str:
    """Fetch and import one variant; what was done, in a few words."""
    pretrained = _models(row) / "pretrained.pt"
    converted = _is_converted(row, pretrained)
    if converted and not (options.no_convert or options.keep_pth):
        return f"{pretrained} is there already, from the published {row.filename}"
    if not (converted or options.no_convert or options.overwrite):
        _check_absent(row, pretrained)
    file = _models(row) / row.filename
    existed = file.exists()
    download.fetch(row, file.parent, options.source, overwrite=options.overwrite)
    size = f"{file.stat().st_size / 1e6:,.0f} MB"
    got = f"{file} ({size}) {'was there already' if existed else 'fetched'}, its digest is the published one"
    if options.no_convert:
        return got
    if not converted:
        with contextlib.redirect_stdout(io.StringIO()):  # its report is for a file of unknown origin
            convert_pth.convert(str(file), variant=row.name, dst=str(pretrained), overwrite=options.overwrite)
        got += f"; converted to {pretrained.name}"
    if not (existed or options.keep_pth):
        file.unlink()
        got += f"; {file.name} removed"
    return got


def _models(row: Variant) -> Path:
    return ROOT / "bundles" / row.bundle / "models"


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


def main() -> None:
    """Run :func:`download_weights` with the options of the command line."""
    commands.run_tool(download_weights)


if __name__ == "__main__":
    main()
