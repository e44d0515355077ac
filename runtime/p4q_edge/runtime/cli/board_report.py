"""One archive of what a board can do: doctor, builds, selftest, validation and bench, without personal paths."""

from __future__ import annotations

import getpass
import io
import json
import logging
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from p4q_edge.runtime.machine import provenance
from p4q_edge.runtime.storage import atomic_write, require_writable

logger = logging.getLogger(__name__)

PROGRAM = (sys.executable, "-c", "from p4q_edge.runtime.cli.main import main; raise SystemExit(main())")
BENCH_SECONDS = 3
STEP_TIMEOUT_S = 3 * 3600
POWER_TOOL = ("tegrastats", "--interval", "500")
"""Jetson's own: clocks, temperatures and power, a line each half second."""
POWER_LINES = 40
SUFFIXES = {"tensorrt": ".plan", "tensorrt-rtx": ".rtx", "onnxruntime": ".onnx"}
CARD_KEYS = ("build", "built_with", "options", "inspection", "precision", "engine_size_bytes", "rounding_bits")
"""What the archive has of a card: nothing of classes, images or weights."""
_FOLDER_OF_A_USER = re.compile(r"(?<![\w.~])/(?:home|Users|root|media|mnt)/[^\s'\"`),;:]*")


class BoardStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One command of a report of a board.

    Attributes:
        name: its file in the archive, without suffix.
        command: as it would be typed.
        exit_code: null where it was not run.
        seconds: how long it took.
        note: why it was not run.
    """

    name: str
    command: str
    exit_code: int | None
    seconds: float
    note: str = ""


def write_board_report(
    folder: Path, *, bundle: Path | None, backends: Mapping[str, bool]
) -> tuple[Path, list[BoardStep]]:
    """Run everything and write the archive.

    Args:
        folder: where to write it.
        bundle: a bundle to build beside the demo.
        backends: which can run here; an engine is built for each.

    Returns:
        The archive and what was run. A step that failed is a result like any other.

    Raises:
        UsageError: the folder cannot be written to.
    """
    archive = folder / f"board-report-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz"
    require_writable(archive, force=False)
    with tempfile.TemporaryDirectory(prefix="p4q-board-") as name:
        run = _Run(Path(name))
        run.step("doctor", "doctor")
        suffixes = [suffix for backend, suffix in SUFFIXES.items() if backends.get(backend)]
        if _toolkit_is_installed():
            run.step("demo", "build", "--engine", "demo.onnx")
        else:
            run.skip("demo", "build --engine demo.onnx", "needs the toolkit, which is not installed")
        if bundle is not None:
            # Under a name of its own: the file's may be somebody's.
            shutil.copy(bundle, run.folder / "bundle.p4q")
        for member in ("demo", "bundle"):
            for suffix in suffixes if (run.folder / f"{member}.p4q").is_file() else ():
                run.engine(member, suffix)
        files = {**run.files, "report.md": _summary(run.steps)}
        cleaned = {name: cleanse(text, run.folder) for name, text in files.items()}
    atomic_write(archive, _packed(cleaned))
    return archive, run.steps


class _Run:
    """Runs commands in a scratch folder and keeps what they said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[BoardStep] = []
        self.files: dict[str, str] = {}

    def step(self, name: str, *arguments: str) -> bool:
        """Run a command and return whether it succeeded."""
        logger.info("board report: %s", name)
        started = time.monotonic()
        code, said = _run([*PROGRAM, *arguments], self.folder)
        command = f"p4q-edge {' '.join(arguments)}"
        self.steps.append(
            BoardStep(name=name, command=command, exit_code=code, seconds=round(time.monotonic() - started, 1))
        )
        self.files[f"{name}.txt"] = f"$ {command}\n{said}\nexit code {code}\n"
        return code == 0

    def skip(self, name: str, command: str, note: str) -> None:
        self.steps.append(BoardStep(name=name, command=f"p4q-edge {command}", exit_code=None, seconds=0, note=note))

    def engine(self, member: str, suffix: str) -> None:
        """Build, prove, validate and time one engine."""
        engine, name = f"{member}{suffix}", f"{member}{suffix.replace('.', '-')}"
        # Built once more where the demo's recipe made it: this one is timed.
        if not self.step(f"{name}-build", "build", f"{member}.p4q", "--engine", engine, "--force"):
            return
        card = json.loads((self.folder / f"{engine}.json").read_text(encoding="utf-8"))
        chosen = {key: card[key] for key in CARD_KEYS if key in card}
        self.files[f"{name}-card.json"] = json.dumps(chosen, indent=2) + "\n"
        self.step(f"{name}-selftest", "selftest", engine)
        self.step(f"{name}-validate", "validate", engine, "--force")
        against = ("--against", "fp16") if suffix == ".plan" else ()
        with _power_log(self.files, f"{name}-tegrastats.txt"):
            self.step(f"{name}-bench", "bench", engine, "--seconds", str(BENCH_SECONDS), "--batch", "1,8", *against)


def _run(command: Sequence[str], folder: Path) -> tuple[int, str]:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=STEP_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 124, f"ended after {STEP_TIMEOUT_S} s"
    return done.returncode, done.stdout


@contextmanager
def _power_log(files: dict[str, str], name: str) -> Iterator[None]:
    """Keep an excerpt of what Jetson's own tool says meanwhile; elsewhere there is none."""
    if shutil.which(POWER_TOOL[0]) is None:
        yield
        return
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        tool = subprocess.Popen(POWER_TOOL, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            yield
        finally:
            tool.terminate()
            tool.wait()
            log.seek(0)
            files[name] = "".join(log.readlines()[-POWER_LINES:])


def _toolkit_is_installed() -> bool:
    try:
        version("p4q-edge")
    except PackageNotFoundError:
        return False
    return True


def _summary(steps: Sequence[BoardStep]) -> str:
    lines = ["# Board report", "", *(f"- {key}: {value}" for key, value in provenance.this_machine().items())]
    lines += [f"- {key}: {value}" for key, value in provenance.versions().items()]
    lines += [f"- commit: {provenance.git_commit() or 'unknown'}", "", "| step | exit code | seconds | command |"]
    lines.append("|---|---|---|---|")
    for step in steps:
        code = f"not run: {step.note}" if step.exit_code is None else str(step.exit_code)
        lines.append(f"| {step.name} | {code} | {step.seconds:g} | `{step.command}` |")
    return "\n".join(lines) + "\n"


def _personal(folder: Path | None = None) -> dict[str, str]:
    """Return what is replaced in the archive, and by what; the longest first."""
    words = {str(Path.home()): "~", str(Path.cwd()): ".", sys.prefix: "VENV", tempfile.gettempdir(): "TMP"}
    words[str(Path(__file__).parents[3])] = "SOURCE"
    if folder is not None:
        words[str(folder)] = "."
    words |= {str(Path(path).resolve()): name for path, name in words.items()}
    return {word: words[word] for word in sorted(words, key=len, reverse=True) if word not in ("", "/")}


def _names() -> list[str]:
    """Return the names of this user and this host; short and common ones say nothing of anybody."""
    names = {platform.node()}
    try:
        names.add(getpass.getuser())
    except (KeyError, OSError):
        # A user without an entry in the system's list, as in some containers.
        logger.debug("this user has no name")
    return sorted(name for name in names if len(name) >= 3 and name not in ("root", "user", "localhost", "ubuntu"))


def cleanse(text: str, folder: Path | None = None) -> str:
    """Return a text without this user's paths, user name and host name."""
    for word, replacement in _personal(folder).items():
        text = re.sub(re.escape(word) + r"(?![\w.-])", replacement, text)
    for name in _names():
        text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", "NAME", text)
    return _FOLDER_OF_A_USER.sub("PATH", text)


def _packed(files: Mapping[str, str]) -> bytes:
    """Return a tar.gz whose entries have no owner and no time."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, text in sorted(files.items()):
            content = text.encode("utf-8")
            entry = tarfile.TarInfo(f"board-report/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return data.getvalue()
