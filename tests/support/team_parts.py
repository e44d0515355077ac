"""What each of some processes does in `tests/toolkit/models/test_team.py`: prints JSON of what it got."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from p4q_edge.models.team import Team, claim, joined_team, post, posted

# What only one part needs is imported there: open_clip alone takes longer than all the other parts run.


def collectives(team: Team) -> dict[str, object]:
    """Everything that values go through."""
    tensors = [torch.full((2, 3), float(team.rank + 1)), torch.tensor(10.0 * (team.rank + 1))]
    team.take_first(tensors)
    module = nn.Linear(2, 2)
    nn.init.constant_(module.weight, 5.0 + team.rank)
    module.register_buffer("sliced", torch.full((4, 4), 1.0 + team.rank)[:, 1:])
    team.take_after_first(module)
    calls: list[float] = []
    post(f"from {team.rank}", "here")
    team.wait()
    return {
        "firsts": [tensor.tolist() for tensor in tensors],
        "taken": [module.weight.tolist(), module.sliced.tolist()],
        "told": team.tell(b"first" if team.first else b"second").decode(),
        "nothing": team.tell().decode(),
        "gathered": [len(text) for text in team.gather(b"x" * 5 * team.rank)],
        "claimed": [claim("one") for _ in range(2)],
        "after": team.after_first(lambda: calls.append(1.0) or len(calls)),
        "notes": [posted("from 0"), posted("from 1"), posted("from 2")],
    }


def gradients(team: Team) -> dict[str, object]:
    """The gradient of a loss over joined rows, which each process makes of its copy of a weight."""
    weight = torch.linspace(-1, 1, 4, dtype=torch.float64).requires_grad_()
    copies = team.join_gradients(weight.expand(5, -1)).unbind()
    own = torch.arange(5)[team.dealt].flip(0)
    rows = torch.stack([torch.sin((number + 1) * copies[number]) for number in own.tolist()])
    joined = team.join_rows(rows, own, 5)
    loss = (joined * torch.arange(20.0, dtype=torch.float64).reshape(5, 4)).square().sum()
    loss.backward()
    return {"loss": float(loss.detach()), "gradient": weight.grad.tolist(), "joined": joined.tolist()}


def learning(team: Team) -> dict[str, object]:
    """Learn prompts and adapter of the demo's model on features of 100 classes that are drawn."""
    from p4q_edge.demo import MODEL_DIR
    from p4q_edge.learning import CachedFeatures, LearningRun, learn_in_place, make_student
    from p4q_edge.models import PromptLearner, TextTower, initial_context, load_model
    from p4q_edge.quant import QuantScheme
    from p4q_edge.recipe import LearnSection, QuantizationSection

    generator = torch.Generator().manual_seed(0)
    model = load_model(f"local-dir:{MODEL_DIR}")
    tower = TextTower(model.clip, QuantScheme())
    context = initial_context(tower, model.tokenizer, words="a photo of a", num_tokens=0, generator=generator)
    names = [f"thing {number}" for number in range(100)]
    prompts = PromptLearner(tower, model.tokenizer, names, context=context)
    section = LearnSection(epochs=8, batch_size=64, context_rate=1e-2, adapter_rate=1e-2)
    features = torch.randn(1, 200, model.clip.visual.output_dim, generator=generator)
    student = make_student(
        prompts=prompts,
        hand_written=prompts().detach(),
        logit_scale=model.logit_scale,
        section=section,
        adapter_scheme=QuantizationSection().adapter_scheme(),
        generator=generator,
    )
    cached = CachedFeatures(student=features, teacher=features, labels=torch.arange(200) % 100)
    divided: list[int] = []
    run = LearningRun(team=team, progress=lambda *_: divided.append(prompts.team.size))
    learn_in_place(student, cached, section, seed=1, run=run)
    values = student.state_dict()
    return {
        "digests": {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in values.items()},
        "moved": float((prompts.context - context).abs().max()),
        "divided": divided[0],
        "chunks": len(prompts.chunks),
    }


def features(team: Team, folder: Path, images: int) -> dict[str, object]:
    """Features of as many drawn images in two views: the class of the first shard is in no other one."""
    import numpy as np
    from PIL import Image

    from p4q_edge.learning.feature_store import SHARD_IMAGES, FeatureStore
    from p4q_edge.runtime.images import ImageSet, PreprocessSpec
    from p4q_edge.stages.features import Tower, TrainViews, store_features

    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))

    def draw(number: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8))

    drawn = ImageSet(
        names=tuple(f"{number}.png" for number in range(images)),
        labels=(np.arange(images) >= SHARD_IMAGES).astype(np.int64),
        class_names=("first", "other"),
        open_image=draw,
        read_bytes=lambda number: b"",
    )
    spec = PreprocessSpec(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    views = TrainViews(images=drawn, spec=spec, count=2, flip=False, seed=0)
    store = FeatureStore(folder=folder, name="student", key="k" * 64, views=2, images=images)
    store_features(views, [Tower(encoder=encoder, sink=store)], team)
    return {
        "values": hashlib.sha256(store.rows.read_bytes()).hexdigest(),
        "digests": store.digests.read_bytes().hex(),
        "missing": len(store.missing()),
        "shape": list(store.read().shape),
    }


def features_of(team: Team, folder: str, *images: str) -> list[dict[str, object]]:
    """Features of each of some numbers of images, in folders of these names."""
    return [features(team, Path(folder) / count, int(count)) for count in images]


PARTS: dict[str, Callable[..., object]] = {
    "collectives": collectives,
    "gradients": gradients,
    "learning": learning,
    "features": features_of,
}


def main() -> None:
    """Join, do the parts that are named (`one,other`, with the words behind them), print a line each."""
    parts, *words = sys.argv[1:]
    with joined_team() as team:
        for part in parts.split(","):
            sys.stdout.write(f"{json.dumps(PARTS[part](team, *words))}\n")


if __name__ == "__main__":
    main()
