"""Classes of labelled images: numbered folders, names given for them, test sets, names in prompts."""

import logging
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from p4q_edge.data.readers import read_class_prompts, read_images, read_split
from p4q_edge.models.load import LoadedModel
from p4q_edge.models.prompts import class_prompts_of, spoken, template_embeddings
from p4q_edge.recipe.schema import DataSection
from p4q_edge.runtime.errors import InputError

NUMBERS = tuple(range(1, 13))
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def fill_folders(root: Path, *names: str, count: int = 4, shade: int = 0) -> str:
    """Write images whose colour tells class and number."""
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (10 * label, 10 * i, shade)).save(root / name / f"{i}.png")
    return str(root)


def test_numbered_folders_get_the_names_that_were_given_for_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = fill_folders(tmp_path / "train", *map(str, NUMBERS))
    with caplog.at_level(logging.INFO):
        split = read_split(DataSection(train=train, class_names=WORDS, shots=2), seed=0)
    for images in (split.train, split.test):
        for name, label in zip(images.names, images.labels, strict=True):
            assert images.class_names[label] == WORDS[int(name.split("/")[0]) - 1]
        assert images.found_names == tuple(map(str, NUMBERS))
    assert "data.class_names, in label order: '1' is 'one', '2' is 'two'" in caplog.text
    assert "'12' is 'twelve'" in caplog.text


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_labels_of_a_table_sort_as_numbers(tmp_path: Path, suffix: str) -> None:
    fill_folders(tmp_path, *map(str, NUMBERS), count=1)
    delimiter = "," if suffix == ".csv" else "\t"
    table = tmp_path / f"table{suffix}"
    table.write_text("".join(f"{n}/0.png{delimiter}{n}\n" for n in reversed(NUMBERS)))
    images = read_images(str(table))
    assert images.class_names == tuple(map(str, NUMBERS))
    assert [images.class_names[label] for label in images.labels] == [str(n) for n in reversed(NUMBERS)]


def test_a_test_set_with_another_class_of_the_same_rank_is_refused_by_name(tmp_path: Path) -> None:
    train = fill_folders(tmp_path / "train", "bird", "cat", "umbrella")
    test = fill_folders(tmp_path / "test", "bird", "cat", "wheelchair", shade=9)
    with pytest.raises(InputError, match=r"data\.test has the class 'wheelchair', which is not one of the 3 known"):
        read_split(DataSection(train=train, test=test, shots=2), seed=0)


def test_names_that_differ_in_case_swap_no_classes(tmp_path: Path) -> None:
    train = fill_folders(tmp_path / "train", "Bird", "cat", "dog")
    test = fill_folders(tmp_path / "test", "bird", "Cat", "dog", shade=9)
    with pytest.raises(InputError, match=r"'Cat' \(did you mean 'cat'\?\) and 'bird' \(did you mean 'Bird'\?\), which"):
        read_split(DataSection(train=train, test=test, shots=2), seed=0)


def test_a_test_set_may_lack_classes_and_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = fill_folders(tmp_path / "train", "bird", "cat", "dog")
    test = fill_folders(tmp_path / "test", "dog", "bird", shade=9)
    split = read_split(DataSection(train=train, test=test, shots=2), seed=0)
    assert split.test.class_names == ("bird", "cat", "dog")
    assert {
        (name.split("/")[0], split.test.class_names[label])
        for name, label in zip(split.test.names, split.test.labels, strict=True)
    } == {("bird", "bird"), ("dog", "dog")}
    assert "data.test has no images of 1 of 3 classes: cat" in caplog.text


@pytest.mark.parametrize("kind", ["folders", "npz", "no labels"])
def test_a_test_set_of_one_class_is_told_of_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    train = fill_folders(tmp_path / "train", "bird", "cat", "dog")
    test = fill_folders(tmp_path / "test", "cat", shade=9)
    section = DataSection(train=train, test=test, shots=2)
    if kind == "npz":  # names all classes, though it has images of one alone
        path = tmp_path / "test.npz"
        images = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
        np.savez(path, images=images, labels=np.array([1, 1, 1, 1]), class_names=np.array(["bird", "cat", "dog"]))
        section = DataSection(train=train, test=str(path), shots=2)
    elif kind == "no labels":
        section = DataSection(calibration=train, test=test, class_names=("bird", "cat", "dog"))
    read_split(section, seed=0)
    (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said.startswith(
        "data.test: all 4 images are of the class 'cat'. Accuracy on them tells how often that class"
    )
    assert said.endswith("an engine that always says 'cat' gets 100 %. Add images of other classes")


def test_images_kept_to_test_on_may_lack_classes_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill_folders(tmp_path / "train", "bird", "cat", count=2)
    train = fill_folders(tmp_path / "train", "dog", "emu", count=5, shade=9)
    read_split(DataSection(train=train, shots=2), seed=0)
    assert "what is kept of data.train to test on has no images of 2 of 4 classes: bird, cat" in caplog.text


def test_a_test_set_of_all_classes_is_not_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = fill_folders(tmp_path / "train", "bird", "cat")
    test = fill_folders(tmp_path / "test", "bird", "cat", shade=9)
    read_split(DataSection(train=train, test=test, shots=2), seed=0)
    assert not caplog.records


@pytest.mark.parametrize("named_as", ["folders", "words"])
def test_a_test_set_is_named_as_the_folders_or_as_the_words_for_them(tmp_path: Path, named_as: str) -> None:
    train = fill_folders(tmp_path / "train", "n1", "n2")
    names = ("n2", "n1") if named_as == "folders" else ("two", "one")
    test = fill_folders(tmp_path / "test", *names, shade=9)
    split = read_split(DataSection(train=train, test=test, class_names=("one", "two"), shots=2), seed=0)
    for name, label in zip(split.test.names, split.test.labels, strict=True):
        assert split.test.class_names[label] == {"n1": "one", "n2": "two"}.get(name[:2], name.split("/")[0])


def test_folders_of_a_mac_are_the_classes_they_look_like(tmp_path: Path) -> None:
    composed, parted = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    train = fill_folders(tmp_path / "train", parted, "tea")
    test = fill_folders(tmp_path / "test", composed, "tea", shade=9)
    split = read_split(DataSection(train=train, test=test, shots=2), seed=0)
    assert split.train.class_names == (composed, "tea")
    (tmp_path / "prompts.json").write_text(f'{{"{parted}": ["a bar"]}}')
    assert read_class_prompts(str(tmp_path / "prompts.json"), split.train.class_names) == {composed: ("a bar",)}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("grand_piano", "grand piano"),
        ("t-shirt", "t shirt"),
        ("__x--y_ ", "x y"),
        ("-", "-"),
        ("plain words", "plain words"),
    ],
)
def test_class_names_are_spoken_as_words(name: str, words: str) -> None:
    assert spoken(name) == words


def test_prompts_have_words_and_labels_stay(toy_clip: LoadedModel) -> None:
    templates = ("a photo of a {}.",)
    assert class_prompts_of(["grand_piano", "cat"], templates=templates, class_prompts={"cat": ["my cat_1"]}) == {
        "grand_piano": ("a photo of a grand piano.",),
        "cat": ("my cat_1",),
    }
    encode, tokenizer = toy_clip.clip.encode_text, toy_clip.tokenizer
    torch.testing.assert_close(
        template_embeddings(encode, tokenizer, ["grand_piano"], templates=templates),
        template_embeddings(encode, tokenizer, ["grand piano"], templates=templates),
    )


def test_learned_prompts_have_words_too(toy_clip: LoadedModel) -> None:
    from p4q_edge.models.prompts import PromptLearner, initial_context
    from p4q_edge.models.text_tower import TextTower
    from p4q_edge.quant.scheme import QuantScheme

    tower = TextTower(toy_clip.clip, QuantScheme())
    context = initial_context(
        tower, toy_clip.tokenizer, words="a photo of a", num_tokens=0, generator=torch.Generator()
    )
    learners = [
        PromptLearner(tower, toy_clip.tokenizer, [name, "cat"], context=context)
        for name in ("grand_piano", "grand piano")
    ]
    torch.testing.assert_close(*(learner.suffixes for learner in learners))
