"""A bundle's folder as it goes into a package, and the zip that is written of it.

The same input gives the same bytes. What else a user has in the folder, and what a link brings in from elsewhere, stays
out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from med3d_nets.errors import Med3dError
from med3d_nets.variants import Variant, get_variant

__all__ = ["Bundle", "File", "check_inert", "check_inside", "parse_object", "read_bundle", "write_package"]

File: TypeAlias = tuple[Path, str]
"""A file of weights, and the SHA-256 of what was read and checked."""

PACKAGED = ("LICENSE", "large_files.yml", "configs/**/*.json", "configs/**/logging.conf", "docs/*")
"""Patterns of the files that are packaged besides the weights."""

METADATA = "configs/metadata.json"
CONFIGS = ("configs/train.json", "configs/inference.json")
CLASSIFICATION = tuple(f"configs/classification/{name}.json" for name in ("metadata", "train", "inference"))
README = "docs/README.md"
REQUIRED = (METADATA, *CONFIGS, README, "docs/data_license.txt", "LICENSE")

DATE = (1980, 1, 1, 0, 0, 0)
UNIX = 3
MODE = 0o100644
CHUNK = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle's folder as it was read.

    Attributes:
        folder: the folder.
        files: content of each packaged file by its path in the folder, weights excepted.
        configs: parsed content of those that are JSON.
        variant: the variant that its configs name.
    """

    folder: Path
    files: dict[str, bytes]
    configs: dict[str, dict[str, Any]]
    variant: Variant

    @property
    def metadata(self) -> list[str]:
        """Paths of every ``metadata.json``, that of the bundle itself first."""
        return sorted((path for path in self.configs if path.endswith("/metadata.json")), key=len)

    def update(self, path: str, known: Mapping[str, Any]) -> None:
        """Give ids at the top level of a config other values.

        Raises:
            Med3dError: if it lacks one.
        """
        config = self.configs[path]
        if missing := [name for name in known if name not in config]:
            raise Med3dError(f"{self.folder / path}: lacks {', '.join(missing)} at its top level; render it anew")
        config.update(known)

    def set_version(self, version: str, news: str | None, default: str) -> None:
        """Set the version and its line in the changelog, the newest first.

        Args:
            version: of the package.
            news: the line; None: one that is there for this version stays.
            default: the line where there is none.

        Raises:
            Med3dError: if a changelog is no object.
        """
        for path in self.metadata:
            metadata = self.configs[path]
            before = metadata.get("changelog", {})
            if not isinstance(before, dict):
                raise Med3dError(f"{self.folder}/{path}: changelog is {before!r}, expected an object")
            metadata["version"] = version
            line = news or before.get(version, default)
            metadata["changelog"] = {version: line, **{key: text for key, text in before.items() if key != version}}

    def readme(self) -> str:
        """The model card.

        Raises:
            Med3dError: if it is not UTF-8.
        """
        try:
            return self.files[README].decode()
        except UnicodeDecodeError as error:
            raise Med3dError(f"{self.folder / README}: not UTF-8 ({error})") from error

    def content(self) -> dict[str, bytes]:
        """Content of each file by its path, with the configs as they are now."""
        texts = {path: json.dumps(config, indent=4, ensure_ascii=False) + "\n" for path, config in self.configs.items()}
        changed = {path: text for path, text in texts.items() if self.configs[path] != json.loads(self.files[path])}
        return self.files | {path: text.encode() for path, text in changed.items()}


def read_bundle(folder: Path) -> Bundle:
    """Read the files of a bundle's folder that are packaged, weights excepted.

    Raises:
        Med3dError: if it is no bundle's folder, a config is no JSON, its configs name different variants, or a file is
            a link out of it.
    """
    if not folder.is_dir():
        raise Med3dError(f"{folder}: no such folder")
    paths = sorted({path for pattern in PACKAGED for path in folder.glob(pattern) if _is_packaged(path)})
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise Med3dError(f"{folder}: not a bundle's folder, it lacks {', '.join(missing)}")
    for path in paths:
        check_inside(path, folder, "put the file itself there")
    files = {name: path.read_bytes() for name, path in names.items()}
    configs = {name: parse_object(files[name], names[name]) for name in files if name.endswith(".json")}
    said = {str(configs[name].get("variant")) for name in (*CONFIGS, *CLASSIFICATION[1:]) if name in configs}
    if len(said) > 1:
        raise Med3dError(f"{folder}: its configs name different variants: {', '.join(sorted(said))}")
    try:
        return Bundle(folder, files, configs, get_variant(said.pop()))
    except ValueError as error:
        raise Med3dError(f"{folder}/configs/train.json: {error}") from error


def _is_packaged(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


def check_inside(path: Path, folder: Path, advice: str) -> None:
    """Refuse a link that would put a file from elsewhere, of whatever content, into the package.

    Raises:
        Med3dError: if ``path`` is really outside of ``folder``.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise Med3dError(f"{path}: a link out of {folder}, to {path.resolve()}; {advice}")


def check_inert(source: str, text: str) -> None:
    """Refuse a text that MONAI would run or resolve where it stands in a config.

    Raises:
        Med3dError: naming ``source`` and the text.
    """
    if text.startswith(("$", "@", "%")) or re.search("[@%](::|#)", text):
        raise Med3dError(f"{source}: {text!r} would be an expression, a reference or a file to MONAI; reword it")


def parse_object(content: bytes, path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        content: of the file.
        path: for messages.

    Raises:
        Med3dError: if it is no JSON, or something else than an object.
    """
    try:
        parsed = json.loads(content.decode())
    except ValueError as error:
        raise Med3dError(f"{path}: not JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise Med3dError(f"{path}: holds a {type(parsed).__name__}, expected an object")
    return parsed


def write_package(target: Path, name: str, files: Mapping[str, bytes], weights: Mapping[str, File]) -> list[str]:
    """Write a zip whole or not at all; one that is there is replaced.

    Args:
        target: path of the zip.
        name: of the folder in it.
        files: content by the path in that folder.
        weights: files that are copied, likewise: each with its digest, as it was read.

    Returns:
        The paths in the folder.

    Raises:
        Med3dError: if weights have changed since they were read.
        OSError: if it cannot be written.
    """
    names = sorted([*files, *weights])
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for path in names:
                    # Stored: weights hardly shrink, and what zlib makes of the rest depends on its version.
                    entry = zipfile.ZipInfo(f"{name}/{path}", DATE)
                    entry.create_system, entry.external_attr = UNIX, MODE << 16
                    if path in weights:
                        _copy(archive, entry, weights[path])
                    else:
                        archive.writestr(entry, files[path])
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would hide the file from the group
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    return names


def _copy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, found: File) -> None:
    digest, (path, sha256) = hashlib.sha256(), found
    entry.file_size = path.stat().st_size
    with path.open("rb") as source, archive.open(entry, "w") as written:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            written.write(chunk)
    if digest.hexdigest() != sha256:
        raise Med3dError(f"{path}: changed while it was packaged; is a training still running?")
