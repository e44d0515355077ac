"""The application and the process around it: from an opened classifier to a server that ends when it is asked to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from p4q_edge.runtime.classification import ZeroShotClassifier
from p4q_edge.runtime.errors import InputError, P4QEdgeError, UsageError
from p4q_edge.runtime.http.api import api_routes
from p4q_edge.runtime.http.guard import Guard, refusal
from p4q_edge.runtime.http.kserve import kserve_routes
from p4q_edge.runtime.http.metrics import Metrics
from p4q_edge.runtime.http.pages import page_routes
from p4q_edge.runtime.http.service import Service
from p4q_edge.runtime.http.settings import ServeOptions

logger = logging.getLogger(__name__)

CLIENT_GONE = 499
"""Status of a request whose client left before it was answered; servers have agreed on it, the standard has none."""
_BACKLOG = 256
_KEEP_ALIVE_SECONDS = 15


def make_app(classifier: ZeroShotClassifier, engine: Path, options: ServeOptions) -> Guard:
    """Return the ASGI application that serves a classifier, which stays its maker's to close.

    Args:
        classifier: the engine, opened.
        engine: its file, with which heads are saved.
        options: how it is reached, and how much it takes in.
    """

    metrics = Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # Made here, in the event loop that it is used in.
        service = Service(classifier, engine=engine, options=options, metrics=metrics)
        service.start()
        app.state.service = service
        yield
        await service.stop()

    inner = Starlette(
        routes=[*page_routes(), *api_routes(), *kserve_routes()],
        exception_handlers={
            P4QEdgeError: _failed,
            HTTPException: _refused,
            ClientDisconnect: _gone,
            Exception: _unforeseen,
        },
        lifespan=lifespan,
    )
    return Guard(inner, options=options, metrics=metrics)


async def _failed(request: Request, error: Exception) -> Response:
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    if isinstance(error, InputError):
        status = HTTPStatus.UNPROCESSABLE_ENTITY
    elif isinstance(error, UsageError):
        status = HTTPStatus.BAD_REQUEST
    else:
        logger.error("%s %s: %s", request.method, request.url.path, error)
    return refusal(request.url.path, status, kind=type(error).__name__, message=str(error))


async def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    kind = HTTPStatus(error.status_code).phrase
    headers = dict(error.headers or {})
    message = error.detail if error.detail != kind else _in_words(request, error, kind)
    return refusal(request.url.path, error.status_code, kind=kind, message=message, headers=headers)


def _in_words(request: Request, error: HTTPException, kind: str) -> str:
    """Return what a refusal of Starlette's means, which says its status alone."""
    path = request.url.path[:100]
    if error.status_code == HTTPStatus.NOT_FOUND:
        return f"there is no address {path!r}. GET /openapi.json describes those that there are."
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return f"{path!r} takes {(error.headers or {}).get('Allow', 'another method')}, got {request.method[:20]}."
    return f"{kind}."


async def _gone(request: Request, error: Exception) -> Response:
    # Nobody reads it; the status is for the counters.
    return Response(status_code=CLIENT_GONE)


async def _unforeseen(request: Request, error: Exception) -> Response:
    # Starlette raises it again, so that the log has its traceback; what was in it is none of the client's business.
    return refusal(
        request.url.path, HTTPStatus.INTERNAL_SERVER_ERROR, kind="Internal", message="the server failed; see its log."
    )


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `_until_asked`: after a stop in good order the process ends with 0, not by the signal."""
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop in good order, and at once when asked again."""
        self.force_exit, self.should_exit = self.should_exit, True
        if self.force_exit:
            # From Python 3.12 on asyncio waits for every open connection, whatever uvicorn does.
            for connection in list(self.server_state.connections):
                connection.transport.abort()


def listen(options: ServeOptions) -> socket.socket:
    """Return a socket that listens where the options say.

    Raises:
        UsageError: the address is no address of this machine, or taken.
    """
    host = options.host.strip("[]")
    try:
        found = socket.getaddrinfo(host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(_BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise UsageError(
            f"cannot listen at {options.host} port {options.port}: {error.strerror or error}. Add another --port, or "
            "another --host."
        ) from error
    return sock


def url_of(sock: socket.socket, options: ServeOptions) -> str:
    """Return the address of the page."""
    port = sock.getsockname()[1]
    host = options.host if ":" not in options.host else f"[{options.host.strip('[]')}]"
    return f"{options.scheme}://{host}:{port}"


def run_server(app: Guard, sock: socket.socket, options: ServeOptions, *, ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM; requests that are worked on are answered first. A second signal ends it at once.

    Args:
        app: the application.
        sock: from `listen`; closed at the end.
        options: certificate, and how long a stop may take.
        ready: called when requests are answered.
    """
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(options.limits.stop_seconds),
        limit_concurrency=None,
        ssl_certfile=None if options.certificate is None else str(options.certificate),
        ssl_keyfile=None if options.key is None else str(options.key),
    )
    asyncio.run(_until_asked(_Server(config), sock, ready))


async def _until_asked(server: uvicorn.Server, sock: socket.socket, ready: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    if os.name == "posix":
        for number in (signal.SIGINT, signal.SIGTERM):
            # One that is ignored, as of a job in the background, stays so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, server.handle_exit, number, None)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if not serving.done():
        ready()
    await serving
