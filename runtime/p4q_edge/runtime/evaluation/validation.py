"""`validate`: which stages there are here, on which images, and the report about them.

The runtime knows the engine, the bundle's graph and the golden samples. The toolkit adds the PyTorch stages and the
data of the recipe as a `Reference`; without it the bundle's results of PyTorch are the reference.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from p4q_edge.runtime.artifacts import REFERENCE, Bundle, card_path
from p4q_edge.runtime.benchmark import SpeedRow
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.evaluation.comparison import ChainOptions, ChainReport, validate_chain
from p4q_edge.runtime.evaluation.gates import GateResult
from p4q_edge.runtime.evaluation.recorded_stages import recorded_stages
from p4q_edge.runtime.evaluation.report.document import (
    Baseline,
    DebugReport,
    LearningPoint,
    Provenance,
    Report,
    encode,
    is_report,
)
from p4q_edge.runtime.evaluation.report.markdown import render_markdown
from p4q_edge.runtime.evaluation.report.speed import read_bench, with_accuracy
from p4q_edge.runtime.evaluation.request import ValidateRequest
from p4q_edge.runtime.evaluation.subject import (
    Subject,
    built_of,
    golden_chain,
    in_order,
    nothing_to_compare_with,
    open_subject,
    recorded_zero_shot,
)
from p4q_edge.runtime.evaluation.trials import (
    CaptionedImages,
    ClassGain,
    OfNoClass,
    Tested,
    Trials,
    called_unknown,
    check_sources,
    check_trials,
    class_gains,
    run_trials,
)
from p4q_edge.runtime.images import LabelledImages, draw_subset, read_class_folders, subset
from p4q_edge.runtime.machine import provenance
from p4q_edge.runtime.stage import FAKE_QUANT, FLOAT, Outputs, Stage
from p4q_edge.runtime.statistics import Estimate, metrics
from p4q_edge.runtime.storage import atomic_write, is_read_only, require_writable, sha256_bytes, sha256_file
from p4q_edge.runtime.wording import number_of, one_or_many

logger = logging.getLogger(__name__)

REPORT_SUFFIX = ".report.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """What the toolkit adds.

    Attributes:
        stages: `float` and `fake_quant`, as far as PyTorch can run them.
        images: the data of the recipe or of `--data`; None if there is none.
        files: whether the bundle's graph is what the PyTorch model gives.
        debug: what the comparison of layers found, if it was asked for.
        captioned: images with captions, if they were asked for.
        of_no_class: images of none of the classes, where they were decoded before.
        decoded: whether `check_trials` was called already.
        not_checked: what could not be added, and why.
    """

    stages: Mapping[str, Stage] = field(default_factory=dict)
    images: LabelledImages | None = None
    baselines: tuple[Baseline, ...] = ()
    learning: tuple[LearningPoint, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    files: tuple[GateResult, ...] = ()
    debug: DebugReport | None = None
    captioned: CaptionedImages | None = None
    of_no_class: OfNoClass | None = None
    decoded: bool = False
    not_checked: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """The report, and the images it speaks of."""

    report: Report
    images: LabelledImages | None


ReferenceOf = Callable[[ValidateRequest, Subject], Reference]
"""The toolkit's `torch_reference`."""
Renderer = Callable[[Outcome], bytes]
RENDERERS: Mapping[str, Renderer] = {
    ".json": lambda outcome: encode(outcome.report),
    ".md": lambda outcome: render_markdown(outcome.report).encode(),
}


def run_validation(request: ValidateRequest, *, torch_reference: ReferenceOf | None = None) -> Outcome:
    """Run every stage that there is and report. Every artifact is opened and checked once.

    Args:
        request: what to validate.
        torch_reference: the toolkit's function that adds PyTorch, given what is opened here.

    Raises:
        UsageError: a limit was asked for that nothing here can answer, or what was named does not exist.
    """
    check_sources(request)
    subject = open_subject(request)
    try:
        reference = Reference() if torch_reference is None else torch_reference(request, subject)
        found = _run(request, subject, reference)
    finally:
        subject.close()
    return Outcome(report=_report(request, subject, found), images=found.images)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """What a validation found; `reference` and `images` as they were compared."""

    reference: Reference
    images: LabelledImages | None
    speed: tuple[SpeedRow, ...]
    golden: ChainReport
    chain: ChainReport | None
    trials: Trials
    unknown: tuple[int, ...]


def _run(request: ValidateRequest, subject: Subject, reference: Reference) -> _Found:
    speed = () if request.bench is None else read_bench(request.bench, engine_sha256=subject.card.engine_sha256)
    any_image = in_order({**reference.stages, **subject.stages})  # results that were recorded are of some images alone
    images = _images(request, subject, reference)
    of_no_class = reference.of_no_class
    if not reference.decoded:
        learned = learned_digests(subject.bundle)
        of_no_class = check_trials(
            request, images, spec=subject.card.preprocess, learned=learned, checked=reference.of_no_class
        )
    if images is not None and FAKE_QUANT not in reference.stages:
        reference, images = with_recorded(reference, images, subject, request)
    if images is not None:
        images = subset(images, draw_subset(len(images.labels), request.limit, seed=request.seed))
    if request.max_top1_drop is not None and (images is None or FLOAT not in reference.stages):
        raise UsageError(nothing_to_compare_with(subject))
    options = ChainOptions(batch_size=request.batch_size, seed=request.seed, gates=subject.gates)
    golden = golden_chain(subject, options)
    chain = None
    logits: dict[str, np.ndarray] = {}
    embeddings: dict[str, np.ndarray] = {}

    def see(name: str, outputs: Outputs) -> None:
        logits[name], embeddings[name] = outputs["logits"], outputs["embedding"]

    if images is not None:
        stages, names = in_order({**reference.stages, **subject.stages}), subject.card.class_names
        chain = validate_chain(stages, images.pixels, images.labels, names, options=options, see=see)
    tested = Tested(
        card=subject.card,
        stages=any_image,
        images=images,
        logits=logits,
        embeddings=embeddings,
        class_rows=_class_rows(subject),
        captioned=reference.captioned,
        of_no_class=of_no_class,
    )
    trials = run_trials(request, tested)
    unknown = () if chain is None else _called_unknown(subject, logits[chain.stages[-1].name])
    return _Found(
        reference=reference, images=images, speed=speed, golden=golden, chain=chain, trials=trials, unknown=unknown
    )


def _called_unknown(subject: Subject, logits: np.ndarray) -> tuple[int, ...]:
    return called_unknown(logits, class_names=subject.card.class_names, calibration=subject.card.calibration)


def _class_rows(subject: Subject) -> np.ndarray | None:
    """Return the class embeddings that are folded into the engine; None where neither bundle nor card has them."""
    if subject.bundle is not None:
        return subject.bundle.head().text_embedding
    return subject.card.head_rows().text_embedding if subject.card.folded_head else None


def _report(request: ValidateRequest, subject: Subject, found: _Found) -> Report:
    reference, images, chain = found.reference, found.images, found.chain
    zero_shot = {} if images is None else recorded_zero_shot(subject, images)
    files = (*subject.files, *reference.files)
    held = all(part.passed for part in (chain, found.golden, *files) if part is not None)
    return Report(
        title=f"{request.engine.name}: {number_of(len(subject.card.class_names), 'class')}, {subject.card.model.name}",
        passed=held and not _faulty(reference.debug),
        data=images.source if images is not None else f"{number_of(found.golden.n, 'golden sample')}",
        built=built_of(subject),
        files=files,
        chain=chain,
        golden=found.golden,
        zero_shot=_zero_shot(zero_shot, images),
        class_gains=() if chain is None or not zero_shot else _class_gains(chain, zero_shot),
        unknown=found.unknown,
        baselines=reference.baselines,
        learning=reference.learning,
        speed=with_accuracy(found.speed, chain),
        modality=found.trials.modality,
        ood=found.trials.ood,
        corruptions=found.trials.corruptions,
        retrieval=found.trials.retrieval,
        debug=reference.debug,
        prompts={} if subject.bundle is None else dict(subject.bundle.manifest.data_index.prompts),
        not_checked=_not_checked(subject, reference, images),
        provenance=_provenance(request, subject, found),
    )


def _zero_shot(answers: Mapping[int, int], images: LabelledImages | None) -> Estimate | None:
    if not answers or images is None:
        return None
    return metrics.proportion(np.array([answer == images.labels[index] for index, answer in answers.items()]))


def _class_gains(chain: ChainReport, zero_shot: Mapping[int, int]) -> tuple[ClassGain, ...]:
    return class_gains(zero_shot, chain.predictions[chain.stages[-1].name], chain.labels, chain.class_names)


def with_recorded(
    reference: Reference, images: LabelledImages, subject: Subject, request: ValidateRequest
) -> tuple[Reference, LabelledImages]:
    """Add what PyTorch computed when the bundle was exported, and keep the images that it was computed on.

    Where no image is among them, or the bundle has no results, both come back as they are, and the report says so.
    """
    found = None if subject.bundle is None else subject.bundle.reference()
    if found is None or subject.bundle is None:
        missing = "no bundle" if subject.bundle is None else "the bundle has no results of it (export.reference_images)"
        return _without(reference, missing), images
    if subject.card.as_cpu_graph:
        found = found.for_cpu()
    # In the order in which a limit draws: as many as it allows are looked for, not looked for among so many.
    order = np.random.default_rng(request.seed).permutation(len(images.labels))
    rows, seen = found.match(images.pixels, order, limit=request.limit)
    if not rows:
        return _without(reference, f"none of these images is among the {len(found)} of the bundle"), images
    known = np.sort(np.fromiter(rows, np.int64))
    recorded = found.label[[rows[index] for index in known]]
    notes = []
    if left := seen - known.size:
        notes.append(f"{number_of(left, 'image')} without results of PyTorch in the bundle")
    if other := int(np.count_nonzero(recorded != images.labels[known])):
        logger.warning(
            "%d of %s %s another label than in the bundle",
            other,
            number_of(known.size, "image"),
            one_or_many(other, "has", "have"),
        )
        notes.append(
            f"which label is right: {number_of(other, 'image has', 'images have')} another one than in the bundle"
        )
    logger.info("results of PyTorch are in the bundle for %s", number_of(known.size, "image"))
    stages = {**reference.stages, **recorded_stages(found, subject.bundle.head())}
    return replace(reference, stages=stages, not_checked=(*reference.not_checked, *notes)), subset(images, known)


def _without(reference: Reference, why: str) -> Reference:
    return replace(reference, not_checked=(*reference.not_checked, f"float and fake-quantized model: {why}"))


def _faulty(debug: DebugReport | None) -> bool:
    """Return whether a comparison of layers found a fault, which small sets and robust models can hide."""
    return debug is not None and debug.same_arithmetic and debug.first is not None


def _not_checked(subject: Subject, reference: Reference, images: LabelledImages | None) -> tuple[str, ...]:
    lines = [*subject.not_checked, *reference.not_checked]
    if images is None:
        lines.append("accuracy: no labelled images; name some with --data")
    elif images.left_out:
        lines.append(f"{number_of(images.left_out, 'image')} that the model was learned from")
    return tuple(lines)


def learned_digests(bundle: Bundle | None) -> frozenset[str]:
    """Return the SHA-256 of every image that the model was learned from; empty without a bundle."""
    return frozenset() if bundle is None else frozenset(image.sha256 for image in bundle.manifest.data_index.learned)


def found_names(bundle: Bundle | None) -> tuple[str, ...]:
    """Return what the images learned from call the classes, in label order, where the recipe names them otherwise."""
    if bundle is None or len(bundle.manifest.data_index.found_names) != len(bundle.manifest.class_names):
        return ()
    return bundle.manifest.data_index.found_names


def default_report(engine: Path) -> Path:
    """Return the path of an engine's report: `demo.onnx` -> `demo.report.json`."""
    return engine.with_name(engine.stem + REPORT_SUFFIX)


def report_paths(request: ValidateRequest) -> tuple[Path, ...]:
    """Return where reports go: beside the engine, unless its folder is read-only, and what was asked for."""
    own = default_report(request.engine)
    if is_read_only(own.parent):
        logger.warning("%s is read-only: %s is not written. For a report: --report FILE", own.parent, own.name)
        return tuple(dict.fromkeys(request.reports))
    return tuple(dict.fromkeys((own, *request.reports)))


def check_report_paths(paths: tuple[Path, ...], renderers: Mapping[str, Renderer], *, force: bool) -> None:
    """Refuse, before anything runs, suffixes without a renderer, files that are not reports and places to write none.

    A report is the record of the last validation, so an older one is replaced; any other file needs --force.

    Raises:
        UsageError: a suffix that nothing here writes, a file that is not a report, or a folder that cannot be written.
    """
    for path in paths:
        if path.suffix not in renderers:
            needs = " (.html needs the toolkit)" if ".html" not in renderers else ""
            raise UsageError(f"--report {path}: expected a file ending in {', '.join(renderers)}{needs}")
        if path.exists() and not force and not is_report(path):
            raise UsageError(f"{path} exists and is not a report; add --force to replace it, or name another file.")
        require_writable(path, force=True)


def write_reports(outcome: Outcome, paths: tuple[Path, ...], renderers: Mapping[str, Renderer]) -> None:
    """Write the report once for each path, in the form that its suffix names."""
    for path in paths:
        atomic_write(path, renderers[path.suffix](outcome), force=True)


def _images(request: ValidateRequest, subject: Subject, reference: Reference) -> LabelledImages | None:
    images = reference.images
    if images is None and request.data is not None:
        card = subject.card
        images = read_class_folders(
            Path(request.data),
            class_names=card.class_names,
            spec=card.preprocess,
            learned=learned_digests(subject.bundle),
            other_names=found_names(subject.bundle),
        )
    return images


def _provenance(request: ValidateRequest, subject: Subject, found: _Found) -> Provenance:
    card, images, reference = subject.card, found.images, found.reference
    digests = {
        "engine": card.engine_sha256,
        "card": sha256_file(card_path(request.engine)),
        "bundle": card.bundle_sha256,
        "weights": card.model.weights_sha256,
        "class names": sha256_bytes("\n".join(card.class_names).encode()),
    }
    if subject.bundle is not None:
        members = subject.bundle.manifest.members
        wanted = (name for name in members if name.endswith(".onnx") or name == REFERENCE)
        digests |= {name: members[name].sha256 for name in wanted}
    if images is not None:
        digests["images and labels"] = images.digest
    return Provenance(
        request=request,
        command=request.command(),
        digests={**digests, **reference.digests, **found.trials.digests},
        seeds={"bootstrap and drawing": request.seed, **reference.seeds},
        versions=provenance.versions(),
        machine={**provenance.this_machine(), **{f"built with {k}": v for k, v in card.built_with.items()}},
        git_commit=provenance.git_commit(),
        created=provenance.now(),
    )
