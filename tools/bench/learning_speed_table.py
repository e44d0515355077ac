"""The figures of `learning_speed.py` as Markdown."""

from __future__ import annotations

from typing import Any

from p4q_edge.runtime.wording import number_of


def markdown(document: dict[str, Any]) -> str:
    """Return the figures as tables."""
    lines = [
        f"{document['model']}, {document['classes']} classes, {document['batch']} images a step, "
        f"{number_of(document['threads'], 'thread')} of {document['cpu']}, {document['clock']} time, "
        f"load {document['load_average_before'][0]:.1f} to {document['load_average_after'][0]:.1f}",
    ]
    for run in document["runs"]:
        tokens = run["tokens_per_class"]
        lines += [
            "",
            f"Context of {run['context_tokens']} tokens ({run['context']}); tokens a class: {tokens['padded']} padded, "
            f"{tokens['cut_mean']:.1f} cut, {tokens['after_prefix_mean']:.1f} after the prefix; largest relative "
            f"difference to plain: loss {run['largest_difference_to_plain']['loss']:.1e}, gradient "
            f"{run['largest_difference_to_plain']['context_gradient']:.1e}",
            "",
            "| gain | median ratio | 95 % interval | n |",
            "|---|---|---|---|",
        ]
        rows = run["speedup"] | {f"quantized text: {w}": e for w, e in run["quantized_text"]["speedup"].items()}
        lines += [
            f"| {what} | {e['value']:.2f} | {e['low']:.2f} to {e['high']:.2f} | {e['n']} |" for what, e in rows.items()
        ]
        lines += ["", "step, median ms: " + ", ".join(f"{k} {v['p50_ms']:.0f}" for k, v in run["latency"].items())]
    if document["memory"]:
        lines += [
            "",
            "| form, classes | limit MiB | computed twice | RSS before MiB | peak MiB |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {m['form']}, {m['classes']} | {m['text_memory_mib']} | {m['chunks_computed_twice']} of {m['chunks']} "
            f"chunks | {m['base_rss_mib']:.0f} | {m['peak_rss_mib']:.0f} |"
            for m in document["memory"]
        ]
    return "\n".join(lines)
