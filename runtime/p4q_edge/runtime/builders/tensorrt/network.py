"""From ONNX to a TensorRT network and its configuration, with the calls that 10.3 to 11.4 share."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from p4q_edge.runtime.artifacts import TensorRTOptions
from p4q_edge.runtime.engines.tensorrt import problems
from p4q_edge.runtime.errors import ArtifactError, P4QEdgeError, UsageError
from p4q_edge.runtime.wording import number_of

logger = logging.getLogger(__name__)

INPUT = "image"
MAX_SHOWN_ERRORS = 3


def parse_network(trt: Any, builder: Any, log: Any, model: bytes, *, strong: bool) -> tuple[Any, Any]:
    """Return the network of an ONNX model, and the parser, which owns the weights and must live as long.

    Args:
        trt: the TensorRT module.
        builder: a `Builder`.
        log: the logger of the builder.
        model: the bytes of the complete ONNX model.
        strong: take every precision from the model. Otherwise TensorRT may choose INT8 and FP16 (only below 11).

    Raises:
        ArtifactError: the parser refuses the model; the message has the parser's own.
    """
    # The value of the flag differs between versions, so it is never a literal.
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if strong else 0
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        errors = [parser.get_error(index) for index in range(min(parser.num_errors, MAX_SHOWN_ERRORS))]
        reasons = [f"node {error.node()} ({error.node_name() or 'unnamed'}): {error.desc()}" for error in errors]
        raise ArtifactError(
            f"TensorRT {trt.__version__} cannot parse the model: {' | '.join(reasons) or problems(log)}. "
            "Run `p4q-edge inspect MODEL.p4q --lint`, and export the bundle again with this version of p4q-edge."
        )
    _check_input(trt, network)
    return network, parser


def _check_input(trt: Any, network: Any) -> None:
    names = [network.get_input(index).name for index in range(network.num_inputs)]
    if names != [INPUT]:
        raise ArtifactError(f"expected one input {INPUT!r}, the model has {names}. Export the bundle again.")
    tensor = network.get_input(0)
    if tensor.dtype != trt.DataType.UINT8 or len(tensor.shape) != 4:
        raise ArtifactError(
            f"expected the input {INPUT!r} as uint8 with 4 dimensions, the model has {tensor.dtype} "
            f"{tuple(tensor.shape)}. Export the bundle again."
        )


def remove_quantization(trt: Any, network: Any, *, only_convolutions: bool = False) -> list[npt.NDArray[Any]]:
    """Re-route a parsed network around its Q/DQ pairs, so that the same model runs in its remainder's precision.

    Activations skip Quantize and Dequantize. Weights, which the model holds as integers, are dequantized here
    in float32 and rounded once to the precision of their scale. The result has the INT8 model's weight grid and no
    activation quantization: as fast as any FP16 build of this model, and at least as accurate as its INT8 build.

    Args:
        only_convolutions: leave the pairs that matrix products read.

    Returns:
        The new weights. TensorRT keeps pointers to them, so they must live until the plan is serialized.

    Raises:
        ArtifactError: a Dequantize without a Quantize or a constant before it.
    """
    producers = {}
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    for layer in layers:
        for index in range(layer.num_outputs):
            producers[layer.get_output(index).name] = layer
    replacements = {}
    weights = []
    kept = _restored_for_products(trt, layers, producers) if only_convolutions else frozenset()
    for layer in layers:
        if layer.type != trt.LayerType.DEQUANTIZE or layer.get_output(0).name in kept:
            continue
        source = producers.get(layer.get_input(0).name)
        output = layer.get_output(0)
        if source is not None and source.type == trt.LayerType.QUANTIZE:
            replacements[output.name] = source.get_input(0)
            if replacements[output.name].dtype != output.dtype:
                raise ArtifactError(
                    f"layer {layer.name}: expected one type around a Q/DQ pair, got "
                    f"{replacements[output.name].dtype} before and {output.dtype} after. "
                    "Run `p4q-edge inspect MODEL.p4q --lint`."
                )
        elif source is not None and source.type == trt.LayerType.CONSTANT:
            values = _dequantized(trt, layer, source, producers)
            weights.append(values)
            constant = network.add_constant(values.shape, trt.Weights(values))
            replacements[output.name] = constant.get_output(0)
        else:
            raise ArtifactError(
                f"layer {layer.name}: expected a QuantizeLinear or constant integers before DequantizeLinear. "
                "Run `p4q-edge inspect MODEL.p4q --lint`."
            )
    for layer in layers:
        for index in range(layer.num_inputs):
            tensor = layer.get_input(index)
            if tensor is not None and tensor.name in replacements:
                layer.set_input(index, replacements[tensor.name])
    logger.info("removed %s, of weights %d", number_of(len(replacements), "Q/DQ pair"), len(weights))
    return weights


def _restored_for_products(trt: Any, layers: list[Any], producers: dict[str, Any]) -> frozenset[str]:
    """Return the names of the dequantized tensors that matrix products read, directly or behind a cast or reshape."""
    passed = {trt.LayerType.CAST, trt.LayerType.SHUFFLE}
    found = set()
    for layer in layers:
        if layer.type != trt.LayerType.MATRIX_MULTIPLY:
            continue
        for index in range(layer.num_inputs):
            tensor = layer.get_input(index)
            source = None if tensor is None else producers.get(tensor.name)
            while source is not None and source.type in passed:
                source = producers.get(source.get_input(0).name)
            if source is not None and source.type == trt.LayerType.DEQUANTIZE:
                found.add(source.get_output(0).name)
    return frozenset(found)


def _dequantized(trt: Any, layer: Any, source: Any, producers: dict[str, Any]) -> npt.NDArray[Any]:
    """Return integers times scale, per tensor or along the layer's axis."""
    # The bindings hand out every layer as ILayer; the real class is needed for its axis.
    layer.__class__ = trt.IDequantizeLayer
    integers = _constant(trt, source)
    scale_source = producers.get(layer.get_input(1).name)
    if scale_source is None or scale_source.type != trt.LayerType.CONSTANT:
        raise ArtifactError(f"layer {layer.name}: expected a constant scale. Run `p4q-edge inspect MODEL.p4q --lint`.")
    scale = _constant(trt, scale_source)
    shape = [1] * integers.ndim
    if scale.size > 1:
        shape[layer.axis] = scale.size
    values = integers.astype(np.float32) * scale.astype(np.float32).reshape(shape)
    return np.ascontiguousarray(values.astype(scale.dtype))


def _constant(trt: Any, layer: Any) -> npt.NDArray[Any]:
    layer.__class__ = trt.IConstantLayer
    return read_weights(layer.weights).reshape(tuple(layer.shape))


def read_weights(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a flat copy of an array that the bindings made of TensorRT's weights.

    Bindings up to 10.13 at least were made for NumPy 1. Under NumPy 2 their arrays have the right address, type and
    size, but strides of 0: every element reads as the first. Weights lie one after the other, so the strides are known.
    """
    return np.lib.stride_tricks.as_strided(values, shape=(values.size,), strides=(values.itemsize,)).copy()


def make_config(
    trt: Any,
    builder: Any,
    network: Any,
    options: TensorRTOptions,
    *,
    workspace: int | None,
    weak_flags: tuple[str, ...] = (),
) -> Any:
    """Return the builder configuration: profile, workspace, level and compatibility.

    `weak_flags` are the precisions that TensorRT may choose; there are none under strong typing.
    """
    config = builder.create_builder_config()
    config.builder_optimization_level = options.optimization_level
    # Detailed names make the inspector tell the precision of every kernel; they cost nothing at run time.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatibility != "none":
        config.hardware_compatibility_level = _compatibility_level(trt, options)
    for name in weak_flags:
        # By name: these flags are gone in TensorRT 11, where every network is strongly typed.
        config.set_flag(getattr(trt.BuilderFlag, name))
    _add_profile(builder, network, config, options)
    return config


def _compatibility_level(trt: Any, options: TensorRTOptions) -> Any:
    name = options.hardware_compatibility.upper()
    level = getattr(trt.HardwareCompatibilityLevel, name, None)
    if level is None:
        raise UsageError(
            f"TensorRT {trt.__version__} has no hardware compatibility {options.hardware_compatibility}. "
            "Use ampere_plus, or build on each GPU."
        )
    return level


def _add_profile(builder: Any, network: Any, config: Any, options: TensorRTOptions) -> None:
    tensor = network.get_input(0)
    batch, *sample = tuple(tensor.shape)
    if -1 in sample:
        raise ArtifactError(f"expected only a dynamic batch, the model has the input shape {tuple(tensor.shape)}.")
    if batch != -1:
        if options.batches != (batch, batch, batch):
            raise UsageError(
                f"the model has a fixed batch of {batch}, and batches {options.batches} were asked for. "
                f"Give {batch} to each of --min-batch, --opt-batch and --max-batch."
            )
        return
    profile = builder.create_optimization_profile()
    smallest, tuned, largest = ((size, *sample) for size in options.batches)
    profile.set_shape(tensor.name, smallest, tuned, largest)
    if config.add_optimization_profile(profile) < 0:
        raise P4QEdgeError(
            f"TensorRT refuses the batches {options.batches}. Choose others with --min-batch, --opt-batch, --max-batch."
        )


def use_timing_cache(config: Any, path: Path | None) -> str:
    """Give the configuration the timing cache of `path` and return what came of it, for the card."""
    if path is None:
        return "off"
    data = path.read_bytes() if path.is_file() else b""
    if config.set_timing_cache(config.create_timing_cache(data), False):
        return "loaded" if data else "new"
    logger.warning("the timing cache %s is of another TensorRT or GPU; starting a new one", path)
    if not config.set_timing_cache(config.create_timing_cache(b""), False):
        raise P4QEdgeError("TensorRT refuses an empty timing cache. Build with --no-timing-cache.")
    return "replaced"
