"""Kill `p4q-edge` with SIGKILL at every boundary of a write, and at random times; then look at what is left.

python tools/attack/kill.py build/demo.p4q --kills 100

Each trial copies a working deployment, or a run folder, runs one command and kills it: at one of its boundaries (see
`kill_server.py`), or after a random time. Then what was there must work as before or as made anew, the same command
must succeed, nothing may be left behind or go on running, and what is learned must be the same to the last bit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kill_place import digest, prepare
from kill_trials import TRIALS, Trial

from p4q_edge.runtime.wording import number_of

EARLIER = 4
"""Tries after a kill that came too late."""


class Killer:
    """A process that runs commands and kills them; see `kill_server.py`."""

    def __init__(self, scratch: Path, *, toolkit: bool) -> None:
        command = [sys.executable, str(Path(__file__).with_name("kill_server.py")), *(["toolkit"] * toolkit)]
        self._errors = scratch / "errors"
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._line() != "ready":
            raise RuntimeError("the process that runs the commands could not begin")

    def run(self, arguments: tuple[str, ...], folder: Path, *, at: int = -1, seconds: float | None = None) -> Ended:
        """Run `p4q-edge` in a folder, which also holds its cache."""
        request = {
            "arguments": arguments,
            "cache": str(folder / "cache"),
            "at": at,
            "seconds": seconds,
            "errors": str(self._errors),
        }
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        found: dict[str, Any] = json.loads(self._line())
        return Ended(**found, said=self._errors.read_text(errors="replace").strip()[-300:])

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended: see `kill_server.run`; and what it said last."""

    code: int
    boundaries: int
    orphans: bool
    seconds: float
    said: str


@dataclass(kw_only=True)
class Row:
    """What came of the kills of one command.

    Attributes:
        outcomes: how often what came of them: `ok`, or what is wrong.
        boundaries: that the command has.
        at_boundaries: kills at one of them.
        late: kills by time that came when the command had ended.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    boundaries: int = 0
    at_boundaries: int = 0
    late: int = 0


def judge(trial: Trial, folder: Path, killer: Killer, expected: str | None) -> str | None:
    """Return what is wrong after a kill, or None."""
    if trial.works and (ended := killer.run(trial.works, folder)).code:
        return f"what was there is unusable: {ended.said}"
    again = killer.run(trial.arguments, folder)
    if again.code and not (trial.refusal and trial.refusal in again.said):
        return f"the same command fails: {again.said}"
    if trial.same and digest(folder / trial.same) != expected:
        return f"{trial.same} is another than without a kill"
    if trial.afterwards and (ended := killer.run(trial.afterwards, folder)).code:
        return f"unusable after the next run: {ended.said}"
    if kept := [path.name for pattern in trial.gone for path in folder.glob(pattern)]:
        return f"still there: {kept}"
    left = [path.name for path in folder.rglob(".*") if path.name.endswith((".tmp", ".next"))]
    return f"left behind: {left}" if left else None


def attack(
    bundle: Path, *, kills: int, seed: int = 0, names: tuple[str, ...] = (), seconds: float = float("inf")
) -> Iterator[tuple[str, Row]]:
    """Kill commands and yield what came of it, by command.

    Half of the kills are at boundaries, each of a command's where the budget reaches, half at random times between its
    beginning and its end.

    Args:
        bundle: of the deployment.
        kills: in all.
        seed: of the choice of boundaries and times.
        names: of trials; none: all.
        seconds: after which no further kill of a command is begun; each has its share.
    """
    trials = [trial for trial in TRIALS if not names or trial.name in names]
    toolkit = any(trial.toolkit for trial in trials)
    with tempfile.TemporaryDirectory() as name:
        ready = Path(name) / "ready"
        ready.mkdir()
        killer = Killer(Path(name), toolkit=toolkit)
        try:
            prepare(bundle, ready, lambda command: _unharmed(killer, command, ready), toolkit=toolkit)
            share = max(1, kills // len(trials))
            for trial in trials:
                generator, end = random.Random(f"{trial.name} {seed}"), time.monotonic() + seconds / len(trials)
                yield trial.name, _kill_often(trial, _Place(ready=ready, killer=killer), share, generator, end)
        finally:
            killer.close()


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where commands are killed, and by whom."""

    ready: Path
    killer: Killer


def _kill_often(trial: Trial, place: _Place, kills: int, generator: random.Random, end: float) -> Row:
    ready, killer = place.ready, place.killer
    folder = _copy(trial, ready)
    whole = _unharmed(killer, trial.arguments, folder)
    expected = digest(folder / trial.same) if trial.same else None
    row = Row(boundaries=whole.boundaries)
    chosen = generator.sample(range(whole.boundaries), min(whole.boundaries, max(1, kills // 2)))
    # In turns, so that a budget of time that ends early has met both kinds.
    plan = [
        at
        for pair in itertools.zip_longest(chosen, [-1] * (kills - len(chosen)), fillvalue=None)
        for at in pair
        if at is not None
    ]
    for at in plan:
        if time.monotonic() > end:
            break
        folder = _copy(trial, ready)
        ended = killer.run(trial.arguments, folder, at=at, seconds=_moment(at, whole, generator))
        for _ in range(EARLIER if at < 0 and ended.code >= 0 else 0):
            # It was faster than without an attack, or most of its time goes by before it does anything.
            folder = _copy(trial, ready)
            ended = killer.run(trial.arguments, folder, seconds=_moment(at, ended, generator))
            if ended.code < 0:
                break
        row.at_boundaries += at >= 0
        row.late += ended.code >= 0
        problem = "something it started goes on" if ended.orphans else judge(trial, folder, killer, expected)
        row.outcomes[problem or "ok"] += 1
    return row


def _moment(at: int, whole: Ended, generator: random.Random) -> float | None:
    """Return seconds after which to kill a command that takes about as long as a whole one; None at a boundary."""
    return None if at >= 0 else generator.uniform(0.0, whole.seconds)


def _unharmed(killer: Killer, command: tuple[str, ...], folder: Path) -> Ended:
    """Run a command that nobody kills; end all where it fails."""
    ended = killer.run(command, folder)
    if ended.code:
        raise SystemExit(f"{' '.join(command[:2])} fails without an attack: {ended.said}")
    return ended


def _copy(trial: Trial, ready: Path) -> Path:
    folder = ready.with_name("trial")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ready, folder)
    for pattern in trial.without:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


def main() -> int:
    """Run the attack and print its table; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--kills", type=int, default=100, help="in all (default: %(default)s; about 3 s each)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most, in all")
    parser.add_argument(
        "--command", action="append", default=[], choices=[trial.name for trial in TRIALS], help="only this one"
    )
    args = parser.parse_args()
    failed = False
    names = tuple(args.command)
    for name, row in attack(args.bundle, kills=args.kills, seed=args.seed, names=names, seconds=args.seconds):
        failed |= bool(set(row.outcomes) - {"ok"})
        total = sum(row.outcomes.values())
        print(
            f"{name}: {total} killed, {row.at_boundaries} at {number_of(row.boundaries, 'boundary', 'boundaries')}, "
            f"{row.late} too late; "
            f"{total - row.outcomes['ok']} failed",
            flush=True,
        )
        for problem, count in row.outcomes.items():
            if problem != "ok":
                print(f"  {count} x {problem}")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
