"""ONNX Runtime as an engine: its options, its optimized copy, and models that are none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from p4q_edge.runtime import BuildOptions, build_engine
from p4q_edge.runtime.artifacts import bundle as bundles
from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.artifacts.card import read_card, write_card
from p4q_edge.runtime.builders.candidates import Candidates, CpuCandidate
from p4q_edge.runtime.builders.cpu import ProofSetting, prove_candidates
from p4q_edge.runtime.engines.onnxruntime import engine as onnxruntime_engine
from p4q_edge.runtime.engines.onnxruntime.engine import OnnxRuntimeEngine, optimized_path, session_options
from p4q_edge.runtime.errors import (
    ArtifactError,
    CorruptArtifactError,
    EnvironmentNotAbleError,
    IncompatibleEngineError,
    P4QEdgeError,
    UsageError,
)
from p4q_edge.runtime.machine import cpu as machine
from p4q_edge.runtime.storage.files import sha256_file
from p4q_edge.runtime.verification.golden_check import row_cosine
from p4q_edge.runtime.verification.self_test import selftest

from doubles.cards import of_another_cpu
from onnx_bytes import external_weights, identity_model


def test_a_cpu_engine_runs_on_no_gpu(tiny_engine: Path) -> None:
    with pytest.raises(UsageError, match=r"runs on the CPU, not on 'cuda'\. For a GPU build a \.plan"):
        selftest(tiny_engine, device="cuda")


def test_threads_must_be_positive(tiny_engine: Path) -> None:
    with pytest.raises(UsageError, match="threads must be at least 1 and at most 1024, got 0"):
        selftest(tiny_engine, threads=0)


@pytest.mark.parametrize(
    ("architecture", "flags", "expected"),
    [
        ("x86_64", "avx avx2 fma", True),
        ("AMD64", "avx2 avx512f avx512_vnni", False),
        ("x86_64", "avx2 avx_vnni", False),
        ("aarch64", "asimd asimddp", False),
        ("x86_64", None, True),
    ],
)
def test_x86_without_vnni_is_told_not_to_saturate(
    architecture: str, flags: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    if flags is not None:
        info.write_text(f"processor : 0\nmodel name : Some CPU\nflags : {flags}\n\nprocessor : 1\nflags : none\n")
    monkeypatch.setattr(machine, "CPU_INFO", info)
    monkeypatch.setattr(machine, "_cpu_info", machine._cpu_info.__wrapped__)
    monkeypatch.setattr(machine.platform, "machine", lambda: architecture)
    assert machine.saturates() is expected
    if flags is not None:
        assert machine.cpu().startswith(f"{architecture}; Some CPU; a")
    key = "session.x64quantprecision"
    if expected:
        assert session_options("exact").get_session_config_entry(key) == "1"
    else:
        with pytest.raises(RuntimeError, match=key):
            session_options("exact").get_session_config_entry(key)
    with pytest.raises(RuntimeError, match=key):
        session_options("fast").get_session_config_entry(key)


def test_waiting_threads_leave_their_cores_to_others() -> None:
    assert session_options("exact").get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_threads_are_those_that_are_named_or_the_cores_that_are_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 3)
    assert session_options("exact").intra_op_num_threads == 3
    assert session_options("exact", threads=2).intra_op_num_threads == 2


def test_an_engine_for_unsigned_kernels_computes_the_same(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "saturates", lambda: True)
    bundle = read_bundle(tiny_bundle)
    golden = bundle.golden()
    candidates = Candidates(tried=(CpuCandidate(profile="exact"),), models={"exact": bundle.model("fp32")})
    proved = prove_candidates(candidates, golden, ProofSetting(threads=1, name="x"))
    assert row_cosine(proved.outputs["embedding"], golden.embedding).min() > 0.9999


def test_without_onnx_the_fast_profile_says_what_to_install(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(EnvironmentNotAbleError, match="--cpu-profile fast needs the package onnx .* pip install onnx"):
        build_engine(tiny_bundle, tmp_path / "out.onnx", options=BuildOptions(cpu_profile="fast"))
    assert list(tmp_path.iterdir()) == []


def test_the_card_says_what_runs(tiny_engine: Path) -> None:
    inspection = read_card(tiny_engine).build.inspection
    assert inspection.integer_products == 2
    assert inspection.kernels["MatMulIntegerToFloat"] == 2
    assert inspection.float_products == 3


def test_the_optimized_copy_is_loaded_where_it_was_made(tiny_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def noted(name: str) -> None:
        read = getattr(onnxruntime_engine, name)
        monkeypatch.setattr(
            onnxruntime_engine,
            name,
            lambda path, *args, **kwargs: loaded.append(path.name) or read(path, *args, **kwargs),
        )

    noted("read_model")
    noted("read_kept_copy")
    assert selftest(tiny_engine).drift == 0.0
    card = read_card(tiny_engine)
    write_card(tiny_engine, of_another_cpu(card), force=True)
    assert selftest(tiny_engine).drift is None
    write_card(tiny_engine, card, force=True)
    optimized_path(tiny_engine).unlink()
    assert selftest(tiny_engine).drift == 0.0
    assert loaded == ["tiny.onnx.optimized", "tiny.onnx", "tiny.onnx"]


def test_a_card_with_another_profile_is_refused(tiny_engine: Path) -> None:
    card = read_card(tiny_engine)
    options = msgspec.structs.replace(card.build.options, kept_profile="best")
    build = msgspec.structs.replace(card.build, options=options)
    write_card(tiny_engine, msgspec.structs.replace(card, build=build), force=True)
    with pytest.raises(CorruptArtifactError, match="Invalid enum value 'best' .*build it again"):
        selftest(tiny_engine)


def test_the_card_of_a_plan_is_refused(tiny_engine: Path, repository: Path) -> None:
    plan = read_card(repository / "tests/runtime/data/schema-1/tiny.plan")
    with pytest.raises(IncompatibleEngineError, match=r"describes a tensorrt engine; expected one of ONNX Runtime"):
        OnnxRuntimeEngine.from_card(tiny_engine, plan)


def test_another_optimized_copy_is_refused(tiny_engine: Path) -> None:
    copy = optimized_path(tiny_engine)
    copy.write_bytes(copy.read_bytes() + b"\x12\x01x")
    with pytest.raises(
        CorruptArtifactError, match=r"tiny\.onnx\.optimized is not the copy of .*tiny\.onnx that its card"
    ):
        selftest(tiny_engine)


def test_a_copy_does_not_outlive_its_engine(tiny_engine: Path) -> None:
    """Also where only the digest of the engine was written anew into the card."""
    tiny_engine.write_bytes(tiny_engine.read_bytes() + b"\x12\x01x")
    card = msgspec.structs.replace(read_card(tiny_engine), engine_sha256=sha256_file(tiny_engine), parts=())
    write_card(tiny_engine, card, force=True)
    with pytest.raises(CorruptArtifactError, match="is not the copy of"):
        selftest(tiny_engine)


def test_the_engine_checks_its_input_and_its_state(tiny_engine: Path) -> None:
    engine = OnnxRuntimeEngine(tiny_engine)
    assert engine.input_shape == (-1, 3, 8, 8)
    assert set(engine.output_names) == {"logits", "embedding", "features"}
    image = np.zeros((2, 3, 8, 8), np.uint8)
    assert engine.run(image, ("features",))["features"].shape == (2, 16)
    with pytest.raises(ValueError, match=r"expected uint8 \(N, \(3, 8, 8\)\), got float32"):
        engine.run(image.astype(np.float32))
    with pytest.raises(P4QEdgeError, match="failed in ONNX Runtime"):
        engine.run(image, ("other",))
    engine.close()
    with pytest.raises(P4QEdgeError, match="was closed. Load it again"):
        engine.run(image)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (
            identity_model("image", element=2),
            CorruptArtifactError,
            "expected outputs logits, embedding, features, got out",
        ),
        (identity_model("image", element=1), CorruptArtifactError, "expected one input `image` uint8"),
        (identity_model("x", element=2), CorruptArtifactError, "expected one input `image` uint8"),
        (identity_model("image", element=2, operator="Nothing"), IncompatibleEngineError, "cannot run .*Upgrade it"),
        (b"", ArtifactError, "ONNX Runtime .*cannot (read|run)"),
        (b"not protobuf", CorruptArtifactError, "is not a model that P4Q Edge writes: field 13 has wire type 6"),
    ],
)
def test_other_models_are_no_engines(tmp_path: Path, model: bytes, error: type[Exception], message: str) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(model)
    with pytest.raises(error, match=message) as caught:
        OnnxRuntimeEngine(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_weights_in_other_files_are_never_read(
    tiny_engine: Path, rebundle: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_engine.read_bytes() + external_weights("/etc/hostname")
    other = tmp_path / "other.onnx"
    other.write_bytes(model)
    for source in (model, other):
        with pytest.raises(CorruptArtifactError, match="it keeps weights in another file"):
            OnnxRuntimeEngine(source, name="x")
    bundle = rebundle({bundles.GRAPH_FP32: read_bundle(rebundle()).read(bundles.GRAPH_FP32) + external_weights("../w")})
    with pytest.raises(CorruptArtifactError, match="keeps weights in another file"):
        build_engine(bundle, tmp_path / "out.onnx")
