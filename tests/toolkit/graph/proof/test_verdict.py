"""What happens to graphs that are not sound: named, recorded, and never in the way of the other one."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from p4q_edge.graph.export import ExportedGraphs, check_proof, export_classifier, linear_quantizations
from p4q_edge.graph.lint_rules import LintFinding
from p4q_edge.graph.parity import run_in_onnxruntime
from p4q_edge.graph.passes.to_fp16 import ToFp16
from p4q_edge.graph.proof.verdict import Proof
from p4q_edge.models.folded_classifier import FoldedClassifier
from p4q_edge.runtime.artifacts import GraphParity
from p4q_edge.runtime.errors import QualityGateError

Exported = tuple[ExportedGraphs, FoldedClassifier]


def test_one_unsound_graph_is_a_warning_and_two_are_an_error(caplog: pytest.LogCaptureFixture) -> None:
    problem = "its logits overflow"
    check_proof(Proof(parity=GraphParity(), problems={}))
    assert not caplog.records
    check_proof(Proof(parity=GraphParity(), problems={"fp16": problem}))
    check_proof(Proof(parity=GraphParity(), problems={"fp32": problem}))
    first, second = (record.getMessage() for record in caplog.records)
    assert "FP16 remainder is not sound: its logits overflow. No TensorRT engine" in first
    assert "FP32 remainder is not sound: its logits overflow. No CPU engine" in second
    with pytest.raises(QualityGateError, match=r"no exported graph computes .* FP16 remainder: its logits overflow; "):
        check_proof(Proof(parity=GraphParity(), problems={"fp16": problem, "fp32": problem}))


def test_wrong_scales_in_both_graphs_are_refused_by_name(
    toy_graphs: Exported, images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = toy_graphs
    wrong = linear_quantizations(model)
    path = "encoder.trunk.transformer.resblocks.0.attn.in_proj"
    wrong[path].weight_scale[:] = wrong[path].weight_scale[::-1].copy()
    monkeypatch.setattr("p4q_edge.graph.export.linear_quantizations", lambda _: wrong)
    with pytest.raises(QualityGateError, match=rf"1 of its linears differs .* first {path}: weight or bias differ"):
        export_classifier(model, images)


def test_the_graph_for_tensorrt_alone_may_be_unsound(
    toy_graphs: Exported, images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs, model = toy_graphs

    class Tampering(ToFp16):
        def apply(self, model: ir.Model) -> bool:
            changed = super().apply(model)
            name = "encoder.trunk.transformer.resblocks.0.ln_1.bias.fp16"
            model.graph.initializers[name].const_value = ir.tensor(
                model.graph.initializers[name].const_value.numpy() + np.float16(0.25), name=name
            )
            return changed

    monkeypatch.setattr("p4q_edge.graph.export.ToFp16", Tampering)
    found = export_classifier(model, images)
    assert list(found.unsound) == ["fp16"]
    assert "without the grids of its activations the output logits differs" in found.unsound["fp16"]
    assert found.fp32 == graphs.fp32


def test_a_graph_for_tensorrt_that_cannot_be_made_stops_nothing_else(
    toy_graphs: Exported, images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs, model = toy_graphs

    class Beyond(ToFp16):
        def obstacles(self, model: ir.Model) -> list[str]:
            return ["the constant c is beyond the FP16 range"]

    monkeypatch.setattr("p4q_edge.graph.export.ToFp16", Beyond)
    found = export_classifier(model, images)
    assert list(found.unsound) == ["fp16"]
    assert "the constant c is beyond the FP16 range" in found.unsound["fp16"]
    assert found.fp16 == b""
    assert "fp16.cosine_embedding" not in found.parity.flat()
    same = run_in_onnxruntime(graphs.fp32 + graphs.weights, images[:2])
    assert np.array_equal(run_in_onnxruntime(found.fp32 + found.weights, images[:2])["logits"], same["logits"])


def test_a_lint_rule_that_one_graph_breaks_stops_only_that_graph(
    toy_graphs: Exported, images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = toy_graphs

    def findings(proto: onnx.ModelProto, **options: bool) -> list[LintFinding]:
        half = any(
            t.data_type == onnx.TensorProto.FLOAT16 and t.name.endswith(".fp16") for t in proto.graph.initializer
        )
        rounded = any(node.op_type == "Cast" and "features" in node.output for node in proto.graph.node)
        return [LintFinding(rule="placement", node="n", message="stands wrong")] if half and rounded else []

    monkeypatch.setattr("p4q_edge.graph.export.lint", findings)
    found = export_classifier(model, images)
    assert list(found.unsound) == ["fp16"]
    assert found.unsound["fp16"].startswith("lint: placement at n: stands wrong.")
