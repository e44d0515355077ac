"""Measure the CPU engine of a bundle: speed against FP32 and PyTorch, end to end, loading, memory, overlap, soak.

All candidates run in one process and are timed in turn, round by round, so that a loaded machine slows all of them;
what counts is the median of the ratios of each round. Loading and memory are measured in processes of their own.
Every candidate's answers are compared with the golden samples before it is timed.

Run: python tools/bench/cpu_runtime.py model.p4q --output results.json
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from asked import tells_errors
from PIL import Image

from p4q_edge.runtime import BuildOptions, RuntimeOptions, ZeroShotClassifier, build_engine
from p4q_edge.runtime.artifacts import Bundle, read_bundle
from p4q_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine, float_weights
from p4q_edge.runtime.images import load_image, preprocess
from p4q_edge.runtime.machine import cpu as machine
from p4q_edge.runtime.statistics import Rounds, measure_interleaved, paired_ratio, summarize
from p4q_edge.runtime.storage import atomic_write
from p4q_edge.runtime.verification import row_cosine, run_golden

logger = logging.getLogger("cpu_runtime")

PROFILES = ("exact", "fast")
PHOTO = (640, 480)
_COLD_START = """
import json, sys, time
from pathlib import Path
begin = time.perf_counter()
from p4q_edge.runtime import RuntimeOptions, ZeroShotClassifier
imported = time.perf_counter()
options = RuntimeOptions(threads=1, check="never")
with ZeroShotClassifier(sys.argv[1], options=options) as classifier:
    loaded = time.perf_counter()
    classifier.classify(sys.argv[2])
    answered = time.perf_counter()
    for _ in range(5):
        classifier.classify(sys.argv[2])
# Not getrusage: its maximum is inherited from the process that started this one.
status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
peak = int(status.split()[0]) / 1024
print(json.dumps({"import_s": imported - begin, "load_s": loaded - imported, "first_answer_s": answered - begin,
                  "peak_rss_mib": peak}))
"""


@tells_errors
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--rounds", type=int, default=40, help="timed rounds of each comparison")
    parser.add_argument("--soak", type=int, default=20_000, help="classifications of the soak test; 0 leaves it out")
    parser.add_argument("--eager", metavar="MODEL", help="open_clip model to time in PyTorch eager, e.g. ViT-B-32")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    bundle = read_bundle(args.bundle)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["P4Q_EDGE_CACHE"] = str(folder / "cache")
        engines = build(args.bundle, folder)
        photo = write_photo(folder / "photo.jpg", seed=0)
        document = {
            "schema_version": 1,
            "bundle_sha256": bundle.sha256(),
            "model": bundle.manifest.model.name,
            "cpu": machine.cpu(),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg(),
            "versions": {"python": platform.python_version(), "onnxruntime": version("onnxruntime")},
            "engine_size_bytes": {name: path.stat().st_size for name, path in engines.items()},
            "encoder": encoder(bundle, engines, rounds=args.rounds, eager=args.eager),
            "end_to_end": end_to_end(engines["exact"], photo, rounds=args.rounds),
            "cold_start": {
                name: cold_start(path, photo, bytecode=folder / "bytecode") for name, path in engines.items()
            },
            "overlap": overlap(engines["exact"], folder, rounds=5),
            "soak": soak(engines["exact"], photo, total=args.soak) if args.soak else None,
        }
    text = json.dumps(document, indent=2)
    if args.output:
        atomic_write(args.output, text.encode() + b"\n", force=True)
    print(text)
    return 0


def build(bundle: Path, folder: Path) -> dict[str, Path]:
    """Build an engine of each profile."""
    engines = {}
    for profile in PROFILES:
        engines[profile] = folder / f"{profile}.onnx"
        card = build_engine(bundle, engines[profile], options=BuildOptions(cpu_profile=profile))
        logger.info("%s: cosine %.6f", profile, card.measured.golden.cosine_min)
    return engines


def encoder(bundle: Bundle, engines: dict[str, Path], *, rounds: int, eager: str | None) -> dict[str, Any]:
    """Time one image on one thread: both profiles, FP32 in ONNX Runtime, and PyTorch eager."""
    golden = bundle.golden()
    loaded = {
        name: OnnxRuntimeEngine(path.with_name(path.name + ".optimized"), profile=name, threads=1, optimized=True)
        for name, path in engines.items()
    }
    loaded["fp32"] = OnnxRuntimeEngine(float_weights(bundle.model("fp32")), threads=1)
    cosines = {
        name: float(row_cosine(run_golden(engine, golden)["embedding"], golden.embedding).min())
        for name, engine in loaded.items()
    }
    image = golden.image[:1]
    candidates: dict[str, Callable[[], object]] = {
        name: lambda engine=engine: engine.run(image, ("logits", "embedding")) for name, engine in loaded.items()
    }
    if eager:
        candidates["eager"] = eager_candidate(eager, bundle.manifest.image_size)
    times = measure_interleaved(candidates, Rounds(warmup=3, minimum=rounds, maximum=rounds))
    generator = np.random.default_rng(0)
    baselines = [name for name in ("fp32", "eager") if name in times]
    return {
        "threads": 1,
        "batch": 1,
        "cosine_min_to_fake_quant": cosines,
        "latency": {name: asdict(summarize(values)) for name, values in times.items()},
        "speedup": {
            f"{profile}_over_{baseline}": asdict(paired_ratio(times[baseline], times[profile], generator=generator))
            for profile in PROFILES
            for baseline in baselines
        },
    }


def eager_candidate(name: str, size: tuple[int, int]) -> Callable[[], object]:
    """Return the image tower of an open_clip model with random weights, one thread."""
    import open_clip
    import torch

    torch.set_num_threads(1)
    visual = open_clip.create_model(name).visual.eval()
    image = torch.rand(1, 3, *size)

    def run() -> object:
        with torch.inference_mode():
            return visual(image)

    return run


def end_to_end(engine: Path, photo: Path, *, rounds: int) -> dict[str, Any]:
    """Time JPEG bytes to label against the engine alone, on one thread."""
    options = RuntimeOptions(threads=1)
    data = photo.read_bytes()
    with ZeroShotClassifier(engine, options=options) as classifier:
        spec = classifier.card.preprocess
        image = preprocess(load_image(data), spec)[np.newaxis]
        inner = classifier._engine
        exact = lambda: preprocess(load_image(data), spec)  # noqa: E731
        times = measure_interleaved(
            {
                "encoder": lambda: inner.run(image, ("logits", "embedding")),
                "bytes_to_label": lambda: classifier.classify(data),
                "decode_and_resize": exact,
            },
            Rounds(warmup=3, minimum=rounds, maximum=rounds),
        )
    ratio = paired_ratio(times["bytes_to_label"], times["encoder"], generator=np.random.default_rng(0))
    return {
        "photo": f"{PHOTO[0]} x {PHOTO[1]} JPEG, {len(data)} bytes",
        "latency": {name: asdict(summarize(values)) for name, values in times.items()},
        "bytes_to_label_over_encoder": asdict(ratio),
    }


def cold_start(engine: Path, photo: Path, *, bytecode: Path, runs: int = 5) -> dict[str, float]:
    """Return medians of fresh processes: import, load, first answer, peak memory.

    Args:
        engine: its file.
        photo: the image that is asked about.
        bytecode: folder of Python's, which an installed package has; the first process writes it.
        runs: processes.
    """
    told = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    told["PYTHONPYCACHEPREFIX"] = str(bytecode)
    rows = []
    for _ in range(runs):
        command = [sys.executable, "-c", _COLD_START, engine, photo]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=told)
        rows.append(json.loads(done.stdout))
    return {"n": runs, **{key: float(np.median([row[key] for row in rows])) for key in rows[0]}}


def overlap(engine: Path, folder: Path, *, rounds: int) -> dict[str, Any]:
    """Return the throughput over a folder of files, over the slower of decoding and inference alone."""
    files = [write_photo(folder / f"overlap{index}.jpg", seed=index) for index in range(32)]
    threads = max(1, (os.cpu_count() or 2) - 1)
    options = RuntimeOptions(threads=threads, decode_threads=1, batch_size=4)
    with ZeroShotClassifier(engine, options=options) as classifier:
        spec = classifier.card.preprocess
        batch = np.stack([preprocess(load_image(path), spec) for path in files[:4]])
        inner = classifier._engine

        def decode() -> None:
            for path in files:
                preprocess(load_image(path), spec)

        def infer() -> None:
            for _ in range(len(files) // 4):
                inner.run(batch, ("logits", "embedding"))

        times = measure_interleaved(
            {"decode": decode, "infer": infer, "together": lambda: classifier.classify([str(path) for path in files])},
            Rounds(warmup=1, minimum=rounds, maximum=rounds),
        )
    slower = np.maximum(times["decode"], times["infer"])
    return {
        "images": len(files),
        "latency": {name: asdict(summarize(values)) for name, values in times.items()},
        "throughput_over_slower": asdict(paired_ratio(slower, times["together"], generator=np.random.default_rng(0))),
    }


def soak(engine: Path, photo: Path, *, total: int, workers: int = 4) -> dict[str, Any]:
    """Classify `total` times from several threads; every answer must be the first one, and memory must not grow."""
    image = load_image(photo)
    wrong = 0
    samples: list[float] = []
    done = 0
    lock = threading.Lock()
    with ZeroShotClassifier(engine, options=RuntimeOptions(threads=1)) as classifier:
        expected = classifier.classify(image)
        warmup = max(workers, total // 20)

        def work() -> None:
            nonlocal wrong, done
            while True:
                with lock:
                    if done >= warmup + total:
                        return
                    done += 1
                    if done > warmup and done % max(1, total // 50) == 0:
                        samples.append(resident_mib())
                answer = classifier.classify(image)
                if answer != expected:
                    with lock:
                        wrong += 1

        begin = time.perf_counter()
        threads = [threading.Thread(target=work) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - begin
    half = len(samples) // 2
    growth = float(np.median(samples[half:]) / np.median(samples[:half]) - 1)
    return {"classifications": total, "threads": workers, "wrong": wrong, "seconds": seconds, "rss_growth": growth}


def resident_mib() -> float:
    """Return the memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def write_photo(path: Path, *, seed: int) -> Path:
    """Write a JPEG with smooth and random parts, so that it decodes as slowly as a photograph."""
    generator = np.random.default_rng(seed)
    width, height = PHOTO
    waves = np.sin(np.arange(height)[:, None, None] / 31 + np.arange(width)[None, :, None] / 17 + np.arange(3) + seed)
    pixels = 127 + 80 * waves + generator.normal(0, 12, (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    path.write_bytes(buffer.getvalue())
    return path


if __name__ == "__main__":
    sys.exit(main())
