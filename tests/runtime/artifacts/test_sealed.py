"""A card or bundle is what was written: any later change of what decides answers is found when it is read."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.artifacts.bundle import MANIFEST, read_bundle
from p4q_edge.runtime.artifacts.card import card_path, read_card, write_card
from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.storage import decode_sealed, encode_sealed

CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "class names reversed": lambda document: document["class_names"].reverse(),
    "a name": lambda document: document["class_names"].__setitem__(0, "other"),
    "width": lambda document: document.update(embedding_dim=17),
    "what made it": lambda document: document["model"].update(license="MIT"),
}
CARD_CHANGES = CHANGES | {
    "threshold": lambda card: card["calibration"].update(threshold=0.9),
    "temperature": lambda card: card["calibration"].update(temperature=2.0),
    "scale": lambda card: card.update(logit_scale=3.0),
    "mean": lambda card: card["preprocess"].update(mean=[0.0, 0.0, 0.0]),
    "resize": lambda card: card["preprocess"].update(resize_mode="squash"),
    "bits": lambda card: card.update(rounding_bits=2),
    "parts": lambda card: card.update(parts=[]),
    "options": lambda card: card["build"]["options"].update(kept_profile="fast"),
}


@pytest.mark.parametrize("change", CARD_CHANGES.values(), ids=CARD_CHANGES)
def test_a_changed_card_is_refused(tiny_engine: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(card_path(tiny_engine).read_text())
    change(document)
    card_path(tiny_engine).write_text(json.dumps(document))
    with pytest.raises(CorruptArtifactError, match=r"was changed after it was written: its content has another digest"):
        read_card(tiny_engine)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_bundle_is_refused(
    rebundle: Callable[..., Path], change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    with zipfile.ZipFile(rebundle()) as source, zipfile.ZipFile(tmp_path / "evil.p4q", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name == MANIFEST:
                document = json.loads(data)
                change(document)
                data = json.dumps(document).encode()
            target.writestr(name, data)
    with pytest.raises(CorruptArtifactError, match=r"manifest\.json of .* was changed after it was written"):
        read_bundle(tmp_path / "evil.p4q")


def test_written_as_before_without_a_digest_a_card_and_a_bundle_are_read(tiny_engine: Path, repository: Path) -> None:
    document = json.loads(card_path(tiny_engine).read_text())
    del document["content_sha256"]
    card_path(tiny_engine).write_text(json.dumps(document))
    read_card(tiny_engine)
    bundle = repository / "tests/runtime/data/schema-1/tiny.p4q"
    with zipfile.ZipFile(bundle) as archive:
        assert "content_sha256" not in json.loads(archive.read(MANIFEST)), "committed before there was one"
    read_bundle(bundle)


def test_a_card_that_is_written_again_has_the_digest_of_what_it_says_now(tiny_engine: Path) -> None:
    card = read_card(tiny_engine)
    write_card(tiny_engine, msgspec.structs.replace(card, logit_scale=3.0), force=True)
    assert read_card(tiny_engine).logit_scale == 3.0


class Example(msgspec.Struct, frozen=True, kw_only=True):
    values: dict[str, Any] = {}


finite = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53) | st.text() | st.none()


@given(st.dictionaries(st.text(), finite | st.lists(finite, max_size=3), max_size=5))
def test_whatever_is_written_is_read(values: dict[str, Any]) -> None:
    data = encode_sealed(Example(values=values))
    assert decode_sealed(data, Example, source="x").values == values
    assert encode_sealed(decode_sealed(data, Example, source="x")) == data
