"""Data of strangers ends in a documented error, soon, and below a gigabyte of memory."""

import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from p4q_edge.data.readers import read_class_prompts, read_images, read_words
from p4q_edge.recipe.toml import parse_recipe, read_recipe
from p4q_edge.runtime.errors import CorruptArtifactError, InputError, P4QEdgeError, UsageError
from p4q_edge.runtime.evaluation.report.document import read_report

LIMITED = """
import resource, sys
from p4q_edge.data.readers import read_images, read_words
from p4q_edge.recipe.toml import read_recipe
from p4q_edge.runtime.errors import P4QEdgeError
from p4q_edge.runtime.evaluation.report.document import read_report
import numpy, PIL.Image
status = open("/proc/self/status").read()
now = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData")) << 10
resource.setrlimit(resource.RLIMIT_DATA, (now + (1 << 30), resource.RLIM_INFINITY))
kind, path = sys.argv[1:]
read = {"images": lambda: read_images(path), "words": lambda: read_words(path, key="k"),
        "recipe": lambda: read_recipe(__import__("pathlib").Path(path)),
        "report": lambda: read_report(__import__("pathlib").Path(path))}[kind]
try:
    read()
except P4QEdgeError as error:
    print(type(error).__name__, str(error)[:300])
else:
    print("taken")
status = open("/proc/self/status").read()  # rusage would count what this process was forked from
print("peak", next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) >> 10, "MiB")
"""


def npy(descr: str, shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def write_npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_npy", ".npy"), content)
    return path


NAMES = npy("<U1", "(2,)", "ab".encode("utf-32-le"))
LABELS = npy("<i8", "(1,)", bytes(8))
IMAGE = npy("|u1", "(1, 2, 2, 3)", bytes(12))


def lying_npz(folder: Path) -> Path:
    return write_npz(
        folder / "a.npz", images_npy=npy("|u1", f"({1 << 40}, 2, 2, 3)"), labels_npy=LABELS, class_names_npy=NAMES
    )


def bomb_npz(folder: Path) -> Path:
    path = write_npz(folder / "a.npz", labels_npy=LABELS, class_names_npy=NAMES)
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("images.npy", "w") as stream,
    ):
        stream.write(npy("|u1", "(600, 1024, 1024, 3)"))
        for _ in range(600):
            stream.write(bytes(3 << 20))
    return path


def wide_csv(folder: Path) -> Path:
    path = folder / "a.csv"
    path.write_bytes(b"," * (20 << 20))
    return path


def large_csv(folder: Path) -> Path:
    path = folder / "a.csv"
    with path.open("wb") as stream:
        stream.truncate(2 << 30)
    return path


def large_words(folder: Path) -> Path:
    path = folder / "a.txt"
    path.write_bytes(b"cat\n" * (1 << 20))
    return path


def large_header_tar(folder: Path) -> Path:
    path = folder / "a.tar"
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 3 << 30
    with path.open("wb") as stream:
        stream.write(info.tobuf(tarfile.USTAR_FORMAT))
        stream.truncate(3 << 30)
    return path


def deep_json(folder: Path) -> Path:
    path = folder / "a.json"
    path.write_bytes(b"[" * (8 << 20))
    return path


def deep_toml(folder: Path) -> Path:
    path = folder / "a.toml"
    path.write_bytes(b"a = " + b"[" * 500_000)
    return path


@pytest.mark.parametrize(
    ("kind", "make", "message"),
    [
        ("images", lying_npz, "InputError .*needs arrays images"),
        ("images", bomb_npz, "InputError .*its arrays claim 18874"),
        ("images", wide_csv, "InputError"),
        ("images", large_csv, "InputError expected at most 33554432 bytes in the table "),
        ("images", large_header_tar, "InputError .*a header claims 3221225472 bytes"),
        ("words", large_words, "InputError .*'cat' appears more than once"),
        ("words", deep_json, "InputError expected at most .* bytes in the list of words "),
        ("recipe", deep_toml, "UsageError .*is not TOML: maximum recursion depth"),
        ("report", deep_json, "CorruptArtifactError .*nests JSON more than 32 deep"),
    ],
)
def test_below_a_gigabyte(tmp_path: Path, kind: str, make: Callable[[Path], Path], message: str) -> None:
    """In a process that cannot have more, whose peak is measured as well."""
    command = [sys.executable, "-c", LIMITED, kind, str(make(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said, peak = done.stdout.strip().rsplit("\n", 1)
    assert re.match(message, said), said
    assert int(peak.split()[1]) < 1024


def raises(kind: type[P4QEdgeError], message: str, read: Callable[[], object]) -> None:
    with pytest.raises(kind, match=message) as caught:
        read()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"images_npy": b"\x93NUMPY\x01\x00\x0a\x00{{{{{{{{{{"}, "needs arrays images"),
        ({"images_npy": b"text"}, "needs arrays images.*it holds a bytes in place of an array"),
        ({"images_npy": npy("|O", "(1,)", b"x")}, "needs arrays images.*allow_pickle"),
        ({"images_npy": npy("|u1", f"({10**30},)")}, "needs arrays images"),
        ({"images_npy": npy("|u1", "(-1, 2, 2, 3)")}, "needs arrays images|uint8|labels"),
        ({"class_names_npy": npy("<U1", "(2,)", b"\xff" * 8)}, "characters that Unicode does not have"),
        ({"class_names_npy": npy(">U1", "(2,)", "ab".encode("utf-32-le"))}, "characters that Unicode does not have"),
        ({"labels_npy": npy("<M8[s]", "(1,)", bytes(8))}, "labels must be integers"),
    ],
)
def test_arrays_that_are_none(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    good = {"images_npy": IMAGE, "labels_npy": LABELS, "class_names_npy": NAMES}
    assert len(read_images(str(write_npz(tmp_path / "good.npz", **good)))) == 1
    path = write_npz(tmp_path / "a.npz", **{**good, **members})
    raises(InputError, message, lambda: read_images(str(path)))


def test_an_array_under_the_suffix_of_an_archive(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(IMAGE)
    raises(InputError, "needs arrays images", lambda: read_images(str(tmp_path / "a.npz")))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("x" * 300, "does not exist"),
        ("x" * 100_000, "does not exist"),
        ("x" * 200_000, "is not a table: field larger than field limit"),
        ("a\0b", "does not exist|is not a table"),
        ("", "expected path and label"),
    ],
)
def test_cells_that_name_no_file(tmp_path: Path, cell: str, message: str) -> None:
    for text in (f"{cell},cat\n", f"path,label\n{cell},cat\n", f"{cell},label\nx,y\n"):
        (tmp_path / "a.csv").write_text(text)
        raises(InputError, f"{message}|has no column|does not exist", lambda: read_images(str(tmp_path / "a.csv")))


def test_a_label_of_any_length_is_a_class(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "a.csv").write_text(f"a.png,{'x' * 300}\n")
    assert read_images(str(tmp_path / "a.csv")).class_names == ("x" * 300,)


@pytest.mark.parametrize("text", ["[" * 100_000, '["a", 1]', '{"a": 1}', "null", "[[]]", '["a", ""]', '["a"', "1e999"])
def test_lists_of_words_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    raises(
        InputError,
        r"must hold a list of strings|an entry is empty; every entry needs a word, got '' as number 2",
        lambda: read_words(str(tmp_path / "a.json"), key="k"),
    )
    raises(InputError, "is not of the form", lambda: read_class_prompts(str(tmp_path / "a.json"), ("cat",)))


def test_prompts_of_a_class_with_a_long_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"x" * 1_000_000: ["prompt"]}))
    raises(
        InputError,
        "which is not a class; did you mean 'cat'",
        lambda: read_class_prompts(str(tmp_path / "a.json"), ("cat",)),
    )


def test_keys_of_any_length_are_named_in_short(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("x" * 500_000 + " = 1\n")
    raises(UsageError, "unknown key 'xxx.*did you mean", lambda: read_recipe(tmp_path / "a.toml"))
    raises(UsageError, "unknown key", lambda: parse_recipe({"": 1}, source="x"))


def test_reports_that_are_none(tmp_path: Path) -> None:
    for text in ("[]", "{", "null", '{"schema_version": 1}', "\x00", '{"passed": ' + "9" * 5000 + "}"):
        (tmp_path / "a.json").write_text(text)
        raises(
            CorruptArtifactError, "is not a report that this version reads", lambda: read_report(tmp_path / "a.json")
        )


def test_header_fields_of_tars_are_bounded(tmp_path: Path) -> None:
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
        info = tarfile.TarInfo("a.png")
        info.type, info.size = kind, (1 << 20) + 1
        stream = io.BytesIO(info.tobuf(tarfile.GNU_FORMAT) + bytes(2 << 20))
        (tmp_path / "a.tar").write_bytes(stream.getvalue())
        raises(InputError, "a header claims 1048577 bytes", lambda: read_images(str(tmp_path / "a.tar")))
