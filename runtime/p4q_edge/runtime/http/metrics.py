"""Counters of a server in the text format of Prometheus."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCH_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)

Labels = tuple[str, ...]


def escaped(value: str) -> str:
    """Return a label's value as the format wants it."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _line(name: str, names: Iterable[str], values: Iterable[str], number: float) -> str:
    pairs = ",".join(f'{key}="{escaped(value)}"' for key, value in zip(names, values, strict=True))
    shown = str(int(number)) if float(number).is_integer() else repr(float(number))
    return f"{name}{{{pairs}}} {shown}" if pairs else f"{name} {shown}"


@dataclass(kw_only=True)
class Counter:
    """A number that only grows, for each combination of label values."""

    name: str
    about: str
    labels: Labels = ()
    _values: dict[Labels, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *values: str, amount: float = 1.0) -> None:
        """Count something under these label values."""
        with self._lock:
            self._values[values] = self._values.get(values, 0.0) + amount

    def value(self, *values: str) -> float:
        """Return what was counted under these label values."""
        return self._values.get(values, 0.0)

    def lines(self) -> Iterable[str]:
        """Yield the lines of the format."""
        yield f"# HELP {self.name} {self.about}"
        yield f"# TYPE {self.name} counter"
        with self._lock:
            found = sorted(self._values.items())
        for values, number in found or ([] if self.labels else [((), 0.0)]):
            yield _line(self.name, self.labels, values, number)


@dataclass(kw_only=True)
class Histogram:
    """How often values were at most so large, for each combination of label values."""

    name: str
    about: str
    bounds: tuple[float, ...]
    labels: Labels = ()
    _counts: dict[Labels, list[int]] = field(default_factory=dict)
    _sums: dict[Labels, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def observe(self, value: float, *values: str) -> None:
        """Count a value under these label values."""
        with self._lock:
            counts = self._counts.setdefault(values, [0] * (len(self.bounds) + 1))
            counts[bisect_left(self.bounds, value)] += 1
            self._sums[values] = self._sums.get(values, 0.0) + value

    def count(self, *values: str) -> int:
        """Return how many values were counted under these label values."""
        return sum(self._counts.get(values, ()))

    def lines(self) -> Iterable[str]:
        """Yield the lines of the format."""
        yield f"# HELP {self.name} {self.about}"
        yield f"# TYPE {self.name} histogram"
        with self._lock:
            found = sorted((values, list(counts), self._sums[values]) for values, counts in self._counts.items())
        for values, counts, total in found:
            so_far = 0
            for bound, count in zip((*map(str, self.bounds), "+Inf"), counts, strict=True):
                so_far += count
                yield _line(f"{self.name}_bucket", (*self.labels, "le"), (*values, bound), so_far)
            yield _line(f"{self.name}_sum", self.labels, values, total)
            yield _line(f"{self.name}_count", self.labels, values, so_far)


@dataclass(kw_only=True)
class Gauge:
    """A number that is asked for when it is shown."""

    name: str
    about: str
    read: Callable[[], float]
    labels: Labels = ()
    values: Labels = ()

    def lines(self) -> Iterable[str]:
        """Yield the lines of the format."""
        yield f"# HELP {self.name} {self.about}"
        yield f"# TYPE {self.name} gauge"
        yield _line(self.name, self.labels, self.values, self.read())


class Metrics:
    """What a server counts."""

    def __init__(self) -> None:
        self.requests = Counter(
            name="p4q_edge_requests_total",
            about="Requests that were answered.",
            labels=("route", "method", "status"),
        )
        self.refused = Counter(
            name="p4q_edge_refused_total", about="Requests that were not let in.", labels=("reason",)
        )
        self.images = Counter(name="p4q_edge_images_total", about="Images by outcome.", labels=("outcome",))
        self.request_seconds = Histogram(
            name="p4q_edge_request_seconds",
            about="Time from a request's head to the end of its answer.",
            bounds=SECONDS,
            labels=("route",),
        )
        self.engine_seconds = Histogram(
            name="p4q_edge_engine_seconds", about="Time of one run of the engine with its head.", bounds=SECONDS
        )
        self.batch_size = Histogram(
            name="p4q_edge_batch_images", about="Images in one run of the engine.", bounds=BATCH_SIZES
        )
        self.gauges: list[Gauge] = []

    def text(self) -> str:
        """Return everything in the text format."""
        counted: tuple[Counter | Histogram | Gauge, ...] = (
            self.requests,
            self.refused,
            self.images,
            self.request_seconds,
            self.engine_seconds,
            self.batch_size,
            *self.gauges,
        )
        return "".join(f"{line}\n" for one in counted for line in one.lines())
