"""Processes that do not belong together: who says so, and in which words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from p4q_edge.cli import team_card
from p4q_edge.cli.team_card import command_card, require_same
from p4q_edge.models import Team, difference_in_words, team_meeting
from p4q_edge.models.team_meeting import Meeting, meet
from p4q_edge.runtime.errors import InputError, P4QEdgeError, ProcessLostError, UsageError
from p4q_edge.stages import RunFiles, pipeline


class _Store:
    """The store of a team whose processes have all come and left these cards; None of one that leaves none."""

    def __init__(self, cards: Sequence[Mapping[str, str] | None]) -> None:
        self.values = {f"p4q-edge/card/{rank}": json.dumps(card) for rank, card in enumerate(cards) if card is not None}
        self.counts: dict[str, int] = {"p4q-edge/read": len(cards)}

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def get(self, key: str) -> bytes:
        return self.values[key].encode()

    def add(self, key: str, by: int) -> int:
        self.counts[key] = self.counts.get(key, 0) + by
        return self.counts[key]

    def set_timeout(self, timeout: object) -> None:
        self.counts["timeout"] = 1


CARDS = [{"command": "learn"}, {"command": "learn"}, {"command": "learn --seed 3"}]
SAID = (
    "process 2 of 3 does not belong to the others: command expected 'learn', as in process 0, got 'learn --seed 3'. "
    "Start the same version with the same command in all processes"
)
OLD = (
    "process 1 of 3 does not belong to the others: it runs another version of p4q-edge. "
    "Start the same version with the same command in all processes"
)


def _meets(monkeypatch: pytest.MonkeyPatch, cards: Sequence[Mapping[str, str] | None], rank: int) -> _Store:
    store = _Store(cards)
    monkeypatch.setattr(team_meeting, "_all_came", lambda *_: store)
    monkeypatch.setattr(team_meeting, "_FIRST_SPEAKS_S", 0.0)
    assert meet(Meeting(rank=rank, size=len(cards), address="host:1")) is store
    return store


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_processes_that_say_the_same_go_on(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _meets(monkeypatch, [CARDS[0]] * 3, rank).counts["timeout"] == 1


def test_the_first_process_tells_of_one_that_differs_and_the_others_end_in_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UsageError) as told:
        _meets(monkeypatch, CARDS, 0)
    assert str(told.value) == SAID
    for rank in (1, 2):
        with pytest.raises(SystemExit) as ended:
            _meets(monkeypatch, CARDS, rank)
        assert ended.value.code == UsageError.exit_code


def test_a_process_of_a_version_that_says_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError) as told:
        _meets(monkeypatch, [CARDS[0], None, CARDS[0]], 0)
    assert str(told.value) == OLD


def test_where_the_first_says_nothing_the_others_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="process 0 of 2 does not belong to the others: it runs another version"):
        _meets(monkeypatch, [None, CARDS[0]], 1)


def test_a_store_that_is_gone_meanwhile_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    store = _Store(CARDS)

    def gone(key: str, by: int) -> int:
        raise RuntimeError("closed")

    store.add = gone  # type: ignore[method-assign]
    monkeypatch.setattr(team_meeting, "_all_came", lambda *_: store)
    with pytest.raises(ProcessLostError, match="the process at host:1 ended while all came together"):
        meet(Meeting(rank=1, size=3, address="host:1"))


def test_long_texts_are_shown_from_where_they_differ() -> None:
    same = "x" * 500
    said = difference_in_words([{"command": f"{same}a"}, {"command": f"{same}b"}], advice="")
    assert said is not None
    assert "xa', as in process 0, got '..." in said
    assert len(said) < 250


def test_a_card_holds_the_versions_the_command_and_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text("a = 1")
    words = ["learn", "--recipe", str(recipe), "--json"]
    card = command_card(words)
    assert card["command"] == f"learn --recipe {recipe}"
    assert {"version of p4q-edge", "version of torch", f"contents of {recipe}"} < card.keys()
    assert command_card([*words, "-q"]) == card
    assert command_card(["learn", f"--recipe={recipe}"])[f"contents of {recipe}"] == card[f"contents of {recipe}"]
    recipe.write_text("a = 2")
    assert command_card(words) != card
    recipe.unlink()
    assert command_card(words)[f"contents of {recipe}"] == "no such file"


class _Gathered(Team):
    """A team in which the processes before this one have said what is given."""

    others: tuple[bytes, ...] = ()

    def gather(self, message: bytes) -> list[bytes]:
        return [*self.others, message]


def _told(opened: object, others: Sequence[object], monkeypatch: pytest.MonkeyPatch) -> P4QEdgeError:
    monkeypatch.setattr(team_card, "source_card", lambda source: source)
    said: list[bytes] = []

    class _Asked(Team):
        def gather(self, message: bytes) -> list[bytes]:
            said.append(message)
            raise KeyError

    for other in others:
        with pytest.raises(KeyError):
            require_same(_Asked(size=2), other)  # type: ignore[arg-type]
    monkeypatch.setattr(_Gathered, "others", tuple(said))
    with pytest.raises(P4QEdgeError) as caught:
        require_same(_Gathered(size=2), opened)  # type: ignore[arg-type]
    return caught.value


def test_data_that_one_process_lacks_ends_all_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"labelled images": "3 sha256 aa"}
    error = _told(InputError("photos: no such folder"), [found], monkeypatch)
    assert type(error) is InputError
    assert str(error) == "photos: no such folder (in process 1)"
    assert error.names_process
    same = _told(InputError("photos: no such folder"), [InputError("photos: no such folder")], monkeypatch)
    assert str(same) == "photos: no such folder"
    assert not same.names_process


def test_other_images_are_told_of_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    error = _told({"labelled images": "2 sha256 bb"}, [{"labelled images": "3 sha256 aa"}], monkeypatch)
    assert type(error) is UsageError
    assert str(error) == (
        "process 1 of 2 does not belong to the others: labelled images expected '3 sha256 aa', as in process 0, got "
        "'2 sha256 bb'. Let all processes read the same folders and model"
    )
    assert error.names_process


def test_a_run_folder_that_one_process_does_not_see_is_told_with_its_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pipeline, "restore_encoder", lambda *_, **__: None)
    source = SimpleNamespace(
        team=Team(rank=1, size=2), model=None, recipe=SimpleNamespace(quantization=SimpleNamespace(scheme=object))
    )
    with pytest.raises(UsageError, match="; process 1 finds no calibrated encoder of this run there") as raised:
        pipeline.calibrated_in(RunFiles(folder=tmp_path), source, key="")  # type: ignore[arg-type]
    assert raised.value.names_process
