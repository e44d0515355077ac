"""Names and help of every subcommand, in one place; `p4q-edge --help` is made of it and loads no subcommand."""

from __future__ import annotations

from collections.abc import Mapping

RUNTIME_HELP: Mapping[str, str] = {
    "build": "build an engine from a bundle, a recipe or the built-in demo",
    "classify": "name what images show",
    "embed": "write the embeddings of many images to a file",
    "search": "find the images nearest to a class or to a picture among embeddings",
    "inspect": "show what is in a bundle, an engine or its card",
    "selftest": "run the golden samples through an engine and compare",
    "validate": "compare PyTorch, ONNX and engine on real images",
    "bench": "measure latency, throughput and memory of an engine",
    "doctor": "check this machine and suggest fixes",
    "head": "list, add, remove, undo, export, calibrate or reset class sets of an engine",
    "teach": "learn a class set from a few photographs, on the device",
    "serve": "open a page with a camera in the browser, and answer over HTTP",
    "export-triton": "write an engine as a model repository of Triton Inference Server",
    "sign": "sign a bundle, an engine with its card, or a head",
    "verify": "check that a trusted key signed an artifact",
    "push": "push a bundle to the Hugging Face Hub, with a model card",
    "completion": "write a script that completes commands and options in bash, zsh or fish",
}
"""Each is the object `COMMAND` of the module of its name, `-` as `_`, in `cli/commands`."""

TOOLKIT_HELP: Mapping[str, str] = {
    "init": "look through a folder of photographs and write a recipe",
    "calibrate": "measure activation ranges on images",
    "learn": "learn prompts and a low-bit adapter from a few images a class",
    "export": "write the bundle model.p4q",
    "reproduce": "repeat a validation from its report and compare",
    "report": "write a report as HTML or Markdown",
    "models": "list the open_clip models that can be used",
}
"""Each is an entry point of the group `p4q_edge.commands`."""

ACTIONS_HELP: Mapping[str, Mapping[str, str]] = {
    "head": {
        "list": "list the class sets of an engine",
        "add": "add a class set to an engine",
        "export": "write a class set to a file",
        "remove": "remove a class set from an engine",
        "undo": "put the earlier version of a class set back",
        "calibrate": "fit probabilities and thresholds on the built engine, and write them with --apply",
        "reset": "give a class set its first calibration again: temperature 1, no thresholds",
    },
}
"""Subcommands of subcommands."""

ALL_HELP: Mapping[str, str] = {**RUNTIME_HELP, **TOOLKIT_HELP}
