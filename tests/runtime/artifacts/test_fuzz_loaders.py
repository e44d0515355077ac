"""Bytes from strangers, damaged in any way, raise documented errors and nothing else.

The budget is fixed: hypothesis draws the same examples in every run.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.artifacts.card import card_path, read_card
from p4q_edge.runtime.artifacts.golden import read_golden
from p4q_edge.runtime.artifacts.head import read_head
from p4q_edge.runtime.errors import ArtifactError, InputError
from p4q_edge.runtime.images.decode import load_image
from p4q_edge.runtime.images.preprocessing import PreprocessSpec, preprocess

FUZZ = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
SPEC = PreprocessSpec(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

edits = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "repeat", "truncate", "length"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=4,
)


def damaged(data: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    """Return `data` after edits at shares of its length."""
    for kind, share, value in changes:
        at = int(share * len(data))
        if kind == "set":
            data = data[:at] + value + data[at + len(value) :]
        elif kind == "insert":
            data = data[:at] + value + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + len(value) :]
        elif kind == "repeat":
            data = data[:at] + data[at : at + 64] * len(value) + data[at:]
        elif kind == "truncate":
            data = data[:at]
        else:
            data = data[:at] + b"\xff" * len(value) + data[at + len(value) :]
    return data


def assert_only_documented(action: Callable[[], object]) -> None:
    """Run an action; what it raises must be one of the errors of an artifact or an input, in one line."""
    try:
        action()
    except (ArtifactError, InputError) as error:
        message = str(error)
    else:
        return
    assert message
    assert "\n" not in message


def use(path: Path) -> None:
    bundle = read_bundle(path)
    bundle.head()
    bundle.golden()
    bundle.preprocess()
    bundle.model("fp32")


@FUZZ
@given(changes=edits)
def test_bundles(changes: list[tuple[str, float, bytes]], tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.p4q"
    path.write_bytes(damaged(tiny_bundle.read_bytes(), changes))
    assert_only_documented(lambda: use(path))


@FUZZ
@given(
    name=st.sampled_from(["manifest.json", "head.safetensors", "golden.safetensors", "preprocess.json"]), changes=edits
)
def test_members_of_bundles_whose_digests_fit(
    name: str, changes: list[tuple[str, float, bytes]], tiny_bundle: Path, tmp_path: Path
) -> None:
    """A stranger states the digests of what he wrote."""
    with zipfile.ZipFile(io.BytesIO(tiny_bundle.read_bytes())) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    members[name] = damaged(members[name], changes)
    if name != "manifest.json":
        manifest = msgspec.json.decode(members["manifest.json"])
        digest = hashlib.sha256(members[name]).hexdigest()
        manifest["members"][name] = {"size_bytes": len(members[name]), "sha256": digest}
        members["manifest.json"] = msgspec.json.encode(manifest)
    path = tmp_path / "a.p4q"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    assert_only_documented(lambda: use(path))


@FUZZ
@given(changes=edits)
def test_heads(changes: list[tuple[str, float, bytes]], tiny_bundle: Path) -> None:
    data = damaged(read_bundle(tiny_bundle).read("head.safetensors"), changes)
    assert_only_documented(lambda: read_head(data, source="the head"))


@FUZZ
@given(changes=edits)
def test_golden_samples(changes: list[tuple[str, float, bytes]], tiny_bundle: Path) -> None:
    data = damaged(read_bundle(tiny_bundle).read("golden.safetensors"), changes)
    assert_only_documented(lambda: read_golden(data, source="the samples"))


@FUZZ
@given(changes=edits)
def test_cards(changes: list[tuple[str, float, bytes]], tiny_engine: Path) -> None:
    path = card_path(tiny_engine)
    intact = path.read_bytes()
    path.write_bytes(damaged(intact, changes))
    assert_only_documented(lambda: read_card(tiny_engine).golden_samples())
    path.write_bytes(intact)


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8))


def files() -> list[bytes]:
    """Return one small file of each format, among them palettes, alpha, animation and 16 bits."""
    found = []
    for file_format, image, options in (
        ("JPEG", PICTURE, {}),
        ("JPEG", PICTURE, {"progressive": True}),
        ("PNG", PICTURE, {}),
        ("PNG", PICTURE.convert("P"), {}),
        ("PNG", Image.fromarray(np.arange(480, dtype=np.uint16).reshape(20, 24)), {}),
        ("WEBP", PICTURE.convert("RGBA"), {}),
        ("BMP", PICTURE, {}),
        ("GIF", PICTURE, {"save_all": True, "append_images": [PICTURE.rotate(90)]}),
        ("TIFF", PICTURE, {}),
        ("TIFF", PICTURE, {"compression": "tiff_lzw"}),
        ("PPM", PICTURE, {}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, file_format, **options)
        found.append(buffer.getvalue())
    return found


@settings(FUZZ, max_examples=1000)
@given(data=st.sampled_from(files()), changes=edits, orient=st.booleans())
@pytest.mark.filterwarnings("ignore")
def test_images(data: bytes, changes: list[tuple[str, float, bytes]], orient: bool) -> None:
    changed, spec = damaged(data, changes), msgspec.structs.replace(SPEC, orient=orient)
    assert_only_documented(lambda: preprocess(load_image(changed, draft=(16, 16)), spec))


@FUZZ
@given(data=st.binary(max_size=200))
def test_noise(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "noise"
    path.write_bytes(data)
    for action in (
        lambda: read_bundle(path),
        lambda: read_head(data, source="noise"),
        lambda: read_golden(data, source="noise"),
        lambda: load_image(data),
        lambda: load_image(path),
    ):
        assert_only_documented(action)
