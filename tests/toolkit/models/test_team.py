"""Processes that compute one run: what each takes, and what they exchange."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from team_parts import features, gradients
from team_processes import start_team

from p4q_edge.models import team as teams
from p4q_edge.models import team_meeting
from p4q_edge.models.compute import Compute
from p4q_edge.models.team import ALONE, Team, claim, joined_team, posted, present_team
from p4q_edge.recipe import ComputeSection
from p4q_edge.runtime.errors import ProcessLostError, UsageError


@given(size=st.integers(1, 9), count=st.integers(0, 40))
def test_every_item_is_of_one_process(size: int, count: int) -> None:
    every = list(range(count))
    parts = [every[Team(rank=rank, size=size).dealt] for rank in range(size)]
    assert sorted(item for part in parts for item in part) == every
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_nothing_is_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teams, "_collective", lambda *_, **__: pytest.fail("asked other processes"))
    value = torch.ones(2)
    ALONE.wait()
    ALONE.take_first([value])
    assert ALONE.join_gradients(value) is value
    ALONE.take_after_first(torch.nn.Linear(2, 2))
    assert ALONE.after_first(lambda: 3) == 3
    assert value.tolist() == [1.0, 1.0]
    assert ALONE.first
    assert present_team() is ALONE
    assert [1, 2][ALONE.dealt] == [1, 2]


def _found(parts: str, size: int = 2, *words: str) -> list[list[Any]]:
    """What each process found, part by part."""
    script = Path(__file__).parents[2] / "support" / "team_parts.py"
    ended = start_team([str(script), parts, *words], size)
    assert [one.code for one in ended] == [0] * size, "".join(one.err for one in ended)
    return [[json.loads(line) for line in one.out.splitlines()[-len(parts.split(",")) :]] for one in ended]


@pytest.fixture(scope="module")
def pair() -> list[list[Any]]:
    """What two processes exchanged: values, and gradients."""
    return _found("collectives,gradients")


def test_two_processes_exchange_values(pair: list[list[Any]]) -> None:
    (first, _), (second, _) = pair
    claims = [found.pop("claimed") for found in (first, second)]
    assert sum(map(sum, claims)) == 1
    assert first == second
    assert first["gathered"] == [0, 5]
    assert first["firsts"] == [[[1.0] * 3] * 2, 10.0]
    assert first["taken"] == [[[5.0, 5.0]] * 2, [[1.0] * 3] * 4]
    assert first["told"] == "first"
    assert first["nothing"] == ""
    assert first["after"] == 1
    assert first["notes"] == ["here", "here", None]


def test_gradients_of_two_processes_are_those_of_one_bit_by_bit(pair: list[list[Any]]) -> None:
    expected = gradients(ALONE)
    for _, found in pair:
        assert found == expected


@pytest.mark.slow
def test_processes_without_a_shard_leave_the_features_of_one_process(tmp_path: Path) -> None:
    expected = [features(ALONE, tmp_path / "one" / str(images), images) for images in (2, 300)]
    assert [one["shape"] for one in expected] == [[2, 2, 5], [2, 300, 5]]
    assert [len(str(one["digests"])) for one in expected] == [2 * 32 * 1, 2 * 32 * 2]
    (found,), *others = _found("features", 3, str(tmp_path / "three"), "2", "300")
    assert found == [{**one, "missing": 0} for one in expected]
    assert others == [[found]] * 2


@pytest.mark.slow
def test_any_number_of_processes_learns_the_same_bits() -> None:
    ((alone,),) = _found("learning", 1)
    assert alone["chunks"] > 2
    assert alone["moved"] > 0.01
    for size in (2, 3):
        for (found,) in _found("learning", size):
            assert found == {**alone, "divided": size}


def test_a_process_that_is_gone_is_told_of() -> None:
    def closed() -> None:
        raise RuntimeError("[file.cc:9] Connection closed by peer [127.0.0.1]:81. This is typically caused by bugs.")

    with pytest.raises(ProcessLostError) as caught:
        teams._collective(closed)
    text = str(caught.value)
    assert text.startswith("another process of this run ended (Connection closed by peer [127.0.0.1]:81). What was")
    assert "run the same command again to go on" in text


def test_notes_that_nobody_answers_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the process that keeps them stands still: torch would wait for it for many minutes."""
    woken = threading.Event()

    class Still:
        def add(self, key: str, amount: int) -> int:
            woken.wait()
            return 2

        def check(self, keys: list[str]) -> bool:
            woken.wait()
            return False

    monkeypatch.setattr(teams, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(teams, "_notes", Still)
    try:
        assert claim("teller")
        assert posted("told") is None
    finally:
        woken.set()


def test_notes_are_answered_by_those_who_keep_them(monkeypatch: pytest.MonkeyPatch) -> None:
    store = torch.distributed.HashStore()
    monkeypatch.setattr(teams, "_notes", lambda: store)
    assert [claim("teller"), claim("teller")] == [True, False]
    assert posted("told") is None
    store.set("told", "yes")
    assert posted("told") == "yes"


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    second = Team(rank=3, size=4, local_rank=1)
    assert second.device_name("auto") == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [second.device_name(name) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    assert ALONE.device_name("cuda:2") == "cuda:2"
    with pytest.raises(UsageError, match="for 4 processes, each of which takes its own GPU; got 'cuda:2'. Leave out"):
        Compute.of(ComputeSection(device="cuda:2"), second)


def _with_variables(monkeypatch: pytest.MonkeyPatch, port: int, **changes: str) -> None:
    good = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for variable, value in {**good, team_meeting.JOIN_VARIABLE: "1", **changes}.items():
        monkeypatch.setenv(variable, value)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.mark.parametrize("agent", [False, True], ids=["by hand", "torchrun"])
def test_a_process_that_waits_alone_tells_how_many_came(agent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchrun has the store in a process of its own, which waits for nobody."""
    port = _free_port()
    changes = {}
    if agent:
        store = torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        changes = {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    _with_variables(monkeypatch, port, **changes)
    said = (
        rf"^1 of 3 processes came to 127\.0\.0\.1:{port} within 1 s\. Start all of .* set P4Q_EDGE_JOIN_TIMEOUT to more"
    )
    with pytest.raises(ProcessLostError, match=said):
        joined_team().__enter__()
    if agent:
        del store


def test_a_process_without_the_first_one_names_where_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    port = _free_port()
    _with_variables(monkeypatch, port, RANK="2")
    with pytest.raises(ProcessLostError, match=rf"process 2 of 3 finds nobody at 127\.0\.0\.1:{port}, where the first"):
        joined_team().__enter__()


def test_an_address_that_another_program_has_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        _with_variables(monkeypatch, port)
        with pytest.raises(
            UsageError, match=rf"cannot listen at 127\.0\.0\.1:{port}: another program does\. Set MASTER_PORT"
        ):
            joined_team().__enter__()


def test_a_program_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team_meeting, "_GRACE_S", 0.1)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        _with_variables(monkeypatch, port, RANK="2")
        with pytest.raises(
            ProcessLostError, match=rf"process 2 of 3 finds nobody at 127\.0\.0\.1:{port}, where the first"
        ):
            joined_team().__enter__()


@pytest.mark.parametrize("text", ["0", "-1", "1e3", "86401", ""])
def test_the_time_to_wait_is_a_number_of_seconds(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_variables(monkeypatch, _free_port(), **{team_meeting.JOIN_VARIABLE: text})
    with pytest.raises(UsageError, match="expected P4Q_EDGE_JOIN_TIMEOUT between 1 and 86400 seconds, got"):
        joined_team().__enter__()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("RANK", "x"),
        ("RANK", "2"),
        ("RANK", "-1"),
        ("LOCAL_RANK", "9" * 50),
        ("WORLD_SIZE", "0"),
        ("WORLD_SIZE", "1e9"),
        ("MASTER_PORT", "99999"),
        ("MASTER_PORT", "²"),
    ],
)
def test_variables_that_torchrun_does_not_set_are_refused(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for variable, value in {**good, name: text}.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=f"expected {name} between .* as torchrun sets it, got .*or alone: unset RANK"):
        joined_team().__enter__()
