"""Captions, cards of another backend, run folders, manifests with recipes and what the Hub says: changed, and read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import mutator
from fuzz_data import images

if TYPE_CHECKING:
    from p4q_edge.runtime.artifacts import Card

_RECIPE = (
    '[model]\nname = "ViT-B-32"\npretrained = "openai"\n[data]\ntrain = "photos"\nshots = 8\n[learn]\nsteps = 40\n'
)
_COMMIT = "0123456789abcdef0123456789abcdef01234567"


def captions_seeds() -> list[bytes]:
    """Tables of images and what is said of them."""
    return [
        b"path,caption\nimage.png,a cat\nimage.png,a small cat\nother.png,a dog\n",
        b'\xef\xbb\xbftitle,more,filepath\r\n"two, words",1,other.png\r\n',
        "image,text\nimage.png,é “quoted”\n".encode(),
    ]


def use_captions(data: bytes, folder: Path) -> None:
    """Read a table, take some of its images, and open these."""
    from p4q_edge.data import read_captions

    for name in ("image.png", "other.png"):
        if not (folder / name).exists():
            (folder / name).write_bytes(images()[0])
    table = folder / "pairs.csv"
    table.write_bytes(data)
    found = read_captions(table)
    some = found.of_images(range(min(2, len(found.images))))
    if len(some.texts) != len(some.image_of) or (len(some.image_of) and max(some.image_of) >= len(some.images)):
        raise AssertionError("captions are of images that are not there")
    for index in range(len(some.images)):
        some.images.open_image(index).load()


@cache
def rtx_seeds() -> tuple[bytes, ...]:
    """The card of the tiny engine, as if TensorRT for RTX had built it."""
    import tempfile

    import msgspec
    from fuzz_targets import TINY

    from p4q_edge.runtime.artifacts import RtxBuild, RtxMachine, RtxOptions, card_path, read_card, write_card
    from p4q_edge.runtime.artifacts.builds import PlanInspection
    from p4q_edge.runtime.builders import build_engine

    with tempfile.TemporaryDirectory() as name:
        engine = Path(name) / "out.onnx"
        build_engine(TINY, engine)
        made = RtxMachine(
            tensorrt_rtx="1.7.1.116",
            platform="linux-x86_64",
            compute_capability="8.0+",
            precision="int8",
            batches="1,1,8",
            optimization_level="3",
        )
        inspection = PlanInspection(dialect="11", detailed=True, kernels=1)
        build = RtxBuild(built_with=made, options=RtxOptions(), inspection=inspection)
        write_card(engine, msgspec.structs.replace(read_card(engine), build=build, parts=()), force=True)
        return (card_path(engine).read_bytes(),)


def card_beside(engine: Path, data: bytes) -> Card:
    """Read the card as every command does before the engine is loaded."""
    from p4q_edge.runtime.artifacts import card_path, read_card

    engine.write_bytes(b"engine")
    card_path(engine).write_bytes(data)
    card = read_card(engine)
    card.golden_samples()
    return card


def use_rtx(data: bytes, folder: Path) -> None:
    """Read the card, and write it again."""
    from p4q_edge.runtime.artifacts import write_card

    engine = folder / "out.rtx"
    write_card(engine, card_beside(engine, data), force=True)


def run_seeds() -> list[bytes]:
    """Files of a run folder, each behind the line of its name."""
    import p4q_edge.evaluation.torch_reference  # noqa: F401  # here, so that the first input is not charged for torch

    record = {"key": "0" * 64, "sha256": {"run.p4q": hashlib.sha256(b"bundle").hexdigest()}, "asked": ""}
    curve = [
        {"epoch": 1, "loss": 1.5, "rates": {"adapter": 0.001}, "held_out_top1": 0.5},
        {"epoch": 2, "loss": 1.25, "rates": {}},
    ]
    row = {"name": "zero-shot", "top1_per_seed": [0.5], "mean": 0.5, "low": 0.4, "high": 0.6, "n": 10, "std": None}
    baselines = [row | {"precision": "FP32"}]
    texts = {
        "bundle.json": json.dumps(record),
        "curve.json": json.dumps(curve),
        "baselines.json": json.dumps(baselines),
        "recipe.toml": _RECIPE,
    }
    return [f"{name}\n{text}".encode() for name, text in texts.items()]


def edit_run(data: bytes, generator: random.Random) -> bytes:
    """Change the file in its own form."""
    name, _, text = data.partition(b"\n")
    form = mutator.edit_text if name.endswith(b".toml") else mutator.edit_json
    edit = form if generator.random() < 0.8 else mutator.edit_bytes
    return name + b"\n" + edit(text, generator)


def use_run(data: bytes, folder: Path) -> None:
    """Read one file of a run folder as the next run, or a validation, does."""
    from p4q_edge.evaluation.torch_reference import read_baselines
    from p4q_edge.recipe import run_recipe_of, to_toml
    from p4q_edge.runtime.storage import is_outdated, is_unchanged
    from p4q_edge.stages import RunFiles, read_curve

    line, _, text = data.partition(b"\n")
    files, bundle = RunFiles(folder=folder), folder / "run.p4q"
    readers = {
        b"bundle.json": lambda: (
            is_unchanged(files.bundle_record, "0" * 64, [bundle]),
            is_outdated(files.bundle_record, [bundle]),
        ),
        b"curve.json": lambda: read_curve(files),
        b"baselines.json": lambda: read_baselines(folder),
        b"recipe.toml": lambda: to_toml(run_recipe_of(folder)),
    }
    name = line if line in readers else b"bundle.json"
    bundle.write_bytes(b"bundle")
    (folder / name.decode()).write_bytes(text)
    readers[name]()


@cache
def manifest_seeds() -> tuple[bytes, ...]:
    """Manifests of the tiny bundle: its own, and one with every kind of key that recipes have."""
    from fuzz_targets import tiny_members

    from p4q_edge.recipe import demo_recipe, to_document
    from p4q_edge.runtime.storage import encode_json

    own = tiny_members()["manifest.json"]
    document = json.loads(own)
    document["recipe"] = json.loads(encode_json(to_document(demo_recipe())))
    return own, json.dumps(document).encode()


def edit_manifest(data: bytes, generator: random.Random) -> bytes:
    """Change the recipe, or anything else, and seal the manifest again."""
    from p4q_edge.runtime.storage import sealed

    document = json.loads(data)
    document.pop(sealed.SEAL, None)
    if generator.random() < 0.7 and isinstance(document.get("recipe"), dict):
        document["recipe"] = mutator.edit_document(document["recipe"], generator)
    else:
        document = mutator.edit_document(document, generator)
    with contextlib.suppress(Exception):  # numbers that the writer itself cannot write, or no document any more
        document[sealed.SEAL] = sealed._digest(document)
    return json.dumps(document).encode("utf-8", "surrogatepass")


def use_manifest(data: bytes, folder: Path) -> None:
    """Open the bundle, and tell of it as `inspect --json` and the model card on the Hub do."""
    from fuzz_targets import tiny_members

    from p4q_edge.runtime.artifacts import read_bundle
    from p4q_edge.runtime.hub import card_text, parse_address
    from p4q_edge.runtime.storage import encode_json

    path = folder / "model.p4q"
    path.write_bytes(mutator.write_zip({**tiny_members(), "manifest.json": data}))
    bundle = read_bundle(path)
    encode_json(bundle.manifest)
    card_text(bundle, parse_address("hf:ann/cups"))


def hub_seeds() -> list[bytes]:
    """An address, and what the Hub says of the repository, each on a line."""
    from fuzz_targets import TINY

    data = TINY.read_bytes()
    lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    sibling = {"rfilename": "cups.p4q", "size": len(data), "blobId": "0" * 40, "lfs": lfs}
    signature = {"rfilename": "cups.p4q.sig", "size": 300, "blobId": "1" * 40}
    said = {
        "id": "ann/cups",
        "sha": _COMMIT,
        "private": False,
        "gated": False,
        "tags": ["a"],
        "lastModified": "2026-11-27T10:00:00.000Z",
        "siblings": [sibling, signature, {"rfilename": "README.md", "size": 3}],
        "cardData": {"license": "mit"},
    }
    return [f"{address}\n{json.dumps(said)}".encode() for address in ("hf:ann/cups", "hf:ann/cups@main/cups.p4q")]


def edit_hub(data: bytes, generator: random.Random) -> bytes:
    """Change the address or the answer."""
    address, _, said = data.partition(b"\n")
    if generator.random() < 0.3:
        return mutator.edit_text(address, generator).replace(b"\n", b" ") + b"\n" + said
    return address + b"\n" + mutator.edit_json(said, generator)


def use_hub(data: bytes, folder: Path) -> None:
    """Fetch from a Hub that says this; the file that it then gives is the tiny bundle."""
    from fuzz_targets import TINY
    from huggingface_hub.hf_api import ModelInfo

    from p4q_edge.runtime.errors import InputError
    from p4q_edge.runtime.hub import download, parse_address
    from p4q_edge.runtime.hub.library import asked_hub

    line, _, said = data.partition(b"\n")
    address = parse_address(line.decode("utf-8", "surrogateescape"))
    try:
        document = json.loads(said)
    except (ValueError, RecursionError) as error:  # what the library's own client refuses
        raise InputError("no JSON") from error

    def give(repo: str, name: str, **_: Any) -> str:
        place = folder / _COMMIT / "given.p4q"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(TINY.read_bytes())
        return str(place)

    api = SimpleNamespace(model_info=lambda *_, **__: ModelInfo(**document), hf_hub_download=give)
    own = download.hub_library
    library = SimpleNamespace(HfApi=lambda: api, constants=SimpleNamespace(HF_HUB_CACHE=str(folder)))
    download.hub_library = lambda: library  # type: ignore[assignment, return-value]
    try:
        with asked_hub(address):
            download._fetch(address)
    finally:
        download.hub_library = own
