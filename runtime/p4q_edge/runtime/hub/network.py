"""Whether an error means that there is no way to the Hub, or that the Hub answered: the one rule for both.

Its library, open_clip and the library that speaks HTTP wrap errors in classes of their own, of which not all are
installed: an error is known by what it carries and by where its class comes from, and so are those that caused it.
"""

from __future__ import annotations

import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

_HTTP_LIBRARIES = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"})
_WITHOUT_ANSWER = frozenset({"LocalEntryNotFoundError", "OfflineModeIsEnabled"})
"""Of huggingface_hub, for a file that is not in its cache and could not be asked for."""


_FILES = "/resolve/"
_TAGS, _COMMIT = ("ETag", "X-Linked-Etag"), "X-Repo-Commit"
_NO_NAMES = frozenset({"", ".", ".."})
_MAX_NAME, _REFUSED = 200, 400


class NotTheHubError(Exception):
    """An answer that the Hub does not give; `asked_hub` says so in our words."""


@contextmanager
def guarded_answers(library: ModuleType) -> Iterator[None]:
    """Look at each answer before the library takes the name of a file, or of a folder, from it.

    The library keeps a file under the tag that the answer gives, and notes an absent one under the commit, and would
    follow one that leads out of its cache: a server that `HF_ENDPOINT` names could write, or replace, any file of the
    user.
    """
    _GUARD.begin(library)
    try:
        yield
    finally:
        _GUARD.end()


class _Guard:
    """Looks at the answers of whichever session the library has, as long as somebody asks for it.

    The library makes itself another session where a connection was refused, and asks again with that one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._undo: list[Callable[[], None]] = []

    def begin(self, library: ModuleType) -> None:
        """Look at all answers from now on."""
        session = library.get_session()
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._follow(library.get_session)
            self._look_at(session)

    def end(self) -> None:
        """Look at none any more, unless somebody else asked for it."""
        with self._lock:
            self._users -= 1
            while not self._users and self._undo:
                self._undo.pop()()

    def _follow(self, whole: Callable[[], Any]) -> None:
        """Look at the answers to each session that the library's repetitions are given."""
        module = sys.modules[whole.__module__]

        def guarded() -> Any:
            session = whole()
            with self._lock:
                if self._users:
                    self._look_at(session)
            return session

        self._undo.append(lambda: setattr(module, "get_session", whole))
        module.get_session = guarded  # type: ignore[attr-defined]

    def _look_at(self, session: Any) -> None:
        # Before its version 1 the library spoke HTTP through requests, which calls them otherwise.
        hooks = (session.event_hooks if hasattr(session, "event_hooks") else session.hooks)["response"]
        if _require_names not in hooks:
            hooks.append(_require_names)
            self._undo.append(lambda: hooks.remove(_require_names))


_GUARD = _Guard()


def _require_names(response: Any, **_: object) -> None:
    """Raise where an answer about a file names it, or its commit, by what is no name.

    The library asks for the tag with HEAD, and takes it from wherever it was sent on the same server.
    """
    request = response.request
    if request.method != "HEAD" and _FILES not in urlsplit(str(request.url)).path:
        return
    _require_name(_COMMIT, response.headers.get(_COMMIT))
    if response.status_code >= _REFUSED:
        return  # the tag of a refusal names no file, and may have any character
    for header in _TAGS:
        if (stated := response.headers.get(header)) is not None:
            _require_name(header, re.sub(r'^W/|"', "", stated))
            _require_name(header, stated.lstrip("W/").strip('"'))  # as the library reads it


def _require_name(header: str, stated: str | None) -> None:
    if stated is not None and ("/" in stated or "\\" in stated or stated in _NO_NAMES or len(stated) > _MAX_NAME):
        raise NotTheHubError(f"{header} is {stated[:40]!r}")


def answer_of(error: BaseException | None) -> int | None:
    """Return the status of the HTTP response that an error, or what caused it, carries; None where none came."""
    for one in _chain(error):
        status = one.code if isinstance(one, HTTPError) else getattr(_response(one), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def strange_answer(error: BaseException | None) -> BaseException | None:
    """Return what an error was raised from, if that is an answer that the Hub does not give; None for other errors."""
    strange = (NotTheHubError.__name__, "FileMetadataError")
    return next((one for one in _chain(error) if type(one).__name__ in strange), None)


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
