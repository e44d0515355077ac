"""Results of PyTorch that travel in the bundle: known by their pixels, in any order, and refused when damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.artifacts.recorded_results import RecordedResults, pixel_digest, read_reference
from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.evaluation.recorded_stages import recorded_stages
from p4q_edge.runtime.storage.untrusted import load_tensors, save_tensors

IMAGES = np.random.default_rng(11).integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
"""The validation images of tools/make_golden_models.py."""


@pytest.fixture
def recorded(tiny_bundle: Path) -> RecordedResults:
    found = read_bundle(tiny_bundle).reference()
    assert found is not None
    return found


def test_images_are_known_in_any_order(recorded: RecordedResults) -> None:
    order = np.random.default_rng(0).permutation(40)
    rows, seen = recorded.match(IMAGES[order], range(40))
    assert (rows, seen) == ({index: int(row) for index, row in enumerate(order)}, 40)
    assert recorded.match(255 - IMAGES[:3], range(3)) == ({}, 3)
    assert pixel_digest(IMAGES[3]) == recorded.digest[3].tobytes()


def test_a_limit_looks_on_until_it_is_reached(recorded: RecordedResults) -> None:
    mixed = np.concatenate([255 - IMAGES[:10], IMAGES[:10]])
    assert recorded.match(mixed, range(20), limit=3) == ({10: 0, 11: 1, 12: 2}, 13)


def test_stages_give_what_was_recorded(recorded: RecordedResults, tiny_bundle: Path) -> None:
    head = read_bundle(tiny_bundle).head()
    stages = recorded_stages(recorded, head)
    assert list(stages) == ["float", "fake_quant"]
    outputs = stages["fake_quant"](IMAGES[[7, 2]])
    np.testing.assert_array_equal(outputs["embedding"], recorded.embedding[[7, 2]])
    np.testing.assert_allclose(outputs["logits"], 20.0 * recorded.embedding[[7, 2]] @ head.text_embedding.T, atol=1e-5)
    np.testing.assert_array_equal(stages["float"](IMAGES[:1])["embedding"], recorded.float_embedding[:1])


def test_bytes_round_trip(recorded: RecordedResults) -> None:
    again = read_reference(recorded.to_bytes(), classes=3, dim=16, source="x")
    assert again.to_bytes() == recorded.to_bytes()
    assert len(again) == 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "x lacks the tensors label"),
        ({"digest": np.zeros((40, 31), np.uint8)}, "expected digests"),
        ({"label": np.full(40, 3, np.int32)}, "below 3"),
        ({"label": np.zeros(39, np.int32)}, "labels"),
        ({"label": np.zeros((), np.int32)}, "labels"),
        ({"embedding": np.full((40, 16), np.nan, np.float32)}, "finite float32"),
        ({"float_embedding": np.zeros((40, 15), np.float32)}, "embeddings"),
        ({"float_embedding": np.zeros((40, 16), np.float16)}, "float32"),
    ],
)
def test_damaged_results_are_refused(
    recorded: RecordedResults, change: dict[str, np.ndarray | None], message: str
) -> None:
    tensors, metadata = load_tensors(recorded.to_bytes(), source="x")
    changed = {name: value for name, value in {**tensors, **change}.items() if value is not None}
    with pytest.raises(CorruptArtifactError, match=message):
        read_reference(save_tensors(changed, metadata), classes=3, dim=16, source="x")


def test_results_of_another_width_are_refused(recorded: RecordedResults) -> None:
    narrow = replace(recorded, embedding=recorded.embedding[:, :8], float_embedding=recorded.float_embedding[:, :8])
    with pytest.raises(CorruptArtifactError, match=r"finite float32 embeddings \(n, 16\)"):
        read_reference(narrow.to_bytes(), classes=3, dim=16, source="x")
