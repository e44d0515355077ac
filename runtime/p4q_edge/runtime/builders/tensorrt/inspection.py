"""What a built plan really runs, read from TensorRT's engine inspector.

The inspector's JSON has two dialects. TensorRT 10 lists `Bindings` and describes a tensor by one text,
`"Format/Datatype": "Row major linear FP16 format"`; TensorRT 11 lists `I/O Tensors` and has `Datatype` and `Format`
apart. Both give a kernel's `Name` and `LayerType`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from p4q_edge.runtime.errors import P4QEdgeError

# Myelin's bookkeeping between kernels; none of these starts work on the GPU.
_PSEUDO_LAYERS = frozenset({"signal", "wait", "shape_call", "shapehostcopy", "no-op", "noop"})
_GEMM_TYPES = ("gemm", "matrixmultiply", "fullyconnected")
# A product that is compiled into a kernel of its own together with its neighbours; `Fc` in its name tells it.
_FUSION_TYPE = "runtime_fusion"
_WIDTHS = ("unknown", "fp4", "int4", "int8", "fp8", "bf16", "fp16", "fp32")
# As Myelin, TensorRT's own kernels and its fused convolution, activation and pool are called.
_CONVOLUTION_TYPES = frozenset(
    {
        "caskconvactpool",
        "caskconvolution",
        "caskdeconvolution",
        "caskgemmconvolution",
        "caskjitconv",
        "convactpool",
        "convolution",
        "correlation",
        "cudadepthwiseconvolution",
        "deconvolution",
    }
)
# The first that occurs in a description decides: `Int8` must be found before `Float`, and `Half` never with it.
_DATATYPES = (
    ("int8", "int8"),
    ("fp8", "fp8"),
    ("float8", "fp8"),
    ("fp4", "fp4"),
    ("float4", "fp4"),
    ("int4", "int4"),
    ("bf16", "bf16"),
    ("bfloat16", "bf16"),
    ("fp16", "fp16"),
    ("half", "fp16"),
    ("fp32", "fp32"),
    ("float", "fp32"),
    ("uint8", "uint8"),
    ("int32", "int32"),
    ("int64", "int64"),
    ("bool", "bool"),
)


def inspect_engine(trt: Any, engine: Any) -> dict[str, Any]:
    """Return `summarize_inspection` of a loaded engine that was built with detailed profiling verbosity.

    Raises:
        P4QEdgeError: the inspector's answer is not JSON.
    """
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        information = json.loads(text)
    except ValueError as error:
        raise P4QEdgeError(
            f"TensorRT {trt.__version__} inspector: expected JSON, got {text[:80]!r}. Report this with the version."
        ) from error
    return summarize_inspection(information)


def summarize_inspection(information: Mapping[str, Any]) -> dict[str, Any]:
    """Return the kernels of an engine by kind, and the precision of its matrix products.

    Args:
        information: the inspector's JSON, in either dialect.

    Returns:
        `dialect` (`10` or `11`), `detailed` (false where the engine names its layers only), `kernels` (number of layers
        that run on the GPU), `pseudo_layers`, `kinds` (number by layer type), `gemms` (number by the precision of the
        operands; `int4`: of weights, with FP16 activations), `gemm_share` (the same by multiply-accumulates; a dynamic
        batch counts as one), `runtime_fusions` (how many of the products are generated kernels instead of library ones:
        in INT8 a sign of a bad graph, in INT4 how they are), `fused_attention`, `attentions` and `convolutions` (by
        precision), `convolution_share` (these by multiply-accumulates, where the inspector gives their weights),
        `reformats`, and `io` (type of each input and output).
    """
    layers = list(information.get("Layers", []))
    detailed = all(isinstance(layer, dict) for layer in layers)
    entries = [layer for layer in layers if isinstance(layer, dict)]
    kinds: Counter[str] = Counter(str(layer.get("LayerType", "unknown")) for layer in entries)
    work = [layer for layer in entries if not _is_pseudo(layer)]
    attention = [layer for layer in work if _is_attention(layer)]
    gemms = [layer for layer in work if _is_gemm(layer)]
    convolutions = [layer for layer in work if _is_convolution(layer)]
    return {
        "dialect": "11" if "I/O Tensors" in information else "10",
        "detailed": detailed,
        "kernels": len(work) if detailed else len(layers),
        "pseudo_layers": len(entries) - len(work),
        "kinds": dict(sorted(kinds.items())),
        "gemms": _counted(map(_precision, gemms)),
        "gemm_share": _shares((_precision(layer), _multiply_accumulates(layer)) for layer in gemms),
        "runtime_fusions": sum(_type(layer) == _FUSION_TYPE for layer in gemms),
        "fused_attention": len(attention),
        "attentions": _counted(map(_precision, attention)),
        "convolutions": _counted(map(_precision, convolutions)),
        "convolution_share": _shares((_precision(layer), _convolved(layer)) for layer in convolutions),
        "reformats": sum(_type(layer) == "reformat" for layer in work),
        "io": _io(information),
    }


def datatype(tensor: Mapping[str, Any]) -> str:
    """Return the element type of a tensor of either dialect, as `int8`; `unknown` where it is not given."""
    text = str(tensor.get("Datatype") or tensor.get("DataType") or tensor.get("Format/Datatype") or "").lower()
    if "uint8" in text:
        return "uint8"
    return next((name for key, name in _DATATYPES if key in text), "unknown")


def _type(layer: Mapping[str, Any]) -> str:
    return str(layer.get("LayerType", "")).lower()


def _is_pseudo(layer: Mapping[str, Any]) -> bool:
    return _type(layer) in _PSEUDO_LAYERS


def _is_attention(layer: Mapping[str, Any]) -> bool:
    return "mha" in str(layer.get("Name", "")).lower() or "mha" in _type(layer)


def _is_gemm(layer: Mapping[str, Any]) -> bool:
    if _is_attention(layer) or _is_convolution(layer):
        return False
    kind, name = _type(layer), str(layer.get("Name", ""))
    if kind == _FUSION_TYPE:
        return "Fc" in name or "gemm" in name.lower()
    return kind in _GEMM_TYPES or "gemm" in kind or "gemm" in name.lower()


def _is_convolution(layer: Mapping[str, Any]) -> bool:
    return _type(layer) in _CONVOLUTION_TYPES


def _precision(layer: Mapping[str, Any]) -> str:
    """Return the type of the first operand, in which the multiplication runs; `int4` where it reads such weights.

    A generated kernel may widen an operand itself, so there the widest input counts.
    """
    if any(datatype(tensor) == "int4" for tensor in layer.get("Constants") or ()):
        return "int4"
    types = [datatype(tensor) for tensor in layer.get("Inputs") or [{}]]
    if _type(layer) == _FUSION_TYPE:
        return max(types, key=lambda name: _WIDTHS.index(name) if name in _WIDTHS else 0)
    return types[0]


def _multiply_accumulates(layer: Mapping[str, Any]) -> int:
    """Return outputs times inner size; a dynamic dimension counts as one, alike for all products of an engine."""
    inputs, outputs = layer.get("Inputs") or [], layer.get("Outputs") or []
    if not inputs or not outputs or not inputs[0].get("Dimensions") or not outputs[0].get("Dimensions"):
        return 0
    inner = abs(inputs[0]["Dimensions"][-1])
    return int(inner * math.prod(max(size, 1) for size in outputs[0]["Dimensions"]))


def _convolved(layer: Mapping[str, Any]) -> int:
    """Return weights times output positions; 0 where the inspector says nothing of the weights."""
    weights, outputs = layer.get("Weights"), layer.get("Outputs") or []
    if not isinstance(weights, Mapping) or not outputs or not outputs[0].get("Dimensions"):
        return 0
    positions = math.prod(max(size, 1) for size in outputs[0]["Dimensions"][2:])
    return int(weights.get("Count", 0) * positions)


def _shares(operations: Iterable[tuple[str, int]]) -> dict[str, float]:
    sums: Counter[str] = Counter()
    for name, count in operations:
        sums[name] += count
    total = sum(sums.values())
    return {name: round(count / total, 4) for name, count in sorted(sums.items())} if total else {}


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _io(information: Mapping[str, Any]) -> dict[str, str]:
    tensors = information.get("I/O Tensors", information.get("Bindings", []))
    return {
        str(tensor.get("Name") if isinstance(tensor, dict) else tensor): (
            datatype(tensor) if isinstance(tensor, dict) else "unknown"
        )
        for tensor in tensors
    }
