"""Bundles of which one graph is not sound, and engines whose limits come from the noise of their model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from p4q_edge.runtime import BuildOptions, build_engine
from p4q_edge.runtime.artifacts import GraphParity, NoiseKind
from p4q_edge.runtime.artifacts.bundle import GOLDEN, read_bundle
from p4q_edge.runtime.artifacts.card import read_card
from p4q_edge.runtime.builders.build import describe_build
from p4q_edge.runtime.errors import QualityGateError
from p4q_edge.runtime.statistics import NoiseFloor
from p4q_edge.runtime.verification.self_test import selftest

PROBLEM = "the output logits reaches a cosine of 0.5 to the module's"


@pytest.mark.parametrize(("kind", "name", "needs"), [("fp16", "out.plan", "TensorRT"), ("fp32", "out.onnx", "CPUs")])
def test_a_graph_that_is_not_sound_is_refused_with_what_was_found(
    rebundle: Callable[..., Path], tmp_path: Path, kind: str, name: str, needs: str
) -> None:
    bundle, engine = rebundle(unsound={kind: PROBLEM}), tmp_path / name
    other = {"out.plan": "out.onnx", "out.onnx": "out.plan"}[name]
    expected = rf"{name} cannot be built: the graph for {needs}.* is not sound, .*: {PROBLEM}\. .* build .*{other}"
    with pytest.raises(QualityGateError, match=expected):
        build_engine(bundle, engine)
    with pytest.raises(QualityGateError, match=expected):
        describe_build(bundle, engine, options=BuildOptions())
    assert not engine.exists()


def test_the_other_graph_is_built_as_ever(rebundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = rebundle(unsound={"fp16": PROBLEM})
    assert build_engine(bundle, tmp_path / "out.onnx").backend == "onnxruntime"
    assert read_bundle(bundle).manifest.problem("fp16") == PROBLEM
    assert read_bundle(bundle).manifest.problem("fp32") is None


def test_a_huge_noise_of_its_own_does_not_let_a_bundle_pass_whatever_it_computes(
    rebundle: Callable[..., Path], tmp_path: Path
) -> None:
    source = read_bundle(rebundle())
    golden, head = source.golden(), source.head()
    other = np.roll(golden.embedding, 1, axis=1)
    members = {GOLDEN: replace(golden, embedding=other, logits=head.logit_scale * other @ head.text_embedding.T)}
    loud = GraphParity(noise={"fp32": NoiseFloor(worst_loss=2.0, median_loss=2.0, margin=4.0)})
    with pytest.raises(QualityGateError, match=r"embeddings reach a cosine of .* to the reference; expected 0\.5"):
        build_engine(
            rebundle({name: value.to_bytes() for name, value in members.items()}, parity=loud), tmp_path / "out.onnx"
        )


@pytest.mark.parametrize(("profile", "kind"), [("exact", "fp32"), ("fast", "seven_bit"), ("float", "float")])
def test_the_card_takes_the_noise_of_its_profile_and_selftest_its_limits(
    rebundle: Callable[..., Path], tmp_path: Path, profile: str, kind: str
) -> None:
    if profile != "exact":
        pytest.importorskip("onnx", reason="the profiles fast and float rewrite the graph, which needs onnx")
    floor = NoiseFloor(worst_loss=0.02, median_loss=1e-3, margin=0.1)
    narrow = NoiseFloor(worst_loss=1e-12, median_loss=0.0, margin=0.0)
    kinds: tuple[NoiseKind, ...] = ("fp32", "seven_bit", "float")
    record = GraphParity(noise={name: floor if name == kind else narrow for name in kinds})
    engine = tmp_path / "out.onnx"
    options = BuildOptions(cpu_profile=profile)  # type: ignore[arg-type]
    card = build_engine(rebundle(parity=record), engine, options=options)
    assert card.noise == floor
    assert read_card(engine).limits.least_cosine == pytest.approx(0.92)
    result = selftest(engine)
    assert result.min_cosine == pytest.approx(0.92)
    assert result.problem() is None


def test_a_quiet_model_has_a_narrow_limit(rebundle: Callable[..., Path], tmp_path: Path) -> None:
    source = read_bundle(rebundle())
    golden, head = source.golden(), source.head()
    off = golden.embedding + np.float32(0.01) * np.roll(golden.embedding, 1, axis=1)
    off /= np.linalg.norm(off, axis=1, keepdims=True)
    logits = head.logit_scale * off @ head.text_embedding.T
    members = {GOLDEN: replace(golden, embedding=off, logits=logits).to_bytes()}
    assert build_engine(rebundle(members), tmp_path / "old.onnx").noise is None
    quiet = GraphParity(noise={"fp32": NoiseFloor(worst_loss=1e-9, median_loss=0.0, margin=0.0)})
    with pytest.raises(QualityGateError, match=r"embeddings reach a cosine of 0\.9999. to the reference; expected 1"):
        build_engine(rebundle(members, parity=quiet), tmp_path / "new.onnx")
