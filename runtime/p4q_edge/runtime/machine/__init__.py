"""What this machine is: processor, host, libraries, findings and provenance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.machine import advice, cpu, provenance
    from p4q_edge.runtime.machine.child import child_command, end_with_parent
    from p4q_edge.runtime.machine.cuda_driver import open_driver, select_device, version_text
    from p4q_edge.runtime.machine.findings import (
        BACKENDS,
        TYPICAL_BUNDLE_BYTES,
        Finding,
        able_backends,
        examine,
        read_environment,
    )
    from p4q_edge.runtime.machine.host import Host, jetpack_of, read_host
    from p4q_edge.runtime.machine.library_probe import PROBES, Probe, run_probe
    from p4q_edge.runtime.machine.licences import PackageLicence, package_licences
    from p4q_edge.runtime.machine.memory import give_back_memory
    from p4q_edge.runtime.machine.unreported import import_openvino_unreported

__all__ = [
    "BACKENDS",
    "PROBES",
    "TYPICAL_BUNDLE_BYTES",
    "Finding",
    "Host",
    "PackageLicence",
    "Probe",
    "able_backends",
    "advice",
    "child_command",
    "cpu",
    "end_with_parent",
    "examine",
    "give_back_memory",
    "import_openvino_unreported",
    "jetpack_of",
    "open_driver",
    "package_licences",
    "provenance",
    "read_environment",
    "read_host",
    "run_probe",
    "select_device",
    "version_text",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "child": (
                "child_command",
                "end_with_parent",
            ),
            "cuda_driver": (
                "open_driver",
                "select_device",
                "version_text",
            ),
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
                "jetpack_of",
                "read_host",
            ),
            "memory": ("give_back_memory",),
            "unreported": ("import_openvino_unreported",),
            "licences": (
                "PackageLicence",
                "package_licences",
            ),
            "library_probe": (
                "PROBES",
                "Probe",
                "run_probe",
            ),
        },
    )
