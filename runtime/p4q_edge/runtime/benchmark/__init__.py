"""Latency, throughput, memory and energy of an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.benchmark import measurement
    from p4q_edge.runtime.benchmark.measurement import (
        BenchOptions,
        Candidate,
        Measured,
        bench,
        load_candidate,
        measure_memory,
        reset_peak,
        this_setting,
    )
    from p4q_edge.runtime.benchmark.speed_rows import SpeedRow

__all__ = [
    "BenchOptions",
    "Candidate",
    "Measured",
    "SpeedRow",
    "bench",
    "load_candidate",
    "measure_memory",
    "measurement",
    "reset_peak",
    "this_setting",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "measurement": (
                "BenchOptions",
                "Candidate",
                "Measured",
                "bench",
                "load_candidate",
                "measure_memory",
                "reset_peak",
                "this_setting",
            ),
            "speed_rows": ("SpeedRow",),
        },
    )
