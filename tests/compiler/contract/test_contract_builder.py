"""Our builder code on NVIDIA's real parser and compiler: INT8 and FP16 plans of a small encoder, progress, cancelling.

TensorRT-RTX builds on a CPU and cannot run what it built, so plans are judged by the kernels that its log lists. Its
compiler is the one of TensorRT 11; it is evidence for 10.13 and newer and none for 10.3.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from encoder_graph import Encoder
from real_builds import build, inspected

from p4q_edge.runtime.artifacts.tensorrt_options import TensorRTOptions
from p4q_edge.runtime.builders.tensorrt import worker_process as tensorrt_child
from p4q_edge.runtime.builders.tensorrt.progress import Progress


@pytest.fixture(scope="module")
def built(real_builder: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The INT8 and the FP16 plan of the same model."""
    model = Encoder().model()
    return {
        flavour: build(real_builder, tmp_path_factory.mktemp(flavour), model, flavour=flavour)
        for flavour in ("int8", "fp16")
    }


def test_int8_is_built_with_int8_products_and_fused_attention(built: dict[str, dict[str, Any]]) -> None:
    found = inspected(built["int8"])
    assert built["int8"]["typing"] == "strong"
    # On so small a model the compiler splits the QKV product into a kernel of its own; the others must be INT8.
    assert found["gemms"]["int8"] >= 3
    assert sum(found["gemms"].values()) == 4
    assert found["fused_attention"] == 1


def test_fp16_of_the_same_model_has_no_int8_left_and_fuses_attention(built: dict[str, dict[str, Any]]) -> None:
    found = inspected(built["fp16"])
    assert found["gemms"] == {"fp16": 4}
    assert found["gemm_share"] == {"fp16": 1.0}
    assert found["fused_attention"] == 1
    assert not any("Datatype: Int8" in line for line in built["fp16"]["layers"])
    assert found["kernels"] <= inspected(built["int8"])["kernels"]


def test_neither_plan_brings_a_warning(built: dict[str, dict[str, Any]]) -> None:
    for outcome in built.values():
        # Without a GPU the RTX compiler says so, and nothing else may be said.
        assert [text for text in outcome["said"] if "CUDA" not in text and "cuda" not in text] == []


def test_progress_is_reported_by_the_real_compiler_and_never_falls(built: dict[str, dict[str, Any]]) -> None:
    for outcome in built.values():
        fractions = [event["fraction"] for event in outcome["events"]]
        assert len(fractions) >= 20
        assert fractions == sorted(fractions)
        assert 0 < fractions[0] < fractions[-1] <= 1
        assert {"Building engine", "Optimizing graph"} <= {event["phase"] for event in outcome["events"]}


def test_the_real_compiler_stops_when_asked(real_builder: Any, tmp_path: Path) -> None:
    outcome = build(real_builder, tmp_path, Encoder().model(), cancel_after=5)
    assert outcome["cancelled"] is True
    assert len(outcome["events"]) == 5


def test_scales_in_float_with_casts_build_in_both_precisions(real_builder: Any, tmp_path: Path) -> None:
    model = Encoder(float_scales=True).model()
    assert inspected(build(real_builder, tmp_path, model))["gemms"]["int8"] >= 3
    assert inspected(build(real_builder, tmp_path, model, flavour="fp16"))["gemms"] == {"fp16": 4}


WORKER = """
import contextlib
from p4q_edge.runtime.builders.tensorrt import compilation, worker
from p4q_edge.runtime.engines.cuda.base import DeviceFacts
class Cuda:
    facts = DeviceFacts(index=0, name="none", compute_capability="8.6", total_memory_bytes=8 << 30, integrated=False,
                        driver_version="13.0", runtime_version="13.0")
    current = staticmethod(contextlib.nullcontext)
worker.open_cuda = lambda backend, device: Cuda
compilation.REPORT_EVERY_S = 0
sys.exit(worker.main())
"""


def test_ctrl_c_stops_the_real_compiler_in_its_process_and_leaves_no_file(
    real_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker as it is, but for CUDA: the parent is interrupted at the tenth step of the real compiler."""
    (tmp_path / "model.onnx").write_bytes(Encoder().model())
    request = {"action": "build", "flavour": "int8", "options": asdict(TensorRTOptions(timing_cache=False))}
    request |= {name: str(tmp_path / file) for name, file in (("model", "model.onnx"), ("plan", "p"), ("engine", "e"))}
    shown: list[Progress] = []
    codes: list[int] = []

    def interrupt(progress: Progress) -> None:
        shown.append(progress)
        if len(shown) == 10:
            raise KeyboardInterrupt

    stop = tensorrt_child._stop

    def stop_and_note(worker: Any) -> None:
        stop(worker)
        codes.append(worker.returncode)

    monkeypatch.setattr(tensorrt_child, "_stop", stop_and_note)
    with pytest.raises(KeyboardInterrupt):
        tensorrt_child.run_worker(request, task="INT8 plan", progress=interrupt, command=real_command(WORKER))
    assert codes == [130]  # it stopped by itself, and was not killed
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_level_and_workspace_are_accepted_by_the_real_configuration(real_builder: Any, tmp_path: Path) -> None:
    outcome = build(real_builder, tmp_path, Encoder().model(), optimization_level=5, workspace_mib=64)
    assert outcome["size"] > 0
