"""What benches are asked for: lists, names of rows, and errors in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from bench_modules import bench_modules

from p4q_edge.runtime.errors import UsageError

NAMES = ("FP32", "P4Q Edge", "P4Q Edge, min-max", "PTQ, P4Q Edge", "PTQ", "NNCF", "NNCF (SmoothQuant)")


@pytest.fixture(scope="module")
def bench() -> Iterator[dict[str, ModuleType]]:
    with bench_modules(("asked", "cpu_forms", "cpu_profile")) as modules:
        yield modules


def test_an_entry_that_stands_twice_is_taken_once(bench: dict[str, ModuleType]) -> None:
    listed = bench["asked"].listed
    assert listed("vit, demo,vit", ("demo", "vit"), option="--models") == ["vit", "demo"]
    with pytest.raises(UsageError, match="--models knows demo, vit; got 'photo'"):
        listed("vit,photo", ("demo", "vit"), option="--models")


def test_whole_numbers(bench: dict[str, ModuleType]) -> None:
    numbers = bench["asked"].whole_numbers
    assert numbers("1, 8,1,08", option="--batches", least=1) == [1, 8]
    for wrong in ("", "0", "-1", "1.5", "one", "1,", "٣"):
        with pytest.raises(UsageError, match="--batches takes whole numbers from 1 between commas; got '"):
            numbers(wrong, option="--batches", least=1)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", list(NAMES)),
        (" FP32 , NNCF", ["FP32", "NNCF"]),
        ("FP32, P4Q Edge, min-max", ["FP32", "P4Q Edge, min-max"]),
        ("P4Q Edge, P4Q Edge, min-max", ["P4Q Edge", "P4Q Edge, min-max"]),
        ("P4Q Edge,P4Q Edge, min-max", ["P4Q Edge", "P4Q Edge, min-max"]),
        ("PTQ,P4Q Edge", ["P4Q Edge", "PTQ"]),  # without a blank, these are always two
        ("PTQ, P4Q", ["PTQ, P4Q Edge"]),
        ("NN,", ["NNCF", "NNCF (SmoothQuant)"]),
    ],
)
def test_blanks_between_names_of_rows(bench: dict[str, ModuleType], text: str, found: list[str]) -> None:
    assert bench["asked"].chosen_names(NAMES, text) == found


def test_a_row_that_is_none_is_named(bench: dict[str, ModuleType]) -> None:
    with pytest.raises(UsageError, match="--rows: no row begins with 'magic'; there are FP32; "):
        bench["asked"].chosen_names(NAMES, "FP32, magic, NNCF")


@pytest.mark.parametrize(
    ("name", "content", "words", "message"),
    [
        ("gone.p4q", None, [], "does not exist"),
        ("gone.onnx", None, [], "cannot read the ONNX file"),
        ("bad.p4q", b"no bundle", [], "bad.p4q"),
        ("bad.onnx", b"no graph", [], "ONNX Runtime cannot read"),
        ("gone.p4q", None, ["--batches", "1,x"], "--batches takes whole numbers from 1 between commas; got 'x'"),
        ("gone.p4q", None, ["--rounds", "0"], "--rounds takes a whole number from 1; got 0"),
    ],
)
def test_a_file_that_cannot_be_timed(
    bench: dict[str, ModuleType],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    words: list[str],
    message: str,
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert bench["cpu_forms"].main([str(path), *words]) > 0
    told = capsys.readouterr().err
    assert message in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1


def test_others_tell_of_a_missing_bundle_too(
    bench: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench["cpu_profile"].main([str(tmp_path / "gone.p4q")]) == 2
    assert "does not exist" in capsys.readouterr().err
