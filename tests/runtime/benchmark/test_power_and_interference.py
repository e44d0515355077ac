"""Sensors on made-up sysfs trees, and the rules by which a run is marked invalid. No real sensor is needed."""
# ruff: noqa: N815  # the fake has the names of pynvml

import itertools
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.benchmark import interference as watch
from p4q_edge.runtime.benchmark import power
from p4q_edge.runtime.benchmark.interference import Sample


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def add_monitor(sysfs: Path, index: int, rails: dict[str, tuple[int, int]]) -> None:
    folder = sysfs / "class" / "hwmon" / f"hwmon{index}"
    write(folder / "name", "ina3221")
    for number, (label, (millivolts, milliamperes)) in enumerate(rails.items(), start=1):
        write(folder / f"in{number}_label", label)
        write(folder / f"in{number}_input", millivolts)
        write(folder / f"curr{number}_input", milliamperes)


def test_jetson_with_a_total_rail(tmp_path: Path) -> None:
    add_monitor(tmp_path, 1, {"VDD_IN": (5000, 1500), "VDD_CPU_GPU_CV": (5000, 400)})
    readings = {sensor.name: sensor.read() for sensor in power.find_sensors(sysfs=tmp_path)}
    assert readings == {"ina3221:VDD_IN": 7.5, "ina3221:VDD_CPU_GPU_CV": 2.0}


def test_agx_orin_has_no_total_rail_so_its_rails_are_added(tmp_path: Path) -> None:
    add_monitor(tmp_path, 0, {"VDD_GPU_SOC": (19000, 100), "VDD_CPU_CV": (19000, 50), "VIN_SYS_5V0": (5000, 200)})
    add_monitor(tmp_path, 1, {"VDDQ_VDD2_1V8AO": (5000, 100)})
    readings = {sensor.name: sensor.read() for sensor in power.find_sensors(sysfs=tmp_path)}
    assert readings["ina3221:VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0"] == pytest.approx(1.9 + 0.95 + 1.0)
    assert len(readings) == 5


def test_an_unreadable_rail_is_left_out_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_monitor(tmp_path, 1, {"VDD_IN": (5000, 1500)})
    write(tmp_path / "class/hwmon/hwmon1/curr1_input", "not a number")
    with caplog.at_level("INFO"):
        assert power.find_sensors(sysfs=tmp_path) == []
    assert "ina3221:VDD_IN cannot be read" in caplog.text


def test_rapl_counts_through_its_wrap_around(tmp_path: Path) -> None:
    folder = tmp_path / "class/powercap/intel-rapl:0"
    write(folder / "name", "package-0")
    write(folder / "max_energy_range_uj", 999_999)
    write(folder / "energy_uj", 900_000)
    write(tmp_path / "class/powercap/intel-rapl:0:0/name", "core")
    (sensor,) = power.find_sensors(sysfs=tmp_path)
    assert (sensor.name, sensor.kind) == ("rapl:package-0", "counter")
    write(folder / "energy_uj", 100_000)
    assert sensor.read() == pytest.approx(0.2)


class FakeNvml:
    """The calls of pynvml that are used, for GPUs with or without an energy counter."""

    class NVMLError(Exception):
        pass

    nvmlClocksThrottleReasonHwSlowdown = 8
    nvmlClocksThrottleReasonSwThermalSlowdown = 0x20
    nvmlClocksThrottleReasonHwThermalSlowdown = 0x40
    nvmlClocksThrottleReasonHwPowerBrakeSlowdown = 0x80

    def __init__(self, energies: list[int | None], reasons: int = 0) -> None:
        self.energies = energies
        self.reasons = reasons

    def nvmlDeviceGetCount(self) -> int:
        return len(self.energies)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        energy = self.energies[handle]
        if energy is None:
            raise self.NVMLError("Not Supported")
        return energy

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:
        return self.reasons


def test_nvml_reads_joules_and_leaves_out_gpus_without_a_counter(tmp_path: Path) -> None:
    (sensor,) = power.find_sensors(sysfs=tmp_path, nvml=FakeNvml([None, 12_500]))
    assert (sensor.name, sensor.read()) == ("nvml:gpu1", 12.5)


def test_fake_nvml_has_the_names_of_the_real_one() -> None:
    pynvml = pytest.importorskip("pynvml")
    for name in vars(FakeNvml):
        if name.startswith("nvml"):
            assert hasattr(pynvml, name), name
            if not callable(getattr(FakeNvml, name)):
                assert getattr(pynvml, name) == getattr(FakeNvml, name)


@given(st.floats(0.1, 50), st.lists(st.floats(0.01, 2), min_size=1, max_size=30))
def test_constant_power_integrates_to_power_times_time(watts: float, steps: list[float]) -> None:
    times = [0.0, *itertools.accumulate(steps)]
    joules = power.energy_joules(times, [watts] * len(times), "gauge")
    assert joules == pytest.approx(watts * times[-1])


def test_a_counter_gives_its_growth_and_one_reading_is_refused() -> None:
    assert power.energy_joules([0.0, 1.0, 2.0], [10.0, 11.0, 14.0], "counter") == 4.0
    with pytest.raises(ValueError, match="two or more readings"):
        power.energy_joules([0.0], [1.0], "gauge")


def samples(seconds: int = 10, **slopes: float) -> list[Sample]:
    """One sample every 0.1 s; a slope is the growth of a counter in a second."""
    times = [0.1 * i for i in range(10 * seconds + 1)]
    return [
        Sample(
            time_s=t,
            busy_s=slopes.get("busy", 1.0) * t,
            own_s=slopes.get("own", 1.0) * t,
            steal_s=slopes.get("steal", 0.0) * t,
            throttle_count=int(slopes.get("throttle", 0.0) * t),
            clock_mhz=1500.0,
            temperature_c=40.0,
            power={"rail": 5.0},
        )
        for t in times
    ]


def judge(taken: list[Sample], failure: str | None = None, cores: int = 2) -> watch.WatchRecord:
    return watch.judge_interference(taken, failure=failure, kinds={"rail": "gauge"}, cores=cores)


def test_a_quiet_run_is_valid_and_reports_what_it_saw() -> None:
    record = judge(samples())
    assert record.invalid == ()
    assert record.unobserved == ()
    assert record.foreign_cores == pytest.approx(0.0, abs=1e-9)
    (energy,) = record.energy
    assert (energy.joules, energy.mean_watts) == (pytest.approx(50.0), pytest.approx(5.0))


@pytest.mark.parametrize(
    ("slopes", "reason"),
    [
        ({"busy": 2.0}, "other processes used 1.00 of 2 cores"),
        ({"steal": 0.2}, "the hypervisor took 10.0 % of the time"),
        ({"throttle": 0.3}, "the chip or the cgroup was throttled 3 times"),
    ],
)
def test_a_disturbed_run_is_invalid(slopes: dict[str, float], reason: str) -> None:
    assert judge(samples(**slopes)).invalid == (reason,)


def test_the_same_load_is_noise_on_a_machine_with_many_cores() -> None:
    assert judge(samples(busy=2.0), cores=32).invalid == ()


def test_a_throttled_gpu_makes_the_run_invalid() -> None:
    hot = watch._nvml_throttle_reasons(FakeNvml([1], reasons=0x20 | 0x4))
    assert hot == ("temperature",)
    taken = samples()
    taken[5] = Sample(time_s=taken[5].time_s, throttled_now=hot)
    assert judge(taken).invalid == ("the GPU was throttled: temperature",)


def test_a_silent_watcher_makes_the_run_invalid() -> None:
    taken = [s for s in samples() if not 3.0 < s.time_s < 7.0]
    (reason,) = judge(taken).invalid
    assert reason.startswith("the watcher was silent for 4.")


def test_what_a_machine_does_not_show_is_named() -> None:
    record = judge([Sample(time_s=0.1 * i) for i in range(20)])
    assert record.unobserved == ("load", "clock", "temperature", "throttling")
    assert record.invalid == ()


class DyingProbe:
    """Answers twice, then fails as a sensor that was unplugged."""

    def __init__(self) -> None:
        self.calls = 0
        self.dead = threading.Event()

    def sample(self) -> Sample:
        self.calls += 1
        if self.calls > 2:
            self.dead.set()
            raise OSError("no such device")
        return Sample(time_s=time.monotonic())


def test_a_run_whose_watcher_died_is_invalid() -> None:
    probe = DyingProbe()
    with watch.Watcher(probe, interval_s=0.001) as watcher:
        assert probe.dead.wait(120)
    assert watcher.record().invalid == ("the watcher died: OSError: no such device",)


def test_the_probe_of_this_machine_answers() -> None:
    with watch.Watcher(watch.SystemProbe(), interval_s=0.01) as watcher:
        pass
    record = watcher.record()
    assert record.samples >= 2
    assert not any("died" in reason for reason in record.invalid)


def test_jetson_overcurrent_and_processor_throttle_counters_are_added(tmp_path: Path) -> None:
    write(tmp_path / "class/hwmon/hwmon3/name", "soctherm_oc")
    write(tmp_path / "class/hwmon/hwmon3/oc1_event_cnt", 2)
    write(tmp_path / "devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", 3)
    write(tmp_path / "fs/cgroup/cpu.stat", "usage_usec 5\nnr_throttled 4")
    write(tmp_path / "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", 1_500_000)
    write(tmp_path / "class/thermal/thermal_zone0/temp", 45_000)
    write(tmp_path / "proc/stat", "cpu 100 0 100 900 0 0 0 50 0 0\ncpu0 1")
    sample = watch.SystemProbe(sysfs=tmp_path, procfs=tmp_path / "proc").sample()
    assert sample.throttle_count == 9
    assert (sample.clock_mhz, sample.temperature_c) == (1500.0, 45.0)
    assert sample.busy_s is not None
    assert sample.steal_s is not None
    assert sample.busy_s == pytest.approx(4 * sample.steal_s)
