"""Cards and manifests of schema 1 as those of schema 2, so that engines and bundles of version 0.1 stay usable."""

from __future__ import annotations

from typing import Any

import msgspec

from p4q_edge.runtime.statistics import NoiseFloor

_BUILD = ("backend", "built_with", "options", "inspection")
_IMAGES = ("noise_images", "loss_images")
_NOISE = {f"noise_{name}": name for name in NoiseFloor.__struct_fields__}
_LOSS = "median_loss"


def card_of_schema_1(document: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON values of a card of schema 1 in schema 2; what does not belong there stays as it is."""
    card = {**document, "schema_version": 2}
    build = {name: card.pop(name) for name in _BUILD if name in card}
    optimized = card.pop("optimized", None)
    if optimized is not None:
        build["optimized"] = optimized
    return {**card, "build": build, "measured": card.get("measured") or None}


def manifest_of_schema_1(document: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON values of a manifest of schema 1 in schema 2; what does not belong there stays as it is.

    Raises:
        msgspec.ValidationError: its parity is not numbers by name.
    """
    flat = msgspec.convert(document.get("parity", {}), dict[str, float])
    parity: dict[str, Any] = {"agreement": {}, "noise": {}, _LOSS: {}}
    for name, value in flat.items():
        graph, _, measure = name.partition(".")
        if name in _IMAGES:
            parity[name] = int(value)
        elif measure == _LOSS:
            parity[_LOSS][graph] = value
        elif measure in _NOISE:
            parity["noise"].setdefault(graph, {})[_NOISE[measure]] = value
        else:
            parity["agreement"].setdefault(graph, {})[measure] = value
    # A floor of which a number was not finite lacks it, and does not count.
    parity["noise"] = {kind: floor for kind, floor in parity["noise"].items() if len(floor) == len(_NOISE)}
    return {**document, "schema_version": 2, "parity": parity}
