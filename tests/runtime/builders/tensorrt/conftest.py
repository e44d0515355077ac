"""Devices whose library computes what the golden samples of the tiny bundle say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from golden_devices import answer_as, run_worker_here

from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.builders.tensorrt import builder as tensorrt_builder
from p4q_edge.runtime.builders.tensorrt import precision_choice as tensorrt_noregret
from p4q_edge.runtime.builders.tensorrt import rtx as rtx_builder
from p4q_edge.runtime.statistics.timing import Rounds

from doubles.rtx import RtxDouble


@pytest.fixture
def device(installed: Any, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Jetson with TensorRT."""
    answer_as(installed, read_bundle(tiny_bundle).golden())
    monkeypatch.setattr(tensorrt_builder, "run_worker", run_worker_here)
    monkeypatch.setattr(tensorrt_noregret, "ROUNDS", Rounds(warmup=1, minimum=5, maximum=5, seconds=0))
    return installed


@pytest.fixture
def desktop_device(rtx: RtxDouble, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> RtxDouble:
    """A desktop with TensorRT for RTX."""
    answer_as(rtx, read_bundle(tiny_bundle).golden())
    monkeypatch.setattr(rtx_builder, "run_worker", run_worker_here)
    monkeypatch.setattr(tensorrt_noregret, "ROUNDS", Rounds(warmup=1, minimum=5, maximum=5, seconds=0))
    return rtx
