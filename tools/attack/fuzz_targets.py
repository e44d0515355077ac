"""What is fuzzed: for each kind of file its seeds, its mutators, and what is done with it.

Seeds are made here or taken from the committed tiny bundle, so that the corpus is small and reviewed as code.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import fuzz_data as data
import fuzz_profiles as profiles
import fuzz_runs as runs
import fuzz_tables as tables
import mutator
import numpy as np
from mutator import Mutator

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "runtime" / "data" / "tiny.p4q"


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of input.

    Attributes:
        seeds: makes the inputs that are changed.
        mutators: ways to change them; one is drawn for each input.
        use: reads an input in a folder of its own as the product would, and does what the product does next.
        weight: share of the budget; what takes milliseconds gets less.
    """

    seeds: Callable[[], Sequence[bytes]]
    mutators: Sequence[Mutator]
    use: Callable[[bytes, Path], object]
    weight: float = 1.0


@cache
def tiny_members() -> dict[str, bytes]:
    """Return the members of the tiny bundle."""
    return mutator.read_zip(TINY.read_bytes())


def _head_seeds() -> list[bytes]:
    from p4q_edge.runtime.artifacts import Head, HeadAdapter

    generator = np.random.default_rng(0)
    text = np.eye(3, 16, dtype=np.float32)
    weights = [generator.normal(size=shape).astype(np.float32) for shape in ((4, 16), (4,), (16, 4), (16,))]
    adapter = HeadAdapter(
        down_weight=weights[0], down_bias=weights[1], up_weight=weights[2], up_bias=weights[3], residual_ratio=0.2
    )
    own = Head(class_names=("a", "b", "c"), text_embedding=text, logit_scale=20.0, adapter=adapter)
    return [tiny_members()["head.safetensors"], own.to_bytes()]


def _use_head(data: bytes, folder: Path) -> None:
    from p4q_edge.runtime.artifacts import load_head

    path = folder / "head.safetensors"
    path.write_bytes(data)
    head = load_head(path)
    logits, embedding = head.apply(np.ones((2, head.embedding_dim), np.float32))
    if not (np.isfinite(logits).all() and np.isfinite(embedding).all()):
        raise AssertionError("a head that was accepted gives numbers that are not finite")
    head.to_bytes()


def _use_golden(data: bytes, folder: Path) -> None:
    from p4q_edge.runtime.artifacts import read_golden

    read_golden(data, source="golden").for_cpu().to_bytes()


def _reference_seeds() -> list[bytes]:
    from p4q_edge.runtime.artifacts import RecordedResults

    own = RecordedResults(
        digest=np.zeros((4, 32), np.uint8),
        label=np.arange(4, dtype=np.int32) % 3,
        embedding=np.ones((4, 16), np.float32),
        float_embedding=np.ones((4, 16), np.float32),
    )
    return [own.to_bytes()]


def _use_reference(data: bytes, folder: Path) -> None:
    from p4q_edge.runtime.artifacts.recorded_results import read_reference

    results = read_reference(data, classes=3, dim=16, source="reference")
    results.for_cpu().known()


@cache
def _built() -> tuple[bytes, bytes]:
    """Return the tiny bundle's engine and its card."""
    import tempfile

    from p4q_edge.runtime.artifacts import card_path
    from p4q_edge.runtime.builders import build_engine

    with tempfile.TemporaryDirectory() as name:
        engine = Path(name) / "out.onnx"
        build_engine(TINY, engine)
        return engine.read_bytes(), card_path(engine).read_bytes()


def _edit_card(data: bytes, generator: random.Random) -> bytes:
    """Change values and seal the card again, so that the change reaches what comes behind the digest."""
    from p4q_edge.runtime.storage import sealed

    document = json.loads(data)
    document.pop(sealed.SEAL, None)
    document = mutator.edit_document(document, generator)
    if isinstance(document, dict) and generator.random() < 0.9:
        try:
            document[sealed.SEAL] = sealed._digest(document)
        except Exception:  # noqa: BLE001  # numbers that the writer itself cannot write
            document.pop(sealed.SEAL, None)
    return json.dumps(document).encode("utf-8", "surrogatepass")


def _use_card(data: bytes, folder: Path) -> None:
    card = runs.card_beside(folder / "out.onnx", data)
    card.limits  # noqa: B018


def _member_mutators(name: str) -> Mutator:
    """Return the mutator of a bundle's member."""
    if name.endswith(".json"):
        return mutator.edit_json
    if name.endswith(".safetensors"):
        return mutator.edit_safetensors
    return mutator.edit_protobuf


def _edit_bundle(data: bytes, generator: random.Random) -> bytes:
    """Change a member and record its digest, so that the change reaches its reader."""
    import hashlib

    from p4q_edge.runtime.storage import sealed

    members = dict(tiny_members())
    name = generator.choice(list(members))
    members[name] = _member_mutators(name)(members[name], generator)
    try:
        manifest = json.loads(members["manifest.json"])
        manifest.pop(sealed.SEAL, None)
        for member, content in members.items():
            if member in manifest["members"]:
                manifest["members"][member] = {
                    "size_bytes": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
        manifest[sealed.SEAL] = sealed._digest(manifest)
        members["manifest.json"] = json.dumps(manifest).encode("utf-8", "surrogatepass")
    except Exception:  # noqa: BLE001  # the manifest itself was broken: it stays so
        pass
    return mutator.write_zip(members)


def _use_bundle(data: bytes, folder: Path) -> None:
    from p4q_edge.runtime.artifacts import read_bundle
    from p4q_edge.runtime.builders.consistency import check_consistent

    path = folder / "model.p4q"
    path.write_bytes(data)
    bundle = read_bundle(path)
    check_consistent(bundle)
    bundle.reference()
    bundle.model("fp16")
    bundle.model("fp32")


def _onnx_seeds() -> list[bytes]:
    members = tiny_members()
    return [members["graph.fp32.onnx"] + members["weights.onnx"], members["graph.fp16.onnx"] + members["weights.onnx"]]


def _use_onnx(data: bytes, folder: Path) -> None:
    """As `build` does in its child process: what the graph may hold, then ONNX Runtime."""
    from p4q_edge.runtime.artifacts import check_exported, read_golden
    from p4q_edge.runtime.builders.candidates import Candidates, CpuCandidate
    from p4q_edge.runtime.builders.cpu import ProofSetting, prove_candidates
    from p4q_edge.runtime.errors import CorruptArtifactError

    check_exported(data, name="graph")
    golden = read_golden(tiny_members()["golden.safetensors"], source="golden")
    try:
        candidates = Candidates(tried=(CpuCandidate(profile="exact"),), models={"exact": data})
        prove_candidates(candidates, golden, ProofSetting(threads=1, name="graph"))
    except MemoryError as error:  # as the worker reports it
        raise CorruptArtifactError("too much memory") from error


def _report_seeds() -> list[bytes]:
    return [(Path(__file__).parent / "corpus" / "report.json").read_bytes()]


def _use_report(data: bytes, folder: Path) -> None:
    from p4q_edge.runtime.evaluation.report import read_report, render_markdown

    path = folder / "report.json"
    path.write_bytes(data)
    render_markdown(read_report(path))


def _both(*mutators: Mutator) -> tuple[Mutator, ...]:
    return (mutator.edit_bytes, *mutators)


TARGETS: dict[str, Target] = {
    "card": Target(seeds=lambda: [_built()[1]], mutators=(mutator.edit_bytes, _edit_card, _edit_card), use=_use_card),
    "head": Target(seeds=_head_seeds, mutators=_both(mutator.edit_safetensors), use=_use_head),
    "golden": Target(
        seeds=lambda: [tiny_members()["golden.safetensors"]], mutators=_both(mutator.edit_safetensors), use=_use_golden
    ),
    "reference": Target(seeds=_reference_seeds, mutators=_both(mutator.edit_safetensors), use=_use_reference),
    "bundle": Target(
        seeds=lambda: [TINY.read_bytes()],
        mutators=_both(_edit_bundle, _edit_bundle, _edit_bundle),
        use=_use_bundle,
        weight=0.5,
    ),
    "onnx": Target(
        seeds=_onnx_seeds, mutators=_both(mutator.edit_protobuf, mutator.edit_protobuf), use=_use_onnx, weight=0.5
    ),
    "profiles": Target(
        seeds=profiles.profile_seeds,
        mutators=_both(mutator.edit_protobuf, mutator.edit_protobuf, mutator.edit_protobuf),
        use=profiles.use_profiles,
    ),
    "image": Target(seeds=data.images, mutators=_both(mutator.edit_png), use=data.use_image),
    "npz": Target(
        seeds=data.npz_seeds,
        mutators=_both(data.edit_npz, data.edit_npz),
        use=data.use_images_of("images.npz"),
    ),
    "tar": Target(
        seeds=data.tar_seeds,
        mutators=_both(mutator.edit_tar),
        use=data.use_images_of("images.tar"),
    ),
    "csv": Target(seeds=data.csv_seeds, mutators=_both(mutator.edit_text), use=data.use_csv),
    "parquet": Target(seeds=tables.parquet_seeds, mutators=(mutator.edit_bytes,), use=tables.use_parquet),
    "dataset": Target(seeds=tables.dataset_seeds, mutators=(tables.edit_dataset,), use=tables.use_dataset),
    "embeddings": Target(
        seeds=tables.embeddings_seeds, mutators=_both(tables.edit_embeddings), use=tables.use_embeddings
    ),
    "request": Target(seeds=tables.request_seeds, mutators=_both(tables.edit_request), use=tables.use_request),
    "toml": Target(seeds=data.toml_seeds, mutators=_both(mutator.edit_text), use=data.use_toml),
    "captions": Target(seeds=runs.captions_seeds, mutators=_both(mutator.edit_text), use=runs.use_captions),
    "rtx": Target(seeds=runs.rtx_seeds, mutators=(mutator.edit_bytes, _edit_card, _edit_card), use=runs.use_rtx),
    "run": Target(seeds=runs.run_seeds, mutators=(runs.edit_run,), use=runs.use_run),
    "manifest": Target(
        seeds=runs.manifest_seeds,
        mutators=(mutator.edit_bytes, runs.edit_manifest, runs.edit_manifest),
        use=runs.use_manifest,
    ),
    "hub": Target(seeds=runs.hub_seeds, mutators=(runs.edit_hub,), use=runs.use_hub),
    "words": Target(
        seeds=lambda: [b"cat\ndog\n# not\n", b'["cat", "dog"]', b'{"cat": ["a cat"], "dog": ["a dog", "dogs"]}'],
        mutators=_both(mutator.edit_text),
        use=data.use_words,
    ),
    "checkpoint": Target(
        seeds=lambda: list(data.weights().values()),
        mutators=_both(data.edit_checkpoint),
        use=data.use_checkpoint,
    ),
    "config": Target(
        seeds=data.config_seeds, mutators=_both(mutator.edit_json, mutator.edit_json), use=data.use_config
    ),
    "model": Target(
        seeds=data.model_seeds,
        mutators=(mutator.edit_json,),
        use=data.use_model,
        weight=0.03,
    ),
    "report": Target(
        seeds=_report_seeds, mutators=_both(mutator.edit_json, mutator.edit_json), use=_use_report, weight=0.5
    ),
}
