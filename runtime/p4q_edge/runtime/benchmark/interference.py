"""A thread that watches the machine during a measurement, and says whether the measurement counts.

It samples the load that other processes cause, clocks, throttling, temperatures and power. A run is invalid when its
watcher died, when the chip was throttled, or when others used the machine. What could not be observed is named.
"""

import itertools
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from p4q_edge.runtime.benchmark.power import SYSFS, PowerSensor, energy_joules
from p4q_edge.runtime.wording import number_of

logger = logging.getLogger(__name__)

PROCFS = Path("/proc")
INTERVAL_S = 0.1
# Other processes disturb a run above a tenth of the machine's cores: less is the noise of an idle desktop.
MAX_FOREIGN_SHARE = 0.10
# Time that a hypervisor took from this machine; above 2 % the p99 is its scheduler's, not the engine's.
MAX_STEAL_SHARE = 0.02
# A watcher that was silent for this many intervals may have missed a throttling.
MAX_SILENT_INTERVALS = 20


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What was read at one moment; counters grow, None is what this machine does not show."""

    time_s: float
    busy_s: float | None = None
    steal_s: float | None = None
    own_s: float = 0.0
    clock_mhz: float | None = None
    temperature_c: float | None = None
    throttle_count: int | None = None
    throttled_now: tuple[str, ...] = ()
    power: Mapping[str, float] = field(default_factory=dict)


class LoadProbe(Protocol):
    """Where samples come from."""

    def sample(self) -> Sample:
        """Read everything once; takes a few milliseconds at most."""


@dataclass(frozen=True, kw_only=True)
class Energy:
    """What one sensor measured over a run."""

    sensor: str
    joules: float
    mean_watts: float


@dataclass(frozen=True, kw_only=True)
class WatchRecord:
    """What happened during a run.

    Attributes:
        seconds: from the first to the last sample.
        foreign_cores: cores that other processes kept busy, on average; None if not observable.
        steal_share: share of the machine's time that a hypervisor took; None if not observable.
        clock_min_mhz, clock_max_mhz: range of the mean processor clock.
        throttle_events: growth of the throttle counters of the chip and of the cgroup.
        unobserved: what this machine does not show; nothing is claimed about it.
        invalid: why the run does not count; empty for a good one.
    """

    seconds: float
    samples: int
    cores: int
    foreign_cores: float | None
    steal_share: float | None
    clock_min_mhz: float | None
    clock_max_mhz: float | None
    temperature_max_c: float | None
    throttle_events: int | None
    energy: tuple[Energy, ...]
    unobserved: tuple[str, ...]
    invalid: tuple[str, ...]


class SystemProbe:
    """Reads Linux's /proc and /sys, NVML if it is open, and power sensors."""

    def __init__(
        self,
        *,
        sensors: Sequence[PowerSensor] = (),
        nvml: Any = None,
        sysfs: Path = SYSFS,
        procfs: Path = PROCFS,
    ) -> None:
        self._sensors = tuple(sensors)
        self._stat = procfs / "stat"
        self._nvml = nvml
        self._clocks = _existing(sysfs / "devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq")
        self._temperatures = _existing(sysfs / "class/thermal", "thermal_zone*/temp")
        self._throttle_counters = _existing(sysfs / "devices/system/cpu", "cpu[0-9]*/thermal_throttle/*_throttle_count")
        self._throttle_counters += _overcurrent_counters(sysfs / "class/hwmon")
        self._cgroup = sysfs / "fs/cgroup/cpu.stat"

    def sample(self) -> Sample:
        """Read everything once."""
        busy, steal = self._processor_seconds()
        own = os.times()
        clocks = _numbers(self._clocks)
        temperatures = _numbers(self._temperatures)
        return Sample(
            time_s=time.monotonic(),
            busy_s=busy,
            steal_s=steal,
            own_s=own.user + own.system,
            clock_mhz=sum(clocks) / len(clocks) / 1e3 if clocks else None,
            temperature_c=max(temperatures) / 1e3 if temperatures else None,
            throttle_count=self._throttle_count(),
            throttled_now=_nvml_throttle_reasons(self._nvml) if self._nvml is not None else (),
            power={sensor.name: sensor.read() for sensor in self._sensors},
        )

    def _processor_seconds(self) -> tuple[float | None, float | None]:
        if not self._stat.exists():
            return None, None
        fields = [int(value) for value in self._stat.read_text().split("\n", 1)[0].split()[1:]]
        user, nice, system, _idle, _iowait, irq, softirq, steal = (fields + [0] * 8)[:8]
        ticks = os.sysconf("SC_CLK_TCK")
        return (user + nice + system + irq + softirq) / ticks, steal / ticks

    def _throttle_count(self) -> int | None:
        counts = [int(value) for value in _numbers(self._throttle_counters)]
        if self._cgroup.exists():
            words = dict(line.split()[:2] for line in self._cgroup.read_text().splitlines() if " " in line)
            counts.append(int(words.get("nr_throttled", 0)))
        return sum(counts) if counts else None


class Watcher:
    """Samples a probe in a thread for as long as its `with` block runs; then `record()` says what it saw."""

    def __init__(self, probe: LoadProbe, *, kinds: Mapping[str, str] | None = None, interval_s: float = INTERVAL_S):
        self._probe = probe
        self._kinds = dict(kinds or {})
        self._interval_s = interval_s
        self._samples: list[Sample] = []
        self._failure: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="p4q-edge-watcher", daemon=True)

    def __enter__(self) -> "Watcher":
        self._take()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is None:
            self._take()

    def record(self, *, cores: int | None = None) -> WatchRecord:
        """Return what was seen; call it after the `with` block."""
        return judge_interference(
            self._samples,
            failure=self._failure,
            kinds=self._kinds,
            cores=cores or os.cpu_count() or 1,
            interval_s=self._interval_s,
        )

    def _watch(self) -> None:
        while self._failure is None and not self._stop.wait(self._interval_s):
            self._take()

    def _take(self) -> None:
        try:
            self._samples.append(self._probe.sample())
        # Whatever stops the watcher must end up in the record, or a run without a watcher would look like a good one.
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}"
            logger.debug("the watcher died", exc_info=True)


def judge_interference(
    samples: Sequence[Sample],
    *,
    failure: str | None,
    kinds: Mapping[str, str],
    cores: int,
    interval_s: float = INTERVAL_S,
) -> WatchRecord:
    """Turn samples into a record.

    Args:
        samples: in the order of time.
        failure: why the watcher died, or None.
        kinds: `gauge` or `counter` for each power sensor.
        cores: processors of this machine.
        interval_s: planned time between samples.
    """
    seconds = samples[-1].time_s - samples[0].time_s if len(samples) > 1 else 0.0
    clocks = [s.clock_mhz for s in samples if s.clock_mhz is not None]
    temperatures = [s.temperature_c for s in samples if s.temperature_c is not None]
    foreign = _foreign_cores(samples, seconds)
    steal = _growth([s.steal_s for s in samples])
    steal_share = steal / (seconds * cores) if steal is not None and seconds else None
    events = _growth([s.throttle_count for s in samples])
    seen = {"load": foreign, "clock": clocks or None, "temperature": temperatures or None, "throttling": events}
    invalid = _reasons_of_silence(samples, failure=failure, interval_s=interval_s)
    if events:
        invalid.append(f"the chip or the cgroup was throttled {number_of(int(events), 'time')}")
    invalid += sorted({f"the GPU was throttled: {reason}" for s in samples for reason in s.throttled_now})
    if foreign is not None and foreign > MAX_FOREIGN_SHARE * cores:
        invalid.append(f"other processes used {foreign:.2f} of {number_of(cores, 'core')}")
    if steal_share is not None and steal_share > MAX_STEAL_SHARE:
        invalid.append(f"the hypervisor took {100 * steal_share:.1f} % of the time")
    return WatchRecord(
        seconds=seconds,
        samples=len(samples),
        cores=cores,
        foreign_cores=foreign,
        steal_share=steal_share,
        clock_min_mhz=min(clocks, default=None),
        clock_max_mhz=max(clocks, default=None),
        temperature_max_c=max(temperatures, default=None),
        throttle_events=None if events is None else int(events),
        energy=_energy(samples, kinds) if seconds else (),
        unobserved=tuple(name for name, value in seen.items() if value is None),
        invalid=tuple(invalid),
    )


def _reasons_of_silence(samples: Sequence[Sample], *, failure: str | None, interval_s: float) -> list[str]:
    if failure is not None:
        return [f"the watcher died: {failure}"]
    gaps = [later.time_s - earlier.time_s for earlier, later in itertools.pairwise(samples)]
    longest = max(gaps, default=0.0)
    if longest > MAX_SILENT_INTERVALS * interval_s:
        return [f"the watcher was silent for {longest:.1f} s"]
    return []


def _foreign_cores(samples: Sequence[Sample], seconds: float) -> float | None:
    busy = _growth([s.busy_s for s in samples])
    if busy is None or not seconds:
        return None
    return max(0.0, busy - (samples[-1].own_s - samples[0].own_s)) / seconds


def _growth(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return known[-1] - known[0] if len(known) > 1 else None


def _energy(samples: Sequence[Sample], kinds: Mapping[str, str]) -> tuple[Energy, ...]:
    found = []
    for sensor, kind in kinds.items():
        readings = [(s.time_s, s.power[sensor]) for s in samples if sensor in s.power]
        if len(readings) < 2:
            continue
        times, values = zip(*readings, strict=True)
        joules = energy_joules(times, values, kind)
        found.append(Energy(sensor=sensor, joules=joules, mean_watts=joules / (times[-1] - times[0])))
    return tuple(found)


def _nvml_throttle_reasons(nvml: Any) -> tuple[str, ...]:
    """Return why any GPU runs below its clock; a software power cap is how a GPU works at full load, not a fault."""
    names = {
        nvml.nvmlClocksThrottleReasonHwSlowdown: "hardware slowdown",
        nvml.nvmlClocksThrottleReasonSwThermalSlowdown: "temperature",
        nvml.nvmlClocksThrottleReasonHwThermalSlowdown: "temperature (hardware)",
        nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "power brake",
    }
    mask = 0
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        mask |= nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    return tuple(name for bit, name in names.items() if mask & bit)


def _overcurrent_counters(hwmon: Path) -> tuple[Path, ...]:
    """Return the over-current event counters of a Jetson: each event is a moment of throttling."""
    folders = [path.parent for path in sorted(hwmon.glob("hwmon*/name")) if path.read_text().strip() == "soctherm_oc"]
    return tuple(counter for folder in folders for counter in sorted(folder.glob("oc*_event_cnt")))


def _existing(root: Path, pattern: str) -> tuple[Path, ...]:
    return tuple(sorted(root.glob(pattern))) if root.is_dir() else ()


def _numbers(paths: Sequence[Path]) -> list[float]:
    values = []
    for path in paths:
        try:
            values.append(float(path.read_text()))
        except OSError:
            # A thermal zone of a sleeping unit answers EAGAIN or EINVAL; the others still tell.
            continue
    return values
