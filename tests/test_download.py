"""Fetching published files: from a server on loopback, from mirrors and from folders."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys

import pytest
from downloads import BELOW_HUB, CONTENT, NAME, OTHER, OTHER_SHA256, ROW, left, put
from downloads import get as get
from downloads import models as models
from downloads import no_proxy as no_proxy
from downloads import pauses as pauses
from downloads import refused as refused
from downloads import server as server
from servers import Reply

from med3d_nets import download
from med3d_nets.download import check_source, places
from med3d_nets.errors import Med3dError
from med3d_nets.variants import VARIANTS, get_variant

# A download that goes well


def test_plain(get, server, models, pauses):
    path = get()
    assert path == models / NAME
    assert path.read_bytes() == CONTENT
    assert left(models) == [NAME]
    assert (server.paths, server.ranges, pauses) == ([f"/{NAME}"], [None], [])
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_by_name(get, server, models, monkeypatch):
    monkeypatch.setattr("med3d_nets.variants.VARIANTS", (ROW,))
    assert get("resnet_10_23dataset").read_bytes() == CONTENT


def test_hub_by_default(get, server, models, monkeypatch):
    assert download.HUB == "https://huggingface.co"
    monkeypatch.setattr(download, "HUB", server.url)
    server.files = {BELOW_HUB: CONTENT}
    assert get(source="").read_bytes() == CONTENT
    assert server.paths == [BELOW_HUB]


def test_redirects_keep_the_range(get, server, models):
    """The hub redirects to where the bytes are."""
    server.files["/elsewhere"] = CONTENT
    server.replies.extend([Reply(location="/elsewhere"), Reply(cut_after=1000), Reply(location="/elsewhere")])
    assert get().read_bytes() == CONTENT
    assert server.paths == [f"/{NAME}", "/elsewhere"] * 2
    assert server.ranges == [None, None, "bytes=1000-", "bytes=1000-"]


def test_no_length_told(get, server):
    server.replies.append(Reply(length=False))
    assert get().read_bytes() == CONTENT


def test_existing_right_file_is_not_fetched_again(get, server, models):
    put(models / NAME, CONTENT)
    assert get() == models / NAME
    assert get(overwrite=True) == models / NAME
    assert server.requests == []


def test_proxy_of_the_environment(get, server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    assert get(source="http://mirror.invalid").read_bytes() == CONTENT
    assert server.paths == [f"http://mirror.invalid/{NAME}"]
    assert server.requests[0].headers["User-Agent"].startswith("med3d_nets/")


def test_progress(get, server, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    server.replies.append(Reply(cut_after=100_000))
    monkeypatch.setattr(sys, "stderr", Terminal())
    get()
    shown = sys.stderr.getvalue()
    assert f"{NAME}: 100%" in shown
    assert "300k/300k" in shown
    assert f"{NAME}:  33%" in shown


@pytest.mark.parametrize("progress", [True, False])
def test_no_progress_without_a_terminal(get, capsys, progress):
    get(progress=progress)
    assert capsys.readouterr() == ("", "")


# Mirrors


@pytest.mark.parametrize("source", ["/some/place", "/some/place/", "/some/place//"])
def test_flat_mirror(get, server, source):
    server.files = {f"/some/place/{NAME}": CONTENT}
    assert get(source=server.url + source).read_bytes() == CONTENT
    assert server.paths == [f"/some/place/{NAME}"]


def test_mirror_laid_out_as_the_hub(get, server):
    """The flat address is tried first, and again after the break; the part is resumed where the file was found."""
    server.files = {BELOW_HUB: CONTENT}
    server.replies.append(Reply(cut_after=1000))
    assert get().read_bytes() == CONTENT
    assert server.paths == [f"/{NAME}", BELOW_HUB, BELOW_HUB]
    assert server.ranges == [None, None, "bytes=1000-"]


@pytest.mark.parametrize("status", [401, 403, 410])
def test_mirror_that_hides_what_it_lacks(get, server, status):
    server.files[BELOW_HUB] = CONTENT
    server.replies.append(Reply(status=status))
    assert get().read_bytes() == CONTENT
    assert server.paths == [f"/{NAME}", BELOW_HUB]


def test_mirror_with_spaces_and_a_query(get, server):
    server.files = {f"/my files/{NAME}": CONTENT}
    assert get(source=f"{server.url}/my files/?key=1").read_bytes() == CONTENT
    assert server.paths == [f"/my%20files/{NAME}?key=1"]


def test_places():
    row = get_variant("resnet_50")
    hub = "TencentMedicalNet/MedicalNet-Resnet50/resolve/main/resnet_50.pth"
    assert places("resnet_50") == places(row) == [f"https://huggingface.co/{hub}"]
    assert places(row, "https://a.b/c/") == ["https://a.b/c/resnet_50.pth", f"https://a.b/c/{hub}"]
    assert places(row, "a") == [os.path.join("a", "resnet_50.pth"), os.path.join("a", *hub.split("/"))]
    assert len({places(row)[0] for row in VARIANTS}) == 11


# A folder


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "a disk"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", [NAME, BELOW_HUB[1:]])
def test_folder(get, server, disk, models, name):
    (disk / name).parent.mkdir(parents=True, exist_ok=True)
    (disk / name).write_bytes(CONTENT)
    assert get(source=str(disk)).read_bytes() == CONTENT
    assert (disk / name).read_bytes() == CONTENT
    assert left(models) == [NAME]
    assert server.requests == []


def test_folder_replaces_an_earlier_part(get, disk, models):
    (disk / NAME).write_bytes(CONTENT)
    put(models / f"{NAME}.part", b"some")
    assert get(source=str(disk)).read_bytes() == CONTENT
    assert left(models) == [NAME]


def test_folder_with_another_file(refused, disk, models):
    (disk / NAME).write_bytes(OTHER)
    message = refused(source=str(disk))
    assert message.startswith(f"{disk / NAME}: not the published {NAME}. Its SHA-256 is {OTHER_SHA256} (14 bytes)")
    assert left(models) == []
    assert (disk / NAME).read_bytes() == OTHER


def test_folder_without_the_file(refused, disk, models):
    message = refused(source=str(disk))
    assert message.startswith(f"{NAME} is not in the folder {disk}: there is neither {disk / NAME} nor {disk}")
    assert not models.exists()


def test_copy_that_fails_leaves_nothing(get, disk, models, monkeypatch):
    (disk / NAME).write_bytes(CONTENT)

    def fail(handle):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        get(source=str(disk))
    assert caught.value.filename == str(models / f"{NAME}.part")
    assert left(models) == []


# Errors


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ftp://host/x", "ftp://host/x: begins with ftp:, expected https:// or http://"),
        ("file:///mnt/x", "expected https:// or http://; give a folder as its plain path"),
        ("http:/host", "http:/host: names no host"),
        ("https://", "https://: names no host"),
        ("http://host:port/", "http://host:port/: not an address (Port could not be cast"),
        ("http://[::1/", "http://[::1/: not an address (Invalid IPv6 URL)"),
        ("no/such/folder", "no/such/folder: no such folder. A source is the folder that the published files lie in"),
        (__file__, "test_download.py: is a file. A source is the folder"),
    ],
)
def test_bad_source(refused, server, models, source, message):
    assert message in refused(source=source)
    assert (server.requests, models.exists()) == ([], False)


def test_password_in_the_address_is_not_shown():
    with pytest.raises(Med3dError, match="user's name or password") as caught:
        check_source("https://me:secret@host/")
    assert "secret" not in str(caught.value)


def test_unknown_variant(refused, server):
    assert "no variant 'resnet_11'; did you mean" in refused("resnet_11")
    assert server.requests == []


def test_nothing_is_logged_of_a_plain_download(get, caplog):
    caplog.set_level(logging.INFO)
    get()
    assert caplog.text == ""
