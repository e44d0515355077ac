"""What each of two processes does in `tests/toolkit/models/test_team.py`: prints JSON of what it got."""

from __future__ import annotations

import json
import sys

import torch
from torch import nn

from p4q_edge.models.team import Team, joined_team, post, posted


def collectives(team: Team) -> dict[str, object]:
    """Everything that values go through."""
    tensors = [torch.full((2, 3), float(team.rank + 1)), torch.tensor(10.0 * (team.rank + 1))]
    team.add(tensors)
    module = nn.Linear(2, 2)
    nn.init.constant_(module.weight, 5.0 + team.rank)
    module.register_buffer("sliced", torch.full((4, 4), 1.0 + team.rank)[:, 1:])
    team.take_after_first(module)
    calls: list[float] = []
    post(f"from {team.rank}", "here")
    team.wait()
    return {
        "sums": [tensor.tolist() for tensor in tensors],
        "taken": [module.weight.tolist(), module.sliced.tolist()],
        "told": team.tell(b"first" if team.first else b"second").decode(),
        "nothing": team.tell().decode(),
        "after": team.after_first(lambda: calls.append(1.0) or len(calls)),
        "notes": [posted("from 0"), posted("from 1"), posted("from 2")],
    }


def gradients(team: Team) -> dict[str, object]:
    """The gradient of a loss over joined rows, of which each process has its images' part."""
    weight = torch.arange(5, dtype=torch.float64).reshape(5, 1).repeat(1, 2).requires_grad_()
    images = torch.linspace(-1, 1, 14, dtype=torch.float64).reshape(7, 2)
    own = torch.arange(5)[team.dealt].flip(0)
    joined = team.join_rows(torch.sin(weight[own]), own, 5)
    loss = ((images[team.rows(7)] @ joined.T) ** 2).sum()
    loss.backward()
    total = loss.detach().clone()
    team.add([total, weight.grad])
    return {"loss": float(total), "gradient": weight.grad.tolist(), "joined": joined.tolist()}


def main() -> None:
    """Join, do the part that is named, print."""
    with joined_team() as team:
        found = {"collectives": collectives, "gradients": gradients}[sys.argv[1]](team)
        sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
