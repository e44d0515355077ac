"""Configurations of the backends that the test's server lacks, read with Triton's own protobuf messages."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p4q_edge.runtime.artifacts import (
    PlanInspection,
    PlanMachine,
    TensorRTBuild,
    TensorRTOptions,
    read_card,
    write_card,
)
from p4q_edge.runtime.serving import write_repository

pytestmark = pytest.mark.triton


@pytest.fixture
def plan(engine: Path, tmp_path: Path) -> Path:
    """A file with the card of a plan: what a configuration is written from."""
    card = read_card(engine)
    build = TensorRTBuild(
        built_with=PlanMachine(
            tensorrt="10.3.0", gpu="Orin", compute_capability="8.7", platform="linux-aarch64", precision="int8"
        ),
        options=TensorRTOptions(max_batch=32),
        inspection=PlanInspection(dialect="10", detailed=True, kernels=3),
    )
    path = tmp_path / "out.plan"
    shutil.copy(engine, path)
    write_card(path, msgspec.structs.replace(card, build=build, parts=()))
    return path


def configs(triton_python: Callable[..., Any], repository: Path) -> dict[str, Any]:
    paths = sorted(repository.glob("*/config.pbtxt"))
    found = triton_python("check_config.py", *paths)
    return {path.parent.name: found[str(path)] for path in paths}


def test_a_plan_is_served_by_tensorrts_own_backend(
    triton_python: Callable[..., Any], plan: Path, tmp_path: Path
) -> None:
    write_repository(plan, tmp_path / "models", name="clip")
    found = configs(triton_python, tmp_path / "models")
    assert set(found) == {"clip", "clip_decode", "clip_engine", "clip_head"}
    engine = found["clip_engine"]
    assert (engine["platform"], engine["default_model_filename"]) == ("tensorrt_plan", "model.plan")
    assert engine["max_batch_size"] == 32
    assert engine["instance_group"] == [{"count": 1, "kind": "KIND_GPU"}]
    assert engine["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": ["3", "8", "8"]}]
    assert engine["dynamic_batching"] == {"max_queue_delay_microseconds": "1000"}
    assert engine["output"][0]["label_filename"] == "labels.txt"
    (warm_up,) = engine["model_warmup"]
    assert warm_up["inputs"]["image"]["input_data_file"] == "golden_image"
    folder = tmp_path / "models" / "clip_engine"
    assert (folder / "1" / "model.plan").read_bytes() == plan.read_bytes()
    assert sorted(path.name for path in (folder / "1").iterdir()) == ["model.plan"]


def test_an_onnx_engine_is_served_by_onnx_runtimes_backend(
    triton_python: Callable[..., Any], engine: Path, tmp_path: Path
) -> None:
    write_repository(engine, tmp_path / "models", name="clip")
    found = configs(triton_python, tmp_path / "models")
    assert found["clip_engine"]["platform"] == "onnxruntime_onnx"
    assert found["clip_engine"]["instance_group"] == [{"count": 1, "kind": "KIND_CPU"}]
    # The second head is a model of its own over the same engine.
    assert {"clip", "clip-night", "clip_head", "clip_head-night"} <= set(found)
    steps = [step["model_name"] for step in found["clip-night"]["ensemble_scheduling"]["step"]]
    assert steps == ["clip_decode", "clip_engine", "clip_head-night"]
    assert found["clip-night"]["output"][0] == {"name": "label", "data_type": "TYPE_STRING", "dims": ["2"]}
