"""Images, data sets, recipes, weights and configurations that are fuzzed: what is changed, and who reads it."""

from __future__ import annotations

import csv
import io
import json
import random
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mutator
import numpy as np

SIDE = 8


def _png(mode: str = "RGB") -> bytes:
    return _image("PNG", mode)


def _image(kind: str, mode: str = "RGB") -> bytes:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 4), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels, "RGBA").convert(mode).save(stream, kind)
    return stream.getvalue()


def images() -> list[bytes]:
    pngs = [_png(mode) for mode in ("RGB", "RGBA", "L", "P", "1", "LA")]
    return [*pngs, *(_image(kind) for kind in ("JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"))]


def use_image(data: bytes, folder: Path) -> None:
    from p4q_edge.runtime.images import PreprocessSpec, load_image, preprocess

    path = folder / "image.png"
    path.write_bytes(data)
    spec = PreprocessSpec(size=(SIDE, SIDE), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    for source in (path, data):
        preprocess(load_image(source), spec)


def npz_seeds() -> list[bytes]:
    seeds = []
    for images in (np.zeros((3, 6, 5, 3), np.uint8), np.zeros((3, 6, 5), np.uint8)):
        for save in (np.savez, np.savez_compressed):
            stream = io.BytesIO()
            save(stream, images=images, labels=np.array([0, 1, 0]), class_names=np.array(["a", "b"]))
            seeds.append(stream.getvalue())
    return seeds


def edit_npz(data: bytes, generator: random.Random) -> bytes:
    return mutator.edit_zip(data, generator, lambda _: _edit_npy)


def _edit_npy(data: bytes, generator: random.Random) -> bytes:
    """Change what the header of an array says of its type and shape."""
    if generator.random() < 0.3 or not data.startswith(b"\x93NUMPY"):
        return mutator.edit_bytes(data, generator)
    size = int.from_bytes(data[8:10], "little")
    header = data[10 : 10 + size].decode("latin-1")
    old, new = generator.choice(
        (
            ("'shape': (", f"'shape': ({generator.choice((-1, 0, 2**31, 2**62, 10**30, 'None', '(1,),'))}, "),
            ("'descr': '", "'descr': '" + generator.choice(("O", "V9", "|O8", "<U99999999", "M8[", "a", ">f8", "("))),
            ("False", generator.choice(("True", "None", "1", "__import__('os')"))),
            ("{", "{" * generator.choice((1, 2, 200, 3000))),
            ("'fortran_order'", "'x'"),
        )
    )
    header = header.replace(old, new, 1).encode("latin-1", "replace")[:60000]
    return data[:8] + len(header).to_bytes(2, "little") + header + data[10 + size :]


def use_images_of(name: str) -> Callable[[bytes, Path], None]:
    def use(data: bytes, folder: Path) -> None:
        from p4q_edge.data import read_images

        path = folder / name
        path.write_bytes(data)
        images = read_images(str(path))
        images.digests()
        for index in range(min(2, len(images))):
            images.open_image(index).load()

    return use


def tar_seeds() -> list[bytes]:
    seeds = []
    for form in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
            for name, content in (
                ("0/a.png", _png()),
                ("0/a.cls", b"0"),
                ("0/" + "é" * 40 + ".png", _image("JPEG")),
                ("0/" + "é" * 40 + ".cls", b"1\n"),
                ("classnames.txt", b"cat\ndog\n"),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        seeds.append(stream.getvalue())
    return seeds


def csv_seeds() -> list[bytes]:
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerows([("path", "label", "more"), ("image.png", "cat", "1"), ("other.png", "dog, big", '"')])
    return [
        stream.getvalue().encode(),
        b"image.png,cat\nother.png,dog\n",
        b"\xef\xbb\xbflabel,path\r\ncat,image.png\r\n",
    ]


def use_csv(data: bytes, folder: Path) -> None:
    for name in ("image.png", "other.png"):
        if not (folder / name).exists():
            (folder / name).write_bytes(_png())
    use_images_of("table.csv")(data, folder)


def toml_seeds() -> list[bytes]:
    from p4q_edge.recipe import demo_recipe, to_toml

    return [to_toml(demo_recipe()).encode(), b'seed = 3\n[data]\ntrain = "x"\nclass_names = ["a", "b"]\nshots = 4\n']


def use_toml(data: bytes, folder: Path) -> None:
    from p4q_edge.recipe import read_recipe, to_toml

    path = folder / "recipe.toml"
    path.write_bytes(data)
    to_toml(read_recipe(path))


def use_words(data: bytes, folder: Path) -> None:
    from p4q_edge.data import read_class_prompts, read_words
    from p4q_edge.runtime.errors import P4QEdgeError

    errors = []
    for name in ("words.txt", "words.json"):
        (folder / name).write_bytes(data)
        try:
            read_words(str(folder / name), key="data.class_names")
        except P4QEdgeError as error:
            errors.append(error)
    read_class_prompts(str(folder / "words.json"), ("cat", "dog"))


@cache
def weights() -> dict[str, bytes]:
    """Return files of weights in the forms that people have."""
    import torch
    from safetensors.torch import save
    from torch import nn

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    state = {"logit_scale": torch.tensor(1.0), **module.state_dict()}
    streams = [io.BytesIO() for _ in range(3)]
    torch.save({"state_dict": state, "epoch": 3}, streams[0])
    torch.save(state, streams[1], _use_new_zipfile_serialization=False)
    torch.jit.save(torch.jit.script(module), streams[2])
    names = ("new.pt", "old.pt", "script.pt")
    return {"a.safetensors": save(state), **{n: s.getvalue() for n, s in zip(names, streams, strict=True)}}


def edit_checkpoint(data: bytes, generator: random.Random) -> bytes:
    if data.startswith(b"PK"):
        return mutator.edit_zip(data, generator, lambda _: mutator.edit_bytes)
    if data[8:9] == b"{":
        return mutator.edit_safetensors(data, generator)
    return mutator.edit_bytes(data, generator)


def use_checkpoint(data: bytes, folder: Path) -> None:
    from p4q_edge.models.checkpoint_file import plain_checkpoint

    path = folder / ("a.safetensors" if data[8:9] == b"{" else "a.pt")
    path.write_bytes(data)
    with plain_checkpoint(str(path)) as (_, state):
        list(state)


VISION: dict[str, Any] = {"image_size": 16, "patch_size": 8, "width": 64, "layers": 1, "head_width": 16}
TEXT: dict[str, Any] = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
PREPROCESS: dict[str, Any] = {
    "size": [16, 16],
    "mode": "RGB",
    "mean": [0.48, 0.46, 0.41],
    "std": [0.27, 0.26, 0.28],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


def config_document() -> dict[str, Any]:
    """Return a whole configuration of open_clip, small."""
    model = {"embed_dim": 32, "quick_gelu": False, "vision_cfg": VISION, "text_cfg": TEXT}
    return {"model_cfg": model, "preprocess_cfg": PREPROCESS}


def config_seeds() -> list[bytes]:
    import open_clip

    named = ("ViT-B-32", "RN50", "ViT-B-16-SigLIP", "coca_ViT-B-32", "convnext_base", "MobileCLIP-S1")
    found = [{"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": PREPROCESS} for name in named]
    return [json.dumps(document).encode() for document in (config_document(), *found)]


def use_config(data: bytes, folder: Path) -> None:
    from p4q_edge.models.load import preprocess_spec
    from p4q_edge.models.untrusted_config import checked_config

    (folder / "open_clip_config.json").write_bytes(data)
    (folder / "open_clip_model.safetensors").touch()
    document = checked_config(f"local-dir:{folder}")
    preprocess_spec(document.get("preprocess_cfg") or {})


@cache
def model_weights() -> bytes:
    import open_clip
    import torch
    from safetensors.torch import save

    torch.manual_seed(0)
    return save(open_clip.CLIP(32, VISION, TEXT).state_dict())


def model_seeds() -> list[bytes]:
    import p4q_edge.models.load  # noqa: F401  # here, so that the first input is not charged for torch

    return [json.dumps(config_document()).encode()]


def use_model(data: bytes, folder: Path) -> None:
    """Load a whole model by its configuration."""
    from p4q_edge.models import load_model

    weights = folder / "open_clip_model.safetensors"
    if not weights.exists() or weights.stat().st_size == 0:
        weights.write_bytes(model_weights())
    (folder / "open_clip_config.json").write_bytes(data)
    load_model(f"local-dir:{folder}")
