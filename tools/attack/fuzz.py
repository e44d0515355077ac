"""Fuzz every reader of files: what they raise must be documented, soon, and within a gigabyte.

python tools/attack/fuzz.py --inputs 1000000 --out build/fuzz
python tools/attack/fuzz.py --inputs 5000 --target card --target head

Each slice runs in a child process, which may crash, hang or run out of memory: that is counted, the input is kept in
--out, and the next child goes on behind it. With `--engine atheris`, where that is installed, slices are guided by the
coverage of p4q_edge (libFuzzer); else mutations are drawn by the seed alone, so that a run repeats.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mutator import edit_bytes

from p4q_edge.runtime.wording import one_or_many

SLICE = 4_000
HANG_S = 5.0
WAIT_S = 120.0  # on the clock, where native code does not listen, or something is waited for
STARTUP_S = 300.0
MAX_BYTES = 1 << 30
MAX_INPUT = 1 << 20
_POOL = 64
CORPUS = Path(__file__).parent / "corpus"
"""Holds `TARGET-WHAT` for each input that once led to a problem."""


class Hang(BaseException):
    """An input takes too long; no reader may catch it."""


@dataclass
class Found:
    """What came out of inputs.

    Attributes:
        inputs: how many were read.
        accepted: how many of them were taken as good.
        problems: how often each undocumented outcome was met.
    """

    inputs: int = 0
    accepted: int = 0
    problems: Counter[str] = field(default_factory=Counter)

    def add(self, other: dict[str, Any]) -> None:
        """Add what a slice found."""
        self.inputs += other["inputs"]
        self.accepted += other["accepted"]
        self.problems.update(other["problems"])


def where(error: BaseException) -> str:
    """Return an error's class and the last line of this project that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "p4q_edge" in frame.filename]
    last = (own or frames)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"


class Slice:
    """The inputs of one child process."""

    def __init__(self, name: str, seed: int, out: Path) -> None:
        from fuzz_targets import TARGETS

        self._target, self._name, self._out = TARGETS[name], name, out
        self._random = random.Random(f"{name} {seed}")
        self._pool = [*self._target.seeds(), *(path.read_bytes() for path in regressions(name))]
        self._longest = max(4096, 2 * max(map(len, self._pool)))
        self.found = Found()
        self._folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self._current = os.open(out / "current", os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def draw(self) -> bytes:
        """Return the next input."""
        data = self._random.choice(self._pool)
        mutator = self._random.choice(self._target.mutators)
        try:
            return mutator(data, self._random)[:MAX_INPUT]
        except Exception:  # noqa: BLE001  # an input that was damaged before has no form left to change
            return edit_bytes(data, self._random)[:MAX_INPUT]

    def try_one(self, data: bytes) -> None:
        """Read one input and count what comes of it."""
        from p4q_edge.runtime.errors import P4QEdgeError

        os.pwrite(self._current, data, 0)
        os.ftruncate(self._current, len(data))
        self.found.inputs += 1
        # The time of this process, as that of others says nothing about the reader.
        signal.setitimer(signal.ITIMER_PROF, HANG_S)
        try:
            self._target.use(data, self._folder)
            self.found.accepted += 1
            if len(self._pool) < _POOL and len(data) < self._longest:
                self._pool.append(data)
        except P4QEdgeError as error:
            if "\n" in str(error) or not str(error):
                self._keep(data, f"message of {where(error)}")
        except MemoryError:
            self._keep(data, f"over {MAX_BYTES >> 20} MiB")
        except Hang as error:
            self._keep(data, f"hang: {where(error)}")
        except BaseException as error:  # noqa: BLE001  # that is what is looked for
            self._keep(data, where(error))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if self.found.inputs % 100 == 0:
            self.save()

    def _keep(self, data: bytes, problem: str) -> None:
        self.found.problems[problem] += 1
        if self.found.problems[problem] == 1:
            keep(self._out, self._name, problem, data)

    def save(self, *, finished: bool = False) -> None:
        """Write what was found so far."""
        found = {"inputs": self.found.inputs, "accepted": self.found.accepted, "problems": self.found.problems}
        text = json.dumps({**found, "finished": finished})
        temporary = self._out / "found.tmp"
        temporary.write_text(text)
        temporary.replace(self._out / "found.json")

    def close(self) -> None:
        """Remove the folder of the inputs."""
        import shutil

        os.close(self._current)
        shutil.rmtree(self._folder, ignore_errors=True)


def regressions(name: str) -> list[Path]:
    """Return the kept inputs of a target that once led to a problem."""
    return sorted(CORPUS.glob(f"{name}-*"))


def keep(out: Path, name: str, problem: str, data: bytes) -> None:
    """Keep an input by what it led to."""
    plain = "".join(letter if letter.isalnum() else "-" for letter in f"{name}-{problem}")[:120]
    (out / plain).write_bytes(data)


def run_child(name: str, seed: int, count: int, out: Path, engine: str) -> None:
    """Run a slice in this process."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    fuzzed = _instrumented(name, seed, out) if engine == "atheris" else Slice(name, seed, out)
    _raise_on_alarm()
    _limit_memory()
    fuzzed.save()
    if engine == "atheris":
        _run_atheris(fuzzed, seed, count)
    for _ in range(count):
        fuzzed.try_one(fuzzed.draw())
    fuzzed.save(finished=True)
    fuzzed.close()


def _instrumented(name: str, seed: int, out: Path) -> Slice:
    """Return a slice whose readers tell libFuzzer what they pass: modules are instrumented as they are imported."""
    import atheris

    with atheris.instrument_imports(include=["p4q_edge"]):
        fuzzed = Slice(name, seed, out)
        with contextlib.suppress(Exception):
            fuzzed._target.use(fuzzed._pool[0], fuzzed._folder)  # many modules are imported at their first use
    return fuzzed


def _run_atheris(fuzzed: Slice, seed: int, count: int) -> None:
    """Let libFuzzer choose; it ends the process."""
    import atheris

    def mutated(data: bytes, most: int, _: int) -> bytes:
        return fuzzed.draw()[:most] if fuzzed._random.random() < 0.5 else atheris.Mutate(data, most)

    def one(data: bytes) -> None:
        fuzzed.try_one(data)
        if fuzzed.found.inputs >= count:
            fuzzed.save(finished=True)
            fuzzed.close()
            os._exit(0)

    corpus = fuzzed._folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(fuzzed._pool):
        (corpus / str(number)).write_bytes(data)
    options = [f"-seed={seed + 1}", "-max_len=65536", "-rss_limit_mb=0", f"-timeout={WAIT_S:.0f}", "-verbosity=0"]
    atheris.Setup([sys.argv[0], str(corpus), *options], one, custom_mutator=mutated)
    atheris.Fuzz()


def _raise_on_alarm() -> None:
    def stop(number: int, frame: object) -> None:
        raise Hang

    signal.signal(signal.SIGPROF, stop)


def _limit_memory() -> None:
    """Let allocations beyond a gigabyte more than this process has now fail."""
    import resource

    status = Path("/proc/self/status").read_text()
    data_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, ((data_kib << 10) + MAX_BYTES, resource.RLIM_INFINITY))


def in_memory() -> str | None:
    """Return a folder whose files need no disk, which is what most of the time went to; None where there is none."""
    found = Path("/dev/shm")
    return str(found) if found.is_dir() and os.access(found, os.W_OK) else None


def run_slice(name: str, *, seed: int, count: int, out: Path, engine: str = "own") -> dict[str, Any]:
    """Run a slice in a child process and return what it found, its crash or hang included."""
    with tempfile.TemporaryDirectory(dir=in_memory()) as scratch:
        place = Path(scratch)
        command = [sys.executable, __file__, "--child", name, "--seed", str(seed), "--inputs", str(count)]
        environment = {**os.environ, "TMPDIR": scratch, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with (place / "errors").open("wb") as errors:
            child = subprocess.Popen(
                [*command, "--out", scratch, "--engine", engine], stdout=errors, stderr=errors, env=environment
            )
            try:
                hung = _watch(child, place)
            finally:
                child.kill()
                child.wait()
        said = (place / "errors").read_bytes().decode(errors="replace").strip()
        if not (place / "found.json").exists():
            raise RuntimeError(f"the slice of {name} could not begin: {said}")
        found: dict[str, Any] = json.loads((place / "found.json").read_text())
        if not found["finished"]:
            how = "hang in native code" if hung else f"ended with {child.returncode}"
            problem = f"{how} {' '.join(said.splitlines()[-1:])[:100]}".strip()
            found["problems"][problem] = found["problems"].get(problem, 0) + 1
            with contextlib.suppress(FileNotFoundError):
                keep(out, name, problem, (place / "current").read_bytes())
        for path in place.iterdir():
            if path.is_file() and path.name.startswith(f"{name}-"):
                (out / path.name).write_bytes(path.read_bytes())
    return found


def _watch(child: subprocess.Popen[bytes], place: Path) -> bool:
    """Wait for a child; return whether one input took too long for its own alarm to end it."""
    current, started = place / "current", time.time()
    while child.poll() is None:
        time.sleep(0.1)
        ready = (place / "found.json").exists()
        since = current.stat().st_mtime if ready else started
        if time.time() - since > (WAIT_S if ready else STARTUP_S):
            return True
    return False


def fuzz(
    targets: list[str], *, inputs: int, seed: int, out: Path, engine: str = "own", share: int = SLICE
) -> dict[str, Found]:
    """Run slices in turn until so many inputs were read; the totals so far are in `out/totals.json` at any time."""
    from fuzz_targets import TARGETS

    out.mkdir(parents=True, exist_ok=True)
    found = {name: Found() for name in targets}
    for number in _rounds(seed):
        for name in targets:
            left = inputs - sum(one.inputs for one in found.values())
            if left <= 0:
                return found
            count = min(left, max(1, round(share * TARGETS[name].weight)))
            found[name].add(run_slice(name, seed=number, count=count, out=out, engine=engine))
            totals = {key: vars(one) for key, one in found.items()}
            (out / "totals.json").write_text(json.dumps(totals, indent=1))
    return found


def _rounds(seed: int) -> Iterator[int]:
    while True:
        yield seed
        seed += 1


def main() -> int:
    """Run the attack and print its table; 1 if anything undocumented was met."""
    from fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="in all (default: %(default)s)")
    parser.add_argument("--target", action="append", choices=[*TARGETS], help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("own", "atheris"), default="own")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="keeps inputs that led to a problem")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        run_child(args.child, args.seed, args.inputs, args.out, args.engine)
        return 0
    found = fuzz(args.target or [*TARGETS], inputs=args.inputs, seed=args.seed, out=args.out, engine=args.engine)
    for name, one in found.items():
        found_here = sum(one.problems.values())
        words = one_or_many(found_here, "problem")
        print(f"{name:<11}{one.inputs:>9} inputs  {one.accepted:>8} accepted  {found_here:>6} {words}")
        for problem, count in one.problems.most_common():
            print(f"  {count} x {problem}")
    return int(any(one.problems for one in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
