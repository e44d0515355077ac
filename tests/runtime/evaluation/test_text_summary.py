"""What `validate` prints: accuracy first, mistakes by name, a line for the chain, its table with `-v`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.artifacts.card import read_card
from p4q_edge.runtime.builders.build import build_engine
from p4q_edge.runtime.errors import IncompatibleEngineError
from p4q_edge.runtime.evaluation.report.document import read_report
from p4q_edge.runtime.evaluation.report.text_summary import summary
from p4q_edge.runtime.evaluation.subject import find_bundle

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def with_zero_shot(tiny_bundle: Path, rebundle: Callable[..., Path], tmp_path: Path) -> Path:
    """An engine whose bundle, of a name of its own, has zero-shot answers, of which three in four are right."""
    source = read_bundle(tiny_bundle)
    found = source.reference()
    assert found is not None
    answers = [int(label) if index % 4 else (int(label) + 1) % 3 for index, label in enumerate(found.label)]
    bundle = rebundle(data_index=msgspec.structs.replace(source.manifest.data_index, zero_shot=tuple(answers)))
    engine = tmp_path / "device" / "out.onnx"
    engine.parent.mkdir()
    build_engine(bundle, engine)
    bundle.rename(engine.with_name("sent by mail.p4q"))
    return engine


def test_accuracy_comes_first_with_the_zero_shot_row(with_zero_shot: Path, validated: Path, run: Run) -> None:
    engine = with_zero_shot
    code, out, err = run("validate", engine, "--data", validated, "--max-top1-drop", "1.0")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("passed: out.onnx")
    header, *rows = lines[3:9]
    assert header.split()[:2] == ["stage", "top-1"]
    assert [row[:18].strip() for row in rows] == ["zero-shot, float", "float", "fake quant", "onnx", "engine"]
    assert "75.00 %" in rows[0]
    assert rows[0].split()[-1] == "40"
    report = read_report(engine.with_name("out.report.json"))
    assert report.zero_shot is not None
    assert (report.zero_shot.value, report.zero_shot.n) == (0.75, 40)
    # The same images by class.
    assert sum(row.zero_shot.n for row in report.class_gains) == 40
    assert sum(row.zero_shot.value * row.zero_shot.n for row in report.class_gains) == pytest.approx(30)
    assert report.chain is not None
    shares = {row.name: row.learned for row in report.class_gains}
    stage = report.chain.stage("engine")
    assert shares == dict(zip(report.chain.class_names, stage.class_accuracy, strict=True))


def test_mistakes_are_named_and_hops_shown_with_v(with_zero_shot: Path, validated: Path, run: Run) -> None:
    engine = with_zero_shot
    _, out, _ = run("validate", engine, "--data", validated)
    report = read_report(engine.with_name("out.report.json"))
    assert report.chain is not None
    answers = np.array(report.chain.predictions["engine"])
    truth = np.array(report.chain.labels)
    worst = next(line for line in out.splitlines() if line.startswith("worst classes: "))
    shares = {name: (answers[truth == index] == index).mean() for index, name in enumerate(report.chain.class_names)}
    lowest = min(shares, key=lambda name: shares[name])
    assert worst.startswith(f"worst classes: {lowest} {shares[lowest]:.0%} (n = ")
    confused = next(line for line in out.splitlines() if line.startswith("most confused: "))
    label, answer, count = report.chain.stages[-1].confused[0]
    names = report.chain.class_names
    assert confused.startswith(f"most confused: {names[label]} as {names[answer]} {count}")
    assert count == int(((truth == label) & (answers == answer)).sum())
    assert "chain: float -> fake quant -> onnx -> engine, n = 40: same answer" in out
    assert out.count("cosine min") == 0
    _, detailed, _ = run("validate", engine, "--data", validated, "-v")
    assert detailed.count("cosine min") == 2  # of the images and of the golden samples
    assert "fake quant -> engine" in detailed


def test_without_mistakes_it_says_so(engine: Path, photos: Path, run: Run) -> None:
    _, out, _ = run("validate", engine, "--data", photos)
    assert "engine names every image correctly" in out


def test_the_bundle_is_found_by_its_digest(engine: Path, rebundle: Callable[..., Path]) -> None:
    card = read_card(engine)
    own = engine.with_suffix(".p4q")
    renamed = own.rename(own.with_name("a.p4q"))
    found = find_bundle(engine, card)
    assert found is not None
    assert found.path == renamed
    # One of the engine's own name that is another does not hide it.
    rebundle(seed=7).rename(own)
    again = find_bundle(engine, card)
    assert again is not None
    assert again.path == renamed
    renamed.unlink()
    with pytest.raises(IncompatibleEngineError, match=r"was not built from .*tiny\.p4q"):
        find_bundle(engine, card)
    own.unlink()
    assert find_bundle(engine, card) is None


def test_the_report_has_the_prompts(tiny_bundle: Path, rebundle: Callable[..., Path], tmp_path: Path, run: Run) -> None:
    index = read_bundle(tiny_bundle).manifest.data_index
    prompts = {"circle": "a photo of a circle.", "grand_piano": "a photo of a grand piano."}
    bundle = rebundle(data_index=msgspec.structs.replace(index, prompts=prompts))
    engine = tmp_path / "prompts.onnx"
    build_engine(bundle, engine)
    page = tmp_path / "r.md"
    code, _, err = run("validate", engine, "--report", page)
    assert code == 0, err
    assert read_report(engine.with_name("prompts.report.json")).prompts == prompts
    assert "| grand_piano | a photo of a grand piano. |" in page.read_text()


def test_a_chain_without_limits_says_so(with_zero_shot: Path, validated: Path, run: Run) -> None:
    engine = with_zero_shot
    assert run("validate", engine, "--data", validated)[0] == 0
    report = read_report(engine.with_name("out.report.json"))
    assert report.chain is not None
    assert "limits hold" in summary(report, ())
    free = replace(report.chain, gates=())
    text = summary(msgspec.structs.replace(report, chain=free, golden=None), ())
    assert "no limit applies" in text
    assert "limits hold" not in text
