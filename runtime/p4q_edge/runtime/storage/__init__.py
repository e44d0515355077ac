"""Files, digests, untrusted bytes and the cache folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.storage.cache import cache_folder, kept_path, read_kept, write_kept
    from p4q_edge.runtime.storage.files import (
        atomic_write,
        is_read_only,
        not_fetched,
        open_regular,
        read_bounded,
        read_buffer,
        remove_leftovers,
        require_writable,
        sha256_bytes,
        sha256_file,
        temporary_path,
        what_is_at,
        write_error,
    )
    from p4q_edge.runtime.storage.npz_errors import NPZ_ERRORS, beyond_unicode
    from p4q_edge.runtime.storage.protobuf import (
        WIRE_BYTES,
        WIRE_FIXED32,
        WIRE_FIXED64,
        WIRE_VARINT,
        WireError,
        expect_wire,
        packed_varints,
        wire_fields,
        wire_message,
        wire_varint,
    )
    from p4q_edge.runtime.storage.scratch import scratch_folder
    from p4q_edge.runtime.storage.sealed import decode_sealed, encode_sealed
    from p4q_edge.runtime.storage.switch import complete_entries, complete_switch, switch_entries, switch_files
    from p4q_edge.runtime.storage.terminal import one_line, printable, quoted
    from p4q_edge.runtime.storage.unchanged import (
        LIBRARIES,
        StageCode,
        contents_digest,
        is_outdated,
        is_unchanged,
        replaced,
        stage_key,
        write_record,
    )
    from p4q_edge.runtime.storage.untrusted import (
        MAX_JSON_BYTES,
        MAX_JSON_DEPTH,
        decode_json,
        encode_json,
        json_depth,
        load_tensors,
        save_tensors,
    )

__all__ = [
    "LIBRARIES",
    "MAX_JSON_BYTES",
    "MAX_JSON_DEPTH",
    "NPZ_ERRORS",
    "WIRE_BYTES",
    "WIRE_FIXED32",
    "WIRE_FIXED64",
    "WIRE_VARINT",
    "StageCode",
    "WireError",
    "atomic_write",
    "beyond_unicode",
    "cache_folder",
    "complete_entries",
    "complete_switch",
    "contents_digest",
    "decode_json",
    "decode_sealed",
    "encode_json",
    "encode_sealed",
    "expect_wire",
    "is_outdated",
    "is_read_only",
    "is_unchanged",
    "json_depth",
    "kept_path",
    "load_tensors",
    "not_fetched",
    "one_line",
    "open_regular",
    "packed_varints",
    "printable",
    "quoted",
    "read_bounded",
    "read_buffer",
    "read_kept",
    "remove_leftovers",
    "replaced",
    "require_writable",
    "save_tensors",
    "scratch_folder",
    "sha256_bytes",
    "sha256_file",
    "stage_key",
    "switch_entries",
    "switch_files",
    "temporary_path",
    "what_is_at",
    "wire_fields",
    "wire_message",
    "wire_varint",
    "write_error",
    "write_kept",
    "write_record",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "cache": ("cache_folder", "kept_path", "read_kept", "write_kept"),
            "files": (
                "atomic_write",
                "is_read_only",
                "not_fetched",
                "open_regular",
                "read_bounded",
                "read_buffer",
                "require_writable",
                "remove_leftovers",
                "sha256_bytes",
                "sha256_file",
                "temporary_path",
                "what_is_at",
                "write_error",
            ),
            "npz_errors": ("NPZ_ERRORS", "beyond_unicode"),
            "protobuf": (
                "WIRE_BYTES",
                "WIRE_FIXED32",
                "WIRE_FIXED64",
                "WIRE_VARINT",
                "WireError",
                "expect_wire",
                "packed_varints",
                "wire_fields",
                "wire_message",
                "wire_varint",
            ),
            "scratch": ("scratch_folder",),
            "sealed": (
                "decode_sealed",
                "encode_sealed",
            ),
            "switch": (
                "complete_entries",
                "complete_switch",
                "switch_entries",
                "switch_files",
            ),
            "terminal": ("one_line", "printable", "quoted"),
            "untrusted": (
                "MAX_JSON_BYTES",
                "MAX_JSON_DEPTH",
                "decode_json",
                "encode_json",
                "json_depth",
                "load_tensors",
                "save_tensors",
            ),
            "unchanged": (
                "LIBRARIES",
                "StageCode",
                "contents_digest",
                "is_outdated",
                "is_unchanged",
                "replaced",
                "stage_key",
                "write_record",
            ),
        },
    )
