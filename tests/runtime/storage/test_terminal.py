"""Names of strangers cannot steer a terminal or break a page."""

from __future__ import annotations

import json
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.evaluation.report.markdown import _plain
from p4q_edge.runtime.storage import printable


@given(st.text())
def test_no_control_character_is_left(text: str) -> None:
    assert not any(unicodedata.category(character) == "Cc" for character in printable(text))
    assert printable(printable(text)) == printable(text)


@given(st.text(st.characters(exclude_categories=("Cc", "Cf", "Zl", "Zp", "Cs"))))
def test_other_text_stays(text: str) -> None:
    assert printable(text) == text


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_json_stays_the_same_document(text: str) -> None:
    document = json.dumps({"name": text}, ensure_ascii=False)
    assert json.loads(printable(document)) == {"name": text}


def test_escapes_name_what_they_stand_for() -> None:
    assert printable("\x1b[2Ja\nb\u202ec\x9b") == "\\x1b[2Ja\\nb\\u202ec\\u009b"
    assert printable("a\nb\tc", keep="\n\t") == "a\nb\tc"


def test_a_byte_that_is_no_text_is_shown_as_itself() -> None:
    name = b"caf\xe9 \xc3\xa9.png".decode("utf-8", "surrogateescape")
    assert printable(name) == "caf\\xe9 é.png"


def test_a_name_in_markdown_is_text() -> None:
    assert _plain("<script>|\x1b]0;\n# title") == "&lt;script&gt;\\|\\x1b]0; # title"
