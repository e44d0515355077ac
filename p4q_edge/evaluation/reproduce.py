"""`p4q-edge reproduce`: run a validation again from its report, and compare every figure."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from p4q_edge.evaluation.torch_reference import reference_for
from p4q_edge.runtime.errors import ArtifactError, P4QEdgeError
from p4q_edge.runtime.evaluation import ChainReport, ValidateRequest, run_validation
from p4q_edge.runtime.evaluation.report import Report
from p4q_edge.runtime.statistics import Estimate

logger = logging.getLogger(__name__)

# The same files on the same machine and versions give the same numbers; the report rounds nothing.
SAME_MACHINE = 1e-9
# Other processors and versions sum in another order: some integers round apart, some images near a border change.
OTHER_COSINE = 1e-3
OTHER_SHARE = 2e-3


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of both runs; `limit` is how far they may lie apart."""

    name: str
    before: float
    now: float
    limit: float

    @property
    def same(self) -> bool:
        """Whether both runs agree."""
        return abs(self.now - self.before) <= self.limit


def repeat(report: Report, request: ValidateRequest, *, source: str) -> Report:
    """Run the request of a report again; nothing is written.

    Raises:
        ArtifactError: the engine, the images or the recipe are others than then.
    """
    again = run_validation(request, torch_reference=reference_for).report
    then, now = report.provenance.digests, again.provenance.digests
    changed = [name for name in then if name != "card" and then[name] != now.get(name)]
    if changed:
        raise ArtifactError(
            f"{source} cannot be repeated: {', '.join(changed)} changed since it was written. Restore them, or write a "
            f"new report: p4q-edge {' '.join(request.command())}"
        )
    return again


def compare_reports(before: Report, now: Report) -> tuple[Figure, ...]:
    """Return every figure that both reports have, with how far it may move."""
    alike = (
        before.provenance.machine == now.provenance.machine and before.provenance.versions == now.provenance.versions
    )
    figures: list[Figure] = []
    for title, a, b in (("", before.chain, now.chain), ("golden ", before.golden, now.golden)):
        if (a is None) != (b is None):
            raise P4QEdgeError(
                f"only one of both runs has {title or 'labelled '}images; repeat with the same --data and --reference"
            )
        if a is not None and b is not None:
            figures += _figures(a, b, title=title, alike=alike)
    figures += _trial_figures(before, now, alike=alike)
    return tuple(figures)


def _trial_figures(before: Report, now: Report, *, alike: bool) -> Iterator[Figure]:
    """Yield the figures beyond accuracy that both reports have."""
    then, again = dict(_trials(before)), dict(_trials(now))
    for name, estimate in then.items():
        if name in again:
            limit = SAME_MACHINE if alike else max(OTHER_SHARE, 1.0 / estimate.n)
            yield Figure(name=name, before=estimate.value, now=again[name].value, limit=limit)


def _trials(report: Report) -> Iterator[tuple[str, Estimate]]:
    for stage in () if report.ood is None else report.ood.stages:
        yield f"AUROC {stage.name}", stage.auroc
        yield f"rejected {stage.name}", stage.rejected
    for corrupted in report.corruptions:
        yield f"top-1 engine, {corrupted.kind} {corrupted.strength}", corrupted.engine_top1
    for row in () if report.retrieval is None else report.retrieval.rows:
        for way, recall in (("image to text", row.image_to_text), ("text to image", row.text_to_image)):
            yield f"{way} at 1 {row.name}", recall[0]


def _figures(before: ChainReport, now: ChainReport, *, title: str, alike: bool) -> Iterator[Figure]:
    # One image always may change where another machine sums in another order.
    share = SAME_MACHINE if alike else max(OTHER_SHARE, 1.0 / before.n)
    cosine = SAME_MACHINE if alike else OTHER_COSINE
    stages = {stage.name: stage for stage in now.stages}
    for stage in before.stages:
        if stage.name in stages:
            a, b = stage.top1.value, stages[stage.name].top1.value
            yield Figure(name=f"{title}top-1 {stage.name}", before=a, now=b, limit=share)
    hops = {(hop.reference, hop.candidate): hop for hop in now.hops}
    for hop in before.hops:
        other = hops.get((hop.reference, hop.candidate))
        if other is not None:
            name = f"{title}cosine {hop.reference} to {hop.candidate}"
            yield Figure(name=name, before=hop.cosine.mean.value, now=other.cosine.mean.value, limit=cosine)
