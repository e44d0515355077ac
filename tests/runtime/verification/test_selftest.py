"""Engines that prove themselves with golden samples, and engines that cannot."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.artifacts.card import card_path, read_card, write_card
from p4q_edge.runtime.engines.base import load_engine
from p4q_edge.runtime.engines.onnxruntime.engine import OnnxRuntimeEngine
from p4q_edge.runtime.errors import ArtifactError, CorruptArtifactError, InputError, QualityGateError
from p4q_edge.runtime.verification import self_test as proof
from p4q_edge.runtime.verification.self_test import ensure_golden, selftest

from doubles.cards import of_another_cpu

HIDDEN, DIM = 24, 16


def change_weight(engine: Path, *, index: int) -> None:
    """Turn one bit of an int8 weight of the last layer, the (24, 16) numbers at the end of the file."""
    data = bytearray(engine.read_bytes())
    data[index - HIDDEN * DIM] ^= 0x40
    engine.write_bytes(data)


def test_the_selftest_passes_and_compares_with_the_build(tiny_engine: Path) -> None:
    result = selftest(tiny_engine)
    assert result.problem() is None
    assert result.drift == 0.0
    assert result.samples == 4


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_number_of_threads_does_not_move_the_result(tiny_engine: Path, threads: int) -> None:
    assert selftest(tiny_engine, threads=threads).drift == 0.0


def test_a_changed_weight_is_found_by_its_digest(tiny_engine: Path) -> None:
    change_weight(tiny_engine, index=0)
    with pytest.raises(CorruptArtifactError, match=r"is not the engine that .*tiny\.onnx\.json describes"):
        selftest(tiny_engine)


@pytest.mark.parametrize("index", [0, 17, 100, 383])
def test_a_changed_weight_is_found_by_its_part_if_the_card_was_signed_again(
    tiny_engine: Path, resign: Callable[[Path], None], index: int
) -> None:
    change_weight(tiny_engine, index=index)
    resign(tiny_engine)
    with pytest.raises(CorruptArtifactError, match=r"the part weights\.onnx differs from the bundle"):
        selftest(tiny_engine)


def test_a_changed_weight_is_found_by_its_values_if_the_whole_card_was_signed_again(
    tiny_engine: Path, resign: Callable[[Path], None]
) -> None:
    """Each hidden unit has 16 weights; a unit that is 0 in all golden images hides a change of its own."""
    intact = tiny_engine.read_bytes()
    write_card(tiny_engine, msgspec.structs.replace(read_card(tiny_engine), parts=()), force=True)
    found = 0
    for unit in range(HIDDEN):
        tiny_engine.write_bytes(intact)
        change_weight(tiny_engine, index=unit * DIM)
        resign(tiny_engine)
        found += selftest(tiny_engine).problem() is not None
    assert found >= HIDDEN - 4


def test_an_appended_part_is_found(tiny_engine: Path, resign: Callable[[Path], None]) -> None:
    tiny_engine.write_bytes(tiny_engine.read_bytes() + b"\x12\x01x")
    resign(tiny_engine)
    with pytest.raises(CorruptArtifactError, match="is longer than the parts that its card lists"):
        selftest(tiny_engine)


def test_an_engine_of_another_machine_is_compared_with_the_reference_only(tiny_engine: Path) -> None:
    card = read_card(tiny_engine)
    write_card(tiny_engine, msgspec.structs.replace(of_another_cpu(card), measured=None), force=True)
    result = selftest(tiny_engine)
    assert result.drift is None
    assert result.problem() is None


@pytest.mark.parametrize("recorded", [None, ((0.0,),), ((1.0,), (1.0, 2.0))])
def test_records_of_another_shape_are_refused(tiny_engine: Path, recorded: tuple[tuple[float, ...], ...]) -> None:
    card = read_card(tiny_engine)
    assert card.measured is not None
    measured = None if recorded is None else msgspec.structs.replace(card.measured, embedding=recorded)
    write_card(tiny_engine, msgspec.structs.replace(card, measured=measured), force=True)
    with pytest.raises(CorruptArtifactError, match="the card records embeddings of shape"):
        selftest(tiny_engine)


def test_the_check_at_loading_runs_once_a_machine(tiny_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = read_card(tiny_engine)
    engine = load_engine(tiny_engine, card)
    runs = []
    check = proof.check_golden
    monkeypatch.setattr(proof, "check_golden", lambda *args, **kwargs: runs.append(1) or check(*args, **kwargs))
    ensure_golden(engine, card, name="x")
    ensure_golden(engine, card, name="x")
    assert len(runs) == 1
    monkeypatch.setattr(proof, "fingerprint", lambda card, device: {"cpu": "another"})
    ensure_golden(engine, card, name="x")
    assert len(runs) == 2
    engine.close()


class Saturating:
    """An engine whose values are off, as those of a runtime that saturates are."""

    def __init__(self, engine: OnnxRuntimeEngine) -> None:
        self._engine = engine

    def run(self, image: np.ndarray, outputs: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
        values = self._engine.run(image, outputs)
        values["embedding"] = np.clip(values["embedding"], -0.2, 0.2)
        return values


def test_wrong_values_are_refused_at_each_loading(tiny_engine: Path, cache_folder: Path) -> None:
    card = read_card(tiny_engine)
    engine = Saturating(OnnxRuntimeEngine(tiny_engine))
    for _ in range(2):
        with pytest.raises(QualityGateError, match="x computes wrong values here"):
            ensure_golden(engine, card, name="x")  # type: ignore[arg-type]
    assert list(cache_folder.iterdir()) == []


def test_a_cache_that_cannot_be_written_costs_only_time(
    tiny_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("P4Q_EDGE_CACHE", str(tmp_path / "file"))
    card = read_card(tiny_engine)
    with caplog.at_level("INFO", logger="p4q_edge"):
        ensure_golden(load_engine(tiny_engine, card), card, name="x")
    assert "are checked again at the next start" in caplog.text


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "chosen/p4q-edge"),
        ("linux", None, "home/.cache/p4q-edge"),
        ("darwin", None, "home/Library/Caches/p4q-edge"),
        ("win32", "LOCALAPPDATA", "chosen/p4q-edge"),
        ("win32", None, "home/AppData/Local/p4q-edge"),
    ],
)
def test_the_cache_lies_where_the_platform_keeps_caches(
    platform: str, variable: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("P4Q_EDGE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "chosen"))
    assert proof.cache_folder() == tmp_path / expected


def test_a_card_and_an_engine_that_are_missing_are_named(tiny_engine: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.onnx does not exist\. Build it from a bundle: p4q-edge build"):
        selftest(tmp_path / "absent.onnx")
    card_path(tiny_engine).unlink()
    with pytest.raises(InputError, match=r"tiny\.onnx\.json is missing; `p4q-edge build` writes it beside"):
        selftest(tiny_engine)


def test_the_card_of_another_engine_is_refused(
    tiny_engine: Path, tmp_path: Path, rebundle: Callable[..., Path]
) -> None:
    other = tmp_path / "other.onnx"
    source = read_bundle(rebundle())
    other.write_bytes(source.model("fp32") + b"\x12\x01x")
    card_path(other).write_bytes(card_path(tiny_engine).read_bytes())
    with pytest.raises(CorruptArtifactError, match=r"other\.onnx is not the engine that .*other\.onnx\.json describes"):
        selftest(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"golden": "%%%"}, "golden samples of the card cannot be decoded"),
        ({"golden": "AAAA"}, "golden samples of the card is not a safetensors file"),
        ({"class_names": ()}, "names no classes, or one class twice"),
        ({"class_names": ("a", "a", "b")}, "names no classes, or one class twice"),
        ({"schema_version": 9}, "has schema 9; this version reads schemas 1 and 2. Upgrade p4q-edge-runtime"),
    ],
)
def test_damaged_cards_are_refused(tiny_engine: Path, change: dict[str, object], message: str) -> None:
    write_card(tiny_engine, msgspec.structs.replace(read_card(tiny_engine), **change), force=True)
    with pytest.raises(ArtifactError, match=message):
        selftest(tiny_engine)


def test_command_selftest_exits_5_for_wrong_values_and_4_for_another_digest(
    tiny_engine: Path, resign: Callable[[Path], None], run: Callable[..., tuple[int, str, str]]
) -> None:
    change_weight(tiny_engine, index=0)
    assert run("selftest", tiny_engine)[0] == 4
    resign(tiny_engine)
    assert run("selftest", tiny_engine)[0] == 4
    write_card(tiny_engine, msgspec.structs.replace(read_card(tiny_engine), parts=()), force=True)
    code, out, err = run("selftest", tiny_engine, "--json")
    assert code == 5
    assert json.loads(out)["passed"] is False
    assert "computes wrong values here" in err
    assert err.count("\n") == 1
