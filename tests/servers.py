"""A web server on loopback whose misbehaviour can be chosen, for tests of downloads.

A reply of ``server.replies`` is used up by each request, and :class:`Reply` alone, a good server's, answers those that
come after. What was asked is in ``server.requests``.
"""

from __future__ import annotations

import re
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

STALL = 20.0


@dataclass(frozen=True)
class Reply:
    """How one request is answered.

    Attributes:
        status: answer with this status instead of the file, None to send it.
        cut_after: close the connection after so many bytes of the body; 0 sends the headers alone, None all of it.
        ranges: whether ``Range`` is heeded.
        length: whether the length is told.
        content_range: a wrong ``Content-Range`` to tell.
        content_type: of the body.
        location: redirect there.
        stall: take the request and never answer; the connection stays open until the server stops.
        hang_up: take the request and close the connection.
    """

    status: int | None = None
    cut_after: int | None = None
    ranges: bool = True
    length: bool = True
    content_range: str | None = None
    content_type: str = "application/octet-stream"
    location: str | None = None
    stall: bool = False
    hang_up: bool = False


@dataclass(frozen=True)
class Asked:
    """A request that came.

    Attributes:
        path: its path, with the host if it came as to a proxy.
        range: its ``Range`` header, None without.
        headers: all of them.
    """

    path: str
    range: str | None
    headers: Message


@dataclass
class FileServer:
    """The state of a running server.

    Attributes:
        url: its address, without a slash at the end.
        files: the bytes to send, by path such as ``/resnet_10.pth``; whatever else is asked for is a 404.
        replies: how the coming requests for those files are answered; a good reply once they are used up.
        requests: what was asked, in order.
    """

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    replies: deque[Reply] = field(default_factory=deque)
    requests: list[Asked] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def paths(self) -> list[str]:
        """The paths that were asked for."""
        return [request.path for request in self.requests]

    @property
    def ranges(self) -> list[str | None]:
        """The ``Range`` headers of the requests."""
        return [request.range for request in self.requests]


@contextmanager
def serve(files: dict[str, bytes] | None = None) -> Iterator[FileServer]:
    """Run a server on a free port of 127.0.0.1 as long as the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name that http.server calls
            state.requests.append(Asked(self.path, self.headers.get("Range"), self.headers))
            content = state.files.get(unquote(urlsplit(self.path).path))
            if content is None:
                self.send_error(404)
            else:
                _answer(self, state, content, state.replies.popleft() if state.replies else Reply())

        def log_message(self, *_: object) -> None:
            pass  # nothing on the tests' output

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    state = FileServer(f"http://127.0.0.1:{http.server_port}", dict(files or {}))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.stopped.set()
        http.shutdown()
        http.server_close()
        thread.join()


def closed_port() -> int:
    """A port of 127.0.0.1 on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answer(handler: BaseHTTPRequestHandler, state: FileServer, content: bytes, reply: Reply) -> None:
    handler.close_connection = True
    if reply.stall:
        state.stopped.wait(STALL)
        return
    if reply.hang_up:
        return
    if reply.status is not None:
        handler.send_error(reply.status)
        return
    if reply.location is not None:
        handler.send_response(302)
        handler.send_header("Location", reply.location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    total = len(content)
    asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range") or "") if reply.ranges else None
    if asked and int(asked[1]) >= total:
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{total}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    if asked:
        content = content[int(asked[1]) :]
        handler.send_response(206)
        told = reply.content_range or f"bytes {asked[1]}-{total - 1}/{total}"
        handler.send_header("Content-Range", told)
    else:
        handler.send_response(200)
    handler.send_header("Content-Type", reply.content_type)
    if reply.length:
        handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: reply.cut_after])
