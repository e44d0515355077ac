"""`validate` as a device runs it: the bundle's graph and the golden samples are the reference, PyTorch is absent."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from p4q_edge.runtime.artifacts import DataIndex, LearnedImage
from p4q_edge.runtime.artifacts.bundle import GRAPH_FP32, read_bundle
from p4q_edge.runtime.artifacts.card import read_card, write_card
from p4q_edge.runtime.builders.build import BuildOptions, build_engine
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.errors import EnvironmentNotAbleError
from p4q_edge.runtime.evaluation import ValidateRequest, subject, validation
from p4q_edge.runtime.evaluation.report.document import read_report
from p4q_edge.runtime.machine import provenance
from p4q_edge.runtime.storage.files import sha256_file


@pytest.fixture(autouse=True)
def no_toolkit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [])


def test_golden_samples_alone_prove_the_engine(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(engine)]) == 0
    out = capsys.readouterr().out
    assert "passed: tiny.onnx" in out
    assert "not checked: accuracy: no labelled images; name some with --data" in out
    report = read_report(engine.with_name("tiny.report.json"))
    assert report.chain is None
    assert report.golden is not None
    assert [stage.name for stage in report.golden.stages] == ["float", "fake_quant", "onnx", "engine"]
    assert report.golden.hop("onnx", "engine").cosine.min > 0.9999
    assert report.provenance.digests["bundle"] == sha256_file(engine.with_suffix(".p4q"))
    assert report.provenance.command == ("validate", str(engine))


def test_labelled_folders_give_accuracy(engine: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(engine), "--data", str(photos), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 2
    assert document["passed"] is True
    assert [stage["name"] for stage in document["chain"]["stages"]] == ["onnx", "engine"]
    # The photographs are the golden images, labelled by the reference.
    assert document["chain"]["stages"][-1]["top1"]["value"] == 1.0
    assert document["reports"] == [str(engine.with_name("tiny.report.json"))]


def test_the_bundle_gives_the_whole_chain_without_pytorch(engine: Path, validated: Path) -> None:
    assert main(["validate", str(engine), "--data", str(validated), "--max-top1-drop", "5", "-q"]) == 0
    report = read_report(engine.with_name("tiny.report.json"))
    assert report.chain is not None
    assert [stage.name for stage in report.chain.stages] == ["float", "fake_quant", "onnx", "engine"]
    assert report.chain.n == 40
    # A fifth of the labels is wrong on purpose.
    assert report.chain.stage("fake_quant").top1.value == report.chain.stage("engine").top1.value == 0.8
    assert report.chain.stage("float").top1.high < 1.0
    gates = {gate.name: gate for gate in report.chain.gates}
    assert gates["top-1 drop, float to engine"].limit == 5.0
    assert gates["median loss, fake_quant to engine"].passed
    assert [gate.name for gate in report.files] == ["bytes of the engine that differ from the bundle's graph"]
    assert report.not_checked == ()
    assert "reference.safetensors" in report.provenance.digests


def test_answers_to_golden_samples_are_no_accuracy(
    engine: Path, validated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", str(engine), "--data", str(validated)]) == 0
    lines = capsys.readouterr().err.splitlines()
    golden = [line for line in lines if line.startswith("golden samples:")]
    assert golden
    assert all("named as in full precision" in line and "top-1" not in line for line in golden)
    assert any(line.startswith("images: engine     top-1 ") for line in lines)


def test_an_impossible_drop_fails_without_pytorch_too(engine: Path, validated: Path) -> None:
    arguments = ["validate", str(engine), "--data", str(validated), "--max-top1-drop", "-100", "-q"]
    assert main(arguments) == 5


def test_only_images_with_results_are_compared(engine: Path, validated: Path, photos: Path) -> None:
    for picture in photos.rglob("*.png"):
        picture.rename(validated / picture.parent.name / f"golden-{picture.name}")
    assert main(["validate", str(engine), "--data", str(validated), "-q"]) == 0
    report = read_report(engine.with_name("tiny.report.json"))
    assert report.chain is not None
    assert report.chain.n == 40
    assert report.data.startswith("40 of 44 images of")
    assert report.not_checked == ("4 images without results of PyTorch in the bundle",)


def test_another_label_than_recorded_is_told(engine: Path, validated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = next((validated / "circle").iterdir())
    moved.rename(validated / "square" / moved.name)
    assert main(["validate", str(engine), "--data", str(validated), "-q"]) == 0
    assert "1 of 40 images has another label than in the bundle" in capsys.readouterr().err
    report = read_report(engine.with_name("tiny.report.json"))
    assert report.not_checked == ("which label is right: 1 image has another one than in the bundle",)


def test_images_that_the_bundle_does_not_know_are_told(
    engine: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", str(engine), "--data", str(photos)]) == 0
    told = "not checked: float and fake-quantized model: none of these images is among the 40 of the bundle"
    assert told in capsys.readouterr().out
    assert main(["validate", str(engine), "--data", str(photos), "--max-top1-drop", "1", "-q"]) == 2
    assert "some of the 40 images that the bundle has results for" in capsys.readouterr().err


def test_a_bundle_without_results_is_told(
    tiny_engine: Path, tmp_path: Path, validated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_engine.with_suffix(".p4q").unlink()
    assert main(["validate", str(tiny_engine), "--data", str(validated)]) == 0
    assert "not checked: float and fake-quantized model: no bundle" in capsys.readouterr().out


def double(engine: Path, name: str, *, factor: float = 2.0) -> None:
    """Double one float32 initializer of an engine, and let its card say that this is how it was built."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load_model_from_string(engine.read_bytes())
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    values = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    engine.write_bytes(model.SerializeToString())
    card = read_card(engine)
    build = msgspec.structs.replace(card.build, optimized=None)
    card = msgspec.structs.replace(card, engine_sha256=sha256_file(engine), parts=(), build=build)
    write_card(engine, card, force=True)


def test_a_doubled_scale_fails_with_exit_5(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_model_from_string(engine.read_bytes())
    scale = next(t.name for t in model.graph.initializer if t.name.endswith(".weight_scale"))
    double(engine, scale)
    assert main(["validate", str(engine)]) == 5
    captured = capsys.readouterr()
    assert "FAILED: tiny.onnx" in captured.out
    assert "cosine (p1), fake_quant to engine" in captured.err
    assert "p4q-edge validate" in captured.err
    assert not read_report(engine.with_name("tiny.report.json")).passed


@pytest.mark.parametrize("factor", [2.0, 0.5])
@pytest.mark.parametrize("layer", ["linear0", "linear1"])
def test_an_input_on_another_grid_fails_by_its_file_and_by_its_numbers(
    engine: Path, validated: Path, layer: str, factor: float, capsys: pytest.CaptureFixture[str]
) -> None:
    double(engine, f"{layer}.input_scale", factor=factor)
    assert main(["validate", str(engine), "--data", str(validated), "-q"]) == 5
    report = read_report(engine.with_name("tiny.report.json"))
    assert report.chain is not None
    assert [gate.passed for gate in report.files] == [False]
    failed = {gate.name for gate in report.chain.gates if not gate.passed}
    assert {"median loss, fake_quant to engine", "median loss, onnx to engine"} <= failed
    assert "bytes of the engine that differ from the bundle's graph" in capsys.readouterr().err


def test_a_bundle_whose_graph_differs_from_its_results_fails(
    engine: Path, validated: Path, rebundle: Callable[..., Path]
) -> None:
    onnx = pytest.importorskip("onnx")
    source = read_bundle(engine.with_suffix(".p4q"))
    graph = onnx.load_model_from_string(source.read(GRAPH_FP32))
    (scale,) = (tensor for tensor in graph.graph.initializer if tensor.name == "linear0.input_scale")
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(2), scale.name))
    broken = rebundle({GRAPH_FP32: graph.SerializeToString()})
    other = engine.with_name("other.onnx")
    build_engine(broken, other)
    arguments = ["validate", str(other), "--reference", str(broken), "--data", str(validated), "-q"]
    assert main(arguments) == 5
    report = read_report(engine.with_name("other.report.json"))
    assert report.chain is not None
    failed = {gate.name for gate in report.chain.gates if not gate.passed}
    assert failed == {"median loss, fake_quant to onnx", "median loss, fake_quant to engine"}
    assert report.files[0].passed


def test_fast_and_float_engines_raise_no_false_alarm(tiny_bundle: Path, tmp_path: Path, validated: Path) -> None:
    pytest.importorskip("onnx")
    for profile in ("fast", "float"):
        engine = tmp_path / f"{profile}.onnx"
        build_engine(tiny_bundle, engine, options=BuildOptions(cpu_profile=profile))
        arguments = ["validate", str(engine), "--reference", str(tiny_bundle), "--data", str(validated), "-q"]
        assert main(arguments) == 0, profile
        report = read_report(tmp_path / f"{profile}.report.json")
        assert [gate.name for gate in report.files] == ["tensors of the engine that differ from the bundle's graph"]


def test_an_engine_of_another_bundle_is_refused(
    engine: Path, rebundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = rebundle(seed=12345)
    assert main(["validate", str(engine), "--reference", str(other)]) == 4
    assert "was not built from" in capsys.readouterr().err


def test_without_a_bundle_the_card_is_the_reference(tiny_engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tiny_engine)]) == 0
    assert "not checked: the ONNX graph: no bundle beside" in capsys.readouterr().out


def test_an_older_report_is_replaced_and_another_file_is_not(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, foreign = tmp_path / "r.md", tmp_path / "notes.md"
    foreign.write_text("my notes")
    assert main(["validate", str(engine), "--report", str(own)]) == 0
    assert main(["validate", str(engine), "--report", str(own)]) == 0
    assert own.read_text().startswith("<!-- p4q-edge report -->")
    assert main(["validate", str(engine), "--report", str(foreign)]) == 2
    assert "exists and is not a report; add --force" in capsys.readouterr().err
    assert foreign.read_text() == "my notes"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--report", "r.html"], 2, "expected a file ending in .json, .md (.html needs the toolkit)"),
        (["--max-top1-drop", "1"], 2, "--max-top1-drop compares with the full-precision model"),
        (["--debug"], 3, "--debug, recipes and run folders need the toolkit"),
        (["--reference", "p4q.toml"], 3, "the bundle's results of PyTorch are the reference"),
        (["--data", "nowhere"], 2, "--data nowhere is not a directory"),
        (["--batch", "0"], 2, "--batch at least 1"),
        (["--batch", "5000"], 2, "--batch at least 1 and at most 4096; got 0 and 5000"),
        (["--limit", "-1"], 2, "--limit must be at least 0"),
        (["--seed", "-1"], 2, "--seed must not be negative, got -1"),
    ],
)
def test_wrong_arguments_are_one_line(
    engine: Path, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", str(engine), *arguments, "-q"]) == code
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not engine.with_name("tiny.report.json").exists()


def test_provenance_names_versions_machine_and_commit(tmp_path: Path) -> None:
    assert {"python", "numpy", "p4q-edge-runtime"} <= provenance.versions().keys()
    assert provenance.this_machine()["cores"].isdigit()
    assert provenance.git_commit(tmp_path) == ""
    assert provenance.now().endswith("+00:00")


def test_learned_digests_come_from_the_manifest(rebundle: Callable[..., Path]) -> None:
    bundle = read_bundle(rebundle(data_index=DataIndex(learned=(LearnedImage(name="a", label=0, sha256="ff"),))))
    assert validation.learned_digests(bundle) == {"ff"}
    assert validation.learned_digests(None) == frozenset()


def test_measurements_stand_in_the_report(engine: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = engine.with_name("bench.json")
    assert main(["bench", str(engine), "--seconds", "0", "--energy-seconds", "0", "-o", str(bench), "-q"]) == 0
    arguments = ["validate", str(engine), "--data", str(photos), "-q"]
    assert main([*arguments, "--bench", str(bench)]) == 0
    report = read_report(engine.with_name("tiny.report.json"))
    assert [row.scope for row in report.speed] == ["engine", "end to end"]
    assert report.chain is not None
    assert report.speed[0].top1 == report.chain.stage("engine").top1
    assert report.speed[1].top1 is None
    document = json.loads(bench.read_text())
    bench.write_text(json.dumps({**document, "engine_sha256": "0" * 64}))
    assert main([*arguments, "--bench", str(bench)]) == 2
    assert "measures another engine" in capsys.readouterr().err
    for text in ("{}", '{"a": ' + "[" * 100_000):
        bench.write_text(text)
        assert main([*arguments, "--bench", str(bench)]) == 4
        assert "is not a document of `p4q-edge bench`" in capsys.readouterr().err
    assert main([*arguments, "--bench", "missing.json"]) == 2


def test_what_needs_a_package_is_told_of_where_it_is_missing(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> bytes:
        raise EnvironmentNotAbleError("no onnx")

    request = ValidateRequest(engine=engine, threads=1)
    told = {"compare_file": "the engine's file against the bundle", "bundle_graph": ""}
    told["bundle_graph"] = f"{told['compare_file']}, and the ONNX graph"
    for name, what in told.items():
        with monkeypatch.context() as patch:
            patch.setattr(subject, name, missing)
            opened = subject.open_subject(request)
        opened.close()
        assert opened.not_checked == (f"{what}: the package onnx is not installed",)
        assert ("onnx" in opened.stages) == (name == "compare_file")
