"""The child process that proves a CPU engine: its results, its deadline, and how it can die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from p4q_edge.runtime.artifacts import bundle as bundles
from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.builders import cpu, cpu_worker, cpu_worker_process
from p4q_edge.runtime.builders.build import BuildOptions, build_engine
from p4q_edge.runtime.builders.candidates import Candidates, CpuCandidate
from p4q_edge.runtime.builders.cpu import ProofSetting, ProvedModel, prove_candidates
from p4q_edge.runtime.builders.cpu_worker_process import prove_apart
from p4q_edge.runtime.engines.openvino import OpenVINOEngine
from p4q_edge.runtime.errors import IncompatibleEngineError, P4QEdgeError, UsageError

READ = "import json, os, signal, sys, time\nrequest = json.loads(sys.stdin.readline())\n"


def exact(model: bytes) -> Candidates:
    return Candidates(tried=(CpuCandidate(profile="exact"),), models={"exact": model})


def run_child(bundle: Path, code: str, deadline_s: float = 60.0) -> ProvedModel:
    opened = read_bundle(bundle)
    return prove_apart(
        exact(opened.model("fp32")),
        opened.golden(),
        ProofSetting(threads=1, name="out.onnx"),
        deadline_s=deadline_s,
        command=[sys.executable, "-c", READ + code],
    )


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_the_child_computes_what_this_process_computes(tiny_bundle: Path, scratch: Path) -> None:
    opened = read_bundle(tiny_bundle)
    models, golden, setting = exact(opened.model("fp32")), opened.golden(), ProofSetting(threads=1, name="x")
    apart = prove_apart(models, golden, setting, deadline_s=120.0)
    here = prove_candidates(models, golden, setting)
    assert apart.built == here.built
    assert (apart.input_shape, apart.inspection) == (here.input_shape, here.inspection)
    assert all(np.array_equal(apart.outputs[name], here.outputs[name]) for name in here.outputs)
    assert list(scratch.iterdir()) == []


def test_a_check_without_end_is_stopped(tiny_bundle: Path, scratch: Path) -> None:
    with pytest.raises(P4QEdgeError, match=r"out\.onnx: its golden samples did not end within 0\.5 s and were stopped"):
        run_child(tiny_bundle, "time.sleep(600)", deadline_s=0.5)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended with signal SIGSEGV: it said nothing"),
        ("print('oh', file=sys.stderr); sys.exit(7)", "ended with exit code 7: oh"),
        ("print('{}', end='')", "ended with exit code 0"),
    ],
)
def test_a_child_that_dies_is_told(tiny_bundle: Path, code: str, message: str) -> None:
    with pytest.raises(P4QEdgeError, match=f"the process that runs its golden samples {message}"):
        run_child(tiny_bundle, code)


def test_a_library_that_crashes_is_left_out_of_several(
    tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = tmp_path / "child.py"
    program.write_text(
        "import io, json, os, signal, sys\nline = sys.stdin.readline()\n"
        "if 'openvino' in line:\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
        "sys.stdin = io.StringIO(line)\n"
        "from p4q_edge.runtime.builders.cpu_worker import main\nsys.exit(main())\n"
    )
    model, golden = read_bundle(tiny_bundle).model("fp32"), read_bundle(tiny_bundle).golden()
    setting, command = ProofSetting(threads=1, name="out.onnx"), [sys.executable, str(program)]
    other = CpuCandidate(profile="exact", backend="openvino")
    both = Candidates(tried=(CpuCandidate(profile="exact"), other), models={"exact": model})
    proved = prove_apart(both, golden, setting, deadline_s=60.0, command=command)
    assert (proved.built.candidate.name, proved.inspection.not_measured) == ("exact", ("OpenVINO: it crashed",))
    assert "OpenVINO is left out: out.onnx: the process" in caplog.text
    alone = Candidates(tried=(other,), models={"exact": model})
    with pytest.raises(P4QEdgeError, match="ended with signal SIGSEGV"):
        prove_apart(alone, golden, setting, deadline_s=60.0, command=command)


def test_what_openvino_cannot_load_is_told_of_here_as_well(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise IncompatibleEngineError("OpenVINO cannot load it")

    monkeypatch.setattr(OpenVINOEngine, "__init__", refuses)
    monkeypatch.setattr(cpu_worker, "_limit_memory", lambda _: None)
    monkeypatch.setattr(cpu_worker_process, "_ask", lambda request, **_: cpu_worker.answer_request(request))
    opened = read_bundle(tiny_bundle)
    tried = (CpuCandidate(profile="exact"), CpuCandidate(profile="exact", backend="openvino"))
    both = Candidates(tried=tried, models={"exact": opened.model("fp32")}, not_measured=("another",))
    proved = prove_apart(both, opened.golden(), ProofSetting(threads=1, name="x"), deadline_s=60.0)
    reason = "openvino-f32: OpenVINO cannot load it"
    assert proved.inspection.not_measured == ("another", reason)
    assert f"left out: {reason}" in caplog.messages


def test_an_engine_that_cannot_run_is_closed_before_others_are_timed(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []

    class Breaks:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def run(self, *_: object) -> None:
            raise P4QEdgeError("it failed in OpenVINO")

        def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr(cpu, "OpenVINOEngine", Breaks)
    tried = (CpuCandidate(profile="exact"), CpuCandidate(profile="exact", backend="openvino"))
    opened, setting = read_bundle(tiny_bundle), ProofSetting(threads=1, logit_scale=100.0)
    candidates = Candidates(models={"exact": opened.model("fp32")}, tried=tried)
    proved = prove_candidates(candidates, opened.golden(), setting)
    assert proved.inspection.not_measured == ("openvino-f32: it failed in OpenVINO",)
    assert closed == [True]


def test_the_childs_error_is_raised_with_its_class(rebundle: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(IncompatibleEngineError, match=r"cannot run .*out\.onnx"):
        build_engine(rebundle({bundles.GRAPH_FP32: b""}), tmp_path / "out.onnx")


def test_too_much_memory_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    """The limit is real: the worker's own bound, set as it sets it, stops an allocation beyond it."""
    code = (
        "from p4q_edge.runtime.builders import cpu_worker\n"
        "cpu_worker._limit_memory(0)\n"
        "try:\n    bytearray(64 << 30)\n"
        "except MemoryError:\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
    assert cpu_worker._BASE_BYTES == 1 << 30


def test_the_deadline_is_a_time() -> None:
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="the deadline must be positive"):
            BuildOptions(deadline_s=value)


def test_a_folder_of_a_stranger_lends_no_modules(tiny_bundle: Path, tmp_path: Path) -> None:
    """Started where files are named as libraries, neither the command nor its children import them."""
    for name in ("numpy", "json", "onnxruntime", "msgspec"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    main = "import sys; sys.path.remove(''); from p4q_edge.runtime.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", main, "build", str(tiny_bundle), "--engine", "out.onnx"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.onnx").exists()
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_signal_ends_build_and_its_child(tiny_bundle: Path, tmp_path: Path, number: int, code: int) -> None:
    started, child_file = tmp_path / "started", tmp_path / "child.py"
    child_file.write_text(
        READ + "from p4q_edge.runtime.machine import end_with_parent\nend_with_parent(request['parent'])\n"
        f"open({str(started)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    program = (
        "import sys\nfrom p4q_edge.runtime.builders import cpu_engine, cpu_worker_process as process\n"
        "own = process.prove_apart\n"
        f"cpu_engine.prove_apart = lambda *a, **k: own(*a, **k, command=[sys.executable, {str(child_file)!r}])\n"
        "from p4q_edge.runtime.cli.main import main\nsys.exit(main())\n"
    )
    command = [sys.executable, "-c", program, "build", str(tiny_bundle), "--engine", str(tmp_path / "out.onnx")]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as parent:
        while not started.exists() or not started.read_text():
            assert parent.poll() is None
            time.sleep(0.01)
        child = int(started.read_text())
        parent.send_signal(number)
        assert parent.wait(timeout=60) == code
    while _alive(child):  # the system ends it; the test would not end otherwise
        time.sleep(0.01)
    assert not list(tmp_path.glob("out.onnx*"))
    if number != signal.SIGKILL:
        assert list((tmp_path / "scratch").iterdir()) == []


def _alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
