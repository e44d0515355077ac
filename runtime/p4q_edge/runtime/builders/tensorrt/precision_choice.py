"""INT8, INT8 but for convolutions, INT4, FP8, or FP16: each is built and measured on golden images; the best is kept.

INT8 is often little faster than FP16 on the device at hand and sometimes slower, so nothing is assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from p4q_edge.runtime.artifacts import Golden, PlanChoice, PlanRow, read_golden
from p4q_edge.runtime.choices import PlanFlavour, Prefer
from p4q_edge.runtime.engines.cuda import Cuda
from p4q_edge.runtime.engines.tensorrt import TENSORRT, Library, TensorRTEngine
from p4q_edge.runtime.errors import QualityGateError
from p4q_edge.runtime.statistics import Estimate, Rounds, measure_interleaved, paired_ratio, summarize
from p4q_edge.runtime.storage import save_tensors
from p4q_edge.runtime.verification import row_cosine, run_golden

ROUNDS = Rounds(warmup=10, minimum=50, maximum=500, seconds=3.0)
NAMES: dict[PlanFlavour, str] = {
    "int8": "INT8",
    "int8-linears": "INT8 in linears only",
    "int4": "INT4 weights",
    "fp8": "FP8",
}
_SEED = 0  # of the bootstrap; fixed so that a build says the same twice


def measure_plans(
    trt: Any, cuda: Cuda, plans: Mapping[str, Path], *, golden: Path, batch: int, library: Library = TENSORRT
) -> dict[str, Any]:
    """Run every plan on the golden images and time them interleaved, with the batch they are tuned for and with one.

    Args:
        trt: the TensorRT module.
        cuda: the GPU.
        plans: precision to plan file.
        golden: the golden samples (safetensors); each plan's outputs are written beside, `<precision>.safetensors`.
        batch: images of a timed run; the golden images are repeated to fill it.
        library: that built them.

    Returns:
        `rows` (flavour to the fields of `PlanRow` but `problem`), and `ratios`: FP16 time over that of each other plan
        with its interval, at this batch; empty where there is no FP16 plan.
    """
    samples = read_golden(golden.read_bytes(), source=str(golden))
    with ExitStack() as stack:
        engines = {}
        outputs = {}
        for name, path in plans.items():
            engine = TensorRTEngine.from_plan(trt, cuda, path.read_bytes(), name=f"the {name} plan", library=library)
            stack.callback(engine.close)
            engines[name] = engine
            outputs[name] = run_golden(engine, samples)
            golden.with_name(f"{name}.safetensors").write_bytes(save_tensors(outputs[name], {}))
        times = _times(engines, np.resize(samples.image, (batch, *samples.image.shape[1:])))
        alone = times if batch == 1 else _times(engines, samples.image[:1])
    rows = {}
    for name, values in times.items():
        latency = summarize(values)
        rows[name] = {
            "precision": name,
            "batch": batch,
            "n": latency.n,
            "p50_ms": latency.p50_ms,
            "p90_ms": latency.p90_ms,
            "one_image_p50_ms": summarize(alone[name]).p50_ms,
            "size_bytes": plans[name].stat().st_size,
            **compare_to_reference(outputs[name], golden_of(name, samples)),
        }
    ratios = {
        name: asdict(paired_ratio(times["fp16"], values, generator=np.random.default_rng(_SEED)))
        for name, values in times.items()
        if name != "fp16" and "fp16" in times
    }
    return {"rows": rows, "ratios": ratios}


def golden_of(precision: str, golden: Golden) -> Golden:
    """Return the samples whose reference is quantized as a plan is: on CPUs, too, only linears are."""
    return golden.for_cpu() if precision == "int8-linears" else golden


def _times(engines: Mapping[str, TensorRTEngine], image: np.ndarray) -> dict[str, np.ndarray]:
    return dict(measure_interleaved({name: _runner(engine, image) for name, engine in engines.items()}, ROUNDS))


def _runner(engine: TensorRTEngine, image: np.ndarray) -> Any:
    return lambda: engine.run(image)


def compare_to_reference(outputs: Mapping[str, np.ndarray], golden: Golden) -> dict[str, Any]:
    """Return how far outputs are from the fake-quantized reference and from the full-precision model."""
    best = outputs["logits"].argmax(axis=1)
    return {
        "samples": len(best),
        "cosine_min": float(row_cosine(outputs["embedding"], golden.embedding).min()),
        "float_cosine_min": float(row_cosine(outputs["embedding"], golden.float_embedding).min()),
        "float_top1_agreement": float((best == golden.float_logits.argmax(axis=1)).mean()),
    }


def gate_problem(row: Mapping[str, Any], golden: Golden, *, min_cosine: float) -> str | None:
    """Return why a plan is not accurate enough, or None.

    INT8, INT4 and FP8 must reproduce the fake-quantized reference. FP16 does not quantize activations, so it differs
    from that reference for the better; it must be as near to the full-precision model as the reference is.
    """
    if row["precision"] in NAMES:
        if row["cosine_min"] >= min_cosine:
            return None
        return f"embeddings reach a cosine of {row['cosine_min']:.5f} to the reference; expected {min_cosine}"
    expected = float(row_cosine(golden.embedding, golden.float_embedding).min()) - (1 - min_cosine)
    if row["float_cosine_min"] >= expected:
        return None
    return (
        f"embeddings reach a cosine of {row['float_cosine_min']:.5f} to the full-precision model; "
        f"expected {expected:.5f}, as the reference"
    )


def choose(
    rows: Mapping[PlanFlavour, PlanRow],
    ratios: Mapping[PlanFlavour, Estimate],
    *,
    prefer: Prefer,
    doubt: str | None = None,
) -> PlanChoice:
    """Return which plan to keep.

    A quantized plan, of several the fastest, is kept only if it passes its gate and is faster than FP16 beyond the
    interval of the measurement (or smaller, if `prefer` is `size`).

    Args:
        rows: the measured plans by flavour.
        ratios: FP16 time over the time of each other plan.
        prefer: what counts.
        doubt: what is known of wrong values of this TensorRT.

    Raises:
        QualityGateError: no plan is accurate enough.
    """
    failed = {name: row.problem for name, row in rows.items() if row.problem is not None}
    passing = [name for name in rows if name not in failed]
    if not passing:
        details = "; ".join(f"{name}: {problem}" for name, problem in failed.items())
        raise QualityGateError(
            f"no plan computes what the reference computes ({details}). Nothing was written. "
            f"{f'{doubt}. ' if doubt else ''}Run `p4q-edge validate --debug` on the bundle."
        )
    if len(passing) == 1:
        why = "; ".join(f"{name} fails its gate: {problem}" for name, problem in failed.items())
        return PlanChoice(kept=passing[0], reason=why or "the only plan that was asked for")
    fastest = min((name for name in passing if name != "fp16"), key=lambda name: rows[name].p50_ms)
    if fastest not in ratios:
        raise ValueError("several plans need the ratios of their times")
    ratio = ratios[fastest]
    figures = (
        f"{NAMES[fastest]} is {ratio.value:.2f}x as fast as FP16 [{ratio.low:.2f}, {ratio.high:.2f}], "
        f"n = {ratio.n}, batch {rows[fastest].batch}"
    )
    if prefer == "size":
        smallest = min(passing, key=lambda name: rows[name].size_bytes)
        return PlanChoice(kept=smallest, reason=f"the smaller plan, as asked for; {figures}")
    if "fp16" not in passing:
        return PlanChoice(kept=fastest, reason=f"{figures}; fp16 fails its gate: {failed['fp16']}")
    if ratio.low > 1:
        return PlanChoice(kept=fastest, reason=f"{figures}: faster")
    return PlanChoice(kept="fp16", reason=f"{figures}: not faster")


def table(rows: Mapping[PlanFlavour, PlanRow], choice: PlanChoice) -> str:
    """Return all rows and the choice as text."""
    lines = [
        "plan          batch  p50 ms  p90 ms     n  one image ms  size MB  cosine to reference  cosine to float  "
        "top-1 as float"
    ]
    for row in rows.values():
        alone = "-" if row.one_image_p50_ms is None else f"{row.one_image_p50_ms:.2f}"
        lines.append(
            f"{row.precision:12}  {row.batch:5}  {row.p50_ms:6.2f}  {row.p90_ms:6.2f}  {row.n:4}  "
            f"{alone:>12}  {row.size_bytes / 1e6:7.1f}  "
            f"{row.cosine_min:19.5f}  {row.float_cosine_min:15.5f}  {row.float_top1_agreement:8.0%} n={row.samples}"
        )
    lines.append(f"kept {choice.kept}: {choice.reason}")
    return "\n".join(lines)
