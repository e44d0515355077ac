"""The page: three files and an icon of this package, read once; nothing of it is loaded from elsewhere."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def page_routes() -> list[Route]:
    """Return a route for each file of the page."""
    folder = files("p4q_edge.runtime.http") / "page"
    found = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}

    async def page(request: Request) -> Response:
        content, kind = found[request.url.path]
        # Asked for again at each visit: a newer version of the server comes with a newer page.
        return Response(content, headers={"content-type": kind, "cache-control": "no-cache"})

    return [Route(path, page, methods=["GET"]) for path in found]
