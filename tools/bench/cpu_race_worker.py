"""One candidate of ``cpu_race.py`` in a process of its own: loads it, answers with cosines, then runs when it is told.

Reads a request as a line of JSON, then numbers of images, one a line; answers each with the milliseconds of one call.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[np.ndarray], dict[str, np.ndarray]]
"""From uint8 images ``(n, 3, H, W)`` to outputs by name; none for towers whose head is not the bundle's."""


def main() -> int:
    """Serve one candidate until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print
    request = json.loads(sys.stdin.readline())

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        golden, call = load(request)
    except Exception as error:  # noqa: BLE001 - a candidate that cannot be loaded is a row that says so
        answer({"problem": f"{type(error).__name__}: {error}"[:300]})
        return 1
    answer(cosines(call, golden))
    from time import perf_counter

    for line in sys.stdin:
        images = np.ascontiguousarray(golden.image[np.arange(int(line)) % len(golden.image)])
        before = perf_counter()
        call(images)
        answer({"ms": (perf_counter() - before) * 1e3})
    return 0


def load(request: dict[str, Any]) -> tuple[Any, Call]:
    """The golden samples of a bundle, and the candidate that a request names."""
    from p4q_edge.runtime.artifacts import read_bundle

    bundle = read_bundle(Path(request["bundle"]))
    kind, threads = request["kind"], request["threads"]
    golden, model = bundle.golden().for_cpu(), bundle.model("fp32")
    if kind.startswith("ort"):
        from p4q_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine

        run = OnnxRuntimeEngine(onnxruntime_model(kind, model), threads=threads).run
    elif kind.startswith("openvino"):
        from p4q_edge.runtime.engines.openvino import OpenVINOEngine, model_source

        form = kind.rpartition("-")[2]
        if form == "convolutions":
            golden = bundle.golden()
        graph = openvino_model(form, bundle, model)
        remainder = "bf16" if form == "bf16" else "f32"
        engine = OpenVINOEngine(model_source(graph), remainder=remainder, threads=threads, batch=request["batch"])
        run = engine.run
    elif kind == "modelopt-ort":
        return golden, model_optimizer_call(model, golden.image, threads=threads, kept=Path(request["folder"]))
    elif kind == "nncf-openvino":
        sizes = {1, request["batch"]}
        return golden, nncf_call(model, golden.image, threads=threads, sizes=sizes, kept=Path(request["folder"]))
    else:
        return golden, torch_call(kind, request["model"], bundle.preprocess(), threads=threads)
    return golden, lambda images: run(images, ("logits", "embedding"))


def openvino_model(form: str, bundle: Any, model: bytes) -> bytes:
    """The bundle's graph, or that with float32 weights, or that with quantized convolutions, as this processor can."""
    from p4q_edge.runtime.engines.onnxruntime import float_weights, integer_convolutions, without_overflow
    from p4q_edge.runtime.machine.cpu import saturates

    if form == "float":
        return float_weights(model)
    if form != "convolutions":
        return model
    graph = integer_convolutions(bundle.model("fp16"), model)
    return without_overflow(graph) if saturates() else graph


def onnxruntime_model(kind: str, model: bytes) -> bytes:
    """The bundle's graph, or that with weights of 7 bits, of float32, or of 4 bits in blocks (`MatMulNBits`)."""
    from p4q_edge.runtime.engines.onnxruntime import float_weights, seven_bit_weights

    if kind == "ort-int8":
        return model
    if kind == "ort-int7":
        return seven_bit_weights(model)
    exact = float_weights(model)
    if kind == "ort-fp32":
        return exact
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    # Level 4 lets its kernels quantize activations to int8.
    quantizer = MatMulNBitsQuantizer(onnx.load_from_string(exact), block_size=128, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    return bytes(quantizer.model.model.SerializeToString())


def cosines(call: Call, golden: Any) -> dict[str, Any]:
    """Least cosines of the embeddings to the fake-quantized and to the float model, on the golden images."""
    rows = [call(golden.image[index : index + 1]) for index in range(len(golden.image))]
    if "embedding" not in rows[0]:
        return {"cosine_quantized": None, "cosine_float": None}
    found = np.concatenate([row["embedding"] for row in rows]).astype(np.float64)

    def least(expected: np.ndarray) -> float:
        norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        return float(((found * expected).sum(axis=1) / norms).min())

    return {"cosine_quantized": least(golden.embedding), "cosine_float": least(golden.float_embedding)}


def nncf_call(model: bytes, images: np.ndarray, *, threads: int, sizes: set[int], kept: Path) -> Call:
    """NNCF's quantization of the float graph, run by OpenVINO: calibrated on the golden images, as a user would try.

    The quantized graph stays in the folder `kept`, for the next setting.
    """
    from p4q_edge.runtime.engines.onnxruntime import float_weights
    from p4q_edge.runtime.machine import import_openvino_unreported

    openvino: Any = import_openvino_unreported()
    core = openvino.Core()
    file = kept / "nncf.xml"
    if not file.exists():
        import nncf

        graph = core.read_model(float_weights(model))
        dataset = nncf.Dataset([images[index : index + 1] for index in range(len(images))])
        found = nncf.quantize(graph, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(images))
        openvino.save_model(found, file, compress_to_fp16=False)
    quantized = core.read_model(file)
    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    compiled = {}
    for size in sizes:
        fixed = quantized.clone()
        fixed.reshape({"image": [size, *images.shape[1:]]})
        compiled[size] = core.compile_model(fixed, "CPU", options).create_infer_request()

    def call(batch_of: np.ndarray) -> dict[str, np.ndarray]:
        request = compiled[len(batch_of)]
        request.infer([batch_of])
        return {name: np.array(request.get_tensor(name).data) for name in ("logits", "embedding")}

    return call


def model_optimizer_call(model: bytes, images: np.ndarray, *, threads: int, kept: Path) -> Call:
    """Model Optimizer's INT8 quantization of the float graph, calibrated on the golden images, in ONNX Runtime.

    The quantized graph stays in the folder `kept`, for the next setting.
    """
    from p4q_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine, float_weights

    target = kept / "modelopt.onnx"
    if not target.exists():
        from modelopt.onnx.quantization import quantize

        source = kept / "float.onnx"
        source.write_bytes(float_weights(model))
        quantize(
            str(source),
            quantize_mode="int8",
            calibration_data={"image": images},
            calibration_eps=["cpu"],
            output_path=str(target),
            high_precision_dtype="fp32",
            log_level="ERROR",
        )
    run = OnnxRuntimeEngine(target.read_bytes(), threads=threads).run
    return lambda batch: run(batch, ("logits", "embedding"))


def torch_call(kind: str, model: str, spec: Any, *, threads: int) -> Call:
    """The image tower in PyTorch: `torch-eager`, `torch-compile`, or `torchao-int8`."""
    import torch

    from p4q_edge.models import load_model

    torch.set_num_threads(threads)
    tower: Any = load_model(model).clip.visual.eval()
    if kind == "torchao-int8":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(tower, Int8DynamicActivationInt8WeightConfig())
    if kind != "torch-eager":
        tower = torch.compile(tower)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))

    def call(images: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {"features": tower((torch.from_numpy(images).float() / 255 - mean) / std).numpy()}

    return call


if __name__ == "__main__":
    sys.exit(main())
