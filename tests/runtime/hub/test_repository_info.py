"""What another machine says of a repository is looked at before anything is done with it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from p4q_edge.runtime.errors import P4QEdgeError
from p4q_edge.runtime.hub import HubAddress
from p4q_edge.runtime.hub.repository_info import repository_info

CUPS = HubAddress(repo="ann/cups")


def info(**changes: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"sha": "0" * 40, "siblings": [file()], **changes})


def file(**changes: Any) -> SimpleNamespace:
    lfs = SimpleNamespace(sha256="1" * 64)
    return SimpleNamespace(**{"rfilename": "cups.p4q", "size": 3, "lfs": lfs, **changes})


def asked(answer: Any) -> Any:
    def model_info(*_: object, **__: object) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return repository_info(SimpleNamespace(model_info=model_info), CUPS)


@pytest.mark.parametrize("files", [None, [], [file()], [file(size=None, lfs=None)]])
def test_what_repositories_look_like_is_taken(files: Any) -> None:
    answer = info(siblings=files)
    assert asked(answer) is answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (info(sha=None), "its commit is 'None'"),
        (info(sha="../" * 14), "its commit is '../"),
        (info(siblings=[file(rfilename=7)]), "a file is named '7'"),
        (info(siblings=[file(size="3")]), "a file has '3' bytes"),
        (info(siblings=[file(size=-1)]), "a file has '-1' bytes"),
        (info(siblings=[file(size=True)]), "a file has 'True' bytes"),
        (info(siblings=[file(lfs=SimpleNamespace(sha256=1))]), "a file is named 'cups.p4q'"),
        (info(siblings=["cups.p4q"]), "has no attribute"),
        (KeyError("rfilename"), "'rfilename'"),
        (ValueError("Cannot parse 'x' as a datetime"), "Cannot parse 'x' as a datetime"),
    ],
)
def test_other_answers_are_told_of_in_one_line(answer: Any, said: str) -> None:
    with pytest.raises(P4QEdgeError) as caught:
        asked(answer)
    text = str(caught.value)
    assert text.startswith("the Hub's answer about hf:ann/cups is not what a repository looks like (")
    assert said in text
    assert text.endswith("Try again later, or look at HF_ENDPOINT.")
    assert "\n" not in text
    assert caught.value.exit_code == 1


def test_a_missing_network_is_not_an_answer_of_another_form() -> None:
    broken = ValueError("no JSON")
    broken.__cause__ = ConnectionResetError("broken")
    with pytest.raises(ValueError, match="no JSON"):
        asked(broken)
