"""INT8 or FP16 for TensorRT for RTX: a contest where the GPU is here, and a word on the card where it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from p4q_edge.runtime.artifacts import Card, read_card
from p4q_edge.runtime.builders.tensorrt import ahead_of_time
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.errors import EnvironmentNotAbleError
from p4q_edge.runtime.verification import selftest

from doubles.rtx import RtxDouble

NO_GPU = "no CUDA driver is installed. Run `p4q-edge doctor`, or build for the CPU."


@pytest.fixture
def no_gpu(desktop_device: RtxDouble, monkeypatch: pytest.MonkeyPatch) -> RtxDouble:
    def refuse() -> Any:
        raise EnvironmentNotAbleError(NO_GPU)

    monkeypatch.setattr(ahead_of_time, "open_cuda", refuse)
    return desktop_device


def build(bundle: Path, folder: Path, *options: str) -> Card:
    assert main(["build", str(bundle), "--engine", str(folder / "out.rtx"), *options]) == 0
    return read_card(folder / "out.rtx")


def test_where_the_gpu_is_both_are_built_and_measured(
    desktop_device: RtxDouble, tiny_bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    card = build(tiny_bundle, tmp_path, "--opt-batch", "2", "--prefer", "size")
    gpu = desktop_device.cuda.facts.name
    inspection = card.build.inspection
    assert set(inspection.rows) == {"int8", "fp16"}
    assert [row.batch for row in inspection.rows.values()] == [2, 2]
    assert inspection.choice.kept == "int8"
    assert inspection.ratio is not None
    assert card.built_with["gpu"] == gpu
    assert card.measured.golden.samples == inspection.rows["int8"].samples
    said = capsys.readouterr().err
    assert f"On {gpu} it passed its golden samples; kept int8: the smaller plan, as asked for; INT8 is" in said
    assert desktop_device.cuda.leaks == {}
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "out.rtx"))) == [
        "out.rtx",
        "out.rtx.json",
    ]


def test_fp16_is_kept_with_samples_of_its_own(
    desktop_device: RtxDouble, tiny_bundle: Path, tmp_path: Path, photo: Path
) -> None:
    card = build(tiny_bundle, tmp_path, "--precision", "fp16")
    assert (card.precision.weight_bits, card.built_with["precision"]) == (16, "fp16")
    assert card.build.inspection.choice.reason == "the only plan that was asked for"
    assert selftest(tmp_path / "out.rtx").problem() is None
    assert main(["classify", str(tmp_path / "out.rtx"), str(photo)]) == 0


def test_what_computes_otherwise_is_not_kept(
    desktop_device: RtxDouble, tiny_bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    right = desktop_device.compute
    desktop_device.compute = lambda image: {name: -values for name, values in right(image).items()}
    assert main(["build", str(tiny_bundle), "--engine", str(tmp_path / "a" / "out.rtx")]) == 5
    assert "no plan computes what the reference computes" in capsys.readouterr().err
    assert list((tmp_path / "a").iterdir()) == []


def test_without_a_gpu_int8_is_compiled_and_the_card_says_why_alone(
    no_gpu: RtxDouble, tiny_bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    card = build(tiny_bundle, tmp_path)
    reason = "not measured, and FP16 not built: no CUDA driver is installed"
    assert card.build.inspection.choice.reason == reason
    assert (card.build.inspection.rows, card.measured, card.build.built_with.gpu) == ({}, None, "")
    assert f"It was not run here ({reason}); the first load on an RTX GPU proves it" in capsys.readouterr().err
    assert "execute" not in " ".join(no_gpu.calls)
    assert main(["build", str(tiny_bundle), "--engine", str(tmp_path / "o.rtx"), "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["plans"], document["keeps"]) == (["int8"], "int8: no CUDA driver is installed")


def test_a_gpu_that_the_engine_is_not_for_measures_nothing(
    desktop_device: RtxDouble, tiny_bundle: Path, tmp_path: Path
) -> None:
    card = build(tiny_bundle, tmp_path, "--capability", "12.0")
    facts = desktop_device.cuda.facts
    assert card.build.inspection.choice.reason == (
        f"not measured, and FP16 not built: {facts.name} (compute capability {facts.compute_capability}) is none of "
        "the GPUs that it is for"
    )


def test_fp16_needs_a_gpu_that_proves_it(no_gpu: RtxDouble, tiny_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["build", str(tiny_bundle), "--engine", str(tmp_path / "out.rtx"), "--precision", "fp16"]) == 3
    assert (
        "an FP16 engine is proved by what it computes on its GPU when it is built, and no CUDA driver is installed. "
        "Build it there, or leave out --precision fp16 for an INT8 engine"
    ) in capsys.readouterr().err
    assert not (tmp_path / "out.rtx").exists()
