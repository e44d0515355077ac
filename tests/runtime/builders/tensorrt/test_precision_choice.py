"""INT8 or FP16: the gates, the choice, and the table that shows both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.artifacts import PlanChoice, PlanRow
from p4q_edge.runtime.artifacts.golden import Golden
from p4q_edge.runtime.builders.tensorrt.precision_choice import (
    choose,
    compare_to_reference,
    gate_problem,
    golden_of,
    table,
)
from p4q_edge.runtime.choices import PlanFlavour
from p4q_edge.runtime.errors import QualityGateError
from p4q_edge.runtime.statistics import Estimate

RATIOS = st.floats(0.2, 5.0)


def row(precision: PlanFlavour, *, size: int = 100, problem: str | None = None) -> PlanRow:
    return PlanRow(
        precision=precision,
        batch=8,
        n=50,
        p50_ms=4.9,
        p90_ms=5.1,
        one_image_p50_ms=1.25,
        size_bytes=size,
        samples=4,
        cosine_min=0.9995,
        float_cosine_min=0.998,
        float_top1_agreement=1.0,
        problem=problem,
    )


def ratio(low: float, value: float, high: float) -> Estimate:
    return Estimate(low=low, value=value, high=high, n=50, method="bootstrap")


def golden(*, reference_cosine: float) -> Golden:
    """Two samples whose reference has this cosine to the full-precision model."""
    exact = np.array([[1, 0], [1, 0]], np.float32)
    turned = np.array([[reference_cosine, np.sqrt(1 - reference_cosine**2)]] * 2, np.float32)
    image = np.zeros((2, 3, 2, 2), np.uint8)
    return Golden(
        image=image, features=turned, embedding=turned, logits=turned, float_embedding=exact, float_logits=exact
    )


def test_int8_must_reproduce_the_reference() -> None:
    samples = golden(reference_cosine=0.9)
    measured = {"precision": "int8", "cosine_min": 0.9995, "float_cosine_min": 0.1}
    assert gate_problem(measured, samples, min_cosine=0.999) is None
    assert gate_problem({**measured, "cosine_min": 0.99}, samples, min_cosine=0.999) == (
        "embeddings reach a cosine of 0.99000 to the reference; expected 0.999"
    )


def test_fp16_must_be_as_near_to_the_float_model_as_the_reference_is() -> None:
    samples = golden(reference_cosine=0.9)
    measured = {"precision": "fp16", "cosine_min": 0.1, "float_cosine_min": 0.95}
    assert gate_problem(measured, samples, min_cosine=0.999) is None
    assert gate_problem({**measured, "float_cosine_min": 0.89}, samples, min_cosine=0.999) == (
        "embeddings reach a cosine of 0.89000 to the full-precision model; expected 0.89900, as the reference"
    )


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_nan_never_passes(precision: str) -> None:
    measured = {"precision": precision, "cosine_min": float("nan"), "float_cosine_min": float("nan")}
    assert "cosine of nan" in str(gate_problem(measured, golden(reference_cosine=0.9), min_cosine=-1))


def test_int8_is_kept_where_it_is_faster_beyond_the_noise() -> None:
    rows = {"int8": row("int8"), "fp16": row("fp16")}
    assert choose(rows, {"int8": ratio(1.1, 1.15, 1.2)}, prefer="speed") == PlanChoice(
        kept="int8", reason="INT8 is 1.15x as fast as FP16 [1.10, 1.20], n = 50, batch 8: faster"
    )
    assert choose(rows, {"int8": ratio(0.99, 1.02, 1.05)}, prefer="speed") == PlanChoice(
        kept="fp16", reason="INT8 is 1.02x as fast as FP16 [0.99, 1.05], n = 50, batch 8: not faster"
    )


def test_size_is_preferred_on_request() -> None:
    rows = {"int8": row("int8", size=90), "fp16": row("fp16", size=170)}
    choice = choose(rows, {"int8": ratio(0.8, 0.9, 1.0)}, prefer="size")
    assert choice.kept == "int8"
    assert choice.reason.startswith("the smaller plan, as asked for; INT8 is 0.90x")


def test_the_only_accurate_plan_is_kept_and_the_reason_names_the_other() -> None:
    rows = {"int8": row("int8", problem="cosine 0.5"), "fp16": row("fp16")}
    assert choose(rows, {"int8": ratio(2, 2, 2)}, prefer="speed") == PlanChoice(
        kept="fp16", reason="int8 fails its gate: cosine 0.5"
    )
    assert choose({"int8": row("int8")}, {}, prefer="speed").reason == "the only plan that was asked for"


def test_without_an_accurate_plan_nothing_is_kept() -> None:
    rows = {"int8": row("int8", problem="cosine 0.5"), "fp16": row("fp16", problem="cosine 0.6")}
    with pytest.raises(
        QualityGateError,
        match=r"no plan computes what the reference computes \(int8: cosine 0\.5; fp16: cosine 0\.6\)\. Nothing was",
    ):
        choose(rows, {"int8": ratio(1, 1, 1)}, prefer="speed")


def test_two_plans_without_a_ratio_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match="need the ratios"):
        choose({"int8": row("int8"), "fp16": row("fp16")}, {}, prefer="speed")


@given(st.tuples(RATIOS, RATIOS, RATIOS).map(sorted), st.booleans(), st.booleans(), st.sampled_from(["speed", "size"]))
def test_a_plan_that_fails_is_never_kept_and_slow_int8_only_for_size(
    bounds: list[float], int8_fails: bool, fp16_fails: bool, prefer: Any
) -> None:
    rows = {
        "int8": row("int8", size=1, problem="bad" if int8_fails else None),
        "fp16": row("fp16", size=2, problem="bad" if fp16_fails else None),
    }
    if int8_fails and fp16_fails:
        with pytest.raises(QualityGateError):
            choose(rows, {"int8": ratio(*bounds)}, prefer=prefer)
        return
    kept = choose(rows, {"int8": ratio(*bounds)}, prefer=prefer).kept
    assert rows[kept].problem is None
    if kept == "int8" and not fp16_fails and prefer == "speed":
        assert bounds[0] > 1


def test_the_table_has_both_rows_and_the_choice() -> None:
    rows = {"int8": row("int8", size=91_000_000), "fp16": row("fp16", size=175_000_000)}
    lines = table(rows, PlanChoice(kept="fp16", reason="not faster")).splitlines()
    assert lines[0].split()[:4] == ["plan", "batch", "p50", "ms"]
    assert lines[1].split()[:7] == ["int8", "8", "4.90", "5.10", "50", "1.25", "91.0"]
    assert lines[2].split()[:7] == ["fp16", "8", "4.90", "5.10", "50", "1.25", "175.0"]
    assert lines[3] == "kept fp16: not faster"


def three(*, int8: float, int8_linears: float, fp16: float) -> dict[PlanFlavour, PlanRow]:
    times: dict[PlanFlavour, float] = {"int8": int8, "int8-linears": int8_linears, "fp16": fp16}
    return {name: msgspec.structs.replace(row(name), p50_ms=value) for name, value in times.items()}


def test_of_two_quantized_plans_the_fastest_is_compared_with_fp16() -> None:
    """INT8 convolutions may cost more than they give: then the linears alone are kept in INT8."""
    rows = three(int8=5.0, int8_linears=4.0, fp16=4.6)
    ratios = {"int8": ratio(0.9, 0.92, 0.94), "int8-linears": ratio(1.1, 1.15, 1.2)}
    assert choose(rows, ratios, prefer="speed") == PlanChoice(
        kept="int8-linears",
        reason="INT8 in linears only is 1.15x as fast as FP16 [1.10, 1.20], n = 50, batch 8: faster",
    )
    assert choose(three(int8=4.7, int8_linears=4.8, fp16=4.6), ratios, prefer="speed").kept == "fp16"


def test_without_an_accurate_fp16_plan_the_fastest_quantized_one_is_kept() -> None:
    rows = three(int8=3.0, int8_linears=4.0, fp16=4.6)
    rows["fp16"] = msgspec.structs.replace(rows["fp16"], problem="cosine 0.5")
    ratios = {"int8": ratio(1.4, 1.5, 1.6), "int8-linears": ratio(1.1, 1.15, 1.2)}
    choice = choose(rows, ratios, prefer="speed")
    assert choice.kept == "int8"
    assert choice.reason.endswith("fp16 fails its gate: cosine 0.5")


def test_linears_alone_are_compared_with_the_model_quantized_like_that() -> None:
    samples = golden(reference_cosine=0.9)
    other = dict.fromkeys(("features", "embedding", "logits"), samples.float_embedding)
    samples = replace(samples, on_cpu=other)
    outputs = {"embedding": samples.float_embedding, "logits": samples.float_embedding}
    for precision, cosine in (("int8", 0.9), ("int8-linears", 1.0)):
        found = compare_to_reference(outputs, golden_of(precision, samples))
        assert found["cosine_min"] == pytest.approx(cosine, abs=1e-6)
        problem = gate_problem({"precision": precision, **found}, samples, min_cosine=0.999)
        assert (problem is None) == (precision == "int8-linears")
