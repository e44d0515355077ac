"""Calibrating a head: images that were learned from are left out, also where the bundle is not named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime.artifacts.manifest import DataIndex, LearnedImage
from p4q_edge.runtime.builders.build import build_engine
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.errors import IncompatibleEngineError, InputError
from p4q_edge.runtime.storage.files import sha256_file


def test_images_of_one_class_are_refused_before_the_engine_runs(
    tiny_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("p4q_edge.runtime.classification.head_calibration.load_engine", None)
    for index in range(12):
        path = tmp_path / "labelled" / "circle" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(path)
    assert main(["head", "calibrate", str(tiny_engine), str(tmp_path / "labelled"), "-q"]) == InputError.exit_code
    err = capsys.readouterr().err
    assert "expected at least 10 images of two or more classes to calibrate with, got 12 of 1. Add images." in err


def test_the_bundle_beside_the_engine_tells_what_was_learned_from(
    rebundle: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(1)
    for index in range(24):
        path = tmp_path / "labelled" / ("circle", "square", "triangle")[index % 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    learned = LearnedImage(name="23.png", label=2, sha256=sha256_file(path))
    bundle = rebundle(data_index=DataIndex(learned=(learned,)))
    build_engine(bundle, tmp_path / "out.onnx")
    command = ["head", "calibrate", str(tmp_path / "out.onnx"), str(tmp_path / "labelled"), "--json", "-q"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 23
    bundle.unlink()
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 24
    rebundle(data_index=DataIndex(learned=()))
    assert main([*command, "--bundle", str(bundle)]) == IncompatibleEngineError.exit_code
