"""A server behind TLS: its certificate is checked, and a cancel ends a stream there as well."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from nvila_ros.types import FinishReason, Piece
from tests.remote.asking_remotely import ask, remote
from tests.remote.scripted_server import end, scripted_server, stream, stream_for_ever, text

if shutil.which("openssl") is None:
    pytest.skip("makes a certificate by openssl", allow_module_level=True)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of this machine that nobody has signed, with its key."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run([*command, *files], check=True, capture_output=True)
    return folder / "certificate.pem"


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    return context


def test_a_certificate_that_nobody_vouches_for_is_refused(tls: ssl.SSLContext) -> None:
    with scripted_server(stream(text("x"), *end()), tls=tls) as server:
        answer = ask(remote(server.url, key="secret", retries=0))

    assert answer.finish_reason is FinishReason.FAILED
    assert "certificate" in answer.error.lower()
    assert not server.headers, "nothing was sent, the key least of all"


def test_a_known_certificate_is_taken_and_a_cancel_ends_the_stream(
    tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    pieces: list[Piece] = []
    with scripted_server(stream(text("Bonjour"), *end()), stream_for_ever, tls=tls) as server:
        model = remote(server.url)
        whole = ask(model)
        cut = ask(model, pieces=pieces, should_stop=lambda: FinishReason.CANCELED if len(pieces) >= 3 else None)
        assert server.left.wait(30.0)

    assert (whole.text, whole.finish_reason) == ("Bonjour", FinishReason.STOP)
    assert cut.finish_reason is FinishReason.CANCELED
