"""Where a command takes a bundle, an address of the Hub may stand: `hf:user/name`."""

from __future__ import annotations

import argparse
from pathlib import Path

HF_HELP = "; hf:user/name[@revision][/file] takes one of the Hugging Face Hub (extra hub)"


def local_bundle(path: Path) -> Path:
    """Return the path itself, or for an address of the Hub that of the bundle, which is fetched where it is not here.

    Raises:
        P4QEdgeError: as `p4q_edge.runtime.hub.download_bundle`.
    """
    # Imported here, both: most commands name a file, and `--help` must load neither.
    from p4q_edge.runtime.hub import is_hub_address

    if not is_hub_address(path):
        return path
    from p4q_edge.runtime.hub import download_bundle

    return download_bundle(str(path))


def add_bundle(parser: argparse.ArgumentParser, name: str, *, about: str, **keywords: object) -> None:
    """Add an argument that takes a bundle's path or its address on the Hub."""
    parser.add_argument(name, type=Path, help=about + HF_HELP, **keywords)  # type: ignore[arg-type]
