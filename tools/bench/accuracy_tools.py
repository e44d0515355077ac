"""Post-training quantization by the tools that a user would pick instead, on one float classifier.

All get the same float model, the same labelled images to calibrate on and the same scope: the linears of the image
tower. Class embeddings are hand-written and stay in float. A tool that is not installed gives a row that says so.
"""

from __future__ import annotations

import copy
import importlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p4q_edge.data import pixels
from p4q_edge.graph import run_in_onnxruntime, trace_float_graph
from p4q_edge.models import (
    BATCH_SIZE,
    FoldedClassifier,
    ImageEncoder,
    LoadedModel,
    PixelSource,
    encode_batches,
    to_batch,
    to_deployment_form,
)
from p4q_edge.quant import quant_linears, quantize_modules, replace_module
from p4q_edge.quant.placement import LEAST_CHANNELS
from p4q_edge.recipe import QuantizationSection
from p4q_edge.stages import Source, calibration_set, hand_written_embeddings

HISTOGRAM_IMAGES = 160
"""ONNX Runtime's histograms are made with every activation of every image in memory."""

GRAPH_BATCH = 512

OPTIMIZER_BATCH = 16
"""Model Optimizer's search (AWQ) holds several copies of the largest activation of a batch."""

SAMPLE_SIZE = 4
"""Images that a tower is traced with."""

NNCF_IMAGES = 300
"""NNCF's own default."""


@dataclass(frozen=True, kw_only=True)
class FloatClassifier:
    """What the tools start from.

    Attributes:
        class_embedding: of hand-written prompts, ``(classes, dim)`` normalized.
        train: the images that the recipe calibrates on, uint8 ``(N, 3, H, W)``.
        test: uint8 ``(N, 3, H, W)``; a stream where it comes from files, as test sets are large.
        seed: of the order in which NNCF sees the images.
        convolutions: quantize these too; else the linears of the image tower alone.
        dense_only: of the convolutions only those that the product takes by default, of one group and of at least 16
            channels: neither depthwise ones nor the one that reads the image.
        histogram_images: at most so many for ONNX Runtime's histograms, which hold every activation in memory.
    """

    model: LoadedModel
    class_embedding: Tensor
    train: Tensor
    test: PixelSource
    seed: int = 0
    convolutions: bool = False
    dense_only: bool = False
    histogram_images: int = HISTOGRAM_IMAGES

    @classmethod
    def of(cls, source: Source) -> FloatClassifier:
        """The zero-shot classifier of a recipe."""
        spec = source.model.preprocess
        return cls(
            model=source.model,
            class_embedding=hand_written_embeddings(source),
            train=pixels(calibration_set(source), spec),
            test=source.stream(source.split.test),
            seed=source.recipe.seed,
        )

    def graph(self) -> onnx.ModelProto:
        """The classifier in ONNX, uint8 pixels to logits; a new copy each time, as the tools change it."""
        return onnx.load_from_string(self._traced)

    @cached_property
    def _traced(self) -> bytes:
        model = self.model
        classifier = FoldedClassifier(
            ImageEncoder(model.clip.visual),  # type: ignore[arg-type]
            None,
            self.class_embedding,
            logit_scale=model.logit_scale,
            logit_bias=model.logit_bias,
            preprocess=model.preprocess,
        )
        data: bytes = ir.to_proto(trace_float_graph(classifier, model.preprocess.size)).SerializeToString()
        return data


class UnavailableError(Exception):
    """A tool is not installed, or has no such width; the message is the reason that the table prints."""


def linear_nodes(graph: onnx.GraphProto, *, convolutions: bool = False, dense_only: bool = False) -> list[str]:
    """Names of the linears of the image tower: products with a weight, the class matrix left out.

    Args:
        convolutions: name these too.
        dense_only: of these, see `FloatClassifier`.
    """
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights]
    others = [node for node in graph.node if convolutions and node.op_type == "Conv"]
    if dense_only:
        others = [node for node in others if _groups(node) == 1 and weights[node.input[1]][1] >= LEAST_CHANNELS]
    return [node.name for node in (*products[:-1], *others)]


def _groups(node: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)


def quantized_nodes(classifier: FloatClassifier, graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that a tool is asked to quantize."""
    return linear_nodes(graph, convolutions=classifier.convolutions, dense_only=classifier.dense_only)


def run_graph(model: onnx.ModelProto, images: PixelSource, output: str = "logits") -> NDArray[np.float32]:
    """One output ``(N, values)`` on the CPU, without the 8-bit kernels that saturate."""
    data = model.SerializeToString()
    parts = images.split(-(-len(images) // -(-len(images) // GRAPH_BATCH)))  # of nearly the same size
    return np.concatenate([run_in_onnxruntime(data, part.numpy())[output] for part in parts])


def onnxruntime_static(
    classifier: FloatClassifier, section: QuantizationSection, *, method: str
) -> NDArray[np.float32]:
    """Logits of `onnxruntime_graph`."""
    return run_graph(onnxruntime_graph(classifier, section, method=method), classifier.test)


def onnxruntime_graph(classifier: FloatClassifier, section: QuantizationSection, *, method: str) -> onnx.ModelProto:
    """`quantize_static` in Q/DQ form: signed, weights per channel, activations per tensor.

    Args:
        method: ``MinMax`` or ``Percentile`` (99.999, its default). ``Entropy``, as this function calls it, searches
            128 bins for 128 levels, which is the whole range: the same as MinMax.
    """
    from onnxruntime import quantization as ortq

    types = {8: ortq.QuantType.QInt8, 4: ortq.QuantType.QInt4}
    if not {section.weight_bits, section.activation_bits} <= types.keys():
        raise UnavailableError("ONNX Runtime has no 6-bit type")
    images = classifier.train.numpy()
    if method != "MinMax":
        images = images[np.linspace(0, len(images) - 1, min(classifier.histogram_images, len(images))).astype(int)]

    class Reader(ortq.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.chunks: Iterator[NDArray[np.uint8]] = iter(np.array_split(images, -(-len(images) // 16)))

        def get_next(self) -> dict[str, Any] | None:
            chunk = next(self.chunks, None)
            return None if chunk is None else {"image": chunk}

    graph = classifier.graph()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "quantized.onnx"
        ortq.quantize_static(
            graph,
            target,
            Reader(),
            quant_format=ortq.QuantFormat.QDQ,
            per_channel=True,
            weight_type=types[section.weight_bits],
            activation_type=types[section.activation_bits],
            calibrate_method=getattr(ortq.CalibrationMethod, method),
            nodes_to_quantize=quantized_nodes(classifier, graph.graph),
        )
        return onnx.load(target)


def nncf(classifier: FloatClassifier, section: QuantizationSection) -> NDArray[np.float32]:
    """Logits of `nncf_graph`."""
    return run_graph(nncf_graph(classifier, section), classifier.test)


def nncf_graph(
    classifier: FloatClassifier, section: QuantizationSection, *, transformer: bool = True
) -> onnx.ModelProto:
    """`nncf.quantize` of the ONNX graph, with fast bias correction.

    Args:
        transformer: with its settings for transformers, which add SmoothQuant.
    """
    tool = optional("nncf")
    if (section.weight_bits, section.activation_bits) != (8, 8):
        raise UnavailableError("NNCF quantizes ONNX to 8 bits only")
    graph = classifier.graph()
    linears = set(quantized_nodes(classifier, graph.graph))
    others = [
        node.name
        for node in graph.graph.node
        if node.op_type in ("MatMul", "Gemm", "Conv") and node.name not in linears
    ]
    order = np.random.default_rng(classifier.seed).permutation(len(classifier.train))
    images = [{"image": classifier.train[i : i + 1].numpy()} for i in order]
    return tool.quantize(  # type: ignore[no-any-return]
        graph,
        tool.Dataset(images),
        subset_size=min(NNCF_IMAGES, len(images)),
        model_type=tool.ModelType.TRANSFORMER if transformer else None,
        target_device=tool.TargetDevice.CPU,
        ignored_scope=tool.IgnoredScope(names=others),
    )


def model_optimizer(classifier: FloatClassifier, section: QuantizationSection, *, config: str) -> NDArray[np.float32]:
    """Logits of `model_optimizer_encoder`."""
    encoder = model_optimizer_encoder(classifier, section, config=config)
    embedding = nn.functional.normalize(encoder_features(encoder, classifier), dim=-1)
    logits: NDArray[np.float32] = (classifier.model.logit_scale * embedding @ classifier.class_embedding.T).numpy()
    return logits


@torch.no_grad()
def encoder_features(encoder: nn.Module, classifier: FloatClassifier) -> Tensor:
    """Features of the test images, ``(N, dim)``."""
    spec = classifier.model.preprocess
    return encode_batches(encoder, (to_batch(chunk, spec) for chunk in classifier.test.split(BATCH_SIZE)))


def model_optimizer_encoder(
    classifier: FloatClassifier, section: QuantizationSection, *, config: str, algorithm: str = ""
) -> nn.Module:
    """NVIDIA Model Optimizer in PyTorch, simulated; the recipe's widths put into one of its own configurations.

    Args:
        config: ``INT8_DEFAULT_CFG`` (largest values), ``INT8_SMOOTHQUANT_CFG`` or ``FP8_DEFAULT_CFG``.
        algorithm: another way to calibrate than the configuration's own.
    """
    tool = optional("modelopt.torch.quantization", package="nvidia-modelopt")
    if config == "INT8_SMOOTHQUANT_CFG" and (section.weight_bits, section.activation_bits) != (8, 8):
        raise UnavailableError("Model Optimizer smooths 8-bit linears only")
    settings = copy.deepcopy(getattr(tool, config))
    for entry in settings["quant_cfg"]:
        bits = section.weight_bits if "weight" in entry["quantizer_name"] else section.activation_bits
        if isinstance((entry.get("cfg") or {}).get("num_bits"), int):  # of FP8 it is the bits of exponent and mantissa
            entry["cfg"]["num_bits"] = bits
    if algorithm:
        settings["algorithm"] = algorithm
    encoder = float_encoder(classifier, section)
    kept = left_out(encoder) if classifier.dense_only else [] if classifier.convolutions else ["*conv*"]
    settings["quant_cfg"] = [*settings["quant_cfg"], *({"quantizer_name": name, "enable": False} for name in kept)]
    spec = classifier.model.preprocess
    seen = [to_batch(chunk, spec) for chunk in torch.split(classifier.train, OPTIMIZER_BATCH)]
    with torch.no_grad():
        return tool.quantize(encoder, settings, lambda model: [model(batch) for batch in seen])  # type: ignore[no-any-return]


def left_out(encoder: nn.Module) -> list[str]:
    """Patterns of Model Optimizer's quantizers of the convolutions that the product leaves in float by default."""
    convolutions = {name: module for name, module in encoder.named_modules() if isinstance(module, nn.Conv2d)}
    return [
        f"*{name}.*_quantizer"
        for name, module in convolutions.items()
        if module.groups > 1 or module.in_channels < LEAST_CHANNELS
    ]


def float_encoder(classifier: FloatClassifier, section: QuantizationSection) -> nn.Module:
    """The float image tower as Model Optimizer gets it: without norms behind convolutions where it quantizes these."""
    sample = to_batch(classifier.train[:SAMPLE_SIZE], classifier.model.preprocess) if classifier.convolutions else None
    return plain_linears(classifier.model, section, sample=sample)


def plain_linears(model: LoadedModel, section: QuantizationSection, *, sample: Tensor | None = None) -> nn.Module:
    """The float image tower with its attentions taken apart, so that a tool for ``nn.Linear`` finds every linear.

    Args:
        sample: normalized images ``(N, 3, H, W)``, at least 2, that the tower is traced with to bring it into its
            deployment form first: a tool for ``nn.Conv2d`` passes over timm's convolutions that pad as they run.
    """
    encoder = ImageEncoder(model.clip.visual)  # type: ignore[arg-type]
    if sample is not None:
        to_deployment_form(encoder, sample)
    quantize_modules(encoder, section.scheme(), cross_attention=frozenset())
    for path, found in quant_linears(encoder).items():
        linear = nn.Linear(found.weight.shape[1], found.out_features, bias=found.bias is not None)
        linear.load_state_dict({name: value for name, value in found.state_dict().items() if "scale" not in name})
        replace_module(encoder, path, linear)
    return encoder.eval().requires_grad_(False)


def class_logits(features: Tensor, source: Source) -> NDArray[np.float32]:
    """Logits ``(N, classes)`` of features by the hand-written class embeddings."""
    embedding = nn.functional.normalize(features, dim=-1)
    logits: NDArray[np.float32] = (source.model.logit_scale * embedding @ hand_written_embeddings(source).T).numpy()
    return logits


def optional(module: str, *, package: str = "") -> Any:
    """A module that a user may not have.

    Raises:
        UnavailableError: it cannot be imported.
    """
    package = package or module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            raise UnavailableError(f"not installed: {package} ({error})") from error
    logging.getLogger(package).setLevel(logging.WARNING)
    return found


def tool_versions() -> dict[str, str]:
    """Versions of the tools that are installed."""
    found = {}
    for package in ("onnxruntime", "nncf", "nvidia-modelopt"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


Quantizer = Callable[[FloatClassifier, QuantizationSection], NDArray[np.float32]]
