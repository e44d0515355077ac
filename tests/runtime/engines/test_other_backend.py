"""One `.onnx` engine in the other library: proved as an engine of another machine, never in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machines import openvino_profile
from PIL import Image

from p4q_edge.runtime import BuildOptions, RuntimeOptions, ZeroShotClassifier, build_engine
from p4q_edge.runtime.artifacts import on_backend
from p4q_edge.runtime.artifacts.card import read_card
from p4q_edge.runtime.cli.main import build_parser
from p4q_edge.runtime.engines import load_engine
from p4q_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine
from p4q_edge.runtime.engines.openvino.engine import OpenVINOEngine
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.evaluation.report import read_report
from p4q_edge.runtime.machine import cpu
from p4q_edge.runtime.machine.advice import OVERFLOW_IN_OPENVINO
from p4q_edge.runtime.verification.self_test import selftest

Run = Callable[..., tuple[int, str, str]]
with_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="pip install './runtime[openvino]'")


@pytest.fixture
def portable_engine(tiny_bundle: Path, tmp_path: Path) -> Path:
    """An engine for ONNX Runtime that OpenVINO computes rightly too."""
    engine = tmp_path / "tiny.onnx"
    build_engine(tiny_bundle, engine, backend="onnxruntime", options=BuildOptions(cpu_profile=openvino_profile()))
    return engine


def test_a_card_of_the_same_library_stays_as_it_is(tiny_engine: Path) -> None:
    card = read_card(tiny_engine)
    assert on_backend(card, None) is card
    assert on_backend(card, "onnxruntime") is card


def test_there_and_back_the_file_and_its_profile_stay(tiny_engine: Path) -> None:
    card = read_card(tiny_engine)
    there = on_backend(card, "openvino")
    back = on_backend(there, "onnxruntime")
    assert (there.backend, back.backend) == ("openvino", "onnxruntime")
    for one in (there, back):
        assert (one.engine_sha256, one.cpu_profile, one.golden) == (card.engine_sha256, card.cpu_profile, card.golden)
        assert (one.build.optimized, one.measured) == (None, None)
        # The kernels that were read are those of the library that it was built for.
        assert (one.build.inspection.kernels, one.build.inspection.int8_share) == ({}, None)  # type: ignore[union-attr]


def test_a_plan_runs_in_neither(repository: Path) -> None:
    plan = read_card(repository / "tests/runtime/data/schema-1/tiny.plan")
    with pytest.raises(UsageError, match=r"--backend openvino runs engines for CPUs, .* built for tensorrt\."):
        on_backend(plan, "openvino")


@with_openvino
def test_it_is_proved_there_without_a_recorded_drift(portable_engine: Path) -> None:
    result = selftest(portable_engine, threads=1, backend="openvino")
    assert (result.problem(), result.drift) == (None, None)
    card = on_backend(read_card(portable_engine), "openvino")
    assert isinstance(load_engine(portable_engine, card, threads=1), OpenVINOEngine)


@with_openvino
def test_weights_that_overflow_there_are_told_as_such(
    tiny_bundle: Path, tmp_path: Path, photo: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tmp_path / "exact.onnx"
    build_engine(tiny_bundle, engine, backend="onnxruntime", options=BuildOptions(cpu_profile="exact"))
    whole = OpenVINOEngine.run

    def wrong(self: OpenVINOEngine, image: np.ndarray, outputs: tuple[str, ...] | None = None) -> Any:
        return {name: values[:, ::-1] for name, values in whole(self, image, outputs).items()}

    monkeypatch.setattr(OpenVINOEngine, "run", wrong)
    for saturates in (False, True):
        monkeypatch.setattr(cpu, "saturates", lambda saturates=saturates: saturates)
        code, _, err = run("classify", engine, photo, "--backend", "openvino")
        assert (code, "computes wrong values here" in err) == (5, True)
        assert (f"{OVERFLOW_IN_OPENVINO}." in err) is saturates
    assert run("classify", engine, photo, "--backend", "onnxruntime")[0] == 0


@with_openvino
def test_commands_say_where_they_ran(portable_engine: Path, photo: Path, run: Run, tmp_path: Path) -> None:
    options = ("--backend", "openvino", "--threads", "1", "--json")
    code, out, _ = run("classify", portable_engine, photo, *options)
    with ZeroShotClassifier(portable_engine, options=RuntimeOptions(threads=1)) as classifier:
        label = classifier.classify(photo).label
    assert (code, json.loads(out)["predictions"][0]["label"]) == (0, label)
    code, out, _ = run("bench", portable_engine, "--seconds", "0.1", *options)
    document = json.loads(out)
    assert (code, document["backend"]) == (0, "openvino")
    # The version of the package, without the number of its build.
    assert {row["library"] for row in document["rows"]} == {f"OpenVINO {version('openvino')}"}
    assert run("selftest", portable_engine, *options)[0] == 0
    assert run("validate", portable_engine, *options)[0] == 0
    built = read_report(portable_engine.with_name(f"{portable_engine.stem}.report.json")).built
    assert (built.backend, built.kernels, built.int8_share) == ("openvino", {}, None)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Noise as photographs of the built-in classes."""
    generator = np.random.default_rng(1)
    for index in range(24):
        path = tmp_path / "labelled" / ("circle", "square", "triangle")[index % 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "labelled"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A word for each run of an engine in OpenVINO."""
    runs: list[str] = []
    whole = OpenVINOEngine.run

    def counted(self: OpenVINOEngine, image: np.ndarray, outputs: tuple[str, ...] | None = None) -> Any:
        runs.append("openvino")
        return whole(self, image, outputs)

    monkeypatch.setattr(OpenVINOEngine, "run", counted)
    return runs


@with_openvino
def test_heads_are_taught_and_calibrated_there(
    portable_engine: Path, labelled: Path, run: Run, asked: list[str]
) -> None:
    for command in (
        ["teach", portable_engine, labelled, "--name", "x"],
        ["head", "calibrate", portable_engine, labelled],
    ):
        code, _, err = run(*command, "--backend", "openvino", "--force", "--json")
        assert (code, err.count("openvino")) == (0, 0), err
        assert asked
        asked.clear()
        assert run(*command, "--force", "--json")[0] == 0
        assert not asked


def test_a_head_is_not_calibrated_on_wrong_values(
    tiny_engine: Path, labelled: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = OnnxRuntimeEngine.run

    def wrong(self: OnnxRuntimeEngine, image: np.ndarray, outputs: tuple[str, ...] | None = None) -> Any:
        return {name: values[:, ::-1] for name, values in whole(self, image, outputs).items()}

    monkeypatch.setattr(OnnxRuntimeEngine, "run", wrong)
    code, _, err = run("head", "calibrate", tiny_engine, labelled, "--json")
    assert (code, "computes wrong values here" in err) == (5, True)


@with_openvino
def test_images_are_embedded_and_looked_for_there(
    portable_engine: Path, photo: Path, run: Run, tmp_path: Path, asked: list[str]
) -> None:
    found = tmp_path / "found.npz"
    embed = ["embed", portable_engine, photo, "-o", found, "--force"]
    for command in (embed, ["search", found, "--like", photo, "--engine", portable_engine]):
        assert run(*command)[0] == 0
        assert not asked
        code, _, err = run(*command, "--backend", "openvino")
        assert (code, bool(asked)) == (0, True), err
        asked.clear()
    code, _, err = run("search", found, "circle", "--engine", portable_engine, "--backend", "openvino")
    assert (code, "only --like IMAGE runs it. Leave --backend out." in err) == (2, True)


@pytest.mark.parametrize("command", ["bench", "classify", "embed", "search", "selftest", "serve", "teach", "validate"])
def test_what_runs_an_engine_runs_it_in_the_other_library(command: str) -> None:
    """The error for an engine whose library is missing names this option."""
    options = build_parser(command).format_help()
    assert "run an .onnx engine in this library" in " ".join(options.split())
