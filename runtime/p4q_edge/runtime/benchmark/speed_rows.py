"""The record of one measurement of `p4q-edge bench`."""

from dataclasses import dataclass

from p4q_edge.runtime.statistics import Estimate, Latency


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """Latency, size and accuracy of one engine at one batch size.

    Attributes:
        name: for example `INT8` or `FP32`.
        library: what ran it, with its version, as `ONNX Runtime 1.32.0`; empty in older reports.
        scope: `engine` (uint8 array in, outputs out) or `end to end` (encoded image in, label out).
        latency: of one batch.
        size_bytes: of the engine file; None if it has none.
        advantage: how many times faster the first row of the same scope and batch is, from paired runs.
        invalid: why the measurement does not count.
        times_ms: a sample of the times, for the picture of their distribution.
    """

    name: str
    scope: str
    batch: int
    latency: Latency
    size_bytes: int | None = None
    advantage: Estimate | None = None
    top1: Estimate | None = None
    invalid: tuple[str, ...] = ()
    times_ms: tuple[float, ...] = ()
    library: str = ""
