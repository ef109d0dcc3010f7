"""A real HTTP server on 127.0.0.1 that serves files, badly when asked to."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = b"<!doctype html><title>Sign in</title>"


class Server(ThreadingHTTPServer):
    """Serves `content` at any path; the first folder of the path names a misbehaviour.

    /good/NAME, /hang/..., /drip/..., /500/..., /flaky/... (500 twice, then good), /404/..., /html/...,
    /truncated/... (closes early), /corrupted/... (one bit flipped)
    """

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.requests: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        how = self.path.split("/")[1]
        self.server.requests[self.path] += 1
        body = self.server.content
        match how:
            case "hang":
                time.sleep(3)
                return None
            case "500":
                return self.send_error(500)
            case "404":
                return self.send_error(404)
            case "flaky" if self.server.requests[self.path] < 3:
                return self.send_error(503)
            case "html":
                return self._send(PAGE, kind="text/html; charset=utf-8")
            case "truncated":
                return self._send(body[: len(body) // 2], length=len(body))
            case "corrupted":
                return self._send(bytes([body[0] ^ 1]) + body[1:])
            case "drip":
                self._send(b"", length=len(body))
                with suppress(ConnectionError):
                    for byte in body[:40]:
                        self.wfile.write(bytes([byte]))
                        time.sleep(0.05)
                return None
            case _:
                return self._send(body)

    def _send(self, body: bytes, kind: str = "application/gzip", length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(content: bytes) -> Iterator[Server]:
    """Serve for the time of a `with` block."""
    with Server(content) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
