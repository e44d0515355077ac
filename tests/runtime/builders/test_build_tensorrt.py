"""From a built plan to its card, with the TensorRT builder replaced: what the builder does is tested elsewhere."""

from __future__ import annotations

import json
import shutil
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from p4q_edge.runtime import BuildOptions, build_engine
from p4q_edge.runtime.artifacts import PlanChoice, PlanInspection, PlanMachine, TensorRTBuild, TensorRTOptions
from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.artifacts.card import Card, read_card
from p4q_edge.runtime.artifacts.golden import Golden, read_golden
from p4q_edge.runtime.builders.tensorrt import builder as tensorrt_builder
from p4q_edge.runtime.builders.tensorrt.builder import PlanResult
from p4q_edge.runtime.builders.tensorrt.contest import Contest
from p4q_edge.runtime.engines import base as engines
from p4q_edge.runtime.engines.base import load_engine
from p4q_edge.runtime.engines.tensorrt import engine as tensorrt
from p4q_edge.runtime.storage.files import sha256_file, temporary_path
from p4q_edge.runtime.verification import self_test as proof

MACHINE = {"tensorrt": "10.3.0", "gpu": "Orin", "compute_capability": "8.7", "platform": "linux aarch64"}


INSPECTION = PlanInspection(dialect="10", detailed=True, kernels=3, gemms={"int8": 3})


def outputs_of(golden: Golden) -> dict[str, np.ndarray]:
    return {"logits": golden.logits, "embedding": golden.embedding, "features": golden.features}


class Builder:
    """Stands for `build_plan`: writes a file as plan and keeps what it was asked for."""

    def __init__(self, kept: str) -> None:
        self.kept = kept
        self.asked: dict[str, Any] = {}

    def __call__(
        self, model: bytes, *, engine: Path, options: TensorRTOptions, golden: bytes, force: bool, progress: object
    ) -> PlanResult:
        self.asked = {"model": model, "options": options, "force": force}
        plan = temporary_path(engine)
        plan.write_bytes(b"plan")
        samples = read_golden(golden, source="x")
        return PlanResult(
            plan=plan,
            sha256=sha256_file(plan),
            size_bytes=4,
            built_with=PlanMachine(**MACHINE, precision=self.kept, cuda_driver="x"),  # type: ignore[arg-type]
            contest=Contest(
                choice=PlanChoice(kept=self.kept, reason="faster"),
                inspection=INSPECTION,
                golden=samples,
                outputs=outputs_of(samples),
            ),
        )


@pytest.fixture
def with_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))


@pytest.mark.usefixtures("with_tensorrt")
@pytest.mark.parametrize(("kept", "bits"), [("int8", 8), ("fp16", 16)])
def test_the_card_says_which_plan_was_kept(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str, bits: int
) -> None:
    builder = Builder(kept)
    monkeypatch.setattr(tensorrt_builder, "build_plan", builder)
    options = TensorRTOptions(max_batch=4)
    card = build_engine(tiny_bundle, tmp_path / "out.plan", options=BuildOptions(tensorrt=options))
    gated = replace(options, min_cosine=0.999)
    assert builder.asked == {"model": read_bundle(tiny_bundle).model("fp16"), "options": gated, "force": False}
    assert card == read_card(tmp_path / "out.plan")
    assert (card.backend, card.precision.weight_bits, card.precision.remainder) == ("tensorrt", bits, "fp16")
    assert isinstance(card.build, TensorRTBuild)
    assert card.build.options == options
    assert card.measured is not None
    assert card.measured.golden.samples == 4
    assert card.build.inspection == INSPECTION
    assert card.parts == ()


class Plan:
    """Stands for `TensorRTEngine`: answers with the golden outputs, moved a little."""

    moved = 0.0

    def __init__(self, path: Path, card: Card, *, device: str) -> None:
        self._golden = card.golden_samples()
        self.device = device

    @classmethod
    def open(cls, path: Path, card: Card, *, device: str) -> Plan:
        return cls(path, card, device=device)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (-1, *self._golden.image.shape[1:])

    def run(self, image: np.ndarray, outputs: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
        # of an unknown image: the first, as a bench only times those
        rows = [int((self._golden.image == one).all(axis=(1, 2, 3)).argmax()) for one in image]
        return {name: value[rows] + np.float32(self.moved) for name, value in outputs_of(self._golden).items()}

    def close(self) -> None:
        pass


def fingerprint(device: str, library: object) -> Mapping[str, str]:
    return {**MACHINE, "gpu": "Orin" if device == "auto" else device}


@pytest.mark.usefixtures("with_tensorrt")
def test_a_plan_is_loaded_and_proved_like_any_engine(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setattr(tensorrt_builder, "build_plan", Builder("int8"))
    monkeypatch.setattr(tensorrt, "TensorRTEngine", Plan)
    monkeypatch.setattr(tensorrt, "fingerprint", fingerprint)
    engine = tmp_path / "out.plan"
    card = build_engine(tiny_bundle, engine)
    assert load_engine(engine, card, device="cuda:1").device == "cuda:1"  # type: ignore[attr-defined]
    assert engines.fingerprint(card, device="other")["gpu"] == "other"
    assert proof.selftest(engine).drift == 0.0
    assert proof.selftest(engine, device="other").drift is None
    monkeypatch.setattr(Plan, "moved", 5e-4)
    assert proof.selftest(engine).problem() is None
    monkeypatch.setattr(Plan, "moved", 3e-3)
    assert "embeddings moved by 3.00e-03" in str(proof.selftest(engine).problem())
    code, _, err = run("selftest", engine)
    assert code == 5
    assert "since the engine was built on this machine" in err
    assert "This is TensorRT 10.3.0: boards with 10.3 are reported to compute DINOv2-like vision transformers" in err


@pytest.mark.usefixtures("with_tensorrt")
def test_a_bench_against_fp16_builds_that_plan_as_the_engine_was_built(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    builder = Builder("int8")
    monkeypatch.setattr(tensorrt_builder, "build_plan", builder)
    monkeypatch.setattr(tensorrt, "TensorRTEngine", Plan)
    monkeypatch.setattr(tensorrt, "fingerprint", fingerprint)
    engine, bundle = tmp_path / "out.plan", tmp_path / "out.p4q"
    options = TensorRTOptions(max_batch=4, workspace_mib=64)
    build_engine(tiny_bundle, engine, options=BuildOptions(tensorrt=options))
    arguments = ("bench", engine, "--against", "fp16", "--seconds", "0", "--json")
    code, _, err = run(*arguments)
    assert code == 2
    assert f"there is no {bundle}; copy it beside the engine" in err
    shutil.copy(tiny_bundle, bundle)
    before = sorted(tmp_path.iterdir())
    code, out, err = run(*arguments)
    assert code == 0, err
    assert builder.asked["options"] == replace(options, precision="fp16", min_cosine=0.999)
    assert {row["name"] for row in json.loads(out)["rows"]} == {"W8A8 executed", "fp16"}
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("with_tensorrt")
def test_every_option_of_the_command_reaches_the_builder(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    builder = Builder("int8")
    monkeypatch.setattr(tensorrt_builder, "build_plan", builder)
    values: dict[str, Any] = {
        "min_batch": 2,
        "opt_batch": 3,
        "max_batch": 4,
        "precision": "int8",
        "prefer": "size",
        "min_cosine": 0.99,
        "workspace_mib": 64,
        "optimization_level": 1,
        "typing": "weak",
        "hardware_compatibility": "ampere_plus",
        "cuda_backend": "pycuda",
    }
    flags = [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", value)]
    switches = ["--no-timing-cache", "--version-compatible", "--gpu", 1]
    code, _, _ = run("build", tiny_bundle, "--engine", tmp_path / "out.plan", *flags, *switches)
    assert code == 0
    expected = TensorRTOptions(**values, timing_cache=False, version_compatible=True, device=1)
    assert builder.asked["options"] == expected
    defaults = TensorRTOptions()
    assert [name for name in defaults.__dataclass_fields__ if getattr(expected, name) == getattr(defaults, name)] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "o.onnx", "--precision", "int8", "--gpu", "0"], "--precision, --gpu has no effect on o.onnx"),
        (["--engine", "o.plan", "--cpu-profile", "fast"], "--cpu-profile has no effect on o.plan"),
        (["--engine", "o.onnx", "--remainder", "f32", "--cpu-profile", "exact"], "--remainder is OpenVINO's"),
        (
            ["--engine", "o.onnx", "--remainder", "f32", "--cpu-profile", "auto", "--backend", "onnxruntime"],
            "--cpu-profile auto without a --backend",
        ),
        (["--engine", "o.onnx", "--seed", "1"], "a bundle and an option for recipes were both given"),
        (["--engine", "o.plan", "--max-batch", "0"], "expected 1 <= min batch <= opt batch <= max batch"),
    ],
)
def test_options_without_effect_are_refused(
    tiny_bundle: Path, arguments: list[str], message: str, run: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = run("build", tiny_bundle, *arguments)
    assert code == 2
    assert message in err


@pytest.mark.usefixtures("with_tensorrt")
def test_a_dry_run_builds_nothing(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, _ = run("build", tiny_bundle, "--engine", tmp_path / "out.onnx", "--dry-run", "--json")
    assert code == 0
    document = json.loads(out)
    assert (document["backend"], document["exists"]) == ("onnxruntime", False)
    assert document["model_bytes"] == len(read_bundle(tiny_bundle).model("fp32"))
    said = msgspec.defstruct("Said", [("model_bytes", int)])
    monkeypatch.setattr(
        tensorrt_builder,
        "describe_plan",
        lambda size, *, engine, options, convolutions, quantized: said(model_bytes=size),
    )
    code, out, _ = run("build", tiny_bundle, "--engine", tmp_path / "out.plan", "--dry-run")
    assert code == 0
    assert out == f"model_bytes  {len(read_bundle(tiny_bundle).model('fp16'))}\n"
    assert list(tmp_path.iterdir()) == []
    assert run("build", "--engine", tmp_path / "out.onnx", "--dry-run")[0] == 2
