"""Stage `calibrate`: the image encoder with channel folds, weight scales and input scales."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from p4q_edge.image_encoder import ImageEncoder, find_cross_attention, round_float_weights
from p4q_edge.load import LoadedModel, to_batch
from p4q_edge.quant.folds import correct_biases, fold_channels
from p4q_edge.quant.modules import Phase, quant_linears, quantize_modules, running_in, set_phase
from p4q_edge.quant.scheme import QuantScheme
from p4q_edge.runtime.errors import InputError
from p4q_edge.tensor_file import read_metadata, read_tensors, write_tensors

logger = logging.getLogger(__name__)

BATCH_SIZE = 64
SAMPLE_SIZE = 4
"""Images of the forward passes that only watch which module reads what."""


@dataclass(frozen=True, kw_only=True)
class CalibratedEncoder:
    """A quantized image encoder.

    Attributes:
        encoder: in ``Phase.QUANTIZED``.
        kept_float: linears and attentions that stay in high precision.
        folded: producers whose channels were equalized.
        images: number of calibration images.
    """

    encoder: nn.Module
    kept_float: tuple[str, ...]
    folded: tuple[str, ...]
    images: int

    def save(self, path: Path, *, key: str) -> None:
        """Write weights, scales and what is needed to build the same modules again."""
        facts = {"kept_float": self.kept_float, "folded": self.folded, "images": self.images}
        write_tensors(path, self.encoder.state_dict(), key=key, metadata={"calibration": json.dumps(facts)})


def restore_encoder(path: Path, model: LoadedModel, scheme: QuantScheme, *, key: str) -> CalibratedEncoder | None:
    """A calibrated encoder from its file, or None when there is none that was made from the same things."""
    tensors = read_tensors(path, key=key)
    if tensors is None:
        return None
    facts = json.loads(read_metadata(path)["calibration"])
    encoder = ImageEncoder(model.clip.visual)  # type: ignore[arg-type]
    quantize_modules(encoder, scheme, cross_attention=frozenset(facts["kept_float"]))
    for name, linear in quant_linears(encoder).items():
        if f"{name}.bias" in tensors and linear.bias is None:  # a fold gave it one
            linear.bias = nn.Parameter(torch.zeros(linear.out_features))
    encoder.load_state_dict(tensors)
    encoder.requires_grad_(False)
    set_phase(encoder, Phase.QUANTIZED)
    return CalibratedEncoder(
        encoder=encoder, kept_float=tuple(facts["kept_float"]), folded=tuple(facts["folded"]), images=facts["images"]
    )


def calibrate_encoder(model: LoadedModel, images: Tensor, scheme: QuantScheme) -> CalibratedEncoder:
    """Quantize the image tower of a model.

    Args:
        images: uint8 ``(N, 3, H, W)``, the labelled training images.

    Raises:
        InputError: no images.

    Source: P4Q, arXiv:2409.17634, section 3.1, on symmetric ranges (see `p4q_edge.quant.folds`).
    """
    if len(images) == 0:
        raise InputError("calibration needs at least one image; data.train gave none")
    batches = [to_batch(chunk, model.preprocess) for chunk in torch.split(images, BATCH_SIZE)]
    sample = batches[0][:SAMPLE_SIZE]
    encoder = ImageEncoder(model.clip.visual)  # type: ignore[arg-type]
    round_float_weights(encoder)
    cross = find_cross_attention(encoder, sample)
    kept = quantize_modules(encoder, scheme, cross_attention=cross)
    encoder.requires_grad_(False)
    observe(encoder, lambda: _run(encoder, batches), Phase.RANGING)
    folded = fold_channels(encoder, scheme, sample)
    observe(encoder, lambda: _run(encoder, batches), Phase.CALIBRATING)
    unreached = fix_scales(encoder)
    if scheme.bias_correction:
        correct_biases(encoder, batches)
    set_phase(encoder, Phase.QUANTIZED)
    logger.info("quantized %d linears, kept %d in float", len(quant_linears(encoder)), len(kept) + len(unreached))
    return CalibratedEncoder(encoder=encoder, kept_float=(*kept, *unreached), folded=tuple(folded), images=len(images))


@torch.no_grad()
def observe(module: nn.Module, run: Callable[[], object], phase: Phase) -> None:
    """Run a module in an observing phase."""
    with running_in(module, phase):
        run()


def fix_scales(module: nn.Module) -> list[str]:
    """Fix weight and input scales of all linears that observed something.

    Returns:
        Paths of linears that the forward pass never reached; they cannot be quantized.
    """
    unreached = []
    for path, linear in quant_linears(module).items():
        if linear.histogram is None:
            unreached.append(path)
            continue
        linear.scale_weight()
        linear.scale_input()
    return unreached


def _run(encoder: nn.Module, batches: list[Tensor]) -> None:
    for batch in batches:
        encoder(batch)
