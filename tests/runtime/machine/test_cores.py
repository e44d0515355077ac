"""How many threads a CPU engine takes by default."""

from __future__ import annotations

from pathlib import Path

import pytest

from p4q_edge.runtime.machine import cpu


def _machine(
    root: Path, *, siblings: dict[int, str], group: str = "0::/\n", files: dict[str, str] | None = None
) -> Path:
    texts = {f"sys/devices/system/cpu/cpu{n}/topology/core_cpus_list": text for n, text in siblings.items()}
    for name, text in {**texts, "proc/self/cgroup": group, **(files or {})}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def _bound_to_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_bound_to", lambda: [0, 1, 2, 3])


HYPERTHREADS = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}
CORES = {0: "0", 1: "1", 2: "2", 3: "3"}
UNIFIED = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("siblings", "group", "files", "expected"),
    [
        (CORES, "0::/\n", {}, 4),
        (HYPERTHREADS, "0::/\n", {}, 2),
        ({}, "0::/\n", {}, 4),
        (CORES, "0::/box\n", {f"{UNIFIED}/box/cpu.max": "250000 100000\n"}, 2),
        (
            CORES,
            "0::/box/inner\n",
            {f"{UNIFIED}/box/cpu.max": "100000 100000", f"{UNIFIED}/box/inner/cpu.max": "max 1"},
            1,
        ),
        (CORES, "0::/\n", {f"{UNIFIED}/cpu.max": "50000 100000\n"}, 1),
        (CORES, "0::/\n", {f"{UNIFIED}/cpu.max": "max 100000\n"}, 4),
        (CORES, "0::/gone/in/here\n", {f"{UNIFIED}/cpu.max": "300000 100000\n"}, 3),
        (
            CORES,
            "4:cpu,cpuacct:/box\n1:name=x:/box\n",
            {
                f"{UNIFIED}/cpu,cpuacct/box/cpu.cfs_quota_us": "200000\n",
                f"{UNIFIED}/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            CORES,
            "4:cpu,cpuacct:/\n",
            {
                f"{UNIFIED}/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                f"{UNIFIED}/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
    ],
)
def test_threads_are_physical_cores_within_what_is_granted(
    tmp_path: Path, siblings: dict[int, str], group: str, files: dict[str, str], expected: int
) -> None:
    assert cpu.usable_cores(_machine(tmp_path, siblings=siblings, group=group, files=files)) == expected


def test_a_process_that_is_bound_to_one_processor_takes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_bound_to", lambda: [3])
    assert cpu.usable_cores(_machine(tmp_path, siblings=CORES)) == 1


def test_this_machine_has_an_answer() -> None:
    assert 1 <= cpu.usable_cores() <= len(cpu._bound_to())
