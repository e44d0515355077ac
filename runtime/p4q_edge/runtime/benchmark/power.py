"""Power sensors of a device: INA3221 rails of a Jetson, NVML of a GPU, RAPL of an x86 processor.

A sensor is either a gauge, read in watts, or a counter, read in joules since an arbitrary start.
"""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

logger = logging.getLogger(__name__)

SYSFS = Path("/sys")
# Rails that add up to what the module draws; the name of each is the label in sysfs. VDD_IN alone is the total
# where it exists (Orin Nano, Orin NX, Xavier NX); AGX Orin has no such rail, and its other rails lie behind these.
TOTAL_RAIL = "VDD_IN"
AGX_ORIN_RAILS = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")


class PowerSensor(Protocol):
    """Something that says how much power is drawn."""

    @property
    def name(self) -> str:
        """What is measured, for example `ina3221:VDD_IN`."""

    @property
    def kind(self) -> Literal["gauge", "counter"]:
        """Whether `read` gives watts or joules."""

    def read(self) -> float:
        """Return watts (gauge) or joules since an arbitrary start (counter)."""


@dataclass(frozen=True, kw_only=True)
class Ina3221Rail:
    """One channel of an INA3221 monitor, or several that add up to one figure."""

    name: str
    channels: tuple[tuple[Path, Path], ...]
    kind: Literal["gauge", "counter"] = "gauge"

    def read(self) -> float:
        """Return watts: the files hold millivolts and milliamperes."""
        return sum(_integer(volts) * _integer(amperes) for volts, amperes in self.channels) / 1e6


class RaplPackage:
    """The energy counter of one processor package, in microjoules, which wraps around."""

    kind: Literal["gauge", "counter"] = "counter"

    def __init__(self, folder: Path) -> None:
        self.name = f"rapl:{(folder / 'name').read_text().strip()}"
        self._counter = folder / "energy_uj"
        self._range = _integer(folder / "max_energy_range_uj") + 1
        self._last = _integer(self._counter)
        self._total = 0

    def read(self) -> float:
        """Return joules since this object was made."""
        now = _integer(self._counter)
        self._total += (now - self._last) % self._range
        self._last = now
        return self._total / 1e6


class NvmlEnergy:
    """The energy counter of one NVIDIA GPU (Volta and newer)."""

    kind: Literal["gauge", "counter"] = "counter"

    def __init__(self, nvml: Any, handle: Any, index: int) -> None:
        self.name = f"nvml:gpu{index}"
        self._nvml = nvml
        self._handle = handle

    def read(self) -> float:
        """Return joules since the driver was loaded."""
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3


def find_sensors(*, sysfs: Path = SYSFS, nvml: Any = None) -> list[PowerSensor]:
    """Return every sensor that can be read now; one that exists and cannot be read is logged.

    Args:
        sysfs: root of sysfs.
        nvml: an initialized `pynvml` module (see `open_nvml`), or None without one.
    """
    found: list[PowerSensor] = []
    found += _ina3221_rails(sysfs / "class" / "hwmon")
    found += _rapl_packages(sysfs / "class" / "powercap")
    if nvml is not None:
        found += _nvml_sensors(nvml)
    return found


def open_nvml() -> Any:
    """Return the initialized `pynvml` module, or None where there is no NVIDIA driver or no nvidia-ml-py."""
    try:
        import pynvml  # optional: only a machine with a discrete NVIDIA GPU has a use for it
    except ModuleNotFoundError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        logger.debug("NVML is installed but answers: %s", error)
        return None
    return pynvml


def energy_joules(times_s: Sequence[float], readings: Sequence[float], kind: str) -> float:
    """Return the energy between the first and the last of n >= 2 readings.

    Args:
        times_s: (n,) seconds.
        readings: (n,) watts of a gauge, integrated by the trapezoidal rule, or joules of a counter.
        kind: `gauge` or `counter`.
    """
    if len(times_s) != len(readings) or len(times_s) < 2:
        raise ValueError(f"expected two or more readings with a time each, got {len(readings)} and {len(times_s)}")
    if kind == "counter":
        return readings[-1] - readings[0]
    points = itertools.pairwise(zip(times_s, readings, strict=True))
    return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in points)


def _ina3221_rails(hwmon: Path) -> list[PowerSensor]:
    channels: dict[str, tuple[Path, Path]] = {}
    for folder in sorted(hwmon.glob("hwmon*")):
        if _text(folder / "name") != "ina3221":
            continue
        for label in sorted(folder.glob("in*_label")):
            number = label.name[len("in") : -len("_label")]
            pair = (folder / f"in{number}_input", folder / f"curr{number}_input")
            if all(path.exists() for path in pair):
                channels[_text(label) or f"channel {number}"] = pair
    rails: list[Ina3221Rail] = [
        Ina3221Rail(name=f"ina3221:{rail}", channels=(pair,)) for rail, pair in channels.items()
    ]
    if TOTAL_RAIL not in channels and all(rail in channels for rail in AGX_ORIN_RAILS):
        parts = tuple(channels[rail] for rail in AGX_ORIN_RAILS)
        rails.append(Ina3221Rail(name="ina3221:" + "+".join(AGX_ORIN_RAILS), channels=parts))
    return [rail for rail in rails if _readable(rail)]


def _rapl_packages(powercap: Path) -> list[PowerSensor]:
    found: list[PowerSensor] = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        if folder.name.count(":") != 1:  # intel-rapl:0:0 is a part of package intel-rapl:0
            continue
        try:
            found.append(RaplPackage(folder))
        except PermissionError:
            logger.info("%s can be read by root only; energy of the processor is not measured.", folder)
    return found


def _nvml_sensors(nvml: Any) -> list[PowerSensor]:
    found: list[PowerSensor] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        sensor = NvmlEnergy(nvml, nvml.nvmlDeviceGetHandleByIndex(index), index)
        try:
            sensor.read()
        except nvml.NVMLError as error:
            logger.info("%s has no energy counter: %s", sensor.name, error)
            continue
        found.append(sensor)
    return found


def _readable(rail: Ina3221Rail) -> bool:
    try:
        rail.read()
    except (OSError, ValueError) as error:
        logger.info("%s cannot be read: %s", rail.name, error)
        return False
    return True


def _integer(path: Path) -> int:
    return int(path.read_text())


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
