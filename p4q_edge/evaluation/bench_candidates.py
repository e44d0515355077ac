"""What `p4q-edge bench --against` compares with: the same model in full precision, in ONNX Runtime and in PyTorch."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from p4q_edge.quant import Phase, set_phase
from p4q_edge.recipe import on_device, run_recipe_of
from p4q_edge.runtime.benchmark import Candidate
from p4q_edge.runtime.engines.onnxruntime import float_weights, session_options
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.stage import Outputs
from p4q_edge.stages import RunFiles, learn_stage, open_source, prepare


def fp32(engine: Path, *, threads: int | None = None) -> Candidate:
    """Return the engine's graph in float32 in ONNX Runtime, with the values of the quantized weights.

    Raises:
        UsageError: the engine is not an ONNX model.
    """
    if engine.suffix != ".onnx":
        raise UsageError(f"--against fp32 takes the graph of an .onnx engine, not of {engine}")
    model = float_weights(engine.read_bytes())
    before = time.perf_counter_ns()
    options = session_options("exact", threads=threads)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    load_ms = (time.perf_counter_ns() - before) / 1e6

    def run(batch: NDArray[np.uint8]) -> Outputs:
        logits, embedding = session.run(["logits", "embedding"], {"image": batch})
        return {"logits": logits, "embedding": embedding}

    library = f"ONNX Runtime {onnxruntime.__version__}"
    return Candidate(name="ONNX Runtime FP32", run=run, size_bytes=len(model), load_ms=load_ms, library=library)


def pytorch(engine: Path, *, threads: int | None = None) -> Candidate:
    """Return the float classifier of the run folder beside the engine in eager PyTorch on the CPU.

    Raises:
        UsageError: there is no run folder.
    """
    folder = engine.with_suffix(".run")
    files = RunFiles(folder=folder)
    # Beside an engine of the CPU, whatever the run itself was computed on.
    recipe = on_device(run_recipe_of(folder), "cpu")
    learned = learn_stage(prepare(open_source(recipe), files), files)
    set_phase(learned.classifier, Phase.FLOAT)
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)

    @torch.inference_mode()
    def run(batch: NDArray[np.uint8]) -> Outputs:
        logits, embedding, _ = learned.classifier(torch.from_numpy(batch))
        return {"logits": logits.numpy(), "embedding": embedding.numpy()}

    return Candidate(name="PyTorch FP32", run=run, library=f"PyTorch {torch.__version__}", close=_restoring(before))


def _restoring(threads: int) -> Callable[[], None]:
    return lambda: torch.set_num_threads(threads)
