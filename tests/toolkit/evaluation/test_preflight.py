"""Images of a validation are decoded before its reference is learned: what is wrong with them is one list."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from p4q_edge.evaluation import torch_reference
from p4q_edge.recipe import Recipe
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.evaluation import ValidateRequest
from p4q_edge.runtime.images import PreprocessSpec, draw_subset

RECIPE = 'schema_version = 1\n[model]\nname = "demo"\n[data]\ntrain = "photos"\nshots = 2\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of two classes, and beside its images others of them, of no class, and with captions."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["photos/a", "photos/b", "data/a", "data/b", "other"]):
        Path(name).mkdir(parents=True)
        for shade in range(3):
            Image.new("RGB", (8, 8), (40 * number, 80 * shade, 9)).save(f"{name}/{shade}.png")
    Path("pairs.csv").write_text("path,caption\nother/0.png,one\nother/2.png,two\n")
    Path("recipe.toml").write_text(RECIPE)
    return tmp_path


def referred(*, limit: int = 0, data: str = "data") -> None:
    """Open PyTorch's reference for an engine of these classes."""
    card = SimpleNamespace(
        class_names=("a", "b"), preprocess=PreprocessSpec(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    )
    subject: Any = SimpleNamespace(card=card, bundle=None)
    request = ValidateRequest(
        engine=Path("out.onnx"),
        reference=Path("recipe.toml"),
        data=data,
        ood=Path("other"),
        pairs=Path("pairs.csv"),
        limit=limit,
    )
    torch_reference.reference_for(request, subject)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Recipes whose model was asked for; none is loaded."""
    seen: list[Recipe] = []

    def opened(recipe: Recipe, split: object = None) -> None:
        assert split is not None, "the recipe's images would be listed again"
        seen.append(recipe)
        raise UsageError("enough")

    monkeypatch.setattr(torch_reference, "open_source", opened)
    return seen


def test_every_damaged_image_is_told_of_before_a_model_is_loaded(here: Path, loaded: list[Recipe]) -> None:
    for name in ("photos/a/1.png", "data/b/0.png", "other/2.png"):
        Path(name).write_bytes(f"no image {name}".encode())
    with pytest.raises(UsageError) as raised:
        referred()
    assert str(raised.value).startswith(f"4 problems were found before anything was run: (1) {here / 'photos/a/1.png'}")
    assert [str(raised.value).count(name) for name in ("data/b/0.png", "other/2.png")] == [1, 2]
    assert not loaded


def test_an_image_of_the_recipe_and_of_data_is_told_of_once(here: Path, loaded: list[Recipe]) -> None:
    Path("recipe.toml").write_text(f'{RECIPE}test = "data"\n')
    Path("data/b/0.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"^[^;]*data/b/0\.png[^;]*$"):
        referred()
    Path("data/a/0.png").write_bytes(b"no image either")
    with pytest.raises(UsageError, match=r"^2 problems were found before anything was run: \(1\) [^;]*data/a/0\.png"):
        referred()
    assert not loaded


def test_other_problems_stand_in_the_same_list(here: Path, loaded: list[Recipe]) -> None:
    Path("data/b").rename("data/c")
    Path("other/1.png").write_bytes(Path("photos/a/0.png").read_bytes())
    Path("pairs.csv").write_text("path,caption\nother/9.png,one\n")
    with pytest.raises(UsageError) as raised:
        referred()
    message = str(raised.value)
    assert message.startswith("3 problems were found before anything was run: (1) data has the class 'c'")
    assert "1 of 3 images is labelled with a class too, the first is other/1.png" in message
    assert "pairs.csv, line 2: other/9.png does not exist" in message
    assert not loaded


def test_sound_images_are_opened_once_and_the_model_is_loaded(here: Path, loaded: list[Recipe]) -> None:
    with pytest.raises(UsageError, match=r"^enough$"):
        referred()
    assert len(loaded) == 1


def test_images_that_a_limit_leaves_out_are_not_decoded(here: Path, loaded: list[Recipe]) -> None:
    files = sorted(Path("data").rglob("*.png"))
    (drawn,) = draw_subset(len(files), 1, seed=ValidateRequest(engine=Path("out.onnx")).seed)
    for index, file in enumerate(files):
        if index != drawn:
            file.write_bytes(f"no image {index}".encode())
    with pytest.raises(UsageError, match=r"^enough$"):
        referred(limit=1)
    files[drawn].write_bytes(b"no image")
    with pytest.raises(UsageError, match=rf"^{files[drawn]} "):
        referred(limit=1)
