"""From bundle to classified picture with TensorRT, by the commands a user types; CUDA and TensorRT are doubles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from p4q_edge.runtime.artifacts import TensorRTBuild
from p4q_edge.runtime.artifacts.card import read_card
from p4q_edge.runtime.builders.tensorrt import builder as tensorrt_builder
from p4q_edge.runtime.cli.main import main


def test_build_selftest_and_classify(device: Any, tiny_bundle: Path, tmp_path: Path, picture: Any, capsys: Any) -> None:
    engine = tmp_path / "out.plan"
    assert main(["build", str(tiny_bundle), "--engine", str(engine), "--max-batch", "4", "--json"]) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["backend"] == "tensorrt"
    assert "INT8 plan: " in said.err
    rows = {line.split()[0] for line in said.err.splitlines() if " n=4" in line}
    assert rows == {"int8", "fp16"}
    assert "kept " in said.err
    card = read_card(engine)
    assert card.built_with["tensorrt"] == device.trt.__version__
    assert card.built_with["typing"] == "strong"
    assert isinstance(card.build, TensorRTBuild)
    assert set(card.build.inspection.rows) == {"int8", "fp16"}
    assert card.build.options.max_batch == 4
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.name.startswith(("out", "timing"))) == [
        ".cache",
        ".json",
        ".plan",
    ]
    assert main(["selftest", str(engine)]) == 0
    assert main(["inspect", str(engine)]) == 0
    image = tmp_path / "a.png"
    picture.save(image)
    assert main(["classify", str(engine), str(image)]) == 0
    assert device.cuda.leaks == {}


@pytest.mark.parametrize("fixed", [False, True])
def test_a_plan_that_takes_no_single_image_is_built_proved_and_used(
    device: Any, tiny_bundle: Path, tmp_path: Path, photo: Path, capsys: Any, fixed: bool
) -> None:
    if fixed:
        device.input_shape = (3, *device.input_shape[1:])
        device.io = {name: (dtype, (3, *shape[1:])) for name, (dtype, shape) in device.io.items()}
    engine = tmp_path / "out.plan"
    batches = ["--min-batch", "3", "--opt-batch", "3", "--max-batch", "3" if fixed else "4"]
    assert main(["build", str(tiny_bundle), "--engine", str(engine), *batches]) == 0, capsys.readouterr().err
    assert {row.batch for row in read_card(engine).build.inspection.rows.values()} == {3}
    assert main(["selftest", str(engine)]) == 0
    assert main(["classify", str(engine), str(photo)]) == 0
    assert main(["bench", str(engine), "--seconds", "0", "--json"]) == 0
    assert device.cuda.leaks == {}


def test_a_plan_that_was_changed_or_built_elsewhere_is_refused_with_exit_code_4(
    device: Any, tiny_bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    engine = tmp_path / "out.plan"
    assert main(["build", str(tiny_bundle), "--engine", str(engine), "-q"]) == 0
    device.trt.__version__ = "10.99.0"
    assert main(["selftest", str(engine)]) == 4
    assert "this device has TensorRT 10.99.0" in capsys.readouterr().err
    engine.write_bytes(b"changed")
    assert main(["selftest", str(engine)]) == 4


def test_the_dry_run_builds_nothing(device: Any, tiny_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["build", str(tiny_bundle), "--engine", str(tmp_path / "out.plan"), "--dry-run", "--json"]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["plans"] == ["int8", "fp16"]
    assert not (tmp_path / "out.plan").exists()


def test_ctrl_c_exits_with_130_and_leaves_no_file(
    device: Any, tiny_bundle: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorrt_builder, "run_worker", interrupted)
    folder = tmp_path / "build"
    assert main(["build", str(tiny_bundle), "--engine", str(folder / "out.plan")]) == 130
    assert list(folder.iterdir()) == []
