"""What a fake-quantized module gives, to compare graphs with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from p4q_edge.quant import Phase, running_as_cpu_graph, running_in
from p4q_edge.runtime.stage import OUTPUT_NAMES


def reference_outputs(
    model: nn.Module, images: NDArray[np.uint8], *, as_cpu_graph: bool = False
) -> dict[str, NDArray[np.float32]]:
    """Return the outputs of the fake-quantized `model` by name, quantized as the graph for CPUs if asked to be."""
    running = running_as_cpu_graph(model) if as_cpu_graph else running_in(model, Phase.QUANTIZED)
    with torch.inference_mode(), running:
        outputs = model(torch.from_numpy(images))
    return {name: output.float().numpy() for name, output in zip(OUTPUT_NAMES, outputs, strict=True)}
