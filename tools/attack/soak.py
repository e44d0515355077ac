"""Open and close an engine very often, then classify very often in threads; count what is left over.

python tools/attack/soak.py build/demo.p4q --opens 10000 --classifications 1000000

While threads classify arrays and files, one switches heads, one opens and closes the engine, and one lets files of a
head and of a picture vanish and appear. Memory, open files and threads of the process are compared with those after a
warm-up of the same kind.
"""

from __future__ import annotations

import argparse
import gc
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from p4q_edge.runtime.wording import number_of

THREADS = 8
WARM_UP = 0.05
"""Share of the work that is done before the first count: pools of memory fill up then."""
MAX_GROWTH_BYTES = 32 << 20
EXPECTED = {"classified", "classified file", "file is gone", "head is gone", "switched", "opened", "moved"}


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a process holds."""

    resident_bytes: int
    files: int
    threads: int

    @classmethod
    def now(cls) -> Usage:
        """Count, after what Python can free is freed."""
        gc.collect()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return cls(
            resident_bytes=int(status["VmRSS"].split()[0]) << 10,
            files=len(list(Path("/proc/self/fd").iterdir())) - 1,  # without the one that lists them
            threads=int(status["Threads"]),
        )


@dataclass(kw_only=True)
class Part:
    """One part of the soak: how often what was done, and what was held before and after."""

    before: Usage
    after: Usage | None = None
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def problems(self) -> list[str]:
        """What must not be."""
        found = [f"{count} x {what}" for what, count in self.outcomes.items() if what not in EXPECTED]
        assert self.after is not None
        if self.after.files > self.before.files:
            found.append(number_of(self.after.files - self.before.files, "more open file"))
        if self.after.threads > self.before.threads:
            found.append(number_of(self.after.threads - self.before.threads, "more thread"))
        if self.after.resident_bytes - self.before.resident_bytes > MAX_GROWTH_BYTES:
            found.append(f"{(self.after.resident_bytes - self.before.resident_bytes) >> 20} MiB more memory")
        return found


class Deployment:
    """An engine with a second head, pictures as arrays and one as a file, and the answers of both heads."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        from PIL import Image

        from p4q_edge.runtime import RuntimeOptions, ZeroShotClassifier, build_engine
        from p4q_edge.runtime.artifacts import BUILT_IN, add_head, heads_folder

        self.engine = folder / "out.onnx"
        build_engine(bundle, self.engine)
        add_head(self.engine, bundle, name="kept")
        self.options = RuntimeOptions(threads=1, decode_threads=1)
        self.shared = ZeroShotClassifier(self.engine, heads="kept", options=self.options)
        self.heads = (BUILT_IN, "kept")
        _, _, height, width = self.shared._engine.input_shape
        self.pixels = list(np.random.default_rng(0).integers(0, 256, (8, height, width, 3), dtype=np.uint8))
        self.picture = folder / "picture.png"
        Image.fromarray(self.pixels[0]).save(self.picture)
        self.moving = (self.picture, heads_folder(self.engine) / "kept.safetensors")
        self._spares = [path.with_name(f"{path.name}.spare") for path in self.moving]
        for path, spare in zip(self.moving, self._spares, strict=True):
            shutil.copy(path, spare)
        self.expected = []
        for head in self.heads:
            self.shared.use_head(head)
            self.expected.append([self.shared.embed(pixels) for pixels in self.pixels])

    def open_and_close(self, generator: random.Random) -> str:
        """Load the engine a second time, and let it go."""
        from p4q_edge.runtime import ZeroShotClassifier
        from p4q_edge.runtime.errors import P4QEdgeError

        head = generator.randrange(2)
        try:
            other = ZeroShotClassifier(self.engine, heads=self.heads[head] if head else None, options=self.options)
        except P4QEdgeError:
            return "head is gone" if head else "WRONG refusal"
        with other:
            number = generator.randrange(len(self.pixels))
            fits = np.array_equal(other.embed(self.pixels[number]), self.expected[head][number])
        return "opened" if fits else "WRONG answer of an engine that was opened"

    def classify(self, generator: random.Random) -> str:
        """Ask for an array, or for the file, which may not be there."""
        from p4q_edge.runtime.errors import InputError

        if generator.random() < 0.05:
            try:
                return "classified file" if self.shared.classify(self.picture, top_k=1).label else "WRONG label"
            except InputError:
                return "file is gone"
        number = generator.randrange(len(self.pixels))
        found = self.shared.embed(self.pixels[number])
        return "classified" if any(np.array_equal(found, known[number]) for known in self.expected) else "WRONG answer"

    def switch(self, generator: random.Random) -> str:
        """Let another head answer."""
        self.shared.use_head(generator.choice(self.heads))
        return "switched"

    def move(self, generator: random.Random) -> str:
        """Let a file vanish, or appear."""
        number = generator.randrange(len(self.moving))
        if generator.random() < 0.5:
            self.moving[number].unlink(missing_ok=True)
        else:
            temporary = self.moving[number].with_name(f".{number}.new")
            shutil.copy(self._spares[number], temporary)
            temporary.replace(self.moving[number])
        return "moved"

    def restore(self) -> None:
        """Let every file be there."""
        for path, spare in zip(self.moving, self._spares, strict=True):
            shutil.copy(spare, path)


def open_often(deployment: Deployment, count: int, *, seconds: float = float("inf")) -> Part:
    """Open and close an engine so often, or as often as the time allows."""
    generator = random.Random(0)
    outcomes: Counter[str] = Counter()
    warm_up, end = max(1, int(count * WARM_UP)), time.monotonic() + seconds
    part: Part | None = None
    for number in range(count + warm_up):
        if number == warm_up:
            part = Part(before=Usage.now(), seconds=-time.monotonic())
            outcomes.clear()
        if time.monotonic() > end and part is not None:
            break
        outcomes[deployment.open_and_close(generator)] += 1
    assert part is not None
    part.seconds += time.monotonic()
    part.outcomes, part.after = outcomes, Usage.now()
    return part


def classify_often(deployment: Deployment, count: int, *, seconds: float = float("inf")) -> Part:
    """Classify so often in threads, or as often as the time allows, while other threads disturb."""
    _together(deployment, max(THREADS, int(count * WARM_UP)), seconds=seconds)
    deployment.restore()  # on a busy machine files may not come back in a short run
    part = Part(before=Usage.now(), seconds=-time.monotonic())
    part.outcomes = _together(deployment, count, seconds=seconds)
    part.seconds += time.monotonic()
    deployment.restore()
    part.after = Usage.now()
    return part


def _together(deployment: Deployment, count: int, *, seconds: float) -> Counter[str]:
    found: Counter[str] = Counter()
    lock, done = threading.Lock(), threading.Event()
    end = time.monotonic() + seconds

    def repeat(work: str, number: int, times: int | None, pause: float) -> None:
        from p4q_edge.runtime.errors import P4QEdgeError

        generator, own = random.Random(f"{work} {number}"), Counter[str]()
        while not done.is_set() if times is None else sum(own.values()) < times and time.monotonic() < end:
            try:
                own[getattr(deployment, work)(generator)] += 1
            except P4QEdgeError as error:
                own[f"{work}: {type(error).__name__}: {error}"[:200]] += 1
            except Exception as error:  # noqa: BLE001  # that is what is looked for
                own[f"{work}: {type(error).__name__}: {error}"[:200]] += 1
            done.wait(pause) if pause else None
        with lock:
            found.update(own)

    share = -(-count // THREADS)
    workers = [threading.Thread(target=repeat, args=("classify", n, share, 0.0)) for n in range(THREADS)]
    others = [
        threading.Thread(target=repeat, args=(work, 0, None, pause))
        for work, pause in (("switch", 0.002), ("open_and_close", 0.05), ("move", 0.005))
    ]
    for thread in workers + others:
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    for thread in others:
        thread.join()
    return found


def attack(bundle: Path, *, opens: int, classifications: int, seconds: float = float("inf")) -> dict[str, Part]:
    """Do both, each for at most so many seconds, and return what was found; 0 leaves one out."""
    with tempfile.TemporaryDirectory() as name:
        deployment = Deployment(bundle, Path(name))
        parts = {
            "open and close": lambda: open_often(deployment, opens, seconds=seconds),
            "classify": lambda: classify_often(deployment, classifications, seconds=seconds),
        }
        asked = {"open and close": opens, "classify": classifications}
        try:
            return {part: run() for part, run in parts.items() if asked[part]}
        finally:
            deployment.shared.close()


def main() -> int:
    """Run the attack and print its table; 1 if anything was wrong or left over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--opens", type=int, default=10_000)
    parser.add_argument("--classifications", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most, for each part")
    args = parser.parse_args()
    if min(args.opens, args.classifications) < 0:
        parser.error("--opens and --classifications: expected 0, which leaves that part out, or more")
    found = attack(args.bundle, opens=args.opens, classifications=args.classifications, seconds=args.seconds)
    for name, part in found.items():
        assert part.after is not None
        print(
            f"{name}: {dict(part.outcomes)} in {part.seconds:.0f} s; "
            f"memory {part.before.resident_bytes / 1e6:.1f} -> {part.after.resident_bytes / 1e6:.1f} MB, "
            f"open files {part.before.files} -> {part.after.files}, "
            f"threads {part.before.threads} -> {part.after.threads}"
        )
        for problem in part.problems:
            print(f"  {problem}")
    return int(any(part.problems for part in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
