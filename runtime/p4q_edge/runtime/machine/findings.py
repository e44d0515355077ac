"""What this machine can run, and for each finding the command that fixes it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from p4q_edge.runtime.machine import advice
from p4q_edge.runtime.machine.host import Host, read_host
from p4q_edge.runtime.machine.library_probe import PROBES, Probe, run_probe

BACKENDS = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")
ON_GPUS = ("tensorrt", "tensorrt-rtx")
TOOLKIT_PACKAGES = ("p4q-edge", "torch", "torchvision", "open_clip_torch", "timm", "onnx")

GIB = 1 << 30
# Estimates, said to be so in the finding: the libraries and the device context of a builder, and its copies of the
# weights while it times kernels. ONNX Runtime reads, rewrites and saves the model once.
BUILDER_BASE_BYTES: Mapping[str, int] = {"tensorrt": 2 * GIB, "onnxruntime": GIB // 4}
BUILDER_COPIES: Mapping[str, int] = {"tensorrt": 8, "onnxruntime": 5}
TYPICAL_BUNDLE_BYTES = 105 << 20  # ViT-B/32

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fact about this host.

    `status` is "ok", "note" (good to know), "warning" (works, but not as it should), "missing" or, of what is optional,
    "absent": then the backends in `needed_by` cannot run. `fix` is a command, empty where none can help.
    """

    subject: str
    status: str
    message: str
    fix: str = ""
    needed_by: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Everything that the doctor looks at: the machine, the libraries tried, versions of installed packages."""

    host: Host
    probes: Mapping[str, Probe]
    versions: Mapping[str, str | None] = field(default_factory=dict)


def examine(environment: Environment, *, bundle_bytes: int = TYPICAL_BUNDLE_BYTES) -> list[Finding]:
    """Return the findings on `environment`; `bundle_bytes` is the size of the bundle that shall be built."""
    return [
        _python(environment.host),
        _platform(environment.host),
        *_virtual_environment(environment.host),
        _cpu(environment.host),
        *_memory(environment.host, bundle_bytes=bundle_bytes, tensorrt=environment.probes["tensorrt"].works),
        *_power(environment.host),
        _onnxruntime(environment.probes["onnxruntime"]),
        _openvino(environment.probes["openvino"]),
        _cuda(environment),
        _tensorrt(environment),
        _tensorrt_rtx(environment),
        _toolkit(environment),
    ]


def able_backends(findings: list[Finding]) -> dict[str, bool]:
    """Return for each backend whether nothing that it needs is missing."""
    lacking = [finding for finding in findings if finding.status in ("missing", "absent")]
    missing = {backend for finding in lacking for backend in finding.needed_by}
    return {backend: backend not in missing for backend in BACKENDS}


def read_environment(*, root: Path = Path("/")) -> Environment:
    """Look at this machine; libraries are tried in processes of their own."""
    from importlib.metadata import PackageNotFoundError, version

    def version_or_none(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return Environment(
        host=read_host(root=root),
        probes={name: run_probe(name) for name in PROBES},
        versions={package: version_or_none(package) for package in TOOLKIT_PACKAGES},
    )


def _python(host: Host) -> Finding:
    text = ".".join(map(str, host.python))
    if host.python < (3, 11):
        text += "; enough for the runtime, the toolkit needs 3.11"
    return Finding(subject="Python", status="ok", message=text)


def _platform(host: Host) -> Finding:
    text = f"{host.system} {host.architecture}"
    if host.l4t is None:
        return Finding(subject="Platform", status="ok", message=f"{text}, not a Jetson")
    text = f"{host.board or 'Jetson'}, {text}, L4T {host.l4t}, JetPack {host.jetpack or 'unknown'}"
    if host.jetpack is not None and host.jetpack < 6:
        return Finding(
            subject="Platform",
            status="missing",
            message=f"{text}; TensorRT 10.3 of JetPack 6 is the oldest that can run strongly typed INT8",
            fix="flash JetPack 6 or newer with NVIDIA SDK Manager",
            needed_by=("tensorrt",),
        )
    return Finding(subject="Platform", status="ok", message=text)


def _virtual_environment(host: Host) -> Iterator[Finding]:
    if not host.virtual_environment:
        yield Finding(subject="Environment", status="ok", message="the system's Python, no virtual environment")
    elif host.l4t and not host.system_site_packages:
        yield Finding(
            subject="Environment",
            status="warning",
            message="a virtual environment that hides the system's packages, where JetPack keeps TensorRT",
            fix=_new_environment(host),
        )
    else:
        sight = "that sees" if host.system_site_packages else "that hides"
        yield Finding(
            subject="Environment", status="ok", message=f"a virtual environment {sight} the system's packages"
        )


def _new_environment(host: Host) -> str:
    python = host.tensorrt_pythons[-1] if host.tensorrt_pythons else "3"
    return f"python{python} -m venv --system-site-packages .venv-device"


def _cpu(host: Host) -> Finding:
    if not host.cpu_features:
        return Finding(subject="CPU", status="note", message="this system does not list the features of its CPU")
    if host.integer_dot_product:
        return Finding(subject="CPU", status="ok", message=f"INT8 dot products: {host.integer_dot_product}")
    return Finding(
        subject="CPU", status="note", message="no INT8 dot products (VNNI, dotprod): INT8 gains less on this CPU"
    )


def _memory(host: Host, *, bundle_bytes: int, tensorrt: bool) -> Iterator[Finding]:
    if host.available_bytes is None:
        yield Finding(subject="Memory", status="note", message="this system does not tell its free memory")
        return
    swap = host.free_swap_bytes or 0
    for backend in ("onnxruntime", "tensorrt") if tensorrt else ("onnxruntime",):
        peak = BUILDER_BASE_BYTES[backend] + BUILDER_COPIES[backend] * bundle_bytes
        text = (
            f"{_gib(host.available_bytes)} free and {_gib(swap)} of swap; building a bundle of "
            f"{bundle_bytes / 1e6:.0f} MB for {backend} takes about {_gib(peak)} (an estimate)"
        )
        if peak > host.available_bytes + swap:
            need = -(-(peak - host.available_bytes - swap) // GIB)
            fix = f"sudo fallocate -l {need}G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile"
            yield Finding(subject="Memory", status="warning", message=text, fix=f"{fix} && sudo swapon /swapfile")
        else:
            yield Finding(subject="Memory", status="ok", message=text)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def _power(host: Host) -> Iterator[Finding]:
    mode = host.power_mode
    if mode is None:
        return
    if mode.name.startswith("MAXN"):
        yield Finding(subject="Power mode", status="ok", message=mode.name)
        return
    number = "ID" if mode.unlimited_id is None else mode.unlimited_id
    yield Finding(
        subject="Power mode",
        status="warning",
        message=f"{mode.name}: latencies are those of this mode, not of the module",
        fix=f"sudo nvpmodel -m {number} && sudo jetson_clocks",
    )


def _onnxruntime(probe: Probe) -> Finding:
    if probe.works:
        text = f"{probe.facts['version']} with {', '.join(probe.facts['providers'])}"
        return Finding(subject="ONNX Runtime", status="ok", message=text, needed_by=("onnxruntime",))
    return Finding(
        subject="ONNX Runtime",
        status="missing",
        message=f"cannot be used: {advice.without_doctor(probe.problem)}",
        fix="pip install --upgrade onnxruntime",
        needed_by=("onnxruntime",),
    )


def _openvino(probe: Probe) -> Finding:
    subject, needed_by = "OpenVINO", ("openvino",)
    if probe.works:
        half = "with bfloat16" if "BF16" in probe.facts["capabilities"] else "without bfloat16 on this CPU"
        return Finding(subject=subject, status="ok", message=f"{probe.facts['version']}, {half}", needed_by=needed_by)
    return Finding(
        subject=subject,
        status="absent",
        message=f"optional, the faster engine on some Intel CPUs; cannot be used: {probe.problem}",
        fix="pip install './runtime[openvino]'",
        needed_by=needed_by,
    )


def _cuda(environment: Environment) -> Finding:
    probe = environment.probes["cuda"]
    if probe.works:
        devices = ", ".join(
            f"{device['name']} (sm_{device['compute_capability'].replace('.', '')}, {_gib(device['memory_bytes'])})"
            for device in probe.facts["devices"]
        )
        text = f"driver for CUDA {probe.facts['cuda']}: {devices}"
        return Finding(subject="CUDA driver", status="ok", message=text, needed_by=ON_GPUS)
    jetson = environment.host.l4t is not None
    too_old = advice.OLD_DRIVER in (probe.problem or "")
    return Finding(
        subject="CUDA driver",
        status="missing",
        message=f"no NVIDIA device can be used: {advice.without_doctor(probe.problem)}",
        fix=advice.newer_driver(jetson=jetson) if too_old else advice.install_driver(jetson=jetson),
        needed_by=ON_GPUS,
    )


def _tensorrt(environment: Environment) -> Finding:
    host, probe, driver = environment.host, environment.probes["tensorrt"], environment.probes["cuda"]
    if probe.works:
        return _usable_tensorrt(str(probe.facts["version"]), host, driver)
    running = f"{host.python[0]}.{host.python[1]}"
    message, fix = f"cannot be used: {advice.without_doctor(probe.problem)}", ""
    if advice.DOES_NOT_START in (probe.problem or ""):
        fix = advice.newer_driver(jetson=host.l4t is not None)
    elif host.tensorrt_pythons and running not in host.tensorrt_pythons:
        versions = ", ".join(host.tensorrt_pythons)
        message = f"installed for the system's Python {versions}; this is Python {running}"
        fix = _new_environment(host)
    elif host.tensorrt_pythons and not host.system_site_packages:
        message = "installed for the system's Python, which this virtual environment hides"
        fix = _new_environment(host)
    elif host.l4t or driver.works:
        fix = advice.install_tensorrt(jetpack=_jetpack(host), cuda=str(driver.facts.get("cuda", "")))
    else:
        fix = "p4q-edge build BUNDLE --engine out.onnx  # the CPU engine needs no TensorRT"
    return Finding(subject="TensorRT", status="missing", message=message, fix=fix, needed_by=("tensorrt",))


def _usable_tensorrt(version: str, host: Host, driver: Probe) -> Finding:
    """Return the finding on a TensorRT that starts: it may still lack code for the GPU, or compute wrong values."""
    device: Mapping[str, str] = next(iter(driver.facts.get("devices", ())), {})
    problem = advice.without_code(
        version, compute_capability=device.get("compute_capability", ""), jetpack=_jetpack(host)
    )
    if problem is not None:
        return Finding(
            subject="TensorRT",
            status="missing",
            message=problem,
            fix=f"docker run --rm -it --runtime nvidia {advice.CONTAINER}",
            needed_by=("tensorrt",),
        )
    doubt = advice.wrong_transformers(version)
    if doubt is not None and advice.reported_wrong(version):
        return Finding(subject="TensorRT", status="note", message=f"{version}. {doubt}", needed_by=("tensorrt",))
    return Finding(subject="TensorRT", status="ok", message=version, needed_by=("tensorrt",))


def _tensorrt_rtx(environment: Environment) -> Finding:
    host, probe = environment.host, environment.probes["tensorrt-rtx"]
    subject, needed_by = "TensorRT for RTX", ("tensorrt-rtx",)
    if probe.works:
        text = f"{probe.facts['version']}, experimental: no engine of it ran on an RTX GPU yet"
        return Finding(subject=subject, status="ok", message=text, needed_by=needed_by)
    if (host.system, host.architecture) != ("Linux", "x86_64"):
        text = f"optional; its packages are for Linux on x86_64, this is {host.system} {host.architecture}"
        fix = "p4q-edge build BUNDLE --engine out.plan  # TensorRT instead"
    else:
        text, fix = (
            f"optional, cannot be used: {advice.without_doctor(probe.problem)}",
            "pip install './runtime[tensorrt-rtx]'",
        )
    return Finding(subject=subject, status="absent", message=text, fix=fix, needed_by=needed_by)


def _jetpack(host: Host) -> int | None:
    """Return the major version of JetPack; 0 on a Jetson that does not tell it, None elsewhere."""
    return (host.jetpack or 0) if host.l4t else None


def _toolkit(environment: Environment) -> Finding:
    installed = [f"{name} {version}" for name, version in environment.versions.items() if version]
    if environment.versions.get("p4q-edge"):
        return Finding(subject="Toolkit", status="ok", message=", ".join(installed))
    return Finding(
        subject="Toolkit",
        status="note",
        message="not installed; learning and export need it, a device does not",
        fix="pip install ./runtime .  # in a checkout of P4Q Edge, Python 3.11 or newer",
    )
