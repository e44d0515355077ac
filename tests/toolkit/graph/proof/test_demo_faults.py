"""57 planted faults: each linear of the demo with its input scale doubled or halved, or its weights' scale doubled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from p4q_edge.calibration.calibrate import calibrate_encoder
from p4q_edge.data.image_set import pixels
from p4q_edge.data.readers import read_images
from p4q_edge.demo import MODEL_DIR
from p4q_edge.graph.export import Quantizations, build_graphs
from p4q_edge.graph.proof.layers import GraphLayers, LayerRecord, record_layers, wrong_layers
from p4q_edge.graph.trace import trace_float_graph
from p4q_edge.models.adapter import Adapter
from p4q_edge.models.folded_classifier import FoldedClassifier
from p4q_edge.models.load import load_model
from p4q_edge.quant.linear import Phase, running_in
from p4q_edge.quant.scheme import QuantScheme

LINEARS = 19
WIDTHS = [(8, 8)] + [pytest.param(*bits, marks=pytest.mark.slow) for bits in ((6, 6), (4, 8), (4, 4))]
Proven = tuple[dict[str, onnx.ModelProto], dict[str, LayerRecord]]


def demo(scheme: QuantScheme) -> tuple[FoldedClassifier, np.ndarray]:
    """The demo with an adapter of random weights, calibrated on 32 digits."""
    model = load_model(f"local-dir:{MODEL_DIR}")
    images = read_images("demo:digits")
    chosen = pixels(images.subset(np.linspace(0, len(images) - 1, 32).astype(int)), model.preprocess)
    encoder = calibrate_encoder(model, chosen, scheme).encoder
    generator = torch.Generator().manual_seed(0)
    dim = model.clip.text_projection.shape[1]
    adapter = Adapter(dim, scheme, ratio=0.2, learn_ratio=False, zero_init=False, generator=generator)
    adapter.freeze(torch.randn(64, dim, generator=generator))
    text = torch.randn(10, dim, generator=generator)
    parts = {"logit_scale": model.logit_scale, "logit_bias": None, "preprocess": model.preprocess}
    return FoldedClassifier(encoder, adapter, text, **parts), chosen.numpy()


@pytest.fixture
def proven() -> Callable[[int, int], Proven]:
    """Makes the graphs of the demo at a width, and the records of its module."""

    def make(weight_bits: int, activation_bits: int) -> Proven:
        module, images = demo(QuantScheme(weight_bits=weight_bits, activation_bits=activation_bits))
        with running_in(module, Phase.TRACED):
            traced = trace_float_graph(module, images.shape[2:])
        return build_graphs(traced, Quantizations.of(module)).stored, record_layers(module, images[:4])

    return make


@pytest.mark.parametrize(("weight_bits", "activation_bits"), WIDTHS)
def test_none_of_57_faults_is_missed_and_each_is_named(
    proven: Callable[[int, int], Proven], weight_bits: int, activation_bits: int
) -> None:
    graphs, records = proven(weight_bits, activation_bits)
    assert len(records) == LINEARS
    for kind, graph in graphs.items():
        assert wrong_layers(records, graph) == {}, kind
        layers = GraphLayers(graph).layers
        tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
        faults = 0
        for path, layer in layers.items():
            (quantize,) = (node for node in layer.grid if node.op_type == "QuantizeLinear")
            clips = [name for node in layer.grid if node.op_type == "Clip" for name in node.input[1:]]
            for names, factor in (
                ((quantize.input[1], *clips), 2.0),
                ((quantize.input[1], *clips), 0.5),
                ((layer.weight.input[1],), 2.0),
            ):
                before = {name: tensors[name].SerializeToString() for name in names}
                for name in names:
                    values = numpy_helper.to_array(tensors[name])
                    tensors[name].CopyFrom(numpy_helper.from_array(values * values.dtype.type(factor), name))
                found = wrong_layers(records, graph)
                readers = {
                    other
                    for other, one in layers.items()
                    if names[0]
                    in (one.weight.input[1], *(node.input[1] for node in one.grid if node.op_type != "Cast"))
                }
                assert set(found) == readers, (kind, path, names[0], factor)
                faults += 1
                for name, data in before.items():
                    tensors[name].ParseFromString(data)
        assert faults == 3 * LINEARS == 57
