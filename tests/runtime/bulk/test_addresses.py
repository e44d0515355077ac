"""Addresses of images: which are none, where one may lead, and how long all machines of a name are waited for."""

from __future__ import annotations

import io
import socket

import pytest

from p4q_edge.runtime.bulk import FetchedImage, fetching
from p4q_edge.runtime.errors import InputError, UsageError

MOST = 1 << 20


def test_all_addresses_of_a_name_have_the_time_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may stand for many addresses, none of which answers."""
    given: list[float] = []

    class Dead(socket.socket):
        def connect(self, place: object) -> None:
            given.append(self.gettimeout() or 0)
            raise TimeoutError(f"{place} timed out")

    entry = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("192.0.2.1", 80))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [entry] * 10)
    monkeypatch.setattr(socket, "socket", Dead)
    with pytest.raises(InputError, match="timed out. Try again later"):
        FetchedImage("http://many.example/a.png").read(MOST)
    assert given[0] == pytest.approx(fetching.WAIT_SECONDS / 10, rel=0.01)
    assert len(given) == 10


@pytest.mark.parametrize(
    "address",
    ["https:///a.png", "http://a:b/c.png", "http://[::1/a.png", "https://me:secret@a/b.png", "http://\udcff/a.png"],
)
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(UsageError, match="address") as raised:
        FetchedImage(address)
    assert "secret" not in str(raised.value)


def test_an_encrypted_address_leads_to_no_open_one() -> None:
    asked = fetching.request.Request("https://a/b.png")
    handler = fetching._Redirects(lambda target: pytest.fail(f"it leads to {target}"))
    with pytest.raises(fetching.HTTPError, match="leads to http://a"):
        handler.redirect_request(asked, io.BytesIO(), 302, "Found", {}, "http://a/b.png")
