"""What is fuzzed: for each kind of file its seeds, its mutators, and what is done with it.

Seeds are made here or taken from the committed tiny bundle, so that the corpus is small and reviewed as code.
"""

from __future__ import annotations

import csv
import io
import json
import random
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mutate
import numpy as np
from mutate import Mutator

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "runtime" / "data" / "tiny.p4q"
SIDE = 8


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of input.

    Attributes:
        seeds: makes the inputs that are changed.
        mutators: ways to change them; one is drawn for each input.
        use: reads an input in a folder of its own as the product would, and does what the product does next.
        weight: share of the budget; what takes milliseconds gets less.
    """

    seeds: Callable[[], Sequence[bytes]]
    mutators: Sequence[Mutator]
    use: Callable[[bytes, Path], object]
    weight: float = 1.0


@cache
def tiny_members() -> dict[str, bytes]:
    """Return the members of the tiny bundle."""
    return mutate.read_zip(TINY.read_bytes())


def _png(mode: str = "RGB") -> bytes:
    return _image("PNG", mode)


def _image(kind: str, mode: str = "RGB") -> bytes:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 4), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels, "RGBA").convert(mode).save(stream, kind)
    return stream.getvalue()


def _images() -> list[bytes]:
    pngs = [_png(mode) for mode in ("RGB", "RGBA", "L", "P", "1", "LA")]
    return [*pngs, *(_image(kind) for kind in ("JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"))]


def _use_image(data: bytes, folder: Path) -> None:
    from p4q_edge.runtime.images import PreprocessSpec, load_image, preprocess

    path = folder / "image.png"
    path.write_bytes(data)
    spec = PreprocessSpec(size=(SIDE, SIDE), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    for source in (path, data):
        preprocess(load_image(source), spec)


def _head_seeds() -> list[bytes]:
    from p4q_edge.runtime.artifacts import Adapter, Head

    generator = np.random.default_rng(0)
    text = np.eye(3, 16, dtype=np.float32)
    weights = [generator.normal(size=shape).astype(np.float32) for shape in ((4, 16), (4,), (16, 4), (16,))]
    adapter = Adapter(
        down_weight=weights[0], down_bias=weights[1], up_weight=weights[2], up_bias=weights[3], residual_ratio=0.2
    )
    own = Head(class_names=("a", "b", "c"), text_embedding=text, logit_scale=20.0, adapter=adapter)
    return [tiny_members()["head.safetensors"], own.to_bytes()]


def _use_head(data: bytes, folder: Path) -> None:
    from p4q_edge.runtime.artifacts import load_head

    path = folder / "head.safetensors"
    path.write_bytes(data)
    head = load_head(path)
    logits, embedding = head.apply(np.ones((2, head.embedding_dim), np.float32))
    if not (np.isfinite(logits).all() and np.isfinite(embedding).all()):
        raise AssertionError("a head that was accepted gives numbers that are not finite")
    head.to_bytes()


def _use_golden(data: bytes, folder: Path) -> None:
    from p4q_edge.runtime.artifacts import read_golden

    read_golden(data, source="golden").for_cpu().to_bytes()


def _reference_seeds() -> list[bytes]:
    from p4q_edge.runtime.artifacts import RecordedResults

    own = RecordedResults(
        digest=np.zeros((4, 32), np.uint8),
        label=np.arange(4, dtype=np.int32) % 3,
        embedding=np.ones((4, 16), np.float32),
        float_embedding=np.ones((4, 16), np.float32),
    )
    return [own.to_bytes()]


def _use_reference(data: bytes, folder: Path) -> None:
    from p4q_edge.runtime.artifacts.recorded_results import read_reference

    results = read_reference(data, classes=3, dim=16, source="reference")
    results.for_cpu().known()


@cache
def _built() -> tuple[bytes, bytes]:
    """Return the tiny bundle's engine and its card."""
    import tempfile

    from p4q_edge.runtime.artifacts import card_path
    from p4q_edge.runtime.builders import build_engine

    with tempfile.TemporaryDirectory() as name:
        engine = Path(name) / "out.onnx"
        build_engine(TINY, engine)
        return engine.read_bytes(), card_path(engine).read_bytes()


def _edit_card(data: bytes, generator: random.Random) -> bytes:
    """Change values and seal the card again, so that the change reaches what comes behind the digest."""
    from p4q_edge.runtime.storage import sealed

    document = json.loads(data)
    document.pop(sealed.SEAL, None)
    document = mutate.edit_document(document, generator)
    if isinstance(document, dict) and generator.random() < 0.9:
        try:
            document[sealed.SEAL] = sealed._digest(document)
        except Exception:  # noqa: BLE001  # numbers that the writer itself cannot write
            document.pop(sealed.SEAL, None)
    return json.dumps(document).encode("utf-8", "surrogatepass")


def _use_card(data: bytes, folder: Path) -> None:
    from p4q_edge.runtime.artifacts import card_path, read_card

    engine = folder / "out.onnx"
    engine.write_bytes(b"engine")
    card_path(engine).write_bytes(data)
    card = read_card(engine)
    card.golden_samples()
    card.limits  # noqa: B018


def _member_mutators(name: str) -> Mutator:
    """Return the mutator of a bundle's member."""
    if name.endswith(".json"):
        return mutate.edit_json
    if name.endswith(".safetensors"):
        return mutate.edit_safetensors
    return mutate.edit_protobuf


def _edit_bundle(data: bytes, generator: random.Random) -> bytes:
    """Change a member and record its digest, so that the change reaches its reader."""
    import hashlib

    from p4q_edge.runtime.storage import sealed

    members = dict(tiny_members())
    name = generator.choice(list(members))
    members[name] = _member_mutators(name)(members[name], generator)
    try:
        manifest = json.loads(members["manifest.json"])
        manifest.pop(sealed.SEAL, None)
        for member, content in members.items():
            if member in manifest["members"]:
                manifest["members"][member] = {
                    "size_bytes": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
        manifest[sealed.SEAL] = sealed._digest(manifest)
        members["manifest.json"] = json.dumps(manifest).encode("utf-8", "surrogatepass")
    except Exception:  # noqa: BLE001  # the manifest itself was broken: it stays so
        pass
    return mutate.write_zip(members)


def _use_bundle(data: bytes, folder: Path) -> None:
    from p4q_edge.runtime.artifacts import read_bundle
    from p4q_edge.runtime.builders.consistency import check_consistent

    path = folder / "model.p4q"
    path.write_bytes(data)
    bundle = read_bundle(path)
    check_consistent(bundle)
    bundle.reference()
    bundle.model("fp16")
    bundle.model("fp32")


def _onnx_seeds() -> list[bytes]:
    members = tiny_members()
    return [members["graph.fp32.onnx"] + members["weights.onnx"], members["graph.fp16.onnx"] + members["weights.onnx"]]


def _use_onnx(data: bytes, folder: Path) -> None:
    """As `build` does in its child process: what the graph may hold, then ONNX Runtime."""
    from p4q_edge.runtime.artifacts import check_exported, read_golden
    from p4q_edge.runtime.builders.onnxruntime import prove
    from p4q_edge.runtime.errors import CorruptArtifactError

    check_exported(data, name="graph")
    golden = read_golden(tiny_members()["golden.safetensors"], source="golden")
    try:
        prove({"exact": data}, golden, threads=1, name="graph")
    except MemoryError as error:  # as the worker reports it
        raise CorruptArtifactError("too much memory") from error


def _npz_seeds() -> list[bytes]:
    seeds = []
    for images in (np.zeros((3, 6, 5, 3), np.uint8), np.zeros((3, 6, 5), np.uint8)):
        for save in (np.savez, np.savez_compressed):
            stream = io.BytesIO()
            save(stream, images=images, labels=np.array([0, 1, 0]), class_names=np.array(["a", "b"]))
            seeds.append(stream.getvalue())
    return seeds


def _edit_npz(data: bytes, generator: random.Random) -> bytes:
    return mutate.edit_zip(data, generator, lambda _: _edit_npy)


def _edit_npy(data: bytes, generator: random.Random) -> bytes:
    """Change what the header of an array says of its type and shape."""
    if generator.random() < 0.3 or not data.startswith(b"\x93NUMPY"):
        return mutate.edit_bytes(data, generator)
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


def _use_images_of(name: str) -> Callable[[bytes, Path], None]:
    def use(data: bytes, folder: Path) -> None:
        from p4q_edge.data import read_images

        path = folder / name
        path.write_bytes(data)
        images = read_images(str(path))
        images.digests()
        for index in range(min(2, len(images))):
            images.open_image(index).load()

    return use


def _tar_seeds() -> list[bytes]:
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


def _csv_seeds() -> list[bytes]:
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerows([("path", "label", "more"), ("image.png", "cat", "1"), ("other.png", "dog, big", '"')])
    return [
        stream.getvalue().encode(),
        b"image.png,cat\nother.png,dog\n",
        b"\xef\xbb\xbflabel,path\r\ncat,image.png\r\n",
    ]


def _use_csv(data: bytes, folder: Path) -> None:
    for name in ("image.png", "other.png"):
        if not (folder / name).exists():
            (folder / name).write_bytes(_png())
    _use_images_of("table.csv")(data, folder)


def _toml_seeds() -> list[bytes]:
    from p4q_edge.recipe import demo_recipe, to_toml

    return [to_toml(demo_recipe()).encode(), b'seed = 3\n[data]\ntrain = "x"\nclass_names = ["a", "b"]\nshots = 4\n']


def _use_toml(data: bytes, folder: Path) -> None:
    from p4q_edge.recipe import read_recipe, to_toml

    path = folder / "recipe.toml"
    path.write_bytes(data)
    to_toml(read_recipe(path))


def _use_words(data: bytes, folder: Path) -> None:
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
def _weights() -> dict[str, bytes]:
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


def _edit_checkpoint(data: bytes, generator: random.Random) -> bytes:
    if data.startswith(b"PK"):
        return mutate.edit_zip(data, generator, lambda _: mutate.edit_bytes)
    if data[8:9] == b"{":
        return mutate.edit_safetensors(data, generator)
    return mutate.edit_bytes(data, generator)


def _use_checkpoint(data: bytes, folder: Path) -> None:
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


def _config_seeds() -> list[bytes]:
    import open_clip

    named = ("ViT-B-32", "RN50", "ViT-B-16-SigLIP", "coca_ViT-B-32", "convnext_base", "MobileCLIP-S1")
    found = [{"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": PREPROCESS} for name in named]
    return [json.dumps(document).encode() for document in (config_document(), *found)]


def _use_config(data: bytes, folder: Path) -> None:
    from p4q_edge.models.load import preprocess_spec
    from p4q_edge.models.untrusted_config import checked_config

    (folder / "open_clip_config.json").write_bytes(data)
    (folder / "open_clip_model.safetensors").touch()
    document = checked_config(f"local-dir:{folder}")
    preprocess_spec(document.get("preprocess_cfg") or {})


@cache
def _model_weights() -> bytes:
    import open_clip
    import torch
    from safetensors.torch import save

    torch.manual_seed(0)
    return save(open_clip.CLIP(32, VISION, TEXT).state_dict())


def _use_model(data: bytes, folder: Path) -> None:
    """Load a whole model by its configuration."""
    from p4q_edge.models import load_model

    weights = folder / "open_clip_model.safetensors"
    if not weights.exists() or weights.stat().st_size == 0:
        weights.write_bytes(_model_weights())
    (folder / "open_clip_config.json").write_bytes(data)
    load_model(f"local-dir:{folder}")


def _report_seeds() -> list[bytes]:
    return [(Path(__file__).parent / "corpus" / "report.json").read_bytes()]


def _use_report(data: bytes, folder: Path) -> None:
    from p4q_edge.runtime.evaluation.report import read_report, render_markdown

    path = folder / "report.json"
    path.write_bytes(data)
    render_markdown(read_report(path))


def _both(*mutators: Mutator) -> tuple[Mutator, ...]:
    return (mutate.edit_bytes, *mutators)


TARGETS: dict[str, Target] = {
    "card": Target(seeds=lambda: [_built()[1]], mutators=(mutate.edit_bytes, _edit_card, _edit_card), use=_use_card),
    "head": Target(seeds=_head_seeds, mutators=_both(mutate.edit_safetensors), use=_use_head),
    "golden": Target(
        seeds=lambda: [tiny_members()["golden.safetensors"]], mutators=_both(mutate.edit_safetensors), use=_use_golden
    ),
    "reference": Target(seeds=_reference_seeds, mutators=_both(mutate.edit_safetensors), use=_use_reference),
    "bundle": Target(
        seeds=lambda: [TINY.read_bytes()],
        mutators=_both(_edit_bundle, _edit_bundle, _edit_bundle),
        use=_use_bundle,
        weight=0.5,
    ),
    "onnx": Target(
        seeds=_onnx_seeds, mutators=_both(mutate.edit_protobuf, mutate.edit_protobuf), use=_use_onnx, weight=0.3
    ),
    "image": Target(seeds=_images, mutators=_both(mutate.edit_png), use=_use_image),
    "npz": Target(seeds=_npz_seeds, mutators=_both(_edit_npz, _edit_npz), use=_use_images_of("images.npz"), weight=0.5),
    "tar": Target(seeds=_tar_seeds, mutators=_both(mutate.edit_tar), use=_use_images_of("images.tar"), weight=0.5),
    "csv": Target(seeds=_csv_seeds, mutators=_both(mutate.edit_text), use=_use_csv),
    "toml": Target(seeds=_toml_seeds, mutators=_both(mutate.edit_text), use=_use_toml),
    "words": Target(
        seeds=lambda: [b"cat\ndog\n# not\n", b'["cat", "dog"]', b'{"cat": ["a cat"], "dog": ["a dog", "dogs"]}'],
        mutators=_both(mutate.edit_text),
        use=_use_words,
    ),
    "checkpoint": Target(
        seeds=lambda: list(_weights().values()), mutators=_both(_edit_checkpoint), use=_use_checkpoint, weight=0.5
    ),
    "config": Target(seeds=_config_seeds, mutators=_both(mutate.edit_json, mutate.edit_json), use=_use_config),
    "model": Target(
        seeds=lambda: [json.dumps(config_document()).encode()],
        mutators=(mutate.edit_json,),
        use=_use_model,
        weight=0.01,
    ),
    "report": Target(
        seeds=_report_seeds, mutators=_both(mutate.edit_json, mutate.edit_json), use=_use_report, weight=0.2
    ),
}
