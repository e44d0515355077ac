"""The measurements of `bench` inside a report: read back, and given the accuracy of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from p4q_edge.runtime.benchmark import SpeedRow
from p4q_edge.runtime.errors import CorruptArtifactError, InputError
from p4q_edge.runtime.evaluation.comparison import ChainReport
from p4q_edge.runtime.stage import ENGINE, FLOAT
from p4q_edge.runtime.statistics import ENGINE_SCOPE
from p4q_edge.runtime.storage import MAX_JSON_BYTES, one_line, read_bounded

FULL_PRECISION = "FP32"
"""Ends the name of a candidate that computes in full precision; see `p4q-edge bench --against`."""


@dataclass(frozen=True, kw_only=True)
class _Document:
    engine_sha256: str
    rows: tuple[SpeedRow, ...]


def read_bench(path: Path, *, engine_sha256: str) -> tuple[SpeedRow, ...]:
    """Return the rows of a document of `p4q-edge bench`.

    Raises:
        InputError: the file is missing, too large or no regular one, or measures another engine.
        CorruptArtifactError: not such a document.
    """
    again = "Measure again: p4q-edge bench ENGINE -o FILE"
    try:
        data = read_bounded(path, limit_bytes=MAX_JSON_BYTES, kind="measurements")
        document = msgspec.json.decode(data, type=_Document)
    except InputError as error:
        raise InputError(f"{error} {again}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptArtifactError(
            f"{path} is not a document of `p4q-edge bench`: {one_line(error)}. {again}"
        ) from error
    if document.engine_sha256 != engine_sha256:
        raise InputError(f"{path} measures another engine ({document.engine_sha256[:12]}...). {again}")
    return document.rows


def with_accuracy(rows: Sequence[SpeedRow], chain: ChainReport | None) -> tuple[SpeedRow, ...]:
    """Give the engine's rows its top-1, and those in full precision that of the float stage, where they are known."""
    if chain is None or not rows:
        return tuple(rows)
    stages = {stage.name: stage.top1 for stage in chain.stages}
    rated = []
    for row in rows:
        stage = ENGINE if row.name == rows[0].name else FLOAT if row.name.endswith(FULL_PRECISION) else None
        known = stages.get(stage) if stage is not None and row.scope == ENGINE_SCOPE else None
        rated.append(replace(row, top1=known))
    return tuple(rated)
