"""The commands that `kill.py` kills, each in a folder that `kill_place.py` prepares."""

from __future__ import annotations

from dataclasses import dataclass

ENGINE = ("classify", "out.onnx", "image.png", "--json")
"""Works while there is a deployment."""
REPORT = ("report", "run.report.json", "-o", "page.html", "--force")
BUNDLE = ("inspect", "run.p4q", "--json")
LEARNED = "run/learned.safetensors"

RECIPE = """
seed = {seed}
[model]
name = "local-dir:clip"
[data]
train = "demo:digits"
unlabelled = "unlabelled"
shots = 2
test_limit = 20
templates = ["a photo of the {{}}."]
[quantization]
observer = "minmax"
weight_observer = "minmax"
[learn]
teacher = "learned"
steps = 6
views = 2
context_init = "a photo of the"
[export]
golden_samples = 2
reference_images = 10
"""
"""Small, with everything that writes files of its own: a learned teacher, views, images without labels."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One command in a folder of its own.

    Attributes:
        name: of the row in the table.
        arguments: of `p4q-edge`, run in that folder.
        without: patterns of what is not there before.
        works: a command that must succeed right after the kill, before anything is run again; None where nothing has
            to be there.
        afterwards: a command that must succeed after the next run.
        refusal: what the next run may say instead of succeeding, as the killed one had come to its end.
        same: a file that must be the same as after a run that nobody killed.
        gone: patterns of what must not be there after the next run.
        toolkit: whether the toolkit has the command.
    """

    name: str
    arguments: tuple[str, ...]
    without: tuple[str, ...] = ()
    works: tuple[str, ...] | None = ENGINE
    afterwards: tuple[str, ...] | None = ENGINE
    refusal: str | None = None
    same: str | None = None
    gone: tuple[str, ...] = ()
    toolkit: bool = False


_BUILD = ("build", "model.p4q", "--engine", "out.onnx")
_TRITON = ("export-triton", "out.onnx", "models")
_LEARN = ("learn", "--recipe", "recipe.toml", "-o", "run")
_EXPORT = ("export", "run", "-o", "run.p4q")
_OWN = ("build", "--engine", "own.onnx", "--recipe")
_OWN_ENGINE = ("classify", "own.onnx", "image.png", "--json")
_VALIDATE = ("validate", "run.onnx", "--reference", "run", "--report", "run.report.json", "--report", "run.report.html")
_KEPT, _TAUGHT = "out.onnx.heads/kept.safetensors", "out.onnx.heads/taught.safetensors"
_EARLIER = "out.onnx.heads/earlier/kept/*"
DEPLOYMENT = (
    _BUILD,
    _TRITON,
    ("head", "add", "out.onnx", "model.p4q", "--name", "kept"),
    ("teach", "out.onnx", "photos", "--name", "kept"),
    ("head", "export", "model.p4q", "-o", "signed.safetensors"),
)
"""What makes a deployment with a head of two versions; photographs are there after the first."""
RUNS = (
    _LEARN,
    _EXPORT,
    ("build", "run.p4q", "--engine", "run.onnx"),
    (*_OWN, "recipe.toml"),
    (*_VALIDATE, "--force"),
)
"""What the toolkit makes."""
TRIALS = (
    Trial(name="build", arguments=_BUILD, without=("out.onnx*",), works=None, refusal="exists already"),
    Trial(name="build --force", arguments=(*_BUILD, "--force")),
    Trial(name="head add", arguments=("head", "add", "out.onnx", "model.p4q", "--name", "own", "--force")),
    Trial(
        name="head add, signed",
        arguments=("head", "add", "out.onnx", "signed.safetensors", "--name", "kept", "--force"),
        same=f"{_KEPT}.sig",
    ),
    Trial(
        name="head remove",
        arguments=("head", "remove", "out.onnx", "kept"),
        refusal="has no head",
        gone=(f"{_KEPT}*", _EARLIER),
    ),
    Trial(
        name="head undo",
        arguments=("head", "undo", "out.onnx", "kept"),
        refusal="has no earlier version",
        same=_KEPT,
        gone=(_EARLIER,),
    ),
    Trial(
        name="head calibrate --apply",
        arguments=("head", "calibrate", "out.onnx", "photos", "--apply"),
        same="out.onnx.json",
    ),
    Trial(name="teach", arguments=("teach", "out.onnx", "photos", "--name", "taught"), same=_TAUGHT),
    Trial(name="classify --json", arguments=ENGINE, without=("cache",)),
    Trial(
        name="export-triton",
        arguments=_TRITON,
        without=("models",),
        refusal="has models of these names",
        same="models/p4q_engine/1/model.onnx",
    ),
    Trial(name="export-triton --force", arguments=(*_TRITON, "--force"), same="models/p4q_engine/1/model.onnx"),
    Trial(name="learn", arguments=_LEARN, without=("run",), works=None, afterwards=None, same=LEARNED, toolkit=True),
    Trial(
        name="learn, other seed",
        arguments=("learn", "--recipe", "other.toml", "-o", "run"),
        works=BUNDLE,
        afterwards=BUNDLE,
        same=LEARNED,
        toolkit=True,
    ),
    Trial(
        name="export",
        arguments=_EXPORT,
        without=("run.p4q",),
        works=None,
        afterwards=BUNDLE,
        refusal="exists already",
        same="run.p4q",
        toolkit=True,
    ),
    Trial(name="export --force", arguments=(*_EXPORT, "--force"), works=BUNDLE, afterwards=BUNDLE, toolkit=True),
    Trial(
        name="build --recipe",
        arguments=(*_OWN, "recipe.toml"),
        without=("own.*",),
        works=None,
        afterwards=_OWN_ENGINE,
        same="own.p4q",
        toolkit=True,
    ),
    Trial(
        name="build --recipe, other seed",
        arguments=(*_OWN, "other.toml", "--force"),
        works=_OWN_ENGINE,
        afterwards=_OWN_ENGINE,
        same="own.p4q",
        toolkit=True,
    ),
    Trial(
        name="validate",
        arguments=_VALIDATE,
        without=("run.report.*",),
        works=None,
        afterwards=REPORT,
        refusal="exists already",
        toolkit=True,
    ),
    Trial(name="validate --force", arguments=(*_VALIDATE, "--force"), works=REPORT, afterwards=REPORT, toolkit=True),
    Trial(
        name="validate --data",
        arguments=("validate", "out.onnx", "--data", "photos", "--report", "out.report.md", "--force"),
        afterwards=("report", "out.report.json", "-o", "page.html", "--force"),
        toolkit=True,
    ),
)
