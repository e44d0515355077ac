"""Libraries that write temporary files do not say that the disk is full: we do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from p4q_edge.runtime.artifacts import read_bundle
from p4q_edge.runtime.builders import onnxruntime as builder
from p4q_edge.runtime.builders.onnxruntime import inspect_kernels, optimized_model
from p4q_edge.runtime.errors import CorruptArtifactError, P4QEdgeError


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the disk be full."""
    return lambda: monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))


class _Error(Exception):
    pass


def test_a_copy_that_cannot_be_written_is_told_by_its_reason(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, full: Callable[[], None]
) -> None:
    def broken(*_: object) -> None:
        raise _Error("Protobuf serialization failed")

    monkeypatch.setattr(builder, "open_session", broken)
    monkeypatch.setattr(builder, "session_errors", lambda: (_Error,))
    model = read_bundle(tiny_bundle).model("fp32")
    with pytest.raises(CorruptArtifactError, match="Protobuf serialization failed"):
        optimized_model(model, "exact", name="out.onnx")
    full()
    with pytest.raises(P4QEdgeError, match="cannot write .*: the disk is full .* Make room and run this again"):
        optimized_model(model, "exact", name="out.onnx")


def test_notes_of_kernels_that_end_early_are_told_by_their_reason(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: Callable[[], None]
) -> None:
    notes = tmp_path / "notes.json"
    notes.write_text('[{"cat": "Node", ')
    session = SimpleNamespace(run=lambda *_: None, end_profiling=lambda: str(notes))
    monkeypatch.setattr(builder, "open_optimized", lambda *_: session)
    model, image = read_bundle(tiny_bundle).model("fp32"), np.zeros((1, 3, 8, 8), np.uint8)
    with pytest.raises(CorruptArtifactError, match="cannot be read"):
        inspect_kernels(model, "exact", image)
    full()
    with pytest.raises(P4QEdgeError, match="the disk is full"):
        inspect_kernels(model, "exact", image)
