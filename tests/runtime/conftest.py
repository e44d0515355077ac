"""The tiny bundle of tools/make_golden_models.py, engines built from it, and damaged copies of both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime.artifacts import bundle as bundles
from p4q_edge.runtime.artifacts.card import card_path, read_card, write_card
from p4q_edge.runtime.builders.build import build_engine
from p4q_edge.runtime.cli import main as cli
from p4q_edge.runtime.engines.onnxruntime.engine import optimized_path
from p4q_edge.runtime.storage.files import sha256_file

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
        card = msgspec.structs.replace(read_card(engine), engine_sha256=sha256_file(engine), optimized=None)
        write_card(engine, card, force=True)

    return sign


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
