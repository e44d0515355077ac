"""Processes that compute one run: what each takes, and what they exchange."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from team_processes import start_pair

from p4q_edge.models import team as teams
from p4q_edge.models.compute import Compute
from p4q_edge.models.team import ALONE, Team, joined_team, present_team
from p4q_edge.recipe import ComputeSection
from p4q_edge.runtime.errors import ProcessLostError, UsageError


@given(size=st.integers(1, 9), count=st.integers(0, 40))
def test_every_item_and_every_row_is_of_one_process(size: int, count: int) -> None:
    every = list(range(count))
    members = [Team(rank=rank, size=size) for rank in range(size)]
    assert sorted(item for one in members for item in every[one.dealt]) == every
    parts = [every[one.rows(count)] for one in members]
    assert [row for part in parts for row in part] == every
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_nothing_is_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teams, "_collective", lambda *_, **__: pytest.fail("asked other processes"))
    value = torch.ones(2)
    ALONE.wait()
    ALONE.add([value])
    ALONE.take_after_first(torch.nn.Linear(2, 2))
    assert ALONE.after_first(lambda: 3) == 3
    assert value.tolist() == [1.0, 1.0]
    assert ALONE.first
    assert present_team() is ALONE
    assert [1, 2][ALONE.dealt] == [1, 2]


def _of_pair(part: str) -> tuple[Any, Any]:
    script = Path(__file__).parents[2] / "support" / "team_parts.py"
    first, second = start_pair([str(script), part])
    assert (first.code, second.code) == (0, 0), first.err + second.err
    return json.loads(first.out.splitlines()[-1]), json.loads(second.out.splitlines()[-1])


def test_two_processes_exchange_values() -> None:
    first, second = _of_pair("collectives")
    assert first == second
    assert first["sums"] == [[[3.0] * 3] * 2, 30.0]
    assert first["taken"] == [[[5.0, 5.0]] * 2, [[1.0] * 3] * 4]
    assert first["told"] == "first"
    assert first["nothing"] == ""
    assert first["after"] == 1
    assert first["notes"] == ["here", "here", None]


def test_gradients_of_two_processes_are_those_of_one() -> None:
    weight = torch.arange(5, dtype=torch.float64).reshape(5, 1).repeat(1, 2).requires_grad_()
    images = torch.linspace(-1, 1, 14, dtype=torch.float64).reshape(7, 2)
    loss = ((images @ torch.sin(weight).T) ** 2).sum()
    loss.backward()
    for found in _of_pair("gradients"):
        assert found["loss"] == pytest.approx(float(loss.detach()), rel=1e-12)
        torch.testing.assert_close(torch.tensor(found["gradient"], dtype=torch.float64), weight.grad)
        torch.testing.assert_close(torch.tensor(found["joined"], dtype=torch.float64), torch.sin(weight).detach())


def test_a_process_that_is_gone_is_told_of() -> None:
    def closed() -> None:
        raise RuntimeError("[file.cc:9] Connection closed by peer [127.0.0.1]:81. This is typically caused by bugs.")

    with pytest.raises(ProcessLostError) as caught:
        teams._collective(closed)
    text = str(caught.value)
    assert text.startswith("another process of this run ended (Connection closed by peer [127.0.0.1]:81). What was")
    assert "run the same command again to go on" in text


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    second = Team(rank=3, size=4, local_rank=1)
    assert second.device_name("auto") == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [second.device_name(name) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    assert ALONE.device_name("cuda:2") == "cuda:2"
    with pytest.raises(UsageError, match="for 4 processes, each of which takes its own GPU; got 'cuda:2'. Leave out"):
        Compute.of(ComputeSection(device="cuda:2"), second)


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
