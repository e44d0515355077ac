"""What a build from a recipe ends with: zero-shot, learned and engine side by side, on images not learned from."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from p4q_edge.cli.common import choose_recipe
from p4q_edge.cli.zero_shot import costs
from p4q_edge.data import read_split, told_already
from p4q_edge.runtime.artifacts import Bundle, Card, CrossValidated, RecordedResults, read_bundle, read_card
from p4q_edge.runtime.builders import BuildRequest
from p4q_edge.runtime.cli import BuildSummary, SummaryRow
from p4q_edge.runtime.engines import load_engine
from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.evaluation.report import columns
from p4q_edge.runtime.images import ImageSet, draw_subset, preprocess
from p4q_edge.runtime.progress import tracked
from p4q_edge.runtime.statistics import wilson_interval
from p4q_edge.runtime.wording import number_of

BUDGET_S = 20.0
"""The engine is run on as many images as it manages in this time."""
LATENCY_S = 3.0
"""Where it is only timed."""
LEAST_IMAGES = 20


@dataclass(frozen=True, kw_only=True)
class _Measured:
    rows: np.ndarray
    """Which of the recorded images the engine was run on."""
    answers: np.ndarray
    latency_ms: float


def build_summary(request: BuildRequest, bundle_path: Path) -> tuple[BuildSummary, str]:
    """Return the table of a build as a record and as text, with the next command.

    Its images are those whose results the bundle has. Where there is no test set, its figures are those of the
    cross-validation on the photographs learned from, and the table says so.
    """
    bundle, card = read_bundle(bundle_path), read_card(request.engine)
    recorded = bundle.reference()
    engine = shlex.quote(str(request.engine))
    following = f"next: p4q-edge classify {engine} IMAGES   (p4q-edge validate {engine}: every step)"
    with told_already():
        recipe = choose_recipe(request.recipe)
    validated = bundle.manifest.data_index.cross_validated
    calibrated_on = bundle.manifest.data_index.calibrated_on
    lacking = () if calibrated_on is None else costs(calibrated_on, card, request.engine, tested=recorded is not None)
    listed = ["zero-shot, what that costs:", *(f"- {line}" for line in lacking)] if lacking else []
    if recorded is None and lacking:
        return BuildSummary(n=0, costs=lacking), "\n".join([*listed, following])
    with told_already():
        split = read_split(recipe.data, seed=recipe.seed)
    if recorded is None and validated is None:
        nothing = "accuracy was not measured: export.reference_images = 0 keeps no results of test images"
        return BuildSummary(n=0), f"{nothing}\n{following}"
    if validated is None:
        assert recorded is not None  # one of both is there
        wanted = draw_subset(len(split.test), recipe.export.reference_images, seed=recipe.seed)
        measured = _run_engine(request, card, split.test.subset(wanted), seed=recipe.seed)
        rows, n = summary_rows(bundle, card, recorded, measured), len(measured.rows)
        said = "n = " + number_of(n, "image that was not learned from", "images that were not learned from")
    else:
        measured = _run_engine(request, card, split.train, seed=recipe.seed, budget_s=LATENCY_S)
        rows, n = cross_validated_rows(bundle, card, validated, measured), validated.n
        said = (
            f"cross-validated, n = {n}: {validated.folds} parts of the photographs, each named by a head learned from "
            "the others. The engine has learned from all, and no other image is here to test it on (data.test)"
        )
    beside = f"FP32 beside it: p4q-edge bench {engine} --against fp32"
    summary = BuildSummary(n=n, rows=tuple(rows), cross_validated=validated is not None, costs=lacking)
    return summary, "\n".join([*_table(rows), f"{said}. {beside}", *listed, following])


def cross_validated_rows(
    bundle: Bundle, card: Card, validated: CrossValidated, measured: _Measured
) -> list[SummaryRow]:
    """Return the lines of the table where there is no test set; no photograph is named by what was learned from it."""
    float_bytes = bundle.manifest.data_index.float_bytes or 0
    label = card.precision.label
    counts = {
        "zero-shot, FP32": (validated.zero_shot, float_bytes, None),
        "learned, FP32, cross-validated": (validated.learned_float, float_bytes, None),
        f"learned, {label}, cross-validated": (
            validated.learned_quantized,
            card.engine_size_bytes,
            measured.latency_ms,
        ),
    }
    return [_row(name, right, validated.n, size, latency) for name, (right, size, latency) in counts.items()]


def _row(name: str, right: int, n: int, size_bytes: int, latency_ms: float | None) -> SummaryRow:
    low, high = wilson_interval(right, n)
    return SummaryRow(name=name, top1=right / n, low=low, high=high, size_bytes=size_bytes, latency_ms=latency_ms)


def _table(rows: Sequence[SummaryRow]) -> list[str]:
    return columns(
        ("", "top-1", "95 % interval", "size", "one image"),
        [
            (
                row.name,
                f"{row.top1:.1%}",
                f"{row.low:.1%} to {row.high:.1%}",
                f"{row.size_bytes / 1e6:.1f} MB",
                "-" if row.latency_ms is None else f"{row.latency_ms:.2f} ms",
            )
            for row in rows
        ],
    )


def summary_rows(bundle: Bundle, card: Card, recorded: RecordedResults, measured: _Measured) -> list[SummaryRow]:
    """Return the lines of the table, all on the images that the engine was run on."""
    labels = recorded.label[measured.rows]
    index = bundle.manifest.data_index
    if index.float_bytes is None or not index.zero_shot:
        raise CorruptArtifactError(f"{bundle.path} lacks what zero-shot gives. Export it again: add --force.")
    float_bytes = index.float_bytes
    scores = recorded.float_embedding[measured.rows] @ bundle.head().text_embedding.T
    answers = {
        "zero-shot, FP32": (np.asarray(index.zero_shot)[measured.rows], float_bytes, None),
        **({} if index.calibrated_on else {"learned, FP32": (scores.argmax(axis=1), float_bytes, None)}),
        f"engine, {card.precision.label}": (measured.answers, card.engine_size_bytes, measured.latency_ms),
    }
    n = len(labels)
    return [
        _row(name, int(np.count_nonzero(found == labels)), n, size, latency)
        for name, (found, size, latency) in answers.items()
    ]


def _run_engine(
    request: BuildRequest, card: Card, images: ImageSet, *, seed: int, budget_s: float = BUDGET_S
) -> _Measured:
    """Run the engine on images one by one, as a device would, for a while."""
    # In an order that takes all classes alike if the time is up before the end.
    order = np.random.default_rng(seed).permutation(len(images))
    answers, times = [], []
    engine = load_engine(request.engine, card)
    try:
        for row in tracked(order, "run the engine"):
            pixels = preprocess(images.open_image(int(row)), card.preprocess)[np.newaxis]
            start = time.perf_counter()
            logits = engine.run(pixels, ("logits",))["logits"]
            times.append(time.perf_counter() - start)
            answers.append(int(logits.argmax()))
            if sum(times) > budget_s and len(times) >= LEAST_IMAGES:
                break
    finally:
        engine.close()
    return _Measured(rows=order[: len(answers)], answers=np.asarray(answers), latency_ms=float(np.median(times)) * 1e3)
