"""From bundle to answers with TensorRT for RTX by the commands that a user types, on the double."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from p4q_edge.runtime.artifacts.card import read_card
from p4q_edge.runtime.builders.tensorrt.inspection import summarize_inspection
from p4q_edge.runtime.builders.tensorrt.kernel_list import read_kernel_list
from p4q_edge.runtime.cli.main import main

from doubles.rtx import KERNELS, VERSION, RtxDouble


def test_build_selftest_validate_bench_and_classify(
    desktop_device: RtxDouble, tiny_bundle: Path, tmp_path: Path, photo: Path, capsys: Any, caplog: Any
) -> None:
    engine = tmp_path / "out.rtx"
    with caplog.at_level(logging.WARNING):
        options = ["--max-batch", "4", "--precision", "int8"]
        assert main(["build", str(tiny_bundle), "--engine", str(engine), *options]) == 0
    said = capsys.readouterr().err
    assert "out.rtx is experimental: its authors ran no engine of this kind on an RTX GPU" in said
    assert "It was not run here (the only one that was asked for; not measured); the first load" in said
    assert "open_cuda" not in desktop_device.calls, "a build needs no GPU"
    card = read_card(engine)
    assert card.backend == "tensorrt-rtx"
    assert card.built_with["tensorrt_rtx"] == VERSION
    assert card.built_with["compute_capability"] == "8.0+"
    assert card.built_with["batches"] == "1,1,4"
    assert card.measured is None
    assert card.precision.weight_bits == 8
    assert (card.build.inspection.kernels, card.build.inspection.int8_share) == (2, 1.0)
    assert card.build.inspection.io["image"] == "uint8"
    assert main(["selftest", str(engine)]) == 0
    assert main(["validate", str(engine), "--force"]) == 0
    assert main(["bench", str(engine), "--seconds", "0", "--batch", "1,4"]) == 0
    assert main(["classify", str(engine), str(photo)]) == 0
    assert main(["inspect", str(engine)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("out.rtx")) == [
        "out.rtx",
        "out.rtx.json",
    ]
    assert desktop_device.calls.count("compile kernels") == 1
    assert desktop_device.cuda.leaks == {}


def test_an_engine_that_computes_otherwise_is_refused_when_it_is_first_loaded(
    desktop_device: RtxDouble, tiny_bundle: Path, tmp_path: Path, photo: Path, capsys: Any
) -> None:
    engine = tmp_path / "out.rtx"
    assert main(["build", str(tiny_bundle), "--engine", str(engine), "-q", "--precision", "int8"]) == 0
    right = desktop_device.compute
    desktop_device.compute = lambda image: {name: -values for name, values in right(image).items()}
    assert main(["classify", str(engine), str(photo)]) == 5
    assert "computes wrong values here" in capsys.readouterr().err


def test_capabilities_are_those_that_were_asked_for(
    desktop_device: RtxDouble, tiny_bundle: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "out.rtx"
    options = ["--capability", "8.6", "--capability", "12.0", "--optimization-level", "4", "--precision", "int8"]
    assert main(["build", str(tiny_bundle), "--engine", str(engine), *options]) == 0
    config: Any = desktop_device.configs[-1]
    assert (config.num_compute_capabilities, config._capabilities) == (2, {0: "SM86", 1: "SM120"})
    assert config.builder_optimization_level == 4
    card = read_card(engine)
    assert card.built_with["compute_capability"] == "8.6,12.0"
    assert card.build.options.capabilities == ("8.6", "12.0")


@pytest.mark.parametrize(
    ("engine", "options", "code", "message"),
    [
        (
            "o.rtx",
            ["--capability", "8.7"],
            2,
            "expected compute capabilities of 7.5, 8.0, 8.6, 8.9, 12.0, 12.1, got 8.7",
        ),
        ("o.rtx", ["--capability", "Ada"], 2, "expected a compute capability as 8.6, got 'Ada'"),
        ("o.rtx", ["--typing", "weak", "--gpu", "0"], 2, "--typing, --gpu has no effect on o.rtx, an engine of"),
        ("o.rtx", ["--cpu-profile", "fast"], 2, "--cpu-profile has no effect on o.rtx"),
        ("o.plan", ["--capability", "8.6"], 2, "--capability has no effect on o.plan, a TensorRT engine"),
        ("o.onnx", ["--capability", "8.6"], 2, "--capability has no effect on o.onnx, an engine for CPUs"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    desktop_device: RtxDouble, tiny_bundle: Path, capsys: Any, engine: str, options: list[str], code: int, message: str
) -> None:
    found = main(["build", str(tiny_bundle), "--engine", engine, *options])
    assert message in capsys.readouterr().err
    assert found == code


def test_a_failed_build_leaves_nothing(
    desktop_device: RtxDouble, tiny_bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    desktop_device.build_failures = ["Unsupported layer"]
    assert main(["build", str(tiny_bundle), "--engine", str(tmp_path / "a" / "out.rtx")]) == 1
    assert f"TensorRT for RTX {VERSION} built no plan: Unsupported layer" in capsys.readouterr().err
    assert list((tmp_path / "a").iterdir()) == []


def test_without_the_library_the_build_names_the_command(
    desktop_device: RtxDouble, tiny_bundle: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    assert main(["build", str(tiny_bundle), "--engine", str(tmp_path / "out.rtx")]) == 3
    assert "pip install './runtime[tensorrt-rtx]'" in capsys.readouterr().err


def test_the_dry_run_builds_nothing(desktop_device: RtxDouble, tiny_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["build", str(tiny_bundle), "--engine", str(tmp_path / "out.rtx"), "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["backend"], document["experimental"]) == ("tensorrt-rtx", True)
    assert document["compute_capabilities"] == ["8.0+"]
    assert document["tensorrt_rtx"] == VERSION
    assert document["plans"] == ["int8", "fp16"]
    assert document["keeps"] == f"the better by speed, measured on {desktop_device.cuda.facts.name}"
    assert list(tmp_path.iterdir()) == []


def test_the_kernel_list_is_read_as_the_inspector_writes_it() -> None:
    first, second = read_kernel_list(KERNELS)
    assert first == {
        "Name": "__myl_Cast_myl0_0",
        "LayerType": "kgen",
        "Inputs": [{"Name": "image", "Dimensions": [-1, 3, 4, 4], "Datatype": "UInt8"}],
        "Constants": [],
        "Outputs": [{"Name": "a", "Dimensions": [-1, 8], "Datatype": "Int8"}],
    }
    assert second["Inputs"] == [{"Name": "a", "Dimensions": [-1, 8], "Datatype": "Int8"}]
    assert read_kernel_list(
        "Layers:\nName: x, LayerType: wait, Inputs: [], Constants: [], Outputs: [], TacticName: \n"
    ) == [{"Name": "x", "LayerType": "wait", "Inputs": [], "Constants": [], "Outputs": []}]
    assert read_kernel_list("nothing of the kind") == []


def test_products_that_read_int4_weights_are_told_as_such() -> None:
    """A line of TensorRT for RTX 1.7.1, shortened."""
    line = (
        "Name: __myl_ReplCastMulCastFc_myl0_2, LayerType: runtime_fusion, Inputs: [ { Name: x, Dimensions: [-1,768], "
        "Strides: [768,1], Datatype: Half, Format: (Linear) Row major linear format }], Constants: [ { Name: s, "
        "Dimensions: [6,3072], Datatype: Half }, { Name: w, Dimensions: [768,3072], Datatype: Int4 }], Outputs: "
        "[ { Name: y, Dimensions: [-1,3072], Datatype: Half }], TacticName: t, StreamId: 0"
    )
    (layer,) = read_kernel_list(line)
    assert [tensor["Datatype"] for tensor in layer["Constants"]] == ["Half", "Int4"]
    found = summarize_inspection({"Layers": [layer], "I/O Tensors": []})
    assert (found["gemms"], found["gemm_share"]) == ({"int4": 1}, {"int4": 1.0})
