"""From a bundle to an engine for this machine, with its card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.builders.build import BuildOptions, backend_of, build_engine, describe_build, recorded_options
    from p4q_edge.runtime.builders.current import build_unless_current, require_able, require_replaceable
    from p4q_edge.runtime.builders.dry_run import CpuDryRun, RtxDryRun, TensorRTDryRun
    from p4q_edge.runtime.builders.request import BuildRequest, RecipeRequest, ZeroShotRequest

__all__ = [
    "BuildOptions",
    "BuildRequest",
    "CpuDryRun",
    "RecipeRequest",
    "RtxDryRun",
    "TensorRTDryRun",
    "ZeroShotRequest",
    "backend_of",
    "build_engine",
    "build_unless_current",
    "describe_build",
    "recorded_options",
    "require_able",
    "require_replaceable",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "build": (
                "BuildOptions",
                "backend_of",
                "build_engine",
                "describe_build",
                "recorded_options",
            ),
            "dry_run": (
                "CpuDryRun",
                "RtxDryRun",
                "TensorRTDryRun",
            ),
            "current": ("build_unless_current", "require_able", "require_replaceable"),
            "request": (
                "BuildRequest",
                "RecipeRequest",
                "ZeroShotRequest",
            ),
        },
    )
