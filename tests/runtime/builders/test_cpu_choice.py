"""What `auto` tries on a CPU, and which of the candidates it keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import OVERFLOWS, openvino_profile, processor

from p4q_edge.runtime.artifacts import OnnxRuntimeBuild, OpenVINOBuild
from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.builders import candidates as candidates_module
from p4q_edge.runtime.builders import cpu
from p4q_edge.runtime.builders.build import BuildOptions, build_engine
from p4q_edge.runtime.builders.candidates import (
    PROFILE_VARIABLE,
    Candidates,
    CpuCandidate,
    CpuRequest,
    cpu_candidates,
    default_choice,
    require_cpu_libraries,
)
from p4q_edge.runtime.builders.cpu import TIE, ProofSetting, fastest, prove_candidates
from p4q_edge.runtime.choices import CpuBackend
from p4q_edge.runtime.engines.openvino import OpenVINOEngine
from p4q_edge.runtime.errors import EnvironmentNotAbleError, IncompatibleEngineError, UsageError
from p4q_edge.runtime.machine import cpu as machine
from p4q_edge.runtime.machine.advice import OVERFLOW_IN_OPENVINO
from p4q_edge.runtime.statistics import Rounds, rounding_limits_of
from p4q_edge.runtime.statistics.rounding_limits import NoiseFloor
from p4q_edge.runtime.verification import selftest


@pytest.fixture
def model(tiny_bundle: Path) -> bytes:
    return read_bundle(tiny_bundle).model("fp32")


def _exact_and_float(model: bytes, monkeypatch: pytest.MonkeyPatch) -> Candidates:
    """The candidates of a processor with VNNI and no OpenVINO, to be run on this one."""
    with monkeypatch.context() as other:
        processor(other, openvino_is=False)
        return cpu_candidates(model, CpuRequest(choice="auto"))


@pytest.mark.parametrize(
    ("kind", "backend", "expected"),
    [
        ({"openvino_is": False}, None, ["exact", "float"]),
        ({"openvino_is": False, "saturates": True}, None, ["exact", "float", "fast"]),
        ({"openvino_is": True}, None, ["exact", "openvino-f32", "float", "openvino-bf16"]),
        ({"openvino_is": True, "bf16": False}, None, ["exact", "openvino-f32", "float"]),
        (OVERFLOWS, None, ["exact", "float", "openvino-float-f32", "fast"]),
        (OVERFLOWS, "openvino", ["openvino-float-f32", "openvino-fast-f32"]),
        ({"openvino_is": True}, "onnxruntime", ["exact", "float"]),
    ],
)
def test_what_is_tried(
    model: bytes,
    monkeypatch: pytest.MonkeyPatch,
    kind: dict[str, bool],
    backend: CpuBackend | None,
    expected: list[str],
) -> None:
    pytest.importorskip("onnx")
    processor(monkeypatch, **kind)
    found = cpu_candidates(model, CpuRequest(choice="auto", backend=backend))
    assert [candidate.name for candidate in found.tried] == expected
    left_out = [] if kind["openvino_is"] or backend is not None else ["OpenVINO: it is not installed"]
    if kind is OVERFLOWS:
        left_out.append(f"openvino-exact: {OVERFLOW_IN_OPENVINO}")
    assert found.not_measured == tuple(left_out)


def test_a_graph_that_openvino_cannot_load_is_left_out_where_others_are(
    model: bytes, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise IncompatibleEngineError("OpenVINO cannot load it")

    monkeypatch.setattr(OpenVINOEngine, "__init__", refuses)
    refused = CpuCandidate(profile="float", backend="openvino", remainder="f32")
    golden = read_bundle(tiny_bundle).golden()
    tried = (CpuCandidate(profile="exact"), refused)
    candidates = Candidates(models={"exact": model, "float": model}, tried=tried, not_measured=("another",))
    proved = prove_candidates(candidates, golden, ProofSetting(threads=1, batch=1, logit_scale=100.0))
    assert proved.built.candidate == tried[0]
    assert proved.inspection.not_measured == ("another", f"{refused.name}: OpenVINO cannot load it")
    with pytest.raises(IncompatibleEngineError, match="OpenVINO cannot load it"):
        prove_candidates(
            replace(candidates, tried=(refused,)), golden, ProofSetting(threads=1, batch=1, logit_scale=100.0)
        )


def test_weights_that_overflow_in_openvino_are_refused_before_anything_is_built(
    model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates_module, "import_openvino", lambda: None)
    processor(monkeypatch, **OVERFLOWS)
    with pytest.raises(
        EnvironmentNotAbleError,
        match=r"x86 without VNNI.* overflow\. Take `--cpu-profile fast` .*float` \(of a bundle with INT4",
    ):
        require_cpu_libraries(CpuRequest(choice="exact", backend="openvino"))
    require_cpu_libraries(CpuRequest(choice="exact", backend="onnxruntime"))
    require_cpu_libraries(CpuRequest(choice="fast", backend="openvino"))
    monkeypatch.setattr(candidates_module, "_CHANGE", dict.fromkeys(("float", "fast"), _missing))
    with pytest.raises(EnvironmentNotAbleError, match=r"nothing can be built for OpenVINO here: .*Install .* onnx, or"):
        cpu_candidates(model, CpuRequest(choice="auto", backend="openvino"))


def test_one_profile_is_not_measured_against_others(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, openvino_is=True)
    assert [one.name for one in cpu_candidates(model, CpuRequest()).tried] == ["exact"]


def _missing(_: bytes) -> bytes:
    raise EnvironmentNotAbleError("no onnx")


def test_without_onnx_auto_says_what_it_could_not_make(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, openvino_is=False)
    monkeypatch.setattr(candidates_module, "_CHANGE", {"float": _missing})
    found = cpu_candidates(model, CpuRequest(choice="auto"))
    assert [candidate.name for candidate in found.tried] == ["exact"]
    assert found.not_measured[1] == "float: the package onnx is not installed"
    with pytest.raises(EnvironmentNotAbleError, match="no onnx"):
        cpu_candidates(model, CpuRequest(choice="float"))


@pytest.mark.parametrize(
    ("openvino_is", "convolutions", "backend", "expected"),
    [
        (False, False, None, "exact"),
        (True, False, None, "auto"),
        (False, True, None, "auto"),
        (True, True, "onnxruntime", "exact"),
        (True, True, "openvino", "exact"),
    ],
)
def test_what_nothing_named_means(
    monkeypatch: pytest.MonkeyPatch, openvino_is: bool, convolutions: bool, backend: CpuBackend | None, expected: str
) -> None:
    monkeypatch.delenv(PROFILE_VARIABLE)
    processor(monkeypatch, openvino_is=openvino_is, saturates=True)
    # Where OpenVINO was named, it is asked which of those that it computes rightly is the fastest.
    assert default_choice(backend, has_forms=convolutions) == ("auto" if backend == "openvino" else expected)
    processor(monkeypatch, openvino_is=openvino_is)
    assert default_choice(backend, has_forms=convolutions) == expected
    monkeypatch.setenv(PROFILE_VARIABLE, "float")
    assert default_choice(backend, has_forms=convolutions) == "float"
    monkeypatch.setenv(PROFILE_VARIABLE, "quick")
    with pytest.raises(UsageError, match="P4Q_EDGE_CPU_PROFILE=quick: expected one of exact, .*, auto"):
        default_choice(backend, has_forms=convolutions)


def test_a_remainder_without_openvino_is_refused(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, openvino_is=False)
    with pytest.raises(EnvironmentNotAbleError, match="--remainder bf16 is OpenVINO's, which is not installed"):
        cpu_candidates(model, CpuRequest(choice="auto", remainder="bf16"))


@pytest.mark.skipif(find_spec("openvino") is None, reason="pip install './runtime[openvino]'")
def test_a_build_that_names_nothing_keeps_the_fastest_that_is_right(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PROFILE_VARIABLE)
    engine = tmp_path / "out.onnx"
    card = build_engine(tiny_bundle, engine, options=BuildOptions(threads=1))
    assert isinstance(card.build, OnnxRuntimeBuild | OpenVINOBuild)
    rows = card.build.inspection.rows
    assert {"exact", "openvino-float-f32" if machine.saturates() else "openvino-f32"} <= rows.keys()
    assert all(row.n > 0 for row in rows.values())
    assert (card.build.options.cpu_profile, selftest(engine, threads=1).problem()) == ("auto", None)


@pytest.mark.skipif(find_spec("openvino") is None, reason="pip install './runtime[openvino]'")
def test_an_engine_of_the_other_library_leaves_no_copy_behind(tiny_bundle: Path, tmp_path: Path) -> None:
    engine = tmp_path / "out.onnx"
    build_engine(tiny_bundle, engine, backend="onnxruntime")
    assert {path.name for path in tmp_path.iterdir()} == {"out.onnx", "out.onnx.json", "out.onnx.optimized"}
    options = BuildOptions(remainder="f32", cpu_profile=openvino_profile())
    build_engine(tiny_bundle, engine, backend="openvino", options=options, force=True)
    assert {path.name for path in tmp_path.iterdir()} == {"out.onnx", "out.onnx.json", "out.onnx.openvino"}


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"batch": 4097}, {"threads": 0}, {"threads": 1025}])
def test_numbers_have_bounds(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="must be at least 1 and at most"):
        CpuRequest(**wrong)


def test_names_tell_candidates_apart() -> None:
    every = [
        CpuCandidate(profile=profile, backend=backend, remainder=remainder)
        for profile in ("exact", "fast", "float")
        for backend, remainder in (("onnxruntime", "f32"), ("openvino", "f32"), ("openvino", "bf16"))
    ]
    assert len({candidate.name for candidate in every}) == len(every)


@settings(max_examples=25)  # of up to four bootstraps each
@given(st.lists(st.floats(1.0, 100.0), min_size=1, max_size=5), st.integers(0, 9))
def test_what_is_kept_is_never_slower_than_a_tie(speeds: list[float], seed: int) -> None:
    noise = np.random.default_rng(seed).uniform(0.98, 1.02, 40)
    times = {str(index): speed * noise for index, speed in enumerate(speeds)}
    kept = fastest(times)
    assert float(np.median(times[kept])) <= TIE * min(float(np.median(one)) for one in times.values()) * (1 + 1e-9)
    earlier = [name for name in times if int(name) < int(kept)]
    assert all(float(np.median(times[name])) > float(np.median(times[kept])) for name in earlier)


def _measure(*, quick: str) -> Callable[[Mapping[str, Callable[[], object]], Rounds], dict[str, np.ndarray]]:
    return lambda runs, rounds: {name: np.full(rounds.minimum, 1.0 if name == quick else 2.0) for name in runs}


def test_a_candidate_that_computes_something_else_is_not_kept(
    model: bytes, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    golden = read_bundle(tiny_bundle).golden()
    found = _exact_and_float(model, monkeypatch)
    monkeypatch.setattr(cpu, "measure_interleaved", _measure(quick="float"))
    assert prove_candidates(found, golden, ProofSetting(threads=1)).built.candidate.name == "float"
    # No loss at all is allowed to FP32 here.
    strict = rounding_limits_of(8, NoiseFloor(worst_loss=0.0, median_loss=0.0, margin=0.0))
    proved = prove_candidates(found, golden, ProofSetting(threads=1, limits={"float": strict}))
    assert proved.built.candidate.name == "exact"
    row = proved.inspection.rows["float"]
    assert (row.n, "reach a cosine of" in str(row.problem)) == (0, True)
    assert proved.inspection.faster_than == {}


def test_candidates_are_measured_at_the_batch_that_was_named(
    model: bytes, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    asked: list[tuple[object, ...]] = []

    def measured(runs: Mapping[str, Callable[[], object]], rounds: Rounds) -> dict[str, np.ndarray]:
        asked.extend(value.shape for run in runs.values() for value in run().values())  # type: ignore[attr-defined]
        return {name: np.ones(rounds.minimum) for name in runs}

    monkeypatch.setattr(cpu, "measure_interleaved", measured)
    proved = prove_candidates(
        _exact_and_float(model, monkeypatch),
        read_bundle(tiny_bundle).golden(),
        ProofSetting(threads=1, batch=5),
    )
    assert {shape[0] for shape in asked} == {5}
    assert (proved.inspection.batch, proved.inspection.threads) == (5, 1)


@pytest.mark.skipif(find_spec("openvino") is None, reason="pip install './runtime[openvino]'")
@pytest.mark.parametrize(("quick", "expected"), [("openvino-float-f32", [1]), ("exact", [])])
def test_only_what_is_kept_is_written_as_it_was_compiled(
    model: bytes, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, quick: str, expected: list[int]
) -> None:
    asked: list[int] = []
    compiled = OpenVINOEngine.compiled

    def noted(engine: OpenVINOEngine, batch: int) -> bytes:
        asked.append(batch)
        return compiled(engine, batch)

    pytest.importorskip("onnx")
    processor(monkeypatch, **OVERFLOWS)
    monkeypatch.setattr(OpenVINOEngine, "compiled", noted)
    monkeypatch.setattr(cpu, "measure_interleaved", _measure(quick=quick))
    found = cpu_candidates(model, CpuRequest(choice="auto"))
    proved = prove_candidates(found, read_bundle(tiny_bundle).golden(), ProofSetting(threads=1))
    assert (proved.built.candidate.name, asked) == (quick, expected)
    assert proved.built.optimized
