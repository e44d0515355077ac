"""The tiny bundle of tools/make_golden_models.py, engines made of it, doubles of CUDA and TensorRT."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from installed_doubles import install_double
from PIL import Image

from p4q_edge.runtime.artifacts import bundle as bundles
from p4q_edge.runtime.artifacts.card import card_path, read_card, write_card
from p4q_edge.runtime.builders.build import build_engine
from p4q_edge.runtime.cli import main as cli
from p4q_edge.runtime.engines.cuda.device import open_cuda
from p4q_edge.runtime.engines.onnxruntime.engine import optimized_path
from p4q_edge.runtime.errors import EnvironmentNotAbleError
from p4q_edge.runtime.storage.files import sha256_file

from doubles import libcuda as libcuda_double
from doubles.cuda import RecordingCuda
from doubles.keys import make_keys
from doubles.rtx import RtxDouble
from doubles.tensorrt import CLASSES_BEHIND, CLASSES_OF_MODULE, SURFACE, TensorRTDouble, compute, make_module
from doubles.tensorrt_api import SIDE, IConstantLayer, IDequantizeLayer, ILayer, ITensor

TINY = Path(__file__).parent / "data" / "tiny.p4q"


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("P4Q_EDGE_CACHE", str(folder))
    return folder


@pytest.fixture
def tiny_bundle() -> Path:
    """The committed bundle; not to be written to."""
    return TINY


@pytest.fixture(scope="session")
def _built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    engine = tmp_path_factory.mktemp("engine") / "tiny.onnx"
    build_engine(TINY, engine)
    return engine


@pytest.fixture
def tiny_engine(_built: Path, tmp_path: Path) -> Path:
    """An engine with its card, in a folder of this test's own."""
    engine = tmp_path / "tiny.onnx"
    engine.write_bytes(_built.read_bytes())
    card_path(engine).write_bytes(card_path(_built).read_bytes())
    optimized_path(engine).write_bytes(optimized_path(_built).read_bytes())
    return engine


@pytest.fixture
def rebundle(tmp_path: Path) -> Callable[..., Path]:
    """Write a copy of the tiny bundle with other members or manifest fields."""

    def write(members: dict[str, bytes] | None = None, **manifest: object) -> Path:
        source = bundles.read_bundle(TINY)
        contents = {name: source.read(name) for name in source.manifest.members}
        path = tmp_path / "changed.p4q"
        fields = msgspec.structs.replace(source.manifest, **manifest)
        bundles.write_bundle(path, fields, {**contents, **(members or {})}, force=True)
        return path

    return write


@pytest.fixture
def resign() -> Callable[[Path], None]:
    """Make the card of a changed engine state the changed digest, and no optimized copy of the engine it was."""

    def sign(engine: Path) -> None:
        card = read_card(engine)
        build = msgspec.structs.replace(card.build, optimized=None)
        write_card(engine, msgspec.structs.replace(card, engine_sha256=sha256_file(engine), build=build), force=True)

    return sign


@pytest.fixture
def keys_of_a_maker(tmp_path: Path) -> tuple[Path, Path]:
    """Files of a private and a public Ed25519 key."""
    return make_keys(tmp_path, "maker")


@pytest.fixture
def picture() -> Image.Image:
    """A picture of 40 x 30 pixels."""
    pixels = np.random.default_rng(3).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def photo(tmp_path: Path, picture: Image.Image) -> Path:
    """The picture as a PNG file."""
    path = tmp_path / "photo.png"
    picture.save(path)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `p4q-edge` with arguments; return its exit code, stdout and stderr."""

    def command(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.fixture
def cuda() -> RecordingCuda:
    """A Jetson Orin."""
    return RecordingCuda()


@pytest.fixture
def desktop() -> RecordingCuda:
    """A desktop GPU."""
    return RecordingCuda(name="NVIDIA RTX A2000", compute_capability="8.6", integrated=False)


@pytest.fixture(params=["10.3.0", "10.13.3.9", "10.16.1.11", "11.4.0.106"])
def double(request: pytest.FixtureRequest, cuda: RecordingCuda) -> TensorRTDouble:
    """TensorRT, every supported version in turn."""
    return TensorRTDouble(request.param, cuda)


@pytest.fixture
def double_of(cuda: RecordingCuda) -> Callable[[str], TensorRTDouble]:
    """TensorRT of a version that the test chooses."""
    return lambda version: TensorRTDouble(version, cuda)


@pytest.fixture
def doubles() -> Any:
    """The classes of the double and helpers, for tests that build networks of it."""
    return SimpleNamespace(
        compute=compute,
        ILayer=ILayer,
        ITensor=ITensor,
        IConstantLayer=IConstantLayer,
        IDequantizeLayer=IDequantizeLayer,
        classes=(*CLASSES_OF_MODULE, *CLASSES_BEHIND),
        surface=json.loads(SURFACE.read_text(encoding="utf-8")),
        make_module=make_module,
        RecordingCuda=RecordingCuda,
    )


@pytest.fixture
def images() -> np.ndarray:
    """(9, 3, SIDE, SIDE) uint8."""
    return np.random.default_rng(0).integers(0, 256, (9, 3, SIDE, SIDE), dtype=np.uint8)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, double: TensorRTDouble) -> TensorRTDouble:
    """Install the doubles where the runtime looks for CUDA and TensorRT."""
    install_double(monkeypatch, double)
    return double


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch, desktop: RecordingCuda) -> RtxDouble:
    """A desktop with TensorRT for RTX, and without TensorRT."""
    double = RtxDouble(desktop)
    install_double(monkeypatch, double)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", double.trt)
    return double


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[TensorRTDouble], None]:
    """Install a double that the test made."""
    return lambda double: install_double(monkeypatch, double)


@pytest.fixture(scope="session")
def libcuda_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The double of the driver's library, compiled."""
    if libcuda_double.COMPILER is None:
        pytest.skip("no C compiler for the double of the CUDA driver")
    return libcuda_double.compile_library(tmp_path_factory.mktemp("libcuda"))


@pytest.fixture
def libcuda(libcuda_library: Path, monkeypatch: pytest.MonkeyPatch) -> libcuda_double.LibCuda:
    """Make that double the driver of this process."""
    monkeypatch.setattr("p4q_edge.runtime.machine.cuda_driver.LIBRARY", str(libcuda_library))
    return libcuda_double.LibCuda(libcuda_library)


@pytest.fixture(params=["driver", "cuda-bindings"])
def gpu(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A real GPU through each backend; tests with it are skipped, and counted, where there is none."""
    try:
        backend = open_cuda(request.param)
    except EnvironmentNotAbleError as error:
        pytest.skip(f"no GPU: {error}")
    with backend.current():
        yield backend
