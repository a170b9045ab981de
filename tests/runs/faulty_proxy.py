"""An HTTP proxy before a server that delays, refuses and cuts the requests that its rules name."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler

Answer = tuple[int, list[tuple[str, str]], bytes]  # status, headers, body

_OF_ONE_CONNECTION = ("connection", "content-length", "expect", "transfer-encoding")


class Action(Enum):
    """What happens to a request. A reset is a RST: the client sees "connection reset by peer"."""

    DELAY = auto()  # the answer comes later
    REFUSE = auto()  # the proxy answers with an error, the server hears nothing
    RESET_BEFORE = auto()  # before the body, the server hears nothing
    RESET_IN_BODY = auto()  # when half of the body has come, the server hears nothing
    RESET_AFTER = auto()  # the server has done it, the client does not hear of it
    RESET_IN_ANSWER = auto()  # after half of the answer's body
    HOLD = auto()  # reset, and the server gets the request later, from `deliver`


@dataclass
class Rule:
    """An action for the requests of this method (any, if empty) with this pattern in their path.

    `counts` picks some of these, counted from 1. `then` is done to everything that comes after the first one picked.
    """

    action: Action
    method: str = ""
    path: str = ""
    counts: Callable[[int], bool] = lambda _: True
    then: Action | None = None
    seconds: float = 0.0  # of a delay
    error: tuple[int, str] = (503, "SlowDown")  # of a refusal
    num_applied: int = field(default=0, init=False)
    _num_matching: int = field(default=0, init=False)

    def action_for(self, method: str, path: str) -> Action | None:
        """What is to be done to this request, which is counted."""
        action = self.then if self.num_applied else None
        if action is None and self.method in ("", method) and re.search(self.path, path):
            self._num_matching += 1
            action = self.action if self.counts(self._num_matching) else None
        self.num_applied += action is not None
        return action


class FaultyProxy:
    """Passes HTTP requests on to a server, by the first of its rules that applies or, without one, faithfully.

    `rules` may change at any time. Closed, it refuses connections and cuts those that there are; opened again, it has
    the same address.
    """

    def __init__(self, server: str, *rules: Rule) -> None:
        self.server = server.removeprefix("http://")
        self.rules = list(rules)
        self.num_requests = 0
        self.held: list[Callable[[], Answer]] = []
        self.connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._address: tuple[str, int] = ("127.0.0.1", 0)
        self.open()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._address[1]}"

    def open(self) -> None:
        self._listener = _Listener(self._address, self)
        self._address = self._listener.server_address
        threading.Thread(target=self._listener.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def deliver(self) -> list[int]:
        """Gives the server the requests that were held, in their order; returns the status of each answer."""
        held, self.held = self.held, []
        return [send()[0] for send in held]

    def look_up(self, method: str, path: str) -> tuple[Rule, Action] | None:
        """The first rule that applies to a request that has come, with its action."""
        with self._lock:
            self.num_requests += 1
            for rule in self.rules:
                if action := rule.action_for(method, path):
                    return rule, action
        return None


class _Listener(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], proxy: FaultyProxy) -> None:
        self.proxy = proxy
        super().__init__(address, _Connection)

    def handle_error(self, *_: object) -> None:
        """Clients that were killed, and a proxy that closes, are no errors."""


class _Connection(BaseHTTPRequestHandler):
    """The requests of one client, one after the other. The base class answers "Expect: 100-continue"."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def handle(self) -> None:
        self.server.proxy.connections.add(self.connection)
        super().handle()
        self.server.proxy.connections.discard(self.connection)

    def _handle_request(self) -> None:
        rule, action = self.server.proxy.look_up(self.command, self.path) or (None, None)
        if action is Action.RESET_BEFORE:
            return self._reset()
        if action is Action.RESET_IN_BODY:
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            return self._reset()
        body = self._read_body()
        if rule and action is Action.REFUSE:
            status, code = rule.error
            return self._answer(status, [], f"<Error><Code>{code}</Code><Message>{code}!</Message></Error>".encode())
        if action is Action.HOLD:
            self.server.proxy.held.append(lambda: self._ask_server(body))
            return self._reset()
        status, headers, content = self._ask_server(body)
        if action is Action.RESET_AFTER:
            return self._reset()
        if rule and action is Action.DELAY:
            time.sleep(rule.seconds)
        self._answer(status, headers, content, is_cut=action is Action.RESET_IN_ANSWER)
        return self._reset() if action is Action.RESET_IN_ANSWER else None

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle_request  # noqa: N815

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(chunks)

    def _ask_server(self, body: bytes) -> Answer:
        server = http.client.HTTPConnection(self.server.proxy.server, timeout=60)
        with contextlib.closing(server):
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _OF_ONE_CONNECTION:
                    server.putheader(name, value)
            server.putheader("Content-Length", str(len(body)))
            server.endheaders(body)
            response = server.getresponse()
            return response.status, response.getheaders(), response.read()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, is_cut: bool = False) -> None:
        self.send_response_only(status)
        length = str(len(content))
        for name, value in headers:
            if name.lower() not in _OF_ONE_CONNECTION:
                self.send_header(name, value)
            elif name.lower() == "content-length" and self.command == "HEAD":
                length = value  # of the body that a GET would have
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if is_cut else content)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close(self.connection.detach())  # close() would wait for rfile

    def log_message(self, *_: object) -> None:
        """Nothing to stderr."""
