"""The demo in small: two epochs, 120 test images. Built once for all tests here."""

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from p4q_edge.runtime.artifacts.card import card_path, read_card, write_card
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.storage.files import sha256_file

RECIPE = """
schema_version = 1
[model]
name = "demo"
[data]
train = "demo:digits"
shots = 4
test_limit = 120
templates = ["a photo of the {}."]
[learn]
epochs = 2
[export]
golden_samples = 4
"""


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P4Q_EDGE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipe.toml, demo.onnx, its card, demo.p4q and demo.run; not to be written to."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "recipe.toml").write_text(RECIPE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert (
            main(["build", "--recipe", str(folder / "recipe.toml"), "--engine", str(folder / "demo.onnx"), "-q"]) == 0
        )
    finally:
        torch.set_num_threads(threads)
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy of that folder for one test."""
    target = tmp_path / "work"
    shutil.copytree(built, target)
    return target


@pytest.fixture
def engine(folder: Path) -> Path:
    return folder / "demo.onnx"


@pytest.fixture
def double() -> Callable[[Path, str], None]:
    """Double one float32 initializer of an engine and let its card say that this is how it was built."""

    def change(engine: Path, name: str) -> None:
        model = onnx.load_model_from_string(engine.read_bytes())
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(2), name))
        engine.write_bytes(model.SerializeToString())
        card = read_card(engine)
        build = msgspec.structs.replace(card.build, optimized=None)
        card = msgspec.structs.replace(card, engine_sha256=sha256_file(engine), parts=(), build=build)
        assert card_path(engine).is_file()
        write_card(engine, card, force=True)

    return change
