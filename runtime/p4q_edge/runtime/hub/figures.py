"""What is known of a bundle's accuracy: from a report about it, or from the results that it carries itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PureWindowsPath

import numpy as np

from p4q_edge.runtime.artifacts import Bundle
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.evaluation.report import Report
from p4q_edge.runtime.stage import FAKE_QUANT, FLOAT
from p4q_edge.runtime.statistics import Estimate, metrics
from p4q_edge.runtime.wording import number_of

ZERO_SHOT = "zero_shot"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Accuracies, each with n and a 95 % interval.

    Attributes:
        data: which images, without the folders of this machine.
        top1: by stage: `zero_shot`, `float`, `fake_quant`, `onnx`, `engine`.
        top5: likewise; absent where there are five classes or fewer.
        backend: of the engine, where one was measured.
        cross_validated: whether nothing was held out, and these are of heads that were learned from the others.
    """

    data: str
    top1: dict[str, Estimate]
    top5: dict[str, Estimate]
    backend: str = ""
    cross_validated: bool = False


def figures_of(bundle: Bundle, report: Report | None) -> Figures | None:
    """Return the accuracies of a report of this bundle, or those that can be told from the bundle alone.

    None where nothing is known: no labelled image was seen.

    Raises:
        UsageError: the report is of another bundle, or has no accuracy.
    """
    if report is not None:
        return _of_report(bundle, report)
    return _of_recorded_results(bundle) or _of_cross_validation(bundle)


def _of_report(bundle: Bundle, report: Report) -> Figures:
    if report.provenance.digests.get("bundle") != bundle.sha256():
        raise UsageError(
            f"the report is not about {bundle.path}, but about another bundle. Name the report that `p4q-edge "
            "validate` wrote for an engine of this one."
        )
    if report.chain is None:
        raise UsageError(
            "the report has no accuracy: there were no labelled images. Make one with them: p4q-edge validate ENGINE "
            "--data FOLDER"
        )
    stages = report.chain.stages
    first = {} if report.zero_shot is None else {ZERO_SHOT: report.zero_shot}
    return Figures(
        data=_without_folders(report.data),
        top1=first | {stage.name: stage.top1 for stage in stages},
        top5={stage.name: stage.top5 for stage in stages if stage.top5 is not None},
        backend=report.built.backend,
    )


def _of_recorded_results(bundle: Bundle) -> Figures | None:
    results = bundle.reference()
    if results is None:
        return None
    head, labels = bundle.head(), results.label
    top1, top5 = {}, {}
    answers = np.array(bundle.manifest.data_index.zero_shot)
    if len(answers) == len(labels):
        top1[ZERO_SHOT] = metrics.proportion(answers == labels)
    for name, embedding in ((FLOAT, results.float_embedding), (FAKE_QUANT, results.embedding)):
        logits = head.logits(embedding)
        top1[name] = metrics.proportion(metrics.top_k_correct(logits, labels))
        if len(head.class_names) > 5:
            top5[name] = metrics.proportion(metrics.top_k_correct(logits, labels, 5))
    return Figures(
        data=number_of(len(labels), "image that was not learned from", "images that were not learned from"),
        top1=top1,
        top5=top5,
    )


def _of_cross_validation(bundle: Bundle) -> Figures | None:
    found = bundle.manifest.data_index.cross_validated
    if found is None:
        return None
    counts = {ZERO_SHOT: found.zero_shot, FLOAT: found.learned_float, FAKE_QUANT: found.learned_quantized}
    places = np.arange(found.n)
    return Figures(
        data=f"{number_of(found.n, 'image')}, cross-validated in {found.folds} parts",
        top1={name: metrics.proportion(places < count) for name, count in counts.items()},
        top5={},
        cross_validated=True,
    )


def _without_folders(data: str) -> str:
    """Return where images came from, `100 images of NAME`, by the last part of a path alone."""
    count, of, source = data.rpartition(" of ")
    return f"{count}{of}{PureWindowsPath(source).name or source}"
