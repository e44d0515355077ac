"""The calibrated encoder in a run folder."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from p4q_edge.calibration import SAMPLE_SIZE, CalibratedEncoder, add_products, deployed_encoder, set_weight_bits
from p4q_edge.learning import read_tensors, write_tensors
from p4q_edge.models import LoadedModel
from p4q_edge.quant import (
    GridPoint,
    Phase,
    QuantConv2d,
    QuantLinear,
    QuantScheme,
    quant_convs,
    quant_linears,
    quantize_modules,
    set_phase,
    swap_convolutions,
)
from p4q_edge.runtime.storage import contents_digest

_FACTS = (
    "kept_float",
    "in_float",
    "folded",
    "cross_attention",
    "attention_owners",
    "products",
    "convolutions",
    "images",
)


def save_encoder(calibrated: CalibratedEncoder, path: Path, *, key: str) -> None:
    """Write weights, scales and what is needed to build the same modules again."""
    write_tensors(path, calibrated.encoder.state_dict(), key=key, metadata={"calibration": _facts_of(calibrated)})


def encoder_digest(calibrated: CalibratedEncoder) -> str:
    """Return the digest of everything that decides the encoder's features: what `save_encoder` writes."""
    tensors = {name: tensor.detach().cpu().numpy() for name, tensor in calibrated.encoder.state_dict().items()}
    return contents_digest(tensors, {"calibration": _facts_of(calibrated)})


def _facts_of(calibrated: CalibratedEncoder) -> str:
    facts = {name: getattr(calibrated, name) for name in _FACTS}
    facts["weight_bits"] = dict(calibrated.weight_bits)
    facts["grids"] = [asdict(point) for point in calibrated.grids]
    return json.dumps(facts)


def restore_encoder(path: Path, model: LoadedModel, scheme: QuantScheme, *, key: str) -> CalibratedEncoder | None:
    """Return a calibrated encoder from its file, or None when there is none that was made from the same things."""
    stored = read_tensors(path, key=key)
    if stored is None:
        return None
    tensors, metadata = stored
    facts = json.loads(metadata["calibration"])
    device = model.compute.device
    noise = torch.randn(SAMPLE_SIZE, 3, *model.preprocess.size, generator=torch.Generator().manual_seed(0))
    encoder = deployed_encoder(model, noise.to(device), scheme)
    grids = [GridPoint(**{**point, "sharing": tuple(point["sharing"])}) for point in facts["grids"]]
    swap_convolutions(encoder, facts["convolutions"], grids, scheme)
    quantize_modules(
        encoder,
        scheme,
        cross_attention=frozenset(facts["cross_attention"]),
        attention_owners=frozenset(facts["attention_owners"]),
    )
    add_products(encoder, facts["products"], scheme)
    for name, linear in quant_linears(encoder).items():
        if f"{name}.bias" in tensors and linear.bias is None:  # a fold gave it one
            linear.bias = nn.Parameter(torch.zeros(linear.out_features, device=device))
    layers: dict[str, QuantLinear | QuantConv2d] = {**quant_linears(encoder), **quant_convs(encoder)}
    for name in facts["in_float"]:
        layers[name].in_float = True
    set_weight_bits(encoder, facts["weight_bits"])
    encoder.load_state_dict(tensors)
    encoder.requires_grad_(False)
    set_phase(encoder, Phase.QUANTIZED)
    return CalibratedEncoder(
        encoder=encoder,
        kept_float=tuple(facts["kept_float"]),
        in_float=tuple(facts["in_float"]),
        folded=tuple(facts["folded"]),
        cross_attention=tuple(facts["cross_attention"]),
        attention_owners=tuple(facts["attention_owners"]),
        products=tuple(facts["products"]),
        convolutions=tuple(facts["convolutions"]),
        grids=tuple(grids),
        weight_bits=facts["weight_bits"],
        images=facts["images"],
    )
