"""A small CLIP of random weights."""

import open_clip
import torch
from torch import Tensor, nn

from p4q_edge.calibration.calibrate import calibrate_encoder
from p4q_edge.models.adapter import Adapter
from p4q_edge.models.folded_classifier import FoldedClassifier
from p4q_edge.models.load import LoadedModel
from p4q_edge.quant.scheme import QuantScheme
from p4q_edge.runtime.artifacts.manifest import ModelInfo
from p4q_edge.runtime.images.preprocessing import PreprocessSpec

TOY_MEAN, TOY_STD = (0.4, 0.45, 0.5), (0.25, 0.26, 0.27)
VISION = {"image_size": 16, "patch_size": 8, "width": 64, "layers": 2, "head_width": 16}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}


def make_clip(*, quick_gelu: bool = False, seed: int = 0, kind: type = open_clip.CLIP, **text: object) -> nn.Module:
    """An open_clip ViT of two blocks with random weights; `kind` and `text` choose another text side."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = kind(embed_dim=32, vision_cfg=VISION, text_cfg=TEXT | text, quick_gelu=quick_gelu)
        for module in clip.modules():
            if isinstance(module, nn.LayerNorm):  # ranges as uneven as those of a trained model
                module.weight.data = torch.exp(torch.randn_like(module.weight) * 0.7)
                module.bias.data = torch.randn_like(module.bias)
    return clip.eval().requires_grad_(False)


def fold_toy_model(toy: LoadedModel, pixels: Tensor, scheme: QuantScheme, *, adapter: QuantScheme) -> FoldedClassifier:
    """A toy calibrated at a scheme, with an adapter at another one, folded for five classes of random embeddings."""
    encoder = calibrate_encoder(toy, pixels, scheme).encoder
    generator = torch.Generator().manual_seed(0)
    own = Adapter(32, adapter, ratio=0.2, learn_ratio=False, zero_init=False, generator=generator)
    with torch.no_grad():
        own.freeze(torch.randn(64, 32, generator=generator))
    embedding = torch.randn(5, 32, generator=generator)
    parts = {"logit_scale": 20.0, "logit_bias": None, "preprocess": toy.preprocess}
    return FoldedClassifier(encoder, own, embedding, **parts)


def loaded(clip: nn.Module) -> LoadedModel:
    """A model as `load_model` would return it."""
    info = ModelInfo(
        name="toy", pretrained="random", family="VisionTransformer", license="none", weights_sha256="0" * 64
    )
    spec = PreprocessSpec(size=(16, 16), mean=TOY_MEAN, std=TOY_STD)
    return LoadedModel(
        clip=clip,
        tokenizer=open_clip.SimpleTokenizer(context_length=24),
        preprocess=spec,
        info=info,
        logit_scale=float(clip.logit_scale.exp()),
        logit_bias=None,
    )
