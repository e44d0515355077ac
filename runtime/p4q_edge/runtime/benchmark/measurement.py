"""Measure an engine: latency, throughput, load time, memory and energy, beside others in the same process.

A measurement is invalid when the machine was disturbed or throttled, when the watcher died, or when the engine's
predictions on the golden samples are wrong; it is then reported as such, never dropped.
"""

from __future__ import annotations

import io
import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from p4q_edge.runtime.artifacts import Card, Golden, on_backend, read_card
from p4q_edge.runtime.benchmark.interference import SystemProbe, Watcher, WatchRecord
from p4q_edge.runtime.benchmark.power import PowerSensor, find_sensors, open_nvml
from p4q_edge.runtime.benchmark.speed_rows import SpeedRow
from p4q_edge.runtime.choices import CpuBackend
from p4q_edge.runtime.classification import probabilities
from p4q_edge.runtime.engines import library_words, load_engine
from p4q_edge.runtime.images import load_image, preprocess
from p4q_edge.runtime.stage import Outputs
from p4q_edge.runtime.statistics import (
    ENGINE_SCOPE,
    WHOLE_SCOPE,
    Estimate,
    Rounds,
    agreement,
    measure_interleaved,
    paired_ratio,
    summarize,
)
from p4q_edge.runtime.verification import compare_golden

logger = logging.getLogger(__name__)

# A photograph of a small camera; decoding and resizing it is a large part of the time on a CPU.
PHOTO_SIZE = (640, 480)
MAX_KEPT_TIMES = 500
PROC_SELF = Path("/proc/self")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Something that classifies batches.

    Attributes:
        run: uint8 (N, 3, H, W) to outputs by name.
        library: what runs it, with its version.
        size_bytes: of its file; None if it has none.
        load_ms: reading, verifying and preparing it; None if not measured.
    """

    name: str
    run: Callable[[np.ndarray], Outputs]
    size_bytes: int | None = None
    load_ms: float | None = None
    library: str = ""
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """How to measure.

    Attributes:
        batches: batch sizes.
        rounds: warm-up and number of rounds of each batch size.
        energy_seconds: how long each candidate runs alone where a power sensor exists; 0 turns it off.
        whole: measure from an encoded photograph to a label too.
        seed: of the bootstrap.
    """

    batches: tuple[int, ...] = (1,)
    rounds: Rounds = field(default_factory=Rounds)
    energy_seconds: float = 2.0
    whole: bool = True
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes; None where this system does not tell. `device_bytes` is this process's share of all GPUs."""

    peak_host_bytes: int | None
    device_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class EnergyRow:
    """Energy of one candidate alone at one batch size, by one sensor."""

    name: str
    batch: int
    sensor: str
    joules_per_image: float
    mean_watts: float
    images: int
    invalid: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BatchWatch:
    """What was watched while one batch size was measured."""

    batch: int
    watch: WatchRecord


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of `bench`; the first candidate is the engine in question.

    Attributes:
        agreement: share of golden images that a candidate names as the first one does.
        predictions: what is wrong with the first candidate's predictions on the golden samples; None if nothing is.
    """

    rows: tuple[SpeedRow, ...]
    watches: tuple[BatchWatch, ...]
    energy: tuple[EnergyRow, ...]
    load_ms: Mapping[str, float | None]
    agreement: Mapping[str, Estimate]
    predictions: str | None
    memory: Memory

    @property
    def valid(self) -> bool:
        """Whether every row counts."""
        return not any(row.invalid for row in self.rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """The machine's side of a measurement; replaced in tests."""

    sensors: Sequence[PowerSensor] = ()
    nvml: Any = None
    clock_ns: Callable[[], int] = time.perf_counter_ns
    watcher: Callable[[], Watcher] = field(default=lambda: Watcher(SystemProbe()))


def this_setting() -> Setting:
    """Return the sensors, the clock and the watcher of this machine."""
    nvml = open_nvml()
    sensors = tuple(find_sensors(nvml=nvml))
    kinds = {sensor.name: sensor.kind for sensor in sensors}
    return Setting(
        sensors=sensors, nvml=nvml, watcher=lambda: Watcher(SystemProbe(sensors=sensors, nvml=nvml), kinds=kinds)
    )


def load_candidate(
    path: Path, *, name: str, device: str = "auto", threads: int | None = None, backend: CpuBackend | None = None
) -> Candidate:
    """Load an engine with its card, and measure how long that takes."""
    card = on_backend(read_card(path), backend)
    before = time.perf_counter_ns()
    engine = load_engine(path, card, device=device, threads=threads)
    load_ms = (time.perf_counter_ns() - before) / 1e6
    return Candidate(
        name=name,
        run=lambda batch: engine.run(batch, ("logits", "embedding")),
        size_bytes=card.engine_size_bytes,
        load_ms=load_ms,
        library=library_words(card, device=device),
        close=engine.close,
    )


def measure_memory(candidate: Candidate, card: Card, *, batch: int, setting: Setting) -> Memory:
    """Run one batch and return what this process needs with nothing but this candidate loaded."""
    image = card.golden_samples().image
    candidate.run(np.resize(image, (batch, *image.shape[1:])))
    return Memory(peak_host_bytes=peak_host_bytes(), device_bytes=device_bytes(setting.nvml))


def bench(
    candidates: Sequence[Candidate], card: Card, options: BenchOptions, setting: Setting, *, memory: Memory
) -> Measured:
    """Measure candidates in turns; the first is the engine in question, `card` is its card."""
    golden = card.golden_samples()
    main = candidates[0]
    predictions = check_predictions(main, golden, card)
    rows: list[SpeedRow] = []
    watches: list[BatchWatch] = []
    energy: list[EnergyRow] = []
    for batch in options.batches:
        images = np.resize(golden.image, (batch, *golden.image.shape[1:]))
        timed: dict[tuple[str, str], Callable[[], object]] = {
            (candidate.name, ENGINE_SCOPE): _bound(candidate.run, images) for candidate in candidates
        }
        if options.whole:
            timed[main.name, WHOLE_SCOPE] = whole_path(main, card, photo(golden.image[0]), batch)
        watcher = setting.watcher()
        with watcher:
            times = _measure(timed, options.rounds, setting)
        record = watcher.record()
        watches.append(BatchWatch(batch=batch, watch=record))
        invalid = record.invalid if predictions is None else (*record.invalid, predictions)
        rows += _rows(times, candidates, batch=batch, invalid=invalid, seed=options.seed)
        if setting.sensors and options.energy_seconds:
            energy += [e for c in candidates for e in measure_energy(c, images, options.energy_seconds, setting)]
    return Measured(
        rows=tuple(rows),
        watches=tuple(watches),
        energy=tuple(energy),
        load_ms={candidate.name: candidate.load_ms for candidate in candidates},
        agreement=_agreement(candidates, golden),
        predictions=predictions,
        memory=memory,
    )


def check_predictions(candidate: Candidate, golden: Golden, card: Card) -> str | None:
    """Return what is wrong with the predictions on the golden samples, or None."""
    outputs = {name: np.asarray(values) for name, values in candidate.run(golden.image).items()}
    problem = compare_golden(outputs, golden, logit_scale=card.logit_scale, limits=card.limits).problem()
    return None if problem is None else f"wrong predictions: {problem}"


def whole_path(candidate: Candidate, card: Card, encoded: bytes, batch: int) -> Callable[[], object]:
    """Return a function from an encoded photograph, decoded for each image of the batch, to labels."""

    def run() -> list[str]:
        images = np.stack([preprocess(load_image(encoded), card.preprocess) for _ in range(batch)])
        scores = probabilities(np.asarray(candidate.run(images)["logits"]), card.calibration)
        return [card.class_names[index] for index in scores.argmax(axis=1)]

    return run


def photo(image: np.ndarray) -> bytes:
    """Return a JPEG of 640 x 480 made from an image uint8 (3, H, W), with noise so that it does not compress away."""
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).resize(PHOTO_SIZE)
    noise = np.random.default_rng(0).integers(-12, 13, (*PHOTO_SIZE[::-1], 3))
    noisy = (np.asarray(picture, np.int16) + noise).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def measure_energy(candidate: Candidate, images: np.ndarray, seconds: float, setting: Setting) -> tuple[EnergyRow, ...]:
    """Run a candidate alone for some seconds, and return its energy per image by every sensor."""
    watcher, batches = setting.watcher(), 0
    start = setting.clock_ns()
    with watcher:
        while setting.clock_ns() - start < seconds * 1e9:
            candidate.run(images)
            batches += 1
    record = watcher.record()
    return tuple(
        EnergyRow(
            name=candidate.name,
            batch=len(images),
            sensor=energy.sensor,
            joules_per_image=energy.joules / (batches * len(images)),
            mean_watts=energy.mean_watts,
            images=batches * len(images),
            invalid=record.invalid,
        )
        for energy in record.energy
    )


def reset_peak() -> None:
    """Let the peak of this process's memory count from now on, where Linux allows it."""
    with suppress(OSError):
        (PROC_SELF / "clear_refs").write_text("5")


def peak_host_bytes() -> int | None:
    """Return the largest resident size of this process since `reset_peak`."""
    status = PROC_SELF / "status"
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # macOS counts in bytes, other systems in KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_bytes(nvml: Any) -> int | None:
    """Return the memory that this process has on all GPUs; None without NVML or where it does not tell."""
    if nvml is None:
        return None
    found = 0
    for index in range(nvml.nvmlDeviceGetCount()):
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByIndex(index)):
            if process.pid == os.getpid():
                found += process.usedGpuMemory or 0
    return found or None


def _measure(
    timed: Mapping[tuple[str, str], Callable[[], object]], rounds: Rounds, setting: Setting
) -> dict[tuple[str, str], np.ndarray]:
    labels = {f"{name} {scope}": (name, scope) for name, scope in timed}
    functions = {label: timed[key] for label, key in labels.items()}
    times = measure_interleaved(functions, rounds, clock_ns=setting.clock_ns)
    return {labels[label]: values for label, values in times.items()}


def _rows(
    times: Mapping[tuple[str, str], np.ndarray],
    candidates: Sequence[Candidate],
    *,
    batch: int,
    invalid: tuple[str, ...],
    seed: int,
) -> list[SpeedRow]:
    generator = np.random.default_rng(seed)
    main = times[candidates[0].name, ENGINE_SCOPE]
    by_name = {candidate.name: candidate for candidate in candidates}
    rows = []
    for (name, scope), values in times.items():
        other = scope == ENGINE_SCOPE and name != candidates[0].name
        rows.append(
            SpeedRow(
                name=name,
                scope=scope,
                batch=batch,
                latency=summarize(values),
                size_bytes=by_name[name].size_bytes,
                advantage=paired_ratio(values, main, generator=generator) if other else None,
                invalid=invalid,
                times_ms=tuple(values[:MAX_KEPT_TIMES].tolist()),
                library=by_name[name].library,
            )
        )
    return rows


def _agreement(candidates: Sequence[Candidate], golden: Golden) -> dict[str, Estimate]:
    chosen = {c.name: np.asarray(c.run(golden.image)["logits"]).argmax(axis=1) for c in candidates}
    first = chosen[candidates[0].name]
    return {name: agreement(first, labels) for name, labels in chosen.items()}


def _bound(run: Callable[[np.ndarray], Outputs], images: np.ndarray) -> Callable[[], object]:
    return lambda: run(images)
