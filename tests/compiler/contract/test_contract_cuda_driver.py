"""The driver's functions are declared as in NVIDIA's header, and the double of the driver has those declarations."""

from __future__ import annotations

import ctypes
import re
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from pathlib import Path
from typing import Any

import pytest
from wheels import unpacked

from p4q_edge.runtime.machine.cuda_driver import SIGNATURES

from doubles import libcuda

HEADERS = ("nvidia-cuda-runtime-cu12==12.9.79", "nvidia-cuda-runtime==13.2.86")
HANDLES = ("CUcontext", "CUstream", "CUevent", "CUgraph", "CUgraphExec", "void *")
TYPES: dict[str, Any] = {
    **dict.fromkeys(("int", "CUdevice", "CUdevice_attribute", "CUstreamCaptureMode", "CUresult"), c_int),
    **dict.fromkeys(HANDLES, c_void_p),
    "unsigned int": c_uint,
    "unsigned long long": c_ulonglong,
    "size_t": c_size_t,
    "CUdeviceptr": c_uint64,
    "char *": c_char_p,
    "float": c_float,
}


@pytest.fixture(params=HEADERS)
def header(request: pytest.FixtureRequest) -> Path:
    (found,) = unpacked(request.param).rglob("cuda.h")
    return found


def declared(text: str, name: str) -> tuple[Any, ...]:
    """Return the types of a function's parameters; names with `_v2` are what the header calls the plain ones."""
    plain = next(
        (old for old, new in re.findall(r"#define (cu\w+)\s+(?:__CUDA_API_PTSZ\()?(cu\w+)", text) if new == name), name
    )
    found = re.search(rf"CUresult CUDAAPI (?:{name}|{plain})\((.*?)\);", text)
    assert found is not None, name
    return tuple(_type(parameter) for parameter in found[1].split(","))


def _type(parameter: str) -> Any:
    words = re.sub(r"\bconst\b", "", parameter).replace("*", " * ").split()
    text = " ".join(words[:-1]).replace("* *", "**").replace(" *", " *")
    if text in TYPES:
        return TYPES[text]
    assert text.endswith("*"), parameter
    return POINTER(_type(f"{text[:-1].strip()} x"))


def test_every_function_is_declared_as_in_the_header(header: Path) -> None:
    text = header.read_text(encoding="utf-8", errors="replace")
    assert {name: declared(text, name) for name in SIGNATURES} == SIGNATURES


def test_the_reading_of_declarations_tells_types_apart() -> None:
    text = "#define cuA cuA_v2\nCUresult CUDAAPI cuA(void **pp, const void *p, size_t n, const char **text);"
    assert declared(text, "cuA_v2") == (POINTER(c_void_p), c_void_p, c_size_t, POINTER(c_char_p))
    assert ctypes.sizeof(c_uint64) == 8


def test_the_double_of_the_driver_has_nvidias_declarations(header: Path, tmp_path: Path) -> None:
    """The compiler compares them: a function of another type than the header's is an error."""
    if libcuda.COMPILER is None:
        pytest.skip("contract: no C compiler")
    library = libcuda.compile_library(tmp_path, "-DP4Q_WITH_CUDA_H", f"-I{header.parent}")
    assert all(hasattr(ctypes.CDLL(str(library)), name) for name in SIGNATURES)
