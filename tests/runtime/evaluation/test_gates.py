"""Limits that follow the bit width: as strict as ever at 8 bits, no false alarm below, and a wrong grid is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p4q_edge.runtime.evaluation.comparison import ChainOptions, ChainReport, validate_chain
from p4q_edge.runtime.evaluation.gates import Gates, judge
from p4q_edge.runtime.stage import Stage
from p4q_edge.runtime.statistics import EXCESS
from p4q_edge.runtime.statistics import rounding_limits as tolerance

WIDTHS = (8, 6, 4, 2)
SIDE, HIDDEN, DIM, CLASSES = 4, 48, 24, 6
IMAGES = np.random.default_rng(5).integers(0, 256, (200, 3, SIDE, SIDE), dtype=np.uint8)
EXPECTED = {"onnx": 1e-14, "engine": 1e-14}


class Network:
    """Two quantized linears in NumPy; `steps` widens the grids of their inputs, `order` adds the other way round."""

    def __init__(self, bits: int) -> None:
        generator = np.random.default_rng(1)
        self.weights = [generator.normal(size=(3 * SIDE * SIDE, HIDDEN)), generator.normal(size=(HIDDEN, DIM))]
        self.classes = generator.normal(size=(DIM, CLASSES))
        self.most = 2 ** (bits - 1) - 1
        self.scales = [1.0, 1.0]
        for layer in range(2):
            self.scales[layer] = 2.0 * float(self._input(layer, IMAGES).std()) / self.most

    def _input(self, layer: int, batch: np.ndarray) -> np.ndarray:
        x = (batch.reshape(len(batch), -1) / 127.5 - 1).astype(np.float32)
        return x if layer == 0 else np.maximum(self._linear(x, 0), 0)

    def _linear(self, x: np.ndarray, layer: int, step: float = 1.0, *, reverse: bool = False) -> np.ndarray:
        scale = np.float32(self.scales[layer] * step)
        grid = np.clip(np.rint(x / scale), -self.most - 1, self.most) * scale
        weight = self.weights[layer].astype(np.float32)
        return grid[:, ::-1] @ weight[::-1] if reverse else grid @ weight

    def stage(self, *, steps: tuple[float, float] = (1.0, 1.0), order: bool = False) -> Stage:
        def run(batch: np.ndarray) -> dict[str, np.ndarray]:
            x = self._input(0, batch)
            x = np.maximum(self._linear(x, 0, steps[0], reverse=order), 0)
            x = self._linear(x, 1, steps[1], reverse=order)
            embedding = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
            return {"embedding": embedding, "logits": 10 * embedding @ self.classes}

        return run


def compared(bits: int, engine: Stage) -> ChainReport:
    network = Network(bits)
    gates = Gates(bits=bits, expected_loss=EXPECTED)
    stages = {"fake_quant": network.stage(), "onnx": network.stage(order=True), "engine": engine}
    labels = network.stage()(IMAGES)["logits"].argmax(axis=1)
    names = [str(index) for index in range(CLASSES)]
    return validate_chain(stages, IMAGES, labels, names, options=ChainOptions(gates=gates))


@pytest.mark.parametrize("bits", WIDTHS)
def test_sums_in_another_order_pass_at_every_width(bits: int) -> None:
    report = compared(bits, Network(bits).stage(order=True))
    assert report.passed, [gate for gate in report.gates if not gate.passed]


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("step", [2.0, 0.5])
def test_one_input_on_another_grid_is_found_at_every_width(bits: int, layer: int, step: float) -> None:
    steps = (step, 1.0) if layer == 0 else (1.0, step)
    report = compared(bits, Network(bits).stage(steps=steps))
    failed = {gate.name for gate in report.gates if not gate.passed}
    assert {"median loss, fake_quant to engine", "median loss, onnx to engine"} <= failed
    assert "median loss, fake_quant to onnx" not in failed


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(WIDTHS), st.sampled_from([0, 1]), st.floats(1.05, 8.0))
def test_any_wider_step_is_found(bits: int, layer: int, step: float) -> None:
    steps = (step, 1.0) if layer == 0 else (1.0, step)
    assert not compared(bits, Network(bits).stage(steps=steps)).passed


def test_few_images_are_no_ground_for_a_median() -> None:
    stages = {"fake_quant": Network(8).stage(), "engine": Network(8).stage(steps=(2.0, 1.0))}
    names = [str(index) for index in range(CLASSES)]
    options = ChainOptions(gates=Gates(expected_loss=EXPECTED))
    report = validate_chain(stages, IMAGES[:6], [0] * 6, names, options=options)
    assert not any("median" in gate.name for gate in report.gates)


def test_the_cosine_limit_falls_with_the_square_of_the_step() -> None:
    assert [round(tolerance.least_cosine(bits), 6) for bits in (8, 7, 6, 4, 2)] == [0.999, 0.996, 0.984, 0.744, 0.5]


@given(st.integers(2, 8), st.integers(1, 50_000), st.data())
def test_the_shift_limit_is_between_that_of_8_bits_and_the_step(bits: int, n: int, data: st.DataObject) -> None:
    changed = data.draw(st.integers(0, n))
    limit = tolerance.largest_shift(bits, changed=changed, n=n)
    strict = max(0.2, 100 / n)
    assert strict - 1e-12 <= limit <= max(0.2 * 2 ** (8 - bits), 100 / n) + 1e-12
    if bits == 8:
        assert limit == strict


def test_a_shift_beyond_chance_fails_below_8_bits_too() -> None:
    # Of 1000 images 12 changed, and all of them for the worse.
    assert tolerance.largest_shift(4, changed=12, n=1000) < 1.2
    # As many the one way as the other are a random walk.
    assert tolerance.largest_shift(4, changed=400, n=1000) == pytest.approx(3.2)


def test_seven_bit_weights_are_compared_with_their_own_graph() -> None:
    network = Network(8)
    stages = {
        "fake_quant": network.stage(),
        "onnx": network.stage(steps=(1.1, 1.0)),
        "engine": network.stage(steps=(1.1, 1.0)),
    }
    gates = Gates(bits=7, grids={"onnx": "seven_bit", "engine": "seven_bit"}, expected_loss=EXPECTED)
    names = [str(index) for index in range(CLASSES)]
    report = validate_chain(stages, IMAGES, [0] * len(IMAGES), names, options=ChainOptions(gates=gates))
    assert report.passed
    assert [gate.name for gate in report.gates if "median" in gate.name] == ["median loss, onnx to engine"]


def test_an_engine_without_integers_must_be_as_near_to_float_as_the_reference() -> None:
    network = Network(4)
    float_stage = Network(8).stage(steps=(0.01, 0.01))
    wide = Network(8)
    wide.scales = [scale / 50 for scale in wide.scales]
    wide.most *= 100
    stages = {"float": wide.stage(), "fake_quant": network.stage(), "engine": wide.stage(order=True)}
    gates = Gates(bits=4, grids={"engine": "none"}, expected_loss=EXPECTED)
    names = [str(index) for index in range(CLASSES)]
    labels = wide.stage()(IMAGES)["logits"].argmax(axis=1)
    report = validate_chain(stages, IMAGES, labels, names, options=ChainOptions(gates=gates))
    (gate,) = report.gates
    assert (gate.name, gate.passed) == ("cosine (p1), float to engine, as near as the quantized model", True)
    broken = validate_chain({**stages, "engine": float_stage}, IMAGES, labels, names, options=ChainOptions(gates=gates))
    assert not broken.passed


@pytest.mark.parametrize(("bits", "words"), [(8, "limits of 8 bits"), (4, "a step is 16 times that of 8 bits")])
def test_the_report_says_how_its_limits_follow(bits: int, words: str) -> None:
    report = compared(bits, Network(bits).stage())
    assert words in report.rule
    assert report.bits == bits


@pytest.mark.parametrize(("low", "value", "high", "passed"), [(3e-6, 2e-6, 0.5e-6, True), (3e-6, 2e-6, 1.2e-6, False)])
def test_the_median_loss_fails_only_where_chance_cannot_explain_it(
    low: float, value: float, high: float, passed: bool
) -> None:
    """The better end of the interval decides; losses, worst first, against a limit of 1e-6."""
    report = compared(8, Network(8).stage())
    hop = report.hop("fake_quant", "onnx")
    median = replace(hop.cosine.median, low=1 - low, value=1 - value, high=1 - high)
    hop = replace(hop, cosine=replace(hop.cosine, median=median))
    gates = Gates(expected_loss={"onnx": 1e-6 / EXCESS})
    (found,) = (gate for gate in judge([hop], gates=gates) if gate.name.startswith("median loss"))
    assert found.limit == pytest.approx(1e-6)
    assert found.value == pytest.approx(value)
    assert found.passed == passed
