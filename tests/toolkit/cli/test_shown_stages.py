"""What takes seconds and says nothing by itself is shown: the libraries, the model, the tracing of the graph."""

from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from heard import Heard
from PIL import Image

from p4q_edge.cli import from_recipe, team_work
from p4q_edge.graph import export
from p4q_edge.recipe.schema import DataSection, ModelSection, Recipe
from p4q_edge.runtime.cli.command import LOADING, loaded
from p4q_edge.runtime.errors import QualityGateError
from p4q_edge.runtime.progress import listening
from p4q_edge.stages.source import open_source


def test_loading_the_toolkit_is_shown() -> None:
    with listening(heard := Heard()):
        assert loaded(EntryPoint(name="path", value="pathlib:Path", group="any")) is Path
    assert heard.finished == [LOADING]


def test_loading_torch_is_shown_before_the_stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = Recipe(model=ModelSection(name="demo"), data=DataSection(train="photos"))
    with listening(heard := Heard()):
        monkeypatch.setattr(team_work, "learned", lambda *_, **__: [*heard.finished])
        assert from_recipe.run_stages(recipe, tmp_path) == [LOADING]


def test_opening_model_and_images_is_shown(tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for index in range(2):
            Image.new("RGB", (8, 8), (100 * label, index, 9)).save(tmp_path / name / f"{index}.png")
    recipe = Recipe(model=ModelSection(name="demo"), data=DataSection(train=str(tmp_path), shots=0))
    with listening(heard := Heard()):
        open_source(recipe)
    assert heard.finished == ["load"]


def test_tracing_is_shown_before_graphs_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise QualityGateError("far enough")

    monkeypatch.setattr(export, "_stored_graphs", stop)
    with listening(heard := Heard()), pytest.raises(QualityGateError):
        export.export_classifier(torch.nn.Linear(2, 2), np.zeros((1, 3, 8, 8), np.uint8))
    assert heard.finished == ["trace the graph"]
