"""An engine over HTTP: a page with a camera, classification, teaching, and KServe's protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.http.server import listen, make_app, run_server, url_of
    from p4q_edge.runtime.http.settings import DEFAULT_PORT, MIB, Limits, ServeOptions, read_token

__all__ = ["DEFAULT_PORT", "MIB", "Limits", "ServeOptions", "listen", "make_app", "read_token", "run_server", "url_of"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "server": ("listen", "make_app", "run_server", "url_of"),
            "settings": ("DEFAULT_PORT", "MIB", "Limits", "ServeOptions", "read_token"),
        },
    )
