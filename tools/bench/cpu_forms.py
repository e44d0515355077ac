"""The quantized graph of a bundle in ONNX Runtime against its weights' values in FP32: CPU time, in turns.

    python tools/bench/cpu_forms.py model.p4q --batches 1,8 --rounds 11
    python tools/bench/cpu_forms.py FOLDER/fp32.onnx   # as tools/compile_check/random_classifier.py writes it

What `--cpu-profile auto` decides for bundles with INT4 weights (recipe `w4a16`) and in FP8 (`fp8`). CPU time of one
thread in one process, and the median of the ratios of each round: what else a machine does slows both alike. Above 1
the quantized graph is faster.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from asked import tells_errors, whole_numbers

from p4q_edge.runtime.artifacts import read_bundle
from p4q_edge.runtime.engines.onnxruntime import (
    float_weights,
    load_error,
    open_session,
    session_errors,
    session_options,
)
from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.machine import provenance
from p4q_edge.runtime.statistics import paired_ratio
from p4q_edge.runtime.storage import quoted, read_bounded

_WARM_UP = 3
_SEED = 0
_MOST_BYTES = 2**31
"""More than one protobuf can have."""


def graph_for_cpus(path: Path) -> bytes:
    """Return the complete graph with FP32 remainder of a bundle, or the bytes of an ONNX file.

    Raises:
        P4QEdgeError: there is no such file, or none that ONNX Runtime runs on images.
    """
    if path.suffix == ".p4q":
        return read_bundle(path).model("fp32")
    model = read_bounded(path, limit_bytes=_MOST_BYTES, kind="ONNX file")
    try:
        session = open_session(model, session_options("exact", threads=1))
    except session_errors() as error:
        raise load_error(error, name=quoted(path)) from error
    if [node.name for node in session.get_inputs()] != ["image"]:
        names = ", ".join(node.name for node in session.get_inputs())
        raise InputError(
            f"expected one input, image, in {quoted(path)}, got {names or 'none'}; name a bundle, or the graph with "
            "FP32 remainder that tools/compile_check/random_classifier.py writes"
        )
    return model


def runner(model: bytes, images: np.ndarray) -> Callable[[], float]:
    """Return what runs a graph once, on one thread, and tells its CPU time in milliseconds."""
    session = open_session(model, session_options("exact", threads=1))

    def run() -> float:
        begin = time.process_time()
        session.run(None, {"image": images})
        return 1000 * (time.process_time() - begin)

    for _ in range(_WARM_UP):
        run()
    return run


def compare(model: bytes, *, batch: int, rounds: int) -> str:
    """Return a row of the table: medians of both, and the ratio with its interval of 95 %."""
    probe = open_session(model, session_options("exact", threads=1))
    sample = probe.get_inputs()[0].shape[1:]
    images = np.random.default_rng(_SEED).integers(0, 256, (batch, *sample)).astype(np.uint8)
    quantized, in_float = runner(model, images), runner(float_weights(model), images)
    times = np.array([(quantized(), in_float()) for _ in range(rounds)])
    ratio = paired_ratio(times[:, 1], times[:, 0], generator=np.random.default_rng(_SEED))
    first, second = np.median(times, axis=0)
    interval = f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"| {batch} | {first:.2f} ms | {second:.2f} ms | {interval} | {ratio.n} |"


@tells_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="bundle, or a complete ONNX file with FP32 remainder")
    parser.add_argument("--batches", default="1,8", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=11, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    batches = whole_numbers(arguments.batches, option="--batches", least=1)
    if arguments.rounds < 1:
        raise UsageError(f"--rounds takes a whole number from 1; got {arguments.rounds}")
    model = graph_for_cpus(arguments.model)
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions().items())
    lines = [
        versions,
        "",
        "| batch | quantized p50 | FP32 p50 | FP32 time over quantized, 95 % | n |",
        "|---|---|---|---|---|",
    ]
    lines += [compare(model, batch=batch, rounds=arguments.rounds) for batch in batches]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
