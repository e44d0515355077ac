"""Write tests/runtime/data/tiny.p4q: the smallest bundle that the runtime's tests build and run.

The model is an 8 x 8 image, two quantized linear layers, an adapter and three classes, with random weights. Its
reference results, of the golden samples and of 40 validation images, are computed in NumPy, so that the tests of the
runtime need neither torch nor onnx.
Run: python tools/make_golden_models.py
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from p4q_edge.runtime.artifacts import (
    Golden,
    GraphParity,
    Head,
    HeadAdapter,
    Manifest,
    ModelInfo,
    Precision,
    RecordedResults,
    bundle,
    pixel_digest,
)
from p4q_edge.runtime.images import PreprocessSpec
from p4q_edge.runtime.storage import encode_json

SIDE, HIDDEN, DIM, BOTTLENECK, SAMPLES, VALIDATED = 8, 24, 16, 4, 4, 40
CLASS_NAMES = ("circle", "square", "triangle")
LOGIT_SCALE, RESIDUAL_RATIO = 20.0, 0.2
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "tests/runtime/data/tiny.p4q")
    output = parser.parse_args().output
    generator = np.random.default_rng(7)
    spec = PreprocessSpec(size=(SIDE, SIDE), mean=MEAN, std=STD)
    images = generator.integers(0, 256, (SAMPLES, 3, SIDE, SIDE), dtype=np.uint8)
    layers = [_Linear(3 * SIDE * SIDE, HIDDEN, generator), _Linear(HIDDEN, DIM, generator)]
    adapter = HeadAdapter(
        down_weight=generator.normal(0, 0.3, (BOTTLENECK, DIM)).astype(np.float32),
        down_bias=generator.normal(0, 0.1, BOTTLENECK).astype(np.float32),
        up_weight=generator.normal(0, 0.3, (DIM, BOTTLENECK)).astype(np.float32),
        up_bias=generator.normal(0, 0.1, DIM).astype(np.float32),
        residual_ratio=RESIDUAL_RATIO,
    )
    float_features = _forward(images, layers, quantized=False)
    features = _forward(images, layers, quantized=True)
    head = _head(adapter, features, generator)
    logits, embedding = head.apply(features)
    float_logits, float_embedding = head.apply(float_features)
    golden = Golden(
        image=images,
        features=features,
        embedding=embedding,
        logits=logits,
        float_embedding=float_embedding,
        float_logits=float_logits,
    )
    graph, weights = _models(layers, head, adapter)
    reference, validated = _reference(layers, head)
    members = {
        bundle.GRAPH_FP16: graph,
        bundle.GRAPH_FP32: graph,
        bundle.WEIGHTS: weights,
        bundle.HEAD: head.to_bytes(),
        bundle.PREPROCESS: encode_json(spec),
        bundle.GOLDEN: golden.to_bytes(),
        bundle.REFERENCE: reference.to_bytes(),
    }
    session = onnxruntime.InferenceSession(graph + weights, providers=["CPUExecutionProvider"])
    (computed,) = session.run(["embedding"], {"image": validated})
    loss = float(np.median(1 - (computed * reference.embedding).sum(axis=1, dtype=np.float64)))
    bundle.write_bundle(output, _manifest(max(loss, 0.0)), members, force=True)


def validation_images() -> np.ndarray:
    """Return the validation images, uint8 (n, 3, H, W)."""
    return np.random.default_rng(11).integers(0, 256, (VALIDATED, 3, SIDE, SIDE), dtype=np.uint8)


def _reference(layers: list[_Linear], head: Head) -> tuple[RecordedResults, np.ndarray]:
    """Return what the model computes on the validation images, and these images; a fifth of the labels is wrong."""
    images = validation_images()
    logits, embedding = head.apply(_forward(images, layers, quantized=True))
    # `_forward` sets the input scales when it runs in float, so that it runs on copies here.
    _, float_embedding = head.apply(_forward(images, copy.deepcopy(layers), quantized=False))
    label = logits.argmax(axis=1)
    label[::5] = (label[::5] + 1) % len(CLASS_NAMES)
    digests = [np.frombuffer(pixel_digest(image), np.uint8) for image in images]
    recorded = RecordedResults(
        digest=np.stack(digests),
        label=label.astype(np.int32),
        embedding=embedding,
        float_embedding=float_embedding,
    )
    return recorded, images


class _Linear:
    """A linear layer with int8 weights (in, out), one scale a column, and int8 inputs with one scale."""

    def __init__(self, inputs: int, outputs: int, generator: np.random.Generator) -> None:
        self.weight = generator.normal(0, inputs**-0.5, (inputs, outputs)).astype(np.float32)
        self.bias = generator.normal(0, 0.1, outputs).astype(np.float32)
        self.weight_scale = (np.abs(self.weight).max(axis=0) / 127).astype(np.float32)
        self.integer = np.clip(np.rint(self.weight / self.weight_scale), -127, 127).astype(np.int8)
        self.input_scale = np.float32(0.0)

    def __call__(self, x: np.ndarray, *, quantized: bool) -> np.ndarray:
        if not quantized:
            self.input_scale = np.float32(np.abs(x).max() / 127)
            return x @ self.weight + self.bias
        grid = np.clip(np.rint(x / self.input_scale), -128, 127)
        product = grid.astype(np.int64) @ self.integer.astype(np.int64)
        return (product * (self.input_scale * self.weight_scale) + self.bias).astype(np.float32)


def _forward(images: np.ndarray, layers: list[_Linear], *, quantized: bool) -> np.ndarray:
    mean, std = np.float32(MEAN)[:, None, None], np.float32(STD)[:, None, None]
    x = ((images.astype(np.float32) / 255 - mean) / std).reshape(len(images), -1)
    x = np.maximum(layers[0](x, quantized=quantized), 0)
    return layers[1](x, quantized=quantized)


def _head(adapter: HeadAdapter, features: np.ndarray, generator: np.random.Generator) -> Head:
    """Classes that lie near the golden images, so that the best class is clear."""
    text = features[: len(CLASS_NAMES)] + generator.normal(0, 0.1, (len(CLASS_NAMES), DIM))
    text = (text / np.linalg.norm(text, axis=1, keepdims=True)).astype(np.float32)
    return Head(class_names=CLASS_NAMES, text_embedding=text, logit_scale=LOGIT_SCALE, adapter=adapter)


def _models(layers: list[_Linear], head: Head, adapter: HeadAdapter) -> tuple[bytes, bytes]:
    """Return a graph without its int8 weights, and the fragment that holds them."""
    nodes, constants, shared = [], {}, {}

    def add(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(name: str, value: object) -> str:
        constants[name] = np.asarray(value)
        return name

    scale = 1 / (255 * np.float32(STD))
    shift = -np.float32(MEAN) / np.float32(STD)
    x = add("Cast", ["image"], "cast", to=TensorProto.FLOAT)
    x = add("Mul", [x, constant("scale", scale.reshape(1, 3, 1, 1).astype(np.float32))], "scaled")
    x = add("Add", [x, constant("shift", shift.reshape(1, 3, 1, 1).astype(np.float32))], "normalized")
    x = add("Flatten", [x], "flat")
    for index, layer in enumerate(layers):
        name = f"linear{index}"
        shared[f"{name}.weight"] = layer.integer
        scale_name = constant(f"{name}.input_scale", layer.input_scale)
        zero = constant(f"{name}.input_zero", np.int8(0))
        x = add("QuantizeLinear", [x, scale_name, zero], f"{name}.q")
        x = add("DequantizeLinear", [x, scale_name, zero], f"{name}.dq")
        weight = [
            f"{name}.weight",
            constant(f"{name}.weight_scale", layer.weight_scale),
            constant(f"{name}.weight_zero", np.zeros(len(layer.weight_scale), np.int8)),
        ]
        x = add("MatMul", [x, add("DequantizeLinear", weight, f"{name}.w", axis=1)], f"{name}.mm")
        last = index == len(layers) - 1
        x = add("Add", [x, constant(f"{name}.bias", layer.bias)], "features" if last else f"{name}.out")
        if not last:
            x = add("Relu", [x], f"{name}.relu")
    h = add("MatMul", ["features", constant("down.weight", adapter.down_weight.T)], "down.mm")
    h = add("Relu", [add("Add", [h, constant("down.bias", adapter.down_bias)], "down")], "down.relu")
    h = add("MatMul", [h, constant("up.weight", adapter.up_weight.T)], "up.mm")
    h = add("Add", [h, constant("up.bias", adapter.up_bias)], "up")
    h = add("Mul", [h, constant("ratio", np.float32(RESIDUAL_RATIO))], "adapted")
    z = add("Mul", ["features", constant("rest", np.float32(1 - RESIDUAL_RATIO))], "kept")
    v = add("LpNormalization", [add("Add", [h, z], "mixed")], "embedding", axis=1, p=2)
    text = (LOGIT_SCALE * head.text_embedding.T).astype(np.float32)
    add("MatMul", [v, constant("text", text)], "logits")
    return _serialize(nodes, constants, shared)


def _serialize(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shared: dict[str, np.ndarray]
) -> tuple[bytes, bytes]:
    outputs = {"logits": len(CLASS_NAMES), "embedding": DIM, "features": DIM}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width]) for name, width in outputs.items()],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    fragment = onnx.ModelProto()
    fragment.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in shared.items())
    whole = onnx.ModelProto.FromString(model.SerializeToString() + fragment.SerializeToString())
    onnx.checker.check_model(whole, full_check=True)
    return model.SerializeToString(deterministic=True), fragment.SerializeToString(deterministic=True)


def _manifest(median_loss: float) -> Manifest:
    return Manifest(
        created_by="tools/make_golden_models.py",
        model=ModelInfo(
            name="tiny", pretrained="random", family="linear", license="Apache-2.0", weights_sha256="0" * 64
        ),
        precision=Precision(
            weight_bits=8, activation_bits=8, execution="executed", remainder="fp32", quantized_linears=2
        ),
        class_names=CLASS_NAMES,
        image_size=(SIDE, SIDE),
        embedding_dim=DIM,
        seed=7,
        parity=GraphParity(median_loss={"fp32": median_loss, "fp16": median_loss}, loss_images=VALIDATED),
        narrowest_bits=8,
    )


if __name__ == "__main__":
    main()
