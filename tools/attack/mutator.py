"""Damaging inputs: bytes without regard to their form, and values inside of the forms that readers know."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

LONGEST_LINE = 1 << 16
Mutator = Callable[[bytes, random.Random], bytes]

HOSTILE_TEXTS = (
    "", " ", "x" * 300, "\x00", "\x1b[2J", "../../etc/passwd", "/etc/passwd", "nan", "inf", "-1", "1e400", "9" * 40,
    "\ud7ff", "\u202e", "'\"`$(x)", "None", "\\", "%s%n", "a\nb", "..", "é" * 70, "\ufeff",
)  # fmt: skip
HOSTILE_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**40, 1e308, -1e308, 1e-320, 0.5, [], {},
    [[]], {"": None}, [0] * 300,
)  # fmt: skip
INTERESTING = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"\xff" * 8,
    b"-1",
    b"1e999",
)


def edit_bytes(data: bytes, generator: random.Random) -> bytes:
    """Set, insert, delete, repeat or cut off bytes anywhere, up to four times."""
    for _ in range(generator.randint(1, 4)):
        at, kind = generator.randrange(len(data) + 1), generator.randrange(8)
        value = generator.choice(INTERESTING) if kind < 3 else generator.randbytes(generator.randint(1, 8))
        span = generator.choice((1, 2, 4, 16, 64, 512))
        if kind in (0, 3):
            data = data[:at] + value + data[at + len(value) :]
        elif kind in (1, 4):
            data = data[:at] + value + data[at:]
        elif kind == 5:
            data = data[:at] + data[at + span :]
        elif kind == 6:
            data = data[:at] + data[at : at + span] * generator.randint(2, 40) + data[at:]
        elif kind == 7 and generator.random() < 0.3:
            data = data[:at]
        elif data:
            place = min(at, len(data) - 1)
            data = data[:place] + bytes([data[place] ^ 1 << generator.randrange(8)]) + data[place + 1 :]
    return data


def hostile_value(generator: random.Random) -> Any:
    """Return a value that few readers expect."""
    kind = generator.randrange(6)
    if kind == 0:
        return generator.choice(HOSTILE_TEXTS)
    if kind == 1:
        return nested(generator.choice((2, 31, 33, 200)), generator.choice(([], {}, 1)))
    return generator.choice(HOSTILE_VALUES)


def nested(depth: int, core: Any) -> Any:
    """Return a value in so many lists."""
    for _ in range(depth):
        core = [core]
    return core


def edit_document(document: Any, generator: random.Random) -> Any:
    """Change, remove, add or copy up to three values of a JSON document, which stays as it is."""
    document = _copied(document)
    for _ in range(generator.randint(1, 3)):
        place = _place(document, generator)
        if place is None:
            return hostile_value(generator)
        parent, key = place
        kind = generator.randrange(8)
        if kind == 0 and isinstance(parent, dict):
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent[generator.choice(HOSTILE_TEXTS)] = hostile_value(generator)
        elif kind == 2:
            other_parent, other_key = _place(document, generator) or place
            parent[key] = _copied(other_parent[other_key])
        elif kind == 3 and isinstance(parent, list):
            parent.extend(parent[:50])
        elif kind == 4 and isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool):
            parent[key] = generator.choice((-1, 0, 2, 1000, 1e6, 1e9, 0.001, 0.1)) * parent[key]
        else:
            parent[key] = hostile_value(generator)
    return document


def _copied(value: Any) -> Any:
    """Return a copy of a JSON value."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _place(document: Any, generator: random.Random) -> tuple[Any, Any] | None:
    """Return a parent and a key in it, on a way down that ends anywhere: no list of all places, of which reports have
    a hundred thousand, most of them in few arrays."""
    place, value = None, document
    while isinstance(value, (dict, list)) and value:
        key = generator.choice(list(value)) if isinstance(value, dict) else generator.randrange(len(value))
        place, value = (value, key), value[key]
        if generator.random() < 0.25:
            break
    return place


def edit_json(data: bytes, generator: random.Random) -> bytes:
    """Change values of a JSON text."""
    return json.dumps(edit_document(json.loads(data), generator)).encode("utf-8", "surrogatepass")


def edit_text(data: bytes, generator: random.Random) -> bytes:
    """Replace words of a text, and repeat, swap or join its lines."""
    lines = data.decode("utf-8", "replace").split("\n")
    for _ in range(generator.randint(1, 3)):
        at = generator.randrange(len(lines))
        kind = generator.randrange(6)
        if kind == 0:
            lines.insert(at, lines[generator.randrange(len(lines))])
        elif kind == 1:
            lines[at] = lines[at] * generator.choice((2, 100, 2000))
        elif kind == 2:
            words = lines[at].replace(",", " , ").replace("=", " = ").split(" ")
            words[generator.randrange(len(words))] = generator.choice(HOSTILE_TEXTS)
            lines[at] = " ".join(words)
        elif kind == 3:
            lines[at] = generator.choice(HOSTILE_TEXTS) * generator.choice((1, 1, 1, 400))
        elif kind == 4:
            lines[at] = lines[at][::-1]
        else:
            opening = generator.choice("[{\"'(")
            lines[at] += opening * generator.choice((1, 3, 50, 5000))
        lines[at] = lines[at][:LONGEST_LINE]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def edit_safetensors(data: bytes, generator: random.Random) -> bytes:
    """Change the header of safetensors, or values of its tensors."""
    size = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + size], data[8 + size :]
    if generator.random() < 0.3:
        numbers = bytearray(body)
        for _ in range(generator.randint(1, 3)):
            at = generator.randrange(max(1, len(numbers) // 4)) * 4
            numbers[at : at + 4] = struct.pack("<f", generator.choice((1e30, -1e30, float("nan"), float("inf"), 0.0)))
        return data[: 8 + size] + bytes(numbers)
    document = json.loads(header)
    inner = document.get("__metadata__", {})
    if inner and generator.random() < 0.4:  # documents in strings
        key = generator.choice(list(inner))
        try:
            inner[key] = json.dumps(edit_document(json.loads(inner[key]), generator))
        except ValueError:
            inner[key] = generator.choice(HOSTILE_TEXTS)
    else:
        document = edit_document(document, generator)
    header = json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return len(header).to_bytes(8, "little") + header + body


def edit_zip(data: bytes, generator: random.Random, mutators: Callable[[str], Mutator]) -> bytes:
    """Change one member of a zip, whose sizes and checksums then fit again; or its name, flags or method."""
    members = read_zip(data)
    name = generator.choice(list(members))
    kind = generator.randrange(10)
    if kind == 0:
        del members[name]
    elif kind == 1:
        members[generator.choice(HOSTILE_TEXTS) or "x"] = members.pop(name)
    else:
        members[name] = mutators(name)(members[name], generator)
    return write_zip(members, deflated=generator.random() < 0.1)


def read_zip(data: bytes) -> dict[str, bytes]:
    """Return the members of a zip."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(members: dict[str, bytes], *, deflated: bool = False) -> bytes:
    """Return a zip of members."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


def edit_png(data: bytes, generator: random.Random) -> bytes:
    """Change a chunk of a PNG and mend its checksum; other images are damaged as bytes."""
    if not data.startswith(b"\x89PNG"):
        return edit_bytes(data, generator)
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    number = generator.randrange(len(chunks))
    kind, content = chunks[number]
    chunks[number] = (kind, edit_bytes(content, generator))
    if generator.random() < 0.2:
        chunks.insert(number, generator.choice(chunks))
    return data[:8] + b"".join(
        len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
        for kind, content in chunks
    )


def edit_tar(data: bytes, generator: random.Random) -> bytes:
    """Change a field of a header of a tar and mend its checksum, or the contents of a member."""
    blocks = bytearray(data)
    heads = [at for at in range(0, len(blocks) - 511, 512) if blocks[at + 257 : at + 262] == b"ustar"]
    if not heads or generator.random() < 0.3:
        return edit_bytes(data, generator)
    head = generator.choice(heads)
    start, size = generator.choice(
        ((0, 100), (100, 8), (108, 8), (124, 12), (136, 12), (156, 1), (157, 100), (345, 155))
    )
    value = generator.choice(
        (b"7" * size, b"\x80" + b"\xff" * (size - 1), b"-1", b"L", b"x", b"5", b"../x.png", b"\x00" * size, b"9" * size)
    )[:size]
    blocks[head + start : head + start + len(value)] = value
    blocks[head + 148 : head + 156] = b" " * 8
    blocks[head + 148 : head + 156] = b"%06o\0 " % sum(blocks[head : head + 512])
    return bytes(blocks)


def edit_protobuf(data: bytes, generator: random.Random, depth: int = 0) -> bytes:
    """Change, remove, copy or move a field of a message, at any depth, and mend the lengths around it."""
    fields = split_fields(data)
    if not fields:
        return edit_bytes(data, generator)
    at = generator.randrange(len(fields))
    number, wire, value = fields[at]
    kind = generator.randrange(12)
    if wire == 2 and depth < 6 and kind < 7:
        fields[at] = (number, wire, edit_protobuf(value, generator, depth + 1))
    elif kind == 7:
        del fields[at]
    elif kind == 8:
        fields.insert(generator.randrange(len(fields)), fields[at])
    elif kind == 9:
        fields[at] = (generator.choice((1, 2, 5, 6, 11, 13, 14, 22, 25, number + 1)), wire, value)
    elif wire == 2:
        fields[at] = (number, wire, edit_bytes(value, generator))
    elif wire == 0:
        fields[at] = (number, wire, varint(generator.choice((0, 1, 2, 7, 10, 16, 255, 2**31, 2**63, 2**64 - 1))))
    else:
        fields[at] = (number, wire, generator.randbytes(len(value)))
    overlong = kind == 10 and generator.random() < 0.3
    return b"".join(
        (
            varint(number << 3 | wire)[:-1] + bytes([varint(number << 3 | wire)[-1] | 0x80, 0])
            if overlong
            else varint(number << 3 | wire)
        )
        + (varint(len(value)) + value if wire == 2 else value)
        for number, wire, value in fields
    )


def split_fields(data: bytes) -> list[tuple[int, int, bytes]]:
    """Return number, wire type and value of the fields of a message; empty where it is none."""
    fields, at = [], 0
    try:
        while at < len(data):
            tag, at = _read_varint(data, at)
            if tag >> 3 == 0:
                return []
            start = at
            if tag & 7 == 0:
                _, at = _read_varint(data, at)
            elif tag & 7 == 2:
                size, start = _read_varint(data, at)
                at = start + size
            elif tag & 7 in (1, 5):
                at += 8 if tag & 7 == 1 else 4
            else:
                return []
            if at > len(data):
                return []
            fields.append((tag >> 3, tag & 7, data[start:at]))
    except IndexError:
        return []
    return fields


def varint(value: int) -> bytes:
    """Encode a number as protobuf does."""
    output = bytearray()
    while value > 0x7F:
        output.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*output, value])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80 or shift > 63:
            return value, at
