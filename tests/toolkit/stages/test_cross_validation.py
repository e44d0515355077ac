"""Accuracy without a test set: nobody judges what they learned from, every photograph counts once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from p4q_edge.data import FOLDS, folds
from p4q_edge.demo import demo_images
from p4q_edge.learning import CachedFeatures
from p4q_edge.recipe.toml import read_recipe
from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.statistics.metrics import wilson_interval
from p4q_edge.stages import cross_validation
from p4q_edge.stages.cross_validation import cross_validate
from p4q_edge.stages.pipeline import Prepared, prepare
from p4q_edge.stages.run_files import RunFiles
from p4q_edge.stages.source import Source, open_source
from p4q_edge.stages.students import learn_student

RECIPE = """
[model]
name = "demo"
[data]
train = "photos"
shots = 0
[learn]
steps = 12
[export]
golden_samples = 4
"""


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P4Q_EDGE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten photographs of each of three digits, all to learn from."""
    images, labels, names = demo_images()
    for label, name in enumerate(names[:3]):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for index in np.flatnonzero(labels == label)[:10]:
            images[index].save(folder / f"{index}.png")
    path = tmp_path / "p4q.toml"
    path.write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return path


@pytest.fixture
def prepared(recipe: Path, tmp_path: Path) -> Prepared:
    return prepare(open_source(read_recipe(recipe)), RunFiles(folder=tmp_path / "run"))


def test_every_photograph_is_judged_once_by_a_head_that_did_not_see_it(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[CachedFeatures] = []

    def spy(source: Source, features: CachedFeatures) -> object:
        learned.append(features)
        return learn_student(source, features)

    monkeypatch.setattr(cross_validation, "learn_student", spy)
    found = cross_validate(prepared)
    assert (found.n, found.folds, len(learned)) == (30, FOLDS, FOLDS)
    rows = prepared.features.student[0]
    parts = folds(prepared.features.labels, seed=prepared.source.recipe.seed)
    assert sorted(torch.cat(parts).tolist()) == list(range(30))
    for held_out, features in zip(parts, learned, strict=True):
        assert len(features.labels) == 30 - len(held_out)
        for index in held_out.tolist():
            assert not (features.student[0] == rows[index]).all(dim=1).any()


def test_labels_of_chance_are_named_at_chance(prepared: Prepared) -> None:
    # The labels of the photographs are shuffled: who judges what they learned from would look good.
    generator = torch.Generator().manual_seed(3)
    labels = prepared.features.labels[torch.randperm(30, generator=generator)]
    found = cross_validate(replace(prepared, features=replace(prepared.features, labels=labels)))
    assert found.learned_quantized <= 18  # 10 of 30 by chance
    assert cross_validate(prepared).learned_quantized > found.learned_quantized


def test_a_build_without_test_images_ends_with_cross_validated_rows(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["build", "--recipe", str(recipe), "--engine", str(tmp_path / "out.onnx"), "-q"]
    assert main([*command, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert (summary["n"], summary["cross_validated"]) == (30, True)
    zero_shot, learned, quantized = summary["rows"]
    assert [row["name"] for row in summary["rows"]] == [
        "zero-shot, FP32",
        "learned, FP32, cross-validated",
        "learned, W8A8 executed, cross-validated",
    ]
    kept = read_bundle(tmp_path / "out.p4q").manifest.data_index.cross_validated
    assert kept is not None
    assert quantized["top1"] == pytest.approx(kept.learned_quantized / 30)
    assert learned["top1"] == pytest.approx(kept.learned_float / 30)
    assert (zero_shot["low"], zero_shot["high"]) == pytest.approx(wilson_interval(kept.zero_shot, 30))
    assert quantized["latency_ms"] > 0
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "cross-validated, n = 30: 4 parts of the photographs, each named by a head learned from the others" in out
    assert "learned, W8A8 executed, cross-validated" in out
