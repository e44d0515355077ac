"""`p4q-edge serve` as a process: it answers many at once, and ends in good order."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from read_documents import read_document

from p4q_edge.runtime import ZeroShotClassifier
from p4q_edge.runtime.classification.predictions import Prediction
from p4q_edge.runtime.cli.service_documents import ServeDocument


def test_many_at_once_get_what_the_python_api_says(
    child: Callable[..., Any], classifier: ZeroShotClassifier, photos: list[bytes]
) -> None:
    server = child()
    predictions = [found for found in classifier.classify(photos) if isinstance(found, Prediction)]

    def ask(number: int) -> None:
        with httpx2.Client() as client:
            for step in range(6):
                index = (number + step) % len(photos)
                content = b"damaged" if (number + step) % 7 == 0 else photos[index]
                answer = client.post(f"{server.url}/classify", content=content)
                if content == b"damaged":
                    assert answer.status_code == 422
                    continue
                assert answer.status_code == 200
                found = answer.json()["predictions"][0]
                assert found["label"] == predictions[index].label
                assert found["score"] == pytest.approx(predictions[index].score, abs=1e-4)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(32)))
    counted = httpx2.get(f"{server.url}/metrics").text
    assert 'p4q_edge_requests_total{route="classify",method="POST",status="422"}' in counted
    assert server.stop()[0] == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "  open it in a browser; Ctrl-C stops the server"),
        (
            ("--host", "0.0.0.0"),
            "  open it in a browser, on another machine with this one's name or address; Ctrl-C stops the server",
        ),
    ],
)
def test_where_it_can_be_opened_is_told(child: Callable[..., Any], options: tuple[str, ...], told: str) -> None:
    server = child(*options, P4Q_EDGE_TOKEN="a" * 32)
    assert server.line == server.url + told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_under_way_is_answered_before_it_ends(
    child: Callable[..., Any], photos: list[bytes], number: int
) -> None:
    server = child()
    host, port = server.url.removeprefix("http://").split(":")
    body = photos[0]
    head = f"POST /classify HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((host, int(port)), timeout=240) as connection:
        connection.sendall(head + body[:100])
        # It has this request before it is asked to stop: another one, sent later, was answered.
        assert httpx2.get(f"{server.url}/healthz").status_code == 200
        until = time.monotonic() + 240
        while "p4q_edge_requests_now 2" not in httpx2.get(f"{server.url}/metrics").text:
            assert time.monotonic() < until
        server.process.send_signal(number)
        while not _refuses(host, int(port)):
            assert time.monotonic() < until
        connection.sendall(body[100:])
        answer = b""
        while data := connection.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["predictions"][0]["label"]
    assert server.process.wait(60) == 0


def _refuses(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=5):
            return False
    except OSError:
        return True


def test_its_first_line_is_a_document(tiny_engine: Path, child: Callable[..., Any]) -> None:
    # The fixture reads a line of text; here it is JSON, so that the process is started by hand.
    import subprocess
    import sys

    command = [sys.executable, "-c", "import sys; from p4q_edge.runtime.cli.main import main; sys.exit(main())"]
    command += ["serve", str(tiny_engine), "--port", "0", "--json", "--read-only", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        read_document(line, ServeDocument)
        document = json.loads(line)
        process.terminate()
    assert document["process"] == process.pid
    assert document["url"].startswith("http://127.0.0.1:")
    assert (document["token"], document["read_only"], document["schema_version"]) == (False, True, 1)
    assert process.returncode == 0


def test_over_https_with_a_token_at_every_address(
    child: Callable[..., Any], tmp_path: Path, photos: list[bytes]
) -> None:
    certificate, key = _certificate(tmp_path)
    token = "a-token-of-thirty-two-characters"
    options = ("--host", "0.0.0.0", "--tls-certificate", str(certificate), "--tls-key", str(key))
    server = child(*options, P4Q_EDGE_TOKEN=token)
    assert server.url.startswith("https://0.0.0.0:")
    url = server.url.replace("0.0.0.0", "127.0.0.1")
    import ssl

    context = ssl.create_default_context(cafile=str(certificate))
    with httpx2.Client(verify=context) as client:
        assert client.get(f"{url}/healthz").status_code == 200
        assert client.post(f"{url}/classify", content=photos[0]).status_code == 401
        bearer = {"Authorization": f"Bearer {token}"}
        assert client.post(f"{url}/classify", content=photos[0], headers=bearer).status_code == 200
    code, said = server.stop()
    assert code == 0
    assert token not in said


def _certificate(folder: Path) -> tuple[Path, Path]:
    import datetime
    import ipaddress

    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "board")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(private, hashes.SHA256())
    )
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, form, plain))
    return certificate, key


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait(child: Callable[..., Any], photos: list[bytes], number: int) -> None:
    server = child()
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /classify HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 1000\r\n\r\n".encode()
    with socket.create_connection((host, int(port)), timeout=240) as connection:
        connection.sendall(head + b"x")
        until = time.monotonic() + 240
        while "p4q_edge_requests_now 2" not in httpx2.get(f"{server.url}/metrics").text:
            assert time.monotonic() < until
        server.process.send_signal(number)
        while not _refuses(host, int(port)):
            assert time.monotonic() < until
        server.process.send_signal(number)
        ended = threading.Event()
        threading.Thread(target=lambda: (server.process.wait(), ended.set()), daemon=True).start()
        # Well before the 20 s that a request in good order may take, and before the 30 s of its body.
        assert ended.wait(15)


def test_clients_that_leave_and_noise_harm_nobody(child: Callable[..., Any], photos: list[bytes]) -> None:
    server = child()
    host, port = server.url.removeprefix("http://").split(":")
    begun = f"POST /classify HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5000\r\n"
    form = "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\nContent-Disposition: form-data; name=a\r\n\r\nb"
    for sent in (*[f"{begun}\r\nabc"] * 5, *[f"{begun}{form}"] * 5, "noise\r\n\r\n", "\x16\x03\x01"):
        with socket.create_connection((host, int(port)), timeout=240) as connection:
            connection.sendall(sent.encode())
            time.sleep(0.02)
    idle = [socket.create_connection((host, int(port)), timeout=240) for _ in range(100)]
    until = time.monotonic() + 240
    while 'status="499"} 10' not in (text := httpx2.get(f"{server.url}/metrics").text):
        assert time.monotonic() < until, text
    assert "p4q_edge_requests_now 1\n" in text, "what they held is free again"
    assert httpx2.post(f"{server.url}/classify", content=photos[0]).status_code == 200
    for connection in idle:
        connection.close()
    code, said = server.stop()
    assert code == 0
    assert "Traceback" not in said
