"""What this machine is, read from its files: no library is imported, nothing is started.

Every function takes the root of the file system, so that a test can lay out a Jetson in a folder.
"""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

_JETPACK_OF_L4T = {35: 5, 36: 6, 38: 7, 39: 7}
_INTEGER_DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


@dataclass(frozen=True, kw_only=True)
class PowerMode:
    """A power mode of nvpmodel: the one in force, and the number of the one without a limit, if known."""

    name: str
    unlimited_id: int | None


@dataclass(frozen=True, kw_only=True)
class Host:
    """The facts that decide what can run here; sizes in bytes, `None` where this system does not tell."""

    system: str
    architecture: str
    python: tuple[int, int, int]
    virtual_environment: bool
    system_site_packages: bool
    l4t: str | None
    jetpack: int | None
    board: str | None
    cpu_features: frozenset[str]
    memory_bytes: int | None
    available_bytes: int | None
    free_swap_bytes: int | None
    power_mode: PowerMode | None
    tensorrt_pythons: tuple[str, ...]

    @property
    def integer_dot_product(self) -> str | None:
        """The instruction set that multiplies and adds INT8 in one step, or `None`."""
        return next((name for name in _INTEGER_DOT_PRODUCTS if name in self.cpu_features), None)


def read_host(*, root: Path = Path("/"), prefix: Path | None = None) -> Host:
    """Read the facts below `root`; `prefix` is the folder of the Python environment, by default the running one."""
    release = _text(root / "etc/nv_tegra_release") or ""
    l4t = _l4t(release)
    memory = _meminfo(_text(root / "proc/meminfo"))
    configuration = _text((prefix or Path(sys.prefix)) / "pyvenv.cfg")
    return Host(
        system=platform.system(),
        architecture=platform.machine(),
        python=sys.version_info[:3],
        virtual_environment=configuration is not None,
        system_site_packages=configuration is None
        or bool(re.search(r"(?mi)^include-system-site-packages\s*=\s*true\s*$", configuration)),
        l4t=l4t,
        jetpack=jetpack_of(release),
        board=(_text(root / "proc/device-tree/model") or "").rstrip("\0\n") or None,
        cpu_features=_cpu_features(_text(root / "proc/cpuinfo") or ""),
        memory_bytes=memory.get("MemTotal"),
        available_bytes=memory.get("MemAvailable"),
        free_swap_bytes=memory.get("SwapFree"),
        power_mode=_power_mode(root),
        tensorrt_pythons=_tensorrt_pythons(root),
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        # Absent on this kind of machine, or not for this user to read: the fact is unknown.
        return None


def jetpack_of(release: str) -> int | None:
    """Return the major version of JetPack that Jetson's release file tells, or None."""
    l4t = _l4t(release)
    return _JETPACK_OF_L4T.get(int(l4t.partition(".")[0])) if l4t else None


def _l4t(release: str) -> str | None:
    found = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", release)
    return f"{found[1]}.{found[2]}" if found else None


def _cpu_features(cpuinfo: str) -> frozenset[str]:
    # x86 calls the line "flags", ARM "Features"; a machine may have cores of several kinds.
    lines = re.findall(r"(?m)^(?:flags|Features)\s*:(.*)$", cpuinfo)
    return frozenset.intersection(*(frozenset(line.split()) for line in lines)) if lines else frozenset()


def _meminfo(meminfo: str | None) -> dict[str, int]:
    return {name: int(kib) * 1024 for name, kib in re.findall(r"(?m)^(\w+):\s*(\d+) kB$", meminfo or "")}


def _power_mode(root: Path) -> PowerMode | None:
    status = re.search(r"pmode:(\d+)", _text(root / "var/lib/nvpmodel/status") or "")
    if status is None:
        return None
    table = _text(root / "etc/nvpmodel.conf") or ""
    entries = re.findall(r"(?m)^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", table)
    modes = {int(number): name for number, name in entries}
    unlimited = [number for number, name in sorted(modes.items()) if name.startswith("MAXN")]
    return PowerMode(
        name=modes.get(int(status[1]), f"mode {int(status[1])}"),
        # Boards with MAXN_SUPER list it after MAXN.
        unlimited_id=unlimited[-1] if unlimited else None,
    )


def _tensorrt_pythons(root: Path) -> tuple[str, ...]:
    """Return the Python versions, such as "3.10", for which the system's packages bring `tensorrt`, oldest first."""
    minors = set()
    for library in ("usr/lib", "usr/local/lib"):
        for package in (root / library).glob("python3.*/dist-packages/tensorrt"):
            minors.add(int(package.parent.parent.name.removeprefix("python3.")))
    # Debian also keeps modules for its one Python 3 in a folder without a minor version.
    for extension in (root / "usr/lib/python3/dist-packages/tensorrt").glob("*.cpython-3*.so"):
        minor = re.search(r"cpython-3(\d+)", extension.name)
        minors.update([int(minor[1])] if minor else [])
    return tuple(f"3.{minor}" for minor in sorted(minors))
