"""How long a process takes to load an engine for CPUs: ONNX Runtime and OpenVINO, with what they keep and without.

    python tools/bench/cpu_load.py model.p4q --rounds 9 --output load.json

Each load is a process of its own with one thread, and the rows take turns. `kept` has the optimized copy or the
compiled model beside the engine, `cache` has the compiled model in the user's cache folder, `nothing` has neither.
Importing is that of this package and NumPy; the engine's own library is imported in the load. The proof of golden
samples, which is made once on a machine, is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from asked import tells_errors
from cpu_runtime import cold_start, write_photo

from p4q_edge.runtime import BuildOptions, build_engine
from p4q_edge.runtime.artifacts import card_path, read_bundle
from p4q_edge.runtime.choices import CpuProfile
from p4q_edge.runtime.machine import cpu, provenance
from p4q_edge.runtime.storage import atomic_write


def kept_profile() -> CpuProfile:
    """That which both libraries can run here: without VNNI OpenVINO adds products of 8-bit weights in 16 bits."""
    return "fast" if cpu.saturates() else "exact"


def engines(bundle: Path, folder: Path) -> dict[str, Path]:
    """Engines of both libraries in folders of their own; those without what is kept beside them are copies."""
    found: dict[str, Path] = {}
    profile = kept_profile()
    for name, backend, remainder in (
        ("ONNX Runtime", "onnxruntime", "auto"),
        ("OpenVINO f32", "openvino", "f32"),
    ):
        kept = folder / f"{backend}-kept" / "out.onnx"
        kept.parent.mkdir()
        options = BuildOptions(cpu_profile=profile, remainder=remainder, threads=1)  # type: ignore[arg-type]
        build_engine(bundle, kept, backend=backend, options=options)  # type: ignore[arg-type]
        found[f"{name}, kept"] = kept
        for state in ("cache", "nothing"):
            bare = folder / f"{backend}-{state}" / "out.onnx"
            bare.parent.mkdir()
            for path in (kept, card_path(kept)):
                shutil.copy(path, bare.parent / path.name)
            found[f"{name}, {state}"] = bare
    del found["ONNX Runtime, cache"]  # it keeps nothing there
    return found


def measure(bundle: Path, folder: Path, *, rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of a load and until the first answer, by engine, from rounds in turns."""
    photo = write_photo(folder / "photo.jpg", seed=0)
    loaded, times = engines(bundle, folder), {}
    for index in range(-1, rounds):
        for name, path in loaded.items():
            cache = folder / "caches" / ("kept" if name.endswith("cache") else f"{index}")
            os.environ["P4Q_EDGE_CACHE"] = str(cache)
            found = cold_start(path, photo, bytecode=folder / "bytecode", runs=1)
            if index >= 0:
                times.setdefault(name, []).append(found)
            if not name.endswith("cache"):
                shutil.rmtree(cache, ignore_errors=True)
    return {
        name: {key: float(np.median([row[key] for row in rows])) for key in rows[0]} | {"n": len(rows)}
        for name, rows in times.items()
    }


@tells_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=9, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args.bundle, Path(folder), rounds=args.rounds)
    document = {
        "model": read_bundle(args.bundle).manifest.model.name,
        "profile": kept_profile(),
        "rows": rows,
        "cpu": cpu.cpu(),
        "load_average": os.getloadavg(),
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(),
    }
    if args.output:
        atomic_write(args.output, json.dumps(document, indent=1).encode() + b"\n", force=True)
    print(
        "| engine | import, s | load, s | first answer after, s | peak MiB | n |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name, row in rows.items():
        seconds = " | ".join(f"{row[key]:.2f}" for key in ("import_s", "load_s", "first_answer_s"))
        print(f"| {name} | {seconds} | {row['peak_rss_mib']:.0f} | {row['n']} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
