"""Machines as the doctor sees them: a Jetson and a PC, with libraries that work and that are absent; and this one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p4q_edge.runtime.builders import candidates
from p4q_edge.runtime.choices import CpuProfile
from p4q_edge.runtime.machine import cpu
from p4q_edge.runtime.machine.findings import Environment
from p4q_edge.runtime.machine.host import Host, PowerMode
from p4q_edge.runtime.machine.library_probe import Probe

GIB = 1 << 30


def openvino_profile() -> CpuProfile:
    """Return the profile with integers that OpenVINO computes rightly on the processor of these tests."""
    return "fast" if cpu.saturates() else "exact"


OVERFLOWS = {"openvino_is": True, "bf16": False, "saturates": True}
"""A processor on which OpenVINO computes 8-bit weights wrongly, see `processor`."""


def processor(
    monkeypatch: pytest.MonkeyPatch, *, openvino_is: bool, bf16: bool = True, saturates: bool = False
) -> None:
    """Make builds of engines for CPUs believe that they run on another processor, with OpenVINO or without it."""
    monkeypatch.setattr(candidates, "installed", lambda: openvino_is)
    monkeypatch.setattr(candidates, "remainders", lambda: ("f32", "bf16") if bf16 else ("f32",))
    monkeypatch.setattr(cpu, "saturates", lambda: saturates)


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
