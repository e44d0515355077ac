"""The doubles offer no more than the recorded surface, so that tests against them prove something."""

from __future__ import annotations

from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import pytest


def _public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_classes_have_the_members_of_the_surface_and_no_other(doubles: Any) -> None:
    surface = doubles.surface["classes"]
    assert {kind.__name__ for kind in doubles.classes} == surface.keys()
    data_members = {
        "ITensor": {"name", "dtype", "shape"},
        "ILayer": {"type", "name", "num_inputs", "num_outputs"},
        "IBuilderConfig": {
            "builder_optimization_level",
            "profiling_verbosity",
            "hardware_compatibility_level",
            "progress_monitor",
        },
        "Runtime": {"engine_host_code_allowed"},
        "ICudaEngine": {"num_io_tensors", "device_memory_size_v2"},
    }
    for kind in doubles.classes:
        expected = set(surface[kind.__name__]) - {"__init__"}
        assert _public(kind) | data_members.get(kind.__name__, set()) == expected, kind.__name__


@pytest.mark.parametrize(("version", "has_int8"), [("10.3.0", True), ("10.16.1.11", True), ("11.4.0.106", False)])
def test_a_version_lacks_what_it_lacks(doubles: Any, version: str, has_int8: bool) -> None:
    trt: SimpleNamespace = doubles.make_module(version)
    assert hasattr(trt.BuilderFlag, "INT8") is has_int8
    assert int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) == (1 if has_int8 else 0)
    assert issubclass(trt.DataType, IntEnum)
    assert not hasattr(trt, "IInt8Calibrator")
