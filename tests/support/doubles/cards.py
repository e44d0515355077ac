"""Cards of engines of the TensorRT double."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from p4q_edge.runtime.engines.tensorrt.library import machine_facts
from p4q_edge.runtime.storage.files import sha256_bytes


def card_of(double: Any, **changes: Any) -> Any:
    built_with = {**machine_facts(double.trt, double.cuda.facts), **changes}
    return SimpleNamespace(built_with=built_with, engine_sha256=sha256_bytes(b"plan"))
