"""What this machine's processor is, as far as it decides which kernels run, and how many cores this process may use."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from p4q_edge.runtime.errors import UsageError

CPU_INFO = Path("/proc/cpuinfo")
ROOT = Path("/")
MAX_THREADS = 1024
"""Of one engine; far more than any processor has cores. A library that starts more is busy with that alone."""
X86 = frozenset({"x86_64", "amd64", "i686", "x86"})
# Instruction sets that change which integer or float kernels a library picks.
_KERNEL_FLAGS = frozenset(
    {
        "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni",
        "avx_vnni_int8", "amx_tile", "amx_int8", "avx512_bf16", "avx512_fp16",
        "asimd", "asimddp", "i8mm", "bf16", "fphp", "asimdhp", "sve", "sve2",
    }
)  # fmt: skip
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})


def cpu() -> str:
    """Return the processor's architecture, name and kernel-relevant instruction sets in one line."""
    name, flags = _cpu_info()
    parts = (platform.machine(), name or platform.processor(), " ".join(sorted(flags & _KERNEL_FLAGS)))
    return "; ".join(part for part in parts if part)


def is_x86() -> bool:
    """Return whether this process runs on an x86 processor."""
    return platform.machine().lower() in X86


def saturates() -> bool:
    """Return whether 8-bit products may be added in 16 bits here: x86 without VNNI, as far as is known."""
    return is_x86() and not _VNNI & _cpu_info()[1]


@functools.cache
def _cpu_info() -> tuple[str, frozenset[str]]:
    """Return name and flags of the first processor that Linux lists; empty on other systems."""
    if not CPU_INFO.is_file():
        return "", frozenset()
    fields: dict[str, str] = {}
    for line in CPU_INFO.read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    name = fields.get("model name") or fields.get("cpu part", "")
    return name, frozenset((fields.get("flags") or fields.get("features", "")).split())


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that an engine cannot have; None means one a core.

    Raises:
        UsageError: it is out of range.
    """
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise UsageError(
            f"threads must be at least 1 and at most {MAX_THREADS}, got {threads}. Leave it out to use every core."
        )


def usable_cores(root: Path | None = None) -> int:
    """Return how many threads a CPU engine takes by default: the physical cores that this process may keep busy.

    Two threads of one core share its arithmetic units, a process cannot leave the processors it is bound to, and one
    that takes more time than its control group grants is stopped for the rest of each period.
    """
    root = ROOT if root is None else root
    bound = _bound_to()
    cores = len({_core_of(root, processor) for processor in bound})
    quotas = [quota for quota in _quotas(root) if quota > 0]
    return max(1, min([cores, *(int(quota) for quota in quotas)]))


def _bound_to() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _core_of(root: Path, processor: int) -> str:
    """Return which physical core a processor belongs to: the processors of that core, as Linux lists them."""
    topology = root / "sys/devices/system/cpu" / f"cpu{processor}" / "topology"
    for name in ("core_cpus_list", "thread_siblings_list"):
        if text := _text(topology / name):
            return text
    return f"processor {processor}"


def _quotas(root: Path) -> Iterator[float]:
    """Give the limits of this process's control group and of those around it, in processors."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            yield from _version_two(root / "sys/fs/cgroup", path)
        elif "cpu" in controllers.split(","):
            yield from _version_one(root / "sys/fs/cgroup" / controllers, path)


def _version_two(mount: Path, path: str) -> Iterator[float]:
    for folder in _upwards(mount, path):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            yield int(quota) / int(period)


def _version_one(mount: Path, path: str) -> Iterator[float]:
    for folder in _upwards(mount, path):
        quota, period = (_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period):  # a quota of -1 is none
            yield int(quota) / int(period)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """Give the folders from a control group up to the mount; in a container the path may not be visible."""
    folder = mount / path.strip("/")
    while folder != mount and mount in folder.parents:
        yield folder
        folder = folder.parent
    yield mount


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
