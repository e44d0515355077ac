"""The same images through every stage of a model, and the figures that say whether the stages agree.

A stage is a function from a uint8 batch (N, 3, H, W) to `logits` (N, classes) and `embedding` (N, dim). The order is
float, fake_quant, onnx, engine; a stage that cannot run here is left out by the caller. NumPy only.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.evaluation.gates import GateResult, Gates, judge
from p4q_edge.runtime.evaluation.stage_comparison import (
    StageComparison,
    StageReport,
    compare_stages,
    compared_pairs,
    report_stage,
)
from p4q_edge.runtime.images import mapped_ahead
from p4q_edge.runtime.progress import tracked
from p4q_edge.runtime.stage import Images, Outputs, Stage
from p4q_edge.runtime.statistics import metrics
from p4q_edge.runtime.wording import number_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ChainOptions:
    """How a chain is run: images a batch, seed of the bootstrap, limits, and what the log calls it and its answers."""

    batch_size: int = 64
    seed: int = 0
    gates: Gates = field(default_factory=Gates)
    label: str = "images"
    measure: str = "top-1"


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
    hops: tuple[StageComparison, ...]
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

    def hop(self, reference: str, candidate: str) -> StageComparison:
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
    see: Callable[[str, Outputs], None] = lambda name, outputs: None,
) -> ChainReport:
    """Run every stage over all images and compare.

    Args:
        stages: name to function, in the order of the chain.
        images: uint8 (n, 3, H, W), preprocessed; see `Images`.
        labels: (n,) class indices.
        class_names: (classes,).
        options: batch size, seed and gates.
        see: gets the name and the outputs of each stage, of all images.

    Raises:
        InputError: no image, a label without a class, or a stage whose outputs do not fit.
    """
    options = options or ChainOptions()
    truth = _checked_labels(images, labels, class_names)
    generator = np.random.default_rng(options.seed)
    outputs: dict[str, dict[str, npt.NDArray[np.floating]]] = {}
    reports = []
    for name, stage in tracked(stages.items(), f"validate, {options.label}"):
        started = time.perf_counter()
        outputs[name] = run_stage(stage, images, name=name, options=options, classes=len(class_names))
        seconds = time.perf_counter() - started
        see(name, outputs[name])
        report = report_stage(name, outputs[name]["logits"], truth, generator=generator, seconds=seconds)
        share = 100 * report.top1.value
        logger.info("%s: %-10s %s %.2f %%, n = %d", options.label, name, options.measure, share, report.n)
        reports.append(report)
    hops = tuple(
        compare_stages(first, second, outputs=outputs, labels=truth, generator=generator)
        for first, second in compared_pairs(tuple(stages))
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
    starts = range(0, len(images), options.batch_size)
    # One thread decodes the next batch while the stage runs; more are never alive.
    batches = mapped_ahead(lambda start: images[start : start + options.batch_size], starts, threads=1, ahead=2)
    for batch in tracked(batches, name, total=len(starts)):
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
            f"stage {name} gives logits of shape {joined['logits'].shape} for {number_of(len(images), 'image')}; "
            "expected "
            f"{number_of(classes, 'class')}. Check that engine and class names belong together: p4q-edge inspect"
        )
    for output, values in joined.items():
        if not np.isfinite(values).all():
            count = int((~np.isfinite(values).all(axis=1)).sum())
            raise InputError(
                f"stage {name} gives {output} that are not finite for {count} of {number_of(len(images), 'image')}; "
                "find the layer with: p4q-edge validate --debug"
            )
    return joined


def _checked_labels(
    images: Images, labels: Sequence[int] | npt.NDArray[np.integer], class_names: Sequence[str]
) -> npt.NDArray[np.int64]:
    truth = np.asarray(labels, dtype=np.int64)
    if len(images) == 0 or truth.shape != (len(images),):
        raise InputError(f"expected one label for each of at least one image, got {len(images)} and {truth.size}.")
    if truth.min() < 0 or truth.max() >= len(class_names):
        raise InputError(
            f"labels reach from {truth.min()} to {truth.max()}, and the engine names "
            f"{number_of(len(class_names), 'class')}. "
            "Name the class folders as the classes of the engine: p4q-edge inspect"
        )
    return truth
