"""The paper's second track: a fake-quantized text tower, with gradients through it to the context."""

import torch

from p4q_edge.calibration.calibrate import fix_scales
from p4q_edge.models import TEXT_BATCH_SIZE, PromptLearner, TextSide
from p4q_edge.quant import Phase, quant_linears, quant_products, running_in, set_phase


@torch.no_grad()
def calibrate_text(tower: TextSide, prompts: PromptLearner | None) -> None:
    """Fix the scales of the text tower on the prompts in use, and run it quantized from now on.

    Each prompt is cut at its own end, so that padding is never observed; the start token is left out by the tower
    itself. Called before learning and again after it, as the context moves the ranges.

    Source: P4Q, arXiv:2409.17634, section 3.1, with the exclusions that its release lacks.
    """
    if prompts is None:
        return
    for linear in quant_linears(tower).values():
        linear.forget_observations()
    for products in quant_products(tower).values():
        products.forget_observations()
    whole = prompts.prompts()
    for phase in (Phase.RANGING, Phase.CALIBRATING):
        with running_in(tower, phase):
            for chunk in prompts.chunks:
                for classes, length in chunk.runs:
                    for some in torch.split(classes, TEXT_BATCH_SIZE):
                        tower(whole[some, :length], prompts.end[some])
    fix_scales(tower)
    set_phase(tower, Phase.QUANTIZED)
