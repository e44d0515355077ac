"""Options of a TensorRT build: ranges, defaults that depend on the device, names of timing caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.artifacts.tensorrt_options import TensorRTOptions
from p4q_edge.runtime.builders.tensorrt.options import (
    check_hardware_compatibility,
    timing_cache_path,
    workspace_bytes,
)
from p4q_edge.runtime.engines.cuda.base import DeviceFacts
from p4q_edge.runtime.errors import UsageError


def facts(**changes: Any) -> DeviceFacts:
    known = {
        "index": 0,
        "name": "Orin (nvgpu)",
        "compute_capability": "8.7",
        "total_memory_bytes": 8 << 30,
        "integrated": True,
        "driver_version": "12.6",
        "runtime_version": "12.6",
    }
    return DeviceFacts(**{**known, **changes})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_batch": 2}, "expected 1 <= min batch <= opt batch <= max batch, got 2, 1 and 8"),
        ({"max_batch": 0}, "got 1, 1 and 0"),
        ({"optimization_level": 6}, "optimization level of 0 to 5, got 6"),
        ({"workspace_mib": 0}, "workspace of at least 1 MiB, got 0"),
        ({"min_cosine": 1.5}, "minimal cosine of -1 to 1, got 1.5"),
        ({"precision": "int2"}, "precision of auto, int8, int4, fp8, fp16, got 'int2'"),
        ({"prefer": "beauty"}, "preference of speed, size, got 'beauty'"),
        ({"typing": "strongly"}, "typing of auto, strong, weak, got 'strongly'"),
        ({"hardware_compatibility": "all"}, "hardware compatibility of none, ampere_plus, same_compute_capability"),
        ({"cuda_backend": "cupy"}, "CUDA backend of auto, driver, cuda-bindings, pycuda, got 'cupy'"),
    ],
)
def test_values_outside_their_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TensorRTOptions(**options)


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 64))
def test_batches_are_accepted_exactly_in_order(smallest: int, tuned: int, largest: int) -> None:
    arguments = {"min_batch": smallest, "opt_batch": tuned, "max_batch": largest}
    if smallest <= tuned <= largest:
        assert TensorRTOptions(**arguments).batches == (smallest, tuned, largest)
    else:
        with pytest.raises(UsageError, match="min batch"):
            TensorRTOptions(**arguments)


def test_auto_builds_both_precisions() -> None:
    assert TensorRTOptions().flavours(convolutions=False) == ("int8", "fp16")
    assert TensorRTOptions().flavours(convolutions=True) == ("int8", "int8-linears", "fp16")
    assert TensorRTOptions(precision="fp16").flavours(convolutions=True) == ("fp16",)


def test_workspace_is_a_quarter_on_jetson_and_tensorrts_own_elsewhere() -> None:
    assert workspace_bytes(TensorRTOptions(), facts()) == 2 << 30
    assert workspace_bytes(TensorRTOptions(), facts(integrated=False)) is None
    assert workspace_bytes(TensorRTOptions(workspace_mib=512), facts()) == 512 << 20


def test_timing_caches_differ_by_version_and_gpu() -> None:
    path = timing_cache_path(Path("a/out.plan"), tensorrt_version="10.3.0", facts=facts())
    assert path == Path("a/timing-trt10.3.0-sm87-orin--nvgpu.cache")
    assert path != timing_cache_path(Path("a/out.plan"), tensorrt_version="10.16.2", facts=facts())
    assert path != timing_cache_path(Path("a/out.plan"), tensorrt_version="10.3.0", facts=facts(name="Thor"))


def test_hardware_compatibility_is_refused_on_jetson_only() -> None:
    options = TensorRTOptions(hardware_compatibility="ampere_plus")
    check_hardware_compatibility(options, facts(integrated=False))
    check_hardware_compatibility(TensorRTOptions(), facts())
    with pytest.raises(UsageError, match=r"desktop GPUs; Orin \(nvgpu\) shares its memory .* build on each device"):
        check_hardware_compatibility(options, facts())
