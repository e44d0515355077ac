"""How a server is reached, by whom, and how much it takes in."""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.storage import read_bounded

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "P4Q_EDGE_TOKEN"
MIN_TOKEN_LENGTH = 16
_MAX_TOKEN_BYTES = 4096
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_SCRIPTS = ("page", "common", "ask", "heads", "answers", "camera", "pictures", "teach")
PAGE_FILES: Mapping[str, str] = {
    "/": "index.html",
    **{f"/{name}": name for name in ("page.css", "icon.svg", *(f"{script}.js" for script in _SCRIPTS))},
}
"""The files of the page by the path at which each is served."""
OPEN_PATHS = frozenset({*PAGE_FILES, "/healthz", "/v2/health/live", "/v2/health/ready"})
"""What needs no token: the page asks for it, and who watches over the server need not know it."""
MAX_TOP_K = 1000
"""Most classes in an answer."""
DEFAULT_PORT = 8080
MAX_REQUESTS = 4096
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a server takes in.

    Attributes:
        requests: requests that are worked on at once; others are told to come again.
        body_bytes: most bytes of a request.
        teach_bytes: most bytes of a request with photographs to learn from.
        held_bytes: most bytes of all requests at once.
        images: most images in a request.
        body_seconds: how long a request may take to arrive.
        stop_seconds: how long requests may take to be answered after the server was asked to stop.
    """

    requests: int = 128
    body_bytes: int = 16 * MIB
    teach_bytes: int = 96 * MIB
    held_bytes: int = 512 * MIB
    images: int = 64
    body_seconds: float = 30.0
    stop_seconds: float = 20.0

    def __post_init__(self) -> None:
        if self.requests < 1 or self.body_bytes < 1:
            raise UsageError(
                "a server must handle at least one request, and a request must hold at least one byte; got "
                f"requests {self.requests} of at most {self.body_bytes} bytes."
            )
        if self.requests > MAX_REQUESTS:
            raise UsageError(f"a server works on at most {MAX_REQUESTS} requests at once, got {self.requests}.")
        if self.body_bytes > self.held_bytes:
            raise UsageError(
                f"a request may have at most the {self.held_bytes // MIB} MiB that all requests have together, got "
                f"{self.body_bytes / MIB:g} MiB."
            )


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How a server is reached and by whom.

    Attributes:
        host: address to listen at.
        port: port to listen at; 0 takes a free one.
        token: what clients must show as `Authorization: Bearer TOKEN`; None: everybody on this machine is let in.
        allowed_hosts: names under which the server may be asked besides those of this machine itself, as of a proxy.
        certificate: file of a certificate (PEM) to serve HTTPS with.
        key: file of its private key (PEM).
        read_only: nothing can be taught, chosen or saved.
        limits: how much is taken in.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    token: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None
    read_only: bool = False
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UsageError(f"port must be between 0 and 65535, got {self.port}.")
        if self.token is None and not is_loopback(self.host):
            raise UsageError(
                f"at {self.host} other machines can reach the server, which needs a token then: write one of at least "
                f"{MIN_TOKEN_LENGTH} characters to a file and add --token-file FILE, or set {TOKEN_VARIABLE}."
            )
        if self.token is not None:
            _require_good(self.token)
        if (self.certificate is None) != (self.key is None):
            raise UsageError("HTTPS needs both a certificate and its key: --tls-certificate FILE --tls-key FILE")
        for path in (self.certificate, self.key):
            if path is not None and not path.is_file():
                raise InputError(f"{path} does not exist; expected a PEM file. Check the path.")

    @property
    def scheme(self) -> str:
        """`http` or `https`."""
        return "http" if self.certificate is None else "https"


def is_loopback(host: str) -> bool:
    """Return whether only this machine itself reaches an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_token(file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the token in a file, else that of the environment, else None.

    Raises:
        InputError: the file is missing, or no text.
    """
    if file is None:
        return environment.get(TOKEN_VARIABLE) or None
    data = read_bounded(file, limit_bytes=_MAX_TOKEN_BYTES, kind="token")
    if os.name == "posix" and file.stat().st_mode & 0o004:
        logger.warning("everybody on this machine can read the token: chmod 600 %s", file)
    try:
        return data.decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} holds no token; expected one line of ASCII characters. Make one: openssl rand -hex 32"
        ) from error


def _require_good(token: str) -> None:
    if len(token) < MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"a token needs at least {MIN_TOKEN_LENGTH} ASCII characters without spaces. Make one: openssl rand -hex 32"
        )
