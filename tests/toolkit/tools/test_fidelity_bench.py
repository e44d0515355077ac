"""The bench of fidelity: its measures, its shares, and a whole run on the demo."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from bench_modules import bench_modules
from timm.layers.conv2d_same import Conv2dSame

from p4q_edge.quant.macs import macs_by_module
from p4q_edge.runtime.errors import InputError


@pytest.fixture(scope="module")
def bench() -> Iterator[dict[str, ModuleType]]:
    names = ("accuracy_tools", "fidelity", "fidelity_carried", "fidelity_models", "fidelity_tools")
    with bench_modules(names) as modules:
        yield modules


def test_measures_of_what_is_the_same_and_of_what_is_not(bench: dict[str, ModuleType]) -> None:
    reference = np.array([[1, 0, 0], [1, 0.1, 0], [0, 0, 1], [0, 0.2, 1]], np.float32)
    same = bench["fidelity"].measures(3 * reference, reference)
    assert same == {
        "n": 4,
        "cosine_mean": pytest.approx(1),
        "cosine_p1": pytest.approx(1),
        "cosine_min": pytest.approx(1),
        "same_neighbour": 1.0,
        "same_neighbour_in_float": 1.0,
    }
    moved = reference.copy()
    moved[3] = [0.9, 0.1, 0]  # beside the first pair: its own neighbour is lost, and that of the third
    found = bench["fidelity"].measures(moved, reference)
    assert found["cosine_min"] < 0.1
    assert found["same_neighbour"] <= 0.5
    assert found["same_neighbour_in_float"] == 0.75  # only its own


def test_a_run_is_written_and_goes_on_where_it_stopped(
    bench: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = bench["fidelity"]
    words = ["--data", str(tmp_path), "--models-folder", str(tmp_path), "--models", "demo"]
    words += [
        "--rows",
        "FP32,P4Q Edge,P4Q Edge, min-max,ONNX Runtime (min",
        "--work",
        str(tmp_path / "work"),
        "--output",
        str(tmp_path),
    ]
    assert tool.main(words) == 0
    (result,) = tmp_path.glob("fidelity-w8a8-*.json")
    document = json.loads(result.read_text())
    (model,) = document["models"]
    rows = {row["method"]: row for row in model["rows"]}
    assert list(rows) == ["FP32", "P4Q Edge", "P4Q Edge, min-max", "ONNX Runtime (min-max)"]
    assert (model["calibration_images"], model["images"], rows["FP32"]["n"]) == (48, 96, 96)
    assert rows["FP32"]["cosine_min"] == pytest.approx(1, abs=1e-5)
    assert rows["FP32"]["int8_mac_share"] == 0
    assert 0.99 < rows["P4Q Edge"]["cosine_min"] < 1
    assert rows["P4Q Edge"]["int8_mac_share"] == pytest.approx(rows["ONNX Runtime (min-max)"]["int8_mac_share"])
    assert "| ONNX Runtime (min-max) | 0.99" in result.with_suffix(".md").read_text()
    assert "--rows 'FP32,P4Q Edge,P4Q Edge, min-max,ONNX" in result.with_suffix(".md").read_text()  # for a shell
    assert str(tmp_path) not in result.read_text()
    monkeypatch.setattr(tool, "ask", lambda *_: pytest.fail("measured again"))
    assert tool.main(words) == 0
    assert json.loads(result.read_text())["models"] == document["models"]


def test_graph_and_module_count_the_same_linears(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    place = bench["fidelity_models"].Place(data=tmp_path, output=tmp_path)
    tower = bench["fidelity_models"].open_subject("demo", place, seed=0).tower
    tools = bench["fidelity_tools"]
    by_node = tools.node_macs(tower.graph())
    linears = sum(by_node[name] for name in tools.linear_nodes(tower.graph().graph))
    plain = tools.float_encoder(tower, tools.W8A8)
    by_module = macs_by_module(plain, torch.zeros(1, 3, *tower.model.preprocess.size))
    modules = [name for name, module in plain.named_modules() if type(module) is torch.nn.Linear]
    assert linears == sum(by_module[name] for name in modules)
    assert by_node[_stem(tower.graph())] == by_module["trunk.conv1"]


def _stem(model: onnx.ModelProto) -> str:
    return next(node.name for node in model.graph.node if node.op_type == "Conv")


def test_a_tool_that_is_not_installed_has_its_reason(
    bench: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def without(name: str, *args: object) -> ModuleType:
        if name.startswith(("nncf", "modelopt")):
            raise ImportError(f"no module named {name}")
        return real(name, *args)  # type: ignore[arg-type]

    place = bench["fidelity_models"].Place(data=tmp_path, output=tmp_path)
    subject = bench["fidelity_models"].open_subject("demo", place, seed=0)
    monkeypatch.setattr(importlib, "import_module", without)
    reference = bench["fidelity_tools"].reference_features(subject.tower)
    known = bench["fidelity_tools"].quantizers()
    for name in ("NNCF", "Model Optimizer (AWQ)"):
        assert bench["fidelity"].ask(name, known[name], subject, reference)["missing"].startswith("not installed: ")


def test_a_row_that_is_none_is_refused(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    words = ["--data", str(tmp_path), "--models-folder", str(tmp_path), "--models", "resnet"]
    assert bench["fidelity"].main(words) == 2


def test_models_are_whole_names_and_rows_may_be_beginnings(
    bench: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    row = {"cosine_mean": 1.0, "cosine_p1": 1.0, "cosine_min": 1.0, "same_neighbour": 1.0}
    row |= {"int8_mac_share": 0.0, "execution": "executed"}

    def run_model(name: str, *_: object) -> dict[str, object]:
        asked.append(name)
        counts = {"calibration_images": 1, "images": 1, "histogram_images": 1}
        return {"model": name, "what": "", "rows": [{"method": "FP32", **row}], **counts}

    monkeypatch.setattr(bench["fidelity"], "run_model", run_model)
    words = ["--data", str(tmp_path), "--models-folder", str(tmp_path), "--output", str(tmp_path), "--models"]
    assert bench["fidelity"].main([*words, "vit, vit"]) == 0
    assert asked == ["vit"]  # not vit-b-32, and once
    assert bench["fidelity"].main([*words, "vi"]) == 2
    assert "--models knows vit, efficientnet" in capsys.readouterr().err
    known = bench["fidelity_tools"].quantizers("W4A16")
    assert bench["fidelity"].chosen_names(tuple(known), "P4Q Edge") == ["P4Q Edge"]
    assert len(bench["fidelity"].chosen_names(tuple(known), "P4Q at W4A16")) == len(known) - 4


def test_a_narrow_width_has_our_rows_alone(bench: dict[str, ModuleType]) -> None:
    plain = ["FP32", "P4Q Edge", "P4Q Edge, not rotated"]
    mixed = [f"P4Q at {mean} bits a weight on average" for mean in ("4.25", "4.5", "5")]
    assert [*bench["fidelity_tools"].quantizers("W4A8")] == [*plain, *mixed]
    assert set(bench["fidelity_tools"].quantizers()) > {"P4Q Edge", "NNCF"}


def test_rows_that_tell_convolutions_apart_are_of_such_models(bench: dict[str, ModuleType]) -> None:
    plain, more = (bench["fidelity_tools"].quantizers(convolutions=convolutions) for convolutions in (False, True))
    assert [*more][: len(plain)] == [*plain]
    assert {"P4Q with depthwise and stem", "NNCF, without depthwise and stem"} <= set(more) - set(plain)


def test_dense_convolutions_are_those_of_the_default(bench: dict[str, ModuleType]) -> None:
    shapes = {"stem": (32, 3, 3, 3), "depthwise": (32, 1, 3, 3), "dense": (64, 32, 1, 1)}
    tensors = [onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in shapes.items()]
    tensors.append(onnx.numpy_helper.from_array(np.zeros((64, 2), np.float32), "classes"))
    groups = {"stem": 1, "depthwise": 32, "dense": 1}
    nodes = [onnx.helper.make_node("Conv", ["x", name], ["y"], name=name, group=groups[name]) for name in shapes]
    nodes.append(onnx.helper.make_node("MatMul", ["y", "classes"], ["z"], name="classes"))
    graph = onnx.helper.make_graph(nodes, "graph", [], [], tensors)
    named = bench["accuracy_tools"].linear_nodes
    assert named(graph) == []
    assert named(graph, convolutions=True) == [*shapes]
    assert named(graph, convolutions=True, dense_only=True) == ["dense"]
    tower = torch.nn.ModuleDict({"stem": torch.nn.Conv2d(3, 32, 3), "dense": torch.nn.Conv2d(32, 64, 1)})
    tower["depthwise"] = torch.nn.Conv2d(32, 32, 3, groups=32)
    assert set(bench["accuracy_tools"].left_out(tower)) == {"*stem.*_quantizer", "*depthwise.*_quantizer"}


def test_a_tool_for_modules_gets_the_deployment_form(bench: dict[str, ModuleType]) -> None:
    layers = Conv2dSame(3, 16, 3, stride=2), torch.nn.BatchNorm2d(16), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    model = SimpleNamespace(clip=SimpleNamespace(visual=torch.nn.Sequential(*layers).eval()))
    sample = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    section = bench["fidelity_tools"].W8A8
    encoder = bench["accuracy_tools"].plain_linears(model, section, sample=sample)
    kinds = [type(module) for module in encoder.modules()]
    assert torch.nn.Conv2d in kinds
    assert not {Conv2dSame, torch.nn.BatchNorm2d} & set(kinds)
    torch.testing.assert_close(encoder(sample), model.clip.visual(sample), rtol=1e-4, atol=1e-5)


@pytest.fixture
def older(tmp_path: Path) -> Path:
    figures = {"cosine_mean": 0.5, "cosine_p1": 0.25, "cosine_min": 0.125, "same_neighbour": 1.0}
    figures |= {"int8_mac_share": 0.5, "execution": "executed"}
    model = {"model": "demo", "weights_sha256": "w", "images_sha256": "i"}
    model["rows"] = [{"method": "NNCF", **figures}, {"method": "FP32", "missing": "not measured in this run"}]
    path = tmp_path / "fidelity-w8a8-2026-01-01.json"
    path.write_text(json.dumps({"width": "W8A8", "models": [model], "versions": {"nncf": "3"}, "commit": "c"}))
    return path


def test_rows_are_carried_over_for_the_same_model_and_say_so(bench: dict[str, ModuleType], older: Path) -> None:
    carried = bench["fidelity_carried"].read_older(older, width="W8A8")
    (row,) = carried.rows_of("demo", weights="w", images="i").items()
    assert row[0] == "NNCF"
    assert row[1]["carried_from"] == older.name
    assert (row[1]["carried_versions"], row[1]["commit"]) == ({"nncf": "3"}, "c")
    assert carried.rows_of("demo", weights="other", images="i") == {}
    assert carried.rows_of("vit", weights="w", images="i") == {}
    line = bench["fidelity"]._line({"method": "NNCF", **row[1]})
    assert line.startswith("| NNCF * | 0.50000 |")
    text = "\n".join(bench["fidelity"]._commits([{"method": "NNCF", **row[1]}]))
    assert f"carried over from {older.name}" in text
    document = json.loads(older.read_text())
    again = {"name": "newer.json", "document": document | {"versions": {"nncf": "4"}, "commit": "d"}}
    again["document"]["models"] = [document["models"][0] | {"rows": [{"method": "NNCF", **row[1]}]}]
    assert bench["fidelity_carried"].Older(**again).rows_of("demo", weights="w", images="i") == {"NNCF": row[1]}
    del document["width"]  # as it was before there were others
    older.write_text(json.dumps(document))
    assert bench["fidelity_carried"].read_older(older, width="W8A8").document == document
    chosen = bench["fidelity"]._figure
    assert chosen({"missing": "not installed"}, row[1]) == row[1]
    assert chosen({"cosine_mean": 1.0}, row[1]) == {"cosine_mean": 1.0}
    assert chosen({"missing": "not installed"}, None) == {"missing": "not installed"}


@pytest.mark.parametrize(
    ("content", "width", "message"),
    [
        (None, "W8A8", "cannot read the older results"),
        ("{", "W8A8", "expected the JSON that fidelity.py writes in "),
        ("[]", "W8A8", "expected the JSON that fidelity.py writes in "),
        ("same", "FP8", "expected older results of FP8 in "),
    ],
)
def test_older_results_that_are_none(
    bench: dict[str, ModuleType], older: Path, content: str | None, width: str, message: str
) -> None:
    if content is None:
        older.unlink()
    elif content != "same":
        older.write_text(content)
    with pytest.raises(InputError, match=message):
        bench["fidelity_carried"].read_older(older, width=width)
