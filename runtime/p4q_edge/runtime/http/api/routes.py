"""The addresses of the interface."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from p4q_edge.runtime.http import metrics as counted
from p4q_edge.runtime.http.api.answers import classify, document, embed
from p4q_edge.runtime.http.api.heads import choose_head, list_heads, save_head, teach_from_request
from p4q_edge.runtime.http.api.uploads import service_of
from p4q_edge.runtime.http.documents import Health
from p4q_edge.runtime.http.openapi import openapi_document


async def healthz(request: Request) -> Response:
    """Say that the server answers."""
    service = service_of(request)
    return document(Health(status="ok", engine=service.name, version=service.version))


async def metrics(request: Request) -> Response:
    """Return the counters in Prometheus' text format."""
    return Response(service_of(request).metrics.text(), headers={"content-type": counted.CONTENT_TYPE})


async def openapi(request: Request) -> Response:
    """Describe this interface."""
    service = service_of(request)
    return JSONResponse(openapi_document(version=service.version, with_token=service.options.token is not None))


def api_routes() -> list[Route]:
    """Return the routes."""
    return [
        Route("/classify", classify, methods=["POST"]),
        Route("/embed", embed, methods=["POST"]),
        Route("/heads", list_heads, methods=["GET"]),
        Route("/heads/active", choose_head, methods=["PUT"]),
        Route("/heads/{name}/teach", teach_from_request, methods=["POST"]),
        Route("/heads/{name}/save", save_head, methods=["POST"]),
        Route("/healthz", healthz, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
    ]
