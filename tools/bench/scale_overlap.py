"""Whether decoding and encoding overlap, for `scale.py`: each alone and both as a run does them, round by round."""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import numpy as np
from PIL import Image

from p4q_edge.runtime.statistics import paired_ratio

PAUSE_S = 0.004
"""Of decoding an image, and of encoding one."""


def overlap(task: dict[str, Any]) -> dict[str, Any]:
    """Measure with the images of a recipe, as many of them as the task says."""
    from p4q_edge.recipe import read_recipe
    from p4q_edge.stages import open_source

    source = open_source(read_recipe(task["recipe"]))
    images = source.split.train
    images = images.subset(np.linspace(0, len(images) - 1, min(len(images), task["images"])).round().astype(int))
    stream = source.stream(images)
    return _overlapped(source.model.clip.visual, source.model.preprocess, stream, repeats=task["repeats"])


def pauses(task: dict[str, Any]) -> dict[str, Any]:
    """Measure with a decoder and an encoder that pause instead of computing."""
    import torch
    from torch import nn

    from p4q_edge.data import ImageStream
    from p4q_edge.runtime.images import ImageSet, PreprocessSpec

    def decode(number: int) -> Image.Image:
        time.sleep(PAUSE_S)
        return Image.new("RGB", (32, 32))

    class Encoder(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            time.sleep(PAUSE_S * len(images))
            return images.new_zeros(len(images), 8)

    count = task["images"]
    images = ImageSet(
        names=tuple(f"paused {number}" for number in range(count)),
        labels=np.zeros(count, dtype=np.int64),
        class_names=("paused",),
        open_image=decode,
        read_bytes=lambda number: b"",
    )
    spec = PreprocessSpec(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return _overlapped(Encoder(), spec, ImageStream(images=images, spec=spec, workers=1), repeats=task["repeats"])


def _overlapped(encoder: Any, spec: Any, stream: Any, *, repeats: int) -> dict[str, Any]:
    from p4q_edge.models import BATCH_SIZE
    from p4q_edge.stages import image_features

    held = stream[0 : len(stream)]
    runs = {
        "decode": lambda: [None for _ in stream.split(BATCH_SIZE)],
        "encode": lambda: image_features(encoder, held, spec),
        "both": lambda: image_features(encoder, stream, spec),
    }
    runs["decode"]()  # the first loads what all use
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            begin, spent = time.perf_counter(), sum(os.times()[:4])
            run()
            seconds[name].append(time.perf_counter() - begin)
            processor[name].append(sum(os.times()[:4]) - spent)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    slower, both = np.maximum(seconds["decode"], seconds["encode"]), np.array(seconds["both"])
    share = paired_ratio(slower, both, generator=np.random.default_rng(0))
    return {
        "n": len(stream),
        "seconds": medians,
        "every": seconds,
        "every_processor": processor,
        "load": os.getloadavg()[0],
        "share_of_the_slower_alone": share.value,
        "interval": [share.low, share.high],
    }
