"""`validate`: which stages there are here, on which images, and the report about them.

The runtime knows the engine, the bundle's graph and the golden samples. The toolkit adds the PyTorch stages and the
data of the recipe as a `Reference`; without it the golden samples are the reference.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from p4q_edge.runtime import provenance
from p4q_edge.runtime.bundle import Bundle, read_bundle
from p4q_edge.runtime.card import Card, card_path, read_card
from p4q_edge.runtime.chain import (
    ENGINE,
    FAKE_QUANT,
    FLOAT,
    ONNX,
    STAGE_ORDER,
    ChainOptions,
    ChainReport,
    Gates,
    Outputs,
    Stage,
    validate_chain,
)
from p4q_edge.runtime.engines import load_engine
from p4q_edge.runtime.engines.onnxruntime import import_onnxruntime
from p4q_edge.runtime.errors import EnvironmentNotAbleError, IncompatibleEngineError, UsageError
from p4q_edge.runtime.files import atomic_write, sha256_bytes, sha256_file
from p4q_edge.runtime.labelled import LabelledImages, draw, read_class_folders, subset
from p4q_edge.runtime.report.document import Baseline, Built, DebugReport, Provenance, Report, encode, is_report
from p4q_edge.runtime.report.markdown import render_markdown
from p4q_edge.runtime.report.speed import read_bench, with_accuracy

logger = logging.getLogger(__name__)

BUNDLE_SUFFIX = ".p4q"
REPORT_SUFFIX = ".report.json"


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


@dataclass(frozen=True, kw_only=True)
class Target:
    """The engine under test with all that belongs to it."""

    engine: Path
    card: Card
    bundle: Bundle | None
    stages: Mapping[str, Stage]
    not_checked: tuple[str, ...]
    close: Callable[[], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """What the toolkit adds.

    Attributes:
        stages: `float` and `fake_quant`, as far as PyTorch can run them.
        images: the data of the recipe or of `--data`; None if there is none.
        not_checked: what could not be added, and why.
    """

    stages: Mapping[str, Stage] = field(default_factory=dict)
    images: LabelledImages | None = None
    baselines: tuple[Baseline, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    not_checked: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """The report, and the images it speaks of."""

    report: Report
    images: LabelledImages | None


Renderer = Callable[[Outcome], bytes]
RENDERERS: Mapping[str, Renderer] = {
    ".json": lambda outcome: encode(outcome.report),
    ".md": lambda outcome: render_markdown(outcome.report).encode(),
}


class Recorded:
    """A stage that was run elsewhere: gives the recorded rows in the order in which the images come."""

    def __init__(self, outputs: Outputs) -> None:
        self._outputs = outputs
        self._next = 0

    def __call__(self, batch: np.ndarray) -> Outputs:
        rows = slice(self._next, self._next + len(batch))
        self._next += len(batch)
        return {name: values[rows] for name, values in self._outputs.items()}


def open_target(request: Request) -> Target:
    """Load the engine, its card, its bundle and the bundle's graph.

    Raises:
        IncompatibleEngineError: the bundle is not the one the engine was built from.
    """
    card = read_card(request.engine)
    engine = load_engine(request.engine, card, device=request.device, threads=request.threads)
    stages: dict[str, Stage] = {ENGINE: lambda batch: engine.run(batch, ("logits", "embedding"))}
    bundle = _find_bundle(request, card)
    not_checked = []
    if bundle is None:
        not_checked.append(f"the ONNX graph: no bundle beside {request.engine}; name it with --reference")
    else:
        try:
            stages[ONNX] = graph_stage(bundle.model("fp32"), threads=request.threads)
        except EnvironmentNotAbleError:
            not_checked.append("the ONNX graph: ONNX Runtime is not installed")
    return Target(
        engine=request.engine,
        card=card,
        bundle=bundle,
        stages=stages,
        not_checked=tuple(not_checked),
        close=engine.close,
    )


def graph_stage(model: bytes, *, threads: int | None = None) -> Stage:
    """Return the graph as its operators define it: no fusion, so no integer kernel and no saturation."""
    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(batch: np.ndarray) -> Outputs:
        logits, embedding = session.run(["logits", "embedding"], {"image": batch})
        return {"logits": logits, "embedding": embedding}

    return run


def validate(request: Request, *, reference: Reference | None = None, debug: DebugReport | None = None) -> Outcome:
    """Run every stage that there is and report.

    Args:
        request: what to validate.
        reference: what the toolkit adds.
        debug: what the comparison of layers found, if it was asked for.

    Raises:
        UsageError: a limit was asked for that nothing here can answer.
    """
    reference = reference or Reference()
    target = open_target(request)
    speed = () if request.bench is None else read_bench(request.bench, engine_sha256=target.card.engine_sha256)
    try:
        images = _images(request, target, reference)
        if request.max_top1_drop is not None and (images is None or FLOAT not in reference.stages):
            raise UsageError(
                "--max-top1-drop compares with the full-precision model on labelled images, and one of them is "
                "missing; add --data, and --reference with a recipe or a run folder (toolkit)"
            )
        gates = Gates(max_top1_drop=request.max_top1_drop)
        options = ChainOptions(batch_size=request.batch_size, seed=request.seed, gates=gates)
        golden = golden_chain(target, options)
        chain = None
        if images is not None:
            stages = in_order({**reference.stages, **target.stages})
            chain = validate_chain(stages, images.pixels, images.labels, target.card.class_names, options=options)
    finally:
        target.close()
    report = Report(
        title=f"{request.engine.name}: {len(target.card.class_names)} classes, {target.card.model.name}",
        passed=all(part.passed for part in (chain, golden) if part is not None) and not _faulty(debug),
        data=images.source if images is not None else f"{golden.n} golden samples",
        built=built_of(target),
        chain=chain,
        golden=golden,
        baselines=reference.baselines,
        speed=with_accuracy(speed, chain),
        debug=debug,
        not_checked=_not_checked(target, reference, images),
        provenance=_provenance(request, target, reference, images),
    )
    return Outcome(report=report, images=images)


def _faulty(debug: DebugReport | None) -> bool:
    """Return whether a comparison of layers found a fault, which small sets and robust models can hide."""
    return debug is not None and debug.same_arithmetic and debug.first is not None


def _not_checked(target: Target, reference: Reference, images: LabelledImages | None) -> tuple[str, ...]:
    lines = [*target.not_checked, *reference.not_checked]
    if images is None:
        lines.append("accuracy: no labelled images; name some with --data")
    elif images.left_out:
        lines.append(f"{images.left_out} images that the model was learned from")
    return tuple(lines)


def golden_chain(target: Target, options: ChainOptions) -> ChainReport:
    """Run the golden samples: the recorded PyTorch stages against the graph and the engine here."""
    golden = target.card.golden_samples()
    recorded = {
        FLOAT: Recorded({"logits": golden.float_logits, "embedding": golden.float_embedding}),
        FAKE_QUANT: Recorded({"logits": golden.logits, "embedding": golden.embedding}),
    }
    labels = golden.float_logits.argmax(axis=1)
    quiet = replace(options, label="golden samples", gates=replace(options.gates, max_top1_drop=None))
    stages = in_order({**recorded, **target.stages})
    return validate_chain(stages, golden.image, labels, target.card.class_names, options=quiet)


def in_order(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Return the stages in the order of the chain."""
    return {name: stages[name] for name in STAGE_ORDER if name in stages}


def built_of(target: Target) -> Built:
    """Return what the card says was built."""
    card = target.card
    return Built(
        engine=str(target.engine),
        backend=card.backend,
        size_bytes=card.engine_size_bytes,
        model=f"{card.model.name} {card.model.pretrained}".strip(),
        license=card.model.license,
        weight_bits=card.precision.weight_bits,
        activation_bits=card.precision.activation_bits,
        execution=card.precision.execution,
        remainder=card.precision.remainder,
        quantized_linears=card.precision.quantized_linears,
        attention_bits=card.precision.attention_bits,
        quantized_attentions=card.precision.quantized_attentions,
        int8_share=_int8_share(card.inspection),
        # TensorRT's layer kinds, or ONNX Runtime's kernels with the number of their runs.
        kernels=dict(card.inspection.get("kinds") or card.inspection.get("kernels") or {}),
    )


def learned_digests(bundle: Bundle | None) -> frozenset[str]:
    """Return the SHA-256 of every image that the model was learned from; empty without a bundle."""
    learned = [] if bundle is None else bundle.manifest.data_index.get("learned", [])
    return frozenset(str(entry["sha256"]) for entry in learned)


def _int8_share(inspection: Mapping[str, Any]) -> float | None:
    """Return the share of matrix products in INT8: by operations for TensorRT, by number for ONNX Runtime."""
    if shares := inspection.get("gemm_share"):
        return float(shares.get("int8", 0.0))
    integer, real = inspection.get("integer_products", 0), inspection.get("float_products", 0)
    return integer / (integer + real) if integer + real else None


def default_report(engine: Path) -> Path:
    """Return where the report of an engine lies: `demo.onnx` -> `demo.report.json`."""
    return engine.with_name(engine.stem + REPORT_SUFFIX)


def check_report_paths(paths: tuple[Path, ...], renderers: Mapping[str, Renderer], *, force: bool) -> None:
    """Refuse, before anything runs, suffixes without a renderer and files that are no reports.

    A report is the record of the last validation, so an older one is replaced; any other file needs --force.

    Raises:
        UsageError: a suffix that nothing here writes, or a file that is no report.
    """
    for path in paths:
        if path.suffix not in renderers:
            needs = " (.html needs the toolkit)" if ".html" not in renderers else ""
            raise UsageError(f"--report {path}: expected a file ending in {', '.join(renderers)}{needs}")
        if path.exists() and not force and not is_report(path):
            raise UsageError(f"{path} exists and is no report; add --force to replace it, or name another file.")


def write_reports(outcome: Outcome, paths: tuple[Path, ...], renderers: Mapping[str, Renderer]) -> None:
    """Write the report once for each path, in the form that its suffix names."""
    for path in paths:
        atomic_write(path, renderers[path.suffix](outcome), force=True)


def _find_bundle(request: Request, card: Card) -> Bundle | None:
    named = request.reference is not None and request.reference.suffix == BUNDLE_SUFFIX
    path = request.reference if named and request.reference else request.engine.with_suffix(BUNDLE_SUFFIX)
    if not named and not path.is_file():
        return None
    bundle = read_bundle(path)
    if bundle.sha256() != card.bundle_sha256:
        raise IncompatibleEngineError(
            f"{request.engine} was not built from {path}: the card names another bundle "
            f"({card.bundle_sha256[:12]}...). Build it again: p4q-edge build {path} --engine {request.engine} --force"
        )
    return bundle


def _images(request: Request, target: Target, reference: Reference) -> LabelledImages | None:
    images = reference.images
    if images is None and request.data is not None:
        card = target.card
        images = read_class_folders(
            Path(request.data),
            class_names=card.class_names,
            spec=card.preprocess,
            learned=learned_digests(target.bundle),
        )
    if images is None:
        return None
    return subset(images, draw(len(images.labels), request.limit, seed=request.seed))


def _provenance(request: Request, target: Target, reference: Reference, images: LabelledImages | None) -> Provenance:
    card = target.card
    digests = {
        "engine": card.engine_sha256,
        "card": sha256_file(card_path(request.engine)),
        "bundle": card.bundle_sha256,
        "weights": card.model.weights_sha256,
        "class names": sha256_bytes("\n".join(card.class_names).encode()),
    }
    if target.bundle is not None:
        members = target.bundle.manifest.members
        digests |= {name: member.sha256 for name, member in members.items() if name.endswith(".onnx")}
    if images is not None:
        digests["images and labels"] = images.digest
    return Provenance(
        command=request.command,
        digests={**digests, **reference.digests},
        seeds={"bootstrap and drawing": request.seed, **reference.seeds},
        versions=provenance.versions(),
        machine={**provenance.this_machine(), **{f"built with {k}": v for k, v in card.built_with.items()}},
        git_commit=provenance.git_commit(),
        created=provenance.now(),
    )
