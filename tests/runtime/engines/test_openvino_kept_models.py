"""What OpenVINO compiled before: where it is believed, and how long its memory lives."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from p4q_edge.runtime.artifacts.card import read_card, write_card
from p4q_edge.runtime.engines.openvino import kept_models, library
from p4q_edge.runtime.engines.openvino.engine import ModelSource, OpenVINOEngine
from p4q_edge.runtime.engines.openvino.kept_models import compiled_path
from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.storage import sha256_bytes
from p4q_edge.runtime.verification.self_test import selftest

from doubles.cards import of_another_cpu, of_another_openvino

# Looked for and not imported: its import by others than the runtime is reported to its makers.
pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="pip install './runtime[openvino]'")


def kept_source(model: bytes) -> ModelSource:
    """A model whose compiled forms are kept in the cache folder."""
    return ModelSource(model=lambda: model, engine_sha256=sha256_bytes(model))


def test_the_compiled_model_is_loaded_where_it_was_made(
    openvino_built: Path, monkeypatch: pytest.MonkeyPatch, cache_folder: Path
) -> None:
    loaded: list[str] = []
    own = library.import_compiled
    monkeypatch.setattr(library, "import_compiled", lambda *a: loaded.append("kept") or own(*a))
    made = library.compile_model
    monkeypatch.setattr(library, "compile_model", lambda *a, **k: loaded.append("compiled") or made(*a, **k))
    assert selftest(openvino_built, threads=1).drift == 0.0
    card = read_card(openvino_built)
    write_card(openvino_built, of_another_cpu(card), force=True)
    # There it is compiled once, and then found in this user's cache.
    assert selftest(openvino_built, threads=1).drift is None
    assert selftest(openvino_built, threads=1).problem() is None
    assert loaded == ["kept", "compiled", "kept"]
    assert len(list((cache_folder / "openvino").iterdir())) == 1


@pytest.mark.parametrize("place", ["beside the engine", "the cache"])
def test_the_memory_of_a_kept_model_lives_as_long_as_the_engine(
    openvino_built: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    memories: list[weakref.ref[memoryview]] = []
    own = library.import_compiled

    def noted(data: memoryview, options: Mapping[str, object]) -> object:
        memories.append(weakref.ref(data))
        return own(data, options)

    monkeypatch.setattr(library, "import_compiled", noted)
    card = read_card(openvino_built)
    if place == "the cache":
        card = of_another_cpu(card)
        OpenVINOEngine.from_card(openvino_built, card, threads=1)
    engine = OpenVINOEngine.from_card(openvino_built, card, threads=1)
    gc.collect()
    (memory,) = memories
    assert memory() is not None  # OpenVINO reads the weights in it, and does not keep it
    engine.run(np.zeros((1, 3, 8, 8), np.uint8))
    engine.close()
    gc.collect()
    assert memory() is None


def test_another_compiled_model_is_refused(openvino_built: Path) -> None:
    copy = compiled_path(openvino_built)
    copy.write_bytes(copy.read_bytes() + b"x")
    with pytest.raises(CorruptArtifactError, match=r"tiny\.onnx\.openvino is not the compiled model of .*tiny\.onnx"):
        selftest(openvino_built)
    copy.unlink()
    assert selftest(openvino_built, threads=1).drift == 0.0


def test_what_another_version_compiled_is_left_alone(
    openvino_built: Path, monkeypatch: pytest.MonkeyPatch, cache_folder: Path
) -> None:
    monkeypatch.setattr(library, "import_compiled", lambda *_: pytest.fail("it was believed"))
    card = of_another_openvino(read_card(openvino_built))
    OpenVINOEngine.from_card(openvino_built, card, threads=1)
    (kept,) = (cache_folder / "openvino").iterdir()
    kept.unlink()
    # Damaged or not.
    compiled_path(openvino_built).write_bytes(b"x")
    OpenVINOEngine.from_card(openvino_built, card, threads=1)
    openvino_built.write_bytes(openvino_built.read_bytes() + b"\x12\x01x")
    with pytest.raises(CorruptArtifactError, match="their digests differ"):
        OpenVINOEngine.from_card(openvino_built, card, threads=1)


def test_another_engine_is_refused_also_where_a_compiled_model_is_kept(openvino_built: Path) -> None:
    write_card(openvino_built, of_another_cpu(read_card(openvino_built)), force=True)
    assert selftest(openvino_built, threads=1).problem() is None
    openvino_built.write_bytes(openvino_built.read_bytes() + b"\x12\x01x")
    with pytest.raises(CorruptArtifactError, match="their digests differ"):
        selftest(openvino_built)


@pytest.mark.parametrize("damage", ["cut", "changed", "written by others"])
def test_a_kept_model_that_cannot_be_believed_is_made_again(
    model: bytes, cache_folder: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    OpenVINOEngine(kept_source(model), threads=1)
    (kept,) = (cache_folder / "openvino").iterdir()
    if damage == "cut":
        kept.write_bytes(kept.read_bytes()[:100])
    elif damage == "changed":
        kept.write_bytes(kept.read_bytes()[:-1] + b"\0\0")
    else:
        kept.chmod(0o666)
    monkeypatch.setattr(library, "import_compiled", lambda *_: pytest.fail("it was believed"))
    engine = OpenVINOEngine(kept_source(model), threads=1)
    assert engine.run(np.zeros((1, 3, 8, 8), np.uint8), ("features",))["features"].shape == (1, 16)


def test_the_cache_is_keyed_by_all_that_a_compiled_model_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(engine: str = "a", *, batch: int = 1, remainder: str = "f32") -> str:
        path = kept_models.kept_model_path(engine, remainder=remainder, batch=batch)  # type: ignore[arg-type]
        assert path is not None
        return path.name

    keys = {key(), key("b"), key(batch=8), key(remainder="bf16")}
    for changed in ({"openvino": "1", "cpu": "x"}, {"openvino": "2", "cpu": "x"}, {"openvino": "1", "cpu": "y"}):
        monkeypatch.setattr(library, "fingerprint", lambda changed=changed: changed)
        keys.add(key())
    assert len(keys) == 7


def test_a_place_that_cannot_be_written_only_costs_time(
    model: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("P4Q_EDGE_CACHE", str(tmp_path / "file"))
    engine = OpenVINOEngine(kept_source(model), threads=1)
    assert engine.run(np.zeros((1, 3, 8, 8), np.uint8))["logits"].shape[0] == 1
