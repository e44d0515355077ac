"""How the processes of a team find each other, and whether they belong together, before they compute anything."""

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Thread
from typing import Any

from torch.distributed.rendezvous import rendezvous

from p4q_edge.runtime.errors import ProcessLostError, UsageError
from p4q_edge.runtime.storage import printable

LONGEST_WAIT = timedelta(days=7)
"""The first process may calibrate for hours while the others wait; one that dies is noticed at once all the same."""
JOIN_VARIABLE = "P4Q_EDGE_JOIN_TIMEOUT"
"""Seconds in which all processes have to come; torch reads no variable for it."""
JOIN_S, MOST_JOIN_S = 600, 86_400
_COUNTED = re.compile(r"(\d{1,9})/\d{1,9} clients joined")
_JOINED_COUNT, _READ_COUNT, _LOOK_S, _GRACE_S = "p4q-edge/joined", "p4q-edge/read", 0.1, 2.0
_FIRST_SPEAKS_S = 1.0
"""How long another process stays where the first one tells why all end: torchrun ends those that are left."""
_IN_USE = "EADDRINUSE"
_MAX_DIGITS = 9
_SHOWN = 120


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where this process meets the others.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        address: host and port of the first.
        card: what all of them must have in common, in words by what it is.
    """

    rank: int
    size: int
    address: str
    card: Mapping[str, str] = field(default_factory=dict)


def meet(meeting: Meeting) -> Any:
    """Return the store in which the processes leave notes, when all have come and belong together.

    Raises:
        UsageError: the variable of the time to wait is no number of seconds, another program has the address, or the
            cards differ: the first process says so, and where it is of another version each of the others does.
        ProcessLostError: not all came in time; the message tells how many did.
        SystemExit: the cards differ, in another process than the first.
    """
    seconds = _seconds_to_wait()
    store = _all_came(meeting, seconds)
    try:
        problem = _difference(store, meeting)
        silent = bool(meeting.rank) and store.check([_card_of(0)])
        _all_read(store, meeting)
    except RuntimeError as error:  # of torch
        raise ProcessLostError(f"the process at {printable(meeting.address)} ended while all came together") from error
    if problem and silent:
        time.sleep(_FIRST_SPEAKS_S)
        raise SystemExit(UsageError.exit_code)
    if problem:
        raise UsageError(problem)
    store.set_timeout(LONGEST_WAIT)
    return store


def _seconds_to_wait() -> int:
    text = os.environ.get(JOIN_VARIABLE, str(JOIN_S))
    seconds = whole_number(text)
    if not 1 <= seconds <= MOST_JOIN_S:
        raise UsageError(
            f"expected {JOIN_VARIABLE} between 1 and {MOST_JOIN_S} seconds, got {text[:40]!r}. Unset it for {JOIN_S}"
        )
    return seconds


def _all_came(meeting: Meeting, seconds: int) -> Any:
    """Leave this process's card and return the store when all others have left theirs."""
    end = time.monotonic() + seconds
    address = printable(meeting.address)
    try:
        store = _store(meeting, seconds)
        store.set(_card_of(meeting.rank), json.dumps(dict(meeting.card)))
        number = store.add(_JOINED_COUNT, 1)
        while number < meeting.size and time.monotonic() < end:
            time.sleep(_LOOK_S)
            number = store.add(_JOINED_COUNT, 0)
        if number >= meeting.size:
            return store
        came = str(number)
    except RuntimeError as error:  # of torch, whose classes for it are not those of every version
        if _IN_USE in str(error):
            raise UsageError(
                f"the first process cannot listen at {address}: another program does. Set MASTER_PORT to a free port "
                "in all processes (torchrun --master-port PORT)"
            ) from error
        counted = _COUNTED.search(str(error))
        came = counted[1] if counted else ""
    what = f"{came} of {meeting.size} processes came to {address}"
    if not came:
        what = f"process {meeting.rank} of {meeting.size} finds nobody at {address}, where the first process should be,"
    raise ProcessLostError(
        f"{what} within {seconds} s. Start all of them, and see that each reaches that address; for slow machines set "
        f"{JOIN_VARIABLE} to more seconds"
    )


def _card_of(rank: int) -> str:
    return f"p4q-edge/card/{rank}"


def _difference(store: Any, meeting: Meeting) -> str | None:
    """Return in words how the first process that does not belong to process 0 differs from it, or None."""
    cards = [_read_card(store, rank) for rank in range(meeting.size)]
    return difference_in_words(cards, advice="Start the same version with the same command in all processes")


def difference_in_words(cards: Sequence[Mapping[str, str] | None], *, advice: str) -> str | None:
    """Return how the first process that differs from process 0 does so, or None where all say the same.

    Args:
        cards: what each process says, by its rank; None of a process that says nothing, as one of another version.
        advice: what to do.
    """
    first = cards[0]
    for rank, card in enumerate(cards):
        who = f"process {rank} of {len(cards)} does not belong to the others"
        if card is None or first is None:
            return f"{who}: it runs another version of p4q-edge. {advice}"
        for name in sorted({*first, *card}):
            here, there = card.get(name, "none"), first.get(name, "none")
            if here != there:
                common = next((at for at, pair in enumerate(zip(there, here, strict=False)) if len({*pair}) > 1), 0)
                expected, got = (_from_where_they_differ(text, common) for text in (there, here))
                return f"{who}: {name} expected {expected!r}, as in process 0, got {got!r}. {advice}"
    return None


def _from_where_they_differ(text: str, common: int) -> str:
    """Return the part of a text that is shown, with a little of what is the same."""
    first = 0 if common < _SHOWN // 2 else common - _SHOWN // 4
    return ("..." if first else "") + printable(text[first : first + _SHOWN])


def _read_card(store: Any, rank: int) -> dict[str, str] | None:
    if not store.check([_card_of(rank)]):
        return None
    found: dict[str, str] = json.loads(store.get(_card_of(rank)))
    return found


def _all_read(store: Any, meeting: Meeting) -> None:
    """Keep the first process, which may be the one that has the store, until the others have read the cards."""
    number, end = store.add(_READ_COUNT, 1), time.monotonic() + _GRACE_S
    while not meeting.rank and number < meeting.size and time.monotonic() < end:
        time.sleep(_LOOK_S / 10)
        number = store.add(_READ_COUNT, 0)


def _store(meeting: Meeting, seconds: int) -> Any:
    """Return the store of the first process.

    Raises:
        RuntimeError: there is none in time; also where another program takes the connection and says nothing, for which
            torch waits without end.
    """
    met: Future[Any] = Future()

    def meet_there() -> None:
        try:
            waiting = timedelta(seconds=seconds)
            found, _, _ = next(rendezvous("env://", meeting.rank, meeting.size, timeout=waiting))
            met.set_result(found)
        except BaseException as error:  # noqa: BLE001  # raised where it is waited for
            met.set_exception(error)

    Thread(target=meet_there, daemon=True).start()
    try:
        return met.result(seconds + _GRACE_S)
    except TimeoutError as error:
        raise RuntimeError("no store answers") from error


def whole_number(text: str) -> int:
    """Return a number from 0 that a variable holds; -1 for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else -1
