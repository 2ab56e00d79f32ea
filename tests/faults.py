"""A reverse proxy before an S3 server that does to requests what bad networks and busy servers do."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import urlsplit

__all__ = ["KINDS", "Fault", "FaultyProxy"]

Fault = Literal["slow_down", "delay", "cut_answer", "cut_request", "no_room"]
KINDS: tuple[Fault, ...] = ("slow_down", "delay", "cut_answer", "cut_request")

_BLOCK = 64 << 10
_HOP_BY_HOP = {"connection", "keep-alive", "expect", "transfer-encoding", "proxy-connection", "te", "upgrade"}
_REFUSALS = {
    "slow_down": (503, b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"),
    "no_room": (507, b"<Error><Code>InsufficientStorage</Code><Message>No space left on device</Message></Error>"),
}


class FaultyProxy:
    """A loopback proxy for one server, running inside its `with` block.

    Every `every`th request meets a fault, the kinds taking turns: answered 503 SlowDown without being forwarded; held
    back for `delay_s`; forwarded, the answer cut off in its middle (one without a body is not sent at all); cut off
    in the middle of its own body, nothing forwarded whole. The client's Host header is kept: signatures cover it.
    A subclass decides otherwise in `next_fault`, where a write may also be answered 507, and looks on in `answered`.

    Attributes:
        counts: how many faults of each kind there were.

    """

    def __init__(self, upstream: str, *, every: int = 20, delay_s: float = 0.5) -> None:
        """Prepare a proxy for `upstream`, `http://host:port`; with `every` 0 it only passes requests on."""
        self.every, self.delay_s = every, delay_s
        self.counts: Counter[Fault] = Counter()
        self.upstream = urlsplit(upstream).netloc
        self.reachable = threading.Event()
        self.reachable.set()
        self._lock, self._seen, self._kinds = threading.Lock(), 0, itertools.cycle(KINDS)
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def down(self) -> None:
        """Close connections without an answer, until `up`."""
        self.reachable.clear()

    def up(self) -> None:
        """Serve again."""
        self.reachable.set()

    def next_fault(self, command: str, path: str) -> Fault | None:
        """Count a request, and return what is to happen to it."""
        with self._lock:
            self._seen += 1
            if not self.every or self._seen % self.every:
                return None
            fault = next(self._kinds)
            self.counts[fault] += 1
            return fault

    def answered(
        self, command: str, path: str, request: Mapping[str, str], status: int, answer: Mapping[str, str]
    ) -> None:
        """See what the server answered, with the headers of both sides, before the client does."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    proxy: FaultyProxy

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return self.proxy.reachable.is_set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # connections that break are this server's business
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as in the base class
        pass

    def _serve(self) -> None:
        proxy = self.server.proxy
        if not proxy.reachable.is_set():
            self.close_connection = True
            return
        fault = proxy.next_fault(self.command, self.path)
        if fault == "cut_request":
            self._cut_request()
        elif fault in _REFUSALS:
            self._refuse(*_REFUSALS[fault])
        else:
            if fault == "delay":
                time.sleep(proxy.delay_s)
            self._forward(cut=fault == "cut_answer")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - names that the base class looks up

    def _body(self) -> Iterator[bytes]:
        """Yield the request's body in blocks, without its framing."""
        if self._chunked():
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():  # trailers of the transfer, which S3 does not use
                pass
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            block = self.rfile.read(min(left, _BLOCK))
            if not block:
                raise ConnectionError("the client went away")
            left -= len(block)
            yield block

    def _chunked(self) -> bool:
        return "chunked" in self.headers.get("Transfer-Encoding", "").lower()

    def _cut_request(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length // 2)
        self.close_connection = True

    def _refuse(self, status: int, reason: bytes) -> None:
        for _ in self._body():
            pass
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(reason)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reason)

    def _forward(self, *, cut: bool) -> None:
        upstream = HTTPConnection(self.server.proxy.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    upstream.putheader(name, value)
            if self._chunked():
                upstream.putheader("Transfer-Encoding", "chunked")
                upstream.endheaders(self._body(), encode_chunked=True)
            else:
                upstream.endheaders(self._body())
            answer = upstream.getresponse()
            self.server.proxy.answered(self.command, self.path, self.headers, answer.status, answer.headers)
            self._answer(answer, cut=cut)
        except (OSError, HTTPException):
            self.close_connection = True  # as the server or the client did
        finally:
            upstream.close()

    def _answer(self, answer: HTTPResponse, *, cut: bool) -> None:
        bodiless = self.command == "HEAD" or answer.status in (204, 304) or answer.length == 0
        if cut and bodiless:
            self.close_connection = True
            return
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        chunked = answer.length is None and not bodiless
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if bodiless:
            return
        left = (answer.length or _BLOCK) // 2 if cut else None
        while block := answer.read(_BLOCK if left is None else min(left, _BLOCK)):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block) if chunked else block)
            if left is not None:
                left -= len(block)
                if not left:
                    break
        if cut:
            self.close_connection = True
        elif chunked:
            self.wfile.write(b"0\r\n\r\n")
