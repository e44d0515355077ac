"""Plant a fault in each quantized linear of a model's graphs and see that the proof of graphs finds it, by name.

Each linear gets the scale of its input doubled, halved, and that of its weights doubled, in the graph with FP32 and in
that with FP16 remainder. A sound graph must raise no alarm, and a fault must be named at every linear that reads the
changed tensor and at no other.

Run: python tools/bench/planted_faults.py --model FOLDER --images FOLDER --output planted-faults.json
where --model is an open_clip folder (`real_models.py` makes some) and --images a folder of photographs, at any depth.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from asked import listed, tells_errors
from onnx import numpy_helper

from p4q_edge.calibration import calibrate_encoder
from p4q_edge.data import pixels
from p4q_edge.data.readers import read_calibration_images
from p4q_edge.graph.export import Quantizations, build_graphs
from p4q_edge.graph.proof.layers import GraphLayers, Layer, LayerRecord, record_layers, wrong_layers
from p4q_edge.graph.trace import trace_float_graph
from p4q_edge.models import Adapter, FoldedClassifier, load_model
from p4q_edge.quant import Phase, QuantScheme, running_in
from p4q_edge.runtime.storage import atomic_write, encode_json

WIDTHS = {"W8A8": (8, 8), "W6A6": (6, 6), "W4A8": (4, 8), "W4A4": (4, 4)}
CLASSES = 10
RECORDED = 4
"""Images that the layers of the module are recorded on."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of the faults in one graph.

    Attributes:
        remainder: `fp32` or `fp16`.
        false_alarms: linears of the sound graph that were called wrong.
        missed: faults of which nothing was said.
        misnamed: faults found, but not at just the linears that read what was changed.
    """

    width: str
    remainder: str
    linears: int
    faults: int
    false_alarms: int
    missed: int
    misnamed: int
    seconds: float


def classifier_of(folder: str, images: str, *, width: str, count: int) -> tuple[FoldedClassifier, np.ndarray]:
    """Return the model with an adapter of random weights, calibrated on images uint8 (N, 3, H, W), and these."""
    model = load_model(folder)
    listed = read_calibration_images(images, key="--images")
    taken = np.unique(np.linspace(0, len(listed) - 1, min(count, len(listed))).astype(int))
    chosen = pixels(listed.subset(taken), model.preprocess)
    weight_bits, activation_bits = WIDTHS[width]
    scheme = QuantScheme(weight_bits=weight_bits, activation_bits=activation_bits)
    encoder = calibrate_encoder(model, chosen, scheme).encoder
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        dim = int(model.clip.encode_image(torch.zeros(1, 3, *model.preprocess.size)).shape[1])
    adapter = Adapter(dim, scheme, ratio=0.2, learn_ratio=False, zero_init=False, generator=generator)
    adapter.freeze(torch.randn(64, dim, generator=generator))
    text = torch.randn(CLASSES, dim, generator=generator)
    parts = {"logit_scale": model.logit_scale, "logit_bias": None, "preprocess": model.preprocess}
    return FoldedClassifier(encoder, adapter, text, **parts), chosen.numpy()


def faults_of(layer: Layer) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yield the tensors of each fault of a linear, and what they are multiplied by."""
    (quantize,) = (node for node in layer.grid if node.op_type == "QuantizeLinear")
    clips = tuple(name for node in layer.grid if node.op_type == "Clip" for name in node.input[1:])
    yield (quantize.input[1], *clips), 2.0
    yield (quantize.input[1], *clips), 0.5
    yield (layer.weight.input[1],), 2.0


def readers_of(layers: dict[str, Layer], name: str) -> set[str]:
    """Return the linears that read a tensor: those of one attention share the grid of their input."""
    return {
        path
        for path, layer in layers.items()
        if name == layer.weight.input[1] or any(name in node.input[1:] for node in layer.grid if node.op_type != "Cast")
    }


def plant(width: str, remainder: str, graph: onnx.ModelProto, records: Mapping[str, LayerRecord]) -> Row:
    """Plant every fault of a graph, one at a time, and count what the proof says."""
    begin = time.perf_counter()
    alarms = wrong_layers(records, graph)
    layers = GraphLayers(graph).layers
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    faults = missed = misnamed = 0
    for layer in layers.values():
        for names, factor in faults_of(layer):
            before = {name: tensors[name].SerializeToString() for name in names}
            for name in names:
                values = numpy_helper.to_array(tensors[name])
                tensors[name].CopyFrom(numpy_helper.from_array(values * values.dtype.type(factor), name))
            found = set(wrong_layers(records, graph)) - set(alarms)
            faults += 1
            missed += not found
            misnamed += bool(found) and found != readers_of(layers, names[0])
            for name, data in before.items():
                tensors[name].ParseFromString(data)
    return Row(
        width=width,
        remainder=remainder,
        linears=len(layers),
        faults=faults,
        false_alarms=len(alarms),
        missed=missed,
        misnamed=misnamed,
        seconds=round(time.perf_counter() - begin, 1),
    )


def rows_of(folder: str, images: str, width: str, *, count: int) -> Iterator[Row]:
    """Yield a row for each graph of a model at a width."""
    module, chosen = classifier_of(folder, images, width=width, count=count)
    with running_in(module, Phase.TRACED):
        traced = trace_float_graph(module, chosen.shape[2:])
    graphs = build_graphs(traced, Quantizations.of(module)).stored
    records = record_layers(module, chosen[:RECORDED])
    for remainder, graph in graphs.items():
        yield plant(width, remainder, graph, records)


def as_table(rows: list[Row]) -> str:
    """Return the rows in Markdown."""
    head = "| width | remainder | linears | faults | missed | misnamed | false alarms |\n" + "|---" * 7 + "|\n"
    lines = (
        f"| {row.width} | {row.remainder} | {row.linears} | {row.faults} | {row.missed} | {row.misnamed} | "
        f"{row.false_alarms} |\n"
        for row in rows
    )
    return head + "".join(lines)


@tells_errors
def main() -> int:
    """Run the command line; exit code 1 where a fault was missed or misnamed, or a sound graph was called wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="open_clip folder")
    parser.add_argument("--images", required=True, help="folder of photographs, or demo:leaves")
    parser.add_argument("--width", default=",".join(WIDTHS), help="of %(default)s")
    parser.add_argument("--count", type=int, default=32, help="images to calibrate on (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file; the table goes beside it")
    args = parser.parse_args()
    rows: list[Row] = []
    for width in listed(args.width, tuple(WIDTHS), option="--width"):
        for row in rows_of(f"local-dir:{args.model}", args.images, width, count=args.count):
            rows.append(row)
            print(row, flush=True)
    atomic_write(args.output, encode_json([asdict(row) for row in rows]), force=True)
    atomic_write(args.output.with_suffix(".md"), as_table(rows).encode(), force=True)
    return int(any(row.missed or row.misnamed or row.false_alarms for row in rows))


if __name__ == "__main__":
    sys.exit(main())
