"""Machines as the doctor sees them: a Jetson and a PC, with libraries that work and that are absent; and this one."""

from __future__ import annotations

from dataclasses import replace

from p4q_edge.runtime.choices import CpuProfile
from p4q_edge.runtime.machine.cpu import saturates
from p4q_edge.runtime.machine.findings import Environment
from p4q_edge.runtime.machine.host import Host, PowerMode
from p4q_edge.runtime.machine.library_probe import Probe

GIB = 1 << 30


def openvino_profile() -> CpuProfile:
    """Return the profile with integers that OpenVINO computes rightly on the processor of these tests."""
    return "fast" if saturates() else "exact"


ABSENT = Probe(problem="ModuleNotFoundError: No module named 'it'")


DRIVER = Probe(
    facts={
        "cuda": "12.6",
        "devices": [{"name": "Orin", "compute_capability": "8.7", "memory_bytes": 8 * GIB}],
    }
)


PC = Host(
    system="Linux",
    architecture="x86_64",
    python=(3, 12, 1),
    virtual_environment=True,
    system_site_packages=False,
    l4t=None,
    jetpack=None,
    board=None,
    cpu_features=frozenset({"avx2", "avx512_vnni"}),
    memory_bytes=16 * GIB,
    available_bytes=12 * GIB,
    free_swap_bytes=0,
    power_mode=None,
    tensorrt_pythons=(),
)


JETSON = replace(
    PC,
    architecture="aarch64",
    python=(3, 10, 12),
    l4t="36.4.3",
    jetpack=6,
    board="Orin Nano",
    system_site_packages=True,
    cpu_features=frozenset({"asimd", "asimddp"}),
    power_mode=PowerMode(name="MAXN_SUPER", unlimited_id=2),
    tensorrt_pythons=("3.10",),
)


WORKING = {
    "cuda": DRIVER,
    "tensorrt": Probe(facts={"version": "10.3.0"}),
    "tensorrt-rtx": Probe(problem="ModuleNotFoundError: No module named 'it'"),
    "openvino": Probe(problem="ModuleNotFoundError: No module named 'it'"),
    "onnxruntime": Probe(facts={"version": "1.23.2", "providers": ["CPUExecutionProvider"]}),
}


def environment(host: Host = JETSON, **probes: Probe) -> Environment:
    named = {name.replace("_", "-"): result for name, result in probes.items()}
    return Environment(host=host, probes={**WORKING, **named}, versions={"p4q-edge": None})
