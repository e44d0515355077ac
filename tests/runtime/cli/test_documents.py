"""`--json` of every subcommand is one document with the keys that runtime/JSON.md states, alone on stdout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from read_documents import read_document

from p4q_edge.runtime.cli.documents import DOCUMENTS
from p4q_edge.runtime.cli.registry import RUNTIME_HELP

Run = Callable[..., tuple[int, str, str]]


def test_every_command_is_documented() -> None:
    assert {line.split()[0] for line in DOCUMENTS} == {*RUNTIME_HELP}


@pytest.fixture
def commands(
    tiny_bundle: Path, tiny_engine: Path, photo: Path, tmp_path: Path, keys_of_a_maker: tuple[Path, Path]
) -> dict[str, list[str]]:
    """The runtime's command lines by their line in `DOCUMENTS`."""
    head = tmp_path / "night.safetensors"
    labelled = tmp_path / "labelled"
    for index, name in enumerate(("circle", "square", "triangle")):
        (labelled / name).mkdir(parents=True)
        for image in range(4):
            pixels = np.random.default_rng(10 * index + image).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(labelled / name / f"{image}.png")
    engine = str(tiny_engine)
    return {
        "build MODEL.p4q": ["build", str(tiny_bundle), "--engine", str(tmp_path / "new.onnx")],
        "build --dry-run, ONNX Runtime": ["build", str(tiny_bundle), "--engine", engine, "--dry-run"],
        "classify": ["classify", engine, str(photo)],
        "classify --output": ["classify", engine, str(photo), "--output", str(tmp_path / "answers.csv")],
        "embed": ["embed", engine, str(photo), "-o", str(tmp_path / "e.npz")],
        "search": ["search", str(tmp_path / "e.npz"), "circle", "--engine", engine],
        "inspect MODEL.p4q": ["inspect", str(tiny_bundle)],
        "inspect ENGINE, ONNX Runtime": ["inspect", engine],
        "head export": ["head", "export", engine, "-o", str(head)],
        "inspect HEAD": ["inspect", str(head)],
        "head add": ["head", "add", engine, str(head), "--name", "night"],
        "head list": ["head", "list", engine],
        "head calibrate": ["head", "calibrate", engine, str(labelled)],
        "head reset": ["head", "reset", engine],
        "head remove": ["head", "remove", engine, "night"],
        "teach": ["teach", engine, str(labelled), "--name", "shelf"],
        "head undo": ["head", "undo", engine, "shelf"],
        "selftest": ["selftest", engine],
        "doctor": ["doctor"],
        "doctor --licenses": ["doctor", "--licenses", "--bundle", str(tiny_bundle)],
        "export-triton": ["export-triton", engine, str(tmp_path / "models")],
        "validate": ["validate", engine],
        "bench": ["bench", engine, "--seconds", "0", "--energy-seconds", "0"],
        "sign": ["sign", engine, "--key", str(keys_of_a_maker[0])],
        "completion": ["completion", "bash"],
        "verify": ["verify", engine, "--key", str(keys_of_a_maker[1])],
    }


def test_documents_of_the_runtime_are_what_their_structures_say(commands: dict[str, list[str]], run: Run) -> None:
    for line, arguments in commands.items():
        if line == "head export":
            # The built-in head lies in the bundle.
            arguments = ["head", "export", str(Path(__file__).parents[1] / "data" / "tiny.p4q"), *arguments[3:]]
        if line == "head undo":
            run("head", "add", arguments[2], Path(__file__).parents[1] / "data" / "tiny.p4q", "--name=shelf", "--force")
        code, out, err = run(*arguments, "--json")
        assert code == 0, (line, err)
        read_document(out, DOCUMENTS[line])
    elsewhere = {"build --recipe", "build --print-config", "inspect --lint"}  # those of the toolkit
    others = {line for line in DOCUMENTS if "TensorRT" in line} | {
        "classify --stream, each line",
        "doctor --board-report",
        "serve",  # see tests/runtime/http/test_process.py
        "push",  # see tests/runtime/cli/test_hub_commands.py
    }
    assert {*commands} | elsewhere | others == {*DOCUMENTS}


def test_each_line_of_a_stream_is_an_answer(tiny_engine: Path, photo: Path, tmp_path: Path, run: Run) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no image")
    _, out, _ = run("classify", tiny_engine, photo, damaged, "--json", "--stream")
    good, bad = (read_document(line, DOCUMENTS["classify --stream, each line"]) for line in out.splitlines())
    assert isinstance(good.label, str)
    assert good.error is msgspec.UNSET
    assert (bad.label, bad.topk) == (msgspec.UNSET, msgspec.UNSET)
    assert bad.error.type == "InputError"


@pytest.mark.parametrize("flags", [[], ["-q"], ["-v"]])
def test_messages_go_to_stderr_alone(tiny_engine: Path, run: Run, flags: list[str]) -> None:
    _, out, _ = run("selftest", tiny_engine, "--json", *flags)
    read_document(out, DOCUMENTS["selftest"])
    _, plain, _ = run("selftest", tiny_engine, *flags)
    assert plain.startswith("passed: ")
    assert plain.count("\n") == 1
