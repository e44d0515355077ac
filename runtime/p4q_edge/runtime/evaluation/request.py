"""What `p4q-edge validate` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `validate` was asked for; paths as they were given.

    Attributes:
        reference: bundle, recipe or run folder; None looks beside the engine.
        data: labelled images; None takes those of the reference.
        limit: at most so many images, drawn with the seed; 0 takes all.
        max_top1_drop: percentage points, see `Gates`.
        bench: a document of `p4q-edge bench` on this engine, to show beside the accuracy.
        command: the arguments after `p4q-edge`.
    """

    engine: Path
    reference: Path | None = None
    data: str | None = None
    limit: int = 0
    batch_size: int = 64
    seed: int = 0
    max_top1_drop: float | None = None
    device: str = "auto"
    threads: int | None = None
    bench: Path | None = None
    command: tuple[str, ...] = ()
