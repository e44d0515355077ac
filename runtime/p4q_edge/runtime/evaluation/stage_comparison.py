"""How well one stage classifies, and how two stages differ on the same images."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.stage import ENGINE, FAKE_QUANT, Outputs
from p4q_edge.runtime.statistics import CosineSummary, Estimate, McNemar, ReliabilityBin, metrics

MAX_CONFUSION_CLASSES = 100
CONFUSED_PAIRS = 20


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
class StageComparison:
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


def compared_pairs(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return each neighbouring pair, each stage with the first, and the ends of the integer grid, once each."""
    pairs = [(names[i - 1], names[i]) for i in range(1, len(names))]
    pairs += [(names[0], name) for name in names[1:]]
    if FAKE_QUANT in names and ENGINE in names:
        pairs.append((FAKE_QUANT, ENGINE))
    return list(dict.fromkeys(pairs))


def report_stage(
    name: str,
    logits: npt.NDArray[np.floating],
    labels: npt.NDArray[np.int64],
    *,
    generator: np.random.Generator,
    seconds: float,
) -> StageReport:
    """Return how well one stage classifies: logits (n, classes), labels (n,)."""
    classes = logits.shape[1]
    predictions = metrics.top_k(logits, 1)[:, 0]
    correct = predictions == labels
    confidence = metrics.confidences(logits)
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


def compare_stages(
    reference: str,
    candidate: str,
    *,
    outputs: Mapping[str, Outputs],
    labels: npt.NDArray[np.int64],
    generator: np.random.Generator,
) -> StageComparison:
    """Return how a candidate differs from a reference on the same images.

    Raises:
        InputError: their embeddings differ in shape.
    """
    first, second = outputs[reference], outputs[candidate]
    if first["embedding"].shape != second["embedding"].shape:
        raise InputError(
            f"embeddings of {reference} have shape {first['embedding'].shape}, of {candidate} "
            f"{second['embedding'].shape}. Check that they were made from one bundle: p4q-edge inspect"
        )
    chosen_first, chosen_second = (metrics.top_k(out["logits"], 1)[:, 0] for out in (first, second))
    correct_first, correct_second = chosen_first == labels, chosen_second == labels
    divergence = metrics.kl_divergence(reference=first["logits"], candidate=second["logits"])
    return StageComparison(
        reference=reference,
        candidate=candidate,
        n=int(labels.size),
        agreement=metrics.agreement(chosen_first, chosen_second),
        top1_difference=metrics.paired_difference(correct_first, correct_second, generator=generator),
        mcnemar=metrics.mcnemar_exact(correct_first, correct_second),
        cosine=metrics.cosine_summary(first["embedding"], second["embedding"], generator=generator),
        kl=metrics.bootstrap_mean(divergence, generator=generator),
        max_logit_difference=metrics.largest_difference(first["logits"], second["logits"]),
    )
