"""What a validation found beyond accuracy, as tables for text, Markdown and page alike."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from p4q_edge.runtime.evaluation.report import formatting as words
from p4q_edge.runtime.evaluation.report.document import Report
from p4q_edge.runtime.evaluation.trials import ClassGain, CorruptionRow, ModalityReport, RetrievalReport, UnknownReport
from p4q_edge.runtime.statistics import Estimate
from p4q_edge.runtime.wording import number_of


class Cell(NamedTuple):
    """What stands in a table, with its interval where it has one."""

    value: str
    interval: str = ""

    def __str__(self) -> str:
        return f"{self.value} {self.interval}".rstrip()


MOST_CLASSES = 30
"""Classes in a table; the document has all."""
MOST = 10
"""Largest number of nearest ones that recall is told for."""


@dataclass(frozen=True, kw_only=True)
class TrialTable:
    """A table with its title, and what is to be known to read it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str

    @property
    def lines(self) -> tuple[tuple[str, ...], ...]:
        """The rows as texts, each interval behind its value."""
        return tuple(tuple(map(str, row)) for row in self.rows)


def trial_tables(report: Report, *, details: bool = True) -> tuple[TrialTable, ...]:
    """Return a table for each part that was asked for, and with details for what is always told."""
    always = []
    if details and report.class_gains:
        always.append(_class_gains(report.class_gains))
    if details and report.modality is not None:
        always.append(_modality(report.modality))
    return (*always, *_tables(report))


def _tables(report: Report) -> Iterator[TrialTable]:
    if report.ood is not None:
        yield _unknown(report.ood, report.built.engine)
    if report.corruptions:
        yield _corruptions(report.corruptions)
    if report.retrieval is not None:
        yield _retrieval(report.retrieval)


def _share(estimate: Estimate) -> Cell:
    return Cell(words.percent(estimate.value), words.interval(estimate))


def _class_gains(rows: tuple[ClassGain, ...]) -> TrialTable:
    half = MOST_CLASSES // 2
    shown = rows if len(rows) <= MOST_CLASSES else (*rows[:half], *rows[-half:])
    count = sum(row.learned.n for row in rows)
    left_out = "" if shown is rows else f" Of {len(rows)} classes the first and the last {half} stand here."
    return TrialTable(
        title=f"Learned against zero-shot by class, n = {count}",
        header=("class", "zero-shot, float", "engine", "difference, points", "n"),
        rows=tuple(
            (
                Cell(row.name),
                _share(row.zero_shot),
                _share(row.learned),
                Cell(f"{100 * (row.learned.value - row.zero_shot.value):+.1f}"),
                Cell(str(row.learned.n)),
            )
            for row in shown
        ),
        note="Zero-shot: hand-written prompts in full precision, on the images for which the bundle has their answers. "
        f"What learning cost most stands first.{left_out}",
    )


def _modality(found: ModalityReport) -> TrialTable:
    rows = tuple(
        (Cell(words.stage(row.name)), *(_number(value) for value in (row.gap, row.own, row.other)))
        for row in found.rows
    )
    return TrialTable(
        title=f"Images and class embeddings, n = {found.n}, {number_of(found.classes, 'class')}",
        header=("stage", "modality gap", "cosine with the own class", "with the nearest other class"),
        rows=rows,
        note="Gap: distance of the mean image embedding from the mean class embedding, both of length 1.",
    )


def _number(estimate: Estimate) -> Cell:
    return Cell(f"{estimate.value:.4f}", f"[{estimate.low:.4f}, {estimate.high:.4f}]")


def _unknown(found: UnknownReport, engine: str) -> TrialTable:
    rows = tuple(
        (
            Cell(words.stage(stage.name)),
            _number(stage.auroc),
            _share(stage.rejected),
            _share(stage.wrongly_rejected),
            _share(stage.accepted_at_95),
        )
        for stage in found.stages
    )
    own = " or that of its class" if found.class_thresholds else ""
    limit = (
        f"Rejected: a score below {found.threshold:.3g}{own}, the engine's."
        if found.rejects
        else "The engine has no threshold and rejects nothing. To fit one: p4q-edge head calibrate "
        f"{shlex.quote(engine)} LABELLED --unknown DIR --apply."
    )
    return TrialTable(
        title=f"Images of no class: {found.n} of {found.source}, beside {number_of(found.labelled, 'labelled one')}",
        header=("stage", "AUROC of the score", "rejected", "labelled ones rejected", "accepted where 95 % are kept"),
        rows=rows,
        note=f"{limit} AUROC: the chance that an image of a class scores higher; 0.5 is guessing.",
    )


def _corruptions(rows: tuple[CorruptionRow, ...]) -> TrialTable:
    reference = rows[0].reference
    compared = reference is not None
    header = (
        "images",
        *([f"top-1, {words.stage(str(reference))}"] if compared else []),
        "top-1, engine",
        *(["difference, points"] if compared else []),
    )
    lines = []
    for row in rows:
        amount = f"quality {row.amount:g}" if row.kind == "jpeg" else f"{row.amount:g} {row.unit}"
        name = "as they are" if row.kind == "none" else f"{row.kind} {row.strength}: {amount}"
        before = [] if row.reference_top1 is None else [_share(row.reference_top1)]
        moved = row.difference
        change = [] if moved is None else [Cell(words.signed(moved), words.signed_interval(moved))]
        lines.append((Cell(name), *before, _share(row.engine_top1), *change))
    return TrialTable(
        title=f"Degraded images, n = {rows[0].engine_top1.n}",
        header=header,
        rows=tuple(lines),
        note="The pixels behind resize and crop are changed; strengths were chosen before any model was measured.",
    )


def _of_all(found: RetrievalReport) -> str:
    """Return which columns say little, as so many nearest ones are all that there are."""
    few = [number_of(count, kind) for count, kind in ((found.texts, "text"), (found.images, "image")) if count <= MOST]
    return f" Of {' and '.join(few)} the nearest {MOST} are all, right or not: name more." if few else ""


def _retrieval(found: RetrievalReport) -> TrialTable:
    rows = tuple(
        (Cell(words.stage(row.name)), *(_share(value) for value in (*row.image_to_text, *row.text_to_image)))
        for row in found.rows
    )
    cut = number_of(found.cut, "text is longer than it reads and was", "texts are longer than it reads and were")
    return TrialTable(
        title=f"Retrieval: {number_of(found.images, 'image')} and {number_of(found.texts, 'text')} of {found.source}",
        header=("stage", *(f"{way} at {k}" for way in ("image to text", "text to image") for k in (1, 5, 10))),
        rows=rows,
        note="Recall with the features in front of the adapter and the float text tower."
        + (f" {cut} cut." if found.cut else "")
        + _of_all(found),
    )
