"""Classification, embeddings, heads and health over HTTP."""

from __future__ import annotations

from p4q_edge.runtime.http.api.routes import api_routes

__all__ = ["api_routes"]
