"""`bench` on the tiny engine, with a clock and a machine that the test makes up. Nothing here depends on real time."""

import io
import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime.artifacts.card import read_card
from p4q_edge.runtime.benchmark import measurement as benches
from p4q_edge.runtime.benchmark.interference import Sample, Watcher
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.statistics.timing import Rounds

FEW = benches.BenchOptions(batches=(1, 3), rounds=Rounds(warmup=0, minimum=4, maximum=4, seconds=0), energy_seconds=0)
NO_MEMORY = benches.Memory(peak_host_bytes=None, device_bytes=None)


class Clock:
    """Goes on by a millisecond whenever it is read."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        self.now += 1_000_000
        return self.now


class Probe:
    """A machine whose counters grow by fixed amounts from sample to sample."""

    def __init__(self, *, foreign: float = 0.0, watts: float = 5.0) -> None:
        self.taken = 0
        self.foreign = foreign
        self.watts = watts

    def sample(self) -> Sample:
        self.taken += 1
        t = 0.1 * self.taken
        return Sample(time_s=t, busy_s=t * self.foreign, throttle_count=0, power={"rail": self.watts})


def setting(probe: Probe | None = None) -> benches.Setting:
    kinds = {"rail": "gauge"}
    return benches.Setting(clock_ns=Clock(), watcher=lambda: Watcher(probe or Probe(), kinds=kinds, interval_s=60.0))


def test_rows_for_every_batch_and_scope(tiny_engine: Path) -> None:
    card = read_card(tiny_engine)
    engine = benches.load_candidate(tiny_engine, name="int8")
    other = replace(engine, name="other", size_bytes=None)
    measured = benches.bench([engine, other], card, FEW, setting(), memory=NO_MEMORY)
    engine.close()
    found = [(row.name, row.scope, row.batch) for row in measured.rows]
    expected = [("int8", "engine"), ("other", "engine"), ("int8", "end to end")]
    assert found == [(*pair, batch) for batch in (1, 3) for pair in expected]
    assert measured.valid
    assert measured.predictions is None
    found = {name: (estimate.value, estimate.n) for name, estimate in measured.agreement.items()}
    assert found == {"int8": (1.0, 4), "other": (1.0, 4)}
    assert all(row.latency.n == 4 for row in measured.rows)
    compared = [row.name for row in measured.rows if row.advantage is not None]
    assert compared == ["other", "other"]


def test_a_run_under_load_is_marked_in_every_row(tiny_engine: Path) -> None:
    engine = benches.load_candidate(tiny_engine, name="int8")
    busy = Probe(foreign=1e3)
    measured = benches.bench([engine], read_card(tiny_engine), FEW, setting(busy), memory=NO_MEMORY)
    engine.close()
    assert not measured.valid
    assert all("other processes used" in row.invalid[0] for row in measured.rows)


def test_wrong_predictions_make_a_fast_engine_invalid(tiny_engine: Path) -> None:
    card = read_card(tiny_engine)
    samples = card.golden_samples()

    def guess(batch: np.ndarray) -> dict[str, np.ndarray]:
        rows = np.ones((len(batch), samples.embedding.shape[1]), np.float32)
        return {"embedding": rows, "logits": np.ones((len(batch), len(card.class_names)), np.float32)}

    measured = benches.bench([benches.Candidate(name="guess", run=guess)], card, FEW, setting(), memory=NO_MEMORY)
    assert measured.predictions is not None
    assert not measured.valid
    assert all(row.invalid[-1].startswith("wrong predictions: embeddings reach a cosine") for row in measured.rows)


def test_energy_is_power_times_time_over_images(tiny_engine: Path) -> None:
    engine = benches.load_candidate(tiny_engine, name="int8")
    images = np.zeros((4, *engine_shape(tiny_engine)), np.uint8)
    (row,) = benches.measure_energy(engine, images, 0.01, setting(Probe(watts=3.0)))
    engine.close()
    assert row.mean_watts == pytest.approx(3.0)
    assert row.images % 4 == 0
    # The made-up probe takes one sample at each end, a tenth of a second apart.
    assert row.joules_per_image == pytest.approx(3.0 * 0.1 / row.images)


def engine_shape(engine: Path) -> tuple[int, int, int]:
    return (3, *read_card(engine).preprocess.size)


def test_the_photograph_is_a_jpeg_that_does_not_compress_away() -> None:
    data = benches.photo(np.zeros((3, 8, 8), np.uint8))
    assert len(data) > 30_000
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (640, 480))


def test_memory_of_this_process_is_known() -> None:
    benches.reset_peak()
    peak = benches.peak_host_bytes()
    assert peak is not None
    assert peak > 10_000_000


def test_gpu_memory_counts_this_process_only() -> None:
    class Process:
        def __init__(self, pid: int) -> None:
            self.pid = pid
            self.usedGpuMemory = 100

    class Nvml:
        def nvmlDeviceGetCount(self) -> int:
            return 2

        def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
            return index

        def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Process]:
            import os

            return [Process(os.getpid()), Process(1)]

    assert benches.device_bytes(Nvml()) == 200
    assert benches.device_bytes(None) is None


def test_command_writes_one_document(
    tiny_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benches, "this_setting", setting)
    output = tmp_path / "bench.json"
    arguments = ["bench", str(tiny_engine), "--seconds", "0", "--warm-up", "0", "--json", "-o", str(output)]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(output.read_text())
    assert (document["schema_version"], document["kind"], document["valid"]) == (1, "p4q-edge bench", True)
    assert document["rows"][0]["latency"]["p50_ms"] > 0
    assert {row["library"] for row in document["rows"]} == {f"ONNX Runtime {version('onnxruntime')}"}
    assert document["memory"]["peak_host_bytes"] > 0
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err


def test_strict_turns_an_invalid_run_into_exit_5(
    tiny_engine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benches, "this_setting", lambda: setting(Probe(foreign=1e3)))
    arguments = ["bench", str(tiny_engine), "--seconds", "0"]
    assert main(arguments) == 0
    assert "INVALID: other processes used" in capsys.readouterr().out
    assert main([*arguments, "--strict"]) == 5
    assert "Measure again on a quiet machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--batch", "1,x"], 2, "--batch 1,x: expected positive numbers"),
        (["--batch", "0"], 2, "expected positive numbers"),
        (["--batch", "1,4097"], 2, "such as 1,8,32, each at most 4096"),
        (["--seconds", "-1"], 2, "--energy-seconds must not be negative, got -1, 5 and 2"),
        (["--seconds", "1e9"], 2, "must be at most 86400, a day, and --warm-up at most 1000000"),
        (["--warm-up", "1000001"], 2, "--warm-up at most 1000000"),
        (["--against", "fp16"], 2, "ONNX Runtime computes in FP32 on a CPU"),
        (["--against", "fp64"], 2, "expected fp32, fp16, torch, or an engine"),
        (["--against", "missing.onnx"], 2, "missing.onnx does not exist"),
    ],
)
def test_wrong_arguments_are_one_line(
    tiny_engine: Path, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(tiny_engine), *arguments]) == code
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_full_precision_without_the_toolkit_says_what_to_install(
    tiny_engine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [])
    assert main(["bench", str(tiny_engine), "--against", "fp32"]) == 3
    assert "needs the toolkit" in capsys.readouterr().err
