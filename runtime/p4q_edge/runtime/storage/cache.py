"""The cache folder of this user."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "P4Q_EDGE_CACHE"


def cache_folder() -> Path | None:
    """Return this user's cache folder: `P4Q_EDGE_CACHE`, or the platform's folder; None without a home."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    try:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home, e.g. of a service
        return None
    return Path(base) / "p4q-edge"
