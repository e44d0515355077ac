"""Answers as tables: what is written is read again, by those who know nothing of us."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.bulk import tables
from p4q_edge.runtime.bulk.tables import COLUMNS, Row, require_table, write_table
from p4q_edge.runtime.errors import EnvironmentNotAbleError, InputError, UsageError

# Without NUL, which CSV of Python 3.10 does not hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
ANSWERS = st.builds(Row, path=TEXT, label=TEXT, score=st.floats(0, 1), known=st.booleans())
ROWS = st.lists(ANSWERS | st.builds(Row, path=TEXT, error=TEXT), max_size=6)


@given(ROWS)
def test_csv(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    path = tmp_path_factory.mktemp("table") / "a.csv"
    assert write_table(path, rows) == len(rows)
    with path.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == len(rows)
    for row, read in zip(rows, found, strict=True):
        assert (read["path"], read["label"], read["error"]) == (row.path, row.label or "", row.error or "")
        assert read["known"] == ("" if row.known is None else str(row.known).lower())
        if row.score is not None:
            assert float(read["score"]) == pytest.approx(row.score, abs=1e-6)


@given(ROWS)
def test_json_lines(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    path = tmp_path_factory.mktemp("table") / "a.jsonl"
    assert write_table(path, rows) == len(rows)
    found = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    expected = [{name: getattr(row, name) for name in COLUMNS if getattr(row, name) is not None} for row in rows]
    assert found == expected


def test_parquet_with_embeddings(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [
        Row(path=f"{n}.jpg", label="a", score=n / 3000, known=n % 2 == 0, embedding=np.full(4, n, np.float32))
        for n in range(2500)
    ]
    rows.append(Row(path="bad.jpg", error="damaged"))
    path = tmp_path / "a.parquet"
    assert write_table(path, rows, embeddings=True) == 2501
    found = pq.read_table(path)
    assert found.column_names == [*COLUMNS, "embedding"]
    assert found["path"].to_pylist() == [row.path for row in rows]
    assert found["score"].to_pylist() == [row.score for row in rows]
    assert found["known"].to_pylist()[-2:] == [False, None]
    assert found["embedding"].to_pylist()[7] == [7.0] * 4
    assert found["error"].to_pylist()[-1] == "damaged"


def test_names_that_are_no_text_keep_their_bytes(tmp_path: Path) -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    write_table(tmp_path / "a.csv", [Row(path=name, label="a", score=1.0, known=True)])
    assert b"caf\xe9.jpg,a,1.000000,true," in (tmp_path / "a.csv").read_bytes()
    write_table(tmp_path / "a.jsonl", [Row(path=name)])
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"path": name}


def test_a_table_is_there_complete_or_not_at_all(tmp_path: Path) -> None:
    def broken() -> Iterator[Row]:
        yield Row(path="a")
        raise InputError("the second cannot be read")

    for suffix in (".csv", ".jsonl"):
        with pytest.raises(InputError):
            write_table(tmp_path / f"a{suffix}", broken())
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"expected a table ending in .csv, .jsonl, .parquet, got .*a.xlsx"):
        require_table(tmp_path / "a.xlsx", embeddings=False, force=False)
    with pytest.raises(UsageError, match="a CSV file has no place for embeddings"):
        require_table(tmp_path / "a.csv", embeddings=True, force=False)
    (tmp_path / "a.csv").touch()
    with pytest.raises(UsageError, match="--force"):
        require_table(tmp_path / "a.csv", embeddings=False, force=False)
    require_table(tmp_path / "a.csv", embeddings=False, force=True)
    monkeypatch.setattr(tables.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentNotAbleError, match=r"pip install 'p4q-edge-runtime\[parquet\]'"):
        require_table(tmp_path / "a.parquet", embeddings=False, force=False)
