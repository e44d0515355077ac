"""CPU engines of one bundle against each other, each in a process of its own, timed in turns.

    python tools/bench/cpu_race.py model.p4q --model local-dir:FOLDER --rounds 60 --output race.json
    python tools/bench/cpu_race.py model.p4q --kinds ort-int8,openvino-f32 --settings 1x1,8x2

A round times every candidate once, one after the other: a loaded machine slows all of them, and what counts is the
median of the ratios of each round.
The rows of NNCF, torchao and Model Optimizer (`nvidia-modelopt[onnx]`) need their packages: name an interpreter that
has them with ``--baselines-python``. A row
whose library is missing says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from asked import listed, tells_errors

from p4q_edge.runtime.artifacts import read_bundle
from p4q_edge.runtime.machine import cpu, provenance
from p4q_edge.runtime.statistics import paired_ratio, summarize
from p4q_edge.runtime.storage import atomic_write

OURS = ("ort-int8", "ort-int7", "openvino-float", "openvino-f32", "openvino-bf16", "openvino-convolutions")
PEERS = ("ort-fp32", "ort-int4", "torch-eager", "torch-compile", "torchao-int8", "nncf-openvino", "modelopt-ort")
OF_BASELINES = ("torchao-int8", "nncf-openvino", "modelopt-ort")
BASELINE = "ort-fp32"
WORKER = Path(__file__).with_name("cpu_race_worker.py")
_WARM_UP = 3


@dataclass(frozen=True, kw_only=True)
class Racers:
    """Who races.

    Attributes:
        model: as a recipe names it, for the rows of PyTorch; None leaves them out.
        baselines_python: interpreter of the rows in `OF_BASELINES`; None: this one.
        folder: where other tools' graphs are kept from one setting to the next.
    """

    bundle: Path
    folder: Path
    kinds: tuple[str, ...]
    model: str | None
    baselines_python: str | None

    def command(self, kind: str) -> list[str]:
        """How a candidate is started."""
        own = kind in OF_BASELINES and self.baselines_python
        return [own or sys.executable, str(WORKER)]


def race(racers: Racers, *, batch: int, threads: int, rounds: int) -> dict[str, Any]:
    """Time all candidates in one setting and return their rows."""
    workers: dict[str, subprocess.Popen[str]] = {}
    rows: dict[str, dict[str, Any]] = {}
    try:
        for kind in racers.kinds:
            if racers.model is None and kind.startswith("torch"):
                rows[kind] = {"problem": "no --model was named"}
                continue
            workers[kind] = _start(racers, kind, batch=batch, threads=threads)
            rows[kind] = json.loads(workers[kind].stdout.readline() or '{"problem": "it ended"}')  # type: ignore[union-attr]
        able = [kind for kind in workers if "problem" not in rows[kind]]
        times: dict[str, list[float]] = {kind: [] for kind in able}
        for index in range(-_WARM_UP, rounds):
            shift = index % len(able)
            for kind in able[shift:] + able[:shift]:
                spent = _ask(workers[kind], batch)
                if index >= 0:
                    times[kind].append(spent)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    return {"batch": batch, "threads": threads, "rows": _with_times(rows, times, batch=batch)}


def _start(racers: Racers, kind: str, *, batch: int, threads: int) -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        racers.command(kind),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    request = {
        "bundle": str(racers.bundle.resolve()),
        "kind": kind,
        "folder": str(racers.folder),
        "model": racers.model,
        "batch": batch,
        "threads": threads,
    }
    worker.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
    worker.stdin.flush()  # type: ignore[union-attr]
    return worker


def _ask(worker: subprocess.Popen[str], batch: int) -> float:
    worker.stdin.write(f"{batch}\n")  # type: ignore[union-attr]
    worker.stdin.flush()  # type: ignore[union-attr]
    return float(json.loads(worker.stdout.readline())["ms"])  # type: ignore[union-attr]


def _with_times(rows: Mapping[str, dict[str, Any]], times: Mapping[str, list[float]], *, batch: int) -> dict[str, Any]:
    found = {}
    arrays = {kind: np.array(values) for kind, values in times.items()}
    for kind, row in rows.items():
        if kind not in arrays:
            found[kind] = row
            continue
        latency = summarize(arrays[kind])
        ratios = {
            other: asdict(paired_ratio(arrays[other], arrays[kind], generator=np.random.default_rng(0)))
            for other in arrays
            if other != kind
        }
        found[kind] = {
            **row,
            **asdict(latency),
            "images_per_second": 1000 * batch / latency.p50_ms,
            "times_as_fast_as": ratios,
        }
    return found


def table(document: Mapping[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "| batch x threads | candidate | p50 ms | p99 ms | pictures/s | x ONNX Runtime FP32 (95 %) | cosine to the "
        "quantized / float model |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for setting in document["settings"]:
        name = f"{setting['batch']} x {setting['threads']}"
        for kind, row in setting["rows"].items():
            if "problem" in row:
                lines.append(f"| {name} | {kind} | not run: {row['problem']} | | | | |")
                continue
            ratio = row["times_as_fast_as"].get(BASELINE)
            said = "1" if ratio is None else f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
            both = (row["cosine_quantized"], row["cosine_float"])
            cosine = " / ".join("-" if value is None else f"{value:.5f}" for value in both)
            speed = f"{row['p50_ms']:.1f} | {row['p99_ms']:.1f} | {row['images_per_second']:.1f}"
            lines.append(f"| {name} | {kind} | {speed} | {said} | {cosine} |")
    return "\n".join(lines)


@tells_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Race in every setting, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--model", help="the bundle's model as its recipe names it, for PyTorch's rows")
    parser.add_argument("--kinds", default=",".join((*PEERS, *OURS)), help="(default: %(default)s)")
    parser.add_argument("--settings", default="1x1,8x1,1x2,8x2", help="batch x threads (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=60, help="(default: %(default)s)")
    parser.add_argument(
        "--baselines-python", help="interpreter that has nncf, torchao and modelopt beside this project"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)
    kinds = tuple(listed(args.kinds, (*PEERS, *OURS), option="--kinds"))
    with tempfile.TemporaryDirectory() as folder:
        document = results(args, kinds, Path(folder))
    if args.output:
        atomic_write(args.output, json.dumps(document, indent=1).encode() + b"\n", force=True)
    print(table(document))
    return 0


def results(args: argparse.Namespace, kinds: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Race in every setting; `folder` is for other tools' graphs."""
    racers = Racers(
        bundle=args.bundle, folder=folder, kinds=kinds, model=args.model, baselines_python=args.baselines_python
    )
    settings = [tuple(int(number) for number in one.split("x")) for one in args.settings.split(",")]
    return {
        "schema_version": 1,
        "bundle_sha256": read_bundle(args.bundle).sha256(),
        "model": read_bundle(args.bundle).manifest.model.name,
        "cpu": cpu.cpu(),
        "cores": cpu.usable_cores(),
        "load_average_before": os.getloadavg(),
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(),
        "rounds": args.rounds,
        "settings": [race(racers, batch=b, threads=t, rounds=args.rounds) for b, t in settings],
        "load_average_after": os.getloadavg(),
    }


if __name__ == "__main__":
    sys.exit(main())
