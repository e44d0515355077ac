"""`--json` of every subcommand is one document with the keys that runtime/JSON.md states, alone on stdout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime.cli.documents import DOCUMENTS, WITH_RECORDS
from p4q_edge.runtime.cli.registry import RUNTIME_HELP, TOOLKIT_HELP

Run = Callable[..., tuple[int, str, str]]


def keys(out: str) -> set[str]:
    document = json.loads(out)  # one document, or this fails
    assert document.pop("schema_version") == 1
    return set(document)


def test_every_command_is_documented() -> None:
    documented = {line.split()[0] for line in (*DOCUMENTS, *WITH_RECORDS)}
    assert documented == {*RUNTIME_HELP, *TOOLKIT_HELP}


@pytest.fixture
def commands(tiny_bundle: Path, tiny_engine: Path, photo: Path, tmp_path: Path) -> dict[str, list[str]]:
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
        "inspect MODEL.p4q": ["inspect", str(tiny_bundle)],
        "inspect ENGINE": ["inspect", engine],
        "head export": ["head", "export", engine, "-o", str(head)],
        "inspect HEAD": ["inspect", str(head)],
        "head add": ["head", "add", engine, str(head), "--name", "night"],
        "head list": ["head", "list", engine],
        "head calibrate": ["head", "calibrate", engine, str(labelled)],
        "head reset": ["head", "reset", engine],
        "head remove": ["head", "remove", engine, "night"],
        "selftest": ["selftest", engine],
        "doctor": ["doctor"],
        "export-triton": ["export-triton", engine, str(tmp_path / "models")],
    }


def test_documents_of_the_runtime_have_the_stated_keys(commands: dict[str, list[str]], run: Run) -> None:
    for line, arguments in commands.items():
        if line == "head export":
            # The built-in head lies in the bundle.
            arguments = ["head", "export", str(Path(__file__).parents[1] / "data" / "tiny.p4q"), *arguments[3:]]
        code, out, err = run(*arguments, "--json")
        assert code == 0, (line, err)
        assert keys(out) == set(DOCUMENTS[line]), line


@pytest.mark.parametrize("flags", [[], ["-q"], ["-v"]])
def test_messages_go_to_stderr_alone(tiny_engine: Path, run: Run, flags: list[str]) -> None:
    _, out, _ = run("selftest", tiny_engine, "--json", *flags)
    assert keys(out) == set(DOCUMENTS["selftest"])
    _, plain, _ = run("selftest", tiny_engine, *flags)
    assert plain.startswith("passed: ")
    assert plain.count("\n") == 1
