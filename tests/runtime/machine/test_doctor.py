"""The doctor: findings, the command that mends each, and its exit code."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from machines import ABSENT, DRIVER, GIB, JETSON, PC, WORKING, environment

from p4q_edge.runtime.machine import advice, findings
from p4q_edge.runtime.machine.findings import Environment, Finding, able_backends, examine
from p4q_edge.runtime.machine.host import Host, PowerMode
from p4q_edge.runtime.machine.library_probe import Probe


def finding(subject: str, seen: Environment, **options: Any) -> Finding:
    (found,) = (item for item in examine(seen, **options) if item.subject == subject)
    return found


def test_a_jetson_in_order() -> None:
    findings = examine(environment())
    assert able_backends(findings) == {"onnxruntime": True, "openvino": False, "tensorrt": True, "tensorrt-rtx": False}
    assert {item.status for item in findings} == {"ok", "note", "absent"}
    messages = {item.subject: item.message for item in findings if item.subject != "Memory"}
    assert messages == {
        "Python": "3.10.12; enough for the runtime, the toolkit needs 3.11",
        "Platform": "Orin Nano, Linux aarch64, L4T 36.4.3, JetPack 6",
        "Environment": "a virtual environment that sees the system's packages",
        "CPU": "INT8 dot products: asimddp",
        "Power mode": "MAXN_SUPER",
        "ONNX Runtime": "1.23.2 with CPUExecutionProvider",
        "OpenVINO": "optional, the faster engine on some Intel CPUs; cannot be used: "
        "ModuleNotFoundError: No module named 'it'",
        "CUDA driver": "driver for CUDA 12.6: Orin (sm_87, 8.0 GiB)",
        "TensorRT for RTX": "optional; its packages are for Linux on x86_64, this is Linux aarch64",
        "TensorRT": f"10.3.0. {advice.wrong_transformers('10.3.0')}",
        "Toolkit": "not installed; learning and export need it, a device does not",
    }


def test_what_is_not_in_order_names_a_command() -> None:
    broken = replace(
        JETSON,
        system_site_packages=False,
        available_bytes=0,
        jetpack=5,
        power_mode=PowerMode(name="15W", unlimited_id=2),
    )
    findings = examine(Environment(host=broken, probes=dict.fromkeys(WORKING, ABSENT)))
    assert able_backends(findings) == {
        "onnxruntime": False,
        "openvino": False,
        "tensorrt": False,
        "tensorrt-rtx": False,
    }
    for item in findings:
        assert item.fix or item.status == "ok", item
        assert item.needed_by or item.status != "missing", item


@pytest.mark.parametrize(
    ("host", "status", "message", "fix"),
    [
        (replace(PC, virtual_environment=False), "ok", "the system's Python, no virtual environment", ""),
        (PC, "ok", "a virtual environment that hides the system's packages", ""),
        (
            replace(JETSON, system_site_packages=False),
            "warning",
            "a virtual environment that hides the system's packages, where JetPack keeps TensorRT",
            "python3.10 -m venv --system-site-packages .venv-device",
        ),
        (
            replace(JETSON, system_site_packages=False, tensorrt_pythons=()),
            "warning",
            "a virtual environment that hides the system's packages, where JetPack keeps TensorRT",
            "python3 -m venv --system-site-packages .venv-device",
        ),
    ],
)
def test_virtual_environment(host: Host, status: str, message: str, fix: str) -> None:
    found = finding("Environment", environment(host))
    assert (found.status, found.message, found.fix) == (status, message, fix)


def test_an_old_jetpack_cannot_run_tensorrt() -> None:
    findings = examine(environment(replace(JETSON, l4t="35.5.0", jetpack=5)))
    assert able_backends(findings) == {"onnxruntime": True, "openvino": False, "tensorrt": False, "tensorrt-rtx": False}


def test_a_desktop_is_not_a_jetson() -> None:
    assert finding("Platform", environment(PC)).message == "Linux x86_64, not a Jetson"


@pytest.mark.parametrize(
    ("features", "status", "message"),
    [
        (frozenset(), "note", "this system does not list the features of its CPU"),
        ({"avx2"}, "note", "no INT8 dot products (VNNI, dotprod): INT8 gains less on this CPU"),
        ({"avx2", "avx_vnni"}, "ok", "INT8 dot products: avx_vnni"),
    ],
)
def test_cpu(features: set[str], status: str, message: str) -> None:
    found = finding("CPU", environment(replace(PC, cpu_features=frozenset(features))))
    assert (found.status, found.message) == (status, message)


def memory(host: Host, *, bundle_bytes: int, **probes: Probe) -> list[Finding]:
    findings = examine(environment(host, **probes), bundle_bytes=bundle_bytes)
    return [item for item in findings if item.subject == "Memory"]


def test_memory_is_compared_with_the_predicted_peak() -> None:
    small = replace(JETSON, available_bytes=GIB, free_swap_bytes=GIB)
    onnxruntime, tensorrt = memory(small, bundle_bytes=128 << 20)
    assert onnxruntime.status == "ok"
    assert tensorrt.status == "warning"
    assert tensorrt.message == (
        "1.0 GiB free and 1.0 GiB of swap; building a bundle of 134 MB for tensorrt takes about 3.0 GiB (an estimate)"
    )
    assert tensorrt.fix.startswith("sudo fallocate -l 1G /swapfile && ")


def test_memory_for_tensorrt_only_where_it_can_build() -> None:
    (only,) = memory(JETSON, bundle_bytes=1 << 20, tensorrt=ABSENT)
    assert "for onnxruntime" in only.message


def test_memory_unknown() -> None:
    (only,) = memory(replace(PC, available_bytes=None), bundle_bytes=1)
    assert (only.status, only.message) == ("note", "this system does not tell its free memory")


@pytest.mark.parametrize(("number", "fix"), [(2, "sudo nvpmodel -m 2"), (None, "sudo nvpmodel -m ID")])
def test_a_limited_power_mode(number: int | None, fix: str) -> None:
    limited = replace(JETSON, power_mode=PowerMode(name="15W", unlimited_id=number))
    found = finding("Power mode", environment(limited))
    assert found.status == "warning"
    assert found.message == "15W: latencies are those of this mode, not of the module"
    assert found.fix == f"{fix} && sudo jetson_clocks"


def test_onnxruntime_missing() -> None:
    found = finding("ONNX Runtime", environment(onnxruntime=ABSENT))
    assert (found.status, found.fix) == ("missing", "pip install --upgrade onnxruntime")


@pytest.mark.parametrize(
    ("host", "fix"),
    [
        (PC, "sudo apt install nvidia-driver  # on Ubuntu: sudo ubuntu-drivers install"),
        (JETSON, "sudo apt install nvidia-jetpack && sudo reboot"),
    ],
)
def test_without_a_driver_the_driver_is_what_to_install(host: Host, fix: str) -> None:
    assert finding("CUDA driver", environment(host, cuda=ABSENT)).fix == fix


@pytest.mark.parametrize(
    ("host", "fix"),
    [
        (PC, "sudo apt install nvidia-driver  # on Ubuntu: sudo ubuntu-drivers install"),
        (JETSON, "sudo apt install cuda-compat-12-9  # from NVIDIA's CUDA repository"),
    ],
)
def test_a_driver_that_is_too_old_is_no_missing_driver(host: Host, fix: str) -> None:
    old = Probe(problem=f"{advice.OLD_DRIVER}: expected one for CUDA 11.4 or newer, it is for CUDA 11.2")
    assert finding("CUDA driver", environment(host, cuda=old)).fix == fix
    refused = Probe(problem=advice.refused_by_driver("10.16.1", driver="12.6"))
    found = finding("TensorRT", environment(host, tensorrt=refused))
    assert (found.status, found.fix) == ("missing", fix)


@pytest.mark.parametrize(
    ("version", "jetpack", "capability", "status"),
    [
        ("10.13.3.9", 7, "8.7", "missing"),
        ("10.16.1.11", 7, "8.7", "ok"),
        ("10.13.3.9", 7, "11.0", "ok"),
        ("10.3.0", 6, "8.7", "note"),
        ("11.4.0.106", 7, "8.7", "ok"),
    ],
)
def test_what_is_known_of_a_tensorrt_is_said(version: str, jetpack: int, capability: str, status: str) -> None:
    host = replace(JETSON, jetpack=jetpack, l4t="38.2.0" if jetpack == 7 else JETSON.l4t)
    device = {"name": "GPU", "compute_capability": capability, "memory_bytes": GIB}
    driver = Probe(facts={"cuda": "13.0", "devices": [device]})
    seen = environment(host, tensorrt=Probe(facts={"version": version}), cuda=driver)
    found = finding("TensorRT", seen)
    assert found.status == status
    assert able_backends(examine(seen))["tensorrt"] == (status != "missing")
    if status == "missing":
        assert found.message.startswith(
            f"TensorRT {version} of JetPack 7 has no code for Orin (compute capability 8.7)"
        )
        assert found.fix == f"docker run --rm -it --runtime nvidia {advice.CONTAINER}"
    elif status == "note":
        assert "DINOv2-like" in found.message


@pytest.mark.parametrize(
    ("host", "probe", "status", "message", "fix"),
    [
        (PC, Probe(facts={"version": "1.7.1.116"}), "ok", "1.7.1.116, experimental: no engine of it ran on", ""),
        (PC, ABSENT, "absent", "optional, cannot be used: ModuleNotFound", "pip install './runtime[tensorrt-rtx]'"),
        (
            JETSON,
            ABSENT,
            "absent",
            "optional; its packages are for Linux on x86_64",
            "p4q-edge build BUNDLE --engine out",
        ),
    ],
)
def test_tensorrt_for_rtx_is_optional(host: Host, probe: Probe, status: str, message: str, fix: str) -> None:
    seen = environment(host, tensorrt_rtx=probe)
    found = finding("TensorRT for RTX", seen)
    assert found.status == status
    assert found.message.startswith(message)
    assert found.fix.startswith(fix)
    assert able_backends(examine(seen))["tensorrt-rtx"] == (status == "ok")


NEW_ENVIRONMENT = "python3.10 -m venv --system-site-packages .venv-device"


@pytest.mark.parametrize(
    ("host", "driver", "message", "fix"),
    [
        (
            replace(JETSON, python=(3, 12, 1)),
            DRIVER,
            "installed for the system's Python 3.10; this is Python 3.12",
            NEW_ENVIRONMENT,
        ),
        (
            replace(JETSON, system_site_packages=False),
            DRIVER,
            "installed for the system's Python, which this virtual environment hides",
            NEW_ENVIRONMENT,
        ),
        (
            replace(JETSON, tensorrt_pythons=()),
            DRIVER,
            f"cannot be used: {ABSENT.problem}",
            "sudo apt install nvidia-jetpack python3-libnvinfer",
        ),
        (PC, DRIVER, f"cannot be used: {ABSENT.problem}", "pip install tensorrt-cu12"),
        (
            PC,
            ABSENT,
            f"cannot be used: {ABSENT.problem}",
            "p4q-edge build BUNDLE --engine out.onnx  # the CPU engine needs no TensorRT",
        ),
    ],
)
def test_tensorrt_missing(host: Host, driver: Probe, message: str, fix: str) -> None:
    found = finding("TensorRT", environment(host, tensorrt=ABSENT, cuda=driver))
    assert (found.status, found.message, found.fix) == ("missing", message, fix)


def test_the_doctor_does_not_advise_to_run_the_doctor() -> None:
    problem = f"{advice.NO_DRIVER} (libcuda.so.1: not found). {advice.ON_THE_CPU}"
    seen = environment(PC, tensorrt=Probe(problem=problem), cuda=Probe(problem=problem))
    assert finding("CUDA driver", seen).message == (
        "no NVIDIA device can be used: no CUDA driver is installed (libcuda.so.1: not found)"
    )
    assert all("doctor" not in item.message for item in examine(seen))


def test_versions_of_the_toolkit() -> None:
    versions = {"p4q-edge": "0.1.0", "torch": "2.15.0", "timm": None}
    seen = Environment(host=PC, probes=WORKING, versions=versions)
    assert finding("Toolkit", seen).message == "p4q-edge 0.1.0, torch 2.15.0"


def test_packages_that_are_not_installed_have_no_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(findings, "run_probe", lambda name: ABSENT)
    seen = findings.read_environment(root=tmp_path)
    assert set(seen.versions.values()) == {None}
    assert seen.host.l4t is None


@pytest.mark.parametrize(
    ("capabilities", "said"), [(["FP32", "BF16"], "2026.4, with bfloat16"), (["FP32"], "without bfloat16 on this CPU")]
)
def test_openvino_is_optional_and_says_what_it_can(capabilities: list[str], said: str) -> None:
    found = finding("OpenVINO", environment(openvino=Probe(facts={"version": "2026.4", "capabilities": capabilities})))
    assert (found.status, said in found.message) == ("ok", True)
    absent = finding("OpenVINO", environment(openvino=ABSENT))
    assert (absent.status, absent.fix) == ("absent", "pip install './runtime[openvino]'")
