"""Licences of what is installed, read from the packages' own metadata."""

from __future__ import annotations

import json
from collections.abc import Callable
from email.message import Message
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from p4q_edge.runtime.machine.licences import UNSTATED, licence_of, package_licences


def test_what_the_runtime_needs_is_listed_with_versions() -> None:
    found = {package.name.lower(): package for package in package_licences(("p4q-edge-runtime",))}
    assert {"p4q-edge-runtime", "numpy", "pillow", "safetensors", "msgspec"} <= set(found)
    assert found["numpy"].version == version("numpy")
    assert "Apache-2.0" in found["p4q-edge-runtime"].licence
    assert package_licences(("no-such-package",)) == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([("License-Expression", "MIT"), ("License", "other")], "MIT"),
        ([("Classifier", "License :: OSI Approved :: BSD License")], "BSD License"),
        ([("Classifier", "License :: OSI Approved"), ("License", "ISC\n")], "ISC"),
        ([("License", "a" * 500)], "a" * 80),
        ([("Name", "x")], UNSTATED),
    ],
)
def test_the_licence_that_metadata_states(fields: list[tuple[str, str]], expected: str) -> None:
    metadata = Message()
    for name, value in fields:
        metadata[name] = value
    assert licence_of(SimpleNamespace(metadata=metadata)) == expected  # type: ignore[arg-type]


def test_the_command(tiny_bundle: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("doctor", "--licenses", "--bundle", tiny_bundle, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["weights_licence"]
    assert document["learned_from"] is not None
    assert {package["name"].lower() for package in document["packages"]} >= {"numpy", "p4q-edge-runtime"}
    code, out, _ = run("doctor", "--licenses", "--bundle", tiny_bundle)
    assert (code, out.startswith("weights of ")) == (0, True)
    code, out, _ = run("doctor", "--licenses")
    assert code == 0
    assert f"numpy {version('numpy')}" in out


def test_without_a_bundle_no_number_of_images_is_told(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("doctor", "--licenses", "--json")
    assert (code, json.loads(out)["learned_from"]) == (0, None)
