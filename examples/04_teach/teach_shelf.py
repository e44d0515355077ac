"""Learn other classes from photographs and use them: python teach_shelf.py ENGINE PHOTOS IMAGE..."""

import sys
from pathlib import Path

from p4q_edge.runtime import P4QEdgeError, ZeroShotClassifier


def main(engine: str, photos: str, *images: str) -> None:
    photographs = {folder.name: str(folder) for folder in sorted(Path(photos).iterdir()) if folder.is_dir()}
    with ZeroShotClassifier(engine) as classifier:
        lesson = classifier.lesson(photographs, name="shelf")
        classifier.use_head("shelf")
        share = lesson.report.held_out_accuracy  # None where there are too few to hold some out
        print(
            f"learned {', '.join(classifier.class_names)}; held out: {'-' if share is None else f'{share:.0%}'} right"
        )
        for path in images:
            best = classifier.classify(path)
            print(f"{path}  {best.label}  {best.score:.1%}")


if __name__ == "__main__":
    if len(sys.argv) <= 2:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (P4QEdgeError, OSError) as error:
        sys.exit(f"error: {error}")
