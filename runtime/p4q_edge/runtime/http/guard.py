"""Who is let in, and how much: the outermost layer of the server, which sees every request before anything else does.

A browser lets any page of the web send requests to this machine. Against that, names under which the server is asked
are checked (a page may give its own name this machine's address), and so is where a request that changes something
comes from.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from p4q_edge.runtime.http.documents import Problem, Refusal
from p4q_edge.runtime.http.metrics import Gauge, Metrics
from p4q_edge.runtime.http.settings import LOOPBACK_NAMES, OPEN_PATHS, ServeOptions

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
RETRY_AFTER_SECONDS = 1
_DRAIN_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class _Refused:
    status: int
    reason: str
    message: str

    def response(self, path: str) -> Response:
        """Return the answer; clients of KServe's protocol expect a text as `error`."""
        headers = {}
        if self.status == 401:
            headers["www-authenticate"] = 'Bearer realm="p4q-edge"'
        if self.status == 503:
            headers["retry-after"] = str(RETRY_AFTER_SECONDS)
        return refusal(path, self.status, kind=self.reason, message=self.message, headers=headers)


def refusal(
    path: str, status: int, *, kind: str, message: str, headers: MutableMapping[str, str] | None = None
) -> Response:
    """Return an error as JSON, in KServe's form below `/v2` and as a `Refusal` elsewhere."""
    content: Any = Refusal(error=Problem(type=kind, message=message))
    if path == "/v2" or path.startswith("/v2/"):
        content = {"error": message}
    return Response(msgspec.json.encode(content), status, dict(headers or {}), "application/json")


class Guard:
    """Lets requests in, counts them, and adds the headers that keep a browser careful."""

    def __init__(self, app: ASGIApp, *, options: ServeOptions, metrics: Metrics) -> None:
        self._app, self._options, self.metrics = app, options, metrics
        metrics.gauges.append(
            Gauge(name="p4q_edge_requests_now", about="Requests that are worked on.", read=lambda: float(self._working))
        )
        self._hosts = frozenset(name.lower() for name in (*LOOPBACK_NAMES, options.host, *options.allowed_hosts))
        self._working = 0
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the application do it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), [500]

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self._refused(scope)
        if refused is None and not self._room(scope):
            refused = _Refused(status=503, reason="busy", message="all places are taken. Ask again in a moment.")
        try:
            if refused is not None:
                self.metrics.refused.add(refused.reason)
                await _drain(receive, most=self._limit(scope))
                await refused.response(scope["path"])(scope, receive, answer)
            else:
                await self._work(scope, receive, answer)
        finally:
            route = getattr(scope.get("endpoint"), "__name__", "none")
            self.metrics.requests.add(route, _method(scope), str(status[0]))
            self.metrics.request_seconds.observe(time.perf_counter() - started, route)

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(self, receive, most=self._limit(scope), seconds=self._options.limits.body_seconds)
        self._working += 1
        try:
            await self._app(scope, body, send)
        finally:
            self._working -= 1
            self._held_bytes -= body.read

    def _refused(self, scope: Scope) -> _Refused | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        # With a token, a page that borrowed this server's address cannot show it; the name is no matter then.
        if self._options.token is None and _name(host) not in self._hosts:
            return _Refused(
                status=421,
                reason="host",
                message=f"this server does not answer to the name {host[:100]!r}. Ask 127.0.0.1, or add --allow-host.",
            )
        if scope["method"] not in SAFE_METHODS and _is_foreign(headers, host):
            return _Refused(status=403, reason="origin", message="pages of other origins may not change anything here.")
        if scope["path"] not in OPEN_PATHS and not self._has_token(headers):
            return _Refused(status=401, reason="token", message="send the server's token: Authorization: Bearer TOKEN")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._limit(scope):
            return _Refused(status=413, reason="size", message=_too_large(self._limit(scope)))
        return None

    def _has_token(self, headers: Headers) -> bool:
        if self._options.token is None:
            return True
        kind, _, shown = headers.get("authorization", "").partition(" ")
        # Both in bytes, which may hold anything, and in a time that tells nothing of how much of it is right.
        same = hmac.compare_digest(shown.strip().encode("latin-1", "replace"), self._options.token.encode())
        return same and kind.lower() == "bearer"

    def _room(self, scope: Scope) -> bool:
        # Who watches over the server is answered also when it is busy.
        if scope["path"] in OPEN_PATHS or scope["path"] == "/metrics":
            return True
        return self._working < self._options.limits.requests

    def _limit(self, scope: Scope) -> int:
        limits = self._options.limits
        return limits.teach_bytes if scope["path"].endswith("/teach") else limits.body_bytes

    def take(self, count: int) -> bool:
        """Hold this number of bytes more, unless all requests together would hold too many."""
        if self._held_bytes + count > self._options.limits.held_bytes:
            return False
        self._held_bytes += count
        return True


class _Body:
    """Reads the body of a request within its limits."""

    def __init__(self, guard: Guard, receive: Receive, *, most: int, seconds: float) -> None:
        self._guard, self._receive, self._most = guard, receive, most
        self._until = time.monotonic() + seconds
        self._complete = False
        self.read = 0

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            left = max(0.0, self._until - time.monotonic())
            message = await asyncio.wait_for(self._receive(), timeout=left)
        except asyncio.TimeoutError as error:
            raise HTTPException(408, "the request did not arrive in time. Send it again.") from error
        count = len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self.read + count > self._most:
            raise HTTPException(413, _too_large(self._most))
        if not self._guard.take(count):
            raise HTTPException(
                503, "too much is being sent at once. Ask again in a moment.", {"retry-after": str(RETRY_AFTER_SECONDS)}
            )
        self.read += count
        return message


def _too_large(most: int) -> str:
    return f"a request may have at most {most} bytes. Send fewer images at once, or smaller ones."


def _method(scope: Scope) -> str:
    """Return the method, where it is one of those that the server knows: anybody can invent others."""
    return scope["method"] if scope["method"] in (*SAFE_METHODS, "POST", "PUT", "DELETE") else "other"


def _name(host: str) -> str:
    """Return the name in a `Host` header, without its port."""
    head, colon, port = host.strip().lower().rpartition(":")
    return head if colon and port.isdecimal() else host.strip().lower()


def _is_foreign(headers: Headers, host: str) -> bool:
    """Return whether a browser sends a request for a page of another origin; other programs do not say."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    try:
        return origin is not None and urlsplit(origin).netloc.lower() != host.lower()
    except ValueError:  # such as a bracket that nothing closes
        return True


async def _drain(receive: Receive, *, most: int) -> None:
    """Read what a refused client still sends, within bounds: it reads the answer only when it has sent all."""
    read, until = 0, time.monotonic() + _DRAIN_SECONDS
    while read <= most:
        try:
            message = await asyncio.wait_for(receive(), timeout=max(0.0, until - time.monotonic()))
        except asyncio.TimeoutError:
            return
        read += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
