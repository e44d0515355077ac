"""What the repository of models says in plain text, and where it cannot lie."""

from pathlib import Path

import msgspec
import pytest

from p4q_edge.runtime.artifacts import read_card, write_card
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.serving.repository import write_repository


def test_labels_are_a_line_each_and_steer_no_terminal(tiny_engine: Path, tmp_path: Path) -> None:
    names = ("\x1b[2Jcup", "two\nlines", "\u202epuc")
    write_card(tiny_engine, msgspec.structs.replace(read_card(tiny_engine), class_names=names), force=True)
    write_repository(tiny_engine, tmp_path / "models", name="a")
    text = (tmp_path / "models" / "a_engine" / "labels.txt").read_text()
    assert text == "\\x1b[2Jcup\ntwo lines\n\\u202epuc\n"


def test_a_file_in_place_of_the_repository_is_told(tiny_engine: Path, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("mine")
    with pytest.raises(UsageError, match="models is a file; expected a folder for models"):
        write_repository(tiny_engine, tmp_path / "models", name="a")
    assert (tmp_path / "models").read_text() == "mine"
