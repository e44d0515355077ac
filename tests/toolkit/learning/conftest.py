"""A prepared learning run on the toy model."""

from collections.abc import Callable
from pathlib import Path

import pytest
from learning_runs import source_of

from p4q_edge.models.load import LoadedModel
from p4q_edge.runtime.images.image_set import ImageSet
from p4q_edge.stages.pipeline import Prepared, prepare
from p4q_edge.stages.run_files import RunFiles


@pytest.fixture
def prepared(toy_clip: LoadedModel, toy_images: Callable[[int], ImageSet], tmp_path: Path) -> Prepared:
    return prepare(source_of(toy_clip, toy_images(12)), RunFiles(folder=tmp_path / "run"))
