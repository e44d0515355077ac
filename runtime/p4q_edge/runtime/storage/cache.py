"""Where this user's caches lie."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "P4Q_EDGE_CACHE"


def cache_folder() -> Path:
    """Return where this user's caches lie: `P4Q_EDGE_CACHE`, or the platform's folder for caches."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "p4q-edge"
