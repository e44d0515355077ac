"""The facts of a machine, read from folders laid out as a Jetson and as a desktop."""

from __future__ import annotations

from pathlib import Path

import pytest

from p4q_edge.runtime.machine.host import PowerMode, read_host

ORIN_NANO = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n# KERNEL\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\nprocessor\t: 1\nFeatures\t: fp asimd asimddp i8mm\n",
    "proc/meminfo": "MemTotal:  7802600 kB\nMemAvailable:  2097152 kB\nSwapFree:  1048576 kB\nHugePages_Total:  0\n",
    "var/lib/nvpmodel/status": "pmode:0000 fmode:quiet\n",
    "etc/nvpmodel.conf": (
        "< PARAM TYPE=FILE NAME=CPU_ONLINE >\n"
        "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
    ),
    "usr/lib/python3.10/dist-packages/tensorrt/tensorrt.so": "",
}


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_an_orin_nano(tmp_path: Path) -> None:
    host = read_host(root=lay_out(tmp_path, ORIN_NANO), prefix=tmp_path)
    assert (host.l4t, host.jetpack) == ("36.4.3", 6)
    assert host.board == "NVIDIA Jetson Orin Nano Developer Kit"
    assert host.cpu_features == {"fp", "asimd", "asimddp"}
    assert host.integer_dot_product == "asimddp"
    assert (host.available_bytes, host.free_swap_bytes) == (2 << 30, 1 << 30)
    assert host.memory_bytes == 7802600 * 1024
    assert host.power_mode == PowerMode(name="15W", unlimited_id=2)
    assert host.tensorrt_pythons == ("3.10",)
    assert not host.virtual_environment
    assert host.system_site_packages


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    host = read_host(root=tmp_path, prefix=tmp_path)
    assert (host.l4t, host.jetpack, host.board, host.power_mode) == (None, None, None, None)
    assert (host.memory_bytes, host.available_bytes, host.free_swap_bytes) == (None, None, None)
    assert host.cpu_features == frozenset()
    assert host.integer_dot_product is None
    assert host.tensorrt_pythons == ()


@pytest.mark.parametrize(
    ("release", "l4t", "jetpack"),
    [
        ("# R35 (release), REVISION: 5.0, GCID", "35.5.0", 5),
        ("# R38 (release), REVISION: 2.1, GCID", "38.2.1", 7),
        ("# R99 (release), REVISION: 1.0, GCID", "99.1.0", None),
        ("something else", None, None),
    ],
)
def test_l4t_and_jetpack(tmp_path: Path, release: str, l4t: str | None, jetpack: int | None) -> None:
    host = read_host(root=lay_out(tmp_path, {"etc/nv_tegra_release": release}), prefix=tmp_path)
    assert (host.l4t, host.jetpack) == (l4t, jetpack)


@pytest.mark.parametrize(("value", "sees"), [("true", True), ("True", True), ("false", False)])
def test_virtual_environments(tmp_path: Path, value: str, sees: bool) -> None:
    lay_out(tmp_path, {"pyvenv.cfg": f"home = /usr/bin\ninclude-system-site-packages = {value}\nversion = 3.10\n"})
    host = read_host(root=tmp_path, prefix=tmp_path)
    assert host.virtual_environment
    assert host.system_site_packages is sees


def test_a_power_mode_that_the_table_does_not_name(tmp_path: Path) -> None:
    host = read_host(root=lay_out(tmp_path, {"var/lib/nvpmodel/status": "pmode:0008"}), prefix=tmp_path)
    assert host.power_mode == PowerMode(name="mode 8", unlimited_id=None)


def test_tensorrt_of_several_system_pythons_oldest_first(tmp_path: Path) -> None:
    files = {
        "usr/lib/python3.12/dist-packages/tensorrt/__init__.py": "",
        "usr/lib/python3/dist-packages/tensorrt/tensorrt.cpython-39-aarch64-linux-gnu.so": "",
        "usr/lib/python3/dist-packages/tensorrt/other.cpython-3-unknown.so": "",
    }
    assert read_host(root=lay_out(tmp_path, files), prefix=tmp_path).tensorrt_pythons == ("3.9", "3.12")


def test_this_machine(tmp_path: Path) -> None:
    host = read_host()
    assert host.python >= (3, 10)
    assert host.system
