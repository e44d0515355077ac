"""Pre-train a small CLIP on photographs of 32 x 32, as a testbed for quantization and few-shot learning.

    python tools/train_photo_clip.py --data tiny_imagenet32 --cifar test.npz --output model --minutes 95

``--data`` holds a contact sheet of photographs for each class (``<wnid>.jpg``, tiles of 32 x 32 in rows of
20) and ``classes.tsv`` (wnid, names, count). Captions are templates filled with a class's names and with
the words of ``photo_classes.tsv`` beside this file: coarser words ("dog") and what the thing looks like
("something like a wolf"), so that the text tower meets more words than there are classes.

The learning rate follows the minutes used, not the steps: a busy machine shortens the training, it never
cuts the schedule off. A run with the same ``--output`` goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from clip_pretraining import encode_text, muon_and_adamw
from local_dir import WEIGHTS_NAME, write_local_dir
from photo_data import (
    CONTEXT,
    EVALUATION_TEMPLATES,
    PREPROCESS_CFG,
    TILE,
    Captions,
    Photos,
    Thing,
    augment,
    build_captions,
    normalize,
    read_photos,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel

from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.storage import atomic_write, require_writable

MODEL_CFG: dict[str, Any] = {
    "embed_dim": 192,
    "vision_cfg": {"image_size": TILE, "layers": 6, "width": 128, "head_width": 32, "patch_size": 4},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 4},
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the training depends on, besides the data and the machine's speed."""

    minutes: float = 95.0
    seed: int = 0
    threads: int = 1
    batch: int = 384
    words_per_step: int = 128
    held_out_per_class: int = 20
    matrix_learning_rate: float = 3e-3
    other_learning_rate: float = 2e-3
    weight_decay: float = 0.1
    warmup: float = 0.02  # of the minutes
    dropped_tokens: float = 0.5  # share of patches not looked at, until ...
    all_tokens_from: float = 0.75  # ... this share of the minutes
    word_weight: float = 0.4  # of the loss over words beside the loss over class names
    mimetic: bool = True
    ema_decay: float = 0.998
    checkpoint_minutes: float = 4.0


class TokenDropout(nn.Module):
    """Keep the class token and a random share of the patches of each image; stands in for `patch_dropout`."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator
        self.share = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """(n, 1 + patches, width) to (n, 1 + kept, width)."""
        if self.share == 0:
            return x
        patches = x.shape[1] - 1
        order = torch.rand(len(x), patches, generator=self.generator).argsort(1)
        kept = 1 + order[:, : patches - int(patches * self.share)]
        kept = torch.cat((torch.zeros_like(kept[:, :1]), kept), dim=1)
        return x.gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))


def caption_loss(
    model: open_clip.CLIP, images: Tensor, labels: Tensor, words: Tensor, captions: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each image against the captions of all classes, and against those of all words.

    Args:
        model: The CLIP.
        images: (n, 3, 32, 32), normalized.
        labels: (n,) class numbers.
        words: (n, words), the share of each word in the image's description; rows sum to one on average.
        captions: (classes + words, tokens).
    """
    text = F.normalize(encode_text(model, captions), dim=-1)
    logits = (model.logit_scale.exp() * model.encode_image(images, normalize=True) @ text.T).float()
    classes = len(captions) - words.shape[1]
    return F.cross_entropy(logits[:, :classes], labels), F.cross_entropy(logits[:, classes:], words)


def mimic_trained_attention(model: open_clip.CLIP, generator: torch.Generator) -> None:
    """Start the image tower's attention as that of trained transformers looks: local, and passing values on.

    Source: A. Trockman and J. Z. Kolter, Mimetic Initialization of Self-Attention Layers, arXiv:2305.09828.
    """
    visual = model.visual
    width = visual.conv1.out_channels
    with torch.no_grad():
        visual.positional_embedding[1:] = _sinusoids(visual.grid_size[0], width)
        for block in visual.transformer.resblocks:
            attention = block.attn
            head = width // attention.num_heads
            query, key, value = attention.in_proj_weight.chunk(3)  # (width, width) each, views
            for rows in torch.arange(width).chunk(attention.num_heads):
                u, s, v = torch.linalg.svd(0.7 * _noise(width, generator) + 0.7 * torch.eye(width))
                query[rows] = (u[:, :head] * s[:head].sqrt()).T
                key[rows] = (v.T[:, :head] * s[:head].sqrt()).T
            u, s, v = torch.linalg.svd(0.4 * _noise(width, generator) - 0.4 * torch.eye(width))
            value.copy_(s.sqrt()[:, None] * v)
            attention.out_proj.weight.copy_(u * s.sqrt())


def _noise(width: int, generator: torch.Generator) -> Tensor:
    return torch.randn(width, width, generator=generator) / math.sqrt(width)


def _sinusoids(side: int, width: int) -> Tensor:
    frequency = 10000 ** (-torch.arange(width // 4) / (width // 4))
    angle = torch.arange(side)[:, None] * frequency
    wave = torch.cat((angle.sin(), angle.cos()), dim=1)  # (side, width / 2)
    rows, columns = wave[:, None].expand(-1, side, -1), wave[None].expand(side, -1, -1)
    return torch.cat((rows, columns), dim=2).flatten(0, 1)


def new_model(captions: Captions, settings: Training) -> open_clip.CLIP:
    """The CLIP of ``MODEL_CFG`` with a token table for the tokens in use only."""
    text = {**MODEL_CFG["text_cfg"], "vocab_size": len(captions.used_tokens)}
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)  # open_clip's initialization takes no generator
        model = open_clip.CLIP(**{**MODEL_CFG, "text_cfg": text})
    if settings.mimetic:
        mimic_trained_attention(model, torch.Generator().manual_seed(settings.seed))
    return model


class Run:
    """A training under way: the model, its moving average, the optimizers, and the minutes used."""

    def __init__(self, photos: Photos, settings: Training) -> None:
        self.photos, self.settings = photos, settings
        self.captions = build_captions(photos.classes)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.model = new_model(self.captions, settings)
        new = 1 - settings.ema_decay
        self.average = AveragedModel(self.model, avg_fn=lambda old, now, _: torch.lerp(old, now, new))
        self.tokens = TokenDropout(self.generator)
        self.model.visual.patch_dropout = self.tokens
        self.optimizers = muon_and_adamw(
            self.model,
            matrix_lr=settings.matrix_learning_rate,
            other_lr=settings.other_learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.minutes, self.steps = 0.0, 0

    @property
    def progress(self) -> float:
        return min(1.0, self.minutes / self.settings.minutes)

    def step(self) -> dict[str, float]:
        """One update; returns its losses."""
        settings, started = self.settings, time.monotonic()
        self.tokens.share = settings.dropped_tokens if self.progress < settings.all_tokens_from else 0.0
        rows = torch.randint(0, len(self.photos.train_images), (settings.batch,), generator=self.generator)
        labels = self.photos.train_labels[rows]
        images = augment(self.photos.train_images[rows], self.generator)
        captions, drawn = self.captions.draw(settings.words_per_step, self.generator)
        words = self.captions.word_target[labels][:, drawn]
        # The math kernel is several times as fast as the flash kernel on sequences this short.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            by_name, by_word = caption_loss(self.model, images, labels, words / words.sum(1).mean(), captions)
        torch.autograd.backward(by_name + settings.word_weight * by_word)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(self.progress, settings.warmup)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(100))
        self.average.update_parameters(self.model)
        self.steps += 1
        self.minutes += (time.monotonic() - started) / 60
        return {"by_name": by_name.item(), "by_word": by_word.item()}

    def save(self, path: Path) -> None:
        """Write all that ``load`` needs, atomically."""
        state = {
            "settings": asdict(self.settings),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
            "minutes": self.minutes,
            "steps": self.steps,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        atomic_write(path, buffer.getvalue(), force=True)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            UsageError: The checkpoint was made with other settings.
        """
        state = torch.load(path, weights_only=True)
        if state["settings"] != asdict(self.settings):
            raise UsageError(f"{path} was made with other settings: give the same options, or delete it")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.generator.set_state(state["generator"])
        self.minutes, self.steps = state["minutes"], state["steps"]


def schedule(progress: float, warmup: float) -> float:
    """Linear up to 1, then linear down to 0."""
    return min((progress + 1e-3) / warmup, (1 - progress) / (1 - warmup))


def full_model(run: Run) -> open_clip.CLIP:
    """The averaged model with open_clip's whole token table; rows of unused tokens are zero."""
    state = run.average.module.state_dict()
    table = torch.zeros(MODEL_CFG["text_cfg"]["vocab_size"], MODEL_CFG["text_cfg"]["width"])
    table[run.captions.used_tokens] = state["token_embedding.weight"]
    model = open_clip.CLIP(**MODEL_CFG)
    model.load_state_dict({**state, "token_embedding.weight": table})
    return model.eval()


@torch.no_grad()
def zero_shot(model: open_clip.CLIP, images: Tensor, labels: Tensor, names: list[str]) -> dict[str, float]:
    """Top-1 and top-5 in percent of (n, 3, 32, 32) uint8 images."""
    tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)
    prompts = [template.format(Thing(name)) for name in names for template in EVALUATION_TEMPLATES]
    text = model.encode_text(tokenizer(prompts), normalize=True).unflatten(0, (len(names), -1)).mean(1)
    views = normalize(images.float() / 255).chunk(8)
    logits = torch.cat([model.encode_image(part, normalize=True) for part in views]) @ F.normalize(text).T
    hits = logits.topk(min(5, len(names))).indices == labels[:, None]
    top1, top5 = hits[:, 0].double().mean().item(), hits.any(1).double().mean().item()
    return {"top1": round(100 * top1, 2), "top5": round(100 * top5, 2), "n": len(labels)}


def measure(run: Run, cifar: Path | None) -> dict[str, dict[str, float]]:
    """Zero-shot accuracy on held-out photographs of the classes learned, and on CIFAR-100."""
    model, photos = full_model(run), run.photos
    names = [entry.names[0] for entry in photos.classes]
    measured = {"held_out": zero_shot(model, photos.held_out_images, photos.held_out_labels, names)}
    if cifar is not None:
        with np.load(cifar) as data:
            images = torch.from_numpy(data["images"]).permute(0, 3, 1, 2)
            labels = torch.from_numpy(data["labels"].astype(np.int64))
            names = [str(name).replace("_", " ") for name in data["class_names"]]
        measured["cifar100"] = zero_shot(model, images, labels, names)
    return measured


def main() -> int:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="contact sheets and classes.tsv")
    parser.add_argument("--cifar", type=Path, help=".npz of images, labels, class_names, to measure only")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    parser.add_argument("--checkpoint", type=Path, required=True, help="file to go on from and to write to")
    parser.add_argument("--minutes", type=float, default=Training.minutes)
    parser.add_argument("--threads", type=int, default=Training.threads)
    parser.add_argument("--seed", type=int, default=Training.seed)
    parser.add_argument("--force", action="store_true", help="replace a model that exists")
    arguments = parser.parse_args()
    settings = Training(minutes=arguments.minutes, threads=arguments.threads, seed=arguments.seed)
    torch.set_num_threads(settings.threads)
    require_writable(arguments.output / WEIGHTS_NAME, force=arguments.force)
    run = Run(read_photos(arguments.data, held_out_per_class=settings.held_out_per_class), settings)
    if arguments.checkpoint.exists():
        run.load(arguments.checkpoint)
    train(run, arguments.checkpoint)
    ship(run, arguments)
    return 0


def train(run: Run, checkpoint: Path) -> None:
    """Step until the minutes are used up."""
    saved = run.minutes
    while run.progress < 1:
        losses = run.step()
        if run.steps % 100 == 0:
            line = {"step": run.steps, "minutes": round(run.minutes, 2), **losses}
            print(json.dumps(line), file=sys.stderr, flush=True)
        if run.minutes - saved > run.settings.checkpoint_minutes:
            run.save(checkpoint)
            saved = run.minutes
    run.save(checkpoint)


def ship(run: Run, arguments: argparse.Namespace) -> None:
    """Write the averaged model as a ``local-dir:`` with its figures."""
    provenance = {
        "trained_by": "tools/train_photo_clip.py",
        "data": "200 classes of Tiny ImageNet at 32 x 32",
        "training": asdict(run.settings),
        "steps": run.steps,
        "images_seen": run.steps * run.settings.batch,
        "minutes": round(run.minutes, 1),
        "measured": measure(run, arguments.cifar),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "open_clip": open_clip.__version__,
        },
    }
    config = {
        "model_cfg": MODEL_CFG,
        "preprocess_cfg": PREPROCESS_CFG,
        "license": "research-only (learned from ImageNet photographs: non-commercial research)",
        "provenance": provenance,
    }
    model, used = full_model(run), run.captions.used_tokens
    packed = write_local_dir(model, arguments.output, config=config, used_tokens=used, force=arguments.force)
    print(json.dumps({**provenance, "packed_bytes": packed}))


if __name__ == "__main__":
    sys.exit(main())
