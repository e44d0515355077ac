"""`validate --ood`, `--corruptions` and `--pairs` as a device runs them, without PyTorch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime.artifacts import read_card
from p4q_edge.runtime.artifacts.card import write_card
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.evaluation.report.document import read_report
from p4q_edge.runtime.evaluation.report.trial_rows import trial_tables
from p4q_edge.runtime.evaluation.request import ValidateRequest
from p4q_edge.runtime.evaluation.trials import RetrievalReport
from p4q_edge.runtime.images import decode as decoding


@pytest.fixture(autouse=True)
def no_toolkit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [])


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Seven images that show none of the classes, at two depths."""
    generator = np.random.default_rng(4)
    for index in range(7):
        folder = tmp_path / "others" / ("below" if index % 2 else ".")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 40, (8, 8, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "others"


def test_rows_stand_in_the_documents(
    engine: Path, validated: Path, others: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(validated), "--ood", str(others), "--corruptions", "--batch", "16"]
    assert main(["validate", str(engine), *options, "--report", str(engine.with_suffix(".md")), "-q"]) == 0
    out = capsys.readouterr().out
    assert "Images of no class: 7 of others, beside 40 labelled ones" in out
    assert "The engine has no threshold and rejects nothing. To fit one: p4q-edge head calibrate" in out
    assert "noise 1: 8 of 255" in out
    assert "jpeg 3: quality 8" in out
    text = engine.with_suffix(".md").read_text()
    assert "## Degraded images, n = 40" in text
    assert "| dark 3: 0.15 of the light |" in text
    report = read_report(engine.with_name("tiny.report.json"))
    assert report.ood is not None
    # Results that were recorded are of some images alone: the bundle's graph runs any.
    assert [stage.name for stage in report.ood.stages] == ["onnx", "engine"]
    assert (report.ood.n, report.ood.labelled) == (7, 40)
    assert len(report.corruptions) == 13
    assert {row.reference for row in report.corruptions} == {"onnx"}
    assert report.chain is not None
    assert report.corruptions[0].engine_top1 == report.chain.stage("engine").top1
    assert "images of no class" in report.provenance.digests
    assert report.provenance.command[-3:] == ("--ood", str(others), "--corruptions")
    assert main(["validate", str(engine), *options, "--json", "-q"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["corruptions"][7]["engine_top1"]["value"] == report.corruptions[7].engine_top1.value


def test_each_image_of_no_class_is_decoded_once(
    engine: Path, validated: Path, others: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def counted(source: Path, *, name: str, draft: tuple[int, int] | None) -> Image.Image:
        opened.append(name)
        return decode(source, name=name, draft=draft)

    decode = decoding._decode
    monkeypatch.setattr(decoding, "_decode", counted)
    assert main(["validate", str(engine), "--data", str(validated), "--ood", str(others), "-q"]) == 0
    assert sorted(name for name in opened if name.startswith(str(others))) == sorted(map(str, others.rglob("*.png")))


def test_the_threshold_of_the_card_rejects(engine: Path, validated: Path, others: Path) -> None:
    import msgspec

    card = read_card(engine)
    write_card(
        engine,
        msgspec.structs.replace(card, calibration=msgspec.structs.replace(card.calibration, threshold=1.0)),
        force=True,
    )
    assert main(["validate", str(engine), "--data", str(validated), "--ood", str(others), "-q"]) == 0
    report = read_report(engine.with_name("tiny.report.json"))
    assert report.ood is not None
    assert report.ood.threshold == 1.0
    assert report.unknown == tuple(range(40)), "the labelled ones are named too"
    assert {stage.rejected.value for stage in report.ood.stages} == {1.0}


def test_an_engine_alone_has_rows_without_reference(
    engine: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.with_suffix(".p4q").unlink()
    assert main(["validate", str(engine), "--data", str(photos), "--corruptions", "-q"]) == 0
    report = read_report(engine.with_name("tiny.report.json"))
    assert {(row.reference, row.difference) for row in report.corruptions} == {(None, None)}
    header = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("images  "))
    assert header.split() == ["images", "top-1,", "engine"]


def test_no_more_images_than_the_limit(engine: Path, validated: Path, others: Path) -> None:
    options = ["--data", str(validated), "--ood", str(others), "--corruptions", "--limit", "5"]
    assert main(["validate", str(engine), *options, "-q"]) == 0
    report = read_report(engine.with_name("tiny.report.json"))
    assert report.ood is not None
    assert (report.ood.n, report.ood.labelled, report.corruptions[0].engine_top1.n) == (5, 5, 5)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--ood", "others"], 2, "--ood compares with labelled images, and there are none. Name some with --data."),
        (["--corruptions"], 2, "--corruptions compares with labelled images, and there are none."),
        (["--ood", "nowhere"], 2, "--ood nowhere is not a directory; expected one with images, at any depth"),
        (["--pairs", "captions.csv"], 3, "--pairs reads captions with the text tower of the toolkit (PyTorch)"),
    ],
)
def test_what_cannot_be_answered_is_said_before_anything_runs(
    engine: Path,
    others: Path,
    options: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(others.parent)
    assert main(["validate", str(engine), *options]) == code
    err = capsys.readouterr().err
    assert message in err
    assert "golden samples:" not in err
    assert not engine.with_name("tiny.report.json").exists()


@pytest.mark.parametrize(
    ("images", "texts", "note"),
    [(40, 11, ""), (40, 5, " Of 5 texts the nearest"), (10, 5, " Of 5 texts and 10 images the nearest 10 are all")],
)
def test_recall_among_few_says_that_it_is(engine: Path, images: int, texts: int, note: str) -> None:
    assert main(["validate", str(engine), "-q"]) == 0
    found = RetrievalReport(source="c.csv", images=images, texts=texts, rows=())
    report = read_report(engine.with_name("tiny.report.json"))
    (table,) = trial_tables(msgspec.structs.replace(report, retrieval=found))
    assert table.note.startswith(f"Recall with the features in front of the adapter and the float text tower.{note}")
    assert ("nearest 10" in table.note) == bool(note)


def test_labelled_images_are_none_of_no_class(
    engine: Path, validated: Path, others: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = next(validated.rglob("*.png"))
    shutil.copy(labelled, others / "copy.png")
    assert main(["validate", str(engine), "--data", str(validated), "--ood", str(others)]) == 2
    err = capsys.readouterr().err
    assert f"--ood {others}: 1 of 8 images is labelled with a class too, the first is {others / 'copy.png'}." in err
    assert "golden samples:" not in err


@pytest.mark.parametrize(("place", "named"), [("others", "--ood {}"), ("validated", "40 images of {}")])
def test_damaged_images_are_all_named_before_anything_runs(
    engine: Path, validated: Path, others: Path, place: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = {"others": others, "validated": validated}[place]
    files = sorted(folder.rglob("*.png"))
    for file in (files[1], files[-1]):
        file.write_bytes(file.read_bytes()[:60])
    assert main(["validate", str(engine), "--data", str(validated), "--ood", str(others)]) == 2
    err = capsys.readouterr().err
    assert f"{named.format(folder)}: 2 of {len(files)} images cannot be read: {files[1]} cannot be decoded" in err
    assert f"; {files[-1]} cannot be decoded" in err
    assert "Replace them, or take them out." in err
    assert "golden samples:" not in err
    assert "float" not in err


def test_a_folder_without_images_is_said(
    engine: Path, validated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["validate", str(engine), "--data", str(validated), "--ood", str(tmp_path / "empty")]) == 2
    err = capsys.readouterr().err
    assert f"--ood {tmp_path / 'empty'} has no images; name a folder with some, at any depth" in err
    assert "golden samples:" not in err


def test_the_command_repeats_what_was_asked_for() -> None:
    request = ValidateRequest(
        engine=Path("out.onnx"), ood=Path("others"), pairs=Path("c.csv"), corruptions=True, debug=True
    )
    assert request.command() == (
        *("validate", "out.onnx", "--ood", "others", "--pairs", "c.csv", "--corruptions", "--debug"),
    )
