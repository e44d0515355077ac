"""The builder process against doubles: order of calls, retries, cancelling, and what reaches the parent."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p4q_edge.runtime.artifacts.golden import Golden
from p4q_edge.runtime.artifacts.tensorrt_options import TensorRTOptions
from p4q_edge.runtime.builders.tensorrt import worker as tensorrt_worker
from p4q_edge.runtime.builders.tensorrt.worker import report_events, stdin_ended
from p4q_edge.runtime.errors import EnvironmentNotAbleError

Serve = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def ask(tmp_path: Path) -> Serve:
    """Send one request to the worker; returns its exit code and its events."""
    (tmp_path / "model.onnx").write_bytes(b"model")

    def ask(flavour: str = "int8", *, cancelled: Callable[[], bool] = lambda: False, **options: Any) -> Any:
        request = {
            "action": "build",
            "options": asdict(TensorRTOptions(**options)),
            "flavour": flavour,
            "model": str(tmp_path / "model.onnx"),
            "plan": str(tmp_path / f"{flavour}.plan"),
            "engine": str(tmp_path / "out.plan"),
        }
        return _serve(request, cancelled)

    return ask


def _serve(request: dict[str, Any], cancelled: Callable[[], bool] = lambda: False) -> tuple[int, list[dict[str, Any]]]:
    events = io.StringIO()
    code = report_events(io.StringIO(json.dumps(request) + "\n"), events, cancelled=cancelled)
    return code, [json.loads(line) for line in events.getvalue().splitlines()]


def test_a_build_asks_cuda_first_and_reports_what_the_card_needs(installed: Any, ask: Serve, tmp_path: Path) -> None:
    code, events = ask(workspace_mib=64)
    assert code == 0
    assert installed.calls[:4] == ["open_cuda", "Builder", installed.calls[2], "parse"]
    assert installed.calls[4:] == ["build_serialized_network", "Runtime", "deserialize_cuda_engine"]
    assert (tmp_path / "int8.plan").read_bytes() == b"plan"
    result = events[-1]
    assert result["event"] == "result"
    assert result["size_bytes"] == 4
    assert result["inspection"]["dialect"] == "10"
    built_with = result["built_with"]
    assert all(isinstance(value, str) for value in built_with.values())
    assert built_with["tensorrt"] == installed.trt.__version__
    assert built_with["typing"] == "strong"
    assert built_with["precision"] == "int8"
    assert built_with["batches"] == "1,1,8"
    assert built_with["workspace_bytes"] == str(64 << 20)
    assert built_with["timing_cache"] == "new"
    assert installed.runtimes[-1].engine_host_code_allowed is False
    assert [event["event"] for event in events[:-1]] == ["progress"]


def test_the_timing_cache_is_kept_beside_the_engine_and_used_again(installed: Any, ask: Serve, tmp_path: Path) -> None:
    ask()
    path = tmp_path / f"timing-trt{installed.trt.__version__}-sm87-orin.cache"
    assert path.read_bytes() == b"timed "
    _, events = ask("fp16")
    assert events[-1]["built_with"]["timing_cache"] == "loaded"
    assert path.read_bytes() == b"timed timed "


def test_the_cache_of_an_earlier_build_is_read_and_a_newer_one_beside_the_plan_before_it(
    installed: Any, tmp_path: Path
) -> None:
    name = f"timing-trt{installed.trt.__version__}-sm87-orin.cache"
    (tmp_path / name).write_bytes(b"earlier ")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "model.onnx").write_bytes(b"model")
    request = {"action": "build", "options": asdict(TensorRTOptions()), "model": str(scratch / "model.onnx")}
    for flavour, expected in (("int8", b"earlier timed "), ("fp16", b"earlier timed timed ")):
        plan = {"flavour": flavour, "plan": str(scratch / f"{flavour}.plan"), "engine": str(tmp_path / "out.plan")}
        assert _serve({**request, **plan})[0] == 0
        assert (scratch / name).read_bytes() == expected
    assert (tmp_path / name).read_bytes() == b"earlier "


def test_without_a_timing_cache_only_the_plan_is_written(installed: Any, ask: Serve, tmp_path: Path) -> None:
    _, events = ask(timing_cache=False)
    assert events[-1]["built_with"]["timing_cache"] == "off"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8.plan", "model.onnx"]


def test_a_version_compatible_plan_may_bring_its_code(installed: Any, ask: Serve) -> None:
    code, _ = ask(version_compatible=True)
    assert code == 0
    assert installed.runtimes[-1].engine_host_code_allowed is True
    assert installed.configs[-1]._flags == ["VERSION_COMPATIBLE"]


@pytest.mark.parametrize("kind", ["parse", "build"])
def test_below_10_12_a_failed_strong_build_is_tried_weak_and_recorded(
    double_of: Any, install: Any, ask: Serve, kind: str, caplog: Any
) -> None:
    double = double_of("10.3.0")
    install(double)
    if kind == "parse":
        double.parse_failures = 1
    else:
        double.build_failures = ["no implementation for node"]
    code, events = ask()
    assert code == 0
    assert [call for call in double.calls if "network(" in call] == ["create_network(2)", "create_network(0)"]
    assert events[-1]["built_with"]["typing"].startswith("weak after strong failed: TensorRT 10.3.0")
    assert double.configs[-1]._flags == ["INT8", "FP16"]
    assert "Trying again with weak typing" in caplog.text


def test_a_weak_fp16_plan_may_not_choose_int8(double_of: Any, install: Any, ask: Serve) -> None:
    double = double_of("10.3.0")
    install(double)
    _, events = ask("fp16", typing="weak")
    assert double.configs[-1]._flags == ["FP16"]
    assert events[-1]["built_with"]["typing"] == "weak"


@pytest.mark.parametrize("version", ["10.13.3.9", "11.4.0.106"])
def test_from_10_12_on_nothing_is_tried_weak(double_of: Any, install: Any, ask: Serve, version: str) -> None:
    double = double_of(version)
    install(double)
    double.build_failures = ["no implementation for node"]
    code, events = ask()
    assert code == 1
    assert events[-1]["kind"] == "P4QEdgeError"
    assert events[-1]["message"] == (
        f"TensorRT {version} built no plan: no implementation for node. Try --optimization-level 2, and report this "
        "with the messages if it stays."
    )
    assert sum("create_network" in call for call in double.calls) == 1


def test_strong_typing_on_request_is_never_tried_weak(double_of: Any, install: Any, ask: Serve) -> None:
    double = double_of("10.3.0")
    install(double)
    double.parse_failures = 1
    code, events = ask(typing="strong")
    assert (code, events[-1]["kind"]) == (4, "ArtifactError")


def test_a_wrong_option_is_not_tried_again(double_of: Any, install: Any, ask: Serve) -> None:
    double = double_of("10.3.0")
    double.cuda.facts = type(double.cuda.facts)(**{**asdict(double.cuda.facts), "integrated": False})
    install(double)
    code, events = ask(hardware_compatibility="same_compute_capability")
    assert (code, events[-1]["kind"]) == (2, "UsageError")
    assert sum("create_network" in call for call in double.calls) == 1


def test_weak_typing_is_refused_on_tensorrt_11(double_of: Any, install: Any, ask: Serve) -> None:
    install(double_of("11.4.0.106"))
    code, events = ask(typing="weak")
    assert (code, events[-1]["message"]) == (
        2,
        "TensorRT 11.4.0.106 has no weak typing; it left with version 11. Use --typing strong.",
    )


def test_out_of_gpu_memory_names_the_workspace(double_of: Any, install: Any, ask: Serve, tmp_path: Path) -> None:
    double = double_of("11.4.0.106")
    install(double)
    double.build_failures = ["Requested amount of GPU memory (8 GB) could not be allocated"]
    code, events = ask()
    assert code == 1
    assert "ran out of memory with a workspace of 2048 MiB: close other programs" in events[-1]["message"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def test_a_cancelled_build_writes_nothing_and_says_nothing(installed: Any, ask: Serve, tmp_path: Path) -> None:
    code, events = ask(cancelled=lambda: True)
    assert (code, events) == (130, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def test_without_a_driver_tensorrt_is_not_touched(installed: Any, ask: Serve, monkeypatch: Any) -> None:
    def no_driver(backend: str, *, device: int) -> Any:
        raise EnvironmentNotAbleError("expected a CUDA driver")

    monkeypatch.setattr(tensorrt_worker, "open_cuda", no_driver)
    monkeypatch.setattr(tensorrt_worker, "import_tensorrt", lambda facts: pytest.fail("TensorRT was imported"))
    code, events = ask()
    assert (code, events[-1]) == (
        3,
        {"event": "error", "kind": "EnvironmentNotAbleError", "message": "expected a CUDA driver"},
    )
    assert installed.calls == []


def test_a_builder_that_the_driver_is_too_old_for_is_an_error_with_the_remedy(installed: Any, ask: Serve) -> None:
    installed.refuse_builder = True
    code, events = ask()
    assert (code, events[-1]["kind"]) == (3, "EnvironmentNotAbleError")
    assert events[-1]["message"] == (
        f"TensorRT {installed.trt.__version__} does not start on a driver for CUDA 12.6, as happens where it was made "
        "for a newer CUDA. Install a TensorRT of that CUDA, or a newer driver; on a Jetson `sudo apt install "
        "cuda-compat-12-9  # from NVIDIA's CUDA repository`. TensorRT says: CUDA initialization failure with error: 35"
    )


def test_hardware_compatibility_on_a_jetson_is_refused_before_building(installed: Any, ask: Serve) -> None:
    code, events = ask(hardware_compatibility="ampere_plus")
    assert (code, events[-1]["kind"]) == (2, "UsageError")
    assert installed.calls == ["open_cuda"]


def test_a_plan_that_cannot_be_loaded_again_is_an_error(installed: Any, ask: Serve) -> None:
    installed.refuse_plan = True
    code, events = ask()
    assert code == 1
    assert "cannot load the plan it just built: Serialization assertion magicTag failed" in events[-1]["message"]


def test_plans_are_measured_and_compared_with_the_golden_samples(
    installed: Any, doubles: Any, images: np.ndarray, tmp_path: Path, monkeypatch: Any
) -> None:
    from p4q_edge.runtime.builders.tensorrt import precision_choice as tensorrt_noregret
    from p4q_edge.runtime.statistics.timing import Rounds

    monkeypatch.setattr(tensorrt_noregret, "ROUNDS", Rounds(warmup=1, minimum=5, maximum=5, seconds=0))
    right = doubles.compute(images[:4])
    golden = Golden(
        image=images[:4],
        **right,
        float_embedding=right["embedding"],
        float_logits=-right["logits"],
    )
    (tmp_path / "golden.safetensors").write_bytes(golden.to_bytes())
    for name in ("int8", "fp16"):
        (tmp_path / f"{name}.plan").write_bytes(name.encode())
    code, events = _serve(
        {
            "action": "measure",
            "options": asdict(TensorRTOptions(opt_batch=3)),
            "plans": {name: str(tmp_path / f"{name}.plan") for name in ("int8", "fp16")},
            "golden": str(tmp_path / "golden.safetensors"),
        }
    )
    assert code == 0
    rows = events[-1]["rows"]
    assert rows["int8"].items() >= {"precision": "int8", "batch": 3, "n": 5, "size_bytes": 4, "samples": 4}.items()
    assert rows["int8"]["one_image_p50_ms"] > 0
    shapes = [int(call.split("(")[1].split(",")[0]) for call in installed.calls if call.startswith("set_input_shape")]
    # Golden images one by one in each plan, then the batch that is tuned for, then one image again.
    assert shapes == [1, 1, 3, 3, 1, 1]
    assert rows["fp16"]["cosine_min"] == pytest.approx(1)
    assert rows["fp16"]["float_top1_agreement"] < 1
    assert events[-1]["ratios"]["int8"]["n"] == 5
    assert (tmp_path / "int8.safetensors").is_file()
    assert installed.cuda.leaks == {}
    assert installed.open_contexts == 0


def test_the_end_of_stdin_is_noticed_and_data_is_not_the_end() -> None:
    reader, writer = os.pipe()
    kept = os.dup(0)
    try:
        os.dup2(reader, 0)
        assert stdin_ended() is False
        os.write(writer, b"x")
        assert stdin_ended() is False
        os.close(writer)
        assert stdin_ended() is True
    finally:
        os.dup2(kept, 0)
        os.close(reader)
        os.close(kept)
