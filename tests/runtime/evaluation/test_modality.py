"""How far images and texts lie apart: figures by hand, and the table of a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.evaluation.report.document import read_report
from p4q_edge.runtime.evaluation.trials.modality import modality_report

X, Y, Z = np.eye(3)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_figures_of_few_images_by_hand() -> None:
    report = modality_report({"engine": np.array([X, Y])}, np.array([0, 1]), np.array([X, Z]), seed=0)
    (row,) = report.rows
    assert (report.n, report.classes, row.name) == (2, 2, "engine")
    # Means (.5, .5, 0) and (.5, 0, .5).
    assert row.gap.value == pytest.approx(np.sqrt(0.5))
    assert (row.own.value, row.other.value) == (0.5, 0.0)
    assert row.gap.low <= row.gap.value <= row.gap.high


def test_images_on_their_classes_have_no_gap() -> None:
    rows = np.array([X, Y, Z])
    (row,) = modality_report({"engine": rows}, np.array([0, 1, 2]), rows, seed=0).rows
    assert (row.gap.value, row.own.value, row.other.value) == (0.0, 1.0, 0.0)


@given(seed=st.integers(0, 1000), n=st.integers(2, 20), classes=st.integers(2, 5))
def test_the_gap_is_the_distance_of_the_means(seed: int, n: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    images, rows = unit(generator.normal(size=(n, 6)) + 0.5), unit(generator.normal(size=(classes, 6)))
    labels = generator.integers(0, classes, n)
    (row,) = modality_report({"engine": images}, labels, rows, seed=0).rows
    assert row.gap.value == pytest.approx(np.linalg.norm(images.mean(axis=0) - rows.mean(axis=0)))
    assert row.own.value == pytest.approx(np.mean(np.sum(images * rows[labels], axis=1)))
    assert row.gap.n == n


def test_every_report_has_the_row_of_each_stage(
    engine: Path, validated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    markdown = engine.with_suffix(".md")
    assert main(["validate", str(engine), "--data", str(validated), "--report", str(markdown), "-q", "-v"]) == 0
    report = read_report(engine.with_name("tiny.report.json"))
    assert report.modality is not None
    assert report.chain is not None
    assert [row.name for row in report.modality.rows] == [stage.name for stage in report.chain.stages]
    assert all(0 <= row.gap.value <= 2 for row in report.modality.rows)
    assert "## Images and class embeddings, n = 40, 3 classes" in markdown.read_text()
    assert "Images and class embeddings, n = 40" in capsys.readouterr().out
    assert main(["validate", str(engine), "--data", str(validated), "-q"]) == 0
    assert "Images and class embeddings" not in capsys.readouterr().out
