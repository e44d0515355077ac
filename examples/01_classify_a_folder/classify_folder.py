"""Name every image in a folder: python classify_folder.py ENGINE FOLDER"""

import sys
from collections import Counter

from p4q_edge.runtime import Failure, P4QEdgeError, ZeroShotClassifier


def main(engine: str, folder: str) -> None:
    found: Counter[str] = Counter()
    with ZeroShotClassifier(engine) as classifier:
        for answer in classifier.iterate(folder, on_error="yield"):
            if isinstance(answer, Failure):
                print(f"{answer.source}: {answer.error}", file=sys.stderr)
                continue
            label = answer.label if answer.known else "unknown"
            found[label] += 1
            print(f"{answer.source}  {label}  {answer.score:.1%}")
    print("  ".join(f"{label}: {count}" for label, count in found.most_common()))


if __name__ == "__main__":
    if len(sys.argv) - 1 != 2:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (P4QEdgeError, OSError) as error:
        sys.exit(f"error: {error}")
