"""The bench of teaching: its table, its rows on made-up features, and the committed results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
from bench_modules import BENCH, bench_modules


@pytest.fixture(scope="module")
def bench() -> Iterator[dict[str, ModuleType]]:
    with bench_modules(("teach", "teach_table")) as modules:
        yield modules


@pytest.fixture
def kept() -> dict[str, np.ndarray]:
    """Features of three classes that lie apart, and text embeddings that tell nothing."""
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(3, 8))
    train, test = np.repeat(np.arange(3), 6), np.repeat(np.arange(3), 20)
    text = generator.normal(size=(3, 8))
    return {
        "views": (centers[train] + 0.2 * generator.normal(size=(18, 8))).astype(np.float32)[None],
        "labels": train,
        "test": (centers[test] + 0.2 * generator.normal(size=(60, 8))).astype(np.float32),
        "test_labels": test,
        "text": (text / np.linalg.norm(text, axis=1, keepdims=True)).astype(np.float32),
        "scale": np.asarray(20.0),
        "names": np.asarray(["a", "b", "c"]),
        "p4q4": np.eye(3)[test],
    }


def test_rows_are_asked_of_the_same_images(bench: dict[str, ModuleType], kept: dict[str, np.ndarray]) -> None:
    rows = bench["teach"].rows_of(kept, 4, p4q=True)
    assert list(rows) == ["zero-shot", "nearest mean", "taught", "taught, names unknown", "P4Q"]
    assert rows["P4Q"] == 1.0
    assert rows["taught"] > 0.9 > rows["zero-shot"]
    added = bench["teach"].added_of(kept, 4)
    assert added["largest move of an old logit"] < 1e-4
    assert added["added class"] > 0.9


def test_the_first_images_of_each_class_are_taken(bench: dict[str, ModuleType]) -> None:
    labels = np.array([1, 0, 1, 0, 0])
    assert bench["teach"].first_of_each(labels, 2).tolist() == [0, 1, 2, 3]


def test_the_committed_table_is_that_of_its_figures_and_states_where_the_aim_is_missed(
    bench: dict[str, ModuleType],
) -> None:
    (path,) = (BENCH / "results").glob("teach-*.json")
    document = json.loads(path.read_text(encoding="utf-8"))
    table = bench["teach_table"].markdown(document)
    assert path.with_suffix(".md").read_text(encoding="utf-8") == table
    for row in document["rows"]:
        row["top1"]["P4Q"] = row["top1"]["taught"] + 0.03
    assert bench["teach_table"].markdown(document).count("-3.0 (below the aim)") == 6
