"""Tables of images and captions, and what wrong ones are told."""

from pathlib import Path

import pytest
from PIL import Image

from p4q_edge.data import read_captions
from p4q_edge.runtime.errors import InputError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(3):
        Image.new("RGB", (4, 4), (index, 0, 0)).save(tmp_path / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", 'path,caption\n0.png,"a cup, red"\n1.png,a plate\n0.png,a mug\n'),
        ("c.csv", '\ufeffcaption,id,image\n"a cup, red",7,0.png\na plate,8,1.png\na mug,9,0.png\n'),
        ("c.tsv", "filepath\ttitle\n0.png\ta cup, red\n\n1.png\ta plate\n0.png\ta mug\n"),
    ],
)
def test_an_image_may_have_several_captions(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, "utf-8")
    found = read_captions(folder / name)
    assert found.texts == ("a cup, red", "a plate", "a mug")
    assert found.image_of.tolist() == [0, 1, 0]
    assert found.images.names == ("0.png", "1.png")
    some = found.of_images([1])
    assert (some.texts, some.image_of.tolist(), some.images.names) == (("a plate",), [0], ("1.png",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.png,a cup\n", "expected a header with the columns path and caption, got 0.png, a cup"),
        ("", "expected a header with the columns path and caption, got nothing"),
        ("path,caption\n", "has no rows below its header"),
        ("path,caption\n0.png,\n", r"line 2: expected path and caption, got \['0.png', ''\]"),
        ("path,caption\n0.png\n", "line 2: expected path and caption"),
        ("path,caption\nnone.png,a cup\n", "none.png does not exist; paths are relative to the table's folder"),
        ("path,caption\n" + "x" * 5000 + ",a cup\n", "does not exist; paths are relative"),
    ],
)
def test_what_a_wrong_table_is_told(folder: Path, text: str, message: str) -> None:
    (folder / "c.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_captions(folder / "c.csv")


@pytest.mark.parametrize("name", ["none.csv", "0.png"])
def test_another_file_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"expected an existing .csv or .tsv with the columns path and caption"):
        read_captions(folder / name)


def test_one_image_under_two_names_is_one_image(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "c.csv").write_text(f"path,caption\n0.png,a cup\na/../0.png,a mug\n{folder / '0.png'},a jug\n")
    found = read_captions(folder / "c.csv")
    assert (found.images.names, found.image_of.tolist()) == (("0.png",), [0, 0, 0])
