"""/metrics of a run over HTTP, with TLS and a password where asked for."""

from __future__ import annotations

import base64
import hmac
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from dcdist.errors import UsageError
from dcdist.metrics.prometheus_outlets import LAST_LOOK_SECONDS

logger = logging.getLogger(__name__)

_WATCHED_WITHIN = 300.0  # seconds

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Endpoint:
    """Serves /metrics, over TLS and behind a password where asked for.

    Args:
        registry: what is served.
        address: to bind, for example "127.0.0.1" or "0.0.0.0".
        port: 0 takes a free one.
        certificate: PEM file, None for plain HTTP.
        private_key: PEM file of the certificate; None where that holds it.
        credentials: file with one line "user:password", None where anybody may read.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        address: str,
        port: int,
        certificate: Path | None = None,
        private_key: Path | None = None,
        credentials: Path | None = None,
    ) -> None:
        self.port: int | None = None  # once it is open
        self._app = self._noticing(make_wsgi_app(registry))
        self._asked_for = (address, port)
        self._certificate, self._private_key, self._credentials = certificate, private_key, credentials
        self._server: _Server | None = None
        self._readers: dict[tuple[str, str], float] = {}  # address and program -> when it asked last

    def protection(self) -> tuple[ssl.SSLContext | None, bytes | None]:
        """What its files say. Raises UsageError where one cannot be read, or does not hold what it should."""
        return (
            _tls(self._certificate, self._private_key) if self._certificate is not None else None,
            _read_credentials(self._credentials) if self._credentials is not None else None,
        )

    def refresh(self) -> None:
        """Opens it; where that fails the run goes on without, until it succeeds.

        Raises:
            OSError: the port is taken, maybe by the attempt before, which is about to end.
            UsageError: as `protection`. It is never opened without what is to protect it.
        """
        if self._server is not None:
            return  # what is served is always the newest
        tls, credentials = self.protection()
        app = self._app if credentials is None else _asking(self._app, credentials)
        address, port = self._asked_for
        try:
            self._server = _Server(address, port, app, tls)
        except OSError as error:
            raise OSError(f"no /metrics at {address}:{port} ({error}); port 0 takes a free one") from error
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="dcdist-metrics", daemon=True)
        self._thread.start()

    def _noticing(self, app: App) -> App:
        def noticing(environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            began = time.monotonic()
            answer = app(environment, start_response)
            # What came later than it began is not in this answer.
            self._readers[environment.get("REMOTE_ADDR", ""), environment.get("HTTP_USER_AGENT", "")] = began
            return answer

        return noticing

    def last_look(self, seconds: float = LAST_LOOK_SECONDS) -> None:
        """Waits until all who have read lately have read what is there now; not longer than so long."""
        now = time.monotonic()
        watchers = {reader for reader, asked_at in tuple(self._readers.items()) if now - asked_at < _WATCHED_WITHIN}
        if not watchers:
            return
        logger.info("waiting for Prometheus to read the last figures, %.0f seconds at most", seconds)
        while any(self._readers[reader] < now for reader in watchers) and time.monotonic() < now + seconds:
            time.sleep(0.1)

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = None


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a request: a slow client holds up nobody."""

    daemon_threads = True

    def __init__(self, address: str, port: int, app: App, tls: ssl.SSLContext | None) -> None:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, *_, where = found[0]
        super().__init__(where, _Handler)  # type: ignore[arg-type]
        self.set_app(app)
        if tls is not None:  # the handshake is the request's thread's
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own asks for this machine's full name: slow DNS would delay a start
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def handle_error(self, _request: Any, client: Any) -> None:
        """Of a client that speaks another protocol, or nothing: no business of who trains."""
        logger.debug("a client at %s got no metrics", client, exc_info=True)


class _Handler(WSGIRequestHandler):
    timeout = 10.0  # of a client that connects and says nothing

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not worth a line."""


def _asking(app: App, credentials: bytes) -> App:
    """Lets those through that know the credentials (HTTP basic authentication)."""
    expected = b"Basic " + base64.b64encode(credentials)

    def asking(environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        given = environment.get("HTTP_AUTHORIZATION", "").encode("latin-1")
        if hmac.compare_digest(given, expected):
            return app(environment, start_response)
        start_response("401 Unauthorized", [("WWW-Authenticate", 'Basic realm="dcdist"')])
        return [b"the metrics of this run need a user and a password\n"]

    return asking


def _read_credentials(path: Path) -> bytes:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"metrics.prometheus_credentials={path} cannot be read: {error}") from error
    if len(lines) != 1 or b":" not in lines[0]:
        raise UsageError(
            f"metrics.prometheus_credentials={path} holds {len(lines)} lines, expected one like user:password"
        )
    return lines[0]


def _tls(certificate: Path, private_key: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, private_key, _no_password)
    except OSError as error:  # ssl.SSLError is one
        key = f" with metrics.prometheus_private_key={private_key}" if private_key else ""
        raise UsageError(
            f"metrics.prometheus_certificate={certificate}{key} cannot be used: {error}; expected PEM files of a "
            "certificate and its private key"
        ) from error
    return context


def _no_password() -> str:
    raise ssl.SSLError("the private key is encrypted, and nobody is there to be asked for its password")
