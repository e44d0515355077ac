"""Images at addresses of the web, for a command whose user said that other machines may be asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from http.client import HTTPException
from typing import IO, Any
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit

from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.storage import not_fetched, one_line

WAIT_SECONDS = 30.0
"""For a machine to answer, and to go on where it stopped."""
WHOLE_SECONDS = 120.0
"""For all of a file: one that comes byte by byte ends too."""
_SCHEMES = ("http", "https")
_BLOCK_BYTES = 1 << 16
_KEPT = "/%:=&?~+!$,;'@()*[]"
"""Characters of an address that stay as they are; others, as umlauts, are written as HTTP wants them."""


class FetchedImage:
    """An image file at an address, which is fetched when it is read."""

    def __init__(self, address: str) -> None:
        """Take an address.

        Raises:
            UsageError: of no machine, with a user name, or of another kind than `http://` and `https://`.
        """
        try:
            parts = urlsplit(address)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(f"{address} is no address: {error}. Check it") from error
        if parts.scheme.lower() not in _SCHEMES or not host:
            raise UsageError(f"expected an address http://MACHINE/... or https://MACHINE/..., got {address}")
        if "@" in parts.netloc:
            raise UsageError(f"an address with a user name is not asked, of {host}. Fetch the image first: curl -u -O")
        self.address = address

    def read(self, size: int) -> bytes:
        """Return the bytes of the file.

        Args:
            size: one more than it may have.

        Raises:
            InputError: nothing or too much came, or not all of it, or not in time.
        """
        until = time.monotonic() + WHOLE_SECONDS
        asked = request.Request(quote(self.address, safe=_KEPT + "#"), headers={"User-Agent": "p4q-edge"})
        try:
            with _OPENER.open(asked, timeout=WAIT_SECONDS) as answer:
                said = answer.headers.get("Content-Length", "")
                data = b"".join(self._blocks(answer, size=size, until=until))
        except HTTPError as error:
            error.close()
            raise InputError(f"{self.address}: {error.code} {error.reason}. Check the address") from error
        except (OSError, HTTPException, ValueError) as error:
            why = one_line(error.reason) if isinstance(error, URLError) else one_line(error)
            raise InputError(f"{self.address} cannot be fetched: {why or type(error).__name__}") from error
        if not data or (said.isdecimal() and len(data) < int(said)):
            raise InputError(f"{self.address} ended after {len(data)} of {said or 'more'} bytes. Try again")
        return data

    def _blocks(self, answer: Any, *, size: int, until: float) -> Iterator[bytes]:
        count = 0
        # As it comes: `read` would wait for a whole block of a machine that sends a byte at a time.
        while block := answer.read1(_BLOCK_BYTES):
            count += len(block)
            if count >= size:
                raise InputError(f"{self.address} has {size} bytes or more. Use a smaller copy of it")
            if time.monotonic() > until:
                raise InputError(f"{self.address} took more than {WHOLE_SECONDS:.0f} s. Fetch it first, and name it")
            yield block


def image_at(word: str, *, allow_url: bool) -> str | FetchedImage:
    """Return what a word of a command line names: a path as it is, or the image at an address.

    Raises:
        UsageError: it is an address, and none may be asked, or not one of this kind.
    """
    said = not_fetched(word)
    if not said:
        return word
    if allow_url:
        return FetchedImage(word)
    if word.partition("://")[0].lower() in _SCHEMES:
        said += ", or let images be fetched: --allow-url"
    raise UsageError(said)


class _Redirects(request.HTTPRedirectHandler):
    """Follows to other addresses of the web, and never from an encrypted one to an open one."""

    max_redirections = 5

    def redirect_request(
        self, req: request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> request.Request | None:
        """Return the next request.

        Raises:
            HTTPError: it would go elsewhere.
        """
        target = urlsplit(newurl)
        if target.scheme not in _SCHEMES or "@" in target.netloc or (req.type, target.scheme) == ("https", "http"):
            reason = f"it leads to {target.scheme}://{target.hostname}, where nothing is fetched from"
            raise HTTPError(req.full_url, code, reason, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> request.OpenerDirector:
    """Return what opens addresses of the web alone; urllib's own also reads files of this machine."""
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


_OPENER = _opener()
