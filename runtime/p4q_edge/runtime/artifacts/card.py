"""The card `<engine>.json`: what an engine is, what built it, and everything that the runtime needs to use it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from p4q_edge.runtime.artifacts.builds import Build, OnnxRuntimeBuild, OpenVINOBuild, backend_of_build
from p4q_edge.runtime.artifacts.golden import Golden, MeasuredGolden, read_golden
from p4q_edge.runtime.artifacts.head import MAX_LOGIT_FACTOR, BuiltInHead, Calibration, Head, read_head
from p4q_edge.runtime.artifacts.manifest import ModelInfo
from p4q_edge.runtime.artifacts.precision import Precision
from p4q_edge.runtime.artifacts.schema_one import card_of_schema_1
from p4q_edge.runtime.artifacts.signature import Keys, require_signed
from p4q_edge.runtime.choices import CONVOLUTION_PROFILES, BackendName, CpuProfile
from p4q_edge.runtime.errors import ArtifactError, CorruptArtifactError, InputError, UsageError
from p4q_edge.runtime.images import PreprocessSpec
from p4q_edge.runtime.statistics import FULL_BITS, NoiseFloor, RoundingLimits, rounding_limits_of, with_remainder
from p4q_edge.runtime.storage import (
    MAX_JSON_BYTES,
    atomic_write,
    complete_switch,
    decode_sealed,
    encode_sealed,
    quoted,
    read_bounded,
    sha256_bytes,
    sha256_file,
    switch_files,
    what_is_at,
)

MAX_FOLDED_HEAD_BYTES = 4 << 20
"""A card is read at every start: the rows of some thousands of classes would slow it down."""


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A member of the bundle whose bytes are a part of the engine."""

    name: str
    size_bytes: int
    sha256: str


class Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Description of one engine file; it is kept beside that file.

    Attributes:
        engine_sha256: digest of the engine; the runtime refuses any other file.
        engine_size_bytes: size of the engine.
        bundle_sha256: digest of the bundle that the engine was built from.
        parts: members of the bundle whose bytes, in this order, are the engine; empty where a builder changed them.
        built_by: program and version that built it.
        build: backend, versions and machine, options, and what was read from the built engine.
        model: the CLIP model.
        precision: what is quantized, and how.
        class_names: classes of the folded head, in the order of `logits`.
        preprocess: how pictures become the input.
        embedding_dim: width of `embedding` and `features`.
        logit_scale: factor between cosines and logits.
        calibration: from logits of the folded head to probabilities.
        rounding_bits: of the narrowest quantized value of the reference or of the engine.
        noise: what roundings do in this model, measured at export; None in cards of older bundles.
        noise_bf16: likewise with bfloat16 for what is not quantized; None where the engine computes that otherwise, and
            where it was not measured.
        golden: golden samples (safetensors, base64).
        measured: what the engine gave on them when it was built; None: not recorded.
        folded_head: the head that is folded into the engine (safetensors, base64), to teach others from; empty where it
            is larger than `MAX_FOLDED_HEAD_BYTES`, and in older cards.
    """

    schema_version: int = 2
    engine_sha256: str
    engine_size_bytes: int
    bundle_sha256: str
    parts: tuple[Part, ...] = ()
    built_by: str
    build: Build
    model: ModelInfo
    precision: Precision
    class_names: tuple[str, ...]
    preprocess: PreprocessSpec
    embedding_dim: int
    logit_scale: float
    calibration: Calibration = Calibration()
    rounding_bits: int = FULL_BITS
    noise: NoiseFloor | None = None
    noise_bf16: NoiseFloor | None = None
    golden: str
    measured: MeasuredGolden | None = None
    folded_head: str = ""

    def __post_init__(self) -> None:
        if not abs(self.logit_scale) <= MAX_LOGIT_FACTOR:
            raise ValueError(f"logit_scale must be finite and at most {MAX_LOGIT_FACTOR:g}, got {self.logit_scale}")
        if self.engine_size_bytes < 0 or self.embedding_dim < 1 or self.rounding_bits < 1:
            raise ValueError("engine_size_bytes, embedding_dim and rounding_bits must be positive")

    @property
    def backend(self) -> BackendName:
        """The library that runs the engine."""
        return backend_of_build(self.build)

    @property
    def built_with(self) -> dict[str, str]:
        """Versions and machine by name, for example `{"onnxruntime": "1.23.2", "cpu": "..."}`."""
        return dict(msgspec.structs.asdict(self.build.built_with))

    @property
    def cpu_profile(self) -> CpuProfile | None:
        """The kept profile of an engine for CPUs; None for TensorRT."""
        build = self.build
        return build.options.kept_profile if isinstance(build, OnnxRuntimeBuild | OpenVINOBuild) else None

    @property
    def on_cpu(self) -> bool:
        """Whether the engine runs on a CPU, from the graph with FP32 remainder."""
        return self.cpu_profile is not None

    @property
    def as_cpu_graph(self) -> bool:
        """Whether the engine is quantized as the graph for CPUs, whose convolutions compute in float."""
        return self.on_cpu and self.cpu_profile not in CONVOLUTION_PROFILES

    @property
    def head(self) -> BuiltInHead:
        """The head that is folded into the engine."""
        return BuiltInHead(class_names=self.class_names, calibration=self.calibration)

    def head_rows(self) -> Head:
        """Return the folded head with its class rows, as it is in the bundle, under the calibration of the card.

        Raises:
            ArtifactError: the card does not have them.
            CorruptArtifactError: they cannot be decoded.
        """
        if not self.folded_head:
            raise ArtifactError(
                "the card of this engine does not hold the rows of its built-in head: the engine was built by an older "
                "version, or the head is too large. Build it again, or name the bundle that has them: --base MODEL.p4q"
            )
        source = "the built-in head of the card"
        head = read_head(_from_base64(self.folded_head, what=source), source=source)
        return replace(head, calibration=self.calibration)

    @property
    def limits(self) -> RoundingLimits:
        """How far roundings may take this engine from the reference."""
        return rounding_limits_of(self.rounding_bits, self.noise_with_remainder)

    @property
    def noise_with_remainder(self) -> NoiseFloor | None:
        """What roundings do in this model where this engine computes."""
        return with_remainder(self.noise, self.noise_bf16)

    def golden_samples(self) -> Golden:
        """Return the golden samples.

        Raises:
            CorruptArtifactError: they cannot be decoded.
        """
        source = "the golden samples of the card"
        return read_golden(_from_base64(self.golden, what=source), source=source)


def _from_base64(text: str, *, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CorruptArtifactError(f"{what} cannot be decoded: {error}. Build the engine again.") from error


def card_path(engine: str | Path) -> Path:
    """Return the path of an engine's card: `out.onnx` -> `out.onnx.json`."""
    engine = Path(engine)
    return engine.with_name(engine.name + ".json")


def read_card(engine: str | Path, *, trusted: Keys = None) -> Card:
    """Return the card of an engine.

    Args:
        engine: the engine's file.
        trusted: keys of which one must have signed the card, see `Keys`.

    Raises:
        InputError: the engine or its card is missing.
        ArtifactError: a signature is asked for, and there is none of these keys.
        CorruptArtifactError: the card is not one.
    """
    return read_card_bytes(engine, trusted=trusted)[1]


def no_engine(engine: Path) -> InputError:
    """Return the error of a path where no engine is."""
    if engine.is_dir():
        return InputError(f"{engine} is a directory; expected an engine: a file ending in .onnx, .plan or .rtx.")
    from_bundle, from_recipe = (f"p4q-edge build {source} --engine" for source in ("model.p4q", "--recipe p4q.toml"))
    return InputError(
        f"{engine} {what_is_at(engine)}. Build it from a bundle: {from_bundle} {quoted(engine)}, or from a recipe: "
        f"{from_recipe} {quoted(engine)}"
    )


def read_card_bytes(engine: str | Path, *, trusted: Keys = None) -> tuple[bytes, Card]:
    """Return the bytes of an engine's card, and the card in them; see `read_card`."""
    path = card_path(engine)
    complete_switch(Path(engine))
    if not Path(engine).is_file():
        raise no_engine(Path(engine))
    if not path.is_file():
        raise InputError(
            f"{path} is missing; `p4q-edge build` writes it beside the engine. Copy both files, or build again."
        )
    data = read_bounded(path, limit_bytes=MAX_JSON_BYTES, kind="card")
    require_signed(engine, "engine", data, trusted=trusted)
    return data, decode_card(data, source=str(path))


def decode_card(data: bytes, *, source: str) -> Card:
    """Return a card from its bytes.

    Raises:
        CorruptArtifactError: it is not one.
    """
    try:
        card = decode_sealed(data, Card, source=source, upgrade=card_of_schema_1)
    except UsageError as error:
        raise CorruptArtifactError(
            f"{source} records options that no build has: {error} Build the engine again."
        ) from error
    if not card.class_names or len(set(card.class_names)) != len(card.class_names):
        raise CorruptArtifactError(f"{source} names no classes, or one class twice. Build the engine again.")
    return card


def write_deployment(engine: str | Path, card: Card, files: Mapping[str, bytes | Path]) -> None:
    """Replace an engine, what lies beside it and its card together: none of them is ever met without the others.

    Args:
        engine: the engine's file.
        card: its card.
        files: contents by suffix of the engine's name, or a file in its folder to take; "" is the engine itself.
    """
    switch_files(Path(engine), {**files, card_path(engine).name.removeprefix(Path(engine).name): encode_sealed(card)})


def write_card(engine: str | Path, card: Card, *, force: bool = False) -> None:
    """Write the card of an engine beside it."""
    atomic_write(card_path(engine), encode_sealed(card), force=force)


def verify_engine(engine: str | Path, card: Card) -> None:
    """Check that a file is the engine that a card describes.

    Raises:
        CorruptArtifactError: its digest differs.
    """
    verify_digest(sha256_file(Path(engine)), engine, card)


def verify_digest(digest: str, engine: str | Path, card: Card) -> None:
    """Check that a digest, of bytes that were read from `engine`, is that of the engine that a card describes.

    Raises:
        CorruptArtifactError: it differs.
    """
    if digest != card.engine_sha256:
        raise CorruptArtifactError(
            f"{engine} is not the engine that {card_path(engine)} describes: their digests differ. Copy both files "
            f"together, or build again: p4q-edge build model.p4q --engine {quoted(engine)} --force"
        )


def verify_parts(engine: str | Path, card: Card) -> None:
    """Check that an engine consists of the members of its bundle, whatever digest the card states for the whole.

    Raises:
        CorruptArtifactError: a part differs from the member that it was made of.
    """
    if not card.parts:
        return
    with Path(engine).open("rb") as stream:
        for part in card.parts:
            if sha256_bytes(stream.read(part.size_bytes)) != part.sha256:
                raise CorruptArtifactError(
                    f"{engine}: the part {part.name} differs from the bundle that the engine was built from. "
                    f"Build it again: p4q-edge build model.p4q --engine {quoted(engine)} --force"
                )
        if stream.read(1):
            raise CorruptArtifactError(
                f"{engine} is longer than the parts that its card lists. Build it again: "
                f"p4q-edge build model.p4q --engine {quoted(engine)} --force"
            )
