"""What a model from a stranger may hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from p4q_edge.runtime.artifacts import bundle as bundles
from p4q_edge.runtime.artifacts import onnx_graph
from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.artifacts.onnx_graph import check_exported, check_model
from p4q_edge.runtime.engines.onnxruntime.engine import OnnxRuntimeEngine
from p4q_edge.runtime.errors import CorruptArtifactError

from onnx_bytes import external_weights, field, identity_model, varint

LOOP = field(5, field(1, b"body") + field(6, field(2, b"inner")) + field(20, 5))
LOOPS = field(5, field(1, b"body") + field(11, field(2, b"inner")) + field(20, 10))


def model_of(node: bytes = b"", *, graph: bytes = b"", model: bytes = b"") -> bytes:
    return model + field(7, field(1, field(4, b"Add") + node) + graph)


def test_operators_are_counted(tiny_bundle: Path) -> None:
    counts = check_model(read_bundle(tiny_bundle).model("fp32"), name="x")
    assert counts["", "QuantizeLinear"] == 2
    assert {domain for domain, _ in counts} == {""}


def test_the_optimized_copy_of_an_engine_is_read(tiny_engine: Path) -> None:
    copy = tiny_engine.with_name(tiny_engine.name + ".optimized")
    assert check_model(copy.read_bytes(), name="x")["com.microsoft", "MatMulIntegerToFloat"] == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (model_of(LOOP), r"a node holds a graph \(a loop or branch\)"),
        (model_of(LOOPS), r"a node holds graphs \(a loop or branch\)"),
        (model_of(field(8, b"overload")), "it has an unknown field 8"),
        (model_of(graph=field(15, b"")), "it has an unknown field 15"),  # sparse weights
        (model_of(model=field(25, b"")), "it defines functions"),
        (model_of(model=field(20, b"")), "it has an unknown field 20"),  # training
        (model_of(model=field(1, b"text")), "it has an unknown field 1"),  # a text where a number belongs
        (external_weights("/etc/hostname"), "it keeps weights in another file"),
        (field(7, field(5, field(14, 1))), "it keeps weights in another file"),
        (model_of(field(5, field(5, field(13, b"")))), "it keeps weights in another file"),
        (model_of(field(5, field(22, b""))), "it has an unknown field 22"),
        (b"\x12\x14\x00\x00ORTM" + bytes(14), "it is in ONNX Runtime's own format"),
        (field(7, field(1, b"") * 20_001), "it has more than 20000 nodes"),
        (field(7, field(5, b"") * 20_001), "it has more than 20000 tensors"),
        (model_of(field(5, b"") * 33), "a node has 33 attributes; at most 32 are read"),
    ],
)
def test_refused(data: bytes, message: str) -> None:
    with pytest.raises(CorruptArtifactError, match=f"x is not a model that P4Q Edge writes: {message}"):
        check_model(data, name="x")


def test_the_last_of_two_operators_counts_as_in_the_library() -> None:
    assert check_model(model_of(field(4, b"Loop")), name="x") == {("", "Loop"): 1}
    with pytest.raises(CorruptArtifactError, match="x has operators that no bundle of P4Q Edge has: Loop, Scan"):
        check_exported(model_of(field(4, b"Loop")) + model_of(field(4, b"Scan")), name="x")


def test_control_characters_of_an_operator_are_shown_and_not_obeyed() -> None:
    with pytest.raises(CorruptArtifactError, match=r"has: Lo\\x1b\[2Jo\\np\. Export"):
        check_exported(model_of(field(4, b"Lo\x1b[2Jo\np")), name="x")


@pytest.mark.parametrize("domain", [b"com.microsoft", b"ai.onnx.ml", b"\xff"])
def test_operators_of_other_domains_are_no_operators_of_a_bundle(domain: bytes) -> None:
    with pytest.raises(CorruptArtifactError, match=r"has operators that no bundle of P4Q Edge has: .+\.Add\."):
        check_exported(model_of(field(7, domain)), name="x")
    check_exported(model_of(field(7, b"ai.onnx")), name="x")


def test_an_overlong_number_hides_no_other_file(tiny_engine: Path) -> None:
    """`location` with its length in two bytes: libraries read it, a search for the usual bytes does not find it."""
    entry = b"\x0a\x88\x00location" + field(2, b"/etc/hostname")
    weights = field(7, field(5, field(1, 4) + field(2, 3) + field(8, b"w") + field(13, entry) + field(14, 1)))
    assert b"\x0a\x08location" not in weights
    with pytest.raises(CorruptArtifactError, match="it keeps weights in another file"):
        OnnxRuntimeEngine(tiny_engine.read_bytes() + weights, name="x")
    hidden = varint(7 << 3 | 2)[:-1] + b"\xba\x00"
    with pytest.raises(CorruptArtifactError, match="is not in its shortest form"):
        OnnxRuntimeEngine(tiny_engine.read_bytes() + hidden + weights[1:], name="x")


@pytest.mark.parametrize("graph", [bundles.GRAPH_FP16, bundles.GRAPH_FP32])
def test_a_bundle_with_an_endless_loop_is_refused_when_it_is_opened(rebundle: Callable[..., Path], graph: str) -> None:
    loop = field(7, field(1, field(4, b"Loop") + LOOP))
    path = rebundle({graph: read_bundle(rebundle()).read(graph) + loop})
    with pytest.raises(CorruptArtifactError, match=rf"{graph} of .* a node holds a graph \(a loop or branch\)"):
        read_bundle(path)


def test_a_bundle_with_another_operator_is_refused_when_it_is_opened(rebundle: Callable[..., Path]) -> None:
    for operator in ("Expand", "Loop", "ConstantOfShape", "StringSplit"):
        path = rebundle({bundles.GRAPH_FP16: identity_model("image", element=2, operator=operator)})
        with pytest.raises(CorruptArtifactError, match=f"that no bundle of P4Q Edge has: {operator}. Export"):
            read_bundle(path)


def test_weights_of_a_bundle_are_looked_through_before_they_are_used(rebundle: Callable[..., Path]) -> None:
    weights = read_bundle(rebundle()).read(bundles.WEIGHTS) + external_weights("../w")
    bundle = read_bundle(rebundle({bundles.WEIGHTS: weights}))
    for kind in ("fp16", "fp32"):
        with pytest.raises(CorruptArtifactError, match="it keeps weights in another file"):
            bundle.model(kind)  # type: ignore[arg-type]


def test_the_time_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte is looked at once: fields that are visited are counted, not timed."""
    visits = 0
    fields = onnx_graph.wire_fields

    def counted(data: bytes, start: int, stop: int) -> object:
        nonlocal visits
        for found in fields(data, start, stop):
            visits += 1
            yield found

    monkeypatch.setattr(onnx_graph, "wire_fields", counted)
    counts = []
    for nodes in (100, 200, 400):
        visits = 0
        check_model(field(7, field(1, field(4, b"Add") + field(5, field(1, b"a"))) * nodes), name="x")
        counts.append(visits)
    assert counts == [401, 801, 1601]
