"""Variants of a Q/DQ model for a CPU: what `onnx` is needed for while an engine is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from p4q_edge.runtime.artifacts import CpuOptions
from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.builders import cpu as cpu_builder
from p4q_edge.runtime.builders.build import BuildOptions, build_engine
from p4q_edge.runtime.builders.candidates import CpuRequest, cpu_candidates
from p4q_edge.runtime.builders.cpu import ProofSetting, prove_candidates
from p4q_edge.runtime.engines.onnxruntime.models import SEVEN_BIT_MAX, float_weights, narrowed, seven_bit_weights
from p4q_edge.runtime.errors import ArtifactError
from p4q_edge.runtime.machine.cpu import saturates
from p4q_edge.runtime.statistics.timing import Rounds
from p4q_edge.runtime.verification.golden_check import row_cosine
from p4q_edge.runtime.verification.self_test import selftest


@pytest.fixture
def bundle(repository: Path) -> Path:
    return repository / "tests" / "runtime" / "data" / "tiny.p4q"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P4Q_EDGE_CACHE", str(tmp_path / "cache"))


def dequantized(model: onnx.ModelProto) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the integers and the real values of each weight of a model."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors:
            integers = tensors[node.input[0]]
            weights[node.input[0]] = integers, integers.astype(np.float64) * tensors[node.input[1]]
    return weights


def test_seven_bit_weights_lie_on_the_finest_grid_that_fits(bundle: Path) -> None:
    model = read_bundle(bundle).model("fp32")
    before = dequantized(onnx.ModelProto.FromString(model))
    changed = onnx.ModelProto.FromString(seven_bit_weights(model))
    onnx.checker.check_model(changed, full_check=True)
    after = dequantized(changed)
    assert before.keys() == after.keys()
    assert len(after) == 2
    for name, (integers, values) in after.items():
        assert np.abs(integers.astype(int)).max(axis=0).tolist() == [63] * integers.shape[1]
        step = np.abs(before[name][1]).max(axis=0) / 63
        assert (np.abs(values - before[name][1]) <= step / 2 * (1 + 1e-5)).all()


SHARED = """<ir_version: 10, opset_import: ["": 20]> g (float[2,3] x) => (float[2,4] y) {
    wa = DequantizeLinear<axis=1>(w, sa)
    wb = DequantizeLinear<axis=1>(w, sb)
    wc = DequantizeLinear<axis=1>(w, sa)
    moved = Add(x, shared_input_shift)
    a = MatMul(x, wa)
    b = MatMul(moved, wb)
    c = MatMul(moved, wc)
    ya = Add(a, bias)
    yb = Add(b, bias)
    yc = Add(bias, c)
    y = Sum(ya, yb, yc)
}"""


def sharing(text: str = SHARED) -> bytes:
    """Return a model of three linears that share weight, scale, shift and bias; two of them have a shifted input."""
    generator = np.random.default_rng(0)
    proto = onnx.parser.parse_model(text.replace("shared_input_shift", "l_input_shift"))
    constants = {
        "w": generator.integers(-127, 128, (3, 4)).astype(np.int8),
        "sa": generator.uniform(0.01, 0.02, 4).astype(np.float32),
        "sb": generator.uniform(0.1, 0.2, 4).astype(np.float32),
        "bias": np.zeros(4, np.float32),
        "l.input_shift": np.full(3, 5.0, np.float32),
    }
    for node in proto.graph.node:
        node.input[:] = [name.replace("l_input", "l.input") for name in node.input]
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return bytes(proto.SerializeToString())


def test_what_weights_share_is_narrowed_for_each() -> None:
    model = sharing()
    changed = onnx.ModelProto.FromString(seven_bit_weights(model))
    onnx.checker.check_model(changed, full_check=True)
    nothing = np.zeros((2, 3), np.float32)
    # Where the input is 0 the shift alone is multiplied, and the biases take up all that the rounding makes of it.
    expected = ReferenceEvaluator(onnx.ModelProto.FromString(model)).run(None, {"x": nothing})[0]
    found = ReferenceEvaluator(changed).run(None, {"x": nothing})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    x = np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32)
    expected, found = (
        ReferenceEvaluator(one).run(None, {"x": x})[0] for one in (onnx.ModelProto.FromString(model), changed)
    )
    assert 0 < np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


@given(
    weight=arrays(np.int8, (3, 5), elements=st.integers(-127, 127)),
    largest=st.sampled_from([7, 31, 63, 127]),
    per_channel=st.booleans(),
)
def test_a_channel_is_rounded_only_where_seven_bits_do_not_hold_it(
    weight: np.ndarray, largest: int, per_channel: bool
) -> None:
    weight = np.clip(weight, -largest, largest)
    scale = np.array([0.5, 0.25, 0.125], np.float32) if per_channel else np.array(0.5, np.float32)
    found = narrowed(weight, scale, axis=0)
    channels = np.abs(weight.astype(int)).max(axis=1 if per_channel else None, initial=0)
    held = np.broadcast_to(channels <= SEVEN_BIT_MAX, scale.shape)
    np.testing.assert_array_equal(found.wider[held], scale[held])
    assert (found.wider[~held] > scale[~held]).all()
    assert np.abs(found.after.astype(int)).max(initial=0) <= SEVEN_BIT_MAX
    steps = found.wider[:, None] if per_channel else found.wider
    assert (np.abs(found.change()) <= np.where(held[:, None] if per_channel else held, 0, 0.5001 * steps)).all()


@pytest.mark.parametrize(
    "text",
    [SHARED.replace("yb = Add(b, bias)", "yb = Add(b, ya)"), SHARED.replace("yb = Add(b, bias)", "yb = Relu(b)")],
    ids=["another value is added", "nothing is added"],
)
def test_a_shifted_input_without_a_bias_behind_it_is_refused(text: str) -> None:
    with pytest.raises(ArtifactError, match="expected a bias behind the product b, whose input is shifted, got none"):
        seven_bit_weights(sharing(text))


def test_a_model_without_integers_has_no_fast_profile(bundle: Path) -> None:
    plain = float_weights(read_bundle(bundle).model("fp32"))
    with pytest.raises(ArtifactError, match="has no int8 weights, so that it has no fast profile"):
        seven_bit_weights(plain)


def test_the_fast_profile_is_built_and_proves_itself(bundle: Path, tmp_path: Path) -> None:
    engine = tmp_path / "out.onnx"
    card = build_engine(bundle, engine, options=BuildOptions(cpu_profile="fast"))
    assert (card.precision.weight_bits, card.parts) == (7, ())
    assert card.precision.label.startswith("W7A8 carried")  # 8-bit kernels multiply them
    assert card.build.options == CpuOptions(cpu_profile="fast", kept_profile="fast")
    assert card.build.inspection.integer_products == 2
    assert selftest(engine).problem() is None
    assert selftest(engine).drift == 0.0


def test_float_weights_compute_with_the_quantized_weights_and_full_activations(bundle: Path) -> None:
    opened = read_bundle(bundle)
    golden = opened.golden()
    plain = onnx.ModelProto.FromString(float_weights(opened.model("fp32")))
    onnx.checker.check_model(plain, full_check=True)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in plain.graph.node}
    assert not [t.name for t in plain.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    names = [output.name for output in plain.graph.output]
    outputs = dict(zip(names, ReferenceEvaluator(plain).run(None, {"image": golden.image}), strict=True))
    assert row_cosine(outputs["embedding"], golden.float_embedding).min() > 0.9995


@pytest.mark.parametrize(("slow", "kept", "products"), [("exact", "float", 0), ("float", "exact", 2)])
def test_auto_keeps_what_is_faster_here(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, slow: str, kept: str, products: int
) -> None:
    def measured(candidates: Mapping[str, Callable[[], object]], rounds: Rounds) -> dict[str, np.ndarray]:
        for run in candidates.values():
            run()
        return {name: np.full(rounds.minimum, 2.0 if name == slow else 1.0) for name in candidates}

    monkeypatch.setattr(cpu_builder, "measure_interleaved", measured)
    opened = read_bundle(bundle)
    candidates = cpu_candidates(opened.model("fp32"), CpuRequest(choice="auto", backend="onnxruntime"))
    proved = prove_candidates(candidates, opened.golden(), ProofSetting(threads=1, name="x"))
    assert proved.built.profile == kept
    # Narrower weights are tried where sums of full ones would overflow.
    assert set(proved.inspection.rows) == {"exact", "float", *(["fast"] if saturates() else [])}
    assert proved.inspection.integer_products == products


def test_the_card_says_which_profile_was_kept_and_why(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = tmp_path / "out.onnx"
    with caplog.at_level("INFO"):
        card = build_engine(bundle, engine, backend="onnxruntime", options=BuildOptions(cpu_profile="auto"))
    kept = card.build.options.kept_profile
    assert all(estimate.value > 1 for estimate in card.build.inspection.faster_than.values()) or kept == "exact"
    assert card.build.options == CpuOptions(cpu_profile="auto", kept_profile=kept)
    assert card.precision.weight_bits == (8 if kept == "exact" else 32)
    others = card.build.inspection.faster_than
    words = [f"{faster.value:.2f} times as fast as {name!r}" for name, faster in others.items()]
    assert words
    assert f"{kept} is kept: {words[0]}" in caplog.text
    assert all(part in caplog.text for part in words)
    assert ("counts as equally fast" in caplog.text) == any(faster.value <= 1 for faster in others.values())
    assert selftest(engine).problem() is None


def test_the_float_profile_quantizes_nothing(bundle: Path, tmp_path: Path) -> None:
    card = build_engine(bundle, tmp_path / "out.onnx", options=BuildOptions(cpu_profile="float"))
    assert (card.precision.weight_bits, card.precision.quantized_linears, card.parts) == (32, 0, ())
    assert card.build.inspection.integer_products == 0
