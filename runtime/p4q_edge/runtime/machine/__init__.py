"""What this machine is: processor, host, libraries, findings and provenance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.machine import cpu, provenance
    from p4q_edge.runtime.machine.findings import (
        BACKENDS,
        TYPICAL_BUNDLE_BYTES,
        Finding,
        able_backends,
        examine,
        read_environment,
    )
    from p4q_edge.runtime.machine.host import Host, read_host
    from p4q_edge.runtime.machine.library_probe import PROBES, Probe, run_probe

__all__ = [
    "BACKENDS",
    "PROBES",
    "TYPICAL_BUNDLE_BYTES",
    "Finding",
    "Host",
    "Probe",
    "able_backends",
    "cpu",
    "examine",
    "provenance",
    "read_environment",
    "read_host",
    "run_probe",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "findings": (
                "BACKENDS",
                "Finding",
                "TYPICAL_BUNDLE_BYTES",
                "able_backends",
                "examine",
                "read_environment",
            ),
            "host": (
                "Host",
                "read_host",
            ),
            "library_probe": (
                "PROBES",
                "Probe",
                "run_probe",
            ),
        },
    )
