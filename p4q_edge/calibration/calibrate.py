"""Stage `calibrate`: the image encoder with channel folds, weight scales and input scales."""

import fnmatch
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from p4q_edge.calibration.fit import refine
from p4q_edge.calibration.loss_limit import limit_loss
from p4q_edge.calibration.weight_bits import spread_weight_bits
from p4q_edge.models import (
    Batches,
    ImageEncoder,
    LoadedModel,
    PixelSource,
    find_attention_owners,
    find_cross_attention,
    round_float_weights,
    run_batches,
    to_batch,
    to_deployment_form,
    tokens_read,
)
from p4q_edge.quant import (
    MAX_TOKENS,
    GridPoint,
    Phase,
    QuantScheme,
    attentions,
    choose_convolutions,
    choose_grids,
    correct_biases,
    count_macs,
    fit_convolutions,
    fix_conv_scales,
    fold_channels,
    forget_magnitudes,
    fuses_in_int8,
    may_be_quantized,
    quant_convs,
    quant_linears,
    quant_products,
    quantize_modules,
    rotate_streams,
    running_in,
    set_phase,
    swap_convolutions,
    trace_flow,
)
from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.wording import number_of

logger = logging.getLogger(__name__)

SAMPLE_SIZE = 4
"""Images of the forward passes that only watch which module reads what."""

CORRECTION_IMAGES = 64
CORRECTION_PIXELS = 64 * 128 * 128
"""Largest numbers of images, and of pixels of all of them, that correct the biases of convolutions; each channel has a
mean over all positions of each. All are held at once, twice, with a channel's worth of memory for each of the widest
layer."""


@dataclass(frozen=True, kw_only=True)
class CalibratedEncoder:
    """A quantized image encoder.

    Attributes:
        encoder: in `Phase.QUANTIZED`.
        kept_float: linears, attentions and convolutions that stay in high precision.
        in_float: linears and convolutions that are there to keep a limit on the loss of accuracy.
        folded: producers whose channels were equalized.
        cross_attention: attentions that do not attend to their own query.
        attention_owners: modules whose linears have the scheme's bits for attentions.
        products: attentions whose products are quantized.
        convolutions: those that are quantized.
        grids: tensors between convolutions that have a grid for all their readers.
        weight_bits: of the linears whose weights have more than the scheme's bits, by path.
        images: number of calibration images.
    """

    encoder: nn.Module
    kept_float: tuple[str, ...]
    in_float: tuple[str, ...]
    folded: tuple[str, ...]
    cross_attention: tuple[str, ...]
    attention_owners: tuple[str, ...]
    products: tuple[str, ...]
    convolutions: tuple[str, ...]
    grids: tuple[GridPoint, ...]
    weight_bits: Mapping[str, int]
    images: int


def calibrate_encoder(model: LoadedModel, images: PixelSource, scheme: QuantScheme) -> CalibratedEncoder:
    """Quantize the image tower of a model.

    Args:
        images: uint8 `(N, 3, H, W)`, labelled training images.

    Raises:
        InputError: no images.

    Source: P4Q, arXiv:2409.17634, section 3.1, on symmetric ranges (see `p4q_edge.quant.channel_folds`).
    """
    if len(images) == 0:
        raise InputError("calibration needs at least one image; data.train gave none")
    batches = Batches.of(model, images)
    sample = _taken_in(model, images[:SAMPLE_SIZE])
    encoder = deployed_encoder(model, sample, scheme)
    warn_of_unknown_paths(encoder, scheme)
    convolutions, grids = quantize_convolutions(encoder, sample, scheme)
    round_float_weights(encoder)
    cross = find_cross_attention(encoder, sample)
    owners = find_attention_owners(encoder, sample)
    kept = quantize_modules(encoder, scheme, cross_attention=cross, attention_owners=owners)
    encoder.requires_grad_(False)
    products = fusable_products(encoder, sample) if scheme.quantize_attention else []
    add_products(encoder, products, scheme)
    observe(encoder, lambda: _run(encoder, batches, "calibrate, channels"), Phase.RANGING)
    folded = fold_channels(encoder, scheme, sample)
    observe(encoder, lambda: _run(encoder, batches, "calibrate, ranges"), Phase.CALIBRATING)
    unreached = [*fix_scales(encoder), *fix_conv_scales(encoder, grids)]
    wider = spread_weight_bits(encoder, batches, scheme.mean_weight_bits)
    if convolutions:
        taken = _taken_in(model, evenly(images, correction_images(images)))
        fit_convolutions(encoder, taken, scheme.weight_rounding)
    if scheme.bias_correction and not scheme.fits_outputs:
        correct_biases(encoder, batches)
    reference: nn.Module = model.clip.visual  # type: ignore[assignment]
    refine(encoder, reference, batches, scheme)
    limit = scheme.max_cosine_loss
    in_float = () if limit is None else limit_loss(encoder, reference, batches, limit)
    set_phase(encoder, Phase.QUANTIZED)
    logger.info(
        "quantized %s and %s, %.1f %% of multiply-accumulates; kept %s in float",
        number_of(len(quant_linears(encoder)), "linear"),
        number_of(len(quant_convs(encoder)), "convolution"),
        100 * count_macs(encoder, sample).integer_share,
        number_of(len(kept) + len(unreached) + len(in_float), "linear"),
    )
    return CalibratedEncoder(
        encoder=encoder,
        kept_float=(*kept, *unreached, *in_float),
        in_float=in_float,
        folded=tuple(folded),
        cross_attention=tuple(sorted(cross)),
        attention_owners=tuple(sorted(owners)),
        products=tuple(products),
        convolutions=tuple(convolutions),
        grids=tuple(grids),
        weight_bits=wider,
        images=len(images),
    )


def deployed_encoder(model: LoadedModel, sample: Tensor, scheme: QuantScheme) -> ImageEncoder:
    """Return the float image tower with the modules and in the basis that the scheme quantizes.

    Args:
        sample: normalized pixels `(N, 3, H, W)` that the tower is traced with.
    """
    encoder = ImageEncoder(model.clip.visual)  # type: ignore[arg-type]
    to_deployment_form(encoder, sample)
    if scheme.rotates and not rotate_streams(encoder, sample) and scheme.rotation:
        logger.warning(
            "quantization.rotation = true has no effect: no residual stream of this image tower can be rotated (one "
            "stays behind a LayerNorm, such as CLIP's ln_pre, and in front of anything but LayerNorms with linears)"
        )
    return encoder


def _taken_in(model: LoadedModel, images: Tensor) -> Tensor:
    return to_batch(images.to(model.compute.device), model.preprocess)


def warn_of_unknown_paths(encoder: nn.Module, scheme: QuantScheme) -> None:
    """Say which of the scheme's `keep_float` name no module of the image tower."""
    paths = [path for path, _ in encoder.named_modules()]
    for pattern in scheme.keep_float:
        if not fnmatch.filter(paths, pattern):
            logger.warning("quantization.keep_float: the image tower has no module %r", pattern)


def quantize_convolutions(encoder: nn.Module, sample: Tensor, scheme: QuantScheme) -> tuple[list[str], list[GridPoint]]:
    """Swap the convolutions that the scheme quantizes, with the grids between them, and return both."""
    possible = scheme.stem or any(may_be_quantized(m) for m in encoder.modules())
    if not (scheme.quantizes_convolutions and possible):
        return [], []
    flow = trace_flow(encoder, sample)
    convolutions = choose_convolutions(encoder, flow, scheme)
    grids = choose_grids(flow, convolutions)
    swap_convolutions(encoder, convolutions, grids, scheme)
    return convolutions, grids


def correction_images(images: PixelSource) -> int:
    """Return how many of the images correct biases: enough for a mean, few enough for memory."""
    return max(8, min(CORRECTION_IMAGES, CORRECTION_PIXELS // (images.shape[-2] * images.shape[-1])))


def evenly(images: PixelSource, count: int) -> Tensor:
    """At most `count` of the images, evenly drawn."""
    return images[:: max(1, -(-len(images) // count))]


def fusable_products(encoder: nn.Module, sample: Tensor) -> list[str]:
    """Return paths of the attentions whose products TensorRT fuses in INT8: of all tokens, and of sizes that it has.

    The fused attention of one token has no INT8 form, and is a small part of the work.

    Raises:
        InputError: there is none.
    """
    used = tokens_read(encoder, sample)
    found = [
        path
        for path, attention in attentions(encoder).items()
        if path in used and used[path][1] > 1 and fuses_in_int8(head_size=attention.head_size, tokens=used[path][0])
    ]
    if not found:
        raise InputError(
            "quantize_attention has no effect on this model: expected self-attentions of all tokens with heads of "
            f"16, 32 or 64 channels and at most {MAX_TOKENS} tokens, found none; set "
            "quantization.quantize_attention = false"
        )
    return found


def add_products(encoder: nn.Module, paths: Iterable[str], scheme: QuantScheme) -> None:
    """Give the attentions at `paths` grids for their products."""
    found = attentions(encoder)
    for path in paths:
        found[path].quantize_products(scheme)


@torch.no_grad()
def observe(module: nn.Module, run: Callable[[], object], phase: Phase) -> None:
    """Run a module in an observing phase."""
    with running_in(module, phase):
        run()


def fix_scales(module: nn.Module) -> list[str]:
    """Fix weight and input scales of all linears that observed something.

    Returns:
        Paths of linears that the forward pass never reached, or whose inputs make no whole blocks; they cannot be
        quantized.
    """
    unreached = []
    for path, linear in quant_linears(module).items():
        if linear.histogram is None or linear.in_float:
            unreached.append(path)
            continue
        linear.scale_weight()
        linear.scale_input()
    for products in quant_products(module).values():
        products.fix_scales()
    return unreached


def _run(encoder: nn.Module, batches: Batches, name: str) -> None:
    def see(batch: Tensor) -> None:
        encoder(batch)

    # Ranges may see an image twice, histograms may not.
    run_batches(see, batches, name, restart=lambda: forget_magnitudes(encoder))
