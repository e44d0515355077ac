"""The page: files of this package, read once; nothing of it is loaded from elsewhere."""

from __future__ import annotations

from importlib.resources import files
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from p4q_edge.runtime.http.settings import PAGE_FILES

_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_routes() -> list[Route]:
    """Return a route for each file of the page."""
    folder = files("p4q_edge.runtime.http") / "page"
    found = {path: ((folder / name).read_bytes(), _KINDS[PurePath(name).suffix]) for path, name in PAGE_FILES.items()}

    async def page(request: Request) -> Response:
        content, kind = found[request.url.path]
        # Asked for again at each visit: a newer version of the server comes with a newer page.
        return Response(content, headers={"content-type": kind, "cache-control": "no-cache"})

    return [Route(path, page, methods=["GET"]) for path in found]
