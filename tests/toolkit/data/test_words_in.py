"""Class names, templates and prompts from files, and how names find the images of their classes."""

import json
from pathlib import Path

import numpy as np
import pytest
from image_files import write_file, write_npz

from p4q_edge.data.preflight import check_data
from p4q_edge.data.readers import read_class_prompts, read_split, read_words
from p4q_edge.models.load import LoadedModel
from p4q_edge.models.prompts import template_embeddings
from p4q_edge.recipe.schema import DataSection
from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.images.image_set import ImageSet


def test_words_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert read_words(write_file(tmp_path / "n.TXT", b"\xef\xbb\xbfcat\ndog\n"), key="k") == ("cat", "dog")
    assert read_words(write_file(tmp_path / "n.json", b'\xef\xbb\xbf["cat"]'), key="k") == ("cat",)
    prompts = read_class_prompts(write_file(tmp_path / "p.json", b'\xef\xbb\xbf{"cat": ["a cat"]}'), ("cat", "dog"))
    assert prompts == {"cat": ("a cat",)}


def test_words_that_are_not_utf8(tmp_path: Path) -> None:
    path = write_file(tmp_path / "n.txt", b"\xe9t\xe9\n")
    with pytest.raises(InputError, match=r"data\.templates: .*n\.txt is not UTF-8 .* at byte 0\); save it as UTF-8"):
        read_words(path, key="data.templates")
    with pytest.raises(InputError, match="is not UTF-8"):
        read_class_prompts(path)


def test_an_empty_word(tmp_path: Path) -> None:
    told = r"k: .*n\.json: an entry is empty; every entry needs a word, got ' ' as number 2"
    with pytest.raises(InputError, match=told):
        read_words(write_file(tmp_path / "n.json", b'["cat", " "]'), key="k")


def test_words_that_differ_by_spaces_are_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"k: .*n\.json: 'cat' appears more than once"):
        read_words(write_file(tmp_path / "n.json", b'["cat", "cat "]'), key="k")


def test_an_empty_word_of_the_recipe() -> None:
    with pytest.raises(InputError, match=r"data\.class_names: an entry is empty; every entry needs a word"):
        read_words(("cat", " "), key="data.class_names")


def test_no_template_at_all(photos: Path, tmp_path: Path) -> None:
    none = DataSection(train=str(photos), templates=())
    told = "data.templates is empty; write e.g. ['a photo of a {}.'], or name prompts with data.class_prompts"
    assert told in check_data(none, seed=0)[1]
    path = tmp_path / "prompts.json"
    path.write_text('{"circle": ["a circle"]}')
    own = DataSection(train=str(photos), templates=(), class_prompts=str(path))
    assert not any("templates" in problem for problem in check_data(own, seed=0)[1])


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"cat": "a cat"}, r"is not of the form .*Expected `array`, got `str`"),
        ({"cat": []}, r"is not of the form .*length >= 1"),
        ({"cat": [3]}, r"is not of the form .*Expected `str`, got `int`"),
        ({"cat": [""]}, r"is not of the form .*length >= 1"),
        ({"cats": ["a cat"]}, "has prompts of 'cats', which is not a class; did you mean 'cat'?"),
    ],
)
def test_class_prompts_that_cannot_be_used(tmp_path: Path, document: object, message: str) -> None:
    path = write_file(tmp_path / "p.json", json.dumps(document).encode())
    with pytest.raises(InputError, match=message):
        read_class_prompts(path, ("cat", "dog"))


def test_a_class_without_any_prompt(toy_clip: LoadedModel) -> None:
    with pytest.raises(UsageError, match="class 'dog' has no prompt; set data.templates"):
        template_embeddings(
            toy_clip.clip.encode_text,
            toy_clip.tokenizer,
            ("cat", "dog"),
            templates=(),
            class_prompts={"cat": ("a cat",)},
        )


def _values(images: ImageSet, name: str) -> set[int]:
    label = images.class_names.index(name)
    return {int(images.open_image(int(i)).getpixel((0, 0))) for i in np.flatnonzero(images.labels == label)}


def test_the_same_class_names_in_another_order_keep_their_images(photos: Path) -> None:
    split = read_split(DataSection(train=str(photos), class_names=("dog", "cat"), shots=2), seed=0)
    assert split.train.class_names == split.test.class_names == ("dog", "cat")
    for images in (split.train, split.test):
        assert _values(images, "cat") < {0, 1, 2, 3}
        assert _values(images, "dog") < {40, 41, 42, 43}


def test_other_words_name_the_classes_in_order(photos: Path) -> None:
    split = read_split(DataSection(train=str(photos), class_names=("cat", "puppy"), shots=2), seed=0)
    assert _values(split.test, "puppy") < {40, 41, 42, 43}


def test_a_name_of_another_class_is_an_error(photos: Path) -> None:
    with pytest.raises(InputError, match="class 'cat' is number 0 of .*photos and number 1 of the names"):
        read_split(DataSection(train=str(photos), class_names=("kitten", "cat"), shots=2), seed=0)


def test_a_label_that_is_not_in_the_class_names(photos: Path) -> None:
    with pytest.raises(InputError, match="3 class names were given for 2 classes .*; 'dog' is not among the names"):
        read_split(DataSection(train=str(photos), class_names=("cat", "cow", "hen"), shots=2), seed=0)


def test_test_images_follow_the_names_of_their_classes(photos: Path, tmp_path: Path) -> None:
    images = np.stack([np.full((4, 4), value, np.uint8) for value in (200, 100)])
    names = np.array(["dog", "cat"])  # not in the order of the training folders
    test = write_npz(tmp_path / "test.npz", images=images, labels=np.array([0, 1]), class_names=names)
    for words in ((), ("tabby", "hound")):
        split = read_split(DataSection(train=str(photos), test=test, class_names=words, shots=2), seed=0)
        assert _values(split.test, (words or ("cat", "dog"))[0]) == {100}
