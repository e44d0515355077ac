"""What OpenVINO makes of a model on this processor: the operators that run, and their precision."""

from __future__ import annotations

from collections import Counter
from typing import Any

from p4q_edge.runtime.artifacts import CpuInspection
from p4q_edge.runtime.engines.openvino import OpenVINOEngine

_PRODUCTS = frozenset({"FullyConnected", "MatMul", "Convolution"})
_INTEGERS = frozenset({"i8", "u8"})
_NO_WORK = frozenset({"Const", "Input", "Output"})


def inspect_operators(engine: OpenVINOEngine, *, batch: int) -> CpuInspection:
    """Return what runs for `batch` images: operators with their precision, and how many products are integer.

    Products inside a `Subgraph`, which is code that OpenVINO generates for several operators at once (attention among
    them), are not counted.
    """
    kinds = [_kind(operator.rt_info) for operator in engine.runtime_model(batch).get_ops()]
    counts = Counter(f"{kind} {precision}" for kind, precision in kinds if kind not in _NO_WORK)
    products = [precision in _INTEGERS for kind, precision in kinds if kind in _PRODUCTS]
    return CpuInspection(
        kernels=dict(sorted(counts.items())),
        integer_products=sum(products),
        float_products=len(products) - sum(products),
    )


def _kind(info: Any) -> tuple[str, str]:
    found = {name: str(info[name].astype(str)) for name in ("layerType", "runtimePrecision") if name in info}
    return found.get("layerType", "unknown"), found.get("runtimePrecision", "")
