"""What this machine's processor is, as far as it decides which kernels run."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
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
