"""What a bundle decides of the card of an engine."""

from __future__ import annotations

import base64
from importlib.metadata import version

import msgspec

from p4q_edge.runtime.artifacts import (
    GOLDEN,
    MAX_FOLDED_HEAD_BYTES,
    Build,
    Bundle,
    Card,
    Part,
    Precision,
    backend_of_build,
)
from p4q_edge.runtime.choices import BackendName
from p4q_edge.runtime.storage import sha256_file


def card_of(bundle: Bundle, build: Build) -> Card:
    """Return the part of a card that bundle and build decide; digest and size of the engine are filled in later."""
    manifest, head = bundle.manifest, bundle.head()
    folded = head.to_bytes()
    return Card(
        engine_sha256="",
        engine_size_bytes=0,
        bundle_sha256=sha256_file(bundle.path),
        built_by=f"p4q-edge-runtime {version('p4q-edge-runtime')}",
        build=build,
        model=manifest.model,
        precision=precision_on(backend_of_build(build), manifest.precision),
        class_names=manifest.class_names,
        preprocess=bundle.preprocess(),
        embedding_dim=manifest.embedding_dim,
        logit_scale=head.logit_scale,
        calibration=head.calibration,
        rounding_bits=manifest.rounding_bits,
        golden=base64.b64encode(bundle.read(GOLDEN)).decode("ascii"),
        folded_head=base64.b64encode(folded).decode("ascii") if len(folded) <= MAX_FOLDED_HEAD_BYTES else "",
    )


def precision_on(backend: BackendName, precision: Precision) -> Precision:
    """Return the precision of a bundle as a backend runs it."""
    if backend in ("onnxruntime", "openvino"):
        if precision.weight_block is not None:  # the products compute in FP32
            precision = msgspec.structs.replace(precision, activation_bits=32)
        if precision.number_format == "fp8":  # and no CPU multiplies such numbers
            precision = msgspec.structs.replace(precision, execution="carried")
        return msgspec.structs.replace(precision.with_float_convolutions(), remainder="fp32")
    return msgspec.structs.replace(precision, remainder="fp16")


def part_of(bundle: Bundle, name: str) -> Part:
    """Return what a card records of a member of its bundle that is a part of the engine."""
    member = bundle.manifest.members[name]
    return Part(name=name, size_bytes=member.size_bytes, sha256=member.sha256)
