"""Tables of images in Parquet files: the same sets as those of .csv files, and what bad ones are told."""

import builtins
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p4q_edge.data.readers import read_images
from p4q_edge.runtime.errors import EnvironmentNotAbleError, InputError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write(path: Path, columns: dict[str, Any]) -> str:
    parquet.write_table(pa.table(columns), path)
    return str(path)


def test_a_parquet_table_agrees_with_the_folder(folder: Path) -> None:
    names = [(f"{name}/{i}.png", name) for name in ("cat", "dog") for i in range(4)]
    columns = {"other": list(range(8)), "label": [label for _, label in names], "path": [path for path, _ in names]}
    images = read_images(write(folder / "t.parquet", columns))
    assert images.digests() == read_images(str(folder)).digests()
    assert images.class_names == ("cat", "dog")
    assert images.names[5] == "dog/1.png"


def test_labels_may_be_numbers(folder: Path) -> None:
    columns = {"path": ["cat/0.png", "dog/0.png", "dog/1.png"], "label": [10, 9, 10]}
    images = read_images(write(folder / "t.parquet", columns))
    assert images.class_names == ("9", "10")
    assert images.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["cat/0.png"]}, "has no column 'label'; it has path; expected path and label"),
        (
            {"path": [1], "label": ["cat"]},
            "expected path as text and label as text or whole numbers, got int64 and string",
        ),
        ({"path": ["cat/0.png"], "label": [0.5]}, "got string and double"),
        ({"path": ["cat/0.png", None], "label": ["cat", "cat"]}, r"row 2: expected path and label, got \['', 'cat'\]"),
        ({"path": ["cat/9.png"], "label": ["cat"]}, r"row 1: .*9\.png does not exist; paths are relative"),
        (
            {"path": ["cat/0.png"] * 2, "label": ["cat"] * 2},
            r"row 2: cat/0\.png appears again, after row 1; name it once",
        ),
        (
            {"path": pa.array([], pa.string()), "label": pa.array([], pa.string())},
            "has no rows; expected path and label",
        ),
    ],
)
def test_tables_that_cannot_be_used(folder: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_images(write(folder / "t.parquet", columns))


def test_few_bytes_that_stand_for_many_rows_end_at_the_first_repetition(folder: Path) -> None:
    rows = 30_000_000
    index = pa.array(np.zeros(rows, np.int8))
    columns = {name: pa.DictionaryArray.from_arrays(index, ["cat/0.png"]) for name in ("path", "label")}
    path = Path(write(folder / "t.parquet", columns))
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    with pytest.raises(InputError, match="row 2: .* appears again"):
        read_images(str(path))
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_a_cell_without_end_is_not_read(folder: Path) -> None:
    columns = {"path": ["x" * (1 << 20)] * 2, "label": ["cat"] * 2}
    with pytest.raises(InputError, match="has a cell of 1048576 bytes; at most 16384 are read"):
        read_images(write(folder / "t.parquet", columns))


@pytest.mark.parametrize("cut", [0, 3, 100])
def test_what_is_no_parquet_file_is_told_of(folder: Path, cut: int) -> None:
    path = Path(write(folder / "t.parquet", {"path": ["cat/0.png"], "label": ["cat"]}))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match="is not a Parquet file"):
        read_images(str(path))


@pytest.mark.parametrize("word", [b"path", b"cat/0.png"])
def test_words_that_are_no_text_are_told_of(folder: Path, word: bytes) -> None:
    path = folder / "t.parquet"
    table = pa.table({"path": ["cat/0.png"], "label": ["cat"]})
    parquet.write_table(
        table, path, compression="none", write_statistics=False, use_dictionary=False, store_schema=False
    )
    data = path.read_bytes()
    assert word in data
    path.write_bytes(data.replace(word, b"\xff" + word[1:]))
    with pytest.raises(InputError, match=r"is not a Parquet file: .*utf-?8"):
        read_images(str(path))


def test_without_the_library_the_line_to_install_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder / "t.parquet", {"path": ["cat/0.png"], "label": ["cat"]})
    original = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "pyarrow":
            raise ImportError("No module named 'pyarrow'")
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        EnvironmentNotAbleError, match=r"pip install 'p4q-edge\[parquet\]', or write the table as \.csv"
    ):
        read_images(path)
