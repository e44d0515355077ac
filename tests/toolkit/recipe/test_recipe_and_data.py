"""Recipes and labelled images: every source, and what bad input is told."""

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from p4q_edge.data.augmentation import augment
from p4q_edge.data.few_shot import few_shot, make_split
from p4q_edge.data.image_set import ImageSet, pixels
from p4q_edge.data.readers import read_class_prompts, read_images, read_split, read_words
from p4q_edge.recipe.schema import DataSection, LearnSection, ModelSection, QuantizationSection, Recipe
from p4q_edge.recipe.toml import parse_recipe, read_recipe, to_toml
from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.images.preprocessing import PreprocessSpec

MINIMAL = {"model": {"name": "ViT-B-32"}, "data": {"train": "photos"}}


# --- recipes


def test_a_minimal_recipe_gets_the_defaults() -> None:
    recipe = parse_recipe(MINIMAL, source="x.toml")
    assert recipe.learn == LearnSection()
    assert recipe.quantization.scheme().label == "W8A8"


@given(
    st.builds(
        Recipe,
        seed=st.integers(0, 99),
        model=st.builds(ModelSection, name=st.text("abc-\"\\'é", min_size=1), quick_gelu=st.none() | st.booleans()),
        data=st.builds(
            DataSection, train=st.just("/a"), class_names=st.lists(st.text(max_size=5), max_size=3).map(tuple)
        ),
        learn=st.builds(
            LearnSection, residual_ratio=st.floats(0.01, 0.99), epochs=st.integers(1, 9), flip=st.booleans()
        ),
        quantization=st.builds(QuantizationSection, weight_bits=st.integers(2, 8), keep_float=st.just(("a.*",))),
    )
)
def test_toml_gives_the_same_recipe_back(recipe: Recipe) -> None:
    import tomllib

    assert parse_recipe(tomllib.loads(to_toml(recipe)), source="x") == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lern": {}}, "x.toml: unknown key 'lern'; did you mean 'learn'?"),
        ({"lern": {}, "learn": {"epoch": 3}}, "'lern'; did you mean 'learn'.*unknown key 'learn.epoch'"),
        ({"learn": {"epoch": 3}}, "x.toml: unknown key 'learn.epoch'; did you mean 'learn.epochs'?"),
        ({"learn": {"epochs": "three"}}, r"x.toml: Expected `int`, got `str` - at `\$.learn.epochs`"),
        ({"learn": {"epochs": -1}}, "x.toml: epochs must not be negative, got -1"),
        ({"learn": {"steps": 0}}, "x.toml: steps must be at least 1, got 0"),
        ({"learn": {"residual_ratio": 1.0}}, "residual_ratio must be between 0 and 1, got 1.0"),
        ({"learn": {"context_init": ""}}, "num_context_tokens must be at least 1 when context_init is empty"),
        ({"quantization": {"observer": "best"}}, "Invalid enum value 'best'"),
        ({"schema_version": 2}, "Invalid enum value 2"),
    ],
)
def test_wrong_recipes_say_what_is_wrong(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_recipe(MINIMAL | change, source="x.toml")


def test_recipes_that_are_no_toml_or_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist; `p4q-edge build --print-config`"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[model\n")
    with pytest.raises(UsageError, match=r"bad\.toml is not TOML"):
        read_recipe(tmp_path / "bad.toml")


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "p4q.toml").write_text(
        '[model]\nname = "ViT-B-32"\npretrained = "w.pt"\n[data]\ntrain = "photos"\nclass_names = "names.txt"\n'
    )
    recipe = read_recipe(tmp_path / "p4q.toml")
    assert recipe.data.train == str(tmp_path / "photos")
    assert recipe.data.class_names == str(tmp_path / "names.txt")
    assert recipe.model.pretrained == str(tmp_path / "w.pt")


def test_every_key_of_a_recipe_is_read_somewhere(repository: Path) -> None:
    """A field that no code outside its own record mentions would change nothing."""
    sources = {path: path.read_text() for path in (repository / "p4q_edge").rglob("*.py")}
    own = sources.pop(repository / "p4q_edge" / "recipe" / "schema.py")
    used_by_scheme = QuantizationSection().scheme().__dataclass_fields__
    for section in (ModelSection, DataSection, QuantizationSection, LearnSection):
        for field in msgspec.structs.fields(section):
            read = any(f".{field.name}" in text for text in sources.values())
            assert read or field.name in used_by_scheme or own.count(f"self.{field.name}"), field.name


# --- images


def _photo(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (value, 10, 200 - value)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label, name in enumerate(("cat", "dog")):
        for i in range(4):
            _photo(tmp_path / "photos" / name / f"{i}.png", 40 * label + i)
    return tmp_path / "photos"


def test_class_folders(folder: Path) -> None:
    images = read_images(str(folder))
    assert images.class_names == ("cat", "dog")
    assert images.labels.tolist() == [0] * 4 + [1] * 4
    assert images.names[5] == "dog/1.png"
    assert images.open_image(5).getpixel((0, 0))[0] == 41


def test_tables_agree_with_folders(folder: Path) -> None:
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        table = folder / f"table{suffix}"
        with table.open("w", newline="") as stream:
            writer = csv.writer(stream, delimiter=delimiter)
            writer.writerow(["path", "label"])
            writer.writerows([f"{name}/{i}.png", name] for name in ("cat", "dog") for i in range(4))
        images = read_images(str(table))
        assert images.digests() == read_images(str(folder)).digests()
        assert images.class_names == ("cat", "dog")


def test_arrays(tmp_path: Path) -> None:
    arrays = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", images=arrays, labels=np.array([0, 1, 0, 1, 0, 1]), class_names=np.array(["a", "b"]))
    images = read_images(str(tmp_path / "d.npz"))
    assert images.class_names == ("a", "b")
    assert np.array_equal(np.asarray(images.open_image(3)), arrays[3])


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    objects = np.array([{"a": 1}, None], dtype=object)
    np.savez(tmp_path / "d.npz", images=objects, labels=np.zeros(2), class_names=objects)
    with pytest.raises(InputError, match="no pickles"):
        read_images(str(tmp_path / "d.npz"))


def _tar(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def _png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), value).save(stream, "PNG")
    return stream.getvalue()


def test_webdataset_tars(tmp_path: Path) -> None:
    members = {"b.png": _png(1), "b.cls": b"1", "a.png": _png(2), "a.cls": b"0\n", "classnames.txt": b"cat\nbig dog\n"}
    images = read_images(_tar(tmp_path / "d.tar", members))
    assert images.names == ("a", "b")
    assert images.labels.tolist() == [0, 1]
    assert images.class_names == ("cat", "big dog")
    assert images.open_image(1).getpixel((0, 0)) == 1


def test_the_demo_digits() -> None:
    images = read_images("demo:digits")
    assert len(images) == 1797
    assert images.class_names[3] == "digit three"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: str(p / "nowhere"), UsageError, "does not exist; name a folder of class folders"),
        (lambda p: _write(p / "d.bin", b""), UsageError, r"has suffix '\.bin'; expected a folder"),
        (lambda p: str(_mkdir(p / "empty")), InputError, "has no class folders"),
        (lambda p: str(_mkdir(p / "one" / "cat").parent), InputError, "cat has no images"),
        (lambda p: _write(p / "d.csv", b""), InputError, "has no rows"),
        (lambda p: _write(p / "d.csv", b"a.png\n"), InputError, "line 1: expected path and label"),
        (
            lambda p: _write(p / "d.csv", b"a.png,cat\n"),
            InputError,
            r"line 1: .*a\.png does not exist; paths are relative",
        ),
        (lambda p: _write(p / "d.npz", b"x"), InputError, "needs arrays images, labels and class_names"),
        (lambda p: _write(p / "d.tar", b"x" * 600), InputError, "is not an uncompressed webdataset tar"),
        (lambda p: _tar(p / "d.tar", {"a.png": _png(0)}), InputError, r"every KEY\.jpg needs a KEY\.cls"),
        (lambda p: _tar(p / "d.tar", {"a.png": _png(0), "a.cls": b"x"}), InputError, "uncompressed webdataset tar"),
    ],
)
def test_sources_that_cannot_be_used(
    tmp_path: Path, make: Callable[[Path], str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_images(make(tmp_path))


def _write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def _mkdir(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def test_labels_beyond_the_class_names(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "d.npz",
        images=np.zeros((1, 2, 2, 3), np.uint8),
        labels=np.array([5]),
        class_names=np.array(["a", "b"]),
    )
    with pytest.raises(InputError, match="labels must be between 0 and 1 .2 class names., got 5 to 5"):
        read_images(str(tmp_path / "d.npz"))


# --- words


def test_words_from_files(tmp_path: Path) -> None:
    text = _write(tmp_path / "n.txt", b"# comment\ncat\n\n big dog \n")
    assert read_words(text, key="k") == ("cat", "big dog")
    assert read_words(_write(tmp_path / "n.json", b'["cat", "dog"]'), key="k") == ("cat", "dog")
    assert read_words((), key="k") == ()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("n.txt", b"\n# only this\n", "names nothing"),
        ("n.txt", b"cat\ncat\n", "'cat' appears more than once"),
        ("n.json", b'{"a": 1}', "must hold a list of strings"),
        ("n.json", b"[", "is not JSON"),
    ],
)
def test_words_that_cannot_be_used(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_words(_write(tmp_path / name, data), key="data.class_names")


def test_words_from_a_missing_file() -> None:
    with pytest.raises(UsageError, match=r"data\.class_names: expected a list, or an existing \.txt or \.json file"):
        read_words("nowhere.txt", key="data.class_names")


def test_class_prompts(tmp_path: Path) -> None:
    path = _write(tmp_path / "p.json", json.dumps({"cat": ["a cat", "my cat"]}).encode())
    assert read_class_prompts(path) == {"cat": ("a cat", "my cat")}
    assert read_class_prompts("") == {}
    with pytest.raises(InputError, match="is not of the form"):
        read_class_prompts(_write(tmp_path / "q.json", b"[1]"))
    with pytest.raises(UsageError, match="does not exist"):
        read_class_prompts(str(tmp_path / "none.json"))


# --- splits


def test_few_shot_draws_are_seeded_and_disjoint(toy_images: Callable[[int], ImageSet]) -> None:
    images = toy_images(10)
    split = make_split(images, None, shots=3, seed=1, test_limit=0)
    assert np.bincount(split.train.labels).tolist() == [3, 3, 3, 3]
    assert len(split.test) == 28
    assert set(split.train.names).isdisjoint(split.test.names)
    assert few_shot(images, shots=3, seed=1) == few_shot(images, shots=3, seed=1)
    assert few_shot(images, shots=3, seed=1) != few_shot(images, shots=3, seed=2)
    assert len(make_split(images, None, shots=3, seed=1, test_limit=5).test) == 5


def test_a_test_image_that_is_also_learned_from_is_an_error(folder: Path) -> None:
    with pytest.raises(InputError, match=r"test image cat/.*\.png is also learned from"):
        read_split(DataSection(train=str(folder), test=str(folder), shots=3), seed=0)


def test_a_copy_under_another_name_is_found_by_its_bytes(folder: Path, tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog")):
        _photo(tmp_path / "other" / name / "new.png", 90 + label)
    _photo(tmp_path / "other" / "dog" / "copy.png", 40)  # the bytes of dog/0.png
    with pytest.raises(InputError, match=r"test image dog/copy\.png is also learned from \(as dog/0\.png\)"):
        read_split(DataSection(train=str(folder), test=str(tmp_path / "other"), shots=4), seed=0)


def test_copies_within_one_folder_are_not_tested_on(folder: Path) -> None:
    for name in ("copy1.png", "copy2.png", "copy3.png", "copy4.png"):
        _photo(folder / "cat" / name, 0)  # all equal cat/0.png
    split = read_split(DataSection(train=str(folder), shots=3), seed=0)
    assert set(split.train.digests()).isdisjoint(split.test.digests())


def test_class_names_must_fit_the_classes(folder: Path) -> None:
    with pytest.raises(InputError, match="1 class names were given for 2 classes"):
        read_split(DataSection(train=str(folder), class_names=("cat",), shots=2), seed=0)
    split = read_split(DataSection(train=str(folder), class_names=("a cat", "a dog"), shots=2), seed=0)
    assert split.test.class_names == ("a cat", "a dog")


# --- pixels


def test_pixels_are_uint8_batches(toy_images: Callable[[int], ImageSet]) -> None:
    spec = PreprocessSpec(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    batch = pixels(toy_images(2), spec)
    assert batch.shape == (8, 3, 8, 8)
    assert batch.dtype is torch.uint8


def test_an_unreadable_image_is_named(folder: Path) -> None:
    (folder / "cat" / "0.png").write_bytes(b"not an image")
    spec = PreprocessSpec(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(InputError, match=r"0\.png"):
        pixels(read_images(str(folder)), spec)


def test_augmented_views_are_seeded_and_near_the_image() -> None:
    image = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    image[:, :, 10:22, 10:22] = 200
    first, again = (augment(image, generator=torch.Generator().manual_seed(5), flip=True) for _ in range(2))
    other = augment(image, generator=torch.Generator().manual_seed(6), flip=True)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float((first[:, :, 14:18, 14:18] == 200).float().mean()) == 1.0


def test_mirroring_needs_to_be_asked_for() -> None:
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8).expand(64, 3, 32, 32).contiguous()

    def falling(flip: bool) -> int:
        out = augment(ramp, generator=torch.Generator().manual_seed(0), flip=flip).float().mean(dim=(1, 2))
        return int((out[:, 26] < out[:, 6]).sum())

    assert falling(flip=False) == 0
    assert 16 < falling(flip=True) < 48
