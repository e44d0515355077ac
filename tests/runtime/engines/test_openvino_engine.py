"""OpenVINO as an engine: the same file and interface as ONNX Runtime's, batches, its compiled model, its absence."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import pytest
from machines import openvino_profile

from p4q_edge.runtime import BuildOptions, RuntimeOptions, ZeroShotClassifier, build_engine
from p4q_edge.runtime.artifacts.card import Card, read_card
from p4q_edge.runtime.engines import load_engine
from p4q_edge.runtime.engines.onnxruntime.engine import OnnxRuntimeEngine
from p4q_edge.runtime.engines.openvino import engine as openvino_engine
from p4q_edge.runtime.engines.openvino import library
from p4q_edge.runtime.engines.openvino.engine import OpenVINOEngine, model_source
from p4q_edge.runtime.errors import (
    CorruptArtifactError,
    EnvironmentNotAbleError,
    IncompatibleEngineError,
    P4QEdgeError,
    UsageError,
)
from p4q_edge.runtime.verification.golden_check import row_cosine, run_golden
from p4q_edge.runtime.verification.self_test import selftest

from onnx_bytes import external_weights, identity_model

# Looked for and not imported: its import by others than the runtime is reported to its makers.
pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="pip install './runtime[openvino]'")


def test_both_engines_compute_the_same_from_one_file(tiny_bundle: Path, openvino_built: Path, tmp_path: Path) -> None:
    other = tmp_path / "onnxruntime.onnx"
    build_engine(tiny_bundle, other, backend="onnxruntime", options=BuildOptions(cpu_profile=openvino_profile()))
    golden = read_card(openvino_built).golden_samples()
    first, second = (load_engine(path, read_card(path), threads=1) for path in (other, openvino_built))
    assert isinstance(first, OnnxRuntimeEngine)
    assert isinstance(second, OpenVINOEngine)
    left, right = run_golden(first, golden), run_golden(second, golden)
    scale = read_card(openvino_built).logit_scale
    assert row_cosine(left["embedding"], right["embedding"]).min() > 0.9999
    assert np.abs(left["logits"] - right["logits"]).max() < 0.01 * scale
    assert set(first.output_names) == set(second.output_names)
    assert first.input_shape == second.input_shape
    assert other.read_bytes() == openvino_built.read_bytes()


def test_the_card_says_what_was_built(openvino_built: Path) -> None:
    card = read_card(openvino_built)
    assert (card.backend, card.on_cpu, card.cpu_profile) == ("openvino", True, openvino_profile())
    assert set(card.built_with) == {"openvino", "cpu"}
    assert (card.build.options.kept_remainder, card.build.options.batch) == ("f32", 1)
    assert card.build.inspection.integer_products + card.build.inspection.float_products >= 2
    assert selftest(openvino_built, threads=1).drift == 0.0


@pytest.mark.parametrize("images", [0, 1, 4, 5, 8, 13])
def test_an_image_has_the_same_values_in_every_batch(model: bytes, images: int) -> None:
    engine = OpenVINOEngine(model_source(model), threads=1)
    batch = np.random.default_rng(images).integers(0, 256, (images, 3, 8, 8), np.uint8)
    together = engine.run(batch, ("features", "logits"))
    assert (together["features"].shape, together["logits"].shape[0]) == ((images, 16), images)
    for index in range(images):
        alone = engine.run(batch[index : index + 1], ("features", "logits"))
        assert np.array_equal(alone["features"][0], together["features"][index])
        assert np.array_equal(alone["logits"][0], together["logits"][index])


def test_threads_do_not_share_their_answers(model: bytes) -> None:
    engine = OpenVINOEngine(model_source(model), threads=1)
    images = np.random.default_rng(0).integers(0, 256, (4, 1, 3, 8, 8), np.uint8)
    expected = [engine.run(image)["features"] for image in images]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(50):
            if not np.array_equal(engine.run(images[index])["features"], expected[index]):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_the_engine_checks_its_input_and_its_state(model: bytes) -> None:
    engine = OpenVINOEngine(model_source(model), threads=1, name="tiny.onnx")
    image = np.zeros((2, 3, 8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"expected uint8 \(N, \(3, 8, 8\)\), got float32"):
        engine.run(image.astype(np.float32))
    with pytest.raises(P4QEdgeError, match=r"tiny\.onnx failed in OpenVINO: it has no output other"):
        engine.run(image, ("other",))
    engine.close()
    engine.close()
    with pytest.raises(P4QEdgeError, match="was closed. Load it again"):
        engine.run(image)
    with pytest.raises(UsageError, match="threads must be at least 1 and at most 1024, got 0"):
        OpenVINOEngine(model_source(model), threads=0)


def test_it_runs_on_no_gpu(openvino_built: Path) -> None:
    with pytest.raises(UsageError, match=r"runs on the CPU, not on 'cuda'\. For a GPU build a \.plan"):
        selftest(openvino_built, device="cuda")


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (identity_model("image", element=2), CorruptArtifactError, "expected outputs logits, embedding, features"),
        (identity_model("image", element=1), CorruptArtifactError, "expected one input `image` uint8"),
        (identity_model("x", element=2), CorruptArtifactError, "expected one input `image` uint8"),
        (identity_model("image", element=2, operator="Nothing"), IncompatibleEngineError, "OpenVINO .*cannot run"),
        (b"not protobuf", CorruptArtifactError, "is not a model that P4Q Edge writes"),
    ],
)
def test_other_models_are_no_engines(other: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        OpenVINOEngine(model_source(other), name="other.onnx")
    assert "\n" not in str(caught.value)


def test_weights_in_other_files_are_never_read(model: bytes) -> None:
    with pytest.raises(CorruptArtifactError, match="it keeps weights in another file"):
        OpenVINOEngine(model_source(model + external_weights("/etc/hostname")), name="x")


def _without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)


def test_without_openvino_its_engines_say_what_to_install(
    openvino_built: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never another engine in its place: the card says which one was proved."""
    _without_openvino(monkeypatch)
    with pytest.raises(EnvironmentNotAbleError) as caught, ZeroShotClassifier(openvino_built):
        pass
    assert str(caught.value) == (
        f"OpenVINO is not installed, and {openvino_built} was built for it. Run: pip install "
        "'p4q-edge-runtime[openvino]', or run the same file in ONNX Runtime: --backend onnxruntime"
    )
    with ZeroShotClassifier(openvino_built, options=RuntimeOptions(backend="onnxruntime")) as classifier:
        assert classifier.card.backend == "onnxruntime"
    with pytest.raises(EnvironmentNotAbleError, match="--backend openvino needs it. Run: pip install"):
        build_engine(tiny_bundle, tmp_path / "other.onnx", backend="openvino")


def test_a_batch_that_was_named_is_compiled_and_proved(tiny_bundle: Path, tmp_path: Path) -> None:
    engine = tmp_path / "eight.onnx"
    options = BuildOptions(threads=1, batch=4, remainder="f32", cpu_profile=openvino_profile())
    card = build_engine(tiny_bundle, engine, backend="openvino", options=options)
    assert card.build.options.batch == 4
    loaded = OpenVINOEngine.from_card(engine, card, threads=1)
    assert loaded._sizes == (1, 4)
    assert selftest(engine, threads=1).drift == 0.0


def _bf16_here() -> bool:
    return "bf16" in library.remainders()


def test_bf16_is_built_where_the_processor_has_it(tiny_bundle: Path, tmp_path: Path) -> None:
    options = BuildOptions(threads=1, remainder="bf16", cpu_profile=openvino_profile())
    if not _bf16_here():
        with pytest.raises(EnvironmentNotAbleError, match="no instructions for --remainder bf16"):
            build_engine(tiny_bundle, tmp_path / "out.onnx", backend="openvino", options=options)
        return
    card = build_engine(tiny_bundle, tmp_path / "out.onnx", backend="openvino", options=options)
    assert (card.build.options.kept_remainder, card.precision.remainder) == ("bf16", "bf16")
    assert selftest(tmp_path / "out.onnx", threads=1).problem() is None


def test_the_card_of_another_library_is_refused(tiny_engine: Path) -> None:
    with pytest.raises(IncompatibleEngineError, match="describes a onnxruntime engine; expected one of OpenVINO"):
        OpenVINOEngine.from_card(tiny_engine, read_card(tiny_engine))


def test_nothing_reports_its_use(openvino_built: Path, run: Callable[..., tuple[int, str, str]], photo: Path) -> None:
    """OpenVINO's package brings one that reports the use of its own tools; here none of these is called."""
    assert run("classify", openvino_built, photo)[0] == 0
    assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
    assert not [thread.name for thread in threading.enumerate() if "telemetry" in thread.name.lower()]


def test_a_card_of_it_is_read_back(openvino_built: Path) -> None:
    card = read_card(openvino_built)
    assert msgspec.json.decode(msgspec.json.encode(card), type=Card) == card
    assert openvino_engine.SEVERAL > 1
