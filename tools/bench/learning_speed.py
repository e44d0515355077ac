"""Measure what each shortcut of learning gains over the plain loop, and what a step of many classes needs in memory.

The plain loop runs whole padded prompts through the text tower and images through both image towers at every step. Its
shortcuts: features of K augmented views cached; prompts cut at their ends; start token and context run once for all
classes. All forms make the same step, forward and backward, of the same student on the same images, and are timed in
turn, round by round, so that a loaded machine slows all of them; what counts is the median of the ratios of each round.
With the cache, little but the text is left of a step. Losses and gradients of all forms are compared. Peaks of memory
are measured in processes of their own. Weights are random: speed does not depend on them.

Run: python tools/bench/learning_speed.py --output results.json
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from learning_speed_table import markdown
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from safetensors.torch import save_file
from torch import Tensor, nn

from p4q_edge.calibration import calibrate_encoder, calibrate_text
from p4q_edge.data import augment
from p4q_edge.learning import Batch, CachedFeatures, Student, Teacher, batch_loss, make_student
from p4q_edge.models import (
    LoadedModel,
    PromptLearner,
    TextTower,
    encoder_of,
    initial_context,
    load_model,
    template_embeddings,
    to_batch,
)
from p4q_edge.quant import QuantScheme
from p4q_edge.recipe import LearnSection, QuantizationSection
from p4q_edge.runtime.machine import cpu as machine
from p4q_edge.runtime.statistics import Rounds, measure_interleaved, paired_ratio, summarize
from p4q_edge.runtime.storage import atomic_write

TOLERANCE = 1e-5
DEFAULT_WORDS = "a photo of a"
RATIOS = (
    # what is gained, the slower form, the faster form
    ("feature cache alone", "plain", "cache"),
    ("cut prompts alone", "plain", "cut"),
    ("cut prompts and shared prefix alone", "plain", "prefix"),
    ("cut prompts, after the cache (text step)", "cache", "cache+cut"),
    ("shared prefix, after cache and cut (text step)", "cache+cut", "cache+cut+prefix"),
    ("cut and prefix, after the cache (text step)", "cache", "cache+cut+prefix"),
    ("all", "plain", "cache+cut+prefix"),
)
QUANTIZED_RATIOS = (("shared prefix, after cache and cut (text step)", "cut", "prefix"),)
CLOCKS = {"cpu": time.process_time_ns, "wall": time.perf_counter_ns}
MEMORY_CASES = (
    # form, limit of `learn.text_memory_mib`
    ("prefix", LearnSection().text_memory_mib),
    ("prefix", 512),
    ("cut", LearnSection().text_memory_mib),
)


class PaddedPrompts(PromptLearner):
    """Prompts as the plain loop runs them: each padded to the whole context length."""

    def forward(self) -> Tensor:
        tower: TextTower = self.tower
        whole = self.prompts()
        padding = tower.embed(torch.zeros(len(whole), tower.context_length - whole.shape[1], dtype=torch.long))
        return F.normalize(tower(torch.cat([whole, padding], dim=1), self.end), dim=-1)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model with random weights and the words of one measurement."""

    model: LoadedModel
    classes: int
    context_words: str
    context_tokens: int
    section: LearnSection

    @property
    def class_names(self) -> tuple[str, ...]:
        step = len(IMAGENET_CLASSNAMES) // self.classes
        return tuple(IMAGENET_CLASSNAMES[::step][: self.classes])


@dataclass(frozen=True, kw_only=True)
class Images:
    """A batch of images in one of K views each, and what both image towers say about them."""

    encoder: nn.Module
    visual: nn.Module
    batch: Tensor
    cached: CachedFeatures
    view: Tensor

    def recomputed(self) -> tuple[Tensor, Tensor]:
        """Features of student and teacher, computed now."""
        with torch.no_grad():
            return self.encoder(self.batch), F.normalize(self.visual(self.batch), dim=-1)

    def from_cache(self) -> tuple[Tensor, Tensor]:
        """The same, looked up."""
        at = self.view, torch.arange(len(self.view))
        return self.cached.student[at], self.cached.teacher[at]


def main() -> None:
    args = arguments()
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that these weights are random
    torch.set_num_threads(args.threads)
    if args.peak:
        print(json.dumps(measure_peak(args, *args.peak.split(":"))))
        return
    load_before = os.getloadavg()
    runs = [run(args, words, tokens) for words, tokens in ((DEFAULT_WORDS, 0), ("", 16))]
    document = {
        "schema_version": 1,
        "model": args.model,
        "weights": "random",
        "cpu": machine.cpu(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "clock": args.clock,
        "load_average_before": load_before,
        "load_average_after": os.getloadavg(),
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "classes": args.classes,
        "batch": args.batch,
        "views": args.views,
        "tolerance": TOLERANCE,
        "runs": runs,
        "memory": [peak_of(args, form, limit) for form, limit in MEMORY_CASES] if args.memory_classes else [],
    }
    if args.output:
        atomic_write(args.output, json.dumps(document, indent=2).encode() + b"\n", force=True)
    print(markdown(document))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32", help="architecture of open_clip")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32, help="images of a step")
    parser.add_argument("--views", type=int, default=2, help="cached views of an image")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="cpu", help="time of this process on the CPU, or of the clock on the wall"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-classes", type=int, default=1000, help="classes of the memory test; 0 leaves it out")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    return parser.parse_args()


def run(args: argparse.Namespace, words: str, tokens: int) -> dict[str, Any]:
    """Compare and time all forms with one kind of context."""
    setting = make_setting(args.model, args.classes, words, tokens)
    images = make_images(setting.model, args.batch, args.views)
    labels = torch.arange(args.batch) % args.classes
    students = {"padded": make(setting, PaddedPrompts), "cut": make(setting), "prefix": make(setting)}
    prompts = {name: student.prompts for name, student in students.items()}
    prompts["cut"].share_prefix = False
    assert prompts["prefix"].share_prefix
    forms = {
        "plain": ("padded", images.recomputed),
        "cache": ("padded", images.from_cache),
        "cut": ("cut", images.recomputed),
        "prefix": ("prefix", images.recomputed),
        "cache+cut": ("cut", images.from_cache),
        "cache+cut+prefix": ("prefix", images.from_cache),
    }
    steps = {name: Step(students[text], features, labels, setting.section) for name, (text, features) in forms.items()}
    times = measure(args, steps)
    difference = compare(steps)
    return {
        "context": words or "random",
        "context_tokens": len(prompts["cut"].context),
        "tokens_per_class": {
            "padded": setting.model.clip.context_length,
            "cut_mean": float(prompts["cut"].lengths.float().mean()),
            "after_prefix_mean": float((prompts["prefix"].lengths - prompts["prefix"]._shared_tokens).float().mean()),
        },
        "largest_difference_to_plain": difference,
        **figures(times, RATIOS),
        "quantized_text": quantized_text(args, setting, students, images, labels),
    }


def quantized_text(
    args: argparse.Namespace, setting: Setting, students: dict[str, Student], images: Images, labels: Tensor
) -> dict[str, Any]:
    """The same text step through a fake-quantized text tower: cut prompts against the shared prefix."""
    steps = {}
    for name in ("cut", "prefix"):
        prompts = students[name].prompts
        calibrate_text(prompts.tower, prompts)
        steps[name] = Step(students[name], images.from_cache, labels, setting.section)
    times = measure(args, steps)
    return {
        "relative_loss_difference": abs(steps["prefix"].loss / steps["cut"].loss - 1),
        **figures(times, QUANTIZED_RATIOS),
    }


def measure(args: argparse.Namespace, steps: dict[str, Step]) -> dict[str, np.ndarray]:
    """Return the milliseconds of each form, round by round."""
    rounds = Rounds(warmup=0, minimum=args.rounds, maximum=args.rounds)
    return measure_interleaved(steps, rounds, clock_ns=CLOCKS[args.clock])


def figures(times: dict[str, np.ndarray], ratios: Iterable[tuple[str, str, str]]) -> dict[str, Any]:
    """Return latencies and paired ratios."""
    return {
        "latency": {name: asdict(summarize(values)) for name, values in times.items()},
        "speedup": {what: ratio(times[slow], times[fast]) for what, slow, fast in ratios},
    }


def make_setting(name: str, classes: int, words: str, tokens: int) -> Setting:
    """Load a model whose weights were just drawn."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.safetensors"
        save_file(open_clip.create_model(name).state_dict(), path)
        model = load_model(name, str(path), quick_gelu=False)
    section = LearnSection(context_init=words, num_context_tokens=tokens, distillation=1.0, zero_init=False)
    return Setting(model=model, classes=classes, context_words=words, context_tokens=tokens, section=section)


def make(setting: Setting, kind: type[PromptLearner] = PromptLearner) -> Student:
    """Make a student before its first step; every call makes the same one."""
    model, generator = setting.model, torch.Generator().manual_seed(0)
    tower = TextTower(model.clip, QuantScheme())
    context = initial_context(
        tower, model.tokenizer, words=setting.context_words, num_tokens=setting.context_tokens, generator=generator
    )
    return make_student(
        prompts=kind(tower, model.tokenizer, setting.class_names, context=context),
        hand_written=template_embeddings(
            encoder_of(model.clip), model.tokenizer, setting.class_names, templates=["a photo of a {}."]
        ),
        logit_scale=model.logit_scale,
        section=setting.section,
        adapter_scheme=QuantizationSection().adapter_scheme(),
        generator=generator,
    )


def make_images(model: LoadedModel, batch: int, views: int) -> Images:
    """Draw images and put the features of all their views into a cache."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 3, *model.preprocess.size), dtype=torch.uint8, generator=generator)
    encoder = calibrate_encoder(model, pixels[:8], QuantScheme()).encoder
    augmented = [augment(pixels, generator=generator, flip=False) for _ in range(views - 1)]
    all_views = torch.stack([to_batch(view, model.preprocess) for view in (pixels, *augmented)])
    view = torch.arange(batch) % views
    with torch.no_grad():
        cached = CachedFeatures(
            student=torch.stack([encoder(v) for v in all_views]),
            teacher=torch.stack([F.normalize(model.clip.visual(v), dim=-1) for v in all_views]),
            labels=torch.zeros(batch, dtype=torch.long),
        )
    return Images(
        encoder=encoder,
        visual=model.clip.visual,
        batch=all_views[view, torch.arange(batch)],
        cached=cached,
        view=view,
    )


class Step:
    """One step forward and backward; keeps its loss and the gradient to the context."""

    def __init__(
        self,
        student: Student,
        features: Callable[[], tuple[Tensor, Tensor]],
        labels: Tensor,
        section: LearnSection,
    ) -> None:
        self.student = student
        self.features = features
        self.labels = labels
        self.section = section
        self.loss = float("nan")
        self.gradient = torch.empty(0)

    def __call__(self) -> None:
        self.student.zero_grad(set_to_none=True)
        student, teacher = self.features()
        batch = Batch(student=student, teacher=teacher, labels=self.labels)
        loss = batch_loss(self.student, batch, self.section, Teacher.zero_shot(self.student))
        loss.backward()
        self.loss, self.gradient = float(loss.detach()), self.student.prompts.context.grad


def compare(steps: dict[str, Step]) -> dict[str, float]:
    """Return the largest differences of loss and context gradient, relative to those of the plain loop."""
    plain = steps["plain"]
    found = {
        "loss": max(abs(step.loss / plain.loss - 1) for step in steps.values()),
        "context_gradient": max(
            float((step.gradient - plain.gradient).norm() / plain.gradient.norm()) for step in steps.values()
        ),
    }
    if not max(found.values()) <= TOLERANCE:
        raise SystemExit(f"the forms differ by {found}; at most {TOLERANCE} is rounding")
    return found


def ratio(slow: np.ndarray, fast: np.ndarray) -> dict[str, Any]:
    """Return the median of the paired ratios with its interval, and the ratios."""
    estimate = paired_ratio(slow, fast, generator=np.random.default_rng(0))
    return {**asdict(estimate), "ratios": [round(float(value), 3) for value in slow / fast]}


def peak_of(args: argparse.Namespace, form: str, limit: int) -> dict[str, Any]:
    """Measure the peak of one step with many classes in a process of its own."""
    command = [sys.executable, __file__, "--peak", f"{form}:{limit}", "--model", args.model]
    command += ["--classes", str(args.memory_classes), "--threads", str(args.threads), "--batch", str(args.batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def measure_peak(args: argparse.Namespace, form: str, limit: str) -> dict[str, Any]:
    """Make one step and return the memory of this process before it and at its peak."""
    setting = make_setting(args.model, args.classes, "", 16)
    student = make(setting)
    student.prompts.share_prefix = form == "prefix"
    student.prompts.limit_memory(int(limit) << 20)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, args.batch, student.hand_written.shape[1], generator=generator)
    labels = torch.arange(args.batch) % args.classes
    base = memory_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    Step(student, lambda: (features[0], F.normalize(features[1], dim=-1)), labels, setting.section)()
    return {
        "form": form,
        "classes": args.classes,
        "context_tokens": 16,
        "text_memory_mib": int(limit),
        "chunks": len(student.prompts.chunks),
        "chunks_computed_twice": sum(chunk.recompute for chunk in student.prompts.chunks),
        "base_rss_mib": base,
        "peak_rss_mib": memory_mib("VmHWM"),
    }


def memory_mib(name: str) -> float:
    """Return a line of this process's status in MiB."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
