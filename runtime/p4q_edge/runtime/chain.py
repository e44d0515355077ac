"""The same images through every stage of a model, and the figures that say whether the stages agree.

A stage is a function from a uint8 batch (N, 3, H, W) to `logits` (N, classes) and `embedding` (N, dim). The order is
float, fake_quant, onnx, engine; a stage that cannot run here is left out by the caller. NumPy only.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from p4q_edge.runtime import metrics
from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.gates import ENGINE, FAKE_QUANT, GateResult, Gates, judge
from p4q_edge.runtime.metrics import CosineSummary, Estimate, McNemar, ReliabilityBin

logger = logging.getLogger(__name__)

MAX_CONFUSION_CLASSES = 100
CONFUSED_PAIRS = 20

Outputs = Mapping[str, npt.NDArray[np.floating]]
Stage = Callable[[npt.NDArray[np.uint8]], Outputs]


class Images(Protocol):
    """Anything whose slices are uint8 (n, 3, H, W): an array, a memory map, a loader that decodes on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> npt.NDArray[np.uint8]: ...


@dataclass(frozen=True, kw_only=True)
class ChainOptions:
    """How a chain is run: images a batch, seed of the bootstrap, limits, and what the log calls it."""

    batch_size: int = 64
    seed: int = 0
    gates: Gates = field(default_factory=Gates)
    label: str = "images"


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """How well one stage classifies.

    Attributes:
        top5: None with five classes or fewer.
        ece: expected calibration error of the softmax of its logits.
        temperature: the divisor of the logits that would calibrate them best on these images.
        class_accuracy: (classes,); None for a class without images.
        confusion: (classes, classes) counts, rows the labels; None above 100 classes.
        confused: (label, prediction, count), the most frequent confusions first.
        seconds: wall time of all batches; not a benchmark.
    """

    name: str
    n: int
    top1: Estimate
    top5: Estimate | None
    mean_per_class: Estimate
    ece: Estimate
    temperature: float
    reliability: tuple[ReliabilityBin, ...]
    class_accuracy: tuple[Estimate | None, ...]
    confusion: tuple[tuple[int, ...], ...] | None
    confused: tuple[tuple[int, int, int], ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Hop:
    """How one stage differs from another on the same n images.

    Attributes:
        agreement: share of images that both name alike.
        top1_difference: candidate minus reference, a share of images.
        cosine: of the embeddings; the loss of a hop is 1 - cosine.
        kl: mean KL(reference || candidate) of the class probabilities, in nats.
        max_logit_difference: largest absolute difference of any logit.
    """

    reference: str
    candidate: str
    n: int
    agreement: Estimate
    top1_difference: Estimate
    mcnemar: McNemar
    cosine: CosineSummary
    kl: Estimate
    max_logit_difference: float


@dataclass(frozen=True, kw_only=True)
class ChainReport:
    """The outcome of `validate_chain`.

    Attributes:
        gates: limits and what was measured.
        bits: of the narrowest quantized value, which the limits follow.
        rule: how they follow from it, in words.
        predictions: `predictions[stage][i]` is the class index of image i.
    """

    n: int
    class_names: tuple[str, ...]
    labels: tuple[int, ...]
    stages: tuple[StageReport, ...]
    hops: tuple[Hop, ...]
    gates: tuple[GateResult, ...]
    bits: int
    rule: str
    predictions: dict[str, tuple[int, ...]]

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return all(gate.passed for gate in self.gates)

    def stage(self, name: str) -> StageReport:
        """Return the report of a stage; KeyError without it."""
        found = {stage.name: stage for stage in self.stages}
        return found[name]

    def hop(self, reference: str, candidate: str) -> Hop:
        """Return the comparison of two stages; KeyError if they were not compared."""
        found = {(hop.reference, hop.candidate): hop for hop in self.hops}
        return found[reference, candidate]

    def changed(self, reference: str, candidate: str) -> tuple[int, ...]:
        """Return the indices of the images that two stages name differently."""
        first, second = np.array(self.predictions[reference]), np.array(self.predictions[candidate])
        return tuple(int(i) for i in np.flatnonzero(first != second))


def validate_chain(
    stages: Mapping[str, Stage],
    images: Images,
    labels: Sequence[int] | npt.NDArray[np.integer],
    class_names: Sequence[str],
    *,
    options: ChainOptions | None = None,
) -> ChainReport:
    """Run every stage over all images and compare.

    Args:
        stages: name to function, in the order of the chain.
        images: uint8 (n, 3, H, W), preprocessed; see `Images`.
        labels: (n,) class indices.
        class_names: (classes,).
        options: batch size, seed and gates.

    Raises:
        InputError: no image, a label without a class, or a stage whose outputs do not fit.
    """
    options = options or ChainOptions()
    truth = _checked_labels(images, labels, class_names)
    generator = np.random.default_rng(options.seed)
    outputs: dict[str, dict[str, npt.NDArray[np.floating]]] = {}
    reports = []
    for name, stage in stages.items():
        started = time.perf_counter()
        outputs[name] = run_stage(stage, images, name=name, options=options, classes=len(class_names))
        seconds = time.perf_counter() - started
        report = _stage_report(name, outputs[name]["logits"], truth, generator=generator, seconds=seconds)
        logger.info("%s: %-10s top-1 %.2f %%, n = %d", options.label, name, 100 * report.top1.value, report.n)
        reports.append(report)
    hops = tuple(
        _hop(first, second, outputs=outputs, labels=truth, generator=generator)
        for first, second in _pairs(tuple(stages))
    )
    return ChainReport(
        n=len(truth),
        class_names=tuple(class_names),
        labels=tuple(int(label) for label in truth),
        stages=tuple(reports),
        hops=hops,
        gates=judge(hops, gates=options.gates),
        bits=options.gates.bits,
        rule=options.gates.rule,
        predictions={name: tuple(metrics.top_k(out["logits"], 1)[:, 0].tolist()) for name, out in outputs.items()},
    )


def run_stage(
    stage: Stage, images: Images, *, name: str, options: ChainOptions, classes: int
) -> dict[str, npt.NDArray[np.floating]]:
    """Return `logits` (n, classes) and `embedding` (n, dim) of one stage over all images.

    Raises:
        InputError: an output is missing, of another shape, or not finite.
    """
    collected: dict[str, list[npt.NDArray[np.floating]]] = {"logits": [], "embedding": []}
    for start in range(0, len(images), options.batch_size):
        batch = images[start : start + options.batch_size]
        result = stage(batch)
        for output, parts in collected.items():
            if output not in result:
                raise InputError(
                    f"stage {name} gives {', '.join(result)}; expected {output} too. Export the model again."
                )
            parts.append(np.asarray(result[output]))
    joined = {output: np.concatenate(parts) for output, parts in collected.items()}
    if joined["logits"].shape != (len(images), classes):
        raise InputError(
            f"stage {name} gives logits of shape {joined['logits'].shape} for {len(images)} images; expected "
            f"{classes} classes. Check that engine and class names belong together: p4q-edge inspect"
        )
    for output, values in joined.items():
        if not np.isfinite(values).all():
            count = int((~np.isfinite(values).all(axis=1)).sum())
            raise InputError(
                f"stage {name} gives {output} that are not finite for {count} of {len(images)} images; "
                "find the layer with: p4q-edge validate --debug"
            )
    return joined


def _pairs(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return each neighbouring pair, each stage with the first, and the ends of the integer grid, once each."""
    pairs = [(names[i - 1], names[i]) for i in range(1, len(names))]
    pairs += [(names[0], name) for name in names[1:]]
    if FAKE_QUANT in names and ENGINE in names:
        pairs.append((FAKE_QUANT, ENGINE))
    return list(dict.fromkeys(pairs))


def _stage_report(
    name: str,
    logits: npt.NDArray[np.floating],
    labels: npt.NDArray[np.int64],
    *,
    generator: np.random.Generator,
    seconds: float,
) -> StageReport:
    classes = logits.shape[1]
    predictions = metrics.top_k(logits, 1)[:, 0]
    correct = predictions == labels
    confidence = np.exp(metrics.log_softmax(logits)).max(axis=1)
    confusion = metrics.confusion_matrix(labels, predictions, classes)
    small = classes <= MAX_CONFUSION_CLASSES
    return StageReport(
        name=name,
        n=int(labels.size),
        top1=metrics.proportion(correct),
        top5=metrics.proportion(metrics.top_k_correct(logits, labels, 5)) if classes > 5 else None,
        mean_per_class=metrics.mean_per_class(correct, labels, classes, generator=generator),
        ece=metrics.calibration_error(confidence, correct, generator=generator),
        temperature=metrics.fit_temperature(logits, labels),
        reliability=metrics.reliability_bins(confidence, correct),
        class_accuracy=metrics.class_estimates(correct, labels, classes),
        confusion=tuple(tuple(int(v) for v in row) for row in confusion) if small else None,
        confused=_most_confused(confusion),
        seconds=seconds,
    )


def _most_confused(confusion: npt.NDArray[np.int64]) -> tuple[tuple[int, int, int], ...]:
    wrong = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSED_PAIRS]
    rows, columns = np.unravel_index(order, wrong.shape)
    return tuple((int(r), int(c), int(wrong[r, c])) for r, c in zip(rows, columns, strict=True) if wrong[r, c] > 0)


def _hop(
    reference: str,
    candidate: str,
    *,
    outputs: Mapping[str, Outputs],
    labels: npt.NDArray[np.int64],
    generator: np.random.Generator,
) -> Hop:
    first, second = outputs[reference], outputs[candidate]
    if first["embedding"].shape != second["embedding"].shape:
        raise InputError(
            f"embeddings of {reference} have shape {first['embedding'].shape}, of {candidate} "
            f"{second['embedding'].shape}. Check that they were made from one bundle: p4q-edge inspect"
        )
    chosen_first, chosen_second = (metrics.top_k(out["logits"], 1)[:, 0] for out in (first, second))
    correct_first, correct_second = chosen_first == labels, chosen_second == labels
    divergence = metrics.kl_divergence(reference=first["logits"], candidate=second["logits"])
    return Hop(
        reference=reference,
        candidate=candidate,
        n=int(labels.size),
        agreement=metrics.agreement(chosen_first, chosen_second),
        top1_difference=metrics.paired_difference(correct_first, correct_second, generator=generator),
        mcnemar=metrics.mcnemar_exact(correct_first, correct_second),
        cosine=metrics.cosine_summary(first["embedding"], second["embedding"], generator=generator),
        kl=metrics.bootstrap_mean(divergence, generator=generator),
        max_logit_difference=float(np.abs(first["logits"] - second["logits"]).max()),
    )


def _checked_labels(
    images: Images, labels: Sequence[int] | npt.NDArray[np.integer], class_names: Sequence[str]
) -> npt.NDArray[np.int64]:
    truth = np.asarray(labels, dtype=np.int64)
    if len(images) == 0 or truth.shape != (len(images),):
        raise InputError(f"expected one label for each of at least one image, got {len(images)} and {truth.size}.")
    if truth.min() < 0 or truth.max() >= len(class_names):
        raise InputError(
            f"labels reach from {truth.min()} to {truth.max()}, but there are {len(class_names)} class names. "
            "Name the class folders as the classes of the engine: p4q-edge inspect"
        )
    return truth
