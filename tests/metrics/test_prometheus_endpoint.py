"""A run's /metrics over HTTP and HTTPS."""

from __future__ import annotations

import base64
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from dcdist.errors import UsageError
from dcdist.metrics.prometheus_endpoint import Endpoint
from tests.metrics.certificates import write_certificate


@pytest.fixture
def registry() -> CollectorRegistry:
    made = CollectorRegistry()
    Gauge("dcdist_test", "Always 1", registry=made).set(1)
    return made


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_certificate(tmp_path_factory.mktemp("tls"))


def opened(*arguments: Any, **more: Any) -> Endpoint:
    endpoint = Endpoint(*arguments, **more)
    endpoint.refresh()
    return endpoint


def get(endpoint: Endpoint, scheme: str = "http", user: str | None = None, trusted: Path | None = None) -> str:
    request = urllib.request.Request(f"{scheme}://127.0.0.1:{endpoint.port}/metrics")
    if user is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(user.encode()).decode())
    context = ssl.create_default_context(cafile=str(trusted)) if trusted else None
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:
        return answer.read().decode()


def test_it_serves_what_is_newest_and_frees_the_port(registry: CollectorRegistry) -> None:
    endpoint = opened(registry, "127.0.0.1", 0)
    port = endpoint.port
    assert port is not None
    assert "dcdist_test 1.0" in get(endpoint)
    endpoint.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_it_asks_nobody_for_the_name_of_this_machine(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object) -> str:
        raise AssertionError("where the DNS is slow, so is a start")

    monkeypatch.setattr(socket, "getfqdn", slow)
    monkeypatch.setattr(socket, "gethostbyaddr", slow)
    endpoint = opened(registry, "0.0.0.0", 0)
    assert "dcdist_test 1.0" in get(endpoint)
    endpoint.close()


def test_it_serves_on_ipv6(registry: CollectorRegistry) -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("a machine without IPv6")
    endpoint = opened(registry, "::1", 0)
    with urllib.request.urlopen(f"http://[::1]:{endpoint.port}/metrics", timeout=10) as answer:
        assert b"dcdist_test 1.0" in answer.read()
    endpoint.close()


def test_a_port_that_is_taken_is_tried_again(registry: CollectorRegistry) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        endpoint = Endpoint(registry, "127.0.0.1", port)
        with pytest.raises(OSError, match=rf"no /metrics at 127.0.0.1:{port} \(.*in use\); port 0 takes a free one"):
            endpoint.refresh()
        assert endpoint.port is None
        endpoint.last_look()
    endpoint.refresh()  # whoever had it has ended
    assert endpoint.port == port
    assert "dcdist_test 1.0" in get(endpoint)
    endpoint.close()


def test_tls_and_a_password(registry: CollectorRegistry, certificate: tuple[Path, Path], tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.write_text("prometheus:säcret:with colon\n")
    endpoint = opened(registry, "127.0.0.1", 0, *certificate, credentials)
    try:
        page = get(endpoint, "https", "prometheus:säcret:with colon", trusted=certificate[0])
        assert "dcdist_test 1.0" in page
        for wrong in (None, "prometheus:secret", "prometheus"):
            with pytest.raises(urllib.error.HTTPError, match="401") as refused:
                get(endpoint, "https", wrong, trusted=certificate[0])
            assert refused.value.headers["WWW-Authenticate"] == 'Basic realm="dcdist"'
            assert b"dcdist_test" not in refused.value.read()
        with pytest.raises(urllib.error.URLError):
            get(endpoint, "https", "prometheus:säcret:with colon")  # nobody vouches for the certificate
        with pytest.raises(OSError):
            get(endpoint, "http", "prometheus:säcret:with colon")
    finally:
        endpoint.close()


def test_a_client_that_says_nothing_holds_up_nobody(
    registry: CollectorRegistry, certificate: tuple[Path, Path]
) -> None:
    endpoint = opened(registry, "127.0.0.1", 0, *certificate)
    try:
        with socket.create_connection(("127.0.0.1", endpoint.port or 0)):
            assert "dcdist_test 1.0" in get(endpoint, "https", trusted=certificate[0])
    finally:
        endpoint.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"credentials=.*credentials cannot be read: .*No such file"),
        ("", "holds 0 lines, expected one like user:password"),
        ("user\n", "holds 1 lines, expected one like user:password"),
        ("user:password\nother:password\n", "holds 2 lines, expected one like user:password"),
    ],
)
def test_credentials_that_are_none_are_refused(
    content: str | None, message: str, registry: CollectorRegistry, tmp_path: Path
) -> None:
    path = tmp_path / "credentials"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=message):
        opened(registry, "127.0.0.1", 0, credentials=path)


def test_a_certificate_that_is_none_is_refused(
    registry: CollectorRegistry, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"prometheus_certificate=.*missing.pem cannot be used: .*No such file"):
        opened(registry, "127.0.0.1", 0, tmp_path / "missing.pem")
    with pytest.raises(UsageError, match=r"certificate.pem cannot be used: .*expected PEM files of a certificate and"):
        opened(registry, "127.0.0.1", 0, certificate[0])  # its key is in another file


def test_the_last_look_waits_for_who_has_been_looking(registry: CollectorRegistry) -> None:
    endpoint = opened(registry, "127.0.0.1", 0)
    start = time.monotonic()
    endpoint.last_look(60)
    assert time.monotonic() - start < 5, "nobody ever looked"
    get(endpoint)
    later = threading.Timer(0.5, get, (endpoint,))
    later.start()
    endpoint.last_look(60)
    assert 0.3 < time.monotonic() - start < 30
    endpoint.last_look(0.2)  # nobody comes
    later.join()
    endpoint.close()


def test_what_a_strange_client_says_is_not_printed(
    registry: CollectorRegistry, certificate: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    endpoint = opened(registry, "127.0.0.1", 0, *certificate)
    with pytest.raises(OSError):
        get(endpoint, "http")
    endpoint.close()
    assert capfd.readouterr() == ("", "")


def test_an_encrypted_key_is_refused_and_asks_nobody(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    key = tmp_path / "encrypted.pem"
    command = ["openssl", "rsa", "-aes256", "-passout", "pass:secret", "-in", str(certificate[1]), "-out", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(UsageError, match="the private key is encrypted"):
        opened(CollectorRegistry(), "127.0.0.1", 0, certificate[0], key)


def test_the_last_look_waits_for_each_of_two_who_look(registry: CollectorRegistry) -> None:
    def look(program: str) -> None:
        url = f"http://127.0.0.1:{endpoint.port}/metrics"
        request = urllib.request.Request(url, headers={"User-Agent": program})
        urllib.request.urlopen(request, timeout=10).close()

    endpoint = opened(registry, "127.0.0.1", 0)
    for program in ("Prometheus/2.42", "curl"):
        look(program)
    first, second = (
        threading.Timer(seconds, look, (program,)) for seconds, program in ((0.2, "Prometheus/2.42"), (1.0, "curl"))
    )
    start = time.monotonic()
    first.start()
    second.start()
    endpoint.last_look(60)
    assert 0.9 < time.monotonic() - start < 30
    endpoint.close()


def test_a_scrape_that_began_before_the_end_is_no_last_look(registry: CollectorRegistry) -> None:
    began, go_on = threading.Event(), threading.Event()

    class Slow(Collector):
        def collect(self) -> Iterator[Metric]:
            began.set()
            go_on.wait(30)
            yield from ()

    endpoint = opened(registry, "127.0.0.1", 0)
    get(endpoint)
    registry.register(Slow())
    scrape = threading.Thread(target=get, args=(endpoint,))
    began.clear()
    scrape.start()
    assert began.wait(30)
    threading.Timer(0.2, go_on.set).start()
    start = time.monotonic()
    endpoint.last_look(0.6)
    assert time.monotonic() - start >= 0.6
    scrape.join()
    endpoint.close()
