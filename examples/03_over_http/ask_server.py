"""Ask `p4q-edge serve` what images show: python ask_server.py URL IMAGE..."""

import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


def classify(url: str, image: bytes, top_k: int = 3) -> dict[str, Any]:
    """Return the answer to one image; wait where the server is busy."""
    while True:
        try:
            with urllib.request.urlopen(f"{url}/classify?top_k={top_k}", data=image, timeout=30) as answer:
                found: dict[str, Any] = json.load(answer)["predictions"][0]
                return found
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise SystemExit(f"{error.code}: {json.load(error)}") from error
            time.sleep(float(error.headers.get("Retry-After", 1)))


def main(url: str, *images: str) -> None:
    for path in images:
        best = classify(url, Path(path).read_bytes())
        print(f"{path}  {best['label'] if best['known'] else 'unknown'}  {best['score']:.1%}")


if __name__ == "__main__":
    if len(sys.argv) <= 2:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except OSError as error:
        sys.exit(f"error: {error}")
