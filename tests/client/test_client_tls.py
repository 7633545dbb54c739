"""TLS between the tensor transport and a server."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from fake_service import FakeService

from optimd import errors
from optimd._exchange import Request
from optimd._http1 import TensorTransport
from optimd._settings import Settings
from reaching import listening

GET = Request("GET", "/v1/sessions/s1")

pytestmark = pytest.mark.usefixtures("over_tcp")


def secure(url: str) -> TensorTransport:
    return TensorTransport(Settings.resolve(url.replace("http", "https", 1), environ={}))


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and its certificate for 127.0.0.1, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    file = tmp_path / "both.pem"
    names = ["-subj", "/CN=optimd", "-addext", "subjectAltName=IP:127.0.0.1"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *names, "-keyout", file, "-out", file]
    subprocess.run(make, check=True, capture_output=True)
    return file


@contextmanager
def answering(certificate: Path) -> Iterator[TensorTransport]:
    """A transport to a server that speaks TLS with one client, and answers its one request."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def answer(listener: socket.socket) -> None:
        with suppress(ssl.SSLError), context.wrap_socket(listener.accept()[0], server_side=True) as peer:
            peer.recv(65_536)
            peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    with listening() as (listener, url):
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        transport = secure(url)
        yield transport
        transport.close()
        thread.join()


def test_a_server_with_a_trusted_certificate_is_spoken_with(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with answering(certificate) as transport:
        assert bytes(transport.exchange(GET).body) == b"{}"


def test_a_server_whose_certificate_nobody_vouches_for_is_sent_nothing(certificate: Path) -> None:
    with answering(certificate) as transport, pytest.raises(errors.NotConnected, match="certificate"):
        transport.exchange(GET)


def test_a_server_without_tls_is_not_connected() -> None:
    with FakeService().serving() as url, pytest.raises(errors.NotConnected):
        secure(url).exchange(GET)
