"""The Markdown of ``scale.py``: a row for each number of images, and whether each bar is kept."""

from __future__ import annotations

from typing import Any

WITHIN = 0.05
OVERLAPPED = 0.9
LIMIT_MIB = 4096.0
LINEAR = 1.15


def markdown(document: dict[str, Any]) -> str:
    """Tables of the parts that were measured, then the bars."""
    rows = document["rows"]
    lines = [
        f"# {document['model']}: memory and time by the number of images",
        "",
        f"{_images_in_words(document)}, `compute.workers = {document['workers']}`; {document['created']}, "
        f"commit {document['commit'][:12]}, {'; '.join(document['machine'].get('cpu', '').split('; ')[:2])}. "
        + _device_in_words(document)
        + document["note"],
        "",
        f"`{' '.join(document['command'])}`",
        "",
        "| part | images | peak of the process, MiB | with the processes beside it, MiB | seconds | ms an image | "
        "ms of processors an image |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for part, found in rows.items():
        for row in found if isinstance(found, list) else [found]:
            spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["seconds"].items())
            whole = sum(row["seconds"].values()) if "both" not in row["seconds"] else row["seconds"]["both"]
            timed = row["seconds"].get("features", whole)
            lines.append(
                f"| {part} | {row['n']} | {row['peak_mib']:.0f} | {row['tree_peak_mib']:.0f} | {spent} | "
                f"{1000 * timed / row['n']:.2f} | {_processor_ms(row)} |"
            )
    return "\n".join([*lines, "", "| bar | measured | kept |", "| --- | --- | --- |", *bars(rows)]) + "\n"


def _images_in_words(document: dict[str, Any]) -> str:
    return "Photographs" if document.get("photos") else f"JPEG files of {document['side']} pixels"


def _device_in_words(document: dict[str, Any]) -> str:
    """Where the towers ran, and the most memory that they took there; nothing for the processor."""
    if document.get("device", "cpu") == "cpu":
        return ""
    rows = (row for found in document["rows"].values() for row in (found if isinstance(found, list) else [found]))
    peaks = [row["gpu_peak_mib"] for row in rows if "gpu_peak_mib" in row]
    return f"Towers on {document['device']}, whose memory was used up to {max(peaks):.0f} MiB. "


def _processor_ms(row: dict[str, Any]) -> str:
    spent = row.get("processor_seconds")
    return f"{1000 * spent['features'] / row['n']:.2f}" if spent else ""


def bars(rows: dict[str, Any]) -> list[str]:
    """A line for each bar that was measured."""
    found: list[tuple[str, str, bool]] = []
    if len(rows.get("features", [])) > 1:
        peaks = [row["peak_mib"] for row in rows["features"]]
        spread = max(peaks) / min(peaks) - 1
        found.append(("peaks within 5 % of each other", f"{100 * spread:.1f} %", spread <= WITHIN))
        each = [row["processor_seconds"]["features"] / row["n"] for row in rows["features"]]
        growth = max(each) / min(each)
        found.append(
            (
                f"time linear: processor time of the features an image, the most at most {LINEAR} times the least",
                f"{growth:.2f} times",
                growth <= LINEAR,
            )
        )
    overlaps = {
        "overlap": "decoding and encoding overlapped",
        "pauses": "pauses of a decoder and an encoder overlapped",
    }
    for part, words in overlaps.items():
        for row in rows.get(part, []):
            share = row["share_of_the_slower_alone"]
            interval = " [{:.2f}, {:.2f}]".format(*row["interval"]) if "interval" in row else ""
            found.append((f"{words}, 0.9 of the slower alone", f"{share:.2f}{interval}", share >= OVERLAPPED))
    for part in ("learn", "build", "validate"):
        if part in rows:
            row = rows[part]
            peak = max(row["peak_mib"], row["tree_peak_mib"])
            what = f"{part}: {row['classes']} classes, {row['n']} images under 4 GiB"
            found.append((what, f"{peak:.0f} MiB", peak < LIMIT_MIB))
    return [f"| {bar} | {value} | {'yes' if kept else 'no'} |" for bar, value, kept in found]
