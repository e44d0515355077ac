"""`validate`, `reproduce`, `report` and `bench --against` on the demo in small: the whole chain from PyTorch on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from PIL import Image
from read_documents import read_document

from p4q_edge.cli.documents import DOCUMENTS
from p4q_edge.runtime.artifacts.bundle import GRAPH_FP32, read_bundle, write_bundle
from p4q_edge.runtime.builders.build import BuildOptions, build_engine
from p4q_edge.runtime.cli.documents import DOCUMENTS as OF_RUNTIME
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.cli.registry import TOOLKIT_HELP
from p4q_edge.runtime.evaluation.report.document import baseline, encode, read_report
from p4q_edge.stages.run_files import RunFiles


@pytest.fixture
def report(engine: Path) -> Path:
    """The report of an engine that was validated."""
    assert main(["validate", str(engine), "-q"]) == 0
    return engine.with_name("demo.report.json")


def test_the_whole_chain_agrees(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [baseline("P4Q", [0.8, 0.9], n=120, precision="W8A8 executed")]
    RunFiles(folder=engine.with_suffix(".run")).baselines.write_bytes(msgspec.json.encode(rows))
    page = engine.with_name("demo.html")
    assert main(["validate", str(engine), "--max-top1-drop", "20", "--report", str(page)]) == 0
    out = capsys.readouterr().out
    assert "P4Q W8A8 executed" in out
    report = read_report(engine.with_name("demo.report.json"))
    assert report.chain is not None
    assert report.chain.n == 120
    assert [stage.name for stage in report.chain.stages] == ["float", "fake_quant", "onnx", "engine"]
    assert report.chain.hop("fake_quant", "engine").cosine.p1.value > 0.999
    assert report.chain.stage("engine").top1.value > 0.5
    assert any(gate.name == "top-1 drop, float to engine" for gate in report.chain.gates)
    assert report.baselines[0].mean == pytest.approx(0.85)
    assert {"recipe", "images learned from", "engine", "weights"} <= report.provenance.digests.keys()
    assert page.read_text().count("<svg") == 5


def test_an_impossible_limit_fails_with_exit_5(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(engine), "--max-top1-drop", "-100", "-q"]) == 5
    assert "top-1 drop, float to engine" in capsys.readouterr().err


@pytest.mark.parametrize(
    "scale",
    [
        "encoder.trunk.transformer.resblocks.2.mlp.c_fc.weight_scale",
        "encoder.trunk.transformer.resblocks.1.attn.in_proj.weight_scale",
        "encoder.trunk.transformer.resblocks.0.mlp.c_proj.input_scale",
        "adapter.down.weight_scale",
    ],
)
def test_debug_names_the_layer_with_the_doubled_scale(
    engine: Path, double: Callable[[Path, str], None], scale: str, capsys: pytest.CaptureFixture[str]
) -> None:
    double(engine, scale)
    assert main(["validate", str(engine), "--limit", "40", "--debug", "-q"]) == 5
    report = read_report(engine.with_name("demo.report.json"))
    assert report.debug is not None
    assert report.debug.first == scale.rpartition(".")[0]
    assert report.debug.reference == "the bundle's graph"
    assert report.debug.operator is not None
    assert f"{report.debug.first} diverges from the bundle's graph. Build it again" in capsys.readouterr().err


def test_debug_of_a_sound_engine_names_no_layer_but_the_costly_linears(engine: Path) -> None:
    assert main(["validate", str(engine), "--limit", "40", "--debug", "-q"]) == 0
    report = read_report(engine.with_name("demo.report.json"))
    assert report.debug is not None
    assert report.debug.first is None
    assert len(report.debug.layers) == 19
    assert max(layer.error_out for layer in report.debug.layers) < 1e-4
    assert all(not name.startswith("encoder.") for name in report.debug.keep_float)


def test_the_bundle_alone_is_a_reference_too(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = engine.with_suffix(".p4q")
    engine.with_suffix(".run").rename(engine.with_name("elsewhere"))
    arguments = [
        "validate",
        str(engine),
        "--reference",
        str(bundle),
        "--data",
        "demo:digits",
        "--limit",
        "50",
        "--json",
    ]
    assert main([*arguments, "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    # The 120 images that the bundle has results for are found among all of them.
    assert [stage["name"] for stage in document["chain"]["stages"]] == ["float", "fake_quant", "onnx", "engine"]
    assert document["chain"]["n"] == 50
    assert any("40 images that the model was learned from" in line for line in document["not_checked"])
    assert any("no run folder" in line for line in document["not_checked"])


@pytest.mark.slow
def test_the_recorded_reference_is_what_pytorch_computes(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["validate", str(engine), "--data", "demo:digits", "--json", "-q"]
    documents = []
    for _ in range(2):
        assert main(arguments) == 0
        documents.append(json.loads(capsys.readouterr().out))
        # The second time without the run folder, so from the bundle.
        if (run := engine.with_suffix(".run")).exists():
            run.rename(engine.with_name("elsewhere"))
    live, recorded = documents
    assert recorded["chain"]["n"] == 120 < live["chain"]["n"]
    assert main(["validate", str(engine), "--reference", str(engine.with_name("elsewhere")), "--json", "-q"]) == 0
    live = json.loads(capsys.readouterr().out)
    for name in ("float", "fake_quant"):
        then, now = (
            next(stage for stage in document["chain"]["stages"] if stage["name"] == name)["top1"]
            for document in (live, recorded)
        )
        assert then == now
    pairs = [(hop["reference"], hop["candidate"]) for hop in live["chain"]["hops"]]
    for pair, first, second in zip(pairs, live["chain"]["hops"], recorded["chain"]["hops"], strict=True):
        assert first["agreement"]["value"] == second["agreement"]["value"], pair
        assert first["cosine"]["mean"]["value"] == pytest.approx(second["cosine"]["mean"]["value"], abs=1e-6)
        assert first["kl"]["value"] == pytest.approx(second["kl"]["value"], abs=1e-5)


def test_debug_names_a_linear_that_the_exporter_stored_otherwise(
    engine: Path,
) -> None:
    """The bundle's graph itself is wrong, the engine is built from it, and PyTorch is right."""
    bundle = engine.with_suffix(".p4q")
    source = read_bundle(bundle)
    members = {name: source.read(name) for name in source.manifest.members}
    model = onnx.load_model_from_string(members[GRAPH_FP32])
    scale = "encoder.trunk.transformer.resblocks.1.attn.in_proj.input_scale"
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == scale)
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(8), scale))
    write_bundle(bundle, source.manifest, {**members, GRAPH_FP32: model.SerializeToString()}, force=True)
    build_engine(bundle, engine, force=True)
    assert main(["validate", str(engine), "--debug", "-q"]) == 5
    report = read_report(engine.with_name("demo.report.json"))
    assert report.debug is not None
    assert report.debug.first == scale.removesuffix(".input_scale")
    assert report.debug.reference == "the integers and scales of the PyTorch model"
    assert report.chain is not None
    failed = {gate.name for gate in (*report.files, *report.chain.gates) if not gate.passed}
    assert {
        "linears of the bundle's graph that differ from the PyTorch model",
        "median loss, fake_quant to onnx",
        "median loss, fake_quant to engine",
    } <= failed


def test_debug_locates_a_wrong_grid_in_a_fast_engine(engine: Path, double: Callable[[Path, str], None]) -> None:
    build_engine(engine.with_suffix(".p4q"), engine, force=True, options=BuildOptions(cpu_profile="fast"))
    assert main(["validate", str(engine), "-q"]) == 0
    double(engine, "adapter.up.input_scale")
    assert main(["validate", str(engine), "--debug", "-q"]) == 5
    report = read_report(engine.with_name("demo.report.json"))
    assert report.debug is not None
    assert (report.debug.first, report.debug.same_arithmetic) == ("adapter.up", True)


def test_a_run_folder_and_a_recipe_can_be_named(engine: Path) -> None:
    run = engine.with_name("elsewhere")
    engine.with_suffix(".run").rename(run)
    assert main(["validate", str(engine), "--reference", str(run), "--limit", "30", "-q"]) == 0
    report = read_report(engine.with_name("demo.report.json"))
    assert report.chain is not None
    assert "float" in report.chain.predictions


@pytest.mark.parametrize(
    ("reference", "code", "message"),
    [("x.txt", 2, "expected a bundle (.p4q), a recipe (.toml) or a run folder"), ("empty", 2, "is not a run folder")],
)
def test_another_kind_of_reference_is_refused(
    engine: Path, reference: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (engine.parent / "empty").mkdir()
    named = engine.parent / reference
    assert main(["validate", str(engine), "--reference", str(named), "-q"]) == code
    assert message in capsys.readouterr().err


def test_a_report_is_reproduced(report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = report.read_bytes()
    assert main(["reproduce", str(report), "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["same"] is True
    assert len(document["figures"]) == 20
    assert report.read_bytes() == before


def test_another_figure_is_noticed(report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(report.read_text())
    document["chain"]["stages"][3]["top1"]["value"] += 0.05
    report.write_text(json.dumps(document))
    assert main(["reproduce", str(report), "-q"]) == 5
    captured = capsys.readouterr()
    assert "top-1 engine" in next(line for line in captured.out.splitlines() if "DIFFERS" in line)
    assert "1 of 20 figures" in captured.err


def test_changed_inputs_cannot_be_reproduced(
    report: Path, engine: Path, double: Callable[[Path, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    double(engine, "adapter.down.weight_scale")
    assert main(["reproduce", str(report), "-q"]) == 4
    assert "cannot be repeated: engine changed" in capsys.readouterr().err


def test_a_report_of_nothing_cannot_be_reproduced(report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = read_report(report)
    report.write_bytes(
        encode(msgspec.structs.replace(loaded, provenance=replace(loaded.provenance, command=(), request=None)))
    )
    assert main(["reproduce", str(report), "-q"]) == 4
    assert "names no `validate` command" in capsys.readouterr().err


def test_a_device_report_becomes_a_page(report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(report)]) == 0
    assert report.with_suffix(".html").read_text().startswith("<!DOCTYPE html>")
    assert main(["report", str(report)]) == 2
    assert main(["report", str(report), "-o", "x.pdf"]) == 2
    assert "expected a file ending in .html or .md" in capsys.readouterr().err


def test_bench_compares_with_full_precision_and_pytorch(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", str(engine), "--against", "fp32", "--against", "torch", "--threads", "1", "--seconds", "0"]
    assert main([*arguments, "--warm-up", "0", "--energy-seconds", "0", "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    names = {row["name"] for row in document["rows"]}
    assert names == {"W8A8 executed", "ONNX Runtime FP32", "PyTorch FP32"}
    assert {estimate["value"] for estimate in document["agreement"].values()} == {1.0}
    assert document["predictions"] is None


@pytest.mark.slow
def test_documents_of_the_toolkit_have_the_stated_keys(
    report: Path, engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    run, recipe = str(engine.with_suffix(".run")), str(engine.with_name("recipe.toml"))
    lines = {
        "calibrate": ["calibrate", "--recipe", recipe, "-o", run],
        "learn": ["learn", "--recipe", recipe, "-o", run],
        "export": ["export", run, "-o", str(engine.with_name("again.p4q"))],
        "build --recipe": ["build", "--recipe", recipe, "--engine", str(engine)],
        "build --print-config": ["build", "--recipe", recipe, "--engine", str(engine), "--print-config"],
        "inspect --lint": ["inspect", str(engine.with_suffix(".p4q")), "--lint"],
        "report": ["report", str(report)],
        "reproduce": ["reproduce", str(report)],
        "models": ["models", "--search", "ViT-B-32-quickgelu"],
        "init": ["init", str(photos), "-o", str(photos.parent / "p4q.toml")],
    }
    for name in ("cat", "dog"):
        (photos / name).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (20, 16), (40 * index, 10, 200)).save(photos / name / f"{index}.png")
    capsys.readouterr()
    for line, arguments in lines.items():
        assert main([*arguments, "--json", "-q"]) == 0, line
        read_document(capsys.readouterr().out, {**OF_RUNTIME, **DOCUMENTS}[line])
    # `learn --ablate` trains many models; its document is tested where it is made.
    tested = {*lines, "learn --ablate"}
    assert {*DOCUMENTS} <= tested
    assert {line.split()[0] for line in DOCUMENTS} == {*TOOLKIT_HELP}
