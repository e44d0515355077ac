"""What INT8 convolutions would bring on a CPU: forms of one graph in ONNX Runtime and OpenVINO, timed in turns.

    python tools/bench/cpu_convolutions.py RN50 --threads 1 --batch 1 --output rows.json

Weights are random. `fp32` has nothing quantized, `ours` is the CPU graph of a bundle (linears in INT8, convolutions in
FP32 from their integers), `placed` is TensorRT's graph before its remainder became FP16 (convolutions in INT8, signed,
Q/DQ at tensors that additions and pools share), and `u8` is ONNX Runtime's own quantization of `fp32` (uint8
activations with zero points, Q/DQ at inputs and outputs, depthwise convolutions in FP32). Cosines are the least ones of
the embeddings to those of the float model; those of random weights tell a broken graph, not an accuracy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from families import classifier_maker, config_of

from p4q_edge.runtime.machine import cpu, provenance
from p4q_edge.runtime.statistics import Rounds, measure_interleaved, paired_ratio
from p4q_edge.runtime.storage import atomic_write

BASELINE = "ONNX Runtime fp32"


def forms(name: str) -> tuple[dict[str, bytes], np.ndarray]:
    """The graphs of a model by form, and uint8 images (2, 3, H, W)."""
    from p4q_edge.graph.export import Quantizations, build_graphs
    from p4q_edge.graph.trace import trace_float_graph
    from p4q_edge.quant import Phase, QuantScheme, running_in
    from p4q_edge.runtime.engines.onnxruntime import float_weights

    scheme = QuantScheme(observer="minmax", weight_observer="minmax")
    model, images = classifier_maker()(config_of(name), name, classes=100, scheme=scheme)
    with running_in(model, Phase.TRACED):
        traced = trace_float_graph(model, images.shape[2:])
    graphs = build_graphs(traced, Quantizations.of(model))
    ours = graphs.fp32.SerializeToString()
    exact = float_weights(ours)
    found = {"fp32": exact, "ours": ours, "u8": unsigned(exact, images)}
    return found | ({"placed": graphs.placed.SerializeToString()} if graphs.placed is not None else {}), images


def unsigned(model: bytes, images: np.ndarray) -> bytes:
    """ONNX Runtime's own quantization of a float graph, calibrated on the images, depthwise convolutions left out."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows = iter([{"image": images[index : index + 1]} for index in range(len(images))])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._rows, None)

    depthwise = [
        node.name
        for node in onnx.load_from_string(model).graph.node
        if node.op_type == "Conv" and any(one.name == "group" and one.i > 1 for one in node.attribute)
    ]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "u8.onnx"
        source.write_bytes(model)
        quantize_static(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=depthwise,
        )
        return target.read_bytes()


def engines(graphs: Mapping[str, bytes], *, threads: int, batch: int) -> Iterator[tuple[str, Any]]:
    """Each form in each library."""
    from p4q_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine
    from p4q_edge.runtime.engines.openvino import OpenVINOEngine, installed, model_source, remainders

    for form, model in graphs.items():
        yield f"ONNX Runtime {form}", OnnxRuntimeEngine(model, threads=threads)
    for form in ("fp32", "ours", "placed") if installed() else ():
        for remainder in remainders() if form in graphs else ():
            source = model_source(graphs[form])
            engine = OpenVINOEngine(source, remainder=remainder, threads=threads, batch=batch)
            yield f"OpenVINO {form}, {remainder}", engine


def measure(name: str, *, threads: int, batch: int, rounds: int) -> dict[str, Any]:
    """Times and cosines of a model's forms."""
    graphs, images = forms(name)
    loaded = dict(engines(graphs, threads=threads, batch=batch))
    pictures = np.ascontiguousarray(images[np.arange(batch) % len(images)])
    exact = loaded[BASELINE].run(images)["embedding"].astype(np.float64)
    times = measure_interleaved(
        {label: partial(engine.run, pictures) for label, engine in loaded.items()},
        Rounds(warmup=2, minimum=rounds, maximum=rounds, seconds=0.0),
    )
    rows = {}
    for label, engine in loaded.items():
        found = engine.run(images)["embedding"].astype(np.float64)
        cosines = (found * exact).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)
        ratio = paired_ratio(times[BASELINE], times[label], generator=np.random.default_rng(0))
        rows[label] = {
            "p50_ms": float(np.median(times[label])),
            "times_as_fast": asdict(ratio),
            "cosine_float": float(cosines.min()),
        }
    return {"model": name, "threads": threads, "batch": batch, "rounds": rounds, "rows": rows}


def table(document: Mapping[str, Any]) -> str:
    """The rows as Markdown."""
    lines = ["| form | p50 ms | x ONNX Runtime FP32 (95 %) | cosine to float |", "| --- | --- | --- | --- |"]
    for label, row in document["rows"].items():
        ratio = row["times_as_fast"]
        said = f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        lines.append(f"| {label} | {row['p50_ms']:.1f} | {said} | {row['cosine_float']:.5f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure a model and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model of open_clip, or tf_efficientnet_lite2")
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=30, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)
    before = os.getloadavg()
    document = measure(args.model, threads=args.threads, batch=args.batch, rounds=args.rounds) | {
        "cpu": cpu.cpu(),
        "load_average": [before, os.getloadavg()],
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(),
    }
    if args.output:
        atomic_write(args.output, json.dumps(document, indent=1).encode() + b"\n", force=True)
    print(table(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
