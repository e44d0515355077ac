"""The pictures of a report, as SVG that is put into the page itself.

Text and axes are drawn in a marker colour that becomes `currentColor`, so a picture follows the page's light or dark
colours. The series colours have a contrast of at least 3 to 1 on both backgrounds.
"""

import io
import itertools
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from p4q_edge.runtime.benchmark import SpeedRow
from p4q_edge.runtime.evaluation import ChainReport, StageReport
from p4q_edge.runtime.evaluation.report import Baseline, LearningPoint

BLUE, ORANGE, GREEN, _ = SERIES = ("#3b82d6", "#cf6a17", "#2c9a5e", "#a06cd5")
_INK = "#010203"
# 4.6 in at 72 dpi is the width of a phone's page, so the text of a picture has its full size there.
_WIDTH_IN = 4.6
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "p4q-edge",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # A class name with a dollar sign is not a formula.
    "text.parse_math": False,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "grid.color": "#8a8f98",
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
}
_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
_MAX_CELL_LABELS = 20
_MAX_CLASS_ROWS = 30


def draw_figure(paint: Callable[[Axes], None], *, title: str, height_in: float = 3.0) -> str:
    """Return an `<svg>` element; `paint` draws onto its only axes, `title` is read out by screen readers."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The browser draws the text with its own fonts; these only measure it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        paint(axes)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(  # type: ignore[no-untyped-call]
            buffer, metadata={"Date": None, "Creator": None}
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Two pictures in one page must not share the names of their clip paths.
    prefix = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def accuracy_by_stage(chain: ChainReport) -> str:
    """Return top-1 of each stage with its interval."""

    def paint(axes: Axes) -> None:
        rows = [
            (stage.name.replace("_", " "), stage.top1.value, stage.top1.low, stage.top1.high) for stage in chain.stages
        ]
        _intervals(axes, rows, color=BLUE)
        axes.set_xlabel(f"top-1, %, 95 % interval (n = {chain.n})")

    return draw_figure(paint, title="Top-1 of each stage", height_in=0.9 + 0.38 * len(chain.stages))


def baselines(rows: Sequence[Baseline]) -> str:
    """Return the methods with the interval of each and a dot for each seed."""

    def paint(axes: Axes) -> None:
        _intervals(axes, [(row.name, row.mean, row.low, row.high) for row in rows], color=GREEN)
        for y, row in enumerate(rows):
            axes.plot(
                [100 * value for value in row.top1_per_seed],
                [y] * len(row.top1_per_seed),
                linestyle="none",
                marker="|",
                markersize=9,
                color=ORANGE,
            )
        axes.set_xlabel("top-1, %: mean, 95 % interval, seeds")

    return draw_figure(paint, title="Methods compared", height_in=0.9 + 0.38 * len(rows))


def learning(points: Sequence[LearningPoint]) -> str:
    """Return the loss of each epoch, and where it was asked for the held-out accuracy on an axis of its own."""
    epochs = [point.epoch for point in points]
    shares = [100 * point.held_out_top1 for point in points if point.held_out_top1 is not None]

    def paint(axes: Axes) -> None:
        (loss,) = axes.plot(epochs, [point.loss for point in points], color=BLUE, label="loss")
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss")
        if len(shares) < len(points):
            return
        beside = axes.twinx()
        beside.spines["right"].set_visible(True)
        (accuracy,) = beside.plot(epochs, shares, color=ORANGE, linestyle="--", label="held-out top-1, %")
        beside.set_ylabel("held-out top-1, %")
        axes.legend(handles=[loss, accuracy], loc="center right")

    return draw_figure(paint, title="Learning curve")


def confusion(stage: StageReport, class_names: Sequence[str]) -> str:
    """Return the confusion matrix as shares of each label's images."""
    counts = np.array(stage.confusion, dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    classes = len(class_names)

    def paint(axes: Axes) -> None:
        clear_to_blue = LinearSegmentedColormap.from_list("p4q", [(0.23, 0.51, 0.84, 0.0), (0.23, 0.51, 0.84, 1.0)])
        axes.pcolormesh(shares, cmap=clear_to_blue, vmin=0, vmax=1, rasterized=classes > _MAX_CELL_LABELS)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")
        axes.spines[:].set_visible(True)
        if classes <= _MAX_CELL_LABELS:
            short = [_shorten(name, 14) for name in class_names]
            axes.set_xticks(np.arange(classes) + 0.5, short, rotation=90)
            axes.set_yticks(np.arange(classes) + 0.5, short)
            for row, column in zip(*np.nonzero(counts), strict=True):
                axes.text(column + 0.5, row + 0.5, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=7)

    return draw_figure(paint, title=f"Confusion of {stage.name}", height_in=4.6)


def reliability(stages: Sequence[StageReport]) -> str:
    """Return accuracy over confidence for each stage; the diagonal is perfect calibration."""

    def paint(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color="#8a8f98", linestyle=":", linewidth=1)
        for stage, color in zip(stages, itertools.cycle(SERIES), strict=False):
            filled = [b for b in stage.reliability if b.count]
            axes.plot(
                [100 * b.confidence for b in filled],
                [100 * b.accuracy for b in filled],
                marker="o",
                markersize=3.5,
                linewidth=1.3,
                color=color,
                label=f"{stage.name.replace('_', ' ')}: ECE {100 * stage.ece.value:.1f} %",
            )
        axes.set(xlabel="confidence, %", ylabel="accuracy, %", xlim=(0, 101), ylim=(0, 101))
        axes.grid(visible=True)
        axes.legend(loc="best")

    return draw_figure(paint, title="Reliability", height_in=3.6)


def class_changes(first: StageReport, last: StageReport, class_names: Sequence[str]) -> str:
    """Return the change of each class's accuracy between two stages, the largest losses first."""
    pairs = zip(class_names, first.class_accuracy, last.class_accuracy, strict=True)
    changes = [(name, 100 * (b.value - a.value)) for name, a, b in pairs if a is not None and b is not None]
    changes.sort(key=lambda item: item[1])
    if len(changes) > _MAX_CLASS_ROWS:
        half = _MAX_CLASS_ROWS // 2
        changes = changes[:half] + changes[-half:]

    def paint(axes: Axes) -> None:
        values = [value for _, value in changes]
        axes.barh(range(len(changes)), values, color=[ORANGE if value < 0 else GREEN for value in values], height=0.7)
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_yticks(range(len(changes)), [_shorten(name, 22) for name, _ in changes])
        axes.invert_yaxis()
        axes.set_xlabel(f"accuracy, {first.name} to {last.name}, points")
        if not any(values):
            axes.set_xlim(-1, 1)

    return draw_figure(paint, title="Change of each class", height_in=0.9 + 0.22 * len(changes))


def latency_distribution(rows: Sequence[SpeedRow], *, batch: int) -> str:
    """Return the cumulative share of runs over time for each row of one batch size."""

    def paint(axes: Axes) -> None:
        for row, color in zip(rows, itertools.cycle(SERIES), strict=False):
            times = np.sort(np.array(row.times_ms))
            shares = 100 * np.arange(1, times.size + 1) / times.size
            axes.step(times, shares, where="post", color=color, label=f"{row.name}, {row.scope}")
        # Engines and whole paths lie a factor of ten apart.
        axes.set(xscale="log", xlabel=f"ms for a batch of {batch}", ylabel="runs, %", ylim=(0, 101))
        axes.xaxis.set_major_formatter(_PLAIN)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(visible=True)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)

    return draw_figure(paint, title=f"Latency distribution at batch {batch}", height_in=3.0 + 0.16 * len(rows))


def pareto(rows: Sequence[SpeedRow], *, over: str) -> str:
    """Return accuracy over `size` in MB or over `latency` in ms, at the smallest batch that was measured."""
    batch = min((row.batch for row in rows), default=1)
    points = [(row, _abscissa(row, over)) for row in rows if row.top1 is not None and row.batch == batch]

    def paint(axes: Axes) -> None:
        for (row, x), color in zip(points, itertools.cycle(SERIES), strict=False):
            if row.top1 is None or x is None:
                continue
            y, low, high = 100 * row.top1.value, 100 * row.top1.low, 100 * row.top1.high
            axes.errorbar([x], [y], yerr=[[y - low], [high - y]], marker="o", color=color, capsize=3, label=row.name)
        axes.set_xlim(0, 1.15 * max((x for _, x in points if x is not None), default=1.0))
        axes.set(xlabel="engine, MB" if over == "size" else f"p50 of a batch of {batch}, ms", ylabel="top-1, %")
        axes.grid(visible=True)
        axes.legend(loc="best")

    return draw_figure(paint, title=f"Accuracy over {over}", height_in=3.0)


def _abscissa(row: SpeedRow, over: str) -> float | None:
    if over == "latency":
        return row.latency.p50_ms
    return None if row.size_bytes is None else row.size_bytes / 1e6


def _intervals(axes: Axes, rows: Sequence[tuple[str, float, float, float]], *, color: str) -> None:
    for y, (_, value, low, high) in enumerate(rows):
        axes.plot([100 * low, 100 * high], [y, y], color=color, linewidth=2.2, solid_capstyle="round")
        axes.plot([100 * value], [y], marker="o", markersize=6, color=color)
    axes.set_yticks(range(len(rows)), [_shorten(name, 30) for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=True, axis="x")


def _shorten(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
