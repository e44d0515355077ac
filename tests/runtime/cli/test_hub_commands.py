"""`p4q-edge push`, and an address of the Hub in place of a bundle, from the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from read_documents import read_document

from p4q_edge.runtime.cli.documents import DOCUMENTS
from p4q_edge.runtime.cli.service_documents import PushDocument
from p4q_edge.runtime.errors import EnvironmentNotAbleError

from doubles.hub import HubDouble, believed

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    """The server, with its token in the environment."""
    pytest.importorskip("huggingface_hub", reason="needs the extra hub")
    double = believed(tmp_path, monkeypatch)
    monkeypatch.setenv("HF_TOKEN", double.token)
    yield double
    double.close()


def test_push_writes_its_document(hub: HubDouble, tiny_bundle: Path, run: Run) -> None:
    code, out, err = run("push", tiny_bundle, "hf:ann/cups", "--private", "--json")
    assert code == 0, err
    document = read_document(out, DOCUMENTS["push"])
    assert isinstance(document, PushDocument)
    assert document.private
    assert document.address.startswith("hf:ann/cups@")


def test_what_was_pushed_is_built_inspected_and_validated(
    hub: HubDouble, tiny_bundle: Path, tmp_path: Path, run: Run, photo: Path
) -> None:
    assert run("push", tiny_bundle, "hf:ann/cups")[0] == 0
    engine = tmp_path / "out.onnx"
    for command in (
        ["build", "hf:ann/cups", "--engine", engine],
        ["build", "hf:ann/cups@main/tiny.p4q", "--engine", engine, "--dry-run"],
        ["inspect", "hf:ann/cups"],
        ["doctor", "--licenses", "--bundle", "hf:ann/cups"],
        ["head", "add", engine, "hf:ann/cups", "--name", "cups"],
        ["head", "export", "hf:ann/cups", "-o", tmp_path / "cups.safetensors"],
        ["classify", engine, photo, "--head", "cups"],
        ["validate", engine, "--reference", "hf:ann/cups"],
    ):
        code, _, err = run(*command)
        assert code == 0, (command, err)


def test_inspect_says_how_to_build_what_lies_there(hub: HubDouble, tiny_bundle: Path, run: Run) -> None:
    """Not by its path in the cache of another library, and not with the engine beside it."""
    assert run("push", tiny_bundle, "hf:ann/cups")[0] == 0
    _, out, _ = run("inspect", "hf:ann/cups@main")
    lines = out.splitlines()
    assert lines[0].startswith("bundle hf:ann/cups@main, ")
    assert lines[1].startswith("lies at         /")
    assert "next            p4q-edge build hf:ann/cups@main --engine tiny.onnx" in lines


def test_push_says_how_to_build_it(hub: HubDouble, tiny_bundle: Path, run: Run) -> None:
    _, out, err = run("push", tiny_bundle, "hf:ann/cups")
    assert "build it: p4q-edge build hf:ann/cups@" in out
    assert "warning: everybody can read this repository" in err


@pytest.mark.parametrize("command", [["build", "hf:a/b", "--engine", "o.onnx"], ["push", "BUNDLE", "hf:a/b"]])
def test_without_the_library_the_command_that_installs_it_is_named(
    tiny_bundle: Path, run: Run, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, _, err = run(*(str(tiny_bundle) if word == "BUNDLE" else word for word in command))
    assert code == EnvironmentNotAbleError.exit_code
    assert "which is not installed. Run: pip install 'p4q-edge-runtime[hub]'" in err


def test_a_command_that_names_a_file_loads_no_library_of_the_hub(tiny_bundle: Path, run: Run) -> None:
    before = "huggingface_hub" in sys.modules
    assert run("inspect", tiny_bundle)[0] == 0
    assert ("huggingface_hub" in sys.modules) == before
