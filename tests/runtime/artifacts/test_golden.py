"""Golden samples: what is compared, which differences pass, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from p4q_edge.runtime.artifacts.golden import MAX_SAMPLES, Golden, GoldenResult, read_golden
from p4q_edge.runtime.errors import CorruptArtifactError, QualityGateError
from p4q_edge.runtime.statistics import NOISE_FACTOR, NoiseFloor, rounding_limits_of
from p4q_edge.runtime.storage.untrusted import load_tensors, save_tensors
from p4q_edge.runtime.verification.golden_check import compare_golden, require, row_cosine

TEXT = np.float32([[1, 0, 0, 0], [0.8, 0.6, 0, 0], [0, 0, 1, 0]])
SCALE = 100.0


def unit(rows: list[list[float]]) -> np.ndarray:
    array = np.float32(rows)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


@pytest.fixture
def golden() -> Golden:
    """Two images: the first clearly of class 0, the second nearly between classes 0 and 1."""
    embedding = unit([[1, 0.05, 0.1, 0], [1, 0.332, 0, 0.3]])
    logits = SCALE * embedding @ TEXT.T
    return Golden(
        image=np.zeros((2, 3, 4, 4), np.uint8),
        features=embedding * 3,
        embedding=embedding,
        logits=logits,
        float_embedding=embedding,
        float_logits=logits,
    )


def test_limits_may_come_from_the_noise_of_the_model(golden: Golden) -> None:
    turned = golden.embedding.copy()
    turned[0] = unit([[1, 0.5, 0.1, 0]])[0]  # clearly class 0 before; now class 1 leads by little
    outputs = {"embedding": turned, "logits": SCALE * turned @ TEXT.T}

    def compared(worst: float, margin: float) -> GoldenResult:
        floor = NoiseFloor(worst_loss=worst, median_loss=0.0, margin=margin)
        return compare_golden(outputs, golden, logit_scale=SCALE, limits=rounding_limits_of(8, floor))

    lead = float(golden.logits[0, 0] - golden.logits[0, 1]) / SCALE
    assert compared(0.05, lead / NOISE_FACTOR + 0.01).problem() is None
    assert "1 of 2 golden images gets another class" in str(compared(0.05, lead / NOISE_FACTOR - 0.01).problem())
    assert "embeddings reach a cosine of" in str(compared(0.001, lead).problem())


def result_of(golden: Golden, embedding: np.ndarray, recorded: np.ndarray | None = None) -> GoldenResult:
    outputs = {"embedding": embedding, "logits": SCALE * embedding @ TEXT.T}
    return compare_golden(outputs, golden, logit_scale=SCALE, recorded=recorded)


def test_equal_outputs_pass(golden: Golden) -> None:
    result = result_of(golden, golden.embedding, golden.embedding)
    assert result.problem() is None
    assert (result.samples, result.top1_agreement, result.top1_flips, result.drift) == (2, 1.0, 0, 0.0)
    assert result.cosine_min == pytest.approx(1.0)
    require(result, engine="x")


def test_a_low_cosine_fails(golden: Golden) -> None:
    turned = golden.embedding.copy()
    turned[1] = unit([[1, 0.3, 0.3, 0.3]])[0]
    result = result_of(golden, turned)
    assert result.cosine_min == pytest.approx(float(row_cosine(turned, golden.embedding)[1]))
    assert "embeddings reach a cosine of" in str(result.problem())
    with pytest.raises(
        QualityGateError, match="x computes wrong values here: embeddings reach a cosine of .*p4q-edge build"
    ):
        require(result, engine="x")


def test_outputs_that_are_not_numbers_fail(golden: Golden) -> None:
    assert result_of(golden, np.full_like(golden.embedding, np.nan)).problem() is not None
    assert result_of(golden, np.zeros_like(golden.embedding)).problem() is not None


def test_the_best_class_may_differ_only_where_the_reference_is_undecided(golden: Golden) -> None:
    margin = np.diff(np.sort(golden.logits[1])[-2:])[0]
    assert margin < 0.01 * SCALE
    tipped = golden.logits.copy()
    tipped[1, [0, 1]] = tipped[1, [1, 0]]
    result = compare_golden({"embedding": golden.embedding, "logits": tipped}, golden, logit_scale=SCALE)
    assert (result.top1_agreement, result.top1_flips, result.problem()) == (0.5, 0, None)
    tipped[0, [0, 2]] = tipped[0, [2, 0]]
    result = compare_golden({"embedding": golden.embedding, "logits": tipped}, golden, logit_scale=SCALE)
    assert result.top1_flips == 1
    assert "1 of 2 golden images gets another class" in str(result.problem())


def test_a_single_class_never_flips(golden: Golden) -> None:
    one = dataclasses.replace(golden, logits=golden.logits[:, :1], float_logits=golden.logits[:, :1])
    outputs = {"embedding": one.embedding, "logits": one.logits}
    assert compare_golden(outputs, one, logit_scale=SCALE).problem() is None


def test_a_small_drift_fails_where_the_engine_was_built(golden: Golden) -> None:
    moved = golden.embedding + np.float32(1e-5)
    assert result_of(golden, moved).problem() is None
    assert "embeddings moved by 1.0" in str(result_of(golden, moved, golden.embedding).problem())


def test_outputs_of_another_shape_are_refused(golden: Golden) -> None:
    outputs = {"embedding": golden.embedding[:, :3], "logits": golden.logits}
    with pytest.raises(CorruptArtifactError, match=r"gives embeddings \(2, 3\) .* Build the engine again"):
        compare_golden(outputs, golden, logit_scale=SCALE)


def test_samples_round_trip(golden: Golden) -> None:
    loaded = read_golden(golden.to_bytes(), source="x")
    for field in dataclasses.fields(Golden):
        np.testing.assert_array_equal(getattr(loaded, field.name), getattr(golden, field.name))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image", np.zeros((2, 4, 4), np.uint8)),
        ("image", np.zeros((2, 3, 4, 4), np.float32)),
        ("image", np.zeros((0, 3, 4, 4), np.uint8)),
        ("image", np.zeros((MAX_SAMPLES + 1, 3, 4, 4), np.uint8)),
        ("logits", np.zeros((1, 3), np.float32)),
        ("logits", np.zeros((2, 0), np.float32)),
        ("embedding", np.full((2, 4), np.inf, np.float32)),
        ("features", np.zeros((2, 4), np.float16)),
    ],
)
def test_other_tensors_are_refused(golden: Golden, name: str, value: np.ndarray) -> None:
    tensors, _ = load_tensors(golden.to_bytes(), source="x")
    with pytest.raises(CorruptArtifactError, match="x: expected up to 64 uint8 images"):
        read_golden(save_tensors({**tensors, name: value}, {}), source="x")


def test_a_missing_tensor_is_named(golden: Golden) -> None:
    tensors, _ = load_tensors(golden.to_bytes(), source="x")
    del tensors["features"]
    with pytest.raises(CorruptArtifactError, match="x lacks the tensors features"):
        read_golden(save_tensors(tensors, {}), source="x")
