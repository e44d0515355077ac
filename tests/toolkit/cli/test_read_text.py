"""`search` by any words: the text tower of the recipe's model reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from p4q_edge.cli.read_text import text_embedding
from p4q_edge.recipe import read_recipe
from p4q_edge.runtime.errors import ArtifactError, UsageError
from p4q_edge.stages import open_model


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of the built-in model."""
    path = tmp_path / "demo.toml"
    path.write_text('[model]\nname = "demo"\n\n[data]\ntrain = "photos"\n')
    return path


def test_words_become_what_the_text_tower_says(recipe: Path) -> None:
    model = open_model(read_recipe(recipe))
    found = text_embedding(recipe, "digit seven", weights_sha256=model.info.weights_sha256)
    with torch.no_grad():
        expected = model.clip.encode_text(model.tokenizer(["digit seven"]), normalize=True)[0].numpy()  # type: ignore[operator]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    other = text_embedding(recipe, "digit one", weights_sha256=model.info.weights_sha256)
    assert float(found @ other) < 0.999, "other words, another embedding"


def test_the_model_must_be_that_of_the_images(recipe: Path) -> None:
    with pytest.raises(ArtifactError, match="names the model demo .* Name the recipe that the engine was built from"):
        text_embedding(recipe, "digit seven", weights_sha256="f" * 64)
    with pytest.raises(UsageError, match="does not exist"):
        text_embedding(recipe.with_name("none.toml"), "digit seven", weights_sha256="")
