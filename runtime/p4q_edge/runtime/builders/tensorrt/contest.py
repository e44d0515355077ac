"""A contest of built plans on the GPU at hand: measured in a worker, the best is chosen, and what its card records."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from p4q_edge.runtime.artifacts import Golden, PlanChoice, PlanInspection, PlanRow, TensorRTOptions
from p4q_edge.runtime.builders.tensorrt.precision_choice import choose, gate_problem, golden_of, table
from p4q_edge.runtime.choices import PlanFlavour
from p4q_edge.runtime.statistics import Estimate
from p4q_edge.runtime.storage import load_tensors

logger = logging.getLogger(__name__)

RunWorker = Callable[..., dict[str, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Contest:
    """How a contest ended.

    Attributes:
        choice: which plan is kept, and why.
        inspection: what the card records of its kernels and of the measurement.
        golden: the samples that the kept plan is checked with when it is loaded. For INT8 they are the bundle's. FP16
            does not quantize activations and differs from that reference for the better, so it is checked against
            what it computed here, after it passed its own gate.
        outputs: what the kept plan computed on the golden images.
    """

    choice: PlanChoice
    inspection: PlanInspection
    golden: Golden
    outputs: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Contestants:
    """Plans `<flavour>.plan` in a folder, beside `golden.safetensors`.

    Attributes:
        folder: where they are.
        built: the worker's result for each.
        samples: the golden samples.
        action: what the worker is asked to do with them.
        doubt: what is known of wrong values of this library, or None.
    """

    folder: Path
    built: Mapping[PlanFlavour, Mapping[str, Any]]
    samples: Golden
    action: str = "measure"
    doubt: str | None = None


def hold_contest(plans: Contestants, options: TensorRTOptions, run_worker: RunWorker) -> Contest:
    """Measure plans and return which is kept.

    Args:
        plans: those that were built; one alone only has to pass its gate.
        options: of the build.
        run_worker: starts the worker.

    Raises:
        QualityGateError: no plan computes what the reference computes.
    """
    request = {
        "action": plans.action,
        "options": asdict(options),
        "plans": {flavour: str(plans.folder / f"{flavour}.plan") for flavour in plans.built},
        "golden": str(plans.folder / "golden.safetensors"),
    }
    measured = run_worker(request, task="measuring")
    rows: dict[PlanFlavour, PlanRow] = {
        row["precision"]: PlanRow(**row, problem=gate_problem(row, plans.samples, min_cosine=options.accuracy_gate))
        for row in measured["rows"].values()
    }
    ratios = msgspec.convert(measured["ratios"], dict[PlanFlavour, Estimate])
    choice = choose(rows, ratios, prefer=options.prefer, doubt=plans.doubt)
    logger.info("%s", table(rows, choice))
    outputs, _ = load_tensors((plans.folder / f"{choice.kept}.safetensors").read_bytes(), source="the plan's outputs")
    inspection = msgspec.structs.replace(
        msgspec.convert(plans.built[choice.kept]["inspection"], PlanInspection),
        rows=rows,
        choice=choice,
        ratio=ratios.get("int8"),
        ratios=ratios,
        build_seconds={flavour: result["seconds"] for flavour, result in plans.built.items()},
    )
    golden = _as_reference(plans.samples, outputs) if choice.kept == "fp16" else golden_of(choice.kept, plans.samples)
    return Contest(choice=choice, inspection=inspection, golden=golden, outputs=outputs)


def _as_reference(samples: Golden, outputs: Mapping[str, Any]) -> Golden:
    """Return golden samples whose reference is what an accepted plan computed."""
    return replace(samples, **{name: outputs[name] for name in ("features", "embedding", "logits")}, on_cpu={})
