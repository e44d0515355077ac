"""Export an open_clip architecture with random weights: kernels depend on shapes, not on what was learned.

usage: python tools/compile_check/random_classifier.py ARCHITECTURE FOLDER [--classes N] [--quantize-attention]
                                                    [--weight-block N | --fp8]

ARCHITECTURE is a model name of open_clip, or `demo` for the shape of the shipped model. Writes fp16.onnx and
fp32.onnx into FOLDER.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch

from p4q_edge.calibration import calibrate_encoder
from p4q_edge.graph import export_classifier
from p4q_edge.models import Adapter, FoldedClassifier, LoadedModel
from p4q_edge.quant import QuantScheme
from p4q_edge.runtime.artifacts import ModelInfo
from p4q_edge.runtime.images import PreprocessSpec

IMAGES = 2
DEMO: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
}


def random_classifier(architecture: str, *, classes: int, scheme: QuantScheme) -> tuple[FoldedClassifier, Any]:
    """Return a calibrated classifier with seeded random weights, and uint8 images (2, 3, H, W) as NumPy array."""
    config = DEMO if architecture == "demo" else open_clip.get_model_config(architecture)
    if config is None:
        raise SystemExit(f"open_clip has no model {architecture}; `p4q-edge models` lists them")
    return classifier_of(config, architecture, classes=classes, scheme=scheme)


def classifier_of(
    config: Mapping[str, Any],
    name: str,
    *,
    classes: int,
    scheme: QuantScheme,
    prepare: Callable[[torch.nn.Module], object] | None = None,
) -> tuple[FoldedClassifier, Any]:
    """The same of a configuration as open_clip writes it.

    Args:
        name: what the model is called.
        prepare: changes the CLIP in place before it is calibrated.
    """
    torch.manual_seed(0)
    # The smallest text tower: it is not exported.
    text = {"context_length": 8, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1}
    clip = open_clip.CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=config["vision_cfg"],
        text_cfg=text,
        quick_gelu=config.get("quick_gelu", False),
    )
    clip.eval().requires_grad_(False)
    if prepare is not None:
        prepare(clip)
    size = clip.visual.image_size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    spec = PreprocessSpec(size=(height, width), mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
    info = ModelInfo(name=name, pretrained="", family="", license="", weights_sha256="0" * 64)
    model = LoadedModel(
        clip=clip,
        tokenizer=open_clip.SimpleTokenizer(),
        preprocess=spec,
        info=info,
        logit_scale=100.0,
        logit_bias=None,
    )
    images = torch.randint(0, 256, (IMAGES, 3, height, width), dtype=torch.uint8)
    encoder = calibrate_encoder(model, images, scheme).encoder
    dim = config["embed_dim"]
    generator = torch.Generator().manual_seed(0)
    # As a recipe has it: where weights are in blocks, the adapter keeps 8 bits.
    own = scheme if scheme.weight_block is None else QuantScheme(observer="minmax", weight_observer="minmax")
    adapter = Adapter(dim, own, ratio=0.2, learn_ratio=True, zero_init=False, generator=generator)
    with torch.no_grad():
        adapter.freeze(encoder((images.float() / 255 - 0.45) / 0.27))
    folded = FoldedClassifier(
        encoder, adapter, torch.randn(classes, dim), logit_scale=100.0, logit_bias=None, preprocess=spec
    )
    return folded, images.numpy()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="random_classifier", description=__doc__.splitlines()[0])
    parser.add_argument("architecture")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--quantize-attention", action="store_true")
    parser.add_argument("--weight-block", type=int, help="INT4 weights in blocks of N, FP16 activations")
    parser.add_argument("--fp8", action="store_true", help="weights and inputs of linears as E4M3 numbers")
    arguments = parser.parse_args()
    widths: dict[str, Any] = {"weight_bits": 4, "activation_bits": 16} if arguments.weight_block else {}
    # Minima and maxima: random weights have no outliers, and histograms cost time.
    scheme = QuantScheme(
        observer="minmax",
        weight_observer="minmax",
        quantize_attention=arguments.quantize_attention,
        weight_block=arguments.weight_block,
        number_format="fp8" if arguments.fp8 else "int",
        **widths,
    )
    model, images = random_classifier(arguments.architecture, classes=arguments.classes, scheme=scheme)
    graphs = export_classifier(model, images)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (arguments.folder / "fp16.onnx").write_bytes(graphs.fp16 + graphs.weights)
    (arguments.folder / "fp32.onnx").write_bytes(graphs.fp32 + graphs.weights)


if __name__ == "__main__":
    main()
