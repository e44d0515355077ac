"""What is written for Triton, and the models of its Python backend on a double of the server's module."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.artifacts import (
    Head,
    RtxBuild,
    RtxMachine,
    RtxOptions,
    TensorRTBuild,
    card_path,
    read_card,
    write_card,
    write_head,
)
from p4q_edge.runtime.artifacts.builds import PlanInspection, PlanMachine
from p4q_edge.runtime.artifacts.tensorrt_options import TensorRTOptions
from p4q_edge.runtime.classification import ZeroShotClassifier
from p4q_edge.runtime.errors import CorruptArtifactError, UsageError
from p4q_edge.runtime.serving.python_models import DecodeModel, EngineModel, HeadModel
from p4q_edge.runtime.serving.repository import ServedBy, write_repository
from p4q_edge.runtime.serving.text_format import Word, to_text

Run = Callable[..., tuple[int, str, str]]


class Tensor:
    def __init__(self, name: str, values: np.ndarray) -> None:
        self.name, self._values = name, values

    def as_numpy(self) -> np.ndarray:
        return self._values


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's module, as far as the models use it."""
    module = ModuleType("triton_python_backend_utils")
    module.Tensor = Tensor  # type: ignore[attr-defined]
    module.TritonError = str  # type: ignore[attr-defined]
    module.InferenceResponse = lambda output_tensors, error=None: SimpleNamespace(  # type: ignore[attr-defined]
        outputs={tensor.name: tensor.as_numpy() for tensor in output_tensors}, error=error
    )
    module.get_input_tensor_by_name = lambda request, name: request[name]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)


def opened(kind: Any, repository: Path, model: str) -> Any:
    found = kind()
    found.initialize({"model_repository": str(repository / model), "model_version": "1"})
    return found


def request(**values: np.ndarray) -> dict[str, Tensor]:
    return {name: Tensor(name, array) for name, array in values.items()}


@pytest.fixture
def repository(tiny_engine: Path, tmp_path: Path) -> Path:
    write_repository(tiny_engine, tmp_path / "models", name="tiny", served_by="python")
    return tmp_path / "models"


@pytest.mark.usefixtures("backend")
def test_the_three_models_give_the_classifiers_answer(tiny_engine: Path, repository: Path, photo: Path) -> None:
    decode, engine, head = (
        opened(kind, repository, f"tiny_{name}")
        for kind, name in ((DecodeModel, "decode"), (EngineModel, "engine"), (HeadModel, "head"))
    )
    encoded = np.array([[photo.read_bytes()]], dtype=object)
    (image,) = decode.execute([request(encoded=encoded)])
    twice = request(image=np.concatenate([image.outputs["image"]] * 2))
    alone, both = engine.execute([request(**image.outputs), twice])
    assert [len(answer.outputs["logits"]) for answer in (alone, both)] == [1, 2]
    (named,) = head.execute([request(**both.outputs)])
    engine.finalize()
    with ZeroShotClassifier(tiny_engine) as classifier:
        expected: Any = classifier.classify(photo)
    for row in range(2):
        assert [label.decode() for label in named.outputs["label"][row]] == [label for label, _ in expected.topk]
        np.testing.assert_allclose(named.outputs["score"][row], [score for _, score in expected.topk], atol=1e-6)
        assert named.outputs["index"][row][0] == expected.index
        assert named.outputs["known"][row] == [expected.known]


@pytest.mark.usefixtures("backend")
def test_a_damaged_image_refuses_its_request_alone(repository: Path, photo: Path) -> None:
    decode = opened(DecodeModel, repository, "tiny_decode")
    whole = photo.read_bytes()
    requests = [np.array([[whole]], dtype=object), np.array([[whole], [whole[:60]]], dtype=object)]
    good, bad = decode.execute([request(encoded=encoded) for encoded in requests])
    assert good.error is None
    assert good.outputs["image"].shape == (1, 3, 8, 8)
    assert bad.outputs == {}
    assert bad.error.startswith("image 2 of 2: ")


@pytest.mark.usefixtures("backend")
def test_values_that_are_not_finite_are_an_error(repository: Path) -> None:
    head = opened(HeadModel, repository, "tiny_head")
    nan = {
        name: np.full((1, size), np.nan, np.float32)
        for name, size in (("logits", 3), ("embedding", 16), ("features", 16))
    }
    (answer,) = head.execute([request(**nan)])
    assert "values that are not finite" in answer.error


@pytest.mark.usefixtures("backend")
def test_the_python_engine_is_checked_against_its_card(repository: Path) -> None:
    engine = repository / "tiny_engine" / "1" / "model.onnx"
    engine.write_bytes(engine.read_bytes() + b"\x00")
    with pytest.raises(CorruptArtifactError, match="is not the engine that"):
        opened(EngineModel, repository, "tiny_engine")


def test_heads_engine_and_card_are_copied_byte_for_byte(tiny_engine: Path, tmp_path: Path) -> None:
    card = read_card(tiny_engine)
    head = Head(
        class_names=("a", "b"),
        text_embedding=np.eye(2, card.embedding_dim, dtype=np.float32),
        logit_scale=20.0,
        weights_sha256=card.model.weights_sha256,
    )
    stored = write_head(tiny_engine, "own", head)
    # The same head as another program writes it, with blanks behind its header, and signed as such.
    size = int.from_bytes(stored.read_bytes()[:8], "little")
    header, body = stored.read_bytes()[8 : 8 + size], stored.read_bytes()[8 + size :]
    stored.write_bytes((size + 8).to_bytes(8, "little") + header + b" " * 8 + body)
    signed = {stored: "tiny_head-own/1/head.safetensors", tiny_engine: "tiny_engine/1/model.onnx"}
    for path in signed:
        path.with_name(path.name + ".sig").write_bytes(b"signature of " + path.name.encode())
    write_repository(tiny_engine, tmp_path / "models", name="tiny", served_by="python")
    for path, copy in {**signed, card_path(tiny_engine): "tiny_engine/1/model.onnx.json"}.items():
        assert (tmp_path / "models" / copy).read_bytes() == path.read_bytes()
    for path, copy in signed.items():
        assert (tmp_path / "models" / f"{copy}.sig").read_bytes() == b"signature of " + path.name.encode()


def test_what_a_killed_writer_left_needs_no_force(
    tiny_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    models = tmp_path / "models"
    with monkeypatch.context() as patch:
        patch.setattr("p4q_edge.runtime.serving.repository._copy", die)
        with pytest.raises(Killed):
            write_repository(tiny_engine, models, name="tiny", served_by="python")
    assert list(models.iterdir()) == []
    assert write_repository(tiny_engine, models, name="tiny", served_by="python") == ["tiny"]


def test_a_model_that_is_replaced_keeps_no_file_of_the_old_one(tiny_engine: Path, repository: Path) -> None:
    assert (repository / "tiny_engine/1/model.py").is_file()
    write_repository(tiny_engine, repository, name="tiny", force=True)
    assert sorted(path.name for path in (repository / "tiny_engine/1").iterdir()) == ["model.onnx"]


def test_models_of_these_names_are_kept_without_force(tiny_engine: Path, repository: Path) -> None:
    (repository / "other").mkdir()
    with pytest.raises(UsageError, match="has models of these names: tiny, tiny_decode, tiny_engine, tiny_head"):
        write_repository(tiny_engine, repository, name="tiny", served_by="python")
    assert write_repository(tiny_engine, repository, name="tiny", served_by="python", force=True) == ["tiny"]
    assert (repository / "other").is_dir()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            RtxBuild(
                built_with=RtxMachine(
                    tensorrt_rtx="1.7.1.116",
                    platform="linux-x86_64",
                    compute_capability="8.0+",
                    precision="int8",
                    batches="1,1,8",
                    optimization_level="3",
                ),
                options=RtxOptions(),
                inspection=PlanInspection(dialect="11", detailed=True, kernels=1),
            ),
            r"Triton has no backend for .*, an engine of TensorRT for RTX\. Add --served-by python",
        ),
        (
            TensorRTBuild(
                built_with=PlanMachine(
                    tensorrt="10.3.0", gpu="Orin", compute_capability="8.7", platform="linux-aarch64", precision="int8"
                ),
                options=TensorRTOptions(min_batch=2, opt_batch=2, max_batch=4),
                inspection=PlanInspection(dialect="10", detailed=True, kernels=1),
            ),
            r"takes no single images \(smallest batch 2\).*Build it with --min-batch 1, or add --served-by python",
        ),
    ],
)
def test_what_triton_cannot_serve_is_refused_with_the_way_out(
    tiny_engine: Path, tmp_path: Path, build: Any, message: str
) -> None:
    card = msgspec.structs.replace(read_card(tiny_engine), build=build, parts=())
    write_card(tiny_engine, card, force=True)
    with pytest.raises(UsageError, match=message):
        write_repository(tiny_engine, tmp_path / "models", name="clip")
    assert write_repository(tiny_engine, tmp_path / "models", name="clip", served_by="python") == ["clip"]


@pytest.mark.parametrize(
    ("changes", "served_by", "told"),
    [
        ({}, "native", "x86 processors without VNNI"),
        ({"weight_block": 128}, "native", "rounds what the INT4 weights of"),
        ({"quantized_linears": 0}, "native", None),
        ({}, "python", None),
    ],
)
def test_values_that_tritons_own_library_changes_are_told(
    tiny_engine: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, int],
    served_by: ServedBy,
    told: str | None,
) -> None:
    card = read_card(tiny_engine)
    precision = msgspec.structs.replace(card.precision, **changes)
    write_card(tiny_engine, msgspec.structs.replace(card, precision=precision), force=True)
    write_repository(tiny_engine, tmp_path / "models", name="p4q", served_by=served_by)
    said = [record.message for record in caplog.records if "add --served-by python" in record.message]
    assert len(said) == (told is not None)
    assert told is None or told in said[0]


@pytest.mark.parametrize("name", ["../x", "", "a b", ".hidden"])
def test_a_name_that_is_no_folder_is_refused(tiny_engine: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a model"):
        write_repository(tiny_engine, tmp_path / "models", name=name)
    assert not (tmp_path / "models").exists()


def test_the_command(tiny_engine: Path, tmp_path: Path, run: Run) -> None:
    code, out, _ = run("export-triton", tiny_engine, tmp_path / "models", "--name", "a", "--json")
    assert code == 0
    assert json.loads(out)["models"] == ["a"]
    code, _, err = run("export-triton", tiny_engine, tmp_path / "models", "--name", "a")
    assert code == 2
    assert "Add --force, or another --name" in err
    for text in (tmp_path / "models").rglob("*.py"):
        compile(text.read_text(), str(text), "exec")
        assert str(tmp_path) not in text.read_text()


def test_a_configuration_for_deepstream_lies_beside_and_says_that_it_was_not_run(
    tiny_engine: Path, tmp_path: Path
) -> None:
    write_repository(tiny_engine, tmp_path / "models", name="a")
    text = (tmp_path / "models" / "a_nvinferserver.txt").read_text()
    assert "NOT RUN by its authors" in text.splitlines()[1]
    assert '      model_name: "a_engine"\n' in text
    assert (tmp_path / "models" / "a_engine" / "labels.txt").read_text() == "circle\nsquare\ntriangle\n"
    assert '    labelfile_path: "a_engine/labels.txt"\n' in text
    write_repository(tiny_engine, tmp_path / "python", name="a", served_by="python")
    assert not (tmp_path / "python" / "a_nvinferserver.txt").exists()


def test_the_text_format_nests_repeats_and_quotes() -> None:
    message = {"name": 'a "b"\n', "kind": Word("KIND_CPU"), "dims": [3, -1], "on": True, "step": [{"key": "é"}, {}]}
    assert to_text(message) == (
        'name: "a \\"b\\"\\n"\nkind: KIND_CPU\ndims: 3\ndims: -1\non: true\nstep {\n  key: "é"\n}\nstep {\n}\n'
    )


@given(st.text())
def test_any_text_is_one_quoted_line(text: str) -> None:
    line = to_text({"name": text})
    assert line.count("\n") == 1
    assert json.loads(line.removeprefix("name: ")) == text
