"""Who is let in, from where, and with how much."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

TOKEN = "a-token-of-thirty-two-characters"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "LOCALHOST:9", "[::1]:8080"])
def test_this_machine_may_be_asked_by_its_names(client: Any, host: str) -> None:
    assert client.get("/heads", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "localhost.", "a:b"]
)
def test_another_name_is_refused_as_a_page_may_have_given_it_this_address(client: Any, host: str) -> None:
    for path in ("/", "/heads", "/healthz", "/v2"):
        assert client.get(path, headers={"Host": host}).status_code == 421
    message = client.get("/heads", headers={"Host": host}).json()["error"]["message"]
    assert "add --allow-host" in message


def test_a_name_can_be_allowed(serve: Callable[..., Any]) -> None:
    client = serve(allowed_hosts=("board.local",))
    assert client.get("/heads", headers={"Host": "Board.local:8080"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "http://[::1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_pages_of_other_origins_change_nothing(client: Any, photos: list[bytes], headers: dict[str, str]) -> None:
    files = [("a", ("1.png", photos[0])), ("a", ("2.png", photos[1])), ("b", ("3.png", photos[2]))]
    for answer in (
        client.post("/heads/x/teach", files=files, headers=headers),
        client.put("/heads/active", json={"name": "built-in"}, headers=headers),
        client.post("/v2/models/tiny/infer", json={"inputs": []}, headers=headers),
    ):
        assert answer.status_code == 403
    assert len(client.get("/heads").json()["heads"]) == 1


def test_the_own_page_may(client: Any, photos: list[bytes]) -> None:
    own = {"Origin": "http://127.0.0.1:8080", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/classify", content=photos[0], headers=own).status_code == 200


def test_nothing_is_offered_to_other_origins(client: Any) -> None:
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for answer in (client.get("/heads", headers=asked), client.options("/classify", headers=asked)):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    "shown",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": b"Bearer \xff\xfe"},
    ],
)
def test_without_the_token_nothing_is_told(
    serve: Callable[..., Any], photos: list[bytes], shown: dict[str, Any]
) -> None:
    client = serve(host="0.0.0.0", token=TOKEN)
    for path in ("/heads", "/metrics", "/openapi.json", "/v2", "/v2/models/tiny", "/none"):
        answer = client.get(path, headers=shown)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert client.post("/classify", content=photos[0], headers=shown).status_code == 401


def test_with_the_token_everything_is(serve: Callable[..., Any], photos: list[bytes]) -> None:
    client = serve(host="0.0.0.0", token=TOKEN)
    # By whatever name: who knows the token is no page that borrowed this address.
    assert client.post("/classify", content=photos[0], headers={**BEARER, "Host": "board.lan"}).status_code == 200
    for path in (
        "/",
        "/page.js",
        "/teach.js",
        "/page.css",
        "/icon.svg",
        "/healthz",
        "/v2/health/live",
        "/v2/health/ready",
    ):
        assert client.get(path).status_code == 200, "the page asks for the token itself"


def test_a_request_may_be_too_large(serve: Callable[..., Any], photos: list[bytes]) -> None:
    from p4q_edge.runtime.http import Limits

    client = serve(limits=Limits(body_bytes=5000, teach_bytes=7000))
    assert client.post("/classify", content=b"x" * 5001).status_code == 413
    message = client.post("/classify", content=b"x" * 5001).json()["error"]["message"]
    assert message == "a request may have at most 5000 bytes. Send fewer images at once, or smaller ones."

    def stream() -> Any:
        for _ in range(30):
            yield b"x" * 1000

    # Without a length that could be looked at first.
    assert client.post("/classify", content=stream()).status_code == 413
    assert client.post("/heads/x/teach", content=b"x" * 6000).status_code == 400
    assert client.post("/heads/x/teach", content=b"x" * 8000).status_code == 413
    assert client.post("/classify", content=photos[0]).status_code == 200


def test_all_requests_together_hold_no_more_than_allowed(serve: Callable[..., Any], photos: list[bytes]) -> None:
    from p4q_edge.runtime.http import Limits

    client = serve(limits=Limits(held_bytes=4000, body_bytes=4000))
    answer = client.post("/heads/x/teach", files=[("cup", b"x" * 4001)])
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    # What was held is let go of.
    for photo in photos:
        assert client.post("/classify", content=photo).status_code == 200


def test_a_form_that_is_none(client: Any) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post("/classify", content=b"nothing of the kind", headers=kind).status_code == 400
    assert client.post("/classify", content=b"x", headers={"Content-Type": "multipart/form-data"}).status_code == 400


def test_a_browser_is_told_to_be_careful(client: Any) -> None:
    for path in ("/", "/heads", "/none", "/page.js"):
        headers = client.get(path).headers
        policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == policy["style-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def call(guard: Any, *, path: str = "/classify", parts: list[bytes] | None = None, wait: bool = False) -> int:
    """Call an ASGI application with a request of these parts; with `wait` its end never comes. Return the status."""
    return asyncio.run(_call(guard, path, parts or [], wait))


async def _call(guard: Any, path: str, parts: list[bytes], wait: bool) -> int:
    left, status = list(parts), []

    async def receive() -> dict[str, Any]:
        if not left and wait:
            await asyncio.sleep(60)
        body = left.pop(0) if left else b""
        return {"type": "http.request", "body": body, "more_body": bool(left) or wait}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            status.append(message["status"])

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1")],
    }
    await guard(scope, receive, send)
    return int(status[0])


def test_there_are_only_so_many_places() -> None:
    from p4q_edge.runtime.http import Limits, ServeOptions
    from p4q_edge.runtime.http.guard import Guard
    from p4q_edge.runtime.http.metrics import Metrics

    async def scenario() -> None:
        go_on = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await go_on.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        guard = Guard(app, options=ServeOptions(limits=Limits(requests=2)), metrics=Metrics())
        first = [asyncio.create_task(_call(guard, "/classify", [b"x"], False)) for _ in range(2)]
        await asyncio.sleep(0)
        assert await _call(guard, "/classify", [b"x"], False) == 503
        assert guard.metrics.refused.value("busy") == 1
        watched = asyncio.create_task(_call(guard, "/healthz", [], False))
        go_on.set()
        assert await asyncio.gather(*first) == [200, 200]
        assert await watched == 200, "who watches over the server is answered although it is busy"
        assert await _call(guard, "/classify", [b"x"], False) == 200

    asyncio.run(scenario())


def test_a_request_that_never_ends_is_given_up() -> None:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from p4q_edge.runtime.http import Limits, ServeOptions
    from p4q_edge.runtime.http.guard import Guard
    from p4q_edge.runtime.http.metrics import Metrics

    async def endpoint(request: Request) -> Response:
        return Response(str(len(await request.body())))

    app = Starlette(routes=[Route("/classify", endpoint, methods=["POST"])])
    guard = Guard(app, options=ServeOptions(limits=Limits(body_seconds=0.05)), metrics=Metrics())
    assert call(guard, parts=[b"some"], wait=True) == 408
    assert call(guard, parts=[b"all"]) == 200
