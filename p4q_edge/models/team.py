"""Several processes that compute one run together, as torchrun starts them. Nothing else here uses `torch.distributed`.

Without torchrun there is a team of one, whose methods cost nothing. In a team the first process is the one that
writes; whatever all of them call, they call in the same order.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from p4q_edge.models.team_meeting import LONGEST_WAIT, Meeting, meet, whole_number
from p4q_edge.runtime.choices import TORCHRUN_VARIABLES
from p4q_edge.runtime.errors import P4QEdgeError, ProcessLostError, UsageError

T = TypeVar("T")
E = TypeVar("E", bound=P4QEdgeError)

MAX_PROCESSES = 1 << 16
ANSWER_SECONDS = 5.0
"""For a note: far more than an answer takes, and less than torchrun gives a process to end."""
LOST = (
    "another process of this run ended ({reason}). What was computed is kept: run the same command again to go on. "
    "The table of torchrun below names the process that ended first"
)


@dataclass(frozen=True, kw_only=True)
class Team:
    """The processes of one run, seen from one of them.

    Attributes:
        rank: of this one, from 0.
        size: how many there are.
        local_rank: of this one on its machine, from 0; its GPU has that number.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def device_name(self, name: str) -> str:
        """Return the device of this process for a name that a recipe holds: each has a GPU of its own.

        Raises:
            UsageError: one GPU is named for all of them.
        """
        if self.size == 1 or name == "cpu" or not torch.cuda.is_available():
            return name
        if ":" in name:
            raise UsageError(
                f"expected the device auto, cuda or cpu for {self.size} processes, each of which takes its own GPU; "
                f"got {name!r}. Leave out --device and compute.device"
            )
        return f"cuda:{self.local_rank}"

    @property
    def dealt(self) -> slice:
        """This process's share of items that are dealt one by one: every item goes to one process."""
        return slice(self.rank, None, self.size)

    def wait(self) -> None:
        """Wait until all are here."""
        if self.size > 1:
            _collective(dist.all_reduce, torch.zeros(1))

    def after_first(self, make: Callable[[], T]) -> T:
        """Call a function in the first process, and when it is done there in the others."""
        if self.first:
            made = make()
            self.wait()
            return made
        self.wait()
        return make()

    def take_first(self, tensors: Sequence[Tensor]) -> None:
        """Give tensors of one dtype and device the values that they have in the first process."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        _collective(dist.broadcast, flat, src=0)
        for tensor, own in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(own.view_as(tensor))

    def join_rows(self, rows: Tensor, places: Tensor, count: int) -> Tensor:
        """Return the rows of all processes `(count, dim)`, of which each has the whole gradient.

        Args:
            rows: of this one, `(n, dim)`.
            places: where they go, `(n,)` int64; no place belongs to two processes.
            count: of places.
        """
        whole = rows.new_zeros(count, rows.shape[1]).index_copy(0, places, rows)
        joined: Tensor = whole if self.size == 1 else _JoinedRows.apply(whole)
        return joined

    def join_gradients(self, copies: Tensor) -> Tensor:
        """Return copies `(count, ...)`, each for one process, so that all processes get the gradients of all copies.

        A gradient reaches the team from the one process that uses the copy; the others' zeros leave its bits as they
        are.
        """
        joined: Tensor = copies if self.size == 1 else _JoinedGradients.apply(copies)
        return joined

    @torch.no_grad()
    def take_after_first(self, module: nn.Module) -> None:
        """Give the parameters and buffers of a module the values that they have in the first process."""
        if self.size > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                value = tensor.contiguous()
                _collective(dist.broadcast, value, src=0)
                tensor.copy_(value)

    def tell(self, message: bytes = b"") -> bytes:
        """Return the message of the first process, in all of them; what the others give is not read."""
        length = torch.tensor([len(message)])
        _collective(dist.broadcast, length, src=0)
        data = torch.zeros(int(length), dtype=torch.uint8)
        if self.first:
            data = torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else data
        if len(data):
            _collective(dist.broadcast, data, src=0)
        return data.numpy().tobytes()

    def gather(self, message: bytes) -> list[bytes]:
        """Return the messages of all processes, by their rank, in each of them."""
        if self.size == 1:
            return [message]
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        _collective(dist.all_gather, lengths, torch.tensor([len(message)]))
        longest = max(int(length) for length in lengths)
        own = torch.frombuffer(bytearray(message.ljust(longest + 1, b"\0")), dtype=torch.uint8)
        found = [torch.zeros_like(own) for _ in range(self.size)]
        _collective(dist.all_gather, found, own)
        return [data.numpy().tobytes()[: int(length)] for data, length in zip(found, lengths, strict=True)]


def naming_process(error: E) -> E:
    """Mark an error whose message says which process it is of, and return it."""
    error.names_process = True
    return error


ALONE = Team()
_JOINED: ContextVar[Team] = ContextVar("team", default=ALONE)


def present_team() -> Team:
    """Return the team that this process has joined; alone it is one of its own."""
    return _JOINED.get()


@contextmanager
def joined_team(own_card: Mapping[str, str] | None = None) -> Iterator[Team]:
    """Join the processes that torchrun started, for the length of a `with` block.

    Their variables are taken out of the environment, so that no process that is started from here joins too.

    Args:
        own_card: what all processes must have in common, in words by what it is.

    Raises:
        UsageError: the variables are not such as torchrun sets, another program has their address, or the cards of
            the processes differ, which the first one tells.
        ProcessLostError: not all processes came in time.
        SystemExit: the cards differ, in another process.
    """
    own = {name: os.environ[name] for name in TORCHRUN_VARIABLES}
    team = _team_of(own)
    cuda = torch.cuda.is_available()
    if cuda and team.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(team.local_rank)
    address = f"{own['MASTER_ADDR']}:{own['MASTER_PORT']}"
    store = meet(Meeting(rank=team.rank, size=team.size, address=address, card=own_card or {}))
    kept = {"timeout": LONGEST_WAIT, "store": store, "rank": team.rank, "world_size": team.size}
    _collective(dist.init_process_group, "cpu:gloo,cuda:nccl" if cuda else "gloo", **kept)
    for name in own:
        del os.environ[name]
    token = _JOINED.set(team)
    try:
        yield team
        dist.destroy_process_group()  # not after an error: it might wait for a process that is gone
    finally:
        _JOINED.reset(token)


def _team_of(variables: Mapping[str, str]) -> Team:
    """Return this process's place among those that torchrun started.

    Raises:
        UsageError: a variable is no number, or one that torchrun does not give.
    """
    size = _number_in(variables, "WORLD_SIZE", range(1, MAX_PROCESSES + 1))
    _number_in(variables, "MASTER_PORT", range(1, 1 << 16))
    return Team(
        rank=_number_in(variables, "RANK", range(size)),
        size=size,
        local_rank=_number_in(variables, "LOCAL_RANK", range(size)),
    )


def _number_in(variables: Mapping[str, str], name: str, known: range) -> int:
    text = variables[name]
    number = whole_number(text)
    if number not in known:
        raise UsageError(
            f"expected {name} between {known.start} and {known.stop - 1}, as torchrun sets it, got {text[:40]!r}. "
            f"Start the processes with torchrun, or alone: unset {' '.join(TORCHRUN_VARIABLES)}"
        )
    return number


def post(key: str, text: str) -> None:
    """Leave a note for the other processes, which also reaches them when this one ends."""
    _notes().set(key, text)


def posted(key: str) -> str | None:
    """Return a note that any process left; None where there is none, or nobody left who keeps it."""
    return _answered(lambda: _notes().get(key).decode() if _notes().check([key]) else None, otherwise=None)


def claim(key: str) -> bool:
    """Return whether this process is the first that asks for what only one does; so is one that nobody answers."""
    return _answered(lambda: int(_notes().add(key, 1)) == 1, otherwise=True)


def _answered(ask: Callable[[], T], *, otherwise: T) -> T:
    """Return what the notes say, or something else where nobody answers: whoever asks is about to end.

    A process that stands still does not answer and closes no connection, and torch waits for it for many minutes; so it
    does behind a question of another thread.
    """
    answers: SimpleQueue[T] = SimpleQueue()

    def put() -> None:
        with suppress(RuntimeError, ValueError):
            answers.put(ask())
            return
        answers.put(otherwise)

    try:
        threading.Thread(target=put, daemon=True, name="p4q-edge-notes").start()
        return answers.get(timeout=ANSWER_SECONDS)
    except (Empty, RuntimeError):  # the latter of an interpreter that ends, and starts no thread
        return otherwise


def _notes() -> Any:
    return dist.distributed_c10d._get_default_store()


class _JoinedRows(torch.autograd.Function):
    """The sum over all processes of what is zero in all but one."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        _collective(dist.all_reduce, total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _JoinedGradients(torch.autograd.Function):
    """The same tensor, whose gradient is the sum over all processes."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return own.view_as(own)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        _collective(dist.all_reduce, total)
        return total


def _collective(function: Callable[..., object], *args: object, **options: object) -> None:
    """Call a function that all processes call.

    Raises:
        ProcessLostError: one of them is gone.
    """
    try:
        function(*args, **options)
    except RuntimeError as error:  # torch has no class of its own for a closed connection
        said = " ".join(str(error).split()).rpartition("] ")[2].partition(". ")[0]
        raise ProcessLostError(LOST.format(reason=said or type(error).__name__)) from error
