"""Prove with the golden samples that an engine computes, on this machine, what its reference computes."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import numpy as np

from p4q_edge.runtime.artifacts import MAX_DRIFT, Card, GoldenResult, on_backend, read_card, verify_parts
from p4q_edge.runtime.choices import CpuBackend
from p4q_edge.runtime.engines import Engine, fingerprint, load_engine
from p4q_edge.runtime.errors import CorruptArtifactError, InputError, UsageError
from p4q_edge.runtime.machine import advice, cpu
from p4q_edge.runtime.storage import atomic_write, cache_folder, read_bounded, sha256_bytes
from p4q_edge.runtime.verification.golden_check import compare_golden, require, run_golden
from p4q_edge.runtime.wording import number_of

_MAX_PROOF_BYTES = 1 << 16

logger = logging.getLogger(__name__)


def selftest(
    engine: str | Path, *, device: str = "auto", threads: int | None = None, backend: CpuBackend | None = None
) -> GoldenResult:
    """Run the golden samples of an engine's card through the engine and compare.

    Args:
        engine: the engine's file.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: threads of a CPU engine; None takes one a core.
        backend: another library for CPUs than the one that the engine was built for.

    Returns:
        The comparison, which may have failed: see `GoldenResult.problem`.

    Raises:
        CorruptArtifactError: the engine is not the one of its card, or its weights are not those of its bundle.
    """
    card = on_backend(read_card(engine), backend)
    loaded = load_engine(engine, card, device=device, threads=threads)
    try:
        verify_parts(engine, card)
        return check_golden(loaded, card, device=device)
    finally:
        loaded.close()


def check_golden(engine: Engine, card: Card, *, device: str = "auto") -> GoldenResult:
    """Compare a loaded engine with the golden samples of its card.

    On the machine that built the engine, its outputs must also be those recorded then.
    """
    golden = card.golden_samples()
    if golden.logits.shape[1] != len(card.class_names) or golden.embedding.shape[1] != card.embedding_dim:
        raise CorruptArtifactError(
            f"the card names {number_of(len(card.class_names), 'class')} and embeddings of {card.embedding_dim} "
            "numbers; its "
            f"golden samples have {golden.logits.shape[1]} and {golden.embedding.shape[1]}. Build the engine again."
        )
    built_here = fingerprint(card, device=device).items() <= card.built_with.items()
    recorded = _recorded(card, shape=golden.embedding.shape) if built_here else None
    outputs = run_golden(engine, golden)
    result = compare_golden(outputs, golden, logit_scale=card.logit_scale, recorded=recorded, limits=card.limits)
    return msgspec.structs.replace(result, max_drift=MAX_DRIFT[card.backend], doubt=_doubt(card))


def _doubt(card: Card) -> str | None:
    """Return what is known of wrong values of an engine's library, on this processor or at all."""
    if card.backend == "tensorrt":
        return advice.wrong_transformers(card.built_with["tensorrt"])
    if card.backend == "openvino" and card.cpu_profile in ("exact", "convolutions") and cpu.saturates():
        return advice.OVERFLOW_IN_OPENVINO
    return None


def ensure_golden(engine: Engine, card: Card, *, name: str, device: str = "auto") -> None:
    """Check an engine once a machine: the result is kept by engine, card, library versions and processor.

    Raises:
        QualityGateError: the engine computes wrong values here.
    """
    key, folder = _key(card, device=device), cache_folder()
    proof = None if folder is None else folder / "golden" / f"{key}.json"
    if proof is not None and _proves(proof, key):
        return
    result = check_golden(engine, card, device=device)
    require(result, engine=name)
    try:
        if proof is None:
            raise UsageError("this user has no folder for caches. Set P4Q_EDGE_CACHE to one.")
        atomic_write(proof, msgspec.json.encode(_Proof(key=key, result=result)), force=True)
    except UsageError as error:
        logger.info("the golden samples are checked again at the next start: %s", error)


class _Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a check that passed: its result, and the digest of all that it depends on."""

    key: str
    result: GoldenResult


def _proves(path: Path, key: str) -> bool:
    """Return whether a kept result is that of this engine here; a damaged or unreadable one counts as none."""
    try:
        proof = msgspec.json.decode(read_bounded(path, limit_bytes=_MAX_PROOF_BYTES, kind="kept result"), type=_Proof)
    except (InputError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return proof.key == key and proof.result.problem() is None


def _key(card: Card, *, device: str) -> str:
    said = sha256_bytes(msgspec.json.encode(card, order="sorted"))
    parts = {"card": said, "here": fingerprint(card, device=device)}
    return sha256_bytes(msgspec.json.encode(parts, order="sorted"))


def _recorded(card: Card, *, shape: tuple[int, ...]) -> np.ndarray:
    rows = () if card.measured is None else card.measured.embedding
    try:
        recorded = np.asarray(rows, dtype=np.float32)
    except ValueError:  # rows of several lengths
        recorded = np.empty(0, np.float32)
    if recorded.shape != shape:
        raise CorruptArtifactError(
            f"the card records embeddings of shape {recorded.shape}; its golden samples have {shape}. "
            "Build the engine again."
        )
    return recorded
