"""Trace a float PyTorch module into an ONNX graph with one operator per idea."""

import logging
import warnings
from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as ir_passes
import torch
from torch import nn

from p4q_edge.graph.operators import adaptive_avg_pool2d, scaled_dot_product_attention
from p4q_edge.runtime.stage import OUTPUT_NAMES

logger = logging.getLogger(__name__)

OPSET = 20
"""TensorRT 10.3 (JetPack 6) reads opset 9 to 20."""

IR_VERSION = 10
"""Newer IR versions are refused by ONNX Runtime releases that JetPack still uses."""


def trace_float_graph(model: nn.Module, image_size: Sequence[int]) -> ir.Model:
    """Trace `model` in its float phase with a free batch size.

    Args:
        model: takes uint8 (N, 3, H, W) and returns (logits, embedding, features).
        image_size: (H, W).

    Returns:
        A model of opset 20 with input `image`, outputs as `OUTPUT_NAMES`, and constants as initializers.
        Each node records the module path it came from.
    """
    height, width = image_size
    example = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # torch.export and onnxscript warn about their own use of deprecated torch functions.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=list(OUTPUT_NAMES),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
                custom_translation_table={
                    torch.ops.aten.scaled_dot_product_attention.default: scaled_dot_product_attention,
                    torch.ops.aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d,
                },
                verbose=False,
            )
    finally:
        model.train(was_training)
    traced = program.model if program is not None else None
    if traced is None:
        raise RuntimeError("torch.onnx.export returned no program")
    traced.ir_version = min(traced.ir_version or IR_VERSION, IR_VERSION)
    traced.graph.name = "p4q"
    ir_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(traced)
    ir_passes.RemoveUnusedNodesPass()(traced)
    logger.info("traced %d nodes at opset %d", len(traced.graph), OPSET)
    return traced
