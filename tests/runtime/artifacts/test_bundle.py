"""A bundle is deterministic, verified before it is used, and refused when it is anything else."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from p4q_edge.runtime.artifacts import bundle as bundles
from p4q_edge.runtime.artifacts.bundle import Bundle, read_bundle, write_bundle
from p4q_edge.runtime.artifacts.card import read_card
from p4q_edge.runtime.artifacts.precision import Precision
from p4q_edge.runtime.errors import ArtifactError, CorruptArtifactError, InputError, UsageError
from p4q_edge.runtime.storage.untrusted import encode_json


def members_of(bundle: Bundle) -> dict[str, bytes]:
    return {name: bundle.read(name) for name in bundle.manifest.members}


def write_zip(path: Path, members: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_the_same_contents_give_the_same_bytes(tiny_bundle: Path, tmp_path: Path) -> None:
    source = read_bundle(tiny_bundle)
    on_disk = tmp_path / "weights"
    on_disk.write_bytes(source.read(bundles.WEIGHTS))
    members: dict[str, bytes | Path] = {**members_of(source)}
    write_bundle(tmp_path / "a.p4q", source.manifest, members)
    members[bundles.WEIGHTS] = on_disk
    write_bundle(tmp_path / "b.p4q", source.manifest, dict(reversed(members.items())))
    assert (tmp_path / "a.p4q").read_bytes() == (tmp_path / "b.p4q").read_bytes()
    # The committed bundle is older than some optional fields of the manifest, and means the same.
    assert read_bundle(tmp_path / "a.p4q").manifest == source.manifest


def test_precision_in_words() -> None:
    plain = Precision(weight_bits=8, activation_bits=8, execution="executed", remainder="fp16", quantized_linears=51)
    assert (plain.label, plain.parts) == ("W8A8 executed", "51 linears")
    whole = msgspec.structs.replace(plain, quantized_attentions=11)
    assert (whole.label, whole.parts) == ("W8A8 executed", "51 linears and the products of 11 attentions")
    most = msgspec.structs.replace(whole, int8_mac_share=0.9712)
    parts = "51 linears and the products of 11 attentions (97.1 % of multiply-accumulates)"
    assert (most.label, most.parts) == ("W8A8 executed", parts)
    assert most.description == f"W8A8 executed, {parts}"
    assert msgspec.structs.replace(most, quantized_linears=0).description == "W8A8 executed"
    limited = msgspec.structs.replace(most, in_float=("a.mlp", "b.mlp"))
    assert limited.description == f"W8A8 executed, {parts}, 2 layers in float on demand"
    mixed = msgspec.structs.replace(most, quantized_convolutions=4, quantized_attentions=0)
    assert mixed.parts == "51 linears and 4 convolutions (97.1 % of multiply-accumulates)"
    hardly = msgspec.structs.replace(plain, int8_mac_share=0.0006, quantized_linears=1)
    assert hardly.label == "W8A8 executed in 0.1 % of multiply-accumulates"
    assert hardly.parts == "1 linear (0.1 % of multiply-accumulates)"
    paper = msgspec.structs.replace(whole, weight_bits=4, activation_bits=4, attention_bits=8, execution="carried")
    assert paper.label == "W4A4 (attention W8A8) carried"
    widths = msgspec.structs.replace(plain, weight_bits=4, execution="carried", mean_weight_bits=4.5)
    assert widths.label == "W4A8 (weights 4.50 bits on average) carried"
    beside = msgspec.structs.replace(widths, quantized_convolutions=4)
    assert beside.label == "W4A8 (weights of linears 4.50 bits on average) carried"
    assert beside.with_float_convolutions() == widths


def test_a_bundle_gives_its_parts(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    assert bundle.manifest.class_names == ("circle", "square", "triangle")
    assert bundle.preprocess().size == (8, 8)
    assert bundle.head().class_names == bundle.manifest.class_names
    assert bundle.golden().image.shape == (4, 3, 8, 8)
    assert bundle.model("fp16") == bundle.read("graph.fp16.onnx") + bundle.read("weights.onnx")
    assert bundle.model("fp32") == bundle.read("graph.fp32.onnx") + bundle.read("weights.onnx")
    assert len(bundle.sha256()) == 64


def test_optional_members_are_kept_and_absent_ones_reported(rebundle: Callable[..., Path]) -> None:
    bundle = read_bundle(rebundle({"notes.txt": b"{}"}))
    assert bundle.read("notes.txt") == b"{}"
    with pytest.raises(CorruptArtifactError, match=r"has no member other\.json"):
        bundle.read("other.json")


def test_a_bundle_of_before_results_and_narrowest_bits_is_read(tiny_bundle: Path, tmp_path: Path) -> None:
    source = read_bundle(tiny_bundle)
    manifest = msgspec.to_builtins(source.manifest)
    del manifest["narrowest_bits"], manifest["members"][bundles.REFERENCE]
    members = {name: data for name, data in members_of(source).items() if name != bundles.REFERENCE}
    write_zip(tmp_path / "old.p4q", {**members, bundles.MANIFEST: encode_json(manifest)})
    old = read_bundle(tmp_path / "old.p4q")
    assert old.reference() is None
    assert old.manifest.rounding_bits == old.manifest.precision.activation_bits == 8


def test_an_existing_bundle_is_not_replaced(tiny_bundle: Path, tmp_path: Path) -> None:
    source = read_bundle(tiny_bundle)
    path = tmp_path / "a.p4q"
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already"):
        write_bundle(path, source.manifest, members_of(source))
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["../evil", "a/b", "manifest.json", ".hidden", ""])
def test_a_member_needs_a_plain_name_and_none_may_lack(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    source = read_bundle(tiny_bundle)
    with pytest.raises(ValueError, match="cannot have"):
        write_bundle(tmp_path / "a.p4q", source.manifest, {**members_of(source), name: b""})
    with pytest.raises(ValueError, match=r"needs the members \['graph.fp16.onnx'"):
        write_bundle(tmp_path / "a.p4q", source.manifest, {})


def test_any_changed_byte_of_a_member_is_found(tiny_bundle: Path, tmp_path: Path) -> None:
    data = tiny_bundle.read_bytes()
    bundle = read_bundle(tiny_bundle)
    path = tmp_path / "changed.p4q"
    for name in bundle.manifest.members:
        start = data.index(bundle.read(name))
        for offset in (start, start + bundle.manifest.members[name].size_bytes // 2):
            path.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
            with pytest.raises(CorruptArtifactError, match=r"changed\.p4q"):
                read_bundle(path)


def test_a_member_whose_checksum_was_adapted_is_found(tiny_bundle: Path, tmp_path: Path) -> None:
    source = read_bundle(tiny_bundle)
    changed = bytearray(source.read(bundles.WEIGHTS))
    changed[100] ^= 1
    path = tmp_path / "changed.p4q"
    write_zip(
        path, {**members_of(source), "manifest.json": encode_json(source.manifest), "weights.onnx": bytes(changed)}
    )
    with pytest.raises(CorruptArtifactError, match=r"the bytes of weights\.onnx differ from the digest"):
        read_bundle(path)


def test_a_member_changed_after_opening_is_found(rebundle: Callable[..., Path]) -> None:
    path = rebundle()
    bundle = read_bundle(path)
    rebundle({bundles.WEIGHTS: b"other"})
    with pytest.raises(CorruptArtifactError, match="differ from the digest"):
        bundle.read(bundles.WEIGHTS)


def test_a_missing_bundle_names_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.p4q does not exist\. Name a bundle"):
        read_bundle(tmp_path / "absent.p4q")
    with pytest.raises(InputError, match="is a directory. Name a bundle .* start from photographs: p4q-edge init"):
        read_bundle(tmp_path)
    with pytest.raises(InputError, match="is a directory; expected an engine: a file ending in .onnx"):
        read_card(tmp_path)
    with pytest.raises(InputError, match="Build it from a bundle: .*, or from a recipe: p4q-edge build --recipe"):
        read_card(tmp_path / "absent.onnx")


@pytest.mark.parametrize("data", [b"", b"PK", b"not a zip" * 100])
def test_other_files_are_not_bundles(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.p4q"
    path.write_bytes(data)
    with pytest.raises(CorruptArtifactError, match=r"is not an intact bundle: .*Copy or export it again"):
        read_bundle(path)


def test_a_zip_with_paths_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "slip.p4q"
    write_zip(path, {**all_members(tiny_bundle), "../../etc/evil": b"x"})
    with pytest.raises(CorruptArtifactError, match=r"member name '../../etc/evil' is not a plain file name"):
        read_bundle(path)
    assert not (tmp_path.parent.parent / "etc").exists()


def test_a_compressed_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.p4q"
    write_zip(path, {"manifest.json": b" " * 100_000_000}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CorruptArtifactError, match="members claim more bytes than the file has|is compressed"):
        read_bundle(path)


def test_a_zip_with_false_sizes_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    data = bytearray(tiny_bundle.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = b"\xff\xff\xff\x7f" * 2
    path = tmp_path / "false.p4q"
    path.write_bytes(data)
    with pytest.raises(CorruptArtifactError, match="members claim more bytes than the file has"):
        read_bundle(path)


def test_a_small_compressed_member_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "compressed.p4q"
    write_zip(path, all_members(tiny_bundle), compression=zipfile.ZIP_DEFLATED)
    path.write_bytes(path.read_bytes() + b"\0" * 50_000)
    with pytest.raises(CorruptArtifactError, match="compressed|not an intact bundle"):
        read_bundle(path)


def test_many_members_twins_and_none_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.p4q"
    write_zip(path, {f"m{index}": b"" for index in range(100)})
    with pytest.raises(CorruptArtifactError, match="it has 100 members; at most 64"):
        read_bundle(path)
    write_zip(path, {"other.json": b""})
    with pytest.raises(CorruptArtifactError, match=r"it has no manifest\.json"):
        read_bundle(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("manifest.json", b"2")
    with pytest.raises(CorruptArtifactError, match="two members have one name"):
        read_bundle(path)


def test_a_large_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.p4q"
    write_zip(path, {"manifest.json": b" " * ((16 << 20) + 1)})
    with pytest.raises(CorruptArtifactError, match=r"member manifest\.json claims 16777217 bytes"):
        read_bundle(path)


def test_the_manifest_must_list_exactly_the_members(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.p4q"
    members = all_members(tiny_bundle)
    write_zip(path, {**members, "extra.json": b"{}"})
    with pytest.raises(CorruptArtifactError, match=r"extra\.json differ in name or size from manifest\.json"):
        read_bundle(path)
    del members["head.safetensors"]
    write_zip(path, members)
    with pytest.raises(CorruptArtifactError, match=r"lacks head\.safetensors"):
        read_bundle(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema_version", 3, "has schema 3; this version reads schemas 1 and 2. Upgrade p4q-edge-runtime"),
        ("schema_version", 0, "has schema 0; this version reads schemas 1 and 2. Build it again with this version"),
        ("surprise", 1, "unknown field `surprise`"),
        ("class_names", "a", "Expected `array`"),
    ],
)
def test_other_manifests_are_refused(
    tiny_bundle: Path, tmp_path: Path, field: str, value: object, message: str
) -> None:
    members = all_members(tiny_bundle)
    manifest = msgspec.json.decode(members["manifest.json"])
    members["manifest.json"] = msgspec.json.encode({**manifest, field: value})
    path = tmp_path / "a.p4q"
    write_zip(path, members)
    with pytest.raises(ArtifactError, match=message):
        read_bundle(path)


def all_members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
