"""Memory that is given back to the system."""

from __future__ import annotations

import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

from p4q_edge.runtime.machine import give_back_memory, memory


class _Circle:
    def __init__(self) -> None:
        self.own = self


def test_what_only_holds_itself_is_collected() -> None:
    circle = weakref.ref(_Circle())
    give_back_memory()
    assert circle() is None


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel what a process holds")
def test_freed_memory_between_what_is_in_use_goes_back() -> None:
    def held_mib() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    give_back_memory()
    pieces = [np.ones(12_000) for _ in range(1000)]  # too small to be mapped alone
    kept = pieces[::100] + pieces[-1:]
    del pieces
    before = held_mib()
    give_back_memory()
    assert held_mib() < before - 50
    assert len(kept) == 11


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    give_back_memory()
