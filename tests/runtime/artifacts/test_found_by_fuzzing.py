"""What the fuzzer found once, and must not find again."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime.artifacts import bundle as bundles
from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.artifacts.card import card_path, read_card
from p4q_edge.runtime.artifacts.head import load_head, read_head
from p4q_edge.runtime.builders.consistency import check_consistent
from p4q_edge.runtime.errors import CorruptArtifactError, InputError
from p4q_edge.runtime.images.decode import load_image
from p4q_edge.runtime.storage.files import read_bounded


def one_line(error: Exception) -> bool:
    return "\n" not in str(error)


def test_metadata_that_are_null(tiny_bundle: Path) -> None:
    data = read_bundle(tiny_bundle).read(bundles.HEAD)
    size = int.from_bytes(data[:8], "little")
    header = json.dumps({**json.loads(data[8 : 8 + size]), "__metadata__": None}).encode()
    with pytest.raises(CorruptArtifactError, match="is not a head: 'class_names'"):
        read_head(len(header).to_bytes(8, "little") + header + data[8 + size :], source="x")


@pytest.mark.parametrize("key", ["a\nb", "\x1b[2J", "x" * 100_000])
def test_unknown_keys_are_named_in_one_short_line(tiny_engine: Path, key: str) -> None:
    document = json.loads(card_path(tiny_engine).read_bytes())
    document["preprocess"][key] = 1
    document.pop("content_sha256", None)
    card_path(tiny_engine).write_text(json.dumps(document))
    with pytest.raises(CorruptArtifactError, match="is not what this version writes") as caught:
        read_card(tiny_engine)
    assert one_line(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_digest_of_two_lines(rebundle: Callable[..., Path]) -> None:
    head = read_bundle(rebundle()).head()
    object.__setattr__(head, "weights_sha256", "a\nb")
    with pytest.raises(CorruptArtifactError, match="was made for another checkpoint") as caught:
        check_consistent(read_bundle(rebundle({bundles.HEAD: head.to_bytes()})))
    assert one_line(caught.value)


@pytest.mark.parametrize("size", [(10, 2010), (2010, 10)])
def test_images_of_extreme_shape(size: tuple[int, int]) -> None:
    """Resizing the shorter side of such an image took 1.5 GB for one of 10 pixels."""
    assert load_image(Image.new("L", (10, 2000))).size == (10, 2000)
    with pytest.raises(InputError, match="one side may be at most 200 times the other. Cut out the part"):
        load_image(Image.new("L", size))
    with pytest.raises(InputError, match="one side may be at most 200 times the other"):
        load_image(np.zeros((size[1], size[0], 3), np.uint8))


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mappings on Linux only")
def test_reading_a_small_file_reserves_little(tiny_bundle: Path, tmp_path: Path) -> None:
    """The limit of a head is a gigabyte, which was reserved for each."""
    path = tmp_path / "head.safetensors"
    path.write_bytes(read_bundle(tiny_bundle).read(bundles.HEAD))
    status = Path("/proc/self/status").read_text()
    now = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData")) << 10
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (now + (256 << 20), hard))
    try:
        assert load_head(path).class_names
        assert read_bounded(path, limit_bytes=1 << 40, kind="head") == path.read_bytes()
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
