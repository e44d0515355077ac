"""Ask Triton, or `p4q-edge serve`, what images show: python ask_triton.py HOST:PORT MODEL IMAGE..."""

import sys
from pathlib import Path

import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException


def classify(client: http.InferenceServerClient, model: str, image: bytes) -> tuple[str, float, bool]:
    """Return the best class, its score, and whether that reaches its threshold."""
    files = http.InferInput("encoded", [1, 1], "BYTES")
    files.set_data_from_numpy(np.array([[image]], dtype=object))
    answer = client.infer(model, [files])
    label, score, known = (answer.as_numpy(name)[0, 0] for name in ("label", "score", "known"))
    return label.decode(), float(score), bool(known)


def main(url: str, model: str, *images: str) -> None:
    client = http.InferenceServerClient(url)
    for path in images:
        label, score, known = classify(client, model, Path(path).read_bytes())
        print(f"{path}  {label if known else 'unknown'}  {score:.1%}")


if __name__ == "__main__":
    if len(sys.argv) <= 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (InferenceServerException, OSError) as error:
        sys.exit(f"error: {error}")
