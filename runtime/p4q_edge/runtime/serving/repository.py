"""Write an engine as a model repository of Triton Inference Server."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias, get_args

import numpy as np

from p4q_edge.runtime.artifacts import (
    BUILT_IN,
    Card,
    EngineHead,
    Head,
    RtxBuild,
    TensorRTBuild,
    card_path,
    load_stored_heads,
    read_card,
    signature_path,
    stored_heads,
    verify_engine,
)
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.serving.model_configs import (
    LABELS_FILE,
    WARM_UP_FILE,
    EngineBackend,
    Names,
    decode_config,
    deepstream_config,
    engine_config,
    engine_model,
    ensemble_config,
    head_config,
    head_model,
)
from p4q_edge.runtime.serving.python_models import CARD_FILE, HEAD_FILE
from p4q_edge.runtime.serving.text_format import Value, to_text
from p4q_edge.runtime.storage import complete_entries, printable, switch_entries

logger = logging.getLogger(__name__)

_Contents: TypeAlias = bytes | Callable[[BinaryIO], object]
ServedBy = Literal["native", "python"]
"""What runs the engine: Triton's own backend for TensorRT or ONNX Runtime, or this runtime in its Python backend."""
MAX_BATCH = 8
"""Largest batch of an engine that takes any."""
PATH_VARIABLE = "P4Q_EDGE_PATH"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MODEL_PY = '''"""{about}

Written by p4q-edge. The server's Python has to find p4q-edge-runtime: install it there, or name the folders in which it
and its requirements lie in the environment variable {variable}.
"""

import os
import sys

sys.path[:0] = [folder for folder in os.environ.get("{variable}", "").split(os.pathsep) if folder]

from p4q_edge.runtime.serving.python_models import {kind} as TritonPythonModel  # noqa: E402, F401
'''


_DEEPSTREAM = """# For DeepStream's nvinferserver, started in this folder.
# NOT RUN by its authors: its fields are published ones of DeepStream 9.2, and that is all they know. DeepStream scales
# frames in its own way, not as the model was learned with: compare with `p4q-edge classify` before you trust it.
"""


def write_repository(
    engine: Path, repository: Path, *, name: str, served_by: ServedBy = "native", force: bool = False
) -> list[str]:
    """Write the models of an engine: decoding, engine, and for each head the head and an ensemble of all three.

    They appear together: whoever is killed leaves the repository as it was, or what the next call finishes.

    Args:
        engine: the engine; its card is beside it, and so are its heads.
        repository: the folder of the model repository; models of other names stay.
        name: of the ensemble of the built-in head; those of other heads are `<name>-<head>`.
        served_by: what runs the engine.
        force: replace models of these names.

    Returns:
        The names of the ensembles.

    Raises:
        UsageError: a model exists and `force` is false, or the engine cannot be served so.
        ArtifactError: the engine is not the one of its card, or a head does not fit it.
        P4QEdgeError: the disk is full.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a model; expected letters, digits, dots, dashes, underscores."
        )
    if repository.exists() and not repository.is_dir():
        raise UsageError(f"{repository} is a file; expected a folder for models, or a name that is free. Name another.")
    complete_entries(repository, name)
    card = read_card(engine)
    verify_engine(engine, card)
    backend = _backend(card, served_by, engine=engine)
    stored = stored_heads(engine)
    heads: dict[str, EngineHead] = {BUILT_IN: card.head, **load_stored_heads(engine, card)}
    build = card.build
    max_batch = build.options.max_batch if isinstance(build, TensorRTBuild | RtxBuild) else MAX_BATCH
    names = {
        head: Names(
            name=head_model(name, head),
            decode=f"{name}_decode",
            engine=engine_model(name),
            head=head_model(f"{name}_head", head),
        )
        for head in heads
    }
    files: dict[str, _Contents] = {**_shared(engine, card, name=name, backend=backend, max_batch=max_batch)}
    for head, opened in heads.items():
        files |= _of_head(engine, card, names[head], opened, max_batch=max_batch)
        if isinstance(opened, Head):
            files |= _copied(stored[head], f"{names[head].head}/1/{HEAD_FILE}")
    _require_free(repository, {path.partition("/")[0] for path in files}, force=force)
    target = f"{engine_model(name)}/1/{_file(engine)}"
    files |= _copied(engine, target)
    if backend == "python":
        files |= _copied(card_path(engine), card_path(Path(target)).as_posix())
    # Triton wants a folder of a version, also where it has nothing to hold.
    switch_entries(repository, name, files, empty=tuple(f"{ensemble.name}/1" for ensemble in names.values()))
    return [ensemble.name for ensemble in names.values()]


def _backend(card: Card, served_by: ServedBy, *, engine: Path) -> EngineBackend:
    if served_by not in get_args(ServedBy):
        raise UsageError(f"expected an engine served by {' or '.join(get_args(ServedBy))}, got {served_by!r}.")
    if served_by == "python":
        return "python"
    if card.backend == "tensorrt-rtx":
        raise UsageError(f"Triton has no backend for {engine}, an engine of TensorRT for RTX. Add --served-by python.")
    if card.backend == "openvino":
        # Triton's own backend for OpenVINO would compile the graph with other options than those that were proved.
        raise UsageError(f"{engine} was built for OpenVINO, which Triton runs in Python only. Add --served-by python.")
    if isinstance(card.build, TensorRTBuild) and card.build.options.min_batch > 1:
        raise UsageError(
            f"{engine} takes no single images (smallest batch {card.build.options.min_batch}), which Triton's batcher "
            "needs. Build it with --min-batch 1, or add --served-by python."
        )
    if card.backend == "onnxruntime" and card.cpu_profile == "exact":
        _warn_of_missing_options(card, engine)
    return card.backend


def _warn_of_missing_options(card: Card, engine: Path) -> None:
    """Say what values change where ONNX Runtime is not told what this runtime tells it."""
    if card.precision.weight_block is not None:
        logger.warning(
            "Triton's ONNX Runtime rounds what the INT4 weights of %s multiply to 8 bits; this runtime tells its own "
            "not to. For the values that were proved add --served-by python",
            engine,
        )
    elif card.precision.quantized_linears and card.precision.number_format == "int":
        logger.warning(
            "on x86 processors without VNNI Triton's ONNX Runtime overflows with the 8-bit weights of %s; this runtime "
            "tells its own not to. For such a server build with --cpu-profile fast, or add --served-by python",
            engine,
        )


def _shared(engine: Path, card: Card, *, name: str, backend: EngineBackend, max_batch: int) -> dict[str, bytes]:
    """Return the files of the models that all heads share, by path in the repository."""
    model, decode, described = engine_model(name), f"{name}_decode", card_path(engine).read_bytes()
    config = engine_config(card, model, backend=backend, max_batch=max_batch, file=_file(engine))
    files = {
        f"{model}/config.pbtxt": _text(config),
        f"{model}/{LABELS_FILE}": _lines(card.class_names),
        f"{model}/warmup/{WARM_UP_FILE}": np.ascontiguousarray(card.golden_samples().image[0]).tobytes(),
        f"{decode}/config.pbtxt": _text(decode_config(card, decode, max_batch=max_batch)),
        f"{decode}/1/{CARD_FILE}": described,
        f"{decode}/1/model.py": _model_py("Decode and prepare images.", "DecodeModel"),
    }
    if backend == "python":
        files[f"{model}/1/model.py"] = _model_py("Run the engine.", "EngineModel")
    else:
        files[f"{name}_nvinferserver.txt"] = _DEEPSTREAM.encode() + _text(deepstream_config(model, max_batch=max_batch))
    return files


def _lines(names: Sequence[str]) -> bytes:
    # A label is a line, whatever its name has in it, and steers no terminal that shows it.
    return "".join(f"{printable(' '.join(name.split()))}\n" for name in names).encode()


def _of_head(engine: Path, card: Card, names: Names, head: EngineHead, *, max_batch: int) -> dict[str, bytes]:
    classes = len(head.class_names)
    config = head_config(card, names.head, classes=classes, max_batch=max_batch)
    return {
        f"{names.head}/config.pbtxt": _text(config),
        f"{names.head}/1/{CARD_FILE}": card_path(engine).read_bytes(),
        f"{names.head}/1/model.py": _model_py("Name what images show.", "HeadModel"),
        f"{names.name}/config.pbtxt": _text(ensemble_config(names, classes=classes, max_batch=max_batch)),
    }


def _copied(source: Path, target: str) -> dict[str, _Contents]:
    """Return a file and its signature, if there is one, byte for byte, by path in the repository."""
    files: dict[str, _Contents] = {target: partial(_copy, source)}
    if signature_path(source).is_file():
        files[signature_path(Path(target)).as_posix()] = partial(_copy, signature_path(source))
    return files


def _copy(source: Path, stream: BinaryIO) -> None:
    with source.open("rb") as own:
        shutil.copyfileobj(own, stream)


def _file(engine: Path) -> str:
    return "model.plan" if engine.suffix == ".engine" else f"model{engine.suffix.lower()}"


def _require_free(repository: Path, models: set[str], *, force: bool) -> None:
    taken = sorted(model for model in models if os.path.lexists(repository / model))
    if taken and not force:
        raise UsageError(f"{repository} has models of these names: {', '.join(taken)}. Add --force, or another --name.")


def _model_py(about: str, kind: str) -> bytes:
    return _MODEL_PY.format(about=about, kind=kind, variable=PATH_VARIABLE).encode()


def _text(config: Mapping[str, Value]) -> bytes:
    return to_text(config).encode()
