"""Fetching published files from a server on loopback that misbehaves, or has another file."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import types

import pytest
from downloads import BELOW_HUB, CONTENT, NAME, OTHER, OTHER_SHA256, ROW, SHA256, left, put
from downloads import get as get
from downloads import models as models
from downloads import no_proxy as no_proxy
from downloads import pauses as pauses
from downloads import refused as refused
from downloads import server as server
from published import ROOT
from servers import Reply, closed_port

from med3d_nets import download

# Broken connections


def test_resumed(get, server, models, pauses, caplog):
    server.replies.append(Reply(cut_after=123_456))
    assert get().read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=123456-"]
    assert pauses == [1.0]
    assert left(models) == [NAME]
    assert "at byte 123,456; trying again in 1 s" in caplog.text


@pytest.mark.parametrize(
    "reply", [Reply(status=500), Reply(status=503), Reply(status=429), Reply(hang_up=True), Reply(cut_after=0)]
)
def test_busy_server_is_asked_again(get, server, pauses, reply):
    server.replies.extend([reply, reply])
    assert get().read_bytes() == CONTENT
    assert len(server.requests) == 3
    assert pauses == [1.0, 2.0]


def test_silent_server_is_asked_again(get, server, caplog):
    server.replies.append(Reply(stall=True))
    assert get(timeout=0.2).read_bytes() == CONTENT
    assert "timed out" in caplog.text


def test_retries_exhausted_and_the_second_run_goes_on(get, refused, server, models, pauses):
    server.replies.extend([Reply(cut_after=50_000)] + [Reply(status=500)] * 3)
    message = refused(retries=3)
    part = models / f"{NAME}.part"
    assert f"{server.url}/{NAME}: HTTP 500 Internal Server Error. Gave up after 4 attempts" in message
    assert f"{part} keeps 50,000 bytes, and the same command goes on from there" in message
    assert pauses == [1.0, 2.0, 4.0]
    assert part.read_bytes() == CONTENT[:50_000]
    assert left(models) == [part.name]
    server.requests.clear()
    assert get(retries=0).read_bytes() == CONTENT
    assert server.ranges == ["bytes=50000-"]
    assert left(models) == [NAME]


def test_new_bytes_start_the_counting_anew(get, server, pauses):
    """A line that breaks often ends after all, as long as something arrives."""
    server.replies.extend([Reply(cut_after=40_000)] * 7)
    assert get(retries=1).read_bytes() == CONTENT
    assert server.ranges == [None] + [f"bytes={index * 40_000}-" for index in range(1, 8)]
    assert pauses == [1.0] * 7


def test_a_server_without_ranges_starts_over(get, server):
    server.replies.extend([Reply(cut_after=100_000), Reply(ranges=False)])
    assert get().read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]


def test_a_server_without_ranges_that_always_breaks_ends(refused, server, models, pauses):
    server.replies.extend([Reply(cut_after=size, ranges=False) for size in (100_000, 50_000)] * 4)
    assert "the connection broke. Gave up after 3 attempts" in refused(retries=2)
    assert len(server.requests) == 3


@pytest.mark.parametrize("told", ["bytes 0-299999/300000", "nonsense"])
def test_another_part_than_asked_for(get, server, told):
    server.replies.extend([Reply(cut_after=100_000), Reply(content_range=told)])
    assert get().read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", None]


@pytest.mark.parametrize("content", [CONTENT + b"more", b"x" * len(CONTENT)])
def test_part_that_is_too_long(get, server, models, content):
    """The server answers 416, and all is fetched from the start."""
    put(models / f"{NAME}.part", content)
    assert get().read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(content)}-", None]
    assert left(models) == [NAME]


def test_part_that_is_whole(get, server, models):
    put(models / f"{NAME}.part", CONTENT)
    assert get().read_bytes() == CONTENT
    assert (server.requests, left(models)) == ([], [NAME])


def test_part_of_another_file(get, server, models, caplog):
    """What an earlier run left must not make the right file fail."""
    put(models / f"{NAME}.part", OTHER)
    assert get().read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(OTHER)}-", None]
    assert "An earlier run's part was in it" in caplog.text


def test_interruption_keeps_the_part(get, server, models):
    def interrupt(seconds):
        raise KeyboardInterrupt

    server.replies.append(Reply(cut_after=70_000))
    with pytest.raises(KeyboardInterrupt):
        get(pause=interrupt)
    assert (models / f"{NAME}.part").read_bytes() == CONTENT[:70_000]


def test_part_of_another_file_and_then_none(refused, server, models):
    put(models / f"{NAME}.part", OTHER)
    server.replies.extend([Reply(), Reply(status=404)])
    assert refused() == f"{server.url}/{NAME}: HTTP 404 Not Found"
    assert left(models) == []


# Another file than the published one


def test_wrong_digest_leaves_nothing(refused, server, models):
    server.files[f"/{NAME}"] = OTHER
    message = refused()
    assert message == (
        f"{server.url}/{NAME}: not the published {NAME}. Its SHA-256 is {OTHER_SHA256} (14 bytes), the published "
        f"file's is {SHA256} (stated by 9 sources). It was not kept"
    )
    assert left(models) == []
    assert len(server.requests) == 1


def test_wrong_digest_that_one_project_alone_states(refused, server):
    server.files[f"/{NAME}"] = OTHER
    message = refused(dataclasses.replace(ROW, sha256_sources=1))
    assert "(stated by 1 source). It was not kept; if you trust that file, get it by hand" in message


def test_wrong_digest_after_an_earlier_part(refused, server, models):
    server.files[f"/{NAME}"] = OTHER
    put(models / f"{NAME}.part", b"some")
    assert OTHER_SHA256 in refused()
    assert server.ranges == ["bytes=4-", None]
    assert left(models) == []


def test_wrong_digest_without_the_earlier_part(refused, server, models):
    """It was fetched from its start, so that a second time would give the same."""
    server.files[f"/{NAME}"] = OTHER
    server.replies.append(Reply(ranges=False))
    put(models / f"{NAME}.part", b"some")
    assert OTHER_SHA256 in refused()
    assert server.ranges == ["bytes=4-"]
    assert left(models) == []


def test_truncated_without_a_length_is_a_wrong_digest(refused, server, models):
    server.replies.append(Reply(length=False, cut_after=100_000))
    assert "(100,000 bytes)" in refused()
    assert left(models) == []


def test_existing_other_file(get, refused, server, models):
    path = put(models / NAME, OTHER)
    message = refused()
    assert message.startswith(f"{path}: exists already and is not the published file. Its SHA-256 is {OTHER_SHA256}, ")
    assert f"the published file's is {SHA256} (stated by 9 sources)" in message
    assert "--overwrite" in message
    assert (path.read_bytes(), server.requests) == (OTHER, [])
    assert get(overwrite=True).read_bytes() == CONTENT
    assert left(models) == [NAME]


def test_existing_file_is_kept_when_the_new_one_is_wrong(refused, server, models):
    path = put(models / NAME, OTHER)
    server.files[f"/{NAME}"] = b"not it either"
    assert "not the published" in refused(overwrite=True)
    assert path.read_bytes() == OTHER
    assert left(models) == [NAME]


def test_folder_in_the_place_of_the_file(refused, models):
    (models / NAME).mkdir(parents=True)
    assert refused(overwrite=True) == f"{models / NAME}: not a file"


def test_web_page_instead_of_the_file(refused, server, models):
    server.replies.append(Reply(content_type="text/html; charset=utf-8"))
    assert f"{server.url}/{NAME}: answered with a web page instead of the file" in refused()
    assert left(models) == []


# Errors


def test_not_there(refused, server, models):
    server.files.clear()
    assert refused() == (
        f"{NAME} is not at the source: {server.url}/{NAME}: HTTP 404 Not Found; "
        f"{server.url}{BELOW_HUB}: HTTP 404 Not Found"
    )
    assert not models.exists()


def test_refused_by_the_server(refused, server, pauses):
    server.files[BELOW_HUB] = CONTENT
    server.replies.extend([Reply(status=403), Reply(status=403)])
    assert f"{server.url}/{NAME}: HTTP 403 Forbidden; " in refused()
    assert pauses == []


def test_other_status_is_no_retry(refused, server, pauses):
    server.replies.append(Reply(status=451))
    assert refused() == f"{server.url}/{NAME}: HTTP 451 Unavailable For Legal Reasons"
    assert (len(server.requests), pauses) == (1, [])


def test_nobody_listens(refused, models, pauses):
    """A host that is not reached at all fails at once."""
    url = f"http://127.0.0.1:{closed_port()}"
    message = refused(source=url)
    assert message.startswith(f"{url}/{NAME}: no connection (")
    assert "Connection refused" in message
    assert "--source" in message
    assert (pauses, models.exists()) == ([], False)


def test_unknown_host(refused, pauses):
    message = refused(source="http://mirror.invalid/")
    assert message.startswith(f"http://mirror.invalid/{NAME}: no connection (")
    assert pauses == []


def test_server_that_goes_away_is_waited_for(refused, server, models, monkeypatch):
    """Once bytes have arrived, a failing connection is retried too."""
    server.replies.append(Reply(cut_after=1000))
    opened = download.urllib.request.OpenerDirector.open

    def open_once(self, request, *arguments, **options):
        if request.has_header("Range"):
            raise download.urllib.error.URLError("Network is unreachable")
        return opened(self, request, *arguments, **options)

    monkeypatch.setattr(download.urllib.request.OpenerDirector, "open", open_once)
    message = refused(retries=2)
    assert "no connection (Network is unreachable). Gave up after 3 attempts" in message
    assert (models / f"{NAME}.part").stat().st_size == 1000


def test_silent_server(refused, server):
    server.replies.extend([Reply(stall=True)] * 2)
    assert "timed out. Gave up after 2 attempts; nothing kept" in refused(timeout=0.1, retries=1)


def test_too_little_space(refused, server, models, monkeypatch):
    usage = types.SimpleNamespace(free=1000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    part = models / f"{NAME}.part"
    assert refused() == f"{part}: needs 300,000 bytes more, but the disk has 1,000 left; nothing kept"
    put(part, CONTENT[:299_000])
    assert part.stat().st_size == 299_000
    usage.free = 999
    server.replies.append(Reply(ranges=False))  # what is there will be overwritten
    assert "needs 300,000 bytes more, but the disk has 299,999 left" in refused()
    assert f"needs 1,000 bytes more, but the disk has 999 left; {part} keeps 299,000 bytes" in refused()


def test_full_disk(server, models):
    """A limit on the size of files stands for the disk."""
    code = (
        "import dataclasses, resource; from med3d_nets import download, variants; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        f"row = dataclasses.replace(variants.get_variant({ROW.name!r}), sha256={SHA256!r}); "
        f"download.fetch(row, {str(models)!r}, {server.url!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    part = models / f"{NAME}.part"
    assert f"Med3dError: no space left on the disk while writing {part} (File too large); {part} keeps" in done.stderr
    assert left(models) == [part.name]
    kept = part.read_bytes()
    assert kept == CONTENT[: len(kept)]
