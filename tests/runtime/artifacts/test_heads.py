"""Heads: their file, their arithmetic, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.artifacts.golden import Golden
from p4q_edge.runtime.artifacts.head import Calibration, Head, HeadAdapter, load_head, read_head
from p4q_edge.runtime.artifacts.head_store import add_head, engine_head
from p4q_edge.runtime.errors import ArtifactError, CorruptArtifactError, InputError

DIM = 6


@pytest.fixture
def head() -> Head:
    generator = np.random.default_rng(1)
    text = generator.normal(size=(3, DIM))
    adapter = HeadAdapter(
        down_weight=generator.normal(size=(2, DIM)).astype(np.float32),
        down_bias=generator.normal(size=2).astype(np.float32),
        up_weight=generator.normal(size=(DIM, 2)).astype(np.float32),
        up_bias=generator.normal(size=DIM).astype(np.float32),
        residual_ratio=0.3,
    )
    return Head(
        class_names=("a", "b", "ç"),
        text_embedding=(text / np.linalg.norm(text, axis=1, keepdims=True)).astype(np.float32),
        logit_scale=50.0,
        logit_bias=-3.5,
        adapter=adapter,
        calibration=Calibration(activation="sigmoid", temperature=1.5, threshold=0.2, class_thresholds={"a": 0.7}),
        weights_sha256="ab" * 32,
    )


def test_a_head_round_trips_and_its_bytes_are_stable(head: Head, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    path.write_bytes(head.to_bytes())
    loaded = load_head(path)
    assert loaded.to_bytes() == head.to_bytes()
    assert (loaded.class_names, loaded.calibration) == (head.class_names, head.calibration)
    assert (loaded.logit_scale, loaded.logit_bias, loaded.weights_sha256) == (50.0, -3.5, "ab" * 32)
    np.testing.assert_array_equal(loaded.text_embedding, head.text_embedding)
    assert loaded.adapter is not None
    assert loaded.adapter.residual_ratio == 0.3


def test_a_head_without_adapter_round_trips(head: Head) -> None:
    plain = read_head(
        Head(class_names=head.class_names, text_embedding=head.text_embedding, logit_scale=1.0).to_bytes(), source="x"
    )
    features = np.float32(np.random.default_rng(0).normal(size=(5, DIM)))
    logits, embedding = plain.apply(features)
    expected = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(embedding, expected, atol=1e-6)
    np.testing.assert_allclose(logits, expected @ head.text_embedding.T, atol=1e-6)
    assert logits.dtype == embedding.dtype == np.float32


def test_the_adapter_is_the_written_formula(head: Head) -> None:
    adapter = head.adapter
    assert adapter is not None
    z = np.random.default_rng(2).normal(size=DIM)
    hidden = [max(0.0, float(row @ z + bias)) for row, bias in zip(adapter.down_weight, adapter.down_bias, strict=True)]
    mixed = [
        0.3 * (float(np.dot(row, hidden)) + bias) + 0.7 * value
        for row, bias, value in zip(adapter.up_weight, adapter.up_bias, z, strict=True)
    ]
    v = np.array(mixed) / np.linalg.norm(mixed)
    logits, embedding = head.apply(np.float32(z)[np.newaxis])
    np.testing.assert_allclose(embedding[0], v, atol=1e-5)
    np.testing.assert_allclose(logits[0], 50.0 * head.text_embedding @ v - 3.5, atol=1e-3)


def test_the_numpy_head_equals_the_reference_of_the_bundle(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    golden = bundle.golden()
    logits, embedding = bundle.head().apply(golden.features)
    np.testing.assert_allclose(embedding, golden.embedding, atol=1e-6)
    np.testing.assert_allclose(logits, golden.logits, atol=1e-4)


def test_zero_features_give_finite_logits(head: Head) -> None:
    plain = Head(class_names=head.class_names, text_embedding=head.text_embedding, logit_scale=1.0)
    logits, embedding = plain.apply(np.zeros((1, DIM), np.float32))
    assert np.isfinite(logits).all()
    assert np.isfinite(embedding).all()


def test_a_head_must_fit_the_engine(head: Head) -> None:
    head.require_fit(name="x", embedding_dim=DIM, weights_sha256="ab" * 32)
    with pytest.raises(ArtifactError, match="head x has embeddings of 6 numbers; the engine's have 512"):
        head.require_fit(name="x", embedding_dim=512, weights_sha256="ab" * 32)
    with pytest.raises(ArtifactError, match=r"made for another checkpoint \(abababababab\) than the engine \(cdcd"):
        head.require_fit(name="x", embedding_dim=DIM, weights_sha256="cd" * 32)


@pytest.mark.parametrize("values", [{"temperature": 0.0}, {"threshold": 1.5}, {"class_thresholds": {"a": -0.1}}])
def test_calibration_values_are_checked(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="temperature must be positive|thresholds must be between"):
        Calibration(**values)  # type: ignore[arg-type]


def changed(
    *, tensors: dict[str, np.ndarray | None] | None = None, metadata: dict[str, str | None] | None = None
) -> Callable[[Head], bytes]:
    def make(head: Head) -> bytes:
        assert head.adapter is not None
        all_tensors: dict[str, np.ndarray | None] = {
            "text_embedding": head.text_embedding,
            "adapter.down.weight": head.adapter.down_weight,
            "adapter.down.bias": head.adapter.down_bias,
            "adapter.up.weight": head.adapter.up_weight,
            "adapter.up.bias": head.adapter.up_bias,
            **(tensors or {}),
        }
        all_metadata: dict[str, str | None] = {
            "class_names": json.dumps(head.class_names),
            "logit_scale": "1",
            "residual_ratio": "0.2",
            **(metadata or {}),
        }
        return save(
            {name: value for name, value in all_tensors.items() if value is not None},
            {name: value for name, value in all_metadata.items() if value is not None},
        )

    return make


def test_the_base_of_the_damaged_heads_is_intact(head: Head) -> None:
    assert read_head(changed()(head), source="x").class_names == head.class_names


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (changed(tensors={"text_embedding": None}), "tensor text_embedding is missing"),
        (changed(tensors={"adapter.up.bias": None}), "tensor adapter.up.bias is missing"),
        (changed(tensors={"extra": np.zeros(1)}), "unknown tensors extra|dtype F64"),
        (changed(tensors={"extra": np.zeros(1, np.float32)}), "unknown tensors extra"),
        (changed(tensors={"text_embedding": np.ones((3, DIM), np.float32)}), "must have length 1"),
        (changed(tensors={"text_embedding": np.full((3, DIM), 1e30, np.float32)}), "must be finite"),
        (changed(tensors={"text_embedding": np.full((3, DIM), 1e5, np.float32)}), "must have length 1"),
        (changed(tensors={"text_embedding": np.full((3, DIM), np.nan, np.float32)}), "must be finite"),
        (changed(tensors={"text_embedding": np.ones((2, DIM), np.float32)}), r"must be finite float \(3, None\)"),
        (changed(tensors={"adapter.down.weight": np.ones((2, 5), np.float32)}), "adapter.down.weight must be"),
        (changed(metadata={"class_names": None}), "'class_names'"),
        (changed(metadata={"class_names": "[]"}), r"must be finite float \(0, None\)"),
        (changed(metadata={"class_names": '["a", "a", "b"]'}), "class names must be distinct"),
        (changed(metadata={"class_names": "[1, 2, 3]"}), "Expected `str`"),
        (changed(metadata={"logit_scale": "nan"}), "expected a finite number"),
        (changed(metadata={"logit_scale": "large"}), "could not convert"),
        (changed(metadata={"residual_ratio": None}), "'residual_ratio'"),
        (changed(metadata={"calibration": '{"temperature": -1}'}), "temperature must be positive"),
        (changed(metadata={"calibration": '{"class_thresholds": {"q": 0.5}}'}), "unknown classes q"),
    ],
)
def test_damaged_heads_are_refused(head: Head, damage: Callable[[Head], bytes], message: str) -> None:
    with pytest.raises(CorruptArtifactError, match=message) as caught:
        read_head(damage(head), source="x")
    assert "\n" not in str(caught.value)


def test_a_missing_head_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the head .*absent\.safetensors"):
        load_head(tmp_path / "absent.safetensors")


class Outputs:
    """Stands for an engine: gives the golden outputs of a bundle and keeps what it was asked for."""

    def __init__(self, golden: Golden) -> None:
        self.known = {"features": golden.features, "embedding": golden.embedding, "logits": golden.logits}
        self.asked: list[tuple[str, ...] | None] = []

    def run(self, image: np.ndarray, outputs: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
        self.asked.append(outputs)
        return {name: self.known[name] for name in outputs or self.known}


def test_the_built_in_head_classifies_as_any_other(tiny_engine: Path, tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    golden, engine = bundle.golden(), Outputs(bundle.golden())
    add_head(tiny_engine, tiny_bundle, name="same")
    heads = [engine_head(tiny_engine, name) for name in ("built-in", "same")]
    for head in heads:
        logits, embedding = head.classify(engine, golden.image)
        np.testing.assert_allclose(logits, golden.logits, atol=1e-4)
        np.testing.assert_allclose(embedding, golden.embedding, atol=1e-5)
        assert head.class_names == bundle.manifest.class_names
        assert head.calibration == bundle.head().calibration
    assert engine.asked == [("logits", "embedding"), ("features",)]
