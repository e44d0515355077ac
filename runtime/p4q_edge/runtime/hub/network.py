"""Whether an error means that there is no way to the Hub, or that the Hub answered: the one rule for both.

Its library, open_clip and the library that speaks HTTP wrap errors in classes of their own, of which not all are
installed: an error is known by what it carries and by where its class comes from, and so are those that caused it.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

_HTTP_LIBRARIES = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"})
_WITHOUT_ANSWER = frozenset({"LocalEntryNotFoundError", "OfflineModeIsEnabled"})
"""Of huggingface_hub, for a file that is not in its cache and could not be asked for."""


_FILES = "/resolve/"
_TAGS = ("ETag", "X-Linked-Etag")
_MAX_TAG, _REFUSED = 200, 400


class NotTheHubError(Exception):
    """An answer that the Hub does not give; `asked_hub` says so in our words."""


@contextmanager
def guarded_answers(library: ModuleType) -> Iterator[None]:
    """Look at each answer before the library takes the name of a file from it.

    The library keeps a file under the tag that the answer gives, and would follow one that leads out of its cache: a
    server that `HF_ENDPOINT` names could write, or replace, any file of the user.
    """
    session = library.get_session()
    # Before its version 1 the library spoke HTTP through requests, which calls them otherwise.
    hooks = (session.event_hooks if hasattr(session, "event_hooks") else session.hooks)["response"]
    hooks.append(_require_names)
    try:
        yield
    finally:
        hooks.remove(_require_names)


def _require_names(response: Any, **_: object) -> None:
    """Raise where an answer about a file names it by what is no name.

    The library asks for the tag with HEAD, and takes it from wherever it was sent on the same server.
    """
    request = response.request
    of_a_file = request.method == "HEAD" or _FILES in urlsplit(str(request.url)).path
    if response.status_code >= _REFUSED or not of_a_file:
        return  # the tag of a refusal names no file, and may have any character
    for header in _TAGS:
        if (stated := response.headers.get(header)) is None:
            continue
        # As it is meant, and as the library reads it.
        for tag in (re.sub(r'^W/|"', "", stated), stated.lstrip("W/").strip('"')):
            if "/" in tag or "\\" in tag or tag in ("", ".", "..") or len(tag) > _MAX_TAG:
                raise NotTheHubError(f"{header} is {tag[:40]!r}")


def answer_of(error: BaseException | None) -> int | None:
    """Return the status of the HTTP response that an error, or what caused it, carries; None where none came."""
    for one in _chain(error):
        status = one.code if isinstance(one, HTTPError) else getattr(_response(one), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def strange_answer(error: BaseException | None) -> BaseException | None:
    """Return what an error was raised from, if that is an answer that the Hub does not give; None for other errors."""
    while error is not None:
        if isinstance(error, NotTheHubError) or type(error).__name__ == "FileMetadataError":
            return error
        error = error.__cause__
    return None


def is_hub_trouble(status: int) -> bool:
    """Return whether a status tells of trouble of the Hub, which passes: it is slow, asked too much, or fails."""
    return status in (408, 429) or status >= 500


def network_cause(error: BaseException | None) -> BaseException | None:
    """Return the error of the connection, of a chain of errors that are of a network; None for other chains.

    Who got an answer, whatever it says, has a network.
    """
    if answer_of(error) is not None:
        return None
    chain = list(_chain(error))
    found = next((one for one in chain if _is_of_connection(one)), None)
    return found or next((one for one in chain if type(one).__name__ in _WITHOUT_ANSWER), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _response(error: BaseException) -> object:
    try:
        return getattr(error, "response", None)
    except Exception:  # noqa: BLE001  # a property of another library, which may ask for what is not there
        return None


def _is_of_connection(error: BaseException) -> bool:
    if type(error).__name__ in _WITHOUT_ANSWER:  # the library's own words; what is behind them says more
        return False
    roots = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    known = isinstance(error, socket.gaierror | ConnectionError | TimeoutError | URLError)
    return known or bool(roots & _HTTP_LIBRARIES)
