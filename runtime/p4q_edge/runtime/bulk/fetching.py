"""Images at addresses of the web, for a command whose user said that other machines may be asked."""

from __future__ import annotations

import errno
import io
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPException, HTTPResponse, InvalidURL
from typing import IO, TYPE_CHECKING, Any
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit, urlunsplit

from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.storage import not_fetched, one_line, printable

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

WAIT_SECONDS = 30.0
"""For a machine to answer, under all addresses that its name has together, and to go on where it stopped."""
WHOLE_SECONDS = 120.0
"""For all that a machine says: a file, or what comes before it, that comes byte by byte ends too."""
Silent = dict[str, OSError | None]
"""Machines that did not answer; with the reason where it is the name that is unknown."""
_SCHEMES = ("http", "https")
_BUSY = frozenset({408, 425, 429})
"""What a machine answers besides 5xx that has more to do than it can, or had to wait too long."""
_NOT_THERE = (TimeoutError, ConnectionRefusedError, socket.gaierror)
_NO_WAY = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH})
_BLOCK_BYTES = 1 << 16
_KEPT = "/%:=&?~+!$,;'@()*[]#"
"""Characters of an address that stay as they are; others, as umlauts, are written as HTTP wants them."""


class FetchedImage:
    """An image file at an address, which is fetched when it is read."""

    def __init__(self, address: str, silent: Silent | None = None) -> None:
        """Take an address.

        Args:
            address: of a file.
            silent: machines that did not answer, with the others that share it: none of them is waited for again.

        Raises:
            UsageError: of no machine, with a user name, or of another kind than `http://` and `https://`.
        """
        try:
            parts = urlsplit(address)
            host, _ = parts.hostname, parts.port
            # A machine's name has a form of its own in letters of ASCII; bytes of an argument that are no text stay.
            machine = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
            asked = quote(urlunsplit(parts._replace(netloc=machine)), safe=_KEPT, errors="surrogateescape")
        except ValueError as error:
            raise UsageError(f"{address} is no address: {error}. Check it") from error
        if parts.scheme.lower() not in _SCHEMES or not host:
            raise UsageError(f"expected an address http://MACHINE/... or https://MACHINE/..., got {address}")
        if "@" in parts.netloc:
            raise UsageError(f"an address with a user name is not asked, of {host}. Fetch the image first: curl -u -O")
        self.address, self._asked, self._silent = address, asked, {} if silent is None else silent
        self._led = ""

    @property
    def told(self) -> str:
        """What messages call it: its address, and the one that it led to when it was last read."""
        return f"{self.address}, which leads to {self._led}" if self._led else self.address

    def _lead(self, target: str) -> None:
        self._led = target

    def read(self, size: int) -> bytes:
        """Return the bytes of the file.

        Args:
            size: one more than it may have.

        Raises:
            InputError: nothing or too much came, or not all of it, or not in time.
        """
        asked = request.Request(self._asked, headers={"User-Agent": "p4q-edge"})
        self._led = ""
        try:
            until = time.monotonic() + WHOLE_SECONDS
            opener = _opener(_Redirects(self._lead), until=until, silent=self._silent)
            with opener.open(asked, timeout=WAIT_SECONDS) as answer:
                said: int | None = answer.length
                try:
                    data = b"".join(self._blocks(answer, size=size, said=said or 0))
                except TimeoutError:
                    self._silent[urlsplit(answer.url).netloc] = None
                    raise
        except HTTPError as error:
            error.close()
            advice = "Try again later" if error.code >= 500 or error.code in _BUSY else "Check the address"
            said_why = f"{error.code} {one_line(error.reason)}".rstrip()
            raise InputError(f"{self.told}: {said_why}. {advice}") from error
        except _TooLateError as error:
            raise InputError(
                f"{self.told} took more than {WHOLE_SECONDS:.0f} s. Fetch it first, and name it"
            ) from error
        except (OSError, HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            why = one_line(reason) or type(error).__name__
            unknown = isinstance(reason, socket.gaierror | ValueError | InvalidURL)
            advice = "Check the address and the network" if unknown else "Try again later"
            raise InputError(f"{self.told} cannot be fetched: {why}. {advice}") from error
        if not data or len(data) < (said or 0):
            raise InputError(f"{self.told} ended after {len(data)} of {said or 'more'} bytes. Try again later")
        return data

    def _blocks(self, answer: Any, *, size: int, said: int) -> Iterator[bytes]:
        count = 0
        # As it comes: `read` would wait for a whole block of a machine that sends a byte at a time.
        while said < size and (block := answer.read1(_BLOCK_BYTES)):
            count += len(block)
            if count >= size:
                break
            yield block
        if max(count, said) >= size:
            raise InputError(f"{self.told} has {size} bytes or more. Use a smaller copy of it")


def image_at(word: str, *, allow_url: bool, silent: Silent | None = None) -> str | FetchedImage:
    """Return what a word of a command line names: a path as it is, or the image at an address.

    Args:
        word: of a command line.
        allow_url: whether the web may be asked.
        silent: machines that did not answer, of all words together; see `FetchedImage`.

    Raises:
        UsageError: it is an address, and none may be asked, or not one of this kind.
    """
    said = not_fetched(word)
    if not said:
        return word
    if allow_url:
        return FetchedImage(word, silent)
    if word.partition("://")[0].lower() in _SCHEMES:
        said += ", or let images be fetched: --allow-url"
    raise UsageError(said)


class _Redirects(request.HTTPRedirectHandler):
    """Follows to other addresses of the web, and never from an encrypted one to an open one."""

    max_redirections = 5

    def __init__(self, lead: Callable[[str], None]) -> None:
        """Tell `lead` of each address that it goes to, without what may be secret behind a question mark."""
        self._lead = lead

    def redirect_request(
        self, req: request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> request.Request | None:
        """Return the next request.

        Raises:
            HTTPError: it would go elsewhere.
        """
        fp.close()  # else all that comes with it would be read, however much that is
        target = urlsplit(newurl)
        if target.scheme not in _SCHEMES or "@" in target.netloc or (req.type, target.scheme) == ("https", "http"):
            reason = f"it leads to {target.scheme}://{target.hostname}, where nothing is fetched from"
            raise HTTPError(req.full_url, code, reason, headers, fp)
        self._lead(printable(one_line(urlunsplit((target.scheme, target.netloc, target.path, "", "")))))
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _TooLateError(Exception):
    """The time for all of a file is over."""


class _Arriving(io.RawIOBase):
    """What a machine sends, up to a moment."""

    def __init__(self, stream: io.RawIOBase, connection: socket.socket, *, until: float) -> None:
        self._stream, self._connection, self._until = stream, connection, until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        """Wait for some bytes and put them into `buffer`.

        Raises:
            _TooLateError: it is later than that moment.
        """
        left = self._until - time.monotonic()
        if left <= 0:
            raise _TooLateError
        self._connection.settimeout(min(WAIT_SECONDS, left))
        try:
            return self._stream.readinto(buffer)
        except TimeoutError as error:
            if left < WAIT_SECONDS:
                raise _TooLateError from error
            raise

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Answer(HTTPResponse):
    """An answer whose headers and bytes come before a moment."""

    def __init__(self, sock: socket.socket, *words: Any, until: float, **options: Any) -> None:
        super().__init__(sock, *words, **options)
        self.fp = io.BufferedReader(_Arriving(self.fp.detach(), sock, until=until))


class _Within(request.AbstractHTTPHandler):
    """Has connections answer before a moment, and machines that did not answer left alone."""

    def __init__(self, *, until: float, silent: Silent) -> None:
        super().__init__()
        self._until, self._silent = until, silent

    def do_open(self, http_class: Any, req: request.Request, **options: Any) -> HTTPResponse:
        """Return the answer of the machine that is asked.

        Raises:
            URLError: it cannot be reached, or could not be before.
        """

        def connection(*words: Any, **more: Any) -> Any:
            made = http_class(*words, **more)
            made.response_class = partial(_Answer, until=self._until)
            made._create_connection = _connected
            return made

        machine = urlsplit(req.full_url).netloc  # and not `req.host`, which is the proxy's where there is one
        if machine in self._silent:
            raise URLError(self._silent[machine] or f"{machine} did not answer before, and is not asked again")
        try:
            return super().do_open(connection, req, **options)
        except (OSError, _TooLateError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            if isinstance(reason, (*_NOT_THERE, _TooLateError)) or getattr(reason, "errno", None) in _NO_WAY:
                self._silent[machine] = reason if isinstance(reason, socket.gaierror) else None
            raise


def _connected(
    place: tuple[str, int], timeout: float = WAIT_SECONDS, source_address: tuple[str, int] | None = None
) -> socket.socket:
    """Return a connection to a machine; all addresses of its name together get the time that one has.

    Raises:
        OSError: of the last address; none could be reached.
    """
    until = time.monotonic() + timeout
    found = socket.getaddrinfo(*place, type=socket.SOCK_STREAM)
    failed: OSError = OSError(f"{place[0]} has no address")
    for number, (family, kind, protocol, _, address) in enumerate(found):
        tried = socket.socket(family, kind, protocol)
        try:
            tried.settimeout(max(0.001, (until - time.monotonic()) / (len(found) - number)))
            if source_address is not None:
                tried.bind(source_address)
            tried.connect(address)
        except OSError as error:
            tried.close()
            failed = error
            continue
        tried.settimeout(timeout)
        return tried
    raise failed


class _Http(_Within, request.HTTPHandler):
    """Of `http://`."""


class _Https(_Within, request.HTTPSHandler):
    """Of `https://`."""


def _opener(redirects: _Redirects, *, until: float, silent: Silent) -> request.OpenerDirector:
    """Return what opens addresses of the web alone, up to a moment; urllib's own also reads files of this machine."""
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        _Http(until=until, silent=silent),
        _Https(until=until, silent=silent),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        request.UnknownHandler(),
        redirects,
    ):
        opener.add_handler(handler)
    return opener
