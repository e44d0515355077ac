"""What is a missing network and what is an answer, whichever library wraps it."""

from __future__ import annotations

import socket
import sys
from email.message import Message
from types import ModuleType, SimpleNamespace
from typing import cast
from urllib.error import HTTPError, URLError

import pytest

from p4q_edge.runtime.errors import P4QEdgeError
from p4q_edge.runtime.hub import HubAddress, answer_of, guarded_answers, network_cause
from p4q_edge.runtime.hub.library import asked_hub


def of_library(name: str, library: str) -> type[Exception]:
    """Return a class as another library defines it, which need not be installed."""
    return type(name, (Exception,), {"__module__": library})


def wrapped(outer: Exception, inner: BaseException) -> Exception:
    outer.__cause__ = inner
    return outer


def with_answer(error: Exception, status: int) -> Exception:
    error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror("no name"),
        ConnectionRefusedError("refused"),
        TimeoutError("late"),
        URLError("no route"),
        of_library("ConnectError", "httpx")("refused"),
        of_library("ReadTimeout", "requests.exceptions")("late"),
        of_library("ProtocolError", "urllib3.exceptions")("broken"),
        of_library("OfflineModeIsEnabled", "huggingface_hub.errors")("offline"),
        wrapped(RuntimeError("open_clip's words"), ConnectionResetError("broken")),
    ],
)
def test_these_are_of_a_network(error: Exception) -> None:
    assert network_cause(error) is not None
    assert answer_of(error) is None


def test_the_error_of_the_connection_is_what_is_shown() -> None:
    refused = of_library("ConnectError", "httpx")("refused")
    missing = of_library("LocalEntryNotFoundError", "huggingface_hub.errors")("not in the cache")
    assert network_cause(wrapped(missing, refused)) is refused


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (with_answer(of_library("HTTPStatusError", "httpx")("Server Error"), 503), 503),
        (with_answer(ConnectionError("Too Many Requests"), 429), 429),
        (HTTPError("http://h", 404, "Not Found", Message(), None), 404),
        (
            wrapped(
                of_library("LocalEntryNotFoundError", "huggingface_hub.errors")("not in the cache"),
                with_answer(of_library("HfHubHTTPError", "huggingface_hub.errors")("Bad Gateway"), 502),
            ),
            502,
        ),
    ],
)
def test_who_got_an_answer_has_a_network(error: Exception, status: int) -> None:
    assert answer_of(error) == status
    assert network_cause(error) is None


@pytest.mark.parametrize("error", [ValueError("damaged"), FileNotFoundError("none"), KeyError("x")])
def test_others_are_neither(error: Exception) -> None:
    assert network_cause(error) is None
    assert answer_of(error) is None
    assert network_cause(None) is None


def test_errors_that_cause_each_other_come_to_an_end() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert network_cause(first) is None


def test_an_answer_behind_a_missing_file_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = pytest.importorskip("huggingface_hub.errors", reason="needs the extra hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    answer = with_answer(ConnectionError("503 Server Error"), 503)
    said = "the Hub answers with error 503 for hf:ann/cups"
    with pytest.raises(P4QEdgeError, match=said) as caught, asked_hub(HubAddress(repo="ann/cups")):
        raise errors.LocalEntryNotFoundError("not in the cache") from answer
    assert caught.value.exit_code == 1


def test_answers_are_looked_at_until_nobody_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    http = ModuleType("library_http")
    sessions = [SimpleNamespace(event_hooks={"response": []}) for _ in range(2)]
    now = [0]

    def get_session() -> SimpleNamespace:
        return sessions[now[0]]

    get_session.__module__ = http.__name__
    http.get_session = get_session  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, http.__name__, http)
    library = cast(ModuleType, SimpleNamespace(get_session=get_session))
    hooks = [session.event_hooks["response"] for session in sessions]
    first, second = guarded_answers(library), guarded_answers(library)
    first.__enter__()
    second.__enter__()
    assert [len(kept) for kept in hooks] == [1, 0]
    now[0] = 1  # a connection was refused
    first.__exit__(None, None, None)
    assert http.get_session() is sessions[1]
    assert [len(kept) for kept in hooks] == [1, 1]
    second.__exit__(None, None, None)
    assert (hooks, http.get_session) == ([[], []], get_session)
