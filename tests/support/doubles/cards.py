"""Cards of engines of the TensorRT double, and of engines that another machine built."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec

from p4q_edge.runtime.artifacts import Card
from p4q_edge.runtime.engines.tensorrt.library import machine_facts
from p4q_edge.runtime.storage.files import sha256_bytes


def card_of(double: Any, **changes: Any) -> Any:
    built_with = {**machine_facts(double.trt, double.cuda.facts), **changes}
    build = SimpleNamespace(options=SimpleNamespace(precision="auto"), inspection=SimpleNamespace(rows={}))
    return SimpleNamespace(built_with=built_with, engine_sha256=sha256_bytes(b"plan"), build=build)


def of_another_cpu(card: Card) -> Card:
    """Return the card of an engine for a CPU as if another processor had built it."""
    return _built_with(card, cpu="another")


def of_another_openvino(card: Card) -> Card:
    """Return the card of an engine for OpenVINO as if another version of it had built it."""
    return _built_with(card, openvino="1")


def _built_with(card: Card, **facts: str) -> Card:
    machine: Any = msgspec.structs.replace(card.build.built_with, **facts)
    build: Any = msgspec.structs.replace(card.build, built_with=machine)
    changed: Card = msgspec.structs.replace(card, build=build)
    return changed
