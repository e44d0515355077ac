"""Running engines of TensorRT for RTX on the double: checks of the card, kept kernels, and the same answers."""

from __future__ import annotations

import logging
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from p4q_edge.runtime.engines.tensorrt.engine import TensorRTEngine, fingerprint
from p4q_edge.runtime.engines.tensorrt.kernel_cache import kernel_cache_path
from p4q_edge.runtime.engines.tensorrt.library import RTX, platform_name
from p4q_edge.runtime.errors import EnvironmentNotAbleError, IncompatibleEngineError
from p4q_edge.runtime.storage import read_kept, sha256_bytes, write_kept

from doubles.rtx import VERSION, RtxDouble
from doubles.tensorrt import compute


def card_of(*, measured: tuple[str, ...] = (), asked: str = "auto", **changes: str) -> Any:
    built_with = {"tensorrt_rtx": VERSION, "compute_capability": "8.0+", "platform": platform_name(), **changes}
    build = SimpleNamespace(
        options=SimpleNamespace(precision=asked), inspection=SimpleNamespace(rows=dict.fromkeys(measured))
    )
    return SimpleNamespace(built_with=built_with, engine_sha256=sha256_bytes(b"plan"), build=build)


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the kernels of the engine are kept, in a cache folder of the test's own."""
    monkeypatch.setenv("P4Q_EDGE_CACHE", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    path = kernel_cache_path(b"plan", version=VERSION)
    assert path is not None
    return path


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "out.rtx"
    path.write_bytes(b"plan")
    return path


def test_answers_batches_and_graphs_are_as_with_tensorrt(rtx: RtxDouble, engine: Path, images: np.ndarray) -> None:
    loaded = TensorRTEngine.open(engine, card_of())
    for batch in (1, 1, 1, 3, 9):
        for name, expected in compute(images[:batch]).items():
            np.testing.assert_array_equal(loaded.run(images[:batch])[name], expected)
    assert "launch" in rtx.cuda.calls
    loaded.close()
    assert rtx.cuda.leaks == {}
    assert rtx.open_contexts == 0


def test_kernels_are_compiled_once_and_kept_in_the_cache_folder(
    rtx: RtxDouble, engine: Path, kernels: Path, images: np.ndarray
) -> None:
    for _ in range(2):
        loaded = TensorRTEngine.open(engine, card_of(), sessions=2)
        loaded.run(images[:1])
        loaded.close()
    assert rtx.calls.count("compile kernels") == 1
    assert read_kept(kernels, limit_bytes=1 << 20) == b"this GPU: kernels"
    assert [path.name for path in engine.parent.iterdir()] == ["out.rtx"]
    (config, _) = rtx.runtime_configs
    assert config.cuda_graph_strategy.name == "DISABLED"
    assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"


def test_kernels_of_another_gpu_are_replaced(
    rtx: RtxDouble, engine: Path, kernels: Path, images: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    write_kept(kernels, b"another GPU: kernels")
    with caplog.at_level(logging.INFO):
        loaded = TensorRTEngine.open(engine, card_of())
    loaded.run(images[:1])
    loaded.close()
    assert "is of another GPU, driver or library; the kernels are compiled again" in caplog.text
    assert read_kept(kernels, limit_bytes=1 << 20) == b"this GPU: kernels"


@pytest.mark.parametrize("spoil", ["changed", "open to all", "beside the engine"])
def test_kernels_that_somebody_else_may_have_written_never_reach_the_library(
    rtx: RtxDouble, engine: Path, kernels: Path, spoil: str
) -> None:
    write_kept(kernels, b"this GPU: kernels")
    if spoil == "changed":
        kernels.write_bytes(kernels.read_bytes().replace(b"kernels", b"worse!!"))
    elif spoil == "open to all":
        kernels.chmod(0o666)
    else:
        kernels.rename(engine.with_name("out.rtx.kernels"))
    TensorRTEngine.open(engine, card_of())
    assert "cache deserialize" not in rtx.calls


def test_without_a_place_for_the_kernels_the_engine_runs(
    rtx: RtxDouble, engine: Path, kernels: Path, images: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    kernels.mkdir(parents=True)
    loaded = TensorRTEngine.open(engine, card_of())
    assert len(loaded.run(images[:2])["logits"]) == 2
    with caplog.at_level(logging.INFO):
        loaded.close()
    assert "the compiled kernels are not kept: " in caplog.text


def test_an_endless_cache_is_not_read(
    rtx: RtxDouble,
    engine: Path,
    kernels: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_kept(kernels, b"this GPU: kernels")
    monkeypatch.setattr("p4q_edge.runtime.engines.tensorrt.kernel_cache.MAX_CACHE_BYTES", 4)
    with caplog.at_level(logging.INFO):
        TensorRTEngine.open(engine, card_of())
    assert f"{kernels} is not used: " in caplog.text
    assert "cache deserialize" not in rtx.calls


@pytest.mark.parametrize(
    ("changes", "differing", "again"),
    [
        ({"tensorrt_rtx": "1.6.0"}, "tensorrt_rtx", ""),
        ({"compute_capability": "8.9,12.0"}, "compute_capability", " --capability 8.6"),
        ({"compute_capability": "8.9+"}, "compute_capability", " --capability 8.6"),
        ({"platform": "windows-AMD64"}, "platform", ""),
    ],
)
def test_an_engine_of_elsewhere_is_refused_before_the_library_sees_it(
    rtx: RtxDouble, engine: Path, changes: dict[str, str], differing: str, again: str
) -> None:
    with pytest.raises(
        IncompatibleEngineError,
        match=rf"was built by TensorRT for RTX .* \(differing: {differing}\)\. Engines of TensorRT for RTX do not move"
        rf".* Run: p4q-edge build MODEL\.p4q --engine .*out\.rtx{again} --force",
    ):
        TensorRTEngine.open(engine, card_of(**changes))
    assert "Runtime" not in rtx.calls


def test_an_engine_of_fp8_is_built_again_as_what_this_gpu_multiplies(rtx: RtxDouble, engine: Path) -> None:
    """With the capability alone the build would refuse the bundle."""
    assert rtx.cuda.facts.compute_capability == "8.6"
    told = (
        r"This GPU multiplies no FP8 numbers: export with the recipe int8, or build their values in FP16 here\. Run: "
        r"p4q-edge build MODEL\.p4q --engine .*out\.rtx --capability 8\.6 --precision fp16 --force"
    )
    with pytest.raises(IncompatibleEngineError, match=told):
        TensorRTEngine.open(engine, card_of(compute_capability="8.9,12.0,12.1", precision="fp8"))
    rtx.cuda.facts = replace(rtx.cuda.facts, compute_capability="8.9")
    with pytest.raises(IncompatibleEngineError, match=r"Run: .*out\.rtx --capability 8\.9 --force"):
        TensorRTEngine.open(engine, card_of(compute_capability="12.0", precision="fp8"))


def test_an_engine_that_was_kept_in_fp16_is_built_again_in_it(rtx: RtxDouble, engine: Path) -> None:
    """Of the bundle's FP8 nothing is left in the precision of the plan."""
    of = {"compute_capability": "8.9", "precision": "fp16"}
    again = r"Run: p4q-edge build MODEL\.p4q --engine .*out\.rtx --capability 8\.6 --precision fp16 --force"
    with pytest.raises(IncompatibleEngineError, match=rf"multiplies no FP8 numbers: .* {again}"):
        TensorRTEngine.open(engine, card_of(measured=("fp8", "fp16"), **of))
    with pytest.raises(IncompatibleEngineError, match=again) as told:
        TensorRTEngine.open(engine, card_of(asked="fp16", **of))
    assert "FP8" not in str(told.value)
    with pytest.raises(IncompatibleEngineError, match=r"Run: .*out\.rtx --capability 8\.6 --force"):
        TensorRTEngine.open(engine, card_of(measured=("int8", "fp16"), **of))


@pytest.mark.parametrize("built", ["8.6", "8.6,8.9", "8.0+", "7.5+"])
def test_an_engine_for_this_gpu_or_for_all_from_an_older_one_on_is_taken(
    rtx: RtxDouble, engine: Path, built: str
) -> None:
    assert rtx.cuda.facts.compute_capability == "8.6"
    TensorRTEngine.open(engine, card_of(compute_capability=built)).close()


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        (2, "it was not built for this GPU"),
        (1 + 4, "it is of another version of the library, the CUDA driver is too old"),
        (0, "it gives no reason"),
    ],
)
def test_what_the_library_says_of_an_engine_is_said_before_it_is_loaded(
    rtx: RtxDouble, engine: Path, reasons: int, words: str
) -> None:
    rtx.validity, rtx.reasons = "INVALID", reasons
    with pytest.raises(
        IncompatibleEngineError,
        match=rf"cannot run {re.escape(str(engine))} on .+ \(compute capability 8\.6\): {words}\. "
        rf"Run: p4q-edge build MODEL\.p4q --engine {re.escape(str(engine))} --capability 8\.6 --force",
    ):
        TensorRTEngine.open(engine, card_of())
    assert "deserialize_cuda_engine" not in rtx.calls


def test_for_a_gpu_that_the_library_does_not_know_other_engines_are_named(rtx: RtxDouble, engine: Path) -> None:
    """What 1.7.1.116 answers on an H100, to an engine for 8.0 and later."""
    rtx.cuda.facts = replace(rtx.cuda.facts, name="NVIDIA H100 80GB HBM3", compute_capability="9.0")
    rtx.validity, rtx.reasons = "INVALID", 2
    with pytest.raises(
        IncompatibleEngineError,
        match=r"on NVIDIA H100 80GB HBM3 \(compute capability 9\.0\): it was not built for this GPU\. It compiles for "
        r"7\.5, .*12\.1 only\. Take TensorRT here: p4q-edge build MODEL\.p4q --engine .*out\.plan, or a CPU: --engine "
        r".*out\.onnx",
    ):
        TensorRTEngine.open(engine, card_of())


def test_an_engine_that_runs_slower_here_is_a_warning(
    rtx: RtxDouble, engine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rtx.validity = "SUBOPTIMAL"
    TensorRTEngine.open(engine, card_of()).close()
    assert "runs slower here than on the GPUs that it was built for" in caplog.text


def test_without_the_library_the_error_names_the_command(
    rtx: RtxDouble, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(
        EnvironmentNotAbleError, match=r"module tensorrt_rtx_bindings .*pip install '\./runtime\[tensorrt-rtx\]'"
    ):
        TensorRTEngine.open(engine, card_of())


def test_the_fingerprint_names_this_library(rtx: RtxDouble) -> None:
    assert fingerprint("auto", RTX)["tensorrt_rtx"] == VERSION
