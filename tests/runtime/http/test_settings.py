"""How a server is reached, by whom, and what is refused before it starts."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.http.server import listen, url_of
from p4q_edge.runtime.http.settings import Limits, ServeOptions, is_loopback, read_token

TOKEN = "a-token-of-thirty-two-characters"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.5.5.5", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("board.local", False),
        ("", False),
    ],
)
def test_only_loopback_needs_no_token(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    assert ServeOptions(host=host, token=TOKEN).host == host
    if loopback:
        assert ServeOptions(host=host).token is None
    else:
        with pytest.raises(UsageError, match="needs a token then: .*--token-file FILE, or set P4Q_EDGE_TOKEN"):
            ServeOptions(host=host)


@pytest.mark.parametrize("token", ["short", "", "with a space in it, though long", "ä" * 20, "line\n" * 8])
def test_a_token_that_is_none(token: str) -> None:
    with pytest.raises(UsageError, match="at least 16 ASCII characters without spaces. Make one: openssl rand -hex 32"):
        ServeOptions(token=token)


def test_a_token_is_read_from_its_file_or_the_environment(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    file.chmod(0o600)
    assert read_token(file, {"P4Q_EDGE_TOKEN": "another"}) == TOKEN
    assert read_token(None, {"P4Q_EDGE_TOKEN": "another"}) == "another"
    assert read_token(None, {"P4Q_EDGE_TOKEN": ""}) is None
    assert read_token(None, {}) is None
    assert caplog.messages == []
    if os.name == "posix":
        file.chmod(0o644)
        with caplog.at_level(logging.WARNING, logger="p4q_edge"):
            assert read_token(file, {}) == TOKEN
        assert caplog.messages == [f"everybody on this machine can read the token: chmod 600 {file}"]
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="holds no token"):
        read_token(file, {})
    with pytest.raises(InputError, match="cannot read the token .*No such file"):
        read_token(tmp_path / "none", {})


def test_what_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="port must be between 0 and 65535, got 70000"):
        ServeOptions(port=70000)
    with pytest.raises(UsageError, match="HTTPS needs both a certificate and its key"):
        ServeOptions(certificate=tmp_path / "a.pem")
    with pytest.raises(InputError, match="a.pem does not exist; expected a PEM file"):
        ServeOptions(certificate=tmp_path / "a.pem", key=tmp_path / "b.pem")
    with pytest.raises(UsageError, match="must handle at least one request"):
        Limits(requests=0)
    with pytest.raises(UsageError, match="at most 4096 requests at once, got 5000"):
        Limits(requests=5000)
    with pytest.raises(UsageError, match="at most the 512 MiB that all requests have together, got 513 MiB"):
        Limits(body_bytes=513 << 20)


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    options = ServeOptions(port=0)
    with listen(options) as first:
        port = first.getsockname()[1]
        assert url_of(first, options) == f"http://127.0.0.1:{port}"
        with pytest.raises(UsageError, match=f"cannot listen at 127.0.0.1 port {port}: .* Add another --port"):
            listen(ServeOptions(port=port))
    with pytest.raises(UsageError, match="cannot listen at"):
        listen(ServeOptions(host="203.0.113.7", token=TOKEN))
