"""Where the time of one image goes: a table by operator, for ONNX Runtime and for OpenVINO on the same file.

    python tools/bench/cpu_profile.py model.p4q --threads 1 --batch 1 --runs 30

Both libraries time their own operators, which slows them a little; shares are of the sum of these times. In OpenVINO a
`Subgraph` is code that it generates for several operators at once: steps of quantization, GELU, and attention.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from asked import tells_errors

from p4q_edge.runtime.artifacts import read_bundle
from p4q_edge.runtime.choices import Remainder
from p4q_edge.runtime.engines.onnxruntime import open_session, session_options
from p4q_edge.runtime.engines.openvino import OpenVINOEngine, model_source, remainders

Times = Mapping[str, tuple[int, float]]
"""By operator: how often it runs for a batch, and milliseconds of a run of the whole model that it takes."""
_WARM_UP = 3


def of_onnxruntime(model: bytes, images: np.ndarray, *, threads: int, runs: int) -> Times:
    """Times of ONNX Runtime's operators, averaged over runs."""
    options = session_options("exact", threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = open_session(model, options)
        for _ in range(_WARM_UP + runs):
            session.run(None, {"image": images})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = [one for one in events if one.get("cat") == "Node" and one["name"].endswith("_kernel_time")]
    each = len(nodes) // (_WARM_UP + runs)
    found: dict[str, list[float]] = defaultdict(list)
    for event in nodes[_WARM_UP * each :]:
        found[event["args"]["op_name"]].append(event["dur"] / 1000)
    return {name: (len(values) // runs, sum(values) / runs) for name, values in found.items()}


def of_openvino(model: bytes, images: np.ndarray, *, remainder: Remainder, threads: int, runs: int) -> Times:
    """Times of OpenVINO's operators with the precision that they run in, averaged over runs."""
    engine = OpenVINOEngine(
        model_source(model), remainder=remainder, threads=threads, batch=len(images), profiling=True
    )
    for _ in range(_WARM_UP):
        engine.run(images)
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(runs):
        for kind, milliseconds in engine.profile(images):
            found[kind].append(milliseconds)
    return {name: (len(values) // runs, sum(values) / runs) for name, values in found.items()}


def table(name: str, times: Times) -> str:
    """The operators of one library as Markdown, the most expensive first."""
    total = sum(spent for _, spent in times.values())
    lines = [f"## {name}: {total:.2f} ms", "| operator | runs | ms | share |", "| --- | --- | --- | --- |"]
    for operator, (count, spent) in sorted(times.items(), key=lambda item: -item[1][1]):
        if spent >= 0.001 * total:
            lines.append(f"| {operator} | {count} | {spent:.2f} | {100 * spent / total:.1f} % |")
    return "\n".join(lines)


@tells_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Print a table for each library, and for each remainder of OpenVINO that this processor has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--runs", type=int, default=30, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    bundle = read_bundle(args.bundle)
    golden, model = bundle.golden(), bundle.model("fp32")
    images = np.ascontiguousarray(golden.image[np.arange(args.batch) % len(golden.image)])
    options: dict[str, Any] = {"threads": args.threads, "runs": args.runs}
    print(table("ONNX Runtime", of_onnxruntime(model, images, **options)))
    for remainder in remainders():
        print(table(f"OpenVINO, {remainder}", of_openvino(model, images, remainder=remainder, **options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
