"""How figures are written: a share in percent with its interval and n, a size in MB, a digest by its beginning."""

from collections.abc import Callable

from p4q_edge.runtime.evaluation.gates import GateResult
from p4q_edge.runtime.evaluation.report.document import Baseline
from p4q_edge.runtime.statistics import Estimate


def percent(value: float) -> str:
    """`0.8312` -> `83.12 %`."""
    return f"{100 * value:.2f} %"


def interval(estimate: Estimate) -> str:
    """Return the interval of a share, in percent."""
    return f"[{100 * estimate.low:.2f}, {100 * estimate.high:.2f}]"


def share(estimate: Estimate) -> str:
    """`83.12 % [81.30, 84.80], n = 1637`."""
    return f"{percent(estimate.value)} {interval(estimate)}, n = {estimate.n}"


def points(estimate: Estimate) -> str:
    """Return a difference of shares in percentage points with its interval."""
    return f"{signed(estimate)} {signed_interval(estimate)}"


def signed(estimate: Estimate) -> str:
    """Return a difference of shares in percentage points, without its interval."""
    return f"{100 * estimate.value:+.2f}"


def signed_interval(estimate: Estimate) -> str:
    """Return the interval of a difference in percentage points."""
    return f"[{100 * estimate.low:+.2f}, {100 * estimate.high:+.2f}]"


def number(value: float) -> str:
    """Return four significant digits, no exponent where it can be avoided."""
    return f"{value:.4g}"


def cosine(value: float) -> str:
    """`0.99984`: five decimals, since the gates lie in the third."""
    return f"{value:.5f}"


def cosine_range(estimate: Estimate) -> str:
    """Return the interval of a cosine."""
    return f"[{cosine(estimate.low)}, {cosine(estimate.high)}]"


def cosine_interval(estimate: Estimate) -> str:
    """Return a cosine with its interval."""
    return f"{cosine(estimate.value)} {cosine_range(estimate)}"


def number_range(estimate: Estimate) -> str:
    """Return the interval of a figure, three significant digits."""
    return f"[{estimate.low:.3g}, {estimate.high:.3g}]"


def number_interval(estimate: Estimate) -> str:
    """Return a figure with its interval."""
    return f"{number(estimate.value)} {number_range(estimate)}"


def p_value(value: float) -> str:
    """`p = 0.043`, or `p < 0.001`."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def megabytes(size_bytes: int) -> str:
    """Return a size in MB of 10^6 bytes; small files in kB."""
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"


def milliseconds(value: float) -> str:
    """`3.21 ms`."""
    return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"


def ratio(estimate: Estimate) -> str:
    """`1.71 [1.69, 1.74]`."""
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def short_digest(digest: str) -> str:
    """Return the first twelve digits of a digest."""
    return digest[:12]


def gate(result: GateResult) -> str:
    """`cosine (p1), fake quant to engine: 0.99991 (limit 0.99900)`."""
    form = cosine if not result.unit else number
    unit = f" {result.unit}" if result.unit else ""
    return f"{stage(result.name)}: {form(result.value)}{unit} (limit {form(result.limit)}{unit})"


def seeds(row: Baseline) -> str:
    """Return the figure of each seed in percent."""
    return ", ".join(f"{100 * value:.2f}" for value in row.top1_per_seed)


def stage(name: str) -> str:
    """`fake_quant` -> `fake quant`."""
    return name.replace("_", " ")


ZERO_SHOT = "zero-shot, float"
"""Name of the row of hand-written prompts in full precision."""


def zero_shot_row(estimate: Estimate) -> tuple[str, str, str, str, str, str]:
    """Return the row of hand-written prompts in a table of stages: of it only top-1 is kept."""
    return (ZERO_SHOT, f"{percent(estimate.value)} {interval(estimate)}", "-", "-", "-", str(estimate.n))


FILTERS: dict[str, Callable[..., str]] = {
    "percent": percent,
    "interval": interval,
    "share": share,
    "points": points,
    "signed": signed,
    "signed_interval": signed_interval,
    "number": number,
    "cosine": cosine,
    "cosine_range": cosine_range,
    "number_range": number_range,
    "p_value": p_value,
    "megabytes": megabytes,
    "milliseconds": milliseconds,
    "ratio": ratio,
    "short_digest": short_digest,
    "gate": gate,
    "seeds": seeds,
    "stage": stage,
}
