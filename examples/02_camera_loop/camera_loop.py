"""Say what a camera sees, when it changes: python camera_loop.py ENGINE [FILM]"""

import sys
from collections import deque

from p4q_edge.runtime import P4QEdgeError, ZeroShotClassifier

FRAMES = 3  # that must agree


def main(engine: str, source: str = "") -> None:
    recent: deque[str] = deque(maxlen=FRAMES)
    said = ""
    with ZeroShotClassifier(engine) as classifier:
        for _, best in classifier.stream(source or 0, max_fps=None if source else 15):
            recent.append(best.label if best.known else "unknown")
            agreed = len(recent) == FRAMES and len(set(recent)) == 1
            if agreed and recent[-1] != said:
                said = recent[-1]
                print(f"{said}  {best.score:.1%}", flush=True)


if __name__ == "__main__":
    if not 1 <= len(sys.argv) - 1 <= 2:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (P4QEdgeError, OSError) as error:
        sys.exit(f"error: {error}")
