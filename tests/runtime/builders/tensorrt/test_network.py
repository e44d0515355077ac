"""From ONNX to a network and a configuration: the calls, in which order, and every refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p4q_edge.runtime.artifacts.tensorrt_options import TensorRTOptions
from p4q_edge.runtime.builders.tensorrt.network import make_config, parse_network, remove_quantization, use_timing_cache
from p4q_edge.runtime.engines.tensorrt.library import make_logger
from p4q_edge.runtime.errors import ArtifactError, P4QEdgeError, UsageError


def _parsed(double: Any, *, strong: bool = True) -> tuple[Any, Any, Any]:
    log = make_logger(double.trt)
    builder = double.trt.Builder(log)
    network, _ = parse_network(double.trt, builder, log, b"model", strong=strong)
    return builder, network, log


def test_strong_typing_is_asked_for_by_the_flags_own_value(double: Any) -> None:
    _parsed(double)
    bit = 1 << int(double.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert double.calls == ["Builder", f"create_network({bit})", "parse"]
    assert bit == (1 if double.trt.__version__.startswith("11") else 2)


def test_weak_typing_sets_no_flag(double: Any) -> None:
    _parsed(double, strong=False)
    assert "create_network(0)" in double.calls


def test_a_refused_model_is_reported_in_the_parsers_own_words(double: Any) -> None:
    double.parse_failures = 1
    with pytest.raises(
        ArtifactError,
        match=r"cannot parse the model: node 7 \(block0/fc1/Q\): Non-zero zero point is not supported\. Run .*--lint",
    ):
        _parsed(double)


def test_a_silent_parser_leaves_the_log(double: Any) -> None:
    double.parse_failures, double.silent_parser = 1, True
    with pytest.raises(ArtifactError, match="TensorRT gave no reason"):
        _parsed(double)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_names": ["pixels"]}, r"expected one input 'image', the model has \['pixels'\]"),
        ({"input_names": ["image", "text"]}, r"expected one input 'image', the model has \['image', 'text'\]"),
        ({"input_dtype": "FLOAT"}, "expected the input 'image' as uint8 with 4 dimensions"),
        ({"input_shape": (-1, 3)}, "expected the input 'image' as uint8 with 4 dimensions"),
    ],
)
def test_another_input_is_refused(double: Any, changes: dict[str, Any], message: str) -> None:
    for name, value in changes.items():
        setattr(double, name, value)
    with pytest.raises(ArtifactError, match=message):
        _parsed(double)


def test_the_configuration_has_what_was_asked_for_and_no_precision(double: Any) -> None:
    builder, network, _ = _parsed(double)
    options = TensorRTOptions(min_batch=1, opt_batch=2, max_batch=4, optimization_level=5, version_compatible=True)
    config = make_config(double.trt, builder, network, options, workspace=1 << 30)
    assert config.builder_optimization_level == 5
    assert config.profiling_verbosity is double.trt.ProfilingVerbosity.DETAILED
    assert config._pools == {"WORKSPACE": 1 << 30}
    assert config._flags == ["VERSION_COMPATIBLE"]
    assert [profile._shapes for profile in config._profiles] == [{"image": ((1, 3, 4, 4), (2, 3, 4, 4), (4, 3, 4, 4))}]


def test_the_defaults_leave_tensorrts_own(double: Any) -> None:
    builder, network, _ = _parsed(double)
    config = make_config(double.trt, builder, network, TensorRTOptions(), workspace=None)
    assert (config._pools, config._flags, config.hardware_compatibility_level) == ({}, [], None)


def test_weak_flags_exist_only_before_tensorrt_11(double_of: Any) -> None:
    double = double_of("10.3.0")
    builder, network, _ = _parsed(double, strong=False)
    config = make_config(double.trt, builder, network, TensorRTOptions(), workspace=None, weak_flags=("INT8", "FP16"))
    assert config._flags == ["INT8", "FP16"]


def test_hardware_compatibility_is_asked_for_by_name(double: Any) -> None:
    builder, network, _ = _parsed(double)
    options = TensorRTOptions(hardware_compatibility="ampere_plus")
    config = make_config(double.trt, builder, network, options, workspace=None)
    assert config.hardware_compatibility_level is double.trt.HardwareCompatibilityLevel.AMPERE_PLUS


def test_a_level_that_this_version_lacks_is_refused(double_of: Any) -> None:
    options = TensorRTOptions(hardware_compatibility="same_compute_capability")
    old = double_of("10.3.0")
    with pytest.raises(UsageError, match=r"TensorRT 10\.3\.0 has no hardware compatibility same_compute_capability"):
        make_config(old.trt, *_parsed(old)[:2], options, workspace=None)
    new = double_of("10.13.3.9")
    config = make_config(new.trt, *_parsed(new)[:2], options, workspace=None)
    assert config.hardware_compatibility_level is new.trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY


def test_a_fixed_batch_takes_no_profile_and_no_other_batches(double: Any) -> None:
    double.input_shape = (8, 3, 4, 4)
    builder, network, _ = _parsed(double)
    fixed = TensorRTOptions(min_batch=8, opt_batch=8, max_batch=8)
    assert make_config(double.trt, builder, network, fixed, workspace=None)._profiles == []
    with pytest.raises(UsageError, match=r"fixed batch of 8, and batches \(1, 1, 8\) were asked for"):
        make_config(double.trt, builder, network, TensorRTOptions(), workspace=None)


def test_only_the_batch_may_be_dynamic(double: Any) -> None:
    double.input_shape = (-1, 3, -1, -1)
    with pytest.raises(ArtifactError, match=r"expected only a dynamic batch, the model has the input shape"):
        make_config(double.trt, *_parsed(double)[:2], TensorRTOptions(), workspace=None)


def test_a_refused_profile_is_reported(double: Any) -> None:
    double.refuse_profile = True
    with pytest.raises(P4QEdgeError, match=r"TensorRT refuses the batches \(1, 1, 8\)"):
        make_config(double.trt, *_parsed(double)[:2], TensorRTOptions(), workspace=None)


def _config(double: Any) -> Any:
    builder, network, _ = _parsed(double)
    return make_config(double.trt, builder, network, TensorRTOptions(), workspace=None)


def test_the_timing_cache_is_off_new_loaded_or_replaced(double: Any, tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "timing.cache"
    assert use_timing_cache(_config(double), None) == "off"
    assert use_timing_cache(_config(double), path) == "new"
    path.write_bytes(b"timed ")
    config = _config(double)
    assert use_timing_cache(config, path) == "loaded"
    assert bytes(config.get_timing_cache().serialize()) == b"timed timed "
    double.foreign_caches = {b"timed "}
    config = _config(double)
    assert use_timing_cache(config, path) == "replaced"
    assert bytes(config.get_timing_cache().serialize()) == b"timed "
    assert "is of another TensorRT or GPU; starting a new one" in caplog.text
    double.foreign_caches = {b"timed ", b""}
    with pytest.raises(P4QEdgeError, match="refuses an empty timing cache"):
        use_timing_cache(_config(double), path)


def _quantized_linear(doubles: Any, trt: Any, *, scale: np.ndarray, axis: int = 1) -> list[Any]:
    """A linear as the parser gives it: Q/DQ of the activation, int8 weights with DQ, and their product."""
    kinds, dtypes = trt.LayerType, trt.DataType
    half = dtypes.FLOAT if scale.dtype == np.float32 else dtypes.HALF
    tensor = doubles.ITensor
    x, zero = tensor("x", half, (-1, 3)), tensor("zero", dtypes.FLOAT, (1,))
    q, dq = tensor("q", dtypes.INT8, (-1, 3)), tensor("dq", half, (-1, 3))
    activation_scale = tensor("activation_scale_output", half, ())
    weight_scale = tensor("weight_scale_output", half, scale.shape)
    w, wdq = tensor("w_output", dtypes.INT8, (3, 2)), tensor("wdq", half, (3, 2))
    constant = doubles.IConstantLayer
    # Layers come out of the bindings as ILayer; the code must give them their class to read more of them.
    plain = doubles.ILayer
    integers = np.array([[1, -2], [3, -128], [127, 0]], np.int8)
    return [
        constant(kinds.CONSTANT, "activation_scale", [], activation_scale, array=np.array(0.5, scale.dtype)),
        plain(kinds.QUANTIZE, "Q", [x, activation_scale, zero], q),
        plain(kinds.DEQUANTIZE, "DQ", [q, activation_scale, zero], dq, axis=-1),
        plain(kinds.CONSTANT, "w", [], w, array=integers),
        plain(kinds.CONSTANT, "weight_scale", [], weight_scale, array=scale),
        plain(kinds.DEQUANTIZE, "WDQ", [w, weight_scale, zero], wdq, axis=axis),
        plain(kinds.MATRIX_MULTIPLY, "MatMul", [dq, wdq], tensor("y", half, (-1, 2))),
        plain(kinds.MATRIX_MULTIPLY, "optional", [None], tensor("z", half, (-1, 2))),
    ]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_removing_quantization_reroutes_activations_and_dequantizes_weights(
    double: Any, doubles: Any, dtype: Any
) -> None:
    scale = np.array([0.25, 0.125], dtype)
    double.layers = lambda trt: _quantized_linear(doubles, trt, scale=scale)
    _, network, _ = _parsed(double)
    weights = remove_quantization(double.trt, network)
    product = network.get_layer(6)
    assert product.get_input(0).name == "x"
    assert product.get_input(1).name == "constant8_output"
    assert [(array.dtype, array.tolist()) for array in weights] == [
        (np.dtype(dtype), [[0.25, -0.25], [0.75, -16.0], [31.75, 0.0]])
    ]
    assert network.get_layer(8)._known["array"] is weights[0]


def test_only_the_pairs_of_convolutions_are_removed(double: Any, doubles: Any) -> None:
    """Those that a matrix product reads stay, behind a cast too."""

    def layers(trt: Any) -> list[Any]:
        kinds, tensor, half = trt.LayerType, doubles.ITensor, trt.DataType.HALF
        linear = _quantized_linear(doubles, trt, scale=np.array([0.25, 0.125], np.float16))
        cast = tensor("cast", half, (-1, 3))
        linear[6]._inputs[0] = cast
        linear.insert(6, doubles.ILayer(kinds.CAST, "Cast", [linear[2].get_output(0)], cast))
        conv = _quantized_linear(doubles, trt, scale=np.array([0.25, 0.125], np.float16))[:7]
        for layer in conv:
            for value in (*layer._inputs, layer.get_output(0)):
                value.name = value.name if value.name.startswith("conv_") else f"conv_{value.name}"
        conv[6].type = kinds.CONVOLUTION
        return [*linear, *conv]

    double.layers = layers
    _, network, _ = _parsed(double)
    (weights,) = remove_quantization(double.trt, network, only_convolutions=True)
    assert weights.shape == (3, 2)
    assert [network.get_layer(7).get_input(index).name for index in (0, 1)] == ["cast", "wdq"]
    assert network.get_layer(15).get_input(0).name == "conv_x"
    assert network.get_layer(15).get_input(1).name.startswith("constant")


@pytest.mark.parametrize(("scale", "axis"), [([0.5], 1), ([0.5, 0.25, 0.125], 0)])
def test_weights_are_scaled_per_tensor_or_along_the_layers_axis(
    double: Any, doubles: Any, scale: list[float], axis: int
) -> None:
    array = np.array(scale, np.float16)
    double.layers = lambda trt: _quantized_linear(doubles, trt, scale=array, axis=axis)
    _, network, _ = _parsed(double)
    integers = np.array([[1, -2], [3, -128], [127, 0]], np.float32)
    expected = integers * (array[:, None] if axis == 0 else array)
    assert remove_quantization(double.trt, network)[0].tolist() == expected.tolist()


def test_a_dequantize_of_something_else_is_refused(double: Any, doubles: Any) -> None:
    def layers(trt: Any) -> list[Any]:
        found = _quantized_linear(doubles, trt, scale=np.array([0.5], np.float16))
        found[2]._inputs[0] = doubles.ITensor("elsewhere", trt.DataType.INT8, (-1, 3))
        return found

    double.layers = layers
    with pytest.raises(ArtifactError, match="layer DQ: expected a QuantizeLinear or constant integers before"):
        remove_quantization(double.trt, _parsed(double)[1])


def test_a_scale_that_is_computed_is_refused(double: Any, doubles: Any) -> None:
    def layers(trt: Any) -> list[Any]:
        found = _quantized_linear(doubles, trt, scale=np.array([0.5], np.float16))
        del found[4]
        return found

    double.layers = layers
    with pytest.raises(ArtifactError, match="layer WDQ: expected a constant scale"):
        remove_quantization(double.trt, _parsed(double)[1])


def test_a_pair_that_changes_the_type_is_refused(double: Any, doubles: Any) -> None:
    def layers(trt: Any) -> list[Any]:
        found = _quantized_linear(doubles, trt, scale=np.array([0.5], np.float16))
        found[1]._inputs[0].dtype = trt.DataType.FLOAT
        return found

    double.layers = layers
    with pytest.raises(ArtifactError, match="layer DQ: expected one type around a Q/DQ pair"):
        remove_quantization(double.trt, _parsed(double)[1])
