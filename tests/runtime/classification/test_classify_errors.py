"""Images that cannot be used among others, and names that a terminal cannot show: no answer is lost."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime import Failure, Prediction, ZeroShotClassifier
from p4q_edge.runtime.cli.main import main as run_cli
from p4q_edge.runtime.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine pictures, of which number 4 is cut off and number 6 empty."""
    root = tmp_path / "many"
    root.mkdir()
    generator = np.random.default_rng(1)
    for index in range(9):
        Image.fromarray(generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(root / f"{index}.png")
    (root / "4.png").write_bytes((root / "4.png").read_bytes()[:200])
    (root / "6.png").write_bytes(b"")
    return root


GOOD = [0, 1, 2, 3, 5, 7, 8]


def test_failures_are_yielded_in_their_place(tiny_engine: Path, folder: Path) -> None:
    with ZeroShotClassifier(tiny_engine) as classifier:
        answers = list(classifier.iterate(folder, on_error="yield"))
        assert [Path(answer.source or "").name for answer in answers] == [f"{index}.png" for index in range(9)]
        assert [index for index, answer in enumerate(answers) if isinstance(answer, Prediction)] == GOOD
        for index in GOOD:
            alone = classifier.classify(folder / f"{index}.png")
            assert isinstance(alone, Prediction)
            found = answers[index]
            assert isinstance(found, Prediction)
            assert dict(found.topk) == pytest.approx(dict(alone.topk))
        broken = answers[4]
        assert isinstance(broken, Failure)
        assert "4.png cannot be decoded" in str(broken.error)
        with pytest.raises(InputError, match=r"4\.png cannot be decoded"):
            list(classifier.iterate(folder))
        assert len(list(classifier.iterate([folder / "4.png", io.BytesIO(b"x")], on_error="yield"))) == 2


def test_the_command_goes_on_past_damaged_files(
    tiny_engine: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(["classify", str(tiny_engine), str(folder)]) == 1
    output = capsys.readouterr()
    assert [line.partition(": ")[0] for line in output.out.splitlines()] == [str(folder / f"{i}.png") for i in GOOD]
    assert f"{folder / '4.png'} cannot be decoded" in output.err
    assert "2 of 9 images could not be used. Repair or remove them, or add --skip-errors" in output.err
    assert run_cli(["classify", str(tiny_engine), str(folder), "--skip-errors"]) == 0
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == "warning: 2 of 9 images could not be used"
    assert not [line for line in told if line.startswith("error:")]


def test_a_document_has_error_entries(tiny_engine: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["classify", str(tiny_engine), str(folder), "--json"]) == 1
    entries = json.loads(capsys.readouterr().out)["predictions"]
    assert [index for index, entry in enumerate(entries) if "label" in entry] == GOOD
    assert entries[4]["source"] == str(folder / "4.png")
    assert entries[4]["error"]["type"] == "InputError"
    assert "Save it again as JPEG or PNG" in entries[4]["error"]["message"]


def test_a_stream_is_one_line_of_json_for_each_image(
    tiny_engine: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(["classify", str(tiny_engine), str(folder), "--json", "--stream", "--skip-errors"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [index for index, line in enumerate(lines) if "label" in line] == GOOD
    assert {line["schema_version"] for line in lines} == {1}
    assert run_cli(["classify", str(tiny_engine), str(folder), "--stream"]) == 2
    assert "--stream writes JSON lines and needs --json" in capsys.readouterr().err


def test_one_image_that_cannot_be_used_is_a_wrong_input(
    tiny_engine: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(["classify", str(tiny_engine), str(folder / "4.png")]) == 2
    assert run_cli(["classify", str(tiny_engine), "https://example.org/a.jpg"]) == 2
    assert "nothing is fetched from networks" in capsys.readouterr().err


@pytest.mark.parametrize("names", [("4.png",), ("4.png", "6.png")])
def test_one_image_and_several_of_which_none_can_be_used_end_alike(
    tiny_engine: Path, folder: Path, names: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["classify", str(tiny_engine), *(str(folder / name) for name in names)]
    count = f"{len(names)} of {len(names)} image{'s'[: len(names) - 1]} could not be used"
    assert run_cli(words) == 2
    assert capsys.readouterr().err.count(f"error: {count}. Repair or remove ") == 1
    assert run_cli([*words, "--skip-errors"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == f"warning: {count}"
    assert run_cli([*words, "--skip-errors", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)["predictions"]
    assert [(Path(entry["source"]).name, entry["error"]["type"]) for entry in entries] == [
        (name, "InputError") for name in names
    ]
    table = tmp_path / "answers.csv"
    assert run_cli([*words, "--output", str(table)]) == 2
    assert len(table.read_text().splitlines()) == 1 + len(names)


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict", "utf-8:surrogateescape"])
def test_names_that_stdout_cannot_encode_lose_no_answer(tiny_engine: Path, folder: Path, encoding: str) -> None:
    name = os.fsencode(folder) + b"/caf\xe9 \xc3\xa9.png"
    (folder / "0.png").rename(os.fsdecode(name))
    command = [sys.executable, "-m", "p4q_edge.runtime.cli.main", "classify", str(tiny_engine), str(folder)]
    command[1:3] = ["-c", "import sys; from p4q_edge.runtime.cli.main import main; sys.exit(main())"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    text = subprocess.run([*command, "--skip-errors"], env=environment, capture_output=True, check=True)
    assert len(text.stdout.splitlines()) == 7
    assert b"caf\\xe9 " in text.stdout
    found = subprocess.run([*command, "--json", "--skip-errors"], env=environment, capture_output=True, check=True)
    sources = [entry["source"] for entry in json.loads(found.stdout.decode("utf-8"))["predictions"]]
    assert name in [os.fsencode(source) for source in sources]
