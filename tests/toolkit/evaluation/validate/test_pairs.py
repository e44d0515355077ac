"""`validate --pairs`, `--ood` and `--corruptions` with PyTorch: recall of every stage."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from p4q_edge.demo import demo_images
from p4q_edge.models import cut_texts, encoder_of
from p4q_edge.recipe import demo_recipe
from p4q_edge.runtime.artifacts import read_card
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.engines import load_engine
from p4q_edge.runtime.evaluation.report.document import read_report
from p4q_edge.runtime.images import preprocess
from p4q_edge.stages import open_model


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Thirty digits, each with one of ten captions; the last has a second one."""
    images, labels, names = demo_images()
    rows = []
    for index in range(30):
        images[index].save(tmp_path / f"{index}.png")
        rows.append((f"{index}.png", f"a photo of the {names[labels[index]]}."))
    rows.append(("29.png", "the last one of all"))
    with (tmp_path / "captions.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "caption"), *rows])
    return tmp_path / "captions.csv"


def test_recall_is_that_of_the_models_own_towers(engine: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["validate", str(engine), "--limit", "40", "--pairs", str(table), "-q"]
    assert main([*arguments, "--report", str(engine.with_suffix(".html"))]) == 0
    out = capsys.readouterr().out
    assert "Retrieval: 30 images and 11 texts of captions.csv" in out
    assert "image to text at 10" in engine.with_suffix(".html").read_text()
    report = read_report(engine.with_name("demo.report.json"))
    assert report.retrieval is not None
    rows = {row.name: row for row in report.retrieval.rows}
    assert list(rows) == ["float", "fake_quant", "onnx", "engine"]
    assert "images and captions" in report.provenance.digests
    # By hand: features of the engine, embeddings of the text tower.
    card = read_card(engine)
    images, labels, names = demo_images()
    pixels = np.stack([preprocess(images[index], card.preprocess) for index in range(30)])
    runner = load_engine(engine, card)
    features = runner.run(pixels, ("features",))["features"]
    runner.close()
    model = open_model(demo_recipe())
    texts = list(dict.fromkeys(f"a photo of the {names[label]}." for label in labels[:30]))
    with torch.no_grad():
        text = encoder_of(model.clip)(model.tokenizer([*texts, "the last one of all"])).numpy()
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    order = np.argsort(-(features @ text.T), axis=1)
    own = [texts.index(f"a photo of the {names[label]}.") for label in labels[:30]]
    right = [own[i] in order[i, :1] or (i == 29 and 10 in order[i, :1]) for i in range(30)]
    assert rows["engine"].image_to_text[0].value == pytest.approx(np.mean(right))
    assert (rows["engine"].image_to_text[0].n, rows["engine"].text_to_image[0].n) == (30, 11)
    for row in rows.values():
        values = [estimate.value for estimate in row.image_to_text]
        assert values == sorted(values)
        assert abs(values[0] - rows["float"].image_to_text[0].value) <= 0.1


def test_the_float_model_is_the_reference_of_worse_images_and_all_is_reproduced(
    engine: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["validate", str(engine), "--limit", "24", "--corruptions", "--ood", str(table.parent), "-q"]
    assert main(arguments) == 0
    report = read_report(engine.with_name("demo.report.json"))
    assert {row.reference for row in report.corruptions} == {"float"}
    assert report.ood is not None
    assert [stage.name for stage in report.ood.stages] == ["float", "engine"]
    capsys.readouterr()
    assert main(["reproduce", str(engine.with_name("demo.report.json")), "-q"]) == 0
    lines = {line[: line.rindex("  ")].split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    for name in ("AUROC engine", "rejected float", "top-1 engine, dark 3", "top-1 engine, none 0"):
        assert lines[name].endswith("same")
    (table.parent / "0.png").unlink()  # one image of no class less
    assert main(["reproduce", str(engine.with_name("demo.report.json")), "-q"]) == 4
    assert "images of no class changed since it was written" in capsys.readouterr().err


def test_captions_that_are_cut_are_named(engine: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with table.open("a", newline="") as stream:
        csv.writer(stream).writerow(("0.png", "a digit " + "on and on " * 20 + "to its end"))
    assert main(["validate", str(engine), "--limit", "40", "--pairs", str(table), "-q"]) == 0
    out, err = capsys.readouterr()
    assert "warning: 1 of 12 captions of captions.csv is longer than the text tower reads, and its end is cut:" in err
    assert "'a digit on and on" in err
    assert "to its end" not in err
    assert "1 text is longer than it reads and was cut." in out
    report = read_report(engine.with_name("demo.report.json"))
    assert report.retrieval is not None
    assert report.retrieval.cut == 1


def test_a_text_that_just_fits_is_not_cut() -> None:
    tokenizer = open_model(demo_recipe()).tokenizer
    room = tokenizer([""]).shape[1] - 2  # start and end
    texts = ["a " * (room - 1), "a " * room, "a " * (room + 1), "", "a " * 200]
    assert cut_texts(tokenizer, texts) == [2, 4]


def test_without_the_recipe_the_text_tower_is_not_known(
    engine: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (engine.with_suffix(".run") / "recipe.toml").unlink()
    assert main(["validate", str(engine), "--pairs", str(table)]) == 2
    assert "--pairs needs the text tower of the model, and no run folder" in capsys.readouterr().err
