"""What our CUDA layer calls exists in cuda.bindings 12.9 and 13.5 and in pycuda, with the arguments that we give."""

from __future__ import annotations

import ast
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

# Runs every method of our backend on the real library. Without a GPU each call answers with a status, which our code
# turns into an error that names the call; a wrong name, number or type of arguments would be a Python error instead.
EXERCISE = """
import json, sys
import numpy as np
from cuda.bindings import runtime as cudart
from p4q_edge.runtime.engines.cuda.bindings import CudaBindings
from p4q_edge.runtime.errors import EnvironmentNotAbleError, P4QEdgeError
answers = {}
def attempt(name, function):
    try:
        function()
        answers[name] = "answered"
    except (P4QEdgeError, EnvironmentNotAbleError) as error:
        answers[name] = str(error)
attempt("__init__", lambda: CudaBindings(0))
cuda = CudaBindings.__new__(CudaBindings)
class Facts: index = 0
cuda.facts = Facts()
host = np.zeros(16, np.uint8)
stream, event = cudart.cudaStream_t(0), cudart.cudaEvent_t(0)
def enter():
    with cuda.current():
        pass
calls = {
    "_read_facts": lambda: cuda._read_facts(0),
    "current": enter,
    "memory": cuda.memory,
    "create_stream": cuda.create_stream,
    "synchronize": lambda: cuda.synchronize(stream),
    "destroy_stream": lambda: cuda.destroy_stream(stream),
    "allocate": lambda: cuda.allocate(16),
    "free": lambda: cuda.free(0),
    "allocate_pinned": lambda: cuda.allocate_pinned(16),
    "free_pinned": lambda: cuda.free_pinned(host),
    "copy_to_device": lambda: cuda.copy_to_device(4096, host, stream),
    "copy_to_host": lambda: cuda.copy_to_host(host, 4096, stream),
    "capture": lambda: cuda.capture(stream, lambda: None),
    "launch": lambda: cuda.launch(cudart.cudaGraphExec_t(0), stream),
    "destroy_graph": lambda: cuda.destroy_graph(cudart.cudaGraphExec_t(0)),
    "create_event": cuda.create_event,
    "record_event": lambda: cuda.record_event(event, stream),
    "elapsed_ms": lambda: cuda.elapsed_ms(event, event),
    "destroy_event": lambda: cuda.destroy_event(event),
}
for name, call in calls.items():
    attempt(name, call)
assert cuda.stream_handle(cudart.cudaStream_t(77)) == 77
# What `capture` and `elapsed_ms` call after their first call, which fails here.
for name, function, arguments in (
    ("cudaStreamEndCapture", cudart.cudaStreamEndCapture, (stream,)),
    ("cudaGraphInstantiate", cudart.cudaGraphInstantiate, (cudart.cudaGraph_t(0), 0)),
    ("cudaGraphDestroy", cudart.cudaGraphDestroy, (cudart.cudaGraph_t(0),)),
    ("cudaEventElapsedTime", cudart.cudaEventElapsedTime, (event, event)),
    ("cudaSetDevice", cudart.cudaSetDevice, (0,)),
    ("cudaDriverGetVersion", cudart.cudaDriverGetVersion, ()),
    ("cudaRuntimeGetVersion", cudart.cudaRuntimeGetVersion, ()),
    ("cudaGetLastError", cudart.cudaGetLastError, ()),
):
    answers[name] = function(*arguments)[0].name
properties = {name for name in ("name", "major", "minor", "totalGlobalMem", "integrated")
              if hasattr(cudart.cudaDeviceProp, name)}
print(json.dumps({"answers": answers, "properties": sorted(properties)}))
"""


def _backend(repository: Path, name: str) -> str:
    return (repository / "runtime" / "p4q_edge" / "runtime" / "engines" / "cuda" / name).read_text(encoding="utf-8")


def test_every_call_is_accepted_by_the_real_cuda_bindings(
    cuda_bindings_folder: Path, python: Callable[..., str], repository: Path
) -> None:
    hidden = [("CUDA_VISIBLE_DEVICES", "")]  # also where there is a GPU: it would take null pointers seriously
    found = json.loads(python(EXERCISE, path=cuda_bindings_folder, environment=hidden))
    answers = found["answers"]
    assert re.search(
        r"no CUDA driver is installed|CUDA answers .*libcuda|driver is too old|CUDA finds none", answers["__init__"]
    )
    assert found["properties"] == ["integrated", "major", "minor", "name", "totalGlobalMem"]
    called = set(re.findall(r"cudart\.(cuda[A-Z]\w+)\b", _backend(repository, "bindings.py")))
    seen = {name for name in answers if name.startswith("cuda")}
    seen |= {match[0] for text in answers.values() for match in re.finditer(r"cuda[A-Z]\w+(?= failed)", text)}
    constants = {"cudaError_t", "cudaStreamNonBlocking", "cudaHostAllocDefault", "cudaStreamCaptureMode"}
    constants |= {"cudaMemcpyKind", "cudaGetErrorString", "cudaGetDeviceCount"}
    # Without a driver some calls succeed because they have nothing to do.
    harmless = {"cudaFree", "cudaGetDevice", "cudaFreeHost", "cudaMemGetInfo", "cudaGetDeviceProperties"}
    assert called - seen - constants - harmless == set()


def test_the_names_that_the_backend_uses_exist(cuda_bindings_folder: Path, python: Callable[..., str]) -> None:
    program = (
        "from cuda.bindings import runtime as cudart\n"
        "print(cudart.cudaStreamNonBlocking, cudart.cudaHostAllocDefault,\n"
        "      cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal.name,\n"
        "      cudart.cudaMemcpyKind.cudaMemcpyHostToDevice.name, cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost.name,\n"
        "      cudart.cudaError_t.cudaErrorNoDevice.name, cudart.cudaError_t.cudaSuccess.name)"
    )
    assert python(program, path=cuda_bindings_folder).split() == [
        "1",
        "0",
        "cudaStreamCaptureModeThreadLocal",
        "cudaMemcpyHostToDevice",
        "cudaMemcpyDeviceToHost",
        "cudaErrorNoDevice",
        "cudaSuccess",
    ]


def test_every_name_of_pycuda_is_defined_in_its_sources(pycuda_archive: Path, repository: Path) -> None:
    """pycuda has no wheels and imports only with a driver, so its binding code is read instead."""
    with tarfile.open(pycuda_archive) as archive:
        member = next(name for name in archive.getnames() if name.endswith("src/wrapper/wrap_cudadrv.cpp"))
        stream = archive.extractfile(member)
        assert stream is not None
        text = stream.read().decode()
    defined: set[str] = set()
    for pattern in (r"DEF_SIMPLE_METHOD\((\w+)\)", r"DEF_SIMPLE_FUNCTION\((\w+)\)", r"DECLARE_EXC\((\w+),", r'"(\w+)"'):
        defined |= set(re.findall(pattern, text))
    used = _used_of_driver(_backend(repository, "pycuda.py"))
    assert {"mem_alloc", "Stream", "Device", "Context", "pagelocked_empty", "memcpy_htod_async"} <= used
    assert used - defined == set()
    methods = {"retain_primary_context", "compute_capability", "total_memory", "get_attribute", "push", "pop", "free"}
    assert methods | {"synchronize", "record", "time_till", "handle", "INTEGRATED"} <= defined


def test_pycudas_context_is_never_made_by_autoinit(repository: Path) -> None:
    for path in (repository / "runtime").rglob("*.py"):
        imported = {
            name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        }
        assert not any("autoinit" in name for name in imported), path


@pytest.mark.parametrize(
    ("source", "used"), [("driver.mem_alloc(8)", {"mem_alloc"}), ("driver.Context.pop()", {"Context"}), ("a.b", set())]
)
def test_the_scan_of_driver_names_finds_them(source: str, used: set[str]) -> None:
    assert _used_of_driver(source) == used


def _used_of_driver(source: str) -> set[str]:
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "driver"
    }
