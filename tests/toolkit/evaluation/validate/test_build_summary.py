"""The table that a build ends with: each figure computed again from its definition."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from p4q_edge.recipe.toml import read_recipe
from p4q_edge.runtime import ZeroShotClassifier
from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.statistics.metrics import wilson_interval
from p4q_edge.stages.features import teacher_embeddings
from p4q_edge.stages.source import open_source
from p4q_edge.stages.students import hand_written_embeddings


def run(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    capsys.readouterr()
    command = ["build", "--recipe", str(folder / "recipe.toml"), "--engine", str(folder / "demo.onnx"), "-q"]
    assert main([*command, *flags]) == 0
    return capsys.readouterr().out


def test_the_rows_are_what_they_say(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads(run(folder, capsys, "--json"))["summary"]
    zero_shot, learned, engine = summary["rows"]
    assert [row["name"] for row in summary["rows"]] == ["zero-shot, FP32", "learned, FP32", "engine, W8A8 executed"]
    assert summary["n"] == 120
    source = open_source(read_recipe(folder / "recipe.toml"))
    test = source.split.test
    images = torch.stack([torch.from_numpy(np.asarray(_pixels(test, i, source))) for i in range(len(test))])
    scores = teacher_embeddings(source.model, images) @ hand_written_embeddings(source).cpu().T
    right = int((scores.argmax(dim=1).numpy() == test.labels).sum())
    assert zero_shot["top1"] == pytest.approx(right / 120)
    assert (zero_shot["low"], zero_shot["high"]) == pytest.approx(wilson_interval(right, 120))
    with ZeroShotClassifier(folder / "demo.onnx") as classifier:
        found = [p.index for p in classifier.iterate([test.open_image(i) for i in range(len(test))])]
    assert engine["top1"] == pytest.approx(float(np.mean(np.asarray(found) == test.labels)))
    recorded, head = read_bundle(folder / "demo.p4q").reference(), read_bundle(folder / "demo.p4q").head()
    assert recorded is not None
    answers = (recorded.float_embedding @ head.text_embedding.T).argmax(axis=1)
    assert learned["top1"] == pytest.approx(float((answers == recorded.label).mean()))
    tower = source.model.clip.get_submodule("visual")
    assert zero_shot["size_bytes"] == learned["size_bytes"] == 4 * sum(p.numel() for p in tower.parameters())
    assert engine["size_bytes"] == (folder / "demo.onnx").stat().st_size
    assert engine["latency_ms"] > 0
    assert zero_shot["latency_ms"] is None


def _pixels(test: object, index: int, source: object) -> np.ndarray:
    from p4q_edge.runtime.images.preprocessing import preprocess

    return preprocess(test.open_image(index), source.model.preprocess)  # type: ignore[attr-defined]


def test_the_text_has_a_table_and_the_next_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(folder, capsys).splitlines()
    table = lines[lines.index("") + 1 :]
    assert table[0].split() == ["top-1", "95", "%", "interval", "size", "one", "image"]
    assert [line.partition("  ")[0] for line in table[1:4]] == [
        "zero-shot, FP32",
        "learned, FP32",
        "engine, W8A8 executed",
    ]
    assert table[4].startswith("n = 120 images that were not learned from.")
    assert table[5].startswith(f"next: p4q-edge classify {folder / 'demo.onnx'} IMAGES")
    assert max(map(len, table[:4])) <= 100


def test_without_recorded_results_the_table_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (folder / "recipe.toml").read_text().replace("[export]", "[export]\nreference_images = 0")
    (folder / "recipe.toml").write_text(text)
    output = run(folder, capsys, "--force")
    assert "accuracy was not measured: export.reference_images = 0 keeps no results of test images" in output
