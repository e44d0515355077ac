"""Building the better of two plans: which requests, what is kept, what is left on disk, and the dry run."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from p4q_edge.runtime.artifacts.golden import Golden
from p4q_edge.runtime.artifacts.tensorrt_options import TensorRTOptions
from p4q_edge.runtime.builders.tensorrt import builder as tensorrt_builder
from p4q_edge.runtime.builders.tensorrt.builder import build_plan, describe_plan
from p4q_edge.runtime.errors import EnvironmentNotAbleError, QualityGateError, UsageError
from p4q_edge.runtime.statistics import Estimate
from p4q_edge.runtime.storage.files import sha256_bytes
from p4q_edge.runtime.storage.untrusted import save_tensors

MACHINE = {"tensorrt": "10.3.0", "gpu": "Orin", "compute_capability": "8.7", "platform": "linux-aarch64"}


@pytest.fixture
def golden(doubles: Any, images: np.ndarray) -> Golden:
    right = doubles.compute(images[:4])
    return Golden(image=images[:4], **right, float_embedding=right["embedding"], float_logits=right["logits"])


class FakeWorker:
    """Answers requests as the worker does, and writes what it writes."""

    def __init__(self, golden: Golden, *, speedup: float = 1.2) -> None:
        self.requests: list[dict[str, Any]] = []
        self.version = "10.3.0"
        self.cosine = {"int8": 0.9996, "fp16": 0.9}
        self.float_cosine = {"int8": 0.998, "fp16": 1.0}
        self.speedup = speedup
        self.fail: tuple[str, BaseException] | None = None
        self.outputs = {
            name: {key: getattr(golden, key) + (name == "fp16") for key in ("features", "embedding", "logits")}
            for name in ("int8", "fp16")
        }

    def __call__(self, request: dict[str, Any], *, task: str, progress: Any = None) -> dict[str, Any]:
        self.requests.append(request)
        name = request.get("flavour", request["action"])
        if self.fail is not None and self.fail[0] == name:
            raise self.fail[1]
        if request["action"] == "build":
            assert Path(request["model"]).read_bytes() == b"model"
            Path(request["plan"]).write_bytes(f"the {name} plan".encode())
            Path(request["plan"]).with_name("timing-trt10.3.0-sm87-orin.cache").write_bytes(f"after {name}".encode())
            return {
                "built_with": {**MACHINE, "tensorrt": self.version, "precision": name},
                "inspection": {"dialect": "10", "detailed": True, "kernels": 50, "gemms": {name: 48}},
                "size_bytes": 13,
                "seconds": 60.0,
            }
        folder = Path(request["golden"]).parent
        rows = {}
        for plan in request["plans"]:
            (folder / f"{plan}.safetensors").write_bytes(save_tensors(self.outputs[plan], {}))
            rows[plan] = {
                "precision": plan,
                "batch": 1,
                "n": 50,
                "p50_ms": 5.0,
                "p90_ms": 5.5,
                "one_image_p50_ms": 5.0,
                "size_bytes": 13,
                "samples": 4,
                "cosine_min": self.cosine[plan],
                "float_cosine_min": self.float_cosine[plan],
                "float_top1_agreement": 1.0,
            }
        ratio = asdict(
            Estimate(value=self.speedup, low=self.speedup - 0.05, high=self.speedup + 0.05, n=50, method="bootstrap")
        )
        return {"rows": rows, "ratios": {name: ratio for name in rows if name != "fp16" and "fp16" in rows}}


def _build(tmp_path: Path, golden: Golden, worker: FakeWorker, *, force: bool = False, **options: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorrt_builder, "run_worker", worker)
        return build_plan(
            b"model",
            engine=tmp_path / "build" / "out.plan",
            options=TensorRTOptions(**options),
            golden=golden.to_bytes(),
            force=force,
        )


def _files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "build").iterdir())


def test_faster_int8_is_kept_with_the_bundles_golden_samples(tmp_path: Path, golden: Golden, caplog: Any) -> None:
    worker = FakeWorker(golden)
    with caplog.at_level("INFO"):
        result = _build(tmp_path, golden, worker)
    assert [request.get("flavour", request["action"]) for request in worker.requests] == ["int8", "fp16", "measure"]
    assert result.contest.choice.kept == "int8"
    assert result.plan.read_bytes() == b"the int8 plan"
    assert result.sha256 == sha256_bytes(b"the int8 plan")
    assert result.size_bytes == 13
    assert result.built_with.precision == "int8"
    assert result.contest.inspection.gemms == {"int8": 48}
    assert set(result.contest.inspection.rows) == {"int8", "fp16"}
    assert result.contest.inspection.build_seconds == {"int8": 60.0, "fp16": 60.0}
    assert result.contest.inspection.ratio == result.contest.inspection.ratios["int8"]
    np.testing.assert_array_equal(result.contest.golden.embedding, golden.embedding)
    assert _files(tmp_path) == [result.plan.name, "timing-trt10.3.0-sm87-orin.cache"]
    assert result.plan.name.startswith(".out.plan."), "it takes its place together with its card"
    assert (result.plan.parent / "timing-trt10.3.0-sm87-orin.cache").read_bytes() == b"after fp16"
    assert "kept int8" in caplog.text


def test_slower_int8_gives_way_to_fp16_which_is_later_checked_against_itself(tmp_path: Path, golden: Golden) -> None:
    worker = FakeWorker(golden, speedup=0.9)
    result = _build(tmp_path, golden, worker)
    assert result.contest.choice.kept == "fp16"
    assert result.plan.read_bytes() == b"the fp16 plan"
    np.testing.assert_array_equal(result.contest.golden.embedding, worker.outputs["fp16"]["embedding"])
    np.testing.assert_array_equal(result.contest.golden.float_embedding, golden.float_embedding)
    np.testing.assert_array_equal(result.contest.outputs["logits"], worker.outputs["fp16"]["logits"])


def test_one_precision_on_request_is_measured_too(tmp_path: Path, golden: Golden) -> None:
    worker = FakeWorker(golden)
    result = _build(tmp_path, golden, worker, precision="fp16")
    assert [request.get("flavour", request["action"]) for request in worker.requests] == ["fp16", "measure"]
    assert result.contest.choice.reason == "the only plan that was asked for"


def test_wrong_int8_is_not_kept_however_fast(tmp_path: Path, golden: Golden) -> None:
    worker = FakeWorker(golden, speedup=3.0)
    worker.cosine["int8"] = 0.5
    result = _build(tmp_path, golden, worker)
    assert result.contest.choice.kept == "fp16"
    assert "int8 fails its gate" in result.contest.choice.reason


def test_two_wrong_plans_leave_nothing(tmp_path: Path, golden: Golden) -> None:
    worker = FakeWorker(golden)
    worker.cosine["int8"] = worker.float_cosine["fp16"] = 0.5
    with pytest.raises(
        QualityGateError,
        match=r"no plan computes .* Nothing was written\. This is TensorRT 10\.3\.0: .* DINOv2-like .* 10\.16\.1 "
        r"computes right .* container nvcr\.io/nvidia/tensorrt:26\.03-py3\. Run `p4q-edge validate --debug`",
    ):
        _build(tmp_path, golden, worker)
    worker.version = "10.16.1"
    with pytest.raises(QualityGateError, match=r"Nothing was written\. Run `p4q-edge validate --debug`"):
        _build(tmp_path, golden, worker)
    assert _files(tmp_path) == []


@pytest.mark.parametrize("step", ["int8", "fp16", "measure"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), EnvironmentNotAbleError("killed")])
def test_nothing_is_left_when_a_step_fails_or_is_interrupted(
    tmp_path: Path, golden: Golden, step: str, error: BaseException
) -> None:
    worker = FakeWorker(golden)
    worker.fail = (step, error)
    with pytest.raises(type(error)):
        _build(tmp_path, golden, worker)
    assert _files(tmp_path) == []


def test_an_existing_engine_is_kept_without_force_and_replaced_with_it(tmp_path: Path, golden: Golden) -> None:
    engine = tmp_path / "build" / "out.plan"
    engine.parent.mkdir()
    engine.write_bytes(b"older")
    worker = FakeWorker(golden)
    with pytest.raises(UsageError, match="exists already; add --force"):
        _build(tmp_path, golden, worker)
    assert (worker.requests, engine.read_bytes()) == ([], b"older")
    result = _build(tmp_path, golden, worker, force=True)
    assert (engine.read_bytes(), result.plan.read_bytes()) == (b"older", b"the int8 plan")


def test_an_engine_that_appears_during_the_build_is_not_replaced(
    tmp_path: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tmp_path / "build" / "out.plan"
    worker = FakeWorker(golden)

    def run(request: dict[str, Any], *, task: str, progress: Any = None) -> dict[str, Any]:
        answer = worker(request, task=task)
        if request["action"] == "measure":
            engine.write_bytes(b"of another build")
        return answer

    monkeypatch.setattr(tensorrt_builder, "run_worker", run)
    with pytest.raises(UsageError, match="exists already"):
        build_plan(b"model", engine=engine, options=TensorRTOptions(), golden=golden.to_bytes())
    assert engine.read_bytes() == b"of another build"


def test_the_dry_run_says_what_would_be_built_and_builds_nothing(installed: Any, tmp_path: Path) -> None:
    found = describe_plan(123, engine=tmp_path / "out.plan", options=TensorRTOptions(max_batch=4))
    assert installed.calls == ["open_cuda"]
    assert list(tmp_path.iterdir()) == []
    assert found.plans == ("int8", "fp16")
    assert found.keeps == "the better by speed"
    assert msgspec.to_builtins(found.batches) == {"min": 1, "opt": 1, "max": 4}
    assert found.workspace_bytes == 2 << 30
    assert found.timing_cache == str(tmp_path / f"timing-trt{installed.trt.__version__}-sm87-orin.cache")
    assert found.timing_cache_exists is False
    assert found.device["compute_capability"] == "8.7"
    assert found.exists is False
    assert found.model_bytes == 123


def test_the_dry_run_fails_where_the_build_would(installed: Any, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(UsageError, match="desktop GPUs"):
        describe_plan(1, engine=tmp_path / "out.plan", options=TensorRTOptions(hardware_compatibility="ampere_plus"))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EnvironmentNotAbleError, match="expected the Python module tensorrt"):
        describe_plan(1, engine=tmp_path / "out.plan", options=TensorRTOptions())
