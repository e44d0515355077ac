"""KServe's inference protocol, version 2, over HTTP: what Triton's clients speak."""

from __future__ import annotations

from p4q_edge.runtime.http.kserve.routes import kserve_routes

__all__ = ["kserve_routes"]
