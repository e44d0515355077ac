"""Rows of an older fidelity table, for those that a run has not measured."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.storage import quoted, read_bounded

logger = logging.getLogger("fidelity")
MOST_BYTES = 16 << 20
FIRST_WIDTH = "W8A8"
"""Of results from before the width was written down."""


@dataclass(frozen=True, kw_only=True)
class Older:
    """An older document.

    Attributes:
        name: of its file.
    """

    name: str
    document: dict[str, Any]

    def rows_of(self, model: str, *, weights: str, images: str) -> dict[str, dict[str, Any]]:
        """Measured rows of one model by method, each saying where it comes from; none where the model is another."""
        for found in self.document["models"]:
            if found["model"] != model:
                continue
            if (found["weights_sha256"], found["images_sha256"]) != (weights, images):
                logger.warning("%s: weights or images of %s are others; no row is carried over", self.name, model)
                return {}
            return {
                row["method"]: {
                    "carried_from": self.name,
                    "carried_versions": self.document["versions"],
                    "commit": self.document["commit"],
                }
                | {key: row[key] for key in row if key != "method"}  # one that was carried there keeps where it is from
                for row in found["rows"]
                if "missing" not in row
            }
        return {}


def read_older(path: Path, *, width: str) -> Older:
    """Read the JSON of older results.

    Raises:
        InputError: there is none, it is no such file, or it is of another width.
    """
    data = read_bounded(path, limit_bytes=MOST_BYTES, kind="older results")
    try:
        document = json.loads(data)
    except ValueError:
        document = None
    if not isinstance(document, dict) or not document.keys() >= {"models", "versions", "commit"}:
        raise InputError(f"expected the JSON that fidelity.py writes in {quoted(path)}; name a results/fidelity-*.json")
    found = document.get("width", FIRST_WIDTH)
    if found != width:
        raise InputError(f"expected older results of {width} in {quoted(path)}, got those of {found}; name others")
    return Older(name=path.name, document=document)
