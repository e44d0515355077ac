"""The table of families: towers of reduced depth, what is refused, and what is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest
import timm.models.vision_transformer_hybrid as hybrid
import torch
from bench_modules import bench_modules
from timm.models import register_model
from torch import nn

REDUCED: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
    "convnext": {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear", "image_size": 64},
}


@pytest.fixture(scope="module")
def families() -> Iterator[ModuleType]:
    with bench_modules(["families"]) as modules:
        yield modules["families"]


@pytest.mark.parametrize("kind", REDUCED)
def test_the_share_counts_convolutions_for_tensorrt_only(families: ModuleType, kind: str) -> None:
    row = families.measure(kind, {"embed_dim": 32, "vision_cfg": REDUCED[kind]}, graph=None)
    assert 0.5 < row["share"] <= 1.0
    assert (row["share_on_cpu"] < row["share"]) == (row["convolutions"] > 0) == (kind != "vit")
    assert row["linears"] > 0
    assert "bundle_mb" not in row


def test_gains_near_zero_are_drawn_and_others_stay(families: ModuleType) -> None:
    model = torch.nn.Module()
    model.visual = torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4))
    torch.nn.init.zeros_(model.visual[1].weight)
    model.visual.gamma = torch.nn.Parameter(torch.full((4,), 1e-5))
    assert families.draw_gains(model) == 2
    assert model.visual[0].weight.tolist() == [1.0] * 4
    assert all(0.5 <= gain <= 1.0 for gain in (*model.visual[1].weight.tolist(), *model.visual.gamma.tolist()))


@pytest.mark.slow
def test_a_row_says_what_the_graphs_compute_and_how_fast(families: ModuleType, tmp_path: Path) -> None:
    graph = tmp_path / "graph.onnx"
    row = families.measure("vit", {"embed_dim": 32, "vision_cfg": REDUCED["vit"]}, graph=graph)
    assert row["unsound"] == {}
    assert min(row["cosines"][kind] for kind in ("fp16", "fp32")) > 0.999
    assert row["engine_mb"] < row["fp32_mb"]
    assert row["times_as_fast"]["onnxruntime"]["low"] > 0
    onnx.checker.check_model(onnx.load(graph))


def small_hybrid_of_timm(**kwargs: Any) -> Any:
    """MobileCLIP-B's tower with 2 layers of 64 channels: positions are added before the class token is joined."""
    stem = hybrid.ConvStem(channels=(16, 16, 64), stride=(4, 2, 2), kernel_size=(4, 2, 2), padding=0, act_layer=nn.GELU)
    small = {
        "img_size": 64,
        "embed_dim": 64,
        "depth": 2,
        "num_heads": 2,
        "no_embed_class": True,
        "embed_args": {"proj": False},
    }
    return hybrid._create_vision_transformer_hybrid("small_hybrid_of_timm", backbone=stem, **(kwargs | small))


@pytest.mark.slow
def test_a_hybrid_that_asks_for_the_size_of_its_image_is_exported(families: ModuleType, tmp_path: Path) -> None:
    register_model(small_hybrid_of_timm)
    vision = {"timm_model_name": "small_hybrid_of_timm", "timm_pool": "token", "timm_proj": None, "image_size": 64}
    graph = tmp_path / "graph.onnx"
    row = families.measure("hybrid", {"embed_dim": 32, "vision_cfg": vision}, graph=graph)
    assert row["unsound"] == {}
    assert row["convolutions"] > 0
    assert not {"Shape", "Expand"} & {node.op_type for node in onnx.load(graph).graph.node}


def test_rows_are_kept_and_refusals_are_named(
    families: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert families.described("RN50")["licences"]
    assert families.described("xlm-roberta-base-ViT-B-32")["text"] == "xlm-roberta-base"
    monkeypatch.setattr(families.sys, "executable", "/bin/false")
    families.run("RN50", tmp_path, share_only=True)
    row = json.loads((tmp_path / "RN50.json").read_text())
    assert row["problem"] == "exit code 1"
    text = families.table({"RN50": row})
    assert "| RN50 |  |  | refused: exit code 1 |" in text
    (tmp_path / "RN50.json").write_text(json.dumps(row | {"problem": "kept"}))
    families.run("RN50", tmp_path, share_only=True)
    assert json.loads((tmp_path / "RN50.json").read_text())["problem"] == "kept"


def test_a_model_that_was_ended_for_its_memory_is_not_refused(
    families: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = tmp_path / "killed"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(families.sys, "executable", str(killed))
    families.run("RN50", tmp_path, share_only=False)
    assert not (tmp_path / "RN50.json").exists()
    assert capsys.readouterr().err == "RN50: ended by signal 9, no row is kept\n"


def test_kernels_are_counted_where_the_compiler_can_be_had(
    families: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"kernels": 7, "products": {"Int8": 2}, "plan_bytes": 3_000_000}
    compiler = tmp_path / "compiler"
    monkeypatch.setattr(families.sys, "executable", str(compiler))
    for code, found in (
        (0, {"kernels": 7, "products": {"Int8": 2}, "plan_mb": 3.0}),
        (1, {"compiler": json.dumps(said)}),
        (3, {}),
    ):
        compiler.write_text(f"#!/bin/sh\necho '{json.dumps(said)}'\nexit {code}\n")
        compiler.chmod(0o755)
        assert families.compiled(tmp_path / "graph.onnx") == found


def test_a_row_without_kernels_is_completed_when_the_compiler_is_there(
    families: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, graph = tmp_path / "RN50.json", tmp_path / "RN50.onnx"
    measured: list[int] = []

    def measure(command: list[str], **_: object) -> SimpleNamespace:
        if "--one" in command:
            measured.append(1)
            row.write_text('{"bundle_mb": 1.0}')
            graph.write_bytes(b"graph")
            return SimpleNamespace(returncode=0)
        return SimpleNamespace(
            returncode=code, stderr="no compiler", stdout='{"kernels": 7, "products": {}, "plan_bytes": 1}'
        )

    monkeypatch.setattr(families.subprocess, "run", measure)
    code = 3
    families.run("RN50", tmp_path, share_only=False)
    assert json.loads(row.read_text()) == {"bundle_mb": 1.0}
    code = 0
    families.run("RN50", tmp_path, share_only=False)
    assert json.loads(row.read_text())["kernels"] == 7
    assert not graph.exists()
    families.run("RN50", tmp_path, share_only=False)
    assert len(measured) == 1
    row.write_text('{"bundle_mb": 1.0}')  # of an earlier version, which kept no graph
    families.run("RN50", tmp_path, share_only=False)
    assert len(measured) == 2


def test_the_page_keeps_what_is_around_its_table(
    families: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "families.md"
    page.write_text(f"before\n{families.BEGIN}\nold\n{families.END}\nafter\n")
    monkeypatch.setattr(families, "PAGE", page)
    monkeypatch.setattr(families, "RESULTS", tmp_path)
    families.write({"RN50": {"text": "transformer", "prompts": True, "licences": [], "problem": "none"}})
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"\n{families.END}\nafter\n")
    assert "old" not in text
    (results,) = tmp_path.glob("families-*.json")
    assert json.loads(results.read_text())["rows"]["RN50"]["problem"] == "none"
