"""Names of classes: their order, and that names alone decide which classes of two sources are the same."""

from __future__ import annotations

import logging
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.images.class_names import in_label_order, match_classes, missing_classes, pair_class_names

KNOWN = ("Bird", "cat", "dog")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10", "1", "11", "2"], ["1", "2", "10", "11"]),
        (["class 10", "class 9", "class 09"], ["class 09", "class 9", "class 10"]),
        (["b", "a", "a"], ["a", "b"]),
        (["img12b", "img12a", "img2"], ["img2", "img12a", "img12b"]),
        (["x", "0", "00", ""], ["", "0", "00", "x"]),
        (["Ⅻ", "²", "3"], ["3", "²", "Ⅻ"]),
        (["9" * 6000, "10" * 4000, "1"], ["1", "9" * 6000, "10" * 4000]),
    ],
)
def test_digits_sort_by_their_value(names: list[str], expected: list[str]) -> None:
    assert in_label_order(names) == expected


@given(st.lists(st.integers(0, 10**12), unique=True))
def test_plain_numbers_sort_as_numbers(numbers: list[int]) -> None:
    assert in_label_order(map(str, numbers)) == [str(number) for number in sorted(numbers)]


@given(st.lists(st.text(max_size=6), unique=True))
def test_any_names_have_one_order(names: list[str]) -> None:
    assert in_label_order(names) == in_label_order(reversed(names))
    assert set(in_label_order(names)) == set(names)


def test_names_decide_and_a_data_set_may_have_fewer_classes() -> None:
    assert match_classes(["dog", "Bird"], KNOWN, source="photos") == (2, 0)
    assert missing_classes((2, 0), KNOWN) == ("cat",)


def test_the_two_unicode_forms_of_a_name_are_one_class() -> None:
    composed, parted = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert composed != parted
    assert match_classes([parted], [composed], source="photos") == (0,)
    with pytest.raises(InputError, match="which are one class. Put them together"):
        match_classes([parted, composed], [composed], source="photos")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (["bird", "cat", "dog"], "photos has the class 'bird', .* did you mean 'Bird'"),
        (
            ["umbrella", "wheelchair", "zebra"],
            "photos has the classes 'umbrella', 'wheelchair' and 'zebra', which are not among the 3 known classes",
        ),
        (["cat", "cow"], r"'cow', which is not one of the 3 known classes \(Bird, cat, dog\)"),
        (["a"], "classes are matched by name: rename it, or remove it from the data"),
        (["a", "b", "c"], "classes are matched by name: rename them, or remove them from the data"),
        (["CAT", "umbrella"], r"the classes 'CAT' \(did you mean 'cat'\?\) and 'umbrella', which are not among"),
        (["a", "b", "c", "d", "e", "f", "g"], "the classes 'a', 'b', 'c', 'd', 'e' and 2 more, which are not among"),
    ],
)
def test_nothing_is_matched_by_its_place(found: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        match_classes(found, KNOWN, source="photos")


def test_other_names_of_the_known_classes_are_known_too() -> None:
    assert match_classes(["n3", "cat"], KNOWN, source="photos", other_names=("n1", "n2", "n3")) == (2, 1)
    with pytest.raises(InputError, match="has 'n3' and 'dog', which are one class"):
        match_classes(["n3", "dog"], KNOWN, source="photos", other_names=("n1", "n2", "n3"))


def test_other_words_are_paired_in_label_order_and_each_pair_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        pairs = pair_class_names(["1", "2", "10"], ["one", "two", "ten"], source="train", key="data.class_names")
    assert pairs == (0, 1, 2)
    assert caplog.messages == ["data.class_names, in label order: '1' is 'one', '2' is 'two', '10' is 'ten'"]


def test_many_pairs_are_cut(caplog: pytest.LogCaptureFixture) -> None:
    names = [str(number) for number in range(30)]
    with caplog.at_level(logging.INFO):
        pair_class_names(names, [f"class {name}" for name in names], source="train", key="k")
    assert caplog.messages[0].endswith("'23' is 'class 23', and 6 more")


def test_the_same_words_in_another_order_are_matched_by_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert pair_class_names(["a", "b", "c"], ["c", "a", "b"], source="train", key="k") == (1, 2, 0)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("given_names", "message"),
    [
        (["a", "x", "b"], "k: class 'b' is number 1 of train and number 2 of the names"),
        (["a", "b"], r"k: 2 class names were given for 3 classes of train \(a, b, c, ...\); 'c' is not among"),
    ],
)
def test_names_that_are_known_elsewhere_are_refused(given_names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pair_class_names(["a", "b", "c"], given_names, source="train", key="k")
