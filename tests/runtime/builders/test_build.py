"""From the bundle to an engine with its card, and the commands `build` and `inspect`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np
import pytest
from heard import Heard

from p4q_edge.runtime import BuildOptions, build_engine
from p4q_edge.runtime.artifacts import bundle as bundles
from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.artifacts.card import Card, read_card, verify_engine
from p4q_edge.runtime.artifacts.golden import Golden
from p4q_edge.runtime.builders.request import BuildRequest, RecipeRequest
from p4q_edge.runtime.cli.inspect_documents import LintRow
from p4q_edge.runtime.errors import CorruptArtifactError, EnvironmentNotAbleError, QualityGateError, UsageError
from p4q_edge.runtime.machine import cpu as machine
from p4q_edge.runtime.progress import listening
from p4q_edge.runtime.verification.self_test import selftest


def changed_golden(bundle: Path, **values: np.ndarray) -> bytes:
    golden = read_bundle(bundle).golden()
    fields = {name: getattr(golden, name) for name in Golden.__dataclass_fields__}
    return Golden(**{**fields, **values}).to_bytes()


def test_the_engine_is_a_complete_model_and_the_card_describes_it(tiny_bundle: Path, tmp_path: Path) -> None:
    engine = tmp_path / "new" / "out.onnx"
    heard = Heard()
    with listening(heard):
        card = build_engine(tiny_bundle, engine)
    assert heard.finished == ["build"]
    bundle = read_bundle(tiny_bundle)
    assert engine.read_bytes() == bundle.model("fp32")
    assert card == read_card(engine)
    verify_engine(engine, card)
    assert (card.backend, card.class_names, card.embedding_dim) == ("onnxruntime", bundle.manifest.class_names, 16)
    assert card.bundle_sha256 == bundle.sha256()
    assert card.built_with["cpu"] == machine.cpu()
    assert card.measured.golden.cosine_min > 0.9999
    names = sorted(path.name for path in engine.parent.iterdir())
    assert names == ["out.onnx", "out.onnx.json", "out.onnx.optimized"]


@pytest.mark.parametrize(("share", "warned"), [(None, False), (0.5, False), (0.0006, True)])
def test_a_model_that_is_hardly_quantized_is_built_with_a_warning(
    rebundle: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, share: float | None, warned: bool
) -> None:
    precision = msgspec.structs.replace(read_bundle(rebundle()).manifest.precision, int8_mac_share=share)
    card = build_engine(rebundle(precision=precision), tmp_path / "out.onnx")
    assert card.precision.int8_mac_share == share
    assert ("only 0.1 % of the multiply-accumulates of" in caplog.text) == warned
    assert card.precision.label == "W8A8 executed" + (" in 0.1 % of multiply-accumulates" if warned else "")


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
    with pytest.raises(
        EnvironmentNotAbleError, match=r"TensorRT is not installed for this Python, and .* name .*out\.onnx instead"
    ):
        build_engine(tiny_bundle, tmp_path / f"out{suffix}")
    with pytest.raises(EnvironmentNotAbleError, match=r"For a CPU engine leave --backend out\."):
        build_engine(tiny_bundle, tmp_path / "out.onnx", backend="tensorrt")
    assert list(tmp_path.iterdir()) == []


def test_a_profile_that_needs_onnx_names_one_that_does_not(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("P4Q_EDGE_CPU_PROFILE", "fast")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(EnvironmentNotAbleError, match="or take the exact profile: --cpu-profile exact"):
        build_engine(tiny_bundle, tmp_path / "out.onnx")
    build_engine(tiny_bundle, tmp_path / "out.onnx", options=BuildOptions(cpu_profile="exact"))


def test_onnxruntime_that_is_missing_is_said_so(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EnvironmentNotAbleError, match=r"pip install 'p4q-edge-runtime\[onnxruntime\]'"):
        build_engine(tiny_bundle, tmp_path / "out.onnx")


def test_an_engine_that_misses_its_reference_is_not_written(
    tiny_bundle: Path, rebundle: Callable[..., Path], tmp_path: Path
) -> None:
    turned, head = np.roll(read_bundle(tiny_bundle).golden().embedding, 1, axis=1), read_bundle(tiny_bundle).head()
    logits = head.logit_scale * turned @ head.text_embedding.T
    wrong = rebundle({bundles.GOLDEN: changed_golden(tiny_bundle, embedding=turned, logits=logits)})
    with pytest.raises(QualityGateError, match=r"out\.onnx computes wrong values here: embeddings reach a cosine"):
        build_engine(wrong, tmp_path / "out" / "out.onnx")
    assert not (tmp_path / "out").exists()


def test_a_graph_that_is_no_model_is_refused(rebundle: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifactError, match=r"graph\.fp32\.onnx of .* is not a model that P4Q"):
        build_engine(rebundle({bundles.GRAPH_FP32: b"\xff\xff not protobuf"}), tmp_path / "out.onnx")


def test_commands_build_and_selftest(
    tiny_bundle: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    engine = tmp_path / "out.onnx"
    code, out, _ = run("build", tiny_bundle, "--engine", engine, "--json")
    document = json.loads(out)
    assert (code, document["schema_version"], document["engine"]) == (0, 1, str(engine))
    assert document["golden"]["samples"] == 4
    code, out, _ = run("build", tiny_bundle, "--engine", engine, "--force")
    assert code == 0
    assert "cosine to the reference 1.000000 (n = 4)" in out
    code, out, _ = run("selftest", engine)
    assert (code, out.startswith("passed: ")) == (0, True)
    assert run("build", tiny_bundle, "--engine", engine)[0] == 2
    assert run("build", tiny_bundle, "--recipe", "r.toml", "--engine", engine)[0] == 2


class _EntryPoint:
    def __init__(self, target: object) -> None:
        self._target = target

    def load(self) -> object:
        return self._target


def test_build_without_a_bundle_asks_the_toolkit_for_one(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:

    seen: list[BuildRequest] = []

    def bundle_from_recipe(request: BuildRequest) -> Path:
        seen.append(request)
        return tiny_bundle

    lent = {"bundle_from_recipe": bundle_from_recipe, "build_summary": lambda *_: ({"n": 0, "rows": []}, "table")}
    monkeypatch.setattr(metadata, "entry_points", lambda **asked: [_EntryPoint(lent[asked["name"]])])
    engine = tmp_path / "out.onnx"
    code, out, _ = run("build", "--recipe", "r.toml", "--seed", "3", "--engine", engine, "--json", "-q")
    assert (code, json.loads(out)["bundle"]) == (0, str(tiny_bundle))
    recipe = RecipeRequest(path=Path("r.toml"), seed=3)
    assert seen == [BuildRequest(engine=engine, options=BuildOptions(), recipe=recipe, quiet=True)]
    assert read_card(engine).bundle_sha256 == read_bundle(tiny_bundle).sha256()
    monkeypatch.setattr(metadata, "entry_points", lambda **_: [_EntryPoint("text")])
    assert run("build", "--engine", tmp_path / "out.onnx")[0] == 1
    monkeypatch.setattr(metadata, "entry_points", lambda **_: [])
    code, _, err = run("build", "--engine", tmp_path / "out.onnx")
    assert code == 3
    assert "needs the toolkit, which is not installed" in err


@pytest.mark.parametrize(
    ("arguments", "missing", "code", "message"),
    [
        (["--engine", "o.onnx", "--threads", "0"], "", 2, "threads must be at least 1"),
        (["--engine", "o.onnx", "--batch", "5000"], "", 2, "batch must be at least 1 and at most 4096, got 5000"),
        (["--engine", "o.onnx", "--backend", "openvino"], "openvino", 3, "OpenVINO is not installed"),
        (["--engine", "o.onnx", "--remainder", "bf16"], "openvino", 3, "--remainder bf16 is OpenVINO's"),
        (["--engine", "o.plan"], "tensorrt", 3, "TensorRT is not installed"),
        (["--engine", "o.rtx"], "tensorrt_rtx_bindings", 3, "expected the Python module tensorrt_rtx_bindings"),
        (["--engine", "o.bin"], "", 2, "the suffix of o.bin names no backend"),
    ],
)
def test_what_a_machine_cannot_build_is_refused_before_the_recipe_is_run(  # it takes minutes to hours
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., tuple[int, str, str]],
    arguments: list[str],
    missing: str,
    code: int,
    message: str,
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(metadata, "entry_points", lambda **request: asked.append(request["name"]) or [])
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    ended, _, err = run("build", *arguments)
    assert (ended, message in err) == (code, True), err
    assert asked == []


def test_a_profile_that_the_environment_names_wrong_is_told_before_the_recipe_is_run(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setenv("P4Q_EDGE_CPU_PROFILE", "quick")
    monkeypatch.setattr(metadata, "entry_points", lambda **_: pytest.fail("the toolkit was asked"))
    code, _, err = run("build", "--engine", "o.onnx")
    assert (code, "P4Q_EDGE_CPU_PROFILE=quick: expected one of" in err) == (2, True)


def test_inspect_hands_the_lint_to_the_toolkit(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    seen: list[Path] = []
    finding = LintRow(graph="g", rule="opset", node="", message="is old")
    monkeypatch.setattr(
        metadata, "entry_points", lambda **_: [_EntryPoint(lambda path: seen.append(path) or [finding])]
    )
    code, out, err = run("inspect", tiny_bundle, "--lint")
    assert (code, out) == (5, "g  opset  model: is old\n")
    assert "breaks 1 rule." in err
    assert seen == [tiny_bundle]
    monkeypatch.setattr(metadata, "entry_points", lambda **_: [])
    code, _, err = run("inspect", tiny_bundle, "--lint")
    assert code == 3
    assert "--lint needs the toolkit" in err


def test_command_inspect(
    tiny_engine: Path, tiny_bundle: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    head = tmp_path / "head.safetensors"
    head.write_bytes(read_bundle(tiny_bundle).read(bundles.HEAD))
    for artifact, kind in ((tiny_engine, "engine"), (tiny_bundle, "bundle"), (head, "head")):
        code, out, _ = run("inspect", artifact, "--json")
        assert (code, json.loads(out)["kind"]) == (0, kind)
        code, out, _ = run("inspect", artifact)
        assert code == 0
        assert "circle, square, triangle" in out
    assert "W8A8 executed, fp32 remainder, 2 linears quantized" in run("inspect", tiny_engine)[1]
    assert run("inspect", tmp_path / "absent.p4q")[0] == 2


def test_cards_round_trip(tiny_engine: Path) -> None:
    card = read_card(tiny_engine)
    assert msgspec.json.decode(msgspec.json.encode(card), type=Card) == card


def test_options_have_an_effect(tiny_bundle: Path, tmp_path: Path) -> None:
    card = build_engine(tiny_bundle, tmp_path / "a.onnx", options=BuildOptions(threads=1))
    assert card.build.options.cpu_profile == "exact"
