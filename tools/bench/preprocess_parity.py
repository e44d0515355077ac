"""How far the fast ways to preprocess are from the exact one: pixels, feature cosine, best class, time.

The exact way is bit-equal to open_clip's transform (tests/parity). Photographs are those that scikit-learn and
matplotlib ship, cut and scaled to many sizes, greyscale, tiny and panorama among them, saved as JPEG.

Run: python tools/bench/preprocess_parity.py out.onnx --output results.json
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
from asked import tells_errors
from matplotlib.cbook import get_sample_data
from PIL import Image
from sklearn.datasets import load_sample_image

from p4q_edge.runtime.artifacts import read_card
from p4q_edge.runtime.choices import Fast
from p4q_edge.runtime.engines import load_engine
from p4q_edge.runtime.images import PreprocessSpec, draft_size, load_image, preprocess
from p4q_edge.runtime.statistics import Rounds, measure_interleaved, paired_ratio
from p4q_edge.runtime.storage import atomic_write
from p4q_edge.runtime.verification import row_cosine

SIZES = {
    "640 x 427": (640, 427),
    "1920 x 1280": (1920, 1280),
    "3000 x 2000": (3000, 2000),
    "500 x 500": (500, 500),
    "300 x 225": (300, 225),
    "tiny 24 x 24": (24, 24),
    "panorama 2400 x 300": (2400, 300),
    "greyscale 1024 x 768": (1024, 768),
}


@tells_errors
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", type=Path)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    card = read_card(args.engine)
    engine = load_engine(args.engine, card, threads=1)
    names = ("exact", *get_args(Fast))
    rows: dict[str, Any] = {}
    for size, photos in pictures().items():
        pixels = {name: np.stack([prepared(data, card.preprocess, name) for data in photos]) for name in names}
        outputs = {name: engine.run(batch, ("features", "logits")) for name, batch in pixels.items()}
        times = measure_interleaved(
            {name: lambda name=name, photo=photos[0]: prepared(photo, card.preprocess, name) for name in names},
            Rounds(warmup=2, minimum=20, maximum=20),
        )
        rows[size] = {
            name: {
                "n": len(photos),
                "pixel_difference_mean": float(np.abs(pixels[name].astype(int) - pixels["exact"]).mean()),
                "pixel_difference_max": int(np.abs(pixels[name].astype(int) - pixels["exact"]).max()),
                "feature_cosine_min": float(row_cosine(outputs[name]["features"], outputs["exact"]["features"]).min()),
                "top1_agreement": float(
                    (outputs[name]["logits"].argmax(1) == outputs["exact"]["logits"].argmax(1)).mean()
                ),
                "speedup": paired_ratio(times["exact"], times[name], generator=np.random.default_rng(0)).value,
            }
            for name in get_args(Fast)
        }
    text = json.dumps({"schema_version": 1, "engine_sha256": card.engine_sha256, "rows": rows}, indent=2)
    if args.output:
        atomic_write(args.output, text.encode() + b"\n", force=True)
    for size, row in rows.items():
        for name, values in row.items():
            print(f"{size:22} {name:13}", *(f"{key} {value:.6g}" for key, value in values.items()))
    return 0


def prepared(data: bytes, spec: PreprocessSpec, name: str) -> np.ndarray:
    """Return one image (3, H, W) uint8, preprocessed the exact way or a fast one."""
    fast = None if name == "exact" else name
    image = load_image(data, draft=draft_size(spec) if fast == "draft" else None)
    return preprocess(image, spec, fast=fast)  # type: ignore[arg-type]


def pictures() -> dict[str, list[bytes]]:
    """Return JPEG files by size: three photographs, each whole and cut in two ways."""
    with get_sample_data("grace_hopper.jpg") as stream:
        portrait = Image.open(stream).convert("RGB")
    originals = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")] + [portrait]
    cuts = [
        image.crop(box)
        for image in originals
        for box in (
            (0, 0, image.width, image.height),
            (image.width // 4, 0, image.width, image.height * 3 // 4),
            (0, image.height // 4, image.width * 3 // 4, image.height),
        )
    ]
    files: dict[str, list[bytes]] = {}
    for name, size in SIZES.items():
        files[name] = []
        for cut in cuts:
            image = cut.resize(size, Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            (image.convert("L") if name.startswith("greyscale") else image).save(buffer, "JPEG", quality=90)
            files[name].append(buffer.getvalue())
    return files


if __name__ == "__main__":
    sys.exit(main())
