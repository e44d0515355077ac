"""From the bundle to an engine that proves itself, and engines that do not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from p4q_edge.runtime import BuildOptions, build_engine, cli, machine, proof
from p4q_edge.runtime import bundle as bundles
from p4q_edge.runtime.bundle import read_bundle
from p4q_edge.runtime.card import Card, card_path, read_card, verify_engine, write_card
from p4q_edge.runtime.engines import load_engine
from p4q_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine, optimized_path, session_options
from p4q_edge.runtime.errors import (
    ArtifactError,
    CorruptArtifactError,
    EnvironmentNotAbleError,
    IncompatibleEngineError,
    InputError,
    P4QEdgeError,
    QualityGateError,
    UsageError,
)
from p4q_edge.runtime.golden import Golden
from p4q_edge.runtime.proof import ensure_golden, selftest

HIDDEN, DIM = 24, 16


def change_weight(engine: Path, *, index: int) -> None:
    """Turn one bit of an int8 weight of the last layer, the (24, 16) numbers at the end of the file."""
    data = bytearray(engine.read_bytes())
    data[index - HIDDEN * DIM] ^= 0x40
    engine.write_bytes(data)


def changed_golden(bundle: Path, **values: np.ndarray) -> bytes:
    golden = read_bundle(bundle).golden()
    fields = {name: getattr(golden, name) for name in Golden.__dataclass_fields__}
    return Golden(**{**fields, **values}).to_bytes()


def test_the_engine_is_a_complete_model_and_the_card_describes_it(tiny_bundle: Path, tmp_path: Path) -> None:
    engine = tmp_path / "new" / "out.onnx"
    card = build_engine(tiny_bundle, engine)
    bundle = read_bundle(tiny_bundle)
    assert engine.read_bytes() == bundle.model("fp32")
    assert card == read_card(engine)
    verify_engine(engine, card)
    assert (card.backend, card.class_names, card.embedding_dim) == ("onnxruntime", bundle.manifest.class_names, 16)
    assert card.bundle_sha256 == bundle.sha256()
    assert card.built_with["cpu"] == machine.cpu()
    assert card.measured["golden"]["cosine_min"] > 0.9999
    names = sorted(path.name for path in engine.parent.iterdir())
    assert names == ["out.onnx", "out.onnx.json", "out.onnx.optimized"]


def test_building_twice_gives_the_same_files(tiny_bundle: Path, tmp_path: Path) -> None:
    build_engine(tiny_bundle, tmp_path / "a.onnx")
    build_engine(tiny_bundle, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert (tmp_path / "a.onnx.json").read_bytes() == (tmp_path / "b.onnx.json").read_bytes()


@pytest.mark.parametrize("existing", ["out.onnx", "out.onnx.json"])
def test_nothing_is_overwritten_without_force(tiny_bundle: Path, tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_bytes(b"mine")
    with pytest.raises(UsageError, match=rf"{existing} exists already"):
        build_engine(tiny_bundle, tmp_path / "out.onnx")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]
    build_engine(tiny_bundle, tmp_path / "out.onnx", force=True)
    assert selftest(tmp_path / "out.onnx").problem() is None


def test_the_suffix_names_the_backend(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the suffix of .*out\.bin names no backend; expected \.onnx"):
        build_engine(tiny_bundle, tmp_path / "out.bin")
    build_engine(tiny_bundle, tmp_path / "out.bin", backend="onnxruntime")
    assert selftest(tmp_path / "out.bin").problem() is None


@pytest.mark.parametrize("suffix", [".plan", ".engine"])
def test_tensorrt_that_is_missing_is_said_so(
    tiny_bundle: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EnvironmentNotAbleError, match=r"TensorRT is not installed, and .* name .*out\.onnx instead"):
        build_engine(tiny_bundle, tmp_path / f"out{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_onnxruntime_that_is_missing_is_said_so(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EnvironmentNotAbleError, match=r"pip install 'p4q-edge-runtime\[onnxruntime\]'"):
        build_engine(tiny_bundle, tmp_path / "out.onnx")


def test_an_engine_that_misses_its_reference_is_not_written(
    tiny_bundle: Path, rebundle: Callable[..., Path], tmp_path: Path
) -> None:
    turned = np.roll(read_bundle(tiny_bundle).golden().embedding, 1, axis=1)
    wrong = rebundle({bundles.GOLDEN: changed_golden(tiny_bundle, embedding=turned)})
    with pytest.raises(QualityGateError, match=r"out\.onnx computes wrong values here: embeddings reach a cosine"):
        build_engine(wrong, tmp_path / "out" / "out.onnx")
    assert not (tmp_path / "out").exists()


def test_a_graph_that_is_no_model_is_refused(rebundle: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifactError, match=r"ONNX Runtime cannot read .*out\.onnx"):
        build_engine(rebundle({bundles.GRAPH_FP32: b"\xff\xff not protobuf"}), tmp_path / "out.onnx")


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
    elsewhere = {**card.built_with, "cpu": "another"}
    write_card(tiny_engine, msgspec.structs.replace(card, built_with=elsewhere, measured={}), force=True)
    result = selftest(tiny_engine)
    assert result.drift is None
    assert result.problem() is None


@pytest.mark.parametrize("recorded", [None, [[0.0]], "text", [[1.0], [1.0, 2.0]]])
def test_records_of_another_shape_are_refused(tiny_engine: Path, recorded: object) -> None:
    card = read_card(tiny_engine)
    write_card(tiny_engine, msgspec.structs.replace(card, measured={"embedding": recorded}), force=True)
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
    with pytest.raises(InputError, match=r"absent\.onnx does not exist\. Build it: p4q-edge build"):
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
        ({"class_names": ()}, "names no classes, or one twice"),
        ({"class_names": ("a", "a", "b")}, "names no classes, or one twice"),
        ({"schema_version": 9}, "has schema 9; this version reads schema 1"),
    ],
)
def test_damaged_cards_are_refused(tiny_engine: Path, change: dict[str, object], message: str) -> None:
    write_card(tiny_engine, msgspec.structs.replace(read_card(tiny_engine), **change), force=True)
    with pytest.raises(ArtifactError, match=message):
        selftest(tiny_engine)


def test_a_cpu_engine_runs_on_no_gpu(tiny_engine: Path) -> None:
    with pytest.raises(UsageError, match=r"runs on the CPU, not on 'cuda'\. For a GPU build a \.plan"):
        selftest(tiny_engine, device="cuda")


def test_threads_must_be_positive(tiny_engine: Path) -> None:
    with pytest.raises(UsageError, match="threads must be at least 1, got 0"):
        selftest(tiny_engine, threads=0)


@pytest.mark.parametrize(
    ("architecture", "flags", "expected"),
    [
        ("x86_64", "avx avx2 fma", True),
        ("AMD64", "avx2 avx512f avx512_vnni", False),
        ("x86_64", "avx2 avx_vnni", False),
        ("aarch64", "asimd asimddp", False),
        ("x86_64", None, True),
    ],
)
def test_x86_without_vnni_is_told_not_to_saturate(
    architecture: str, flags: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    if flags is not None:
        info.write_text(f"processor : 0\nmodel name : Some CPU\nflags : {flags}\n\nprocessor : 1\nflags : none\n")
    monkeypatch.setattr(machine, "CPU_INFO", info)
    monkeypatch.setattr(machine, "_cpu_info", machine._cpu_info.__wrapped__)
    monkeypatch.setattr(machine.platform, "machine", lambda: architecture)
    assert machine.saturates() is expected
    if flags is not None:
        assert machine.cpu().startswith(f"{architecture}; Some CPU; a")
    key = "session.x64quantprecision"
    if expected:
        assert session_options("exact").get_session_config_entry(key) == "1"
    else:
        with pytest.raises(RuntimeError, match=key):
            session_options("exact").get_session_config_entry(key)
    with pytest.raises(RuntimeError, match=key):
        session_options("fast").get_session_config_entry(key)


def test_waiting_threads_leave_their_cores_to_others() -> None:
    assert session_options("exact").get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_an_engine_for_unsigned_kernels_computes_the_same(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "saturates", lambda: True)
    card = build_engine(tiny_bundle, tmp_path / "out.onnx")
    assert card.measured["golden"]["cosine_min"] > 0.9999


def test_without_onnx_the_fast_profile_says_what_to_install(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(EnvironmentNotAbleError, match="--cpu-profile fast needs the package onnx .* pip install onnx"):
        build_engine(tiny_bundle, tmp_path / "out.onnx", options=BuildOptions(cpu_profile="fast"))
    assert list(tmp_path.iterdir()) == []


def test_the_card_says_what_runs(tiny_engine: Path) -> None:
    inspection = read_card(tiny_engine).inspection
    assert inspection["integer_products"] == 2
    assert inspection["kernels"]["MatMulIntegerToFloat"] == 2
    assert inspection["float_products"] == 3


def test_the_optimized_copy_is_loaded_where_it_was_made(tiny_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    load = OnnxRuntimeEngine.__init__
    monkeypatch.setattr(
        OnnxRuntimeEngine,
        "__init__",
        lambda self, model, **options: loaded.append(model.name) or load(self, model, **options),
    )
    assert selftest(tiny_engine).drift == 0.0
    card = read_card(tiny_engine)
    write_card(tiny_engine, msgspec.structs.replace(card, built_with={**card.built_with, "cpu": "other"}), force=True)
    assert selftest(tiny_engine).drift is None
    write_card(tiny_engine, card, force=True)
    optimized_path(tiny_engine).unlink()
    assert selftest(tiny_engine).drift == 0.0
    assert loaded == ["tiny.onnx.optimized", "tiny.onnx", "tiny.onnx"]


def test_a_card_with_another_profile_is_refused(tiny_engine: Path) -> None:
    card = read_card(tiny_engine)
    write_card(tiny_engine, msgspec.structs.replace(card, options={"kept_profile": "best"}), force=True)
    with pytest.raises(CorruptArtifactError, match="names the CPU profile 'best'; expected exact, fast, float"):
        selftest(tiny_engine)


def test_another_optimized_copy_is_refused(tiny_engine: Path) -> None:
    copy = optimized_path(tiny_engine)
    copy.write_bytes(copy.read_bytes() + b"\x12\x01x")
    with pytest.raises(CorruptArtifactError, match=r"tiny\.onnx\.optimized is not the copy that the card of"):
        selftest(tiny_engine)


def test_the_engine_checks_its_input_and_its_state(tiny_engine: Path) -> None:
    engine = OnnxRuntimeEngine(tiny_engine)
    assert engine.input_shape == (-1, 3, 8, 8)
    assert set(engine.output_names) == {"logits", "embedding", "features"}
    image = np.zeros((2, 3, 8, 8), np.uint8)
    assert engine.run(image, ("features",))["features"].shape == (2, 16)
    with pytest.raises(ValueError, match=r"expected uint8 \(N, \(3, 8, 8\)\), got float32"):
        engine.run(image.astype(np.float32))
    with pytest.raises(P4QEdgeError, match="failed in ONNX Runtime"):
        engine.run(image, ("other",))
    engine.close()
    with pytest.raises(P4QEdgeError, match="was closed. Load it again"):
        engine.run(image)


def varint(value: int) -> bytes:
    output = bytearray()
    while value > 0x7F:
        output.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*output, value])


def field(number: int, payload: bytes | int) -> bytes:
    """Encode one protobuf field: a varint, or bytes with their length."""
    if isinstance(payload, int):
        return varint(number << 3) + varint(payload)
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def identity_model(input_name: str, *, element: int, operator: str = "Identity", opset: int = 20) -> bytes:
    """Return a model with one node, written without the onnx package; element 2 is uint8, 1 is float."""
    sides = [field(3, b"N"), field(1, 3), field(1, 8), field(1, 8)]
    shape = b"".join(field(1, side.replace(b"\x1a", b"\x12", 1)) for side in sides)
    kind = field(2, field(1, field(1, element) + field(2, shape)))
    node = field(1, input_name.encode()) + field(2, b"out") + field(4, operator.encode())
    graph = field(1, node) + field(2, b"g") + field(11, field(1, input_name.encode()) + kind)
    graph += field(12, field(1, b"out") + kind)
    return field(1, 9) + field(7, graph) + field(8, field(1, b"") + field(2, opset))


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (
            identity_model("image", element=2),
            CorruptArtifactError,
            "expected outputs logits, embedding and features, got out",
        ),
        (identity_model("image", element=1), CorruptArtifactError, "expected one input `image` uint8"),
        (identity_model("x", element=2), CorruptArtifactError, "expected one input `image` uint8"),
        (identity_model("image", element=2, operator="Nothing"), IncompatibleEngineError, "cannot run .*Upgrade it"),
        (b"", ArtifactError, "ONNX Runtime .*cannot (read|run)"),
        (b"not protobuf", CorruptArtifactError, "cannot read"),
    ],
)
def test_other_models_are_no_engines(tmp_path: Path, model: bytes, error: type[Exception], message: str) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(model)
    with pytest.raises(error, match=message) as caught:
        OnnxRuntimeEngine(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def external_weights(location: str) -> bytes:
    """Return a fragment with one int8 weight whose bytes lie in another file."""
    entry = field(1, b"location") + field(2, location.encode())
    return field(7, field(5, field(1, 4) + field(2, 3) + field(8, b"w") + field(13, entry) + field(14, 1)))


def test_weights_in_other_files_are_never_read(
    tiny_engine: Path, rebundle: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_engine.read_bytes() + external_weights("/etc/hostname")
    other = tmp_path / "other.onnx"
    other.write_bytes(model)
    for source in (model, other):
        with pytest.raises(CorruptArtifactError, match="keeps weights in another file; an engine holds all of them"):
            OnnxRuntimeEngine(source, name="x")
    bundle = rebundle({bundles.GRAPH_FP32: read_bundle(rebundle()).read(bundles.GRAPH_FP32) + external_weights("../w")})
    with pytest.raises(CorruptArtifactError, match="keeps weights in another file"):
        build_engine(bundle, tmp_path / "out.onnx")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_commands_build_and_selftest(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = tmp_path / "out.onnx"
    code, out, _ = run(capsys, "build", tiny_bundle, "--engine", engine, "--json")
    document = json.loads(out)
    assert (code, document["schema_version"], document["engine"]) == (0, 1, str(engine))
    assert document["golden"]["samples"] == 4
    code, out, _ = run(capsys, "build", tiny_bundle, "--engine", engine, "--force")
    assert code == 0
    assert "cosine to the reference 1.000000 (n = 4)" in out
    code, out, _ = run(capsys, "selftest", engine)
    assert (code, out.startswith("passed: ")) == (0, True)
    assert run(capsys, "build", tiny_bundle, "--engine", engine)[0] == 2
    assert run(capsys, "build", tiny_bundle, "--recipe", "r.toml", "--engine", engine)[0] == 2


def test_command_selftest_exits_5_for_wrong_values_and_4_for_another_digest(
    tiny_engine: Path, resign: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    change_weight(tiny_engine, index=0)
    assert run(capsys, "selftest", tiny_engine)[0] == 4
    resign(tiny_engine)
    assert run(capsys, "selftest", tiny_engine)[0] == 4
    write_card(tiny_engine, msgspec.structs.replace(read_card(tiny_engine), parts=()), force=True)
    code, out, err = run(capsys, "selftest", tiny_engine, "--json")
    assert code == 5
    assert json.loads(out)["passed"] is False
    assert "computes wrong values here" in err
    assert err.count("\n") == 1


class _EntryPoint:
    def __init__(self, target: object) -> None:
        self._target = target

    def load(self) -> object:
        return self._target


def test_build_without_a_bundle_is_handed_to_the_toolkit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from p4q_edge.runtime.command import build
    from p4q_edge.runtime.commands import Command

    seen = []
    toolkit = Command(
        name="build-recipe", help="", add_arguments=lambda parser: None, run=lambda args: seen.append(args.recipe) or 7
    )
    monkeypatch.setattr(build, "entry_points", lambda **_: [_EntryPoint(toolkit)])
    assert run(capsys, "build", "--recipe", "r.toml", "--engine", tmp_path / "out.onnx")[0] == 7
    assert seen == [Path("r.toml")]
    monkeypatch.setattr(build, "entry_points", lambda **_: [_EntryPoint("text")])
    assert run(capsys, "build", "--engine", tmp_path / "out.onnx")[0] == 1
    monkeypatch.setattr(build, "entry_points", lambda **_: [])
    code, _, err = run(capsys, "build", "--engine", tmp_path / "out.onnx")
    assert code == 3
    assert "needs the toolkit, which is not installed" in err


def test_command_inspect(
    tiny_engine: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = tmp_path / "head.safetensors"
    head.write_bytes(read_bundle(tiny_bundle).read(bundles.HEAD))
    for artifact, kind in ((tiny_engine, "engine"), (tiny_bundle, "bundle"), (head, "head")):
        code, out, _ = run(capsys, "inspect", artifact, "--json")
        assert (code, json.loads(out)["kind"]) == (0, kind)
        code, out, _ = run(capsys, "inspect", artifact)
        assert code == 0
        assert "circle, square, triangle" in out
    assert "W8A8 executed, fp32 remainder, 2 linears quantized" in run(capsys, "inspect", tiny_engine)[1]
    assert run(capsys, "inspect", tmp_path / "absent.p4q")[0] == 2


def test_cards_round_trip(tiny_engine: Path) -> None:
    card = read_card(tiny_engine)
    assert msgspec.json.decode(msgspec.json.encode(card), type=Card) == card


def test_options_have_an_effect(tiny_bundle: Path, tmp_path: Path) -> None:
    card = build_engine(tiny_bundle, tmp_path / "a.onnx", options=BuildOptions(threads=1))
    assert card.options["cpu_profile"] == "exact"
