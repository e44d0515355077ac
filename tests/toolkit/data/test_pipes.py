"""Pipes in place of data sets: nothing waits for what may never be written to them."""

import os
import threading
from pathlib import Path

import pytest

from p4q_edge.data import read_captions, read_images, read_words
from p4q_edge.recipe import read_recipe
from p4q_edge.runtime.artifacts import read_bundle
from p4q_edge.runtime.errors import P4QEdgeError
from p4q_edge.runtime.evaluation.report.speed import read_bench

READERS = {
    ".npz": read_images,
    ".tar": read_images,
    ".parquet": read_images,
    ".csv": read_images,
    ".tsv": lambda path: read_captions(Path(path)),
    ".txt": lambda path: read_words(path, key="data.class_names"),
    ".toml": read_recipe,
    ".p4q": read_bundle,
    ".json": lambda path: read_bench(Path(path), engine_sha256=""),
}


@pytest.mark.parametrize("suffix", READERS)
def test_a_pipe_is_refused_at_once(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="tables of Parquet are read by pyarrow")
    pipe = tmp_path / f"pipe{suffix}"
    os.mkfifo(pipe)
    # A reader that waits gets an end after a while, so that this test fails and does not hang.
    writer = threading.Timer(10.0, lambda: os.close(os.open(pipe, os.O_RDWR)))
    writer.daemon = True
    writer.start()
    with pytest.raises(P4QEdgeError, match="pipe|regular file|does not exist"):
        READERS[suffix](str(pipe))
    assert writer.is_alive(), "it waited for a writer"
    writer.cancel()
