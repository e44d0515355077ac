"""Other arithmetics, what they change in a sound module, and a graph without activation grids."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from p4q_edge.graph.export import ExportedGraphs, export_classifier
from p4q_edge.graph.parity import run_in_onnxruntime
from p4q_edge.graph.proof.arithmetic import (
    Bfloat16Remainder,
    Float64Sums,
    HalfPrecision,
    PermutedSums,
    ScaledInput,
)
from p4q_edge.graph.proof.bypass import without_activation_grids
from p4q_edge.graph.proof.noise import (
    bfloat16_noise,
    difference,
    run_module,
    run_quantized,
    weights_of_seven_bits,
)
from p4q_edge.graph.proof.verdict import float_problem, noise_problem, run_float
from p4q_edge.models.folded_classifier import FoldedClassifier
from p4q_edge.quant.attention import Attention
from p4q_edge.quant.linear import Phase, quant_linears, running_in
from p4q_edge.quant.scheme import QuantScheme
from p4q_edge.runtime.engines.onnxruntime import seven_bit_weights

Exported = tuple[ExportedGraphs, FoldedClassifier]


def relative(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    return float((np.linalg.norm(first - second, axis=1) / np.linalg.norm(second, axis=1)).max())


@pytest.mark.parametrize(
    ("arithmetic", "low", "high"),
    [
        (Float64Sums, 1e-9, 1e-5),
        (lambda: PermutedSums(0), 1e-9, 1e-5),
        (lambda: ScaledInput(1 + 1e-6), 1e-9, 1e-4),
        (HalfPrecision, 1e-5, 1e-2),
        (lambda: Bfloat16Remainder([]), 1e-4, 1e-1),
    ],
)
def test_an_arithmetic_changes_roundings_and_no_more(
    toy_graphs: Exported, images: NDArray[np.uint8], arithmetic: Callable[[], object], low: float, high: float
) -> None:
    _, model = toy_graphs
    with running_in(model, Phase.FLOAT):
        plain = run_module(model, images)
        found = run_module(model, images, (arithmetic(),))  # type: ignore[operator]
    assert low < relative(found["features"], plain["features"]) < high


@pytest.mark.parametrize(
    "scheme", [QuantScheme(), pytest.param(QuantScheme(weight_bits=4, activation_bits=4), marks=pytest.mark.slow)]
)
def test_without_activation_grids_a_graph_is_the_module_in_float(
    fold_toy: Callable[[QuantScheme], FoldedClassifier], images: NDArray[np.uint8], scheme: QuantScheme
) -> None:
    model = fold_toy(scheme)
    graphs = export_classifier(model, images)
    graph = onnx.load_from_string(graphs.fp32 + graphs.weights)
    before = [node.op_type for node in graph.graph.node]
    bypassed = without_activation_grids(graph)
    kinds = {node.op_type for node in bypassed.graph.node}
    assert not kinds & {"QuantizeLinear", "Clip"}
    assert [node.op_type for node in graph.graph.node] == before
    with running_in(model, Phase.WEIGHTS):
        expected = run_module(model, images)
    found = run_in_onnxruntime(bypassed.SerializeToString(), images, optimized=False)
    assert relative(found["embedding"], expected["embedding"]) < 1e-5
    assert float_problem(graph, run_float(model, images), images, half=False) is None


def test_a_change_outside_of_linears_is_found_without_the_grids(
    toy_graphs: Exported, fp32_model: onnx.ModelProto, images: NDArray[np.uint8]
) -> None:
    _, model = toy_graphs
    floats = run_float(model, images)
    (norm, *_) = (node for node in fp32_model.graph.node if node.op_type == "LayerNormalization")
    (epsilon,) = (attribute for attribute in norm.attribute if attribute.name == "epsilon")
    epsilon.f = 1e-2
    problem = float_problem(fp32_model, floats, images, half=False)
    assert problem is not None
    assert problem.startswith("without the grids of its activations the output ")
    assert "(relative; arithmetic explains 1e-05)" in problem


def test_the_noise_is_that_of_the_module_and_the_module_stays_as_it_was(
    toy_graphs: Exported, images: NDArray[np.uint8]
) -> None:
    graphs, model = toy_graphs
    before = {path: linear.quantized_weight().clone() for path, linear in quant_linears(model).items()}
    runs = run_quantized(model, images, running=partial(running_in, model, Phase.QUANTIZED), logit_scale=20.0)
    assert runs.fine.losses["embedding"].shape == runs.half.losses["embedding"].shape == (5, len(images))
    assert len(np.unique(runs.half.losses["features"], axis=0)) > 1  # in other arithmetics
    assert 0 < runs.half.worst("embedding") < 1e-3
    assert runs.on_cpu.worst("embedding") >= runs.half.worst("embedding")
    assert runs.seven_bit.worst("embedding") > runs.half.worst("embedding")
    assert all(torch.equal(linear.quantized_weight(), before[path]) for path, linear in quant_linears(model).items())
    recorded = graphs.parity.noise["fp16"]
    assert recorded == runs.half.floor(runs.half)
    assert noise_problem(runs.reference, runs.reference, runs.half) is None


def test_a_difference_beyond_the_noise_is_told_with_the_noise(toy_graphs: Exported, images: NDArray[np.uint8]) -> None:
    _, model = toy_graphs
    runs = run_quantized(model, images, running=partial(running_in, model, Phase.QUANTIZED), logit_scale=20.0)
    off = dict(runs.reference)
    off["embedding"] = np.roll(off["embedding"], 1, axis=1)
    problem = noise_problem(runs.reference, off, runs.half)
    assert problem is not None
    assert problem.startswith("the output embedding reaches a cosine of ")
    assert "the noise of this model's own roundings explains 0.999" in problem
    off["embedding"] = np.full_like(off["embedding"], np.nan)
    assert noise_problem(runs.reference, off, runs.half) is not None


def test_the_lead_of_the_best_class_is_measured_in_cosines() -> None:
    reference = {"logits": np.array([[10.0, 4.0]], np.float32)}
    run = {"logits": np.array([[9.0, 5.0]], np.float32)}
    assert difference(reference, run, logit_scale=10.0).shifts == pytest.approx(0.2)


def test_seven_bit_weights_are_those_of_the_profile(toy_graphs: Exported) -> None:
    _, model = toy_graphs
    with weights_of_seven_bits(model):
        assert max(int(linear.integer_weight().abs().max()) for linear in quant_linears(model).values()) == 63


@pytest.mark.slow
def test_seven_bits_of_a_shifted_input_keep_what_the_shift_gives(
    fold_toy: Callable[[QuantScheme], FoldedClassifier], images: NDArray[np.uint8]
) -> None:
    """A ViT-S/14 lost .315 of its cosine in the profile `fast`, as what its shifts gave was off by the rounding."""
    losses = []
    for shift in (0.0, -16.0):
        model = fold_toy(QuantScheme(activation_gain=False, activation_bits=8))
        for path, linear in quant_linears(model).items():
            if path.endswith("c_proj"):
                linear.set_shift(torch.full((linear.weight.shape[1],), shift))
                linear.input_scale.fill_(0.2)
                linear.scale_weight()
        graphs = export_classifier(model, images)
        with running_in(model, Phase.QUANTIZED):
            reference = run_module(model, images)
            with weights_of_seven_bits(model):
                module = run_module(model, images)
            again = run_module(model, images)
        graph = run_in_onnxruntime(seven_bit_weights(graphs.fp32 + graphs.weights), images, optimized=False)
        assert relative(graph["embedding"], module["embedding"]) < 0.02
        assert np.array_equal(again["embedding"], reference["embedding"])
        losses.append(difference(reference, module, logit_scale=20.0).losses["embedding"].mean())
    assert losses[1] < 2 * losses[0] < 0.02


def test_the_noise_of_bfloat16_is_that_of_the_remainder(toy_graphs: Exported, images: NDArray[np.uint8]) -> None:
    graphs, model = toy_graphs
    running = partial(running_in, model, Phase.QUANTIZED)
    runs = run_quantized(model, images, running=running, logit_scale=20.0)
    coarse = bfloat16_noise(model, images, runs.reference, running=running, logit_scale=20.0)
    assert coarse.losses["embedding"].shape == (3, len(images))
    assert runs.half.worst("embedding") < coarse.worst("embedding") < 64 * runs.half.worst("embedding")
    assert graphs.parity.noise["bf16"] == coarse.and_(runs.on_cpu).floor(coarse)
    with running():
        again = run_module(model, images)
    assert np.array_equal(again["embedding"], runs.reference["embedding"])  # no hook is left


def test_layers_of_integers_are_exact_in_bfloat16() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(64, 5).requires_grad_(False)
    x = torch.randn(3, 64, generator=generator)
    exact = layer(x)
    with Bfloat16Remainder([layer]):
        assert torch.equal(layer(x), exact.bfloat16().float())
    with Bfloat16Remainder([]):
        rounded = layer(x)
    assert not torch.equal(rounded, exact.bfloat16().float())
    assert float((rounded - exact).abs().max()) < 0.05
    assert torch.equal(layer(x), exact)


def test_products_of_attentions_are_exact_in_bfloat16() -> None:
    """OpenVINO multiplies their integers (`test_openvino_multiplies_integers_in_attentions`)."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 5, 8, generator=generator) for _ in range(3))
    attention = Attention.from_multihead(torch.nn.MultiheadAttention(16, 2, batch_first=True), QuantScheme())
    attention.quantize_products(QuantScheme(quantize_attention=True))
    products, attention.phase = attention.products, Phase.QUANTIZED
    assert products is not None
    for operand in products.operands:
        operand.scale = torch.tensor(0.0123)
    grid = products.on_grid(*(x.bfloat16().float() for x in (q, k, v)))
    scores = (grid[0] @ grid[1].transpose(-2, -1)).bfloat16().float()
    weights = products.softmax_on_grid(scores.softmax(-1).bfloat16().float())
    expected = (weights @ grid[2]).bfloat16().float().transpose(1, 2).flatten(2)
    with Bfloat16Remainder([], [products]) as arithmetic:
        found = attention.mix(*attention.operands(*map(arithmetic.rounding, (q, k, v))))
    assert torch.equal(found, expected)
    with Bfloat16Remainder([]) as arithmetic:
        rounded = attention.mix(*attention.operands(*map(arithmetic.rounding, (q, k, v))))
    assert not torch.equal(rounded, expected)
    assert torch.equal(products.on_grid(q, k, v)[0], products._on_grid(q, products.query.scale))  # nothing is left


def test_operands_may_be_named() -> None:
    """The attentions of timm's EVA name the weight and bias of a linear layer."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((3, 64), (5, 64), (5,)))
    calls: list[Callable[[], torch.Tensor]] = [
        lambda: torch.nn.functional.linear(x, weight, bias),
        lambda: torch.nn.functional.linear(x, bias=bias, weight=weight),
        lambda: torch.nn.functional.linear(input=x, weight=weight, bias=bias),
        lambda: torch.matmul(x, other=weight.T) + bias,
        lambda: torch.matmul(x1=x, x2=weight.T) + bias,
        lambda: torch.bmm(x[None], mat2=weight.T[None])[0] + bias,
    ]
    for call in calls:
        with PermutedSums(0):
            permuted = call()
        assert 0 < float((permuted - call()).abs().max()) < 1e-4
    with PermutedSums(0):
        assert torch.equal(torch.nn.functional.linear(x, weight[0]), x @ weight[0])
