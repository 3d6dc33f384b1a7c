"""Fetching the published files: from the Hugging Face hub, a mirror of it, or a folder.

MONAI's ``download_url``, which ``monai.bundle download_large_files`` calls, checks the digest as well, but it neither
resumes nor retries, has no timeout, and takes neither a folder nor another host; hence a downloader here. It needs
nothing but the standard library and tqdm. ``urllib`` goes through the proxies that the environment names
(``http_proxy``, ``https_proxy``, ``no_proxy``) and trusts the certificates that ``SSL_CERT_FILE`` names.

A source, where it is not the hub, has the files in either of two layouts, which are tried in this order:

- ``<source>/resnet_10.pth``, all files side by side;
- ``<source>/TencentMedicalNet/MedicalNet-Resnet10/resolve/main/resnet_10.pth``, as mirrors of the hub have them.
"""

from __future__ import annotations

import http.client
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from tqdm import tqdm

import med3d_nets
from med3d_nets.errors import Med3dError, explain
from med3d_nets.variants import Variant, get_variant
from med3d_nets.weights import file_sha256

__all__ = ["HUB", "check_source", "fetch", "places"]

logger = logging.getLogger(__name__)

HUB = "https://huggingface.co"
CHUNK = 1 << 20
PAUSE = 1.0
"""Seconds before the first retry; twice as many before each further one."""

ELSEWHERE = (401, 403, 404, 410)
"""What servers say of a file they do not have: the hub 401 for a repository, object stores 403 for a name."""

BUSY = (408, 429, 500, 502, 503, 504)
NO_SUCH_RANGE = 416


class _BrokenError(Exception):
    """The connection broke or the server could not answer just now: worth another request."""


class _AbsentError(Med3dError):
    """The server does not have the file at this address."""


def fetch(
    variant: str | Variant,
    folder: str | os.PathLike[str],
    source: str = "",
    progress: bool = True,
    *,
    overwrite: bool = False,
    retries: int = 4,
    timeout: float = 30.0,
    pause: Callable[[float], None] = time.sleep,
) -> Path:
    """Bring a variant's published file into a folder, and check it against the published digest.

    What has arrived lies in ``<file>.part`` until all of it is there and right. A broken connection is resumed from
    it, in this run and in a later one; where the server cannot do that, the file is fetched from its start. Two runs
    at once must not fetch the same file into the same folder.

    Args:
        variant: a variant's name, or its row of the table.
        folder: where to put the file; made if need be.
        source: empty for the hub, the ``http`` or ``https`` address of another host, or a folder.
        progress: show a bar, where the standard error stream is a terminal.
        overwrite: replace a file of that name whose digest is another; it is kept until the new one is right.
        retries: requests in a row without a new byte after which to give up.
        timeout: seconds to wait for a connection, and for each piece of an answer.
        pause: waits for a number of seconds.

    Returns:
        The file. One that is there already, and right, is not fetched again.

    Raises:
        Med3dError: if there is no such variant or source, the source does not have the file or another one of that
            name, nothing more arrives, or the disk is full.
        OSError: if a file cannot be read or written for another reason.
    """
    row = _row(variant)
    check_source(source)
    target = Path(folder) / row.filename
    if _is_there(target, row, overwrite):
        return target
    part = target.with_name(target.name + ".part")
    if _size(part) and file_sha256(part) == row.sha256:  # a run that was ended just before it could rename it
        os.replace(part, target)
        return target
    if source and not _is_address(source):
        _copy(row, source, part, progress)
    else:
        _download(row, source, _Transfer(part, progress, retries, timeout, pause, inherited=_size(part) > 0))
    os.replace(part, target)
    return target


def places(variant: str | Variant, source: str = "") -> list[str]:
    """Where a variant's published file is looked for, in this order: addresses, or paths if ``source`` is a folder.

    Raises:
        Med3dError: if there is no such variant.
    """
    row = _row(variant)
    below_hub = f"{row.hub_repo}/resolve/main/{row.filename}"
    if not source:
        return [f"{HUB}/{below_hub}"]
    if not _is_address(source):
        return [str(Path(source, row.filename)), str(Path(source, below_hub))]
    parts = urllib.parse.urlsplit(source)
    base = urllib.parse.quote(parts.path.rstrip("/"), safe="/%~:@!$&'()*+,;=")
    return [parts._replace(path=f"{base}/{name}", fragment="").geturl() for name in (row.filename, below_hub)]


def check_source(source: str) -> None:
    """See that a source is one, without asking it for anything.

    Raises:
        Med3dError: if it is an address, but not of ``http`` or ``https``, or a folder that is not there.
    """
    if not source:
        return
    if not _is_address(source):
        if not os.path.isdir(source):
            found = "is a file" if os.path.exists(source) else "no such folder"
            raise Med3dError(
                f"{source}: {found}. A source is the folder that the published files lie in, or an address that "
                "begins with https:// or http://"
            )
        return
    try:
        parts = urllib.parse.urlsplit(source)
        parts.port  # noqa: B018  raises for what is no number
    except ValueError as error:
        raise Med3dError(f"{source}: not an address ({error})") from error
    if parts.scheme not in ("http", "https"):
        hint = "; give a folder as its plain path" if parts.scheme == "file" else ""
        raise Med3dError(f"{source}: begins with {parts.scheme}:, expected https:// or http://{hint}")
    if "@" in parts.netloc:  # not shown, since it holds a password
        raise Med3dError("the source's address holds a user's name or password, which is not supported")
    if not parts.hostname:
        raise Med3dError(f"{source}: names no host, expected https://host/path")


def _row(variant: str | Variant) -> Variant:
    if isinstance(variant, Variant):
        return variant
    try:
        return get_variant(variant)
    except ValueError as error:
        raise Med3dError(str(error)) from error


def _is_address(source: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", source) is not None  # two letters at least: C:/ is a drive


def _is_there(target: Path, row: Variant, overwrite: bool) -> bool:
    if not target.exists():
        return False
    if not target.is_file():
        raise Med3dError(f"{target}: not a file")
    digest = file_sha256(target)
    if digest != row.sha256 and not overwrite:
        raise Med3dError(
            f"{target}: exists already and is not the published file. Its SHA-256 is {digest}, the published file's is "
            f"{row.sha256} ({_stated_by(row)}). Move it away, or replace it with --overwrite"
        )
    return digest == row.sha256


def _copy(row: Variant, source: str, part: Path, progress: bool) -> None:
    """Copy from a folder; nothing is left of a copy that fails."""
    candidates = places(row, source)
    found = next((path for path in candidates if os.path.isfile(path)), None)
    if found is None:
        raise Med3dError(f"{row.filename} is not in the folder {source}: there is neither {' nor '.join(candidates)}")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _opened(found, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            with _opened(part, "wb") as copy, _bar(part, size, 0, progress) as bar:
                while chunk := file.read(CHUNK):
                    copy.write(chunk)
                    bar.update(len(chunk))
        _check_digest(part, row, found)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _download(row: Variant, source: str, transfer: _Transfer) -> None:
    """Download from the first address that has the file."""
    absent = []
    for url in places(row, source):
        try:
            transfer.run(url)
            break
        except _AbsentError as error:
            absent.append(str(error))
    else:
        raise Med3dError(f"{row.filename} is not at the source: {'; '.join(absent)}")
    try:
        _check_digest(transfer.part, row, url)
    except Med3dError as error:
        if not transfer.inherited:
            raise
        logger.warning("%s. An earlier run's part was in it; fetching all of it again", error)
        transfer.run(url)
        _check_digest(transfer.part, row, url)


def _check_digest(part: Path, row: Variant, origin: str) -> None:
    """Remove a file that is not the published one, and say so."""
    digest, size = file_sha256(part), _size(part)
    if digest != row.sha256:
        part.unlink()
        # A digest that one project alone states may be wrong; the converter can be told to take the file all the same.
        hint = "; if you trust that file, get it by hand and import it with tools/convert_pth.py"
        raise Med3dError(
            f"{origin}: not the published {row.filename}. Its SHA-256 is {digest} ({size:,} bytes), the published "
            f"file's is {row.sha256} ({_stated_by(row)}). It was not kept{hint if row.sha256_sources == 1 else ''}"
        )


@dataclass
class _Transfer:
    """Requests, as many as it takes, until a file is whole."""

    part: Path
    progress: bool
    retries: int
    timeout: float
    pause: Callable[[float], None]
    inherited: bool  # whether bytes of an earlier run are in the file
    opener: urllib.request.OpenerDirector = field(default_factory=urllib.request.build_opener)  # reads the environment
    begun: bool = False

    def run(self, url: str) -> None:
        """Download ``url`` into the part, going on where it ends.

        Raises:
            _AbsentError: if it is not there.
            Med3dError: if it does not arrive; the part is kept.
        """
        failures, furthest = 0, _size(self.part)
        while True:
            try:
                return self._request(url)
            except _BrokenError as error:
                size = _size(self.part)
                failures = 1 if size > furthest else failures + 1
                furthest = max(size, furthest)
                if failures > self.retries:
                    raise Med3dError(f"{url}: {error}. Gave up after {failures} attempts; {self._kept()}") from error
                seconds = PAUSE * 2 ** (failures - 1)
                logger.warning("%s: %s, at byte %s; trying again in %g s", url, error, f"{size:,}", seconds)
                self.pause(seconds)

    def _request(self, url: str) -> None:
        have = _size(self.part)
        with self._open(url, have) as response:
            if response.headers.get_content_type() == "text/html":
                raise Med3dError(
                    f"{url}: answered with a web page instead of the file, a log-in's or a proxy's perhaps; "
                    "open the address in a browser to see it"
                )
            start, left = self._extent(response, have)
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self._check_space(left, have if start == 0 else 0)
            if start == 0:
                self.inherited = False
            mode, total = ("ab", start) if start else ("wb", 0)
            with _bar(self.part, None if left is None else total + left, start, self.progress) as bar:
                try:
                    with _opened(self.part, mode) as file:
                        self._receive(response, file, left, bar)
                except OSError as error:
                    shown = explain(error, {})
                    if shown is None:
                        raise
                    raise Med3dError(f"{shown}; {self._kept()}") from error

    def _open(self, url: str, have: int) -> Any:
        """The answer to a request for all bytes from number ``have`` on."""
        headers = {"User-Agent": f"med3d_nets/{med3d_nets.__version__}"}
        if have:
            headers["Range"] = f"bytes={have}-"
        try:
            return self.opener.open(urllib.request.Request(url, headers=headers), timeout=self.timeout)
        except urllib.error.HTTPError as error:
            error.close()
            said = f"HTTP {error.code} {error.reason}"
            if error.code == NO_SUCH_RANGE and have:
                self.part.unlink()
                raise _BrokenError("the part that was there is not one of this file; starting over") from error
            if error.code in BUSY:
                raise _BrokenError(said) from error
            if error.code in ELSEWHERE:
                raise _AbsentError(f"{url}: {said}") from error
            raise Med3dError(f"{url}: {said}") from error
        except urllib.error.URLError as error:  # no connection
            if self.begun:
                raise _BrokenError(f"no connection ({error.reason})") from error
            raise Med3dError(
                f"{url}: no connection ({error.reason}). Where the hub cannot be reached, give another host or a "
                "folder with the published files, as --source"
            ) from error
        except (OSError, http.client.HTTPException) as error:  # connected, but no answer
            raise _BrokenError(_said(error)) from error

    def _extent(self, response: Any, have: int) -> tuple[int, int | None]:
        """Number of the answer's first byte in the file, and how many bytes there are, if it tells."""
        length = response.headers.get("Content-Length", "")
        left = int(length) if length.isdecimal() else None
        if response.status != http.client.PARTIAL_CONTENT:
            return 0, left
        found = re.match(r"bytes (\d+)-(\d+)/", response.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != have:
            self.part.unlink(missing_ok=True)
            raise _BrokenError(f"answered with another part than asked for ({found and found[0]}); starting over")
        return have, int(found[2]) + 1 - have

    def _check_space(self, left: int | None, freed: int) -> None:
        free = shutil.disk_usage(self.part.parent).free + freed
        if left is not None and left > free:
            raise Med3dError(f"{self.part}: needs {left:,} bytes more, but the disk has {free:,} left; {self._kept()}")

    def _receive(self, response: Any, file: BinaryIO, left: int | None, bar: tqdm[Any]) -> None:
        while left is None or left > 0:
            try:
                chunk = response.read1(CHUNK if left is None else min(CHUNK, left))
            except (OSError, http.client.HTTPException) as error:
                raise _BrokenError(_said(error)) from error
            if not chunk:
                break
            self.begun = True
            file.write(chunk)
            bar.update(len(chunk))
            if left is not None:
                left -= len(chunk)
        if left:
            raise _BrokenError("the connection broke")

    def _kept(self) -> str:
        size = _size(self.part)
        return f"{self.part} keeps {size:,} bytes, and the same command goes on from there" if size else "nothing kept"


@contextmanager
def _opened(path: str | os.PathLike[str], mode: str) -> Iterator[BinaryIO]:
    """A file whose errors name it; what was written to it is on the disk when it is closed."""
    try:
        with open(path, mode) as file:
            yield cast(BinaryIO, file)
            if mode != "rb":
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _bar(part: Path, total: int | None, start: int, progress: bool) -> tqdm[Any]:
    disable = None if progress else True  # None: where there is no terminal
    return tqdm(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True, disable=disable)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _stated_by(row: Variant) -> str:
    return f"stated by {row.sha256_sources} source{'' if row.sha256_sources == 1 else 's'}"
