"""The command `doctor`: exit code, text and document."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from machines import ABSENT, JETSON, PC, WORKING, environment

from p4q_edge.runtime.cli import main as cli
from p4q_edge.runtime.cli.commands import doctor
from p4q_edge.runtime.machine.findings import Environment
from p4q_edge.runtime.machine.library_probe import Probe


def run(monkeypatch: pytest.MonkeyPatch, seen: Environment, *arguments: str) -> int:
    monkeypatch.setattr(doctor, "read_environment", lambda: seen)
    return cli.main(["doctor", *arguments])


@pytest.mark.parametrize(
    ("missing", "arguments", "code"),
    [
        ((), (), 0),
        (("tensorrt",), (), 0),
        (("tensorrt",), ("--backend", "onnxruntime"), 0),
        (("tensorrt",), ("--backend", "tensorrt"), 3),
        (("cuda",), ("--backend", "tensorrt"), 3),
        (("onnxruntime",), ("--backend", "onnxruntime"), 3),
        (("onnxruntime", "tensorrt"), (), 3),
    ],
)
def test_exit_code(
    monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], arguments: tuple[str, ...], code: int
) -> None:
    seen = Environment(host=JETSON, probes={**WORKING, **dict.fromkeys(missing, ABSENT)})
    assert run(monkeypatch, seen, *arguments) == code


def test_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, environment(tensorrt=ABSENT, onnxruntime=ABSENT)) == 3
    out, err = capsys.readouterr()
    assert "\nmissing  ONNX Runtime: cannot be used: " in out
    assert "\n         run: pip install --upgrade onnxruntime\n" in out
    assert out.endswith(
        "not able onnxruntime: lacks ONNX Runtime\nnot able openvino: lacks OpenVINO\n"
        "not able tensorrt: lacks TensorRT\n"
        "not able tensorrt-rtx: lacks TensorRT for RTX\n"
    )
    assert err == (
        "error: onnxruntime and openvino and tensorrt and tensorrt-rtx cannot run here; fix what is missing above, "
        "then run this again.\n"
    )


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        (("cuda",), "builds   tensorrt-rtx: engines for other machines alone; none runs here without CUDA driver"),
        (("cuda", "tensorrt-rtx"), "not able tensorrt-rtx: lacks CUDA driver and TensorRT for RTX"),
        (("tensorrt-rtx",), "not able tensorrt-rtx: lacks TensorRT for RTX"),
        ((), "able     tensorrt-rtx: engines are built and run here"),
    ],
)
def test_what_is_only_built_here_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: tuple[str, ...], told: str
) -> None:
    probes = {**WORKING, "tensorrt-rtx": Probe(facts={"version": "1.2"}), **dict.fromkeys(missing, ABSENT)}
    run(monkeypatch, Environment(host=PC, probes=probes))
    assert capsys.readouterr().out.splitlines()[-1] == told


def test_json_is_one_document_even_when_a_backend_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, environment(tensorrt=ABSENT), "--json", "--backend", "tensorrt") == 3
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert document["backends"] == {"onnxruntime": True, "openvino": False, "tensorrt": False, "tensorrt-rtx": False}
    assert {frozenset(item) for item in document["findings"]} == {
        frozenset({"subject", "status", "message", "fix", "needed_by"})
    }


def test_the_bundle_gives_the_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bundle = tmp_path / "model.p4q"
    bundle.write_bytes(bytes(5_000_000))
    assert run(monkeypatch, environment(), "--bundle", str(bundle)) == 0
    assert "building a bundle of 5 MB for tensorrt" in capsys.readouterr().out


def test_a_bundle_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, environment(), "--bundle", "no.p4q") == 2
    expected = "error: no.p4q is not a file. Name a bundle (model.p4q), or leave --bundle out.\n"
    assert capsys.readouterr().err == expected


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json", "--backend", "onnxruntime"]) == 0
    subjects = {item["subject"] for item in json.loads(capsys.readouterr().out)["findings"]}
    assert {"Python", "CPU", "TensorRT", "Toolkit"} <= subjects
