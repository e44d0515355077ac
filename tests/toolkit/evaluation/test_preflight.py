"""Images of a validation are decoded before its reference is learned: what is wrong with them is one list."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from heard import Heard
from PIL import Image

from p4q_edge.data import Split
from p4q_edge.evaluation import captioned, preflight, torch_reference
from p4q_edge.recipe import Recipe, read_recipe
from p4q_edge.runtime.errors import IncompatibleEngineError, InputError, UsageError
from p4q_edge.runtime.evaluation import Reference, ValidateRequest
from p4q_edge.runtime.evaluation.trials import check_trials
from p4q_edge.runtime.images import PreprocessSpec, draw_subset, image_set
from p4q_edge.runtime.progress import listening
from p4q_edge.runtime.storage import sha256_file

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


SPEC = PreprocessSpec(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
ASKED = ValidateRequest(
    engine=Path("out.onnx"), reference=Path("recipe.toml"), data="data", ood=Path("other"), pairs=Path("pairs.csv")
)


def referred(request: ValidateRequest = ASKED, *, classes: tuple[str, ...] = ("a", "b")) -> Reference:
    """Open PyTorch's reference for an engine of these classes."""
    subject: Any = SimpleNamespace(card=SimpleNamespace(class_names=classes, preprocess=SPEC), bundle=None)
    return torch_reference.reference_for(request, subject)


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
        referred(replace(ASKED, limit=1))
    files[drawn].write_bytes(b"no image")
    with pytest.raises(UsageError, match=rf"^{files[drawn]} "):
        referred(replace(ASKED, limit=1))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"ood": Path("other")}, "--ood compares with labelled images, and there are none. Name some with --data"),
        ({"corruptions": True}, "--corruptions compares with labelled images, and there are none"),
        ({"max_top1_drop": 1.0}, "--max-top1-drop compares with the full-precision model on labelled images"),
    ],
)
def test_what_needs_images_to_test_on_is_refused_where_all_are_learned_from(
    here: Path, loaded: list[Recipe], asked: dict[str, Any], said: str
) -> None:
    Path("recipe.toml").write_text(RECIPE.replace("shots = 2", "shots = 0"))
    request = ValidateRequest(engine=Path("out.onnx"), reference=Path("recipe.toml"))
    with pytest.raises(UsageError, match=f"^{said}"):
        referred(replace(request, **asked))
    assert not loaded
    with pytest.raises(UsageError, match=r"^enough$"):
        referred(request)


def test_a_model_that_was_learned_from_all_that_is_left_to_test_on_is_told_first(
    here: Path, loaded: list[Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a bundle that was learned with more shots than this recipe says."""
    every = frozenset(sha256_file(file) for file in Path("photos").rglob("*.png"))
    monkeypatch.setattr(preflight, "learned_digests", lambda _: every)
    with pytest.raises(UsageError, match="the model was learned from all of .*photos, not learned from, 2 images"):
        referred(ValidateRequest(engine=Path("out.onnx"), reference=Path("recipe.toml")))
    assert not loaded


def test_too_many_captions_are_refused_before_anything_is_learned(
    here: Path, loaded: list[Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captioned, "MAX_COMPARED", 3)
    with pytest.raises(UsageError, match="--pairs pairs.csv: expected at most 3 comparisons"):
        referred()
    assert not loaded


def test_a_recipe_of_other_classes_is_refused_before_an_image_is_decoded(
    here: Path, loaded: list[Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    monkeypatch.setattr(image_set, "load_image", lambda path: opened.append(path))
    with pytest.raises(
        IncompatibleEngineError, match=r"out\.onnx was not built from recipe\.toml: its model or its cl"
    ):
        referred(classes=("a", "c"))
    assert not opened
    assert not loaded


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Stands for the model and what is learned; counts how often each file is decoded."""
    count: Counter[str] = Counter()
    load = image_set.load_image

    def counted(path: Path) -> Image.Image:
        count[str(path.relative_to(Path.cwd()) if path.is_absolute() else path)] += 1
        return load(path)

    def opened(recipe: Recipe, split: Split) -> Any:
        model = SimpleNamespace(
            preprocess=SPEC, info=SimpleNamespace(weights_sha256=""), tokenizer=None, clip=SimpleNamespace()
        )
        return SimpleNamespace(recipe=recipe, split=split, class_names=("a", "b"), model=model, train_digests=())

    monkeypatch.setattr(image_set, "load_image", counted)
    monkeypatch.setattr(torch_reference, "open_source", opened)
    monkeypatch.setattr(torch_reference, "prepare", lambda *_: None)
    monkeypatch.setattr(torch_reference, "learn_stage", lambda *_: SimpleNamespace(classifier=None))
    monkeypatch.setattr(torch_reference, "compare_linears", lambda *_: ())
    monkeypatch.setattr(captioned, "cut_texts", lambda *_: ())
    monkeypatch.setattr(captioned, "encoder_of", lambda _: None)
    monkeypatch.setattr(captioned, "encode_texts", lambda _, __, texts: torch.eye(len(texts)))
    return count


def _all(images: Any) -> Any:
    return images[slice(0, len(images))]


def subject_of() -> Any:
    """The engine of the model that stands for one in `learned`."""
    model = SimpleNamespace(weights_sha256="")
    card = SimpleNamespace(class_names=("a", "b"), preprocess=SPEC, model=model, as_cpu_graph=True)
    return SimpleNamespace(card=card, bundle=None)


def test_images_of_data_ood_and_pairs_are_decoded_once(here: Path, learned: Counter[str]) -> None:
    found = torch_reference.reference_for(ASKED, subject_of())
    of_no_class = check_trials(ASKED, found.images, spec=SPEC, checked=found.of_no_class)
    assert of_no_class is not None
    assert found.images is not None
    assert found.captioned is not None
    for _ in range(2):
        assert [len(_all(images)) for images in (found.images.pixels, of_no_class.pixels)] == [6, 3]
        assert len(_all(found.captioned.pixels)) == 2
    assert {name: times for name, times in learned.items() if name.startswith("data")} == {
        f"data/{name}/{shade}.png": 1 for name in "ab" for shade in range(3)
    }
    # Two of them are images of both, which are kept for each.
    assert [learned[f"other/{shade}.png"] for shade in range(3)] == [2, 1, 2]


@pytest.fixture
def finished(learned: Counter[str], monkeypatch: pytest.MonkeyPatch) -> ValidateRequest:
    """Asks for a validation beside a finished run."""
    Path("out.run").mkdir()
    (Path("out.run") / "recipe.toml").write_text(RECIPE.replace("photos", "../photos"))
    monkeypatch.setattr(torch_reference, "restore_classifier", lambda *_: SimpleNamespace())
    return replace(ASKED, reference=None)


@pytest.mark.usefixtures("here")
def test_one_bar_is_for_all_images_beside_a_finished_run_too(finished: ValidateRequest) -> None:
    heard = Heard()
    with listening(heard):
        found = torch_reference.reference_for(finished, subject_of())
    assert heard.finished == ["check images"]
    assert len(heard.updates) == 1 + 6 + 3 + 2
    assert found.decoded
    assert found.of_no_class is not None
    assert found.captioned is not None


@pytest.mark.parametrize(("name", "option"), [("other/2.png", "--pairs pairs.csv"), ("data/a/0.png", "data")])
@pytest.mark.usefixtures("here")
def test_damaged_images_beside_a_finished_run_are_named_before_the_text_tower_runs(
    finished: ValidateRequest, monkeypatch: pytest.MonkeyPatch, name: str, option: str
) -> None:
    read: list[str] = []
    monkeypatch.setattr(captioned, "encode_texts", lambda *_: read.append("texts"))
    Path(name).write_bytes(b"no image")
    with pytest.raises(InputError, match=rf"{option}: 1 of . images cannot be read: .*{name}"):
        torch_reference.reference_for(finished, subject_of())
    assert not read


@pytest.mark.usefixtures("here", "learned")
def test_captions_without_a_run_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--pairs needs the text tower of the model, and no run folder out\.run says"):
        torch_reference.reference_for(replace(ASKED, reference=None), subject_of())


def test_what_is_kept_beside_learning_has_the_room_of_one_set(
    here: Path, learned: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "MAX_CACHED_BYTES", 8 * 3 * 8 * 8)
    subject: Any = SimpleNamespace(card=SimpleNamespace(class_names=("a", "b"), preprocess=SPEC), bundle=None)
    recipe = read_recipe(Path("recipe.toml"))
    checked = preflight.check_before_learning(ASKED, subject, recipe, Path("recipe.toml"))
    assert checked.images is not None
    assert checked.of_no_class is not None
    assert checked.captions is not None
    sets = (checked.images.pixels, checked.of_no_class.pixels, checked.captions.pixels)
    assert [len(one._kept) for one in sets] == [6, 2, 0]  # type: ignore[attr-defined]
    checked.keep_decoded()
    for one in sets:
        _all(one)
    assert [len(one._kept) for one in sets] == [6, 3, 2]  # type: ignore[attr-defined]


def test_one_bar_is_for_all_images_that_are_looked_at(here: Path, loaded: list[Recipe]) -> None:
    heard = Heard()
    with listening(heard), pytest.raises(UsageError, match=r"^enough$"):
        referred()
    assert heard.finished.count("check images") == 1
    assert [name for name, _ in heard.updates].count("check images") == 1 + 6 + 6 + 3 + 2
